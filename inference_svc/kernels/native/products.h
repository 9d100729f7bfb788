// Products of activations with packed matrices.
//
// Rounded: activations become whole numbers with a scale for 32 neighbours, of 12 bits for 4-bit codes and of 16 bits for
// 8-bit codes, kept as two bytes; 8 bits alone miss the accuracy that is promised. Codes and activations are multiplied as
// whole numbers, and each step of 32 adds `scale * activation scale * dot + minimum * activation sum` in float32, step after
// step. Whole numbers are exact and the float order is one for every row, so one row, sixteen rows and matrix tiles give the
// same bits.
// Exact: activations stay float32, matrices are unpacked row by row; sixteen lanes along the columns for every element.
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
#include "vector.h"

namespace loramux {

// ---- activations as whole numbers ----

constexpr int ROWS = 16;  // of a block

// 32 columns of 16 rows. A number is high * 2^SHIFT + low; `scale` is what one counts, and the sums are those of the row's
// numbers, scaled: of all 32, of the first and of the second half.
struct alignas(64) Step {
    int8_t high[ROWS][32], low[ROWS][32];
    float scale[ROWS], sum[ROWS], half_sums[2][ROWS];
};

// Rounded rows, 16 by 16; those left over are zero.
struct Rounded {
    Buffer<Step> data;
    int64_t rows = 0, steps = 0;

    void resize(int64_t num_rows, int64_t columns) {
        rows = num_rows;
        steps = columns / 32;
        data.reserve((rows + ROWS - 1) / ROWS * steps);
        // Rows beyond the last take part in matrix tiles; what they give is dropped, so any bytes will do.
    }

