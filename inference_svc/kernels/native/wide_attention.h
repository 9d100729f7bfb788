// Attention of many rows: matrix tiles of bfloat16, as in wide_products.h.
//
// Queries and keys keep 16 bits, as a bfloat16 and the bfloat16 of what is left over; weights of positions and values keep 8.
#pragma once
#include "attention.h"
#include "wide_products.h"

namespace loramux {

constexpr int64_t QUERIES_FOR_WIDE = 8;  // fewer are not worth rewriting keys and values for

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

// Scores of 16 queries with one block of keys: [16][16].
inline void score_tile(const QueryStep* queries, const uint8_t* keys, int64_t dim, float* scores) {
    fence();
    _tile_zero(0);
    for (int64_t step = 0; step < dim / 32; step++) {
        _tile_loadd(4, queries[step].high, 64);
        _tile_loadd(5, queries[step].low, 64);
        _tile_loadd(6, keys + step * 1024, 64);
        _tile_loadd(7, keys + dim * 32 + step * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(0, 5, 6);
        _tile_dpbf16ps(0, 4, 7);
    }
    _tile_stored(0, scores, 64);
    fence();
}

// Mixes of values, of four times 16 dimensions from `first_d` on (or of what there is), for 16 queries.
inline void mix_wide(const uint16_t (*weights)[16][32], int64_t num_pairs, const half_t* const* values, int64_t dim,
                     int64_t first_d, int64_t count, uint8_t* numbers, int64_t num_queries, float* const* out) {
    const int64_t num_tiles = std::min<int64_t>(4, (dim - first_d) / LANES);
    auto pair = [&](int64_t index) {
        for (int64_t tile = 0; tile < num_tiles; tile++)
            pair_values(values + 2 * index, dim, first_d + tile * LANES, count - index * PAIR, numbers + (index % 2 * 4 + tile) * 1024);
    };
    pair(0);
    fence();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t index = 0; index < num_pairs; index++) {
        if (index + 1 < num_pairs) pair(index + 1);
        fence();
        const uint8_t* in = numbers + index % 2 * 4 * 1024;
        _tile_loadd(4, weights[index], 64);
        _tile_loadd(5, in, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, in + 1024, 64);
        _tile_dpbf16ps(1, 4, 6);
        if (num_tiles <= 2) continue;
        _tile_loadd(7, in + 2048, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, in + 3072, 64);
        _tile_dpbf16ps(3, 4, 5);
    }
    alignas(64) float mixed[4][16 * 16];
    _tile_stored(0, mixed[0], 64);
    _tile_stored(1, mixed[1], 64);
    _tile_stored(2, mixed[2], 64);
    _tile_stored(3, mixed[3], 64);
    fence();
    for (int64_t q = 0; q < num_queries; q++)
        for (int64_t tile = 0; tile < num_tiles; tile++) store(out[q] + first_d + tile * LANES, load(mixed[tile] + 16 * q));
}

// As attend_queries, for up to 16 queries.
inline void attend_wide(const AttentionShape& shape, const float* const* queries, const int64_t* positions, int64_t num_queries,
                        int64_t first, int64_t count, const half_t* const* keys, const half_t* const* values, float* const* out,
                        float* maxima, float* sums) {
    constexpr int64_t most_blocks = CHUNK / BLOCK, most_pairs = CHUNK / PAIR;
    const int64_t dim = shape.head_dim, num_blocks = (count + BLOCK - 1) / BLOCK, num_pairs = (num_blocks + 1) / 2;
    static thread_local Buffer<QueryStep> query_room;
    static thread_local Buffer<uint8_t> room;
    alignas(64) static thread_local float scores[most_blocks][16 * 16];
    alignas(64) static thread_local uint16_t weights[most_pairs][16][32];
    QueryStep* rows = query_room.reserve(dim / 32);
    for (int64_t q = 0; q < num_queries; q++)
        for (int64_t step = 0; step < dim / 32; step++) widen(queries[q] + 32 * step, rows[step].high[q], rows[step].low[q]);
    // What was stored a moment ago cannot be read into a tile register: the next is prepared before the last is read.
    const int64_t key_bytes = dim * 64;
    uint8_t* numbers = room.reserve(std::max<int64_t>(2 * key_bytes, 2 * 4 * 1024));
    pair_keys(keys[0], dim, numbers);
    for (int64_t block = 0; block < num_blocks; block++) {
        if (block + 1 < num_blocks) pair_keys(keys[block + 1], dim, numbers + (block + 1) % 2 * key_bytes);
        score_tile(rows, numbers + block % 2 * key_bytes, dim, scores[block]);
    }
    for (int64_t q = 0; q < num_queries; q++) {
        Vector most = splat(-INFINITY), total = {};
        for (int64_t block = 0; block < num_blocks; block++) {
            const Vector score = seen_scores(shape, load(scores[block] + 16 * q), first + block * BLOCK, positions[q]);
            store(scores[block] + 16 * q, score);
            most = largest(most, score);
        }
        const float top = largest_of(most);
        auto weight = [&](int64_t block) {
            const Vector score = block < num_blocks ? load(scores[block] + 16 * q) : splat(-INFINITY);
            return score > -INFINITY ? exp(score - top) : Vector{};
        };
        for (int64_t pair = 0; pair < num_pairs; pair++)
            for (int half = 0; half < 2; half++) {
                const __m256bh rounded = _mm512_cvtneps_pbh((__m512)weight(2 * pair + half));
                std::memcpy(weights[pair][q] + 16 * half, &rounded, 32);
                total += (Vector)_mm512_cvtpbh_ps(rounded);
            }
        maxima[q] = top;
        sums[q] = sum(total);
    }
    for (int64_t d = 0; d < dim; d += 4 * LANES) mix_wide(weights, num_pairs, values, dim, d, count, numbers, num_queries, out);
}
#else
inline bool has_wide_attention(const AttentionShape&) { return false; }
inline void attend_wide(const AttentionShape&, const float* const*, const int64_t*, int64_t, int64_t, int64_t, const half_t* const*,
                        const half_t* const*, float* const*, float*, float*) {}
#endif

}  // namespace loramux
