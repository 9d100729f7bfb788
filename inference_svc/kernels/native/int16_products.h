// Products of many rows that keep more than bfloat16 does: matrix tiles of whole numbers of 16 bits.
//
// A row of activations has one scale, an output of a matrix has one, and what they count are whole numbers of two bytes each:
// high * 256 + low. Tiles multiply both parts of the one by both of the other, and add them up over all columns, exactly. That
// costs twice what bfloat16 does and keeps 16 bits of a row's largest number: a number of a hundredth of that still has 9. Not
// for the invariant mode: products of few rows round otherwise.
#pragma once
#include "wide_products.h"

namespace loramux {

constexpr int64_t ROWS_FOR_INT16 = 25;  // fewer are as quick with a scale for 32 neighbours

// More columns might add up to more than 32 bits.
constexpr int64_t MOST_INT16_STEPS = 65536 / 32;

// 64 columns of 16 rows.
struct alignas(64) Int16Step {
    int8_t high[ROWS][64], low[ROWS][64];
};

// Activations with the scale of each row.
struct Int16 : Blocks<Int16Step> {
    Buffer<float> scales;

    void reserve(int64_t num_rows, int64_t most_steps) {
        Blocks<Int16Step>::reserve(num_rows, (most_steps + 1) / 2);
        scales.reserve(whole_blocks(num_rows));
    }
};

#if defined(LORAMUX_WIDE)
constexpr float MOST_INT16 = 127 * 256 + 127;    // of an activation
constexpr float MOST_OF_WEIGHT = MOST_INT16 / 2 - 1;  // of what a code adds to a weight, and of what its minimum does

inline void round_row_to_int16(const float* x, int64_t columns, int64_t row, Int16& out) {
    Vector most = Vector{}, nothing = Vector{};  // the second is not a number if one of the row is not, or is infinite
    for (int64_t i = 0; i < columns; i += LANES) {
        most = largest(most, largest(load(x + i), -load(x + i)));
        nothing = nothing + load(x + i) * 0.0f;
    }
    const float largest_number = largest_of(most), inverse = largest_number > 0.0f ? MOST_INT16 / largest_number : 0.0f;
    out.scales.data()[row] = largest_number / MOST_INT16 + sum(nothing);
    Int16Step* step = out.block(row / ROWS);
    for (int64_t column = 0; column < columns; column += 64, step++)
        for (int64_t i = 0; i < 64; i += LANES) {
            // An odd step of 32 columns at the end is half a step here: what weights there are beside it counts nothing.
            const bool exists = column + i < columns;
            const __m512i whole = exists ? _mm512_cvtps_epi32((__m512)(load(x + column + i) * inverse)) : _mm512_setzero_si512();
            const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
            _mm_store_si128(reinterpret_cast<__m128i*>(step->high[row % ROWS] + i), _mm512_cvtepi32_epi8(high));
            _mm_store_si128(reinterpret_cast<__m128i*>(step->low[row % ROWS] + i), _mm512_cvtepi32_epi8(whole));
        }
}

// A tile of 16 outputs as bytes: its steps of 64 columns, 16 quads of 16 outputs each, 1024 high bytes and then 1024 low ones.
// Gives what one counts in each output.
template <int BITS, bool HALVES, bool MIN>
Vector unpack_int16(const Packed& w, int64_t index, uint8_t* out) {
    constexpr int groups = HALVES ? 2 : 1;
    const uint8_t* tile = w.tile(index);
    const int most_code = MIN ? (BITS == 4 ? 15 : 31) : 2 * w.zero - 1;
    int shift = 15;  // of codes, so that they use the bits that a product keeps
    while (most_code >> (15 - shift)) shift--;
    const float zero = static_cast<float>(w.zero);
    Vector most = Vector{};
    for (int64_t step = 0; step < w.steps; step++) {
        const Numbers<BITS, HALVES, MIN> numbers(tile + step * w.step_bytes, zero);
        for (int i = 0; i < groups; i++) {
            const Vector codes = numbers.scale[i] * static_cast<float>(most_code), minimum = numbers.minimum[i];
            most = largest(most, largest(largest(codes, -codes), largest(minimum, -minimum)));
        }
    }
    const Vector inverse = (Vector)_mm512_maskz_div_ps(_mm512_cmp_ps_mask((__m512)most, _mm512_setzero_ps(), _CMP_GT_OQ),
                                                       _mm512_set1_ps(MOST_OF_WEIGHT), (__m512)most);
    auto twice = [](Vector numbers, int more) {  // of 16 outputs, each for the two pairs of columns of a quad
        const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32((__m512)numbers), _mm512_set1_epi32(more));
        return _mm512_mask_blend_epi16(0xAAAAAAAA, whole, _mm512_slli_epi32(whole, 16));
    };
    const __m512i ones = _mm512_set1_epi16(BITS == 4 ? 15 : 255), upper = _mm512_set1_epi16(static_cast<int16_t>(0xFF00)),
                  lower = _mm512_set1_epi16(0x00FF), signs = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m128i count = _mm_cvtsi32_si128(shift);
    for (int64_t step = 0; step < w.steps; step++) {
        const uint8_t* packed = tile + step * w.step_bytes;
        for (int64_t line = 0; line < w.step_bytes; line += 64) prefetch(packed + w.steps * w.step_bytes + line);
        const Numbers<BITS, HALVES, MIN> numbers(packed, zero);
        __m512i scale[2], minimum[2];  // of columns 0-15, and 16-31
        for (int half = 0; half < 2; half++) {
            const int i = HALVES ? half : 0;
            scale[half] = twice(numbers.scale[i] * inverse * static_cast<float>(1 << (15 - shift)), 0);
            minimum[half] = twice(numbers.minimum[i] * inverse, 128);  // so that the upper byte is the high one, rounded
        }
        uint8_t* at = out + step / 2 * 2048 + step % 2 * 512;
        auto put = [&](__m512i even, __m512i odd, int quad) {  // codes of the first and third columns of each quad, and of the others
            const int half = quad / 4;
            const __m512i first = _mm512_add_epi16(_mm512_mulhrs_epi16(_mm512_sll_epi16(even, count), scale[half]), minimum[half]);
            const __m512i second = _mm512_add_epi16(_mm512_mulhrs_epi16(_mm512_sll_epi16(odd, count), scale[half]), minimum[half]);
            const __m512i high = _mm512_ternarylogic_epi32(_mm512_srli_epi16(first, 8), second, upper, 0xF8);  // a | b & c
            const __m512i low = _mm512_ternarylogic_epi32(_mm512_slli_epi16(second, 8), first, lower, 0xF8);
            _mm512_store_si512(at + 64 * quad, high);
            _mm512_store_si512(at + 1024 + 64 * quad, _mm512_xor_si512(low, signs));
        };
#pragma GCC unroll 8
        for (int i = 0; i < (BITS == 4 ? 4 : 8); i++) {
            const __m512i words = _mm512_loadu_si512(packed + 64 * i);
            put(_mm512_and_si512(words, ones), _mm512_and_si512(_mm512_srli_epi16(words, 8), ones), i);
            if (BITS == 4) put(_mm512_and_si512(_mm512_srli_epi16(words, 4), ones), _mm512_srli_epi16(words, 12), i + 4);
        }
    }
    return most * (1.0f / MOST_OF_WEIGHT);
}

