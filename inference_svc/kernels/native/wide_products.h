// Products of many rows: matrix tiles of bfloat16.
//
// With many rows what costs is not the products but adding them up step by step. So the numbers of a tile are unpacked to
// bfloat16, which its registers multiply and add by themselves. Weights and activations lose what is beyond 8 bits. Sums are in
// another order than those of rounded products, so the invariant mode multiplies rows of prompts in this way, however few they
// are, and no others. Of a row itself nothing depends on the rows beside it: steps that are nothing to it add zeros.
#pragma once
#include "products.h"

namespace loramux {

constexpr int64_t ROWS_FOR_WIDE = 9;  // fewer are as quick in whole numbers

struct alignas(64) WideStep {
    uint16_t numbers[ROWS][32];
};

typedef Blocks<WideStep> Wide;

// Steps that a product has beyond those of its matrix, for two tiles of outputs.
struct MoreSteps {
    int64_t count = 0;
    const uint8_t* numbers = nullptr;  // [2][count][1024], as tiles read weights
    const Wide* x = nullptr;           // activations, from this step on
    int64_t first = 0;
    const uint8_t* is_used = nullptr;  // [blocks][count]: not all of these activations are nothing
    float* before = nullptr;           // if not null: where sums go before these steps too; rows as far apart as those of the output
};

#if defined(LORAMUX_AMX) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512FP16__)
#define LORAMUX_WIDE 1

static const TileConfig WIDE_TILES = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

inline bool has_wide_products() { return has_matrix_tiles(); }

// Two vectors side by side, number by number, as bfloat16.
inline __m512i paired(__m512 a, __m512 b) {
    alignas(64) static const uint16_t interleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(interleave), (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

inline void begin_wide_tiles() { _tile_loadconfig(&WIDE_TILES); }

// The columns of a step in the order in which codes are unpacked: of each four the first and the third, then the others.
inline __m512i in_step_order(__m512i columns) {
    alignas(64) static const uint16_t order[32] = {0,  2,  1,  3,  4,  6,  5,  7,  8,  10, 9,  11, 12, 14, 13, 15,
                                                   16, 18, 17, 19, 20, 22, 21, 23, 24, 26, 25, 27, 28, 30, 29, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), columns);
}

// 32 numbers of a step as bfloat16.
inline void widen_row(const float* x, uint16_t* out) {
    _mm512_storeu_si512(out, in_step_order((__m512i)_mm512_cvtne2ps_pbh((__m512)load(x + 16), (__m512)load(x))));
}

// Numbers of 16 outputs, each for two columns, times a power of two.
inline __m512h twice(const half_t* numbers, __m512h exponent) {
    alignas(64) static const uint16_t each[32] = {0, 0, 1, 1, 2,  2,  3,  3,  4,  4,  5,  5,  6,  6,  7,  7,
                                                  8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15};
    const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers));
    return _mm512_scalef_ph((__m512h)_mm512_permutexvar_epi16(_mm512_load_si512(each), _mm512_castsi256_si512(loaded)), exponent);
}

