// Products of a few rows of whole numbers with 16 rows of a packed matrix.
#pragma once
#include <cstdint>

#include "quantized.h"
#include "rounded.h"
#include "vector.h"

namespace loramux {

// What a step adds to an output: `f` is the dot product of codes and activations, as float.
inline Vector add_step(Vector total, Vector f, Vector scale, Vector minimum, float x_scale, float x_sum) {
    total = fma(f, scale * x_scale, total);
    return fma(minimum, splat(x_sum), total);
}

#if defined(__AVX512VNNI__)
typedef __m512i Codes;  // of 16 rows, four columns each

inline Codes broadcast_quad(const int8_t* x) {
    int32_t quad;
    std::memcpy(&quad, x, 4);
    return _mm512_set1_epi32(quad);
}

template <int BITS>
inline void load_codes(const uint8_t* step, Codes (&codes)[8]) {
    const __m512i low_bits = _mm512_set1_epi8(15);
    for (int i = 0; i < (BITS == 4 ? 4 : 8); i++) {
        const __m512i bytes = _mm512_loadu_si512(step + 64 * i);
        codes[i] = BITS == 4 ? _mm512_and_si512(bytes, low_bits) : bytes;
        if (BITS == 4) codes[i + 4] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low_bits);
    }
}

// Dot products of the codes of `count` quads from `first` on.
template <int SHIFT>
inline Vector dot(const Codes (&codes)[8], const int8_t* high, const int8_t* low, int first, int count) {
    __m512i h[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, l[2] = {h[0], h[0]};
#pragma GCC unroll 8
    for (int i = first; i < first + count; i++) {
        h[i % 2] = _mm512_dpbusd_epi32(h[i % 2], codes[i], broadcast_quad(high + 4 * i));
        l[i % 2] = _mm512_dpbusd_epi32(l[i % 2], codes[i], broadcast_quad(low + 4 * i));
    }
    const __m512i upper = _mm512_slli_epi32(_mm512_add_epi32(h[0], h[1]), SHIFT);
    return (Vector)_mm512_cvtepi32_ps(_mm512_add_epi32(upper, _mm512_add_epi32(l[0], l[1])));
}
#elif defined(__AVX2__)
struct Codes {  // of 16 rows, four columns each: eight rows in each register
    __m256i part[2];
};

template <int BITS>
inline void load_codes(const uint8_t* step, Codes (&codes)[8]) {
    const __m256i low_bits = _mm256_set1_epi8(15);
    for (int i = 0; i < (BITS == 4 ? 4 : 8); i++)
        for (int half = 0; half < 2; half++) {
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step + 64 * i + 32 * half));
            codes[i].part[half] = BITS == 4 ? _mm256_and_si256(bytes, low_bits) : bytes;
            if (BITS == 4) codes[i + 4].part[half] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low_bits);
        }
}

// Adds the products of four codes and four activations to each of eight numbers.
template <int BITS>
inline __m256i add_products(__m256i total, __m256i codes, __m256i x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(total, codes, x);
#else
    // Pairs are added in 16 bits first: codes of 8 bits would not fit, so they go in two halves of 4.
    const __m256i ones = _mm256_set1_epi16(1), low_bits = _mm256_set1_epi8(15);
    if (BITS == 4) return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
    const __m256i low = _mm256_and_si256(codes, low_bits), high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low_bits);
    total = _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), ones));
    const __m256i upper = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), ones);
    return _mm256_add_epi32(total, _mm256_slli_epi32(upper, 4));
#endif
}

