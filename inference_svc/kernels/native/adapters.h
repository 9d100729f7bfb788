// Deltas of adapters: y += B ((A x) * s), bank by bank in the order given, only for the rows that have them.
#pragma once
#include <algorithm>
#include <cstdint>

#include "products.h"
#include "vector.h"

namespace loramux {

struct Delta {  // what a bank adds to one linear layer; a == null: nothing
    const void* a;             // [rank, in_features], float or half
    const void* b;             // [rank, out_features]: B transposed
    const int64_t* expert_of_rank;
    const float* base_factor;  // [out_features] of a DoRA, or null
    int64_t rank;
    int64_t scaling_row;
    float factor;    // that a and b together were made larger by, to be taken out again
    int32_t halves;  // a and b are halves
    int32_t is_finite;  // so are all numbers in them

    // In a product's tiles every number is multiplied, also with nothing; and DoRA wants to know the product by itself.
    bool fits_tiles() const { return halves && is_finite && !base_factor; }

    int64_t number_bytes() const { return halves ? sizeof(half_t) : sizeof(float); }
    const uint8_t* a_at(int64_t index) const { return static_cast<const uint8_t*>(a) + index * number_bytes(); }
    const uint8_t* b_at(int64_t index) const { return static_cast<const uint8_t*>(b) + index * number_bytes(); }
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

constexpr int64_t RANKS = 4;    // that are computed together
constexpr int64_t OUTPUTS = 64;  // columns of y that are changed together

// NR dot products of A's ranks with each of MR rows; sixteen lanes along the columns for every one. `ahead` are the ranks that
// come next, which the memory is asked for.
template <int MR, int NR, typename T>
void rank_products(const float* const* x, const T* a, int64_t length, const T* ahead, float (&results)[MR][NR]) {
    Vector totals[MR][NR] = {};
    for (int64_t k = 0; k < length; k += LANES) {
        Vector ranks[NR];
#pragma GCC unroll 4
        for (int n = 0; n < NR; n++) {
            prefetch(ahead + n * length + k);
            ranks[n] = load_any(a + n * length + k);
        }
#pragma GCC unroll 4
        for (int m = 0; m < MR; m++) {
            const Vector value = load(x[m] + k);
#pragma GCC unroll 4
            for (int n = 0; n < NR; n++) totals[m][n] = fma(value, ranks[n], totals[m][n]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 4
        for (int n = 0; n < NR; n++) results[m][n] = sum(totals[m][n]);
}

// Ranks first.. of A x for MR rows of a bank from `row` on, times their scalings: low [num_rows, rank].
template <int MR, typename T>
void low_rank_rows(const BankRows& bank, const Delta& delta, int64_t first, int64_t in_features, int64_t row, const float* x,
                   int64_t x_stride, const void* ahead, float* low) {
    const int count = static_cast<int>(std::min(RANKS, delta.rank - first));
    float weights[MR][RANKS] = {};
    bool any = false;
    const float* rows[MR];
    for (int m = 0; m < MR; m++) {
        rows[m] = x + bank.rows[row + m] * x_stride;
        const float* scalings = bank.scalings_of(row + m, delta);
        for (int n = 0; n < count; n++) {
            weights[m][n] = scalings[delta.expert_of_rank[first + n]];
            any = any || weights[m][n] != 0.0f;
        }
    }
    float results[MR][RANKS] = {};
    const T* a = static_cast<const T*>(delta.a) + first * in_features;
    if (any && count == RANKS) {
        rank_products<MR, RANKS>(rows, a, in_features, static_cast<const T*>(ahead), results);
    } else if (any) {
        for (int n = 0; n < count; n++) {
            float one[MR][1];
            rank_products<MR, 1>(rows, a + n * in_features, in_features, static_cast<const T*>(ahead) + n * in_features, one);
            for (int m = 0; m < MR; m++) results[m][n] = one[m][0];
        }
    }
    // What counts nothing is nothing, whatever it is: an expert that is left out is never looked at.
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < count; n++)
            low[(row + m) * delta.rank + first + n] =
                weights[m][n] == 0.0f ? 0.0f : results[m][n] * (weights[m][n] * delta.factor);
}

// Ranks first.. of a bank's rows row..end. `ahead` are those that come next, of this delta or another one.
inline void low_rank(const BankRows& bank, const Delta& delta, int64_t first, int64_t in_features, int64_t row, int64_t end,
                     const float* x, int64_t x_stride, const void* ahead, float* low) {
    auto all = [&](auto type) {
        using T = decltype(type);
        in_groups<4>(row, end, [&](auto rows) {
            low_rank_rows<decltype(rows)::value, T>(bank, delta, first, in_features, row, x, x_stride, ahead, low);
        });
    };
    delta.halves ? all(half_t()) : all(float());
}

// MR rows of a bank from `row` on. `base` is W x of these outputs, [num_tokens, OUTPUTS], for DoRA only.
template <int MR, typename T>
void add_delta_rows(const BankRows& bank, const Delta& delta, const float* low, int64_t first, int64_t out_features,
                    int64_t row, const float* base, const uint8_t* ahead, float* y, int64_t y_stride) {
    constexpr int VECTORS = OUTPUTS / LANES;
    Vector change[MR][VECTORS] = {};
    const T* b = static_cast<const T*>(delta.b) + first;
    for (int64_t r = 0; r < delta.rank; r++, b += out_features) {
        for (size_t line = 0; line < OUTPUTS * sizeof(T); line += 64) prefetch(ahead + r * out_features * sizeof(T) + line);
        bool any = false;
        for (int m = 0; m < MR; m++) any = any || low[(row + m) * delta.rank + r] != 0.0f;
        if (!any) continue;
        Vector loaded[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) loaded[i] = load_any(b + LANES * i);
#pragma GCC unroll 4
        for (int m = 0; m < MR; m++) {
            const Vector rank = splat(low[(row + m) * delta.rank + r]);
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i++) change[m][i] = fma(loaded[i], rank, change[m][i]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < MR; m++) {
        float* out = y + bank.rows[row + m] * y_stride + first;
        const float weight = bank.scalings_of(row + m, delta)[0];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) {
            if (delta.base_factor)
                change[m][i] += load(base + bank.rows[row + m] * OUTPUTS + LANES * i) *
                                load(delta.base_factor + first + LANES * i) * weight;
            store(out + LANES * i, load(out + LANES * i) + change[m][i]);
        }
    }
}

// The last outputs, fewer than OUTPUTS, of one row.
template <typename T>
void add_last_outputs(const BankRows& bank, const Delta& delta, const float* low, int64_t first, int64_t out_features,
                      int64_t row, const float* base, float* y, int64_t y_stride) {
    float* out = y + bank.rows[row] * y_stride + first;
    const T* b = static_cast<const T*>(delta.b) + first;
    for (int64_t n = 0; n < out_features - first; n++) {
        float change = 0.0f;
        for (int64_t r = 0; r < delta.rank; r++) {
            const float rank = low[row * delta.rank + r];
            if (rank != 0.0f) change = std::fma(number_at(b + r * out_features + n), rank, change);
        }
        if (delta.base_factor)
            change += base[bank.rows[row] * OUTPUTS + n] * delta.base_factor[first + n] * bank.scalings_of(row, delta)[0];
        out[n] += change;
    }
}

// Adds a bank's delta to outputs first.. of its rows row..end. `ahead` is B where it is read next, most often another bank's.
inline void add_delta(const BankRows& bank, const Delta& delta, const float* low, int64_t first, int64_t out_features,
                      int64_t row, int64_t end, const float* base, const uint8_t* ahead, float* y, int64_t y_stride) {
    auto all = [&](auto type) {
        using T = decltype(type);
        const bool is_whole = out_features - first >= OUTPUTS;
        if (is_whole)
            in_groups<4>(row, end, [&](auto rows) {
                add_delta_rows<decltype(rows)::value, T>(bank, delta, low, first, out_features, row, base, ahead, y, y_stride);
            });
        for (; row < end; row++) add_last_outputs<T>(bank, delta, low, first, out_features, row, base, y, y_stride);
    };
    delta.halves ? all(half_t()) : all(float());
}

}  // namespace loramux
