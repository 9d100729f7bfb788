// Products of activations with packed matrices.
//
// Activations become whole numbers with a scale for 32 neighbours, of 12 bits for 4-bit codes and of 16 bits for
// 8-bit codes, kept as two bytes; 8 bits alone miss the accuracy that is promised. Codes and activations are multiplied as
// whole numbers, and each step of 32 adds `scale * activation scale * dot + minimum * activation sum` in float32, step after
// step. Whole numbers are exact and the float order is one for every row, so one row, sixteen rows and matrix tiles give the
// same bits.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>
#if defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define LORAMUX_AMX 1
#endif

#include "quantized.h"
#include "rounded.h"
#include "vector.h"

namespace loramux {

// ---- sixteen rows of a matrix times MR rows of activations ----

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

// ---- the same with matrix tiles (AMX): 16 rows of activations at once ----

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

// ---- a tile of 16 outputs for all rows ----

struct Output {
    float* y;
    int64_t stride;
    const float* bias;  // of all outputs, or null

    // Outputs first.. of a row; those beyond `count` are padding.
    void put(int64_t row, int64_t first, int count, Vector value) const {
        float* out = y + row * stride + first;
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