template <int SHIFT>
inline Vector dot(const Codes (&codes)[8], const int8_t* high, const int8_t* low, int first, int count) {
    auto quad = [](const int8_t* x) {
        int32_t value;
        std::memcpy(&value, x, 4);
        return _mm256_set1_epi32(value);
    };
    __m256i totals[2];
    for (int half = 0; half < 2; half++) {
        __m256i h = _mm256_setzero_si256(), l = h;
        for (int i = first; i < first + count; i++) {
            h = add_products<SHIFT>(h, codes[i].part[half], quad(high + 4 * i));
            l = add_products<SHIFT>(l, codes[i].part[half], quad(low + 4 * i));
        }
        totals[half] = _mm256_add_epi32(_mm256_slli_epi32(h, SHIFT), l);
    }
    Vector result;
    const __m256 parts[2] = {_mm256_cvtepi32_ps(totals[0]), _mm256_cvtepi32_ps(totals[1])};
    std::memcpy(&result, parts, sizeof result);
    return result;
}
#else
struct Codes {
    uint8_t bytes[64];
};

template <int BITS>
inline void load_codes(const uint8_t* step, Codes (&codes)[8]) {
    for (int i = 0; i < (BITS == 4 ? 4 : 8); i++)
        for (int j = 0; j < 64; j++) {
            codes[i].bytes[j] = BITS == 4 ? step[64 * i + j] & 15 : step[64 * i + j];
            if (BITS == 4) codes[i + 4].bytes[j] = step[64 * i + j] >> 4;
        }
}

template <int SHIFT>
inline Vector dot(const Codes (&codes)[8], const int8_t* high, const int8_t* low, int first, int count) {
    Vector result;
    for (int r = 0; r < 16; r++) {
        int32_t total = 0;
        for (int i = first; i < first + count; i++)
            for (int j = 0; j < 4; j++) total += codes[i].bytes[4 * r + j] * (high[4 * i + j] * (1 << SHIFT) + low[4 * i + j]);
        result[r] = static_cast<float>(total);
    }
    return result;
}
#endif

// Bytes ahead. The processor's own prefetching stops at every page of 4 KiB; and a few rows take less time than the memory.
constexpr int64_t PREFETCH = 4096;

template <int BITS, bool HALVES, bool MIN>
struct alignas(64) Numbers {  // scales and minima of a step
    Vector scale[HALVES ? 2 : 1], minimum[HALVES ? 2 : 1];

    Numbers(const uint8_t* step, float zero) {
        constexpr int count = HALVES ? 2 : 1;
        const half_t* numbers = reinterpret_cast<const half_t*>(step + (BITS == 4 ? 256 : 512));
        for (int i = 0; i < count; i++) {
            scale[i] = load_half(numbers + 16 * i);
            minimum[i] = MIN ? load_half(numbers + 16 * (count + i)) : scale[i] * -zero;
        }
    }
};

// MR rows of one block, from `first` on.
template <int BITS, bool HALVES, bool MIN, int MR>
void rows_of_tile(const Packed& w, const uint8_t* tile, const Step* x, int64_t first, Vector (&totals)[MR]) {
    for (int m = 0; m < MR; m++) totals[m] = Vector{};
    const float zero = static_cast<float>(w.zero);
    for (int64_t step = 0; step < w.steps; step++, tile += w.step_bytes, x++) {
        Codes codes[8];
        for (int64_t line = 0; line < w.step_bytes; line += 64) prefetch(tile + PREFETCH + line);
        load_codes<BITS>(tile, codes);
        const Numbers<BITS, HALVES, MIN> numbers(tile, zero);
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) {
            const int64_t r = first + m;
            if (HALVES) {
                for (int half = 0; half < 2; half++)
                    totals[m] = add_step(totals[m], dot<BITS>(codes, x->rows[r].high, x->rows[r].low, 4 * half, 4), numbers.scale[half],
                                         numbers.minimum[half], x->scale[r], x->half_sums[half][r]);
            } else {
                totals[m] = add_step(totals[m], dot<BITS>(codes, x->rows[r].high, x->rows[r].low, 0, 8), numbers.scale[0],
                                     numbers.minimum[0], x->scale[r], x->sum[r]);
            }
        }
    }
}

}  // namespace loramux
