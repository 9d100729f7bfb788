// Activations as whole numbers, with a scale for 32 neighbours: what the products in products.h multiply.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "memory.h"
#include "vector.h"

namespace loramux {

constexpr int ROWS = 16;  // of a block

inline int64_t whole_blocks(int64_t rows) { return (rows + ROWS - 1) / ROWS * ROWS; }

// 32 columns of 16 rows. A number is high * 2^SHIFT + low; `scale` is what one counts, and the sums are those of the row's
// numbers, scaled: of all 32, of the first and of the second half.
struct alignas(64) Step {
    struct {
        int8_t high[32], low[32];
    } rows[ROWS];
    float scale[ROWS], sum[ROWS], half_sums[2][ROWS];
};

// Activations as products read them, in blocks of 16 rows. Rows beyond the last take part in matrix tiles; what they give is
// dropped, so any bytes will do.
template <typename S>
struct Blocks {
    Buffer<S> data;
    int64_t steps = 0;  // from one block to the next

    void reserve(int64_t num_rows, int64_t most_steps) {
        steps = most_steps;
        data.reserve(whole_blocks(num_rows) / ROWS * steps);
    }

    S* block(int64_t index) { return data.data() + index * steps; }
    const S* block(int64_t index) const { return data.data() + index * steps; }
};

typedef Blocks<Step> Rounded;

// Steps first..end of a row.
template <int SHIFT>
void round_steps(const float* x, int64_t row, int64_t first, int64_t end, Rounded& out) {
    constexpr int most_code = (127 << SHIFT) + (1 << (SHIFT - 1)) - 1;
    Step* step = out.block(row / ROWS) + first;
    x += first * 32;
    const int64_t r = row % ROWS;
    for (int64_t index = first; index < end; index++, x += 32, step++) {
        const Vector a = load(x), b = load(x + 16);
        const float most = largest_of(largest(largest(a, -a), largest(b, -b)));
        const float inverse = most > 0.0f ? most_code / most : 0.0f;
        const float scale = most / most_code;
        int32_t sums[2] = {0, 0};
        for (int half = 0; half < 2; half++) {
            int8_t* high = step->rows[r].high + 16 * half;
            int8_t* low = step->rows[r].low + 16 * half;
#if defined(__AVX512F__)
            const __m512i whole = _mm512_cvtps_epi32((__m512)((half ? b : a) * inverse));
            const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(1 << (SHIFT - 1))), SHIFT);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(upper));
            const __m512i rest = _mm512_sub_epi32(whole, _mm512_slli_epi32(upper, SHIFT));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(rest));
            sums[half] = _mm512_reduce_add_epi32(whole);
#else
            for (int i = 0; i < 16; i++) {
                const int32_t whole = static_cast<int32_t>(std::nearbyintf(x[16 * half + i] * inverse));
                const int32_t upper = (whole + (1 << (SHIFT - 1))) >> SHIFT;
                high[i] = static_cast<int8_t>(upper);
                low[i] = static_cast<int8_t>(whole - upper * (1 << SHIFT));
                sums[half] += whole;
            }
#endif
        }
        step->scale[r] = scale;
        step->sum[r] = scale * static_cast<float>(sums[0] + sums[1]);
        for (int half = 0; half < 2; half++) step->half_sums[half][r] = scale * static_cast<float>(sums[half]);
    }
}

inline void round_steps(int bits, const float* x, int64_t row, int64_t first, int64_t end, Rounded& out) {
    bits == 4 ? round_steps<4>(x, row, first, end, out) : round_steps<8>(x, row, first, end, out);
}

}  // namespace loramux
