// The same with matrix tiles (AMX), 16 rows of activations at once.
#pragma once
#include "row_products.h"
#if defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define LORAMUX_AMX 1
#endif

namespace loramux {

#if defined(LORAMUX_AMX)
// Asks the system for the tile registers, once; a virtual machine may refuse.
inline bool has_matrix_tiles() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
    return granted;
}

// Tile registers 0-3: dots, 16 rows x 16 numbers. 4 and 5 for 4-bit codes: activations, 16 rows x (32 bytes high, 32 low); and
// codes, 8 quads x 64 bytes times 16, the same as they are. 6 and 7 for 8 bits: 16 rows x 32 bytes; 8 quads x 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
// Not on the stack: gcc 12 takes the instruction for one that reads 8 bytes, and drops the stores to the others.
static const TileConfig TILES = {1, 0, {}, {64, 64, 64, 64, 64, 64, 32, 64}, {16, 16, 16, 16, 16, 16, 16, 8}};

// The compiler knows neither that tile registers read memory nor that they write it.
inline void fence() { asm volatile("" ::: "memory"); }

// The 4-bit codes of a step, as matrix tiles read them: 1024 bytes. Codes times 16 still fit a byte, so that high and low parts
// of activations add up in one product.
inline void unpack_codes(const uint8_t* step, uint8_t* out) {
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(static_cast<char>(0xF0));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, step += 64, out += 64) {
        const __m512i bytes = _mm512_loadu_si512(step);
        _mm512_store_si512(out, _mm512_and_si512(_mm512_slli_epi16(bytes, 4), high));
        _mm512_store_si512(out + 256, _mm512_and_si512(bytes, high));
        _mm512_store_si512(out + 512, _mm512_and_si512(bytes, low));
        _mm512_store_si512(out + 768, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low));
    }
}

// Dots of one step, in the register A, and B for the low parts of 8 bits; the compiler wants registers as literal numbers.
#define LORAMUX_MULTIPLY_STEP(A, B)                      \
    do {                                                 \
        _tile_zero(A);                                   \
        if constexpr (BITS == 4) {                       \
            _tile_loadd(4, x.rows, 64);                  \
            _tile_loadd(5, codes, 64);                   \
            _tile_dpbsud(A, 4, 5);                       \
        } else {                                         \
            _tile_zero(B);                               \
            _tile_loadd(7, codes, 64);                   \
            _tile_loadd(6, x.rows[0].high, 64);          \
            _tile_dpbsud(A, 6, 7);                       \
            _tile_loadd(6, x.rows[0].low, 64);           \
            _tile_dpbsud(B, 6, 7);                       \
            _tile_stored(B, out + 256, 64);              \
        }                                                \
        _tile_stored(A, out, 64);                        \
    } while (0)

template <int BITS>
inline void multiply_step(int64_t step, const Step& x, const uint8_t* codes, int32_t* out) {
    if (step % 2 == 0)
        LORAMUX_MULTIPLY_STEP(0, 1);
    else
        LORAMUX_MULTIPLY_STEP(2, 3);
}

// How many steps earlier than what reads them codes are unpacked and dots are stored: what was written a moment ago cannot be
// read into a tile register, nor what one has stored into another register.
constexpr int64_t UNPACKED_AHEAD = 4, MULTIPLIED_AHEAD = 2;

// A tile for the first MR rows of a block. 4-bit codes are at `codes`, the step s at 1024 * (s & mask), once they have been
// unpacked, which `unpack` asks for. 8-bit codes are read as they are packed.
template <int BITS, bool MIN, int MR>
void matrix_tile(const Packed& w, const uint8_t* tile, const Step* x, uint8_t* codes, int64_t mask, bool unpack, Vector (&totals)[MR]) {
    alignas(64) int32_t dots[2 * MULTIPLIED_AHEAD][512];
    const float zero = static_cast<float>(w.zero);
    for (int m = 0; m < MR; m++) totals[m] = Vector{};
    auto unpack_step = [&](int64_t step) {
        const uint8_t* packed = tile + step * w.step_bytes;
        for (int64_t line = 0; line < w.step_bytes; line += 64) prefetch(packed + PREFETCH + line);
        if constexpr (BITS == 4) unpack_codes(packed, codes + (step & mask) * 1024);
    };
    auto multiply = [&](int64_t step) {
        fence();
        multiply_step<BITS>(step, x[step], BITS == 4 ? codes + (step & mask) * 1024 : tile + step * w.step_bytes,
                            dots[step % (2 * MULTIPLIED_AHEAD)]);
        fence();
    };
    for (int64_t step = 0; unpack && step < std::min(UNPACKED_AHEAD, w.steps); step++) unpack_step(step);
    for (int64_t step = 0; step < std::min(MULTIPLIED_AHEAD, w.steps); step++) multiply(step);
    for (int64_t step = 0; step < w.steps; step++) {
        if (unpack && step + UNPACKED_AHEAD < w.steps) unpack_step(step + UNPACKED_AHEAD);
        if (step + MULTIPLIED_AHEAD < w.steps) multiply(step + MULTIPLIED_AHEAD);
        const int32_t* in = dots[step % (2 * MULTIPLIED_AHEAD)];
        const Numbers<BITS, false, MIN> numbers(tile + step * w.step_bytes, zero);
        const Step& info = x[step];
#pragma GCC unroll 16
        for (int m = 0; m < MR; m++) {
            __m512i dot = _mm512_load_si512(in + 16 * m);
            if (BITS == 8) dot = _mm512_add_epi32(_mm512_slli_epi32(dot, 8), _mm512_load_si512(in + 256 + 16 * m));
            totals[m] = add_step(totals[m], (Vector)_mm512_cvtepi32_ps(dot), numbers.scale[0], numbers.minimum[0], info.scale[m], info.sum[m]);
        }
    }
}
#endif

// Fewer rows than this are not worth a matrix tile.
constexpr int64_t ROWS_FOR_MATRIX_TILES = 5;

// A thread's share of a pass lies between these two: the registers cost whoever switches threads.
inline void begin_matrix_tiles() {
#if defined(LORAMUX_AMX)
    if (has_matrix_tiles()) _tile_loadconfig(&TILES);
#endif
}
inline void end_matrix_tiles() {
#if defined(LORAMUX_AMX)
    if (has_matrix_tiles()) _tile_release();
#endif
}

}  // namespace loramux