    const Step* block(int64_t index) const { return data.data() + index * steps; }
};

// Steps first..end of a row.
template <int SHIFT>
void round_steps(const float* x, int64_t row, int64_t first, int64_t end, Rounded& out) {
    constexpr int most_code = (127 << SHIFT) + (1 << (SHIFT - 1)) - 1;
    Step* step = out.data.data() + row / ROWS * out.steps + first;
    x += first * 32;
    const int64_t r = row % ROWS;
    for (int64_t index = first; index < end; index++, x += 32, step++) {
        const Vector a = load(x), b = load(x + 16);
        const float most = largest_of(largest(largest(a, -a), largest(b, -b)));
        const float inverse = most > 0.0f ? most_code / most : 0.0f;
        const float scale = most / most_code;
        int32_t sums[2] = {0, 0};
        for (int half = 0; half < 2; half++) {
            int8_t* high = step->high[r] + 16 * half;
            int8_t* low = step->low[r] + 16 * half;
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

inline void prefetch(const uint8_t* p) { __builtin_prefetch(p, 0, 3); }

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
                    totals[m] = add_step(totals[m], dot<BITS>(codes, x->high[r], x->low[r], 4 * half, 4), numbers.scale[half],
                                         numbers.minimum[half], x->scale[r], x->half_sums[half][r]);
            } else {
                totals[m] = add_step(totals[m], dot<BITS>(codes, x->high[r], x->low[r], 0, 8), numbers.scale[0],
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

// Tile registers 0-3: dots, 16 rows x 16 numbers; 4, 5: activations, high and low, 16 rows x 32 bytes; 6, 7: codes, 8 quads x
// 64 bytes.
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
// Not on the stack: gcc 12 takes the instruction for one that reads 8 bytes, and drops the stores to the others.
static const TileConfig TILES = {1, 0, {}, {64, 64, 64, 64, 32, 32, 64, 64}, {16, 16, 16, 16, 16, 16, 8, 8}};

// The codes of a tile as the matrix tiles read them: 512 bytes a step, and for 4 bits the same times 16 behind them.
template <int BITS>
constexpr int64_t code_bytes = BITS == 4 ? 1024 : 512;

template <int BITS, bool MIN>
void unpack_tile(const Packed& w, const uint8_t* tile, uint8_t* codes_out, Numbers<BITS, false, MIN>* numbers_out) {
    for (int64_t step = 0; step < w.steps; step++, tile += w.step_bytes, codes_out += code_bytes<BITS>) {
        Codes codes[8];
        for (int64_t line = 0; line < w.step_bytes; line += 64) prefetch(tile + PREFETCH + line);
        load_codes<BITS>(tile, codes);
        for (int i = 0; i < 8; i++) {
            _mm512_store_si512(codes_out + 64 * i, codes[i]);
            if (BITS == 4) _mm512_store_si512(codes_out + 512 + 64 * i, _mm512_slli_epi16(codes[i], 4));
        }
        numbers_out[step] = Numbers<BITS, false, MIN>(tile, static_cast<float>(w.zero));
    }
}

// Dots of one step, in register A, and B for the low parts of 8 bits; the compiler wants registers as literal numbers. 4-bit
// codes times 16 still fit a byte, so high and low parts add up in one register.
#define LORAMUX_MULTIPLY_STEP(A, B)                \
    do {                                           \
        _tile_zero(A);                             \
        _tile_loadd(4, x.high, 32);                \
        _tile_loadd(5, x.low, 32);                 \
        _tile_loadd(6, codes, 64);                 \
        if constexpr (BITS == 4) {                 \
            _tile_loadd(7, codes + 512, 64);       \
            _tile_dpbsud(A, 4, 7);                 \
            _tile_dpbsud(A, 5, 6);                 \
        } else {                                   \
            _tile_zero(B);                         \
            _tile_dpbsud(A, 4, 6);                 \
            _tile_dpbsud(B, 5, 6);                 \
            _tile_stored(B, out + 256, 64);        \
        }                                          \
        _tile_stored(A, out, 64);                  \
    } while (0)

template <int BITS>
inline void multiply_step(int64_t step, const Step& x, const uint8_t* codes, int32_t* out) {
    if (step % 2 == 0)
        LORAMUX_MULTIPLY_STEP(0, 1);
    else
        LORAMUX_MULTIPLY_STEP(2, 3);
}

template <int BITS, bool MIN>
void matrix_tile(int64_t steps, const uint8_t* codes, const Numbers<BITS, false, MIN>* numbers, const Step* x, int32_t* dots,
                 Vector (&totals)[ROWS]) {
    constexpr int AHEAD = 2;  // steps: what a tile has stored cannot be read at once
    for (int m = 0; m < ROWS; m++) totals[m] = Vector{};
    auto multiply = [&](int64_t step) {
        multiply_step<BITS>(step, x[step], codes + step * code_bytes<BITS>, dots + step % (2 * AHEAD) * 512);
    };
    for (int64_t step = 0; step < std::min<int64_t>(AHEAD, steps); step++) multiply(step);
    for (int64_t step = 0; step < steps; step++) {
        if (step + AHEAD < steps) multiply(step + AHEAD);
        const int32_t* in = dots + step % (2 * AHEAD) * 512;
        const Vector scale = numbers[step].scale[0], minimum = numbers[step].minimum[0];
        const Step& info = x[step];
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++) {
            __m512i dot = _mm512_load_si512(in + 16 * m);
            if (BITS == 8) dot = _mm512_add_epi32(_mm512_slli_epi32(dot, 8), _mm512_load_si512(in + 256 + 16 * m));
            totals[m] = add_step(totals[m], (Vector)_mm512_cvtepi32_ps(dot), scale, minimum, info.scale[m], info.sum[m]);
        }
    }
}
#endif

// Fewer rows than this are not worth a matrix tile.
constexpr int64_t ROWS_FOR_MATRIX_TILES = 12;

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
};

template <int BITS, bool HALVES, bool MIN>
void product_tile(const Packed& w, int64_t index, const Rounded& x, int64_t row, int64_t end, const Output& output) {
    const uint8_t* tile = w.tile(index);
    const int64_t first = index * 16;
    const int count = static_cast<int>(std::min<int64_t>(16, w.rows - first));
#if defined(LORAMUX_AMX)
    if constexpr (!HALVES)
        if (end - row >= ROWS_FOR_MATRIX_TILES && has_matrix_tiles()) {
            static thread_local Buffer<uint8_t> codes;
            static thread_local Buffer<Numbers<BITS, HALVES, MIN>> numbers;
            alignas(64) int32_t dots[4 * 512];
            uint8_t* unpacked = codes.reserve(w.steps * code_bytes<BITS>);
            Numbers<BITS, HALVES, MIN>* scales = numbers.reserve(w.steps);
            unpack_tile<BITS, MIN>(w, tile, unpacked, scales);
            for (; end - row >= ROWS_FOR_MATRIX_TILES; row += ROWS) {
                Vector totals[ROWS];
                matrix_tile<BITS, MIN>(w.steps, unpacked, scales, x.block(row / ROWS), dots, totals);
                for (int m = 0; m < ROWS && row + m < end; m++) output.put(row + m, first, count, totals[m]);
            }
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

// ---- many rows: matrix tiles of bfloat16 ----
//
// With many rows what costs is not the products but adding them up step by step. So the numbers of a tile are unpacked to
// bfloat16, which its registers multiply and add by themselves; activations keep 16 bits, as a bfloat16 and the bfloat16 of
// what is left over. Weights lose what is beyond 8 bits. Sums are in another order than above: not for the invariant mode.

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

// ---- float32 ----

// y[m, n] for MR rows of x and NR rows of w; each element has its own lanes, whatever MR and NR.
template <int MR, int NR>
void float_tile(const float* x, int64_t x_stride, const float* w, int64_t length, float* y, int64_t y_stride) {
    Vector totals[MR][NR] = {};
    for (int64_t k = 0; k < length; k += LANES) {
        Vector wv[NR];
        for (int n = 0; n < NR; n++) wv[n] = load(w + n * length + k);
        for (int m = 0; m < MR; m++) {
            const Vector xv = load(x + m * x_stride + k);
            for (int n = 0; n < NR; n++) totals[m][n] = fma(xv, wv[n], totals[m][n]);
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) y[m * y_stride + n] = sum(totals[m][n]);
}

// Four outputs first.. for rows row..end: unpacks four rows of the matrix. Columns are a multiple of 16.
inline void float_product(int32_t type, const uint8_t* w, int64_t row_bytes, int64_t columns, int64_t first, int count,
                          const float* x, int64_t x_stride, int64_t row, int64_t end, const Output& output) {
    static thread_local Buffer<float> unpacked;
    const int64_t length = columns;
    float* rows = unpacked.reserve(4 * length);
    for (int n = 0; n < count; n++) unpack_row(type, w + (first + n) * row_bytes, columns, rows + n * length);
    auto put = [&](int64_t row, const float* values) {
        for (int n = 0; n < count; n++)
            output.y[row * output.stride + first + n] = output.bias ? values[n] + output.bias[first + n] : values[n];
    };
    float results[4 * 4];
    for (; end - row >= 4; row += 4) {
        float_tile<4, 4>(x + row * x_stride, x_stride, rows, length, results, 4);
        for (int m = 0; m < 4; m++) put(row + m, results + 4 * m);
    }
    for (; row < end; row++) {
        float_tile<1, 4>(x + row * x_stride, x_stride, rows, length, results, 4);
        put(row, results);
    }
}

}  // namespace loramux
