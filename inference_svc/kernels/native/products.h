// Products of activations with packed matrices.
//
// Activations become whole numbers with a scale for 32 neighbours, of 12 bits for 4-bit codes and of 16 bits for
// 8-bit codes, kept as two bytes; 8 bits alone miss the accuracy that is promised. Codes and activations are multiplied as
// whole numbers, and each step of 32 adds `scale * activation scale * dot + minimum * activation sum` in float32, step after
// step. Whole numbers are exact and the float order is one for every row, so one row, sixteen rows and matrix tiles give the
// same bits.
#pragma once
#include <algorithm>

#include "matrix_tiles.h"

namespace loramux {

struct Output {
    float* y;
    int64_t stride;
    const float* bias;  // of all outputs, or null
    int64_t first_row = 0, first_output = 0;  // that y has

    float* at(int64_t row, int64_t first) const { return y + (row - first_row) * stride + first - first_output; }

    // Outputs first.. of a row; those beyond `count` are padding.
    void put(int64_t row, int64_t first, int count, Vector value) const {
        float* out = at(row, first);
        if (count == LANES) {
            store(out, bias ? value + load(bias + first) : value);
            return;
        }
        for (int i = 0; i < count; i++) out[i] = bias ? value[i] + bias[first + i] : value[i];
    }

    // Those of the outputs first.., of `rows` that there are; zeros where there are none.
    void biases(int64_t first, int64_t rows, float (&out)[LANES]) const {
        if (bias && first < rows) std::memcpy(out, bias + first, std::min<int64_t>(LANES, rows - first) * sizeof(float));
    }
};

template <int BITS, bool HALVES, bool MIN>
void product_tile(const Packed& w, int64_t index, const Rounded& x, int64_t row, int64_t end, const Output& output) {
    const uint8_t* tile = w.tile(index);
    const int64_t first = index * 16;
    const int count = static_cast<int>(std::min<int64_t>(16, w.rows - first));
#if defined(LORAMUX_AMX)
    if constexpr (!HALVES)
        if (end - row >= ROWS_FOR_MATRIX_TILES && has_matrix_tiles()) {
            // One block needs the codes of a few steps at a time; more of them find all unpacked by the first.
            const bool is_last = end - row <= ROWS;
            const int64_t mask = is_last ? 2 * UNPACKED_AHEAD - 1 : -1;
            static thread_local Buffer<uint8_t> codes;
            uint8_t* unpacked = codes.reserve((is_last ? 2 * UNPACKED_AHEAD : w.steps) * 1024);
            bool unpack = true;
            auto block = [&](auto rows) {
                constexpr int MR = decltype(rows)::value;
                Vector totals[MR];
                matrix_tile<BITS, MIN, MR>(w, tile, x.block(row / ROWS), unpacked, mask, unpack, totals);
                for (int m = 0; m < MR && row + m < end; m++) output.put(row + m, first, count, totals[m]);
                unpack = false;
            };
            for (; end - row >= ROWS_FOR_MATRIX_TILES; row += ROWS)
                end - row > 8 ? block(std::integral_constant<int, 16>()) : block(std::integral_constant<int, 8>());
        }
#endif
    auto some = [&](auto rows) {
        constexpr int MR = decltype(rows)::value;
        for (; end - row >= MR; row += MR) {
            Vector totals[MR];
            rows_of_tile<BITS, HALVES, MIN, MR>(w, tile, x.block(row / ROWS), row % ROWS, totals);
            for (int m = 0; m < MR; m++) output.put(row + m, first, count, totals[m]);
        }
    };
    some(std::integral_constant<int, 8>());
    some(std::integral_constant<int, 4>());
    some(std::integral_constant<int, 3>());
    some(std::integral_constant<int, 2>());
    some(std::integral_constant<int, 1>());
}

// Calls product(bits, halves, has_min) with what a matrix has, as types.
template <typename Product>
void by_coding(const Packed& w, const Product& product) {
    const std::integral_constant<int, 4> four;
    const std::integral_constant<int, 8> eight;
    const std::true_type yes;
    const std::false_type no;
    if (w.halves) return w.bits == 8 ? product(eight, yes, no) : w.has_min ? product(four, yes, yes) : product(four, yes, no);
    if (w.bits == 4) return w.has_min ? product(four, no, yes) : product(four, no, no);
    return w.has_min ? product(eight, no, yes) : product(eight, no, no);
}

// Rows first..end, of which the first is the first of a block.
inline void rounded_product_tile(const Packed& w, int64_t tile, const Rounded& x, int64_t first, int64_t end, const Output& output) {
    by_coding(w, [&](auto bits, auto halves, auto has_min) {
        product_tile<decltype(bits)::value, decltype(halves)::value, decltype(has_min)::value>(w, tile, x, first, end, output);
    });
}

}  // namespace loramux