// A tile of 16 outputs for a block of rows. Each product of parts has a register to be added up in, 0-3; activations are in 4
// (high) and 5 (low), weights in 6 and 7. So no sum waits for the product before it.
inline void int16_block(const Packed& w, int64_t index, const uint8_t* numbers, Vector counts, const Int16& x, int64_t row, int64_t end,
                       const Output& output) {
    alignas(64) int32_t sums[4][ROWS][LANES];
    const Int16Step* activations = x.block(row / ROWS);
    float* y = output.at(row, index * LANES);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < (w.steps + 1) / 2; step++) {
        for (int64_t line = 2 * step; line < std::min<int64_t>(2 * step + 2, ROWS); line++) prefetch_to_write(y + line * output.stride);
        _tile_loadd(4, activations[step].high, 64);
        _tile_loadd(6, numbers + step * 2048, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(5, activations[step].low, 64);
        _tile_dpbssd(1, 5, 6);
        _tile_loadd(7, numbers + step * 2048 + 1024, 64);
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    fence();
    auto sum = [&](int part, int64_t m) { return (Vector)_mm512_cvtepi32_ps(_mm512_load_si512(sums[part][m])); };
    const int count = static_cast<int>(std::min<int64_t>(LANES, w.rows - index * LANES));
    for (int64_t m = 0; m < std::min<int64_t>(ROWS, end - row); m++) {
        const Vector whole = fma(fma(sum(0, m), splat(256.0f), sum(1, m) + sum(2, m)), splat(256.0f), sum(3, m));
        output.put(row + m, index * LANES, count, whole * counts * x.scales.data()[row + m]);
    }
}

// A tile of 16 outputs for rows row..end, of which the first is the first of a block.
inline void int16_product(const Packed& w, int64_t tile, const Int16& x, int64_t row, int64_t end, const Output& output) {
    static thread_local Buffer<uint8_t> numbers;
    uint8_t* room = numbers.reserve((w.steps + 1) / 2 * 2048);
    Vector counts;
    by_coding(w, [&](auto bits, auto halves, auto has_min) {
        counts = unpack_int16<decltype(bits)::value, decltype(halves)::value, decltype(has_min)::value>(w, tile, room);
    });
    fence();
    for (; row < end; row += ROWS) int16_block(w, tile, room, counts, x, row, end, output);
}
#else
inline void round_row_to_int16(const float*, int64_t, int64_t, Int16&) {}
inline void int16_product(const Packed&, int64_t, const Int16&, int64_t, int64_t, const Output&) {}
#endif

}  // namespace loramux
