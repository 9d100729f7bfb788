// Attention of many rows: matrix tiles of bfloat16, as in wide_products.h.
//
// Queries and keys keep 16 bits, as a bfloat16 and the bfloat16 of what is left over; weights of positions and values keep 8.
#pragma once
#include "attention.h"
#include "wide_products.h"

namespace loramux {

constexpr int64_t QUERIES_FOR_WIDE = 8;  // fewer are not worth rewriting keys and values for, unless they must not depend on it

// What keys and values are rewritten for should be many: a tile has twice the queries of other attention.
inline int64_t wide_rows_per_tile(const AttentionShape& shape) { return std::max<int64_t>(1, 2 * MOST_QUERIES / shape.group()); }

#if defined(LORAMUX_WIDE)
constexpr int64_t PAIR = 2 * BLOCK;  // positions that a tile of weights or values has

inline bool has_wide_attention(const AttentionShape& shape) {
    return has_wide_products() && shape.head_dim % 32 == 0 && shape.group() <= MOST_QUERIES;
}

// 32 dimensions of 16 queries.
struct alignas(64) QueryStep {
    uint16_t high[16][32], low[16][32];
};

inline __m512 left_over(__m512 value) { return _mm512_sub_ps(value, _mm512_cvtpbh_ps(_mm512_cvtneps_pbh(value))); }

// 32 numbers as bfloat16, and what is left over of them.
inline void widen(const float* x, uint16_t* high, uint16_t* low) {
    for (int half = 0; half < 2; half++, x += 16, high += 16, low += 16) {
        const __m512 value = (__m512)load(x);
        const __m256bh upper = _mm512_cvtneps_pbh(value), rest = _mm512_cvtneps_pbh(left_over(value));
        std::memcpy(high, &upper, 32);
        std::memcpy(low, &rest, 32);
    }
}

// A block of keys, [dim][16 positions] -> pairs of dimensions: [dim / 2][16][2], high parts, then low parts.
inline void pair_keys(const half_t* keys, int64_t dim, uint8_t* out) {
    for (int64_t d = 0; d < dim; d += 2, out += 64) {
        const __m512 a = (__m512)load_half(keys + d * BLOCK), b = (__m512)load_half(keys + (d + 1) * BLOCK);
        _mm512_store_si512(out, paired(a, b));
        _mm512_store_si512(out + dim * 32, paired(left_over(a), left_over(b)));
    }
}

// 32 positions of 16 dimensions of values -> pairs of positions: [16][16][2]. Of those beyond `count` nothing is read.
inline void pair_values(const half_t* const* blocks, int64_t dim, int64_t first_d, int64_t count, uint8_t* out) {
    for (int64_t p = 0; p < PAIR; p += 2, out += 64) {
        const half_t* v = p < count ? blocks[p / BLOCK] + p % BLOCK * dim + first_d : nullptr;
        const __m512 a = v ? (__m512)load_half(v) : _mm512_setzero_ps();
        const __m512 b = p + 1 < count ? (__m512)load_half(v + dim) : _mm512_setzero_ps();
        _mm512_store_si512(out, paired(a, b));
    }
}

// Scores of HALVES times 16 queries with one block of keys: [HALVES][16][16], `stride` floats from one half to the next.
template <int HALVES>
void score_tiles(const QueryStep* const* queries, const uint8_t* keys, int64_t dim, float* scores, int64_t stride) {
    fence();
    _tile_zero(0);
    if constexpr (HALVES == 2) _tile_zero(1);
    for (int64_t step = 0; step < dim / 32; step++) {
        _tile_loadd(6, keys + step * 1024, 64);
        _tile_loadd(7, keys + dim * 32 + step * 1024, 64);
        _tile_loadd(4, queries[0][step].high, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (HALVES == 2) _tile_loadd(5, queries[1][step].high, 64);
        if constexpr (HALVES == 2) _tile_dpbf16ps(1, 5, 6);
        _tile_dpbf16ps(0, 4, 7);
        if constexpr (HALVES == 2) _tile_dpbf16ps(1, 5, 7);
        _tile_loadd(4, queries[0][step].low, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (HALVES == 2) _tile_loadd(5, queries[1][step].low, 64);
        if constexpr (HALVES == 2) _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, scores, 64);
    if constexpr (HALVES == 2) _tile_stored(1, scores + stride, 64);
    fence();
}

constexpr int64_t MOST_BLOCKS = CHUNK / BLOCK, MOST_PAIRS = CHUNK / PAIR;

// Weights of positions, for 16 queries: [pairs of blocks][query][position].
typedef uint16_t PairWeights[MOST_PAIRS][16][32];

// Mixes of values for HALVES times 16 queries, of two times 16 dimensions from `first_d` on: [HALVES][2][16][16].
template <int HALVES>
void mix_tiles(const PairWeights* weights, int64_t num_pairs, const half_t* const* values, int64_t dim, int64_t first_d, int64_t count,
               uint8_t* numbers, float (*mixed)[2][16 * 16]) {
    auto pair = [&](int64_t index) {
        for (int64_t tile = 0; tile < 2; tile++)
            pair_values(values + 2 * index, dim, first_d + tile * LANES, count - index * PAIR, numbers + (index % 2 * 2 + tile) * 1024);
    };
    pair(0);
    fence();
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (HALVES == 2) _tile_zero(2);
    if constexpr (HALVES == 2) _tile_zero(3);
    for (int64_t index = 0; index < num_pairs; index++) {
        if (index + 1 < num_pairs) pair(index + 1);
        fence();
        const uint8_t* in = numbers + index % 2 * 2 * 1024;
        _tile_loadd(6, in, 64);
        _tile_loadd(7, in + 1024, 64);
        _tile_loadd(4, weights[0][index], 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (HALVES == 2) {
            _tile_loadd(5, weights[1][index], 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, mixed[0][0], 64);
    _tile_stored(1, mixed[0][1], 64);
    if constexpr (HALVES == 2) _tile_stored(2, mixed[1][0], 64);
    if constexpr (HALVES == 2) _tile_stored(3, mixed[1][1], 64);
    fence();
}

// As attend_queries, for up to HALVES times 16 queries.
template <int HALVES>
void attend_halves(const AttentionShape& shape, const float* const* queries, const int64_t* positions, int64_t num_queries,
                   int64_t first, int64_t count, const half_t* const* keys, const half_t* const* values, float* const* out,
                   float* maxima, float* sums) {
    const int64_t dim = shape.head_dim, num_blocks = (count + BLOCK - 1) / BLOCK, num_pairs = (num_blocks + 1) / 2;
    static thread_local Buffer<QueryStep> query_room;
    static thread_local Buffer<uint8_t> room;
    alignas(64) static thread_local float scores[HALVES][MOST_BLOCKS][16 * 16];
    alignas(64) static thread_local PairWeights weights[HALVES];
    QueryStep* rows[HALVES];
    rows[0] = query_room.reserve(HALVES * dim / 32);
    if constexpr (HALVES == 2) rows[1] = rows[0] + dim / 32;
    for (int64_t q = 0; q < num_queries; q++)
        for (int64_t step = 0; step < dim / 32; step++)
            widen(queries[q] + 32 * step, rows[q / 16][step].high[q % 16], rows[q / 16][step].low[q % 16]);
    // What was stored a moment ago cannot be read into a tile register: the next is prepared before the last is read.
    const int64_t key_bytes = dim * 64;
    uint8_t* numbers = room.reserve(std::max<int64_t>(2 * key_bytes, 2 * 2 * 1024));
    pair_keys(keys[0], dim, numbers);
    for (int64_t block = 0; block < num_blocks; block++) {
        if (block + 1 < num_blocks) pair_keys(keys[block + 1], dim, numbers + (block + 1) % 2 * key_bytes);
        score_tiles<HALVES>(rows, numbers + block % 2 * key_bytes, dim, scores[0][block], MOST_BLOCKS * 16 * 16);
    }
    for (int64_t q = 0; q < num_queries; q++) {
        float(&own_scores)[MOST_BLOCKS][16 * 16] = scores[q / 16];
        const int64_t row = q % 16;
        Vector most = splat(-INFINITY), total = {};
        for (int64_t block = 0; block < num_blocks; block++) {
            const Vector score = seen_scores(shape, load(own_scores[block] + 16 * row), first + block * BLOCK, positions[q]);
            store(own_scores[block] + 16 * row, score);
            most = largest(most, score);
        }
        const float top = largest_of(most);
        auto weight = [&](int64_t block) {
            const Vector score = block < num_blocks ? load(own_scores[block] + 16 * row) : splat(-INFINITY);
            return score > -INFINITY ? exp(score - top) : Vector{};
        };
        for (int64_t pair = 0; pair < num_pairs; pair++)
            for (int half = 0; half < 2; half++) {
                const __m256bh rounded = _mm512_cvtneps_pbh((__m512)weight(2 * pair + half));
                std::memcpy(weights[q / 16][pair][row] + 16 * half, &rounded, 32);
                total += (Vector)_mm512_cvtpbh_ps(rounded);
            }
        maxima[q] = top;
        sums[q] = sum(total);
    }
    alignas(64) float mixed[HALVES][2][16 * 16];
    for (int64_t d = 0; d < dim; d += 2 * LANES) {
        mix_tiles<HALVES>(weights, num_pairs, values, dim, d, count, numbers, mixed);
        for (int64_t q = 0; q < num_queries; q++)
            for (int64_t tile = 0; tile < 2; tile++) store(out[q] + d + tile * LANES, load(mixed[q / 16][tile] + 16 * (q % 16)));
    }
}

// As attend_queries, for all queries of a tile.
inline void attend_wide(const AttentionShape& shape, const float* const* queries, const int64_t* positions, int64_t num_queries,
                        int64_t first, int64_t count, const half_t* const* keys, const half_t* const* values, float* const* out,
                        float* maxima, float* sums) {
    const auto attend = num_queries <= 16 ? attend_halves<1> : attend_halves<2>;
    attend(shape, queries, positions, num_queries, first, count, keys, values, out, maxima, sums);
}
#else
inline bool has_wide_attention(const AttentionShape&) { return false; }
inline void attend_wide(const AttentionShape&, const float* const*, const int64_t*, int64_t, int64_t, int64_t, const half_t* const*,
                        const half_t* const*, float* const*, float*, float*) {}
#endif

}  // namespace loramux
