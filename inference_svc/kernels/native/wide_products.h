// Products of many rows: matrix tiles of bfloat16.
//
// With many rows what costs is not the products but adding them up step by step. So the numbers of a tile are unpacked to
// bfloat16, which its registers multiply and add by themselves; activations keep 16 bits, as a bfloat16 and the bfloat16 of
// what is left over. Weights lose what is beyond 8 bits. Sums are in another order than those of rounded products: not for
// the invariant mode.
#pragma once
#include "products.h"

namespace loramux {

struct alignas(64) WideStep {
    uint16_t high[ROWS][32], low[ROWS][32];
};

// Activations for wide products, 16 rows by 16.
struct Wide {
    Buffer<WideStep> data;
    int64_t rows = 0, steps = 0;

    void resize(int64_t num_rows, int64_t columns) {
        rows = num_rows;
        steps = columns / 32;
        data.reserve((rows + ROWS - 1) / ROWS * steps);
    }

    const WideStep* block(int64_t index) const { return data.data() + index * steps; }
};

#if defined(LORAMUX_AMX) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define LORAMUX_WIDE 1

static const TileConfig WIDE_TILES = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

inline bool has_wide_products() { return has_matrix_tiles(); }
inline void begin_wide_tiles() { _tile_loadconfig(&WIDE_TILES); }

inline void widen_steps(const float* x, int64_t row, int64_t first, int64_t end, Wide& out) {
    WideStep* step = out.data.data() + row / ROWS * out.steps + first;
    x += first * 32;
    for (int64_t index = first; index < end; index++, x += 32, step++)
        for (int half = 0; half < 2; half++) {
            const __m512 value = (__m512)load(x + 16 * half);
            const __m256bh high = _mm512_cvtneps_pbh(value);
            const __m512 rest = _mm512_sub_ps(value, _mm512_cvtpbh_ps(high));
            const __m256bh low = _mm512_cvtneps_pbh(rest);
            std::memcpy(step->high[row % ROWS] + 16 * half, &high, 32);
            std::memcpy(step->low[row % ROWS] + 16 * half, &low, 32);
        }
}

// A tile of 16 outputs: for every step 16 pairs of columns, 16 outputs each, 1024 bytes.
template <int BITS, bool HALVES, bool MIN>
void widen_tile(const Packed& w, const uint8_t* tile, uint8_t* out) {
    alignas(64) static const uint16_t interleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_load_si512(interleave), byte = _mm512_set1_epi32(255);
    for (int64_t step = 0; step < w.steps; step++, tile += w.step_bytes, out += 1024) {
        Codes codes[8];
        for (int64_t line = 0; line < w.step_bytes; line += 64) prefetch(tile + PREFETCH + line);
        load_codes<BITS>(tile, codes);
        const Numbers<BITS, HALVES, MIN> numbers(tile, static_cast<float>(w.zero));
#pragma GCC unroll 8
        for (int quad = 0; quad < 8; quad++) {
            const int half = HALVES ? quad / 4 : 0;
            auto column = [&](int j) {
                const __m512i code = _mm512_and_si512(_mm512_srli_epi32(codes[quad], 8 * j), byte);
                return _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), (__m512)numbers.scale[half], (__m512)numbers.minimum[half]);
            };
            for (int pair = 0; pair < 2; pair++) {
                const __m512bh both = _mm512_cvtne2ps_pbh(column(2 * pair + 1), column(2 * pair));
                _mm512_store_si512(out + 128 * quad + 64 * pair, _mm512_permutexvar_epi16(order, (__m512i)both));
            }
        }
    }
}

// Sums of two blocks of rows x two tiles of outputs, [2][2][16][16], in registers 0-3; 4 holds activations, 6 and 7 the tiles.
// Without a second block its sums are left out.
inline void wide_tiles(int64_t steps, const WideStep* x, const WideStep* y, const uint8_t* w, const uint8_t* v, float* out) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps; step++) {
        _tile_loadd(6, w + step * 1024, 64);
        _tile_loadd(7, v + step * 1024, 64);
        _tile_loadd(4, x[step].high, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x[step].low, 64);
        _tile_dpbf16ps(0, 5, 6);
        _tile_dpbf16ps(1, 5, 7);
        if (!y) continue;
        _tile_loadd(4, y[step].high, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 4, 7);
        _tile_loadd(5, y[step].low, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + 256, 64);
    _tile_stored(2, out + 512, 64);
    _tile_stored(3, out + 768, 64);
}

// Two tiles of 16 outputs (or one, at the end) for rows row..end, of which the first is the first of a block.
template <int BITS, bool HALVES, bool MIN>
void wide_product_tiles(const Packed& w, int64_t index, const Wide& x, int64_t row, int64_t end, const Output& output) {
    static thread_local Buffer<uint8_t> unpacked;
    uint8_t* first = unpacked.reserve(2 * w.steps * 1024);
    uint8_t* second = first + w.steps * 1024;
    const bool has_second = index + 1 < w.tiles;
    widen_tile<BITS, HALVES, MIN>(w, w.tile(index), first);
    if (has_second) widen_tile<BITS, HALVES, MIN>(w, w.tile(index + 1), second);
    alignas(64) float sums[4 * 256];
    for (; row < end; row += 2 * ROWS) {
        wide_tiles(w.steps, x.block(row / ROWS), row + ROWS < end ? x.block(row / ROWS + 1) : nullptr, first, has_second ? second : first, sums);
        for (int tile = 0; tile < (has_second ? 2 : 1); tile++) {
            const int64_t start = (index + tile) * 16;
            const int count = static_cast<int>(std::min<int64_t>(16, w.rows - start));
            for (int64_t m = 0; m < 2 * ROWS && row + m < end; m++)
                output.put(row + m, start, count, load(sums + (m / ROWS * 2 + tile) * 256 + m % ROWS * 16));
        }
    }
}

inline void wide_product(const Packed& w, int64_t tile, const Wide& x, int64_t first, int64_t end, const Output& output) {
    by_coding(w, [&](auto bits, auto halves, auto has_min) {
        wide_product_tiles<decltype(bits)::value, decltype(halves)::value, decltype(has_min)::value>(w, tile, x, first, end, output);
    });
}
#else
inline bool has_wide_products() { return false; }
inline void begin_wide_tiles() {}
inline void widen_steps(const float*, int64_t, int64_t, int64_t, Wide&) {}
inline void wide_product(const Packed&, int64_t, const Wide&, int64_t, int64_t, const Output&) {}
#endif

}  // namespace loramux
