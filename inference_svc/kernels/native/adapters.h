// Deltas of adapters: y += B ((A x) * s), bank by bank in the order given, only for the rows that have them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "products.h"
#include "vector.h"

namespace loramux {

struct Delta {  // what a bank adds to one linear layer; a == null: nothing
    const float* a;            // [rank, in_features]
    const float* b;            // [rank, out_features]: B transposed
    const int64_t* expert_of_rank;
    const float* base_factor;  // [out_features] of a DoRA, or null
    int64_t rank;
    int64_t scaling_row;
};

struct BankRows {  // as in the Python side
    const Delta* deltas;  // by index of the linear layer
    const int64_t* rows;
    const float* scalings;  // [num_rows, num_layers, num_experts]
    int64_t num_rows, num_layers, num_experts;

    const float* scalings_of(int64_t index, const Delta& delta) const {
        return scalings + (index * num_layers + (num_layers > 1 ? delta.scaling_row : 0)) * num_experts;
    }
};

constexpr int64_t RANKS = 4;  // that are computed together

// Ranks first.. of A x for all rows of a bank, times their scalings: low [num_rows, rank].
inline void low_rank(const BankRows& bank, const Delta& delta, int64_t first, int64_t in_features, const float* x,
                     int64_t x_stride, float* low) {
    const int count = static_cast<int>(std::min(RANKS, delta.rank - first));
    auto scaling = [&](int64_t row, int n) {
        return bank.scalings_of(row, delta)[delta.expert_of_rank[first + n]];
    };
    for (int64_t row = 0; row < bank.num_rows; row++) {
        const float* xr = x + bank.rows[row] * x_stride;
        bool any = false;
        for (int n = 0; n < count; n++) any = any || scaling(row, n) != 0.0f;
        float results[RANKS] = {};
        if (any && count == RANKS)
            float_tile<1, RANKS>(xr, 0, delta.a + first * in_features, in_features, results, RANKS);
        else if (any)
            for (int n = 0; n < count; n++) float_tile<1, 1>(xr, 0, delta.a + (first + n) * in_features, in_features, results + n, 1);
        for (int n = 0; n < count; n++) low[row * delta.rank + first + n] = any ? results[n] * scaling(row, n) : 0.0f;
    }
}

constexpr int64_t OUTPUTS = 64;  // columns of y that are changed together

// Adds a bank's delta to outputs first.. of its rows. `base` is W x of these outputs, [num_tokens, OUTPUTS], for DoRA only.
inline void add_delta(const BankRows& bank, const Delta& delta, const float* low, int64_t first, int64_t out_features,
                      const float* base, float* y, int64_t y_stride) {
    const int64_t count = std::min(OUTPUTS, out_features - first);
    for (int64_t row = 0; row < bank.num_rows; row++) {
        float* out = y + bank.rows[row] * y_stride + first;
        const float* ranks = low + row * delta.rank;
        const float weight = bank.scalings_of(row, delta)[0];
        if (count == OUTPUTS) {
            Vector change[4] = {};
            for (int64_t r = 0; r < delta.rank; r++) {
                if (ranks[r] == 0.0f) continue;
                const float* b = delta.b + r * out_features + first;
                for (int i = 0; i < 4; i++) change[i] = fma(load(b + 16 * i), splat(ranks[r]), change[i]);
            }
            for (int i = 0; i < 4; i++) {
                if (delta.base_factor)
                    change[i] += load(base + bank.rows[row] * OUTPUTS + 16 * i) * load(delta.base_factor + first + 16 * i) * weight;
                store(out + 16 * i, load(out + 16 * i) + change[i]);
            }
            continue;
        }
        for (int64_t n = 0; n < count; n++) {
            float change = 0.0f;
            for (int64_t r = 0; r < delta.rank; r++)
                if (ranks[r] != 0.0f) change = std::fma(delta.b[r * out_features + first + n], ranks[r], change);
            if (delta.base_factor) change += base[bank.rows[row] * OUTPUTS + n] * delta.base_factor[first + n] * weight;
            out[n] += change;
        }
    }
}

}  // namespace loramux
