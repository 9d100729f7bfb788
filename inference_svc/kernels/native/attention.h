// Causal grouped-query attention over the paged cache.
//
// A block of the cache holds 16 positions: keys as [kv head][dimension][position], so that 16 scores are computed side by
// side, values as [kv head][position][dimension]. A row's positions are cut into chunks of CHUNK by position alone; each
// chunk gives its largest score, its sum and its mix of values, and these are joined in order. So neither the rows that are
// computed together nor the number of threads change a bit.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "vector.h"

namespace loramux {

constexpr int BLOCK = 16;
constexpr int CHUNK = 256;

struct Segment {  // consecutive rows of one sequence; as in the Python side
    int64_t first_row, num_rows, first_position;
    const int64_t* blocks;
};

struct AttentionShape {
    int64_t num_heads, num_kv_heads, head_dim;
    float scale;
    int64_t window;  // 0: none
    float softcap;   // 0: none
    int64_t group() const { return num_heads / num_kv_heads; }
};

inline void store_cached(float* p, Vector value) { store(p, value); }
inline void store_cached(half_t* p, Vector value) { store_half(p, value); }

template <typename T>
void write_cache(const AttentionShape& shape, int64_t slot, const float* k, const float* v, T* keys, T* values) {
    const int64_t block = slot / BLOCK, offset = slot % BLOCK, dim = shape.head_dim;
    for (int64_t head = 0; head < shape.num_kv_heads; head++) {
        const int64_t base = (block * shape.num_kv_heads + head) * BLOCK * dim;
        for (int64_t d = 0; d < dim; d += LANES) {
            store_cached(values + base + offset * dim + d, load(v + head * dim + d));
            T numbers[LANES];
            store_cached(numbers, load(k + head * dim + d));
            for (int64_t i = 0; i < LANES; i++) keys[base + (d + i) * BLOCK + offset] = numbers[i];
        }
    }
}

// A few rows of one segment, whose keys are read together.
struct QueryTile {
    const Segment* segment;
    int64_t first;  // row within the segment
    int64_t num_rows;
    int64_t num_chunks;
    int64_t first_partial;  // index of its first partial result
};

// What a thread does at a time: a tile of queries with one chunk, for one kv head.
struct AttentionItem {
    int64_t tile, chunk, kv_head;
    int64_t source;  // items with the same keys and values, which come one after the other, have the same number
    bool is_alone;   // no other item has its source
};

constexpr int64_t MOST_QUERIES = 16;  // rows of a tile times heads of a group

inline int64_t rows_per_tile(const AttentionShape& shape) { return std::max<int64_t>(1, MOST_QUERIES / shape.group()); }

// Scores of NQ queries with NB blocks of keys: [NQ][NB], 16 positions each.
// On the way `ahead(offset)` may ask the memory for the numbers at this offset of other blocks.
template <int NQ, int NB, typename T, typename Ahead>
void score_blocks(const float* const* queries, const T* const* keys, int64_t dim, Vector (&scores)[NQ][NB], const Ahead& ahead) {
    for (int q = 0; q < NQ; q++)
        for (int b = 0; b < NB; b++) scores[q][b] = Vector{};
    for (int64_t d = 0; d < dim; d++) {
        if (d * BLOCK * sizeof(T) % 64 == 0) ahead(d * BLOCK);
        Vector k[NB];
        for (int b = 0; b < NB; b++) k[b] = load_any(keys[b] + d * BLOCK);
        for (int q = 0; q < NQ; q++) {
            const Vector value = splat(queries[q][d]);
            for (int b = 0; b < NB; b++) scores[q][b] = fma(k[b], value, scores[q][b]);
        }
    }
}

// What 16 positions from `start` on count for a query at a position, -infinity where it does not see them.
inline Vector seen_scores(const AttentionShape& shape, Vector score, int64_t start, int64_t position) {
    score = score * shape.scale;
    if (shape.softcap > 0.0f) score = tanh(score * (1.0f / shape.softcap)) * shape.softcap;
    if (start + BLOCK - 1 <= position && (shape.window == 0 || start > position - shape.window)) return score;
    const int32_t own = static_cast<int32_t>(position);
    const Integers positions = Integers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + static_cast<int32_t>(start);
    Integers seen = positions <= own;
    if (shape.window != 0) seen &= positions > own - static_cast<int32_t>(shape.window);
    return seen ? score : splat(-INFINITY);
}

// Mixes of values for NQ queries, ND vectors of dimensions.
template <int NQ, int ND, typename T>
void mix_values(const float (*weights)[CHUNK], int64_t count, const T* const* values, int64_t dim, int64_t first_d,
                float* const* out) {
    Vector totals[NQ][ND] = {};
    for (int64_t p = 0; p < count; p++) {
        const T* v = values[p / BLOCK] + p % BLOCK * dim + first_d;
        Vector loaded[ND];
        for (int i = 0; i < ND; i++) loaded[i] = load_any(v + i * LANES);
        for (int q = 0; q < NQ; q++) {
            const Vector weight = splat(weights[q][p]);
            for (int i = 0; i < ND; i++) totals[q][i] = fma(loaded[i], weight, totals[q][i]);
        }
    }
    for (int q = 0; q < NQ; q++)
        for (int i = 0; i < ND; i++) store(out[q] + first_d + i * LANES, totals[q][i]);
}

template <int NQ, typename T>
void attend_queries(const AttentionShape& shape, const float* const* queries, const int64_t* positions, int64_t first,
                    int64_t count, const T* const* keys, const T* const* values, bool is_first, float* const* out, float* maxima,
                    float* sums) {
    float weights[NQ][CHUNK];
    const int64_t num_blocks = (count + BLOCK - 1) / BLOCK;
    Vector most[NQ];
    for (int q = 0; q < NQ; q++) most[q] = splat(-INFINITY);
    auto finish = [&](int q, int64_t block, Vector score) {
        score = seen_scores(shape, score, first + block * BLOCK, positions[q]);
        store(&weights[q][block * BLOCK], score);
        most[q] = largest(most[q], score);
    };
    int64_t block = 0;
    // A cache is read in pieces of a few lines, here and there, which the processor does not foresee.
    auto ahead = [&](int64_t offset) {
        if (!is_first) return;
        for (int64_t b = block; b < std::min(block + 4, num_blocks); b++) prefetch(values[b] + offset);
        for (int64_t b = block + 4; b < std::min(block + 8, num_blocks); b++) prefetch(keys[b] + offset);
    };
    for (; num_blocks - block >= 4; block += 4) {
        Vector scores[NQ][4];
        score_blocks<NQ, 4>(queries, keys + block, shape.head_dim, scores, ahead);
        for (int q = 0; q < NQ; q++)
            for (int b = 0; b < 4; b++) finish(q, block + b, scores[q][b]);
    }
    for (; block < num_blocks; block++) {
        Vector scores[NQ][1];
        score_blocks<NQ, 1>(queries, keys + block, shape.head_dim, scores, [](int64_t) {});
        for (int q = 0; q < NQ; q++) finish(q, block, scores[q][0]);
    }
    for (int q = 0; q < NQ; q++) {
        const float top = largest_of(most[q]);
        Vector total = {};
        for (int64_t b = 0; b < num_blocks; b++) {
            const Vector score = load(&weights[q][b * BLOCK]);
            const Vector weight = score > -INFINITY ? exp(score - top) : Vector{};
            store(&weights[q][b * BLOCK], weight);
            total += weight;
        }
        maxima[q] = top;
        sums[q] = sum(total);
    }
    int64_t d = 0;
    for (; shape.head_dim - d >= 4 * LANES; d += 4 * LANES) mix_values<NQ, 4>(weights, count, values, shape.head_dim, d, out);
    for (; d < shape.head_dim; d += LANES) mix_values<NQ, 1>(weights, count, values, shape.head_dim, d, out);
}

// One chunk of one tile for one kv head; results per query: out [head_dim], largest score, sum.
// `wide(...)`, if it gives true, has computed all queries of the tile itself.
template <typename T, typename WideAttention>
void attend_chunk(const AttentionShape& shape, const QueryTile& tile, int64_t kv_head, int64_t chunk, const float* q,
                  int64_t q_stride, const T* keys, const T* values, float* partials, int64_t partial_size,
                  const WideAttention& wide) {
    const int64_t first = chunk * CHUNK, group = shape.group(), dim = shape.head_dim;
    const int64_t first_position = tile.segment->first_position + tile.first;
    const int64_t end = std::min<int64_t>(first + CHUNK, first_position + tile.num_rows);
    const int64_t num_queries = tile.num_rows * group, count = end - first;
    if (shape.window != 0 && first + CHUNK <= first_position - shape.window + 1) {  // nobody sees this chunk any more
        for (int64_t i = 0; i < num_queries; i++) {
            const int64_t head = kv_head * group + i % group;
            float* numbers = partials + (tile.first_partial + (i / group * shape.num_heads + head) * tile.num_chunks + chunk) * partial_size;
            numbers[0] = -INFINITY, numbers[1] = 0.0f;
        }
        return;
    }
    // Of the chunk's positions, those that any tile of the segment sees.
    const int64_t filled = std::min<int64_t>(CHUNK, tile.segment->first_position + tile.segment->num_rows - first);
    const T* key_blocks[CHUNK / BLOCK];
    const T* value_blocks[CHUNK / BLOCK];
    for (int64_t b = 0; b < (filled + BLOCK - 1) / BLOCK; b++) {
        const int64_t at = (tile.segment->blocks[first / BLOCK + b] * shape.num_kv_heads + kv_head) * BLOCK * dim;
        key_blocks[b] = keys + at;
        value_blocks[b] = values + at;
    }
    const float* queries[MOST_QUERIES * 4];
    float* outs[MOST_QUERIES * 4];
    int64_t positions[MOST_QUERIES * 4];
    float maxima[MOST_QUERIES * 4], sums[MOST_QUERIES * 4];
    float* numbers[MOST_QUERIES * 4];
    for (int64_t i = 0; i < num_queries; i++) {
        const int64_t row = i / group, head = kv_head * group + i % group;
        queries[i] = q + (tile.segment->first_row + tile.first + row) * q_stride + head * dim;
        positions[i] = first_position + row;
        const int64_t partial = tile.first_partial + (row * shape.num_heads + head) * tile.num_chunks + chunk;
        numbers[i] = partials + partial * partial_size;
        outs[i] = numbers[i] + 2;
    }
    int64_t i = 0;
    if (wide(queries, positions, num_queries, first, count, filled, key_blocks, value_blocks, outs, maxima, sums)) i = num_queries;
    auto some = [&](auto queries_at_once) {
        constexpr int NQ = decltype(queries_at_once)::value;
        for (; num_queries - i >= NQ; i += NQ)
            attend_queries<NQ>(shape, queries + i, positions + i, first, count, key_blocks, value_blocks, i == 0,
                               outs + i, maxima + i, sums + i);
    };
    some(std::integral_constant<int, 4>());
    some(std::integral_constant<int, 3>());
    some(std::integral_constant<int, 2>());
    some(std::integral_constant<int, 1>());
    for (int64_t n = 0; n < num_queries; n++) {
        numbers[n][0] = maxima[n];
        numbers[n][1] = sums[n];
    }
}

// Joins the chunks of one row and head.
inline void join_chunks(const float* partials, int64_t partial_size, int64_t num_chunks, int64_t dim, float* out) {
    float top = -INFINITY;
    for (int64_t c = 0; c < num_chunks; c++) top = std::fmax(top, partials[c * partial_size]);
    float total = 0.0f;
    for (int64_t d = 0; d < dim; d += LANES) store(out + d, Vector{});
    for (int64_t c = 0; c < num_chunks; c++) {
        const float* partial = partials + c * partial_size;
        if (partial[0] == -INFINITY) continue;
        const Vector factor = exp(splat(partial[0] - top));
        total += partial[1] * factor[0];
        for (int64_t d = 0; d < dim; d += LANES) store(out + d, fma(load(partial + 2 + d), factor, load(out + d)));
    }
    for (int64_t d = 0; d < dim; d += LANES) store(out + d, load(out + d) / total);
}

}  // namespace loramux