// One step of a tile of 16 outputs: 16 pairs of columns, 16 outputs each, 1024 bytes.
//
// In half precision, 32 numbers at a time: a code among the bits of 1024.0 counts in ones. A power of two brings the matrix'
// largest number near 2^13, so that halves, which have 11 bits, keep more than 8 of all that matter; it is taken back where the
// exponent moves to where bfloat16 has it. What is below 2^-27 of the largest number becomes about that.
template <int BITS, bool HALVES, bool MIN>
void widen_step(const Packed& w, const uint8_t* step, uint8_t* out) {
    const __m512h exponent = _mm512_set1_ph(static_cast<_Float16>(w.exponent)), magic = _mm512_set1_ph(static_cast<_Float16>(1024.0f));
    const __m512i rebias = _mm512_set1_epi16(static_cast<int16_t>((127 - 15 - w.exponent) * 128));
    constexpr int count = HALVES ? 2 : 1;
    const half_t* numbers = reinterpret_cast<const half_t*>(step + (BITS == 4 ? 256 : 512));
    __m512h scale[2], minimum[2];  // of columns 0-15, and 16-31
    for (int half = 0; half < 2; half++) {
        const int group = HALVES ? half : 0;
        scale[half] = twice(numbers + 16 * group, exponent);
        minimum[half] = MIN ? twice(numbers + 16 * (count + group), exponent)
                            : _mm512_mul_ph(scale[half], _mm512_set1_ph(static_cast<_Float16>(-w.zero)));
    }
    // Codes of 4 bits lie side by side in a byte: those of columns 16-31 count sixteen times as much.
    if (BITS == 4) scale[1] = _mm512_mul_ph(scale[1], _mm512_set1_ph(static_cast<_Float16>(0.0625f)));
    auto put = [&](__m512i codes, int half, int row) {
        const __m512h code = _mm512_sub_ph((__m512h)codes, magic);
        // Cut off, not rounded: to round twice would carry what is a little below the middle past it.
        const __m512h value = _mm512_fmadd_round_ph(code, scale[half], minimum[half], _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
        // Sign, exponent and mantissa three bits further down, rounded; copies of the sign where the exponent is longer now.
        const __m512i rounded = _mm512_mulhrs_epi16((__m512i)value, _mm512_set1_epi16(1 << 12));
        const __m512i number = _mm512_add_epi16(_mm512_and_si512(rounded, _mm512_set1_epi16(static_cast<int16_t>(0x8FFF))), rebias);
        _mm512_store_si512(out + 64 * row, number);
    };
    auto among = [&](__m512i words, int mask) {  // the bits of 1024.0
        return _mm512_ternarylogic_epi32(words, _mm512_set1_epi16(static_cast<int16_t>(mask)), (__m512i)magic, 0xEA);  // a & b | c
    };
#pragma GCC unroll 8
    for (int i = 0; i < (BITS == 4 ? 4 : 8); i++) {
        const __m512i words = _mm512_loadu_si512(step + 64 * i), upper = _mm512_srli_epi16(words, 8);
        if constexpr (BITS == 4) {
            put(among(words, 0x000F), 0, 2 * i);
            put(among(upper, 0x000F), 0, 2 * i + 1);
            put(among(words, 0x00F0), 1, 2 * i + 8);
            put(among(upper, 0x00F0), 1, 2 * i + 9);
        } else {
            put(among(words, 0x00FF), i / 4, 2 * i);
            put(among(upper, 0x00FF), i / 4, 2 * i + 1);
        }
    }
}

typedef void (*WidenStep)(const Packed&, const uint8_t* step, uint8_t* out);  // of a coding

// TILES (1 or 2) tiles of 16 outputs for BLOCKS (1 or 2) blocks of rows from `row` on. The tiles' numbers are at `numbers`, one
// tile's after the other's; UNPACK puts them there on the way: matrix tiles multiply while the other registers unpack the next
// step. Sums are in the registers 0-3, activations in 4 and 5, weights in 6 and 7.
template <int BLOCKS, int TILES, bool UNPACK>
void wide_tiles(const Packed& w, WidenStep widen, int64_t index, const Wide& x, int64_t row, uint8_t* numbers, const MoreSteps& more,
                const Output& output) {
    auto unpack = [&](int64_t step) {
        for (int tile = 0; tile < TILES; tile++) {
            const uint8_t* packed = w.tile(index + tile) + step * w.step_bytes;
            for (int64_t line = 0; line < w.step_bytes; line += 64) prefetch(packed + TILES * w.steps * w.step_bytes + line);
            widen(w, packed, numbers + (tile * w.steps + step) * 1024);
        }
    };
    alignas(64) float biases[2][LANES] = {};
    for (int tile = 0; tile < TILES; tile++) output.biases((index + tile) * LANES, w.rows, biases[tile]);
    for (int64_t step = 0; UNPACK && step < std::min(UNPACKED_AHEAD, w.steps); step++) unpack(step);
    fence();
    _tile_loadd(0, biases[0], 0);
    if constexpr (TILES == 2) _tile_loadd(1, biases[1], 0);
    if constexpr (BLOCKS == 2) _tile_loadd(2, biases[0], 0);
    if constexpr (BLOCKS == 2 && TILES == 2) _tile_loadd(3, biases[1], 0);
    auto multiply = [] {
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (TILES == 2) _tile_dpbf16ps(1, 4, 7);
        if constexpr (BLOCKS == 2) _tile_dpbf16ps(2, 5, 6);
        if constexpr (BLOCKS == 2 && TILES == 2) _tile_dpbf16ps(3, 5, 7);
    };
    float* y = output.at(row, index * LANES);
    const WideStep* first = x.block(row / ROWS);
    const WideStep* second = first + x.steps;
    for (int64_t step = 0; step < w.steps; step++) {
        if constexpr (UNPACK)
            if (step + UNPACKED_AHEAD < w.steps) unpack(step + UNPACKED_AHEAD);
        for (int64_t line = 2 * step; line < std::min<int64_t>(2 * step + 2, ROWS * BLOCKS); line++)
            for (int tile = 0; tile < TILES; tile++) prefetch_to_write(y + line * output.stride + tile * LANES);
        fence();
        _tile_loadd(6, numbers + step * 1024, 64);
        if constexpr (TILES == 2) _tile_loadd(7, numbers + (w.steps + step) * 1024, 64);
        // A sum is ready for its next product only after three others have begun.
        _tile_loadd(4, first[step].numbers, 64);
        if constexpr (BLOCKS == 2) _tile_loadd(5, second[step].numbers, 64);
        multiply();
    }
    const int64_t stride = output.stride * static_cast<int64_t>(sizeof(float));
    auto store_sums = [&](float* to) {
        _tile_stored(0, to, stride);
        if constexpr (TILES == 2) _tile_stored(1, to + LANES, stride);
        if constexpr (BLOCKS == 2) _tile_stored(2, to + ROWS * output.stride, stride);
        if constexpr (BLOCKS == 2 && TILES == 2) _tile_stored(3, to + ROWS * output.stride + LANES, stride);
    };
    if (more.before) store_sums(more.before + (y - output.y));
    for (int64_t step = 0; step < more.count; step++) {
        const uint8_t* is_used = more.is_used + row / ROWS * more.count + step;
        if (!is_used[0] && !(BLOCKS == 2 && is_used[more.count])) continue;
        const WideStep* block = more.x->block(row / ROWS) + more.first + step;
        _tile_loadd(6, more.numbers + step * 1024, 64);
        if constexpr (TILES == 2) _tile_loadd(7, more.numbers + (more.count + step) * 1024, 64);
        _tile_loadd(4, block->numbers, 64);
        if constexpr (BLOCKS == 2) _tile_loadd(5, block[more.x->steps].numbers, 64);
        multiply();
    }
    store_sums(y);
    fence();
}

template <int TILES>
void wide_rows(const Packed& w, WidenStep widen, int64_t index, const Wide& x, int64_t row, int64_t end, uint8_t* numbers,
               const MoreSteps& more, const Output& output) {
    if (end - row <= ROWS) return wide_tiles<1, TILES, true>(w, widen, index, x, row, numbers, more, output);
    wide_tiles<2, TILES, true>(w, widen, index, x, row, numbers, more, output);
    for (row += 2 * ROWS; end - row > ROWS; row += 2 * ROWS) wide_tiles<2, TILES, false>(w, widen, index, x, row, numbers, more, output);
    if (row < end) wide_tiles<1, TILES, false>(w, widen, index, x, row, numbers, more, output);
}

// Two tiles of 16 outputs, or one at the end, for rows row..end, of which the first is the first of a block. Whole blocks are
// written: y has rows and columns enough for them.
inline void wide_product(const Packed& w, int64_t tile, const Wide& x, int64_t row, int64_t end, const MoreSteps& more, const Output& output) {
    static thread_local Buffer<uint8_t> numbers;
    uint8_t* room = numbers.reserve(2 * w.steps * 1024);
    WidenStep widen = nullptr;
    by_coding(w, [&](auto bits, auto halves, auto has_min) {
        widen = widen_step<decltype(bits)::value, decltype(halves)::value, decltype(has_min)::value>;
    });
    if (tile + 1 < w.tiles) return wide_rows<2>(w, widen, tile, x, row, end, room, more, output);
    wide_rows<1>(w, widen, tile, x, row, end, room, more, output);
}
#else
inline bool has_wide_products() { return false; }
inline void begin_wide_tiles() {}
inline void widen_row(const float*, uint16_t*) {}
inline void wide_product(const Packed&, int64_t, const Wide&, int64_t, int64_t, const MoreSteps&, const Output&) {}
#endif

// Steps first..end of a row.
inline void widen_steps(const float* x, int64_t row, int64_t first, int64_t end, Wide& out) {
    WideStep* steps = out.block(row / ROWS);
    for (int64_t step = first; step < end; step++) widen_row(x + 32 * step, steps[step].numbers[row % ROWS]);
}

}  // namespace loramux
