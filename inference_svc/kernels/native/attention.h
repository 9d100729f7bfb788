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

// Asks the memory for blocks of a cache before they are read: they lie here and there, in pieces of a few lines, which the
// processor does not foresee.
template <typename T>
class Ahead {
  public:
    Ahead(const T* const* blocks, int64_t num_blocks, int64_t block_size)
        : block_(blocks), end_(blocks + num_blocks), lines_((block_size * sizeof(T) + 63) / 64) {}

    void ask(int lines) {
        for (; lines > 0 && block_ != end_; lines--) {
            prefetch(reinterpret_cast<const uint8_t*>(*block_) + 64 * line_);
            if (++line_ == lines_) line_ = 0, block_++;
        }
    }

  private:
    const T* const* block_;
    const T* const* end_;
    const int64_t lines_;
    int64_t line_ = 0;
};

// So many blocks of keys, or vectors of values, NQ queries take at once: their sums stay in registers.
template <int NQ>
constexpr int AT_ONCE = NQ <= 3 ? 8 : 4;

// Scores of NQ queries with NB blocks of keys: [NQ][NB], 16 positions each.
template <int NQ, int NB, typename T>
void score_blocks(const float* const* queries, const T* const* keys, int64_t dim, Vector (&scores)[NQ][NB], Ahead<T>& ahead) {
    Vector sums[NQ][NB] = {};
    for (int64_t d = 0; d < dim; d++) {
        ahead.ask((NB * BLOCK * sizeof(T) + 63) / 64);
        Vector k[NB];
#pragma GCC unroll 8
        for (int b = 0; b < NB; b++) k[b] = load_any(keys[b] + d * BLOCK);
#pragma GCC unroll 8
        for (int q = 0; q < NQ; q++) {
            const Vector value = splat(queries[q][d]);
#pragma GCC unroll 8
            for (int b = 0; b < NB; b++) sums[q][b] = fma(k[b], value, sums[q][b]);
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < NQ; q++)
#pragma GCC unroll 8
        for (int b = 0; b < NB; b++) scores[q][b] = sums[q][b];
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
                float* const* out, Ahead<T>& ahead) {
    Vector totals[NQ][ND] = {};
    for (int64_t p = 0; p < count; p++) {
        ahead.ask((ND * LANES * sizeof(T) + 63) / 64);
        const T* v = values[p / BLOCK] + p % BLOCK * dim + first_d;
        Vector loaded[ND];
#pragma GCC unroll 8
        for (int i = 0; i < ND; i++) loaded[i] = load_any(v + i * LANES);
#pragma GCC unroll 8
        for (int q = 0; q < NQ; q++) {
            const Vector weight = splat(weights[q][p]);
#pragma GCC unroll 8
            for (int i = 0; i < ND; i++) totals[q][i] = fma(loaded[i], weight, totals[q][i]);
        }
    }
#pragma GCC unroll 8
    for (int q = 0; q < NQ; q++)
#pragma GCC unroll 8
        for (int i = 0; i < ND; i++) store(out[q] + first_d + i * LANES, totals[q][i]);
}

// Calls work(N) for as many as are left: by MOST at a time, then by half of it, and so on.
template <int MOST, typename Work>
void by_halves(int64_t& first, int64_t end, const Work& work) {
    for (; end - first >= MOST; first += MOST) work(std::integral_constant<int, MOST>());
    if constexpr (MOST > 1) by_halves<MOST / 2>(first, end, work);
}

// `values_ahead` are asked for while keys are read, `keys_ahead`, of what comes next, while values are.
template <int NQ, typename T>
void attend_queries(const AttentionShape& shape, const float* const* queries, const int64_t* positions, int64_t first,
                    int64_t count, const T* const* keys, const T* const* values, Ahead<T>& values_ahead, Ahead<T>& keys_ahead,
                    float* const* out, float* maxima, float* sums) {
    float weights[NQ][CHUNK];
    const int64_t num_blocks = (count + BLOCK - 1) / BLOCK;
    Vector most[NQ];
    for (int q = 0; q < NQ; q++) most[q] = splat(-INFINITY);
    int64_t block = 0;
    by_halves<AT_ONCE<NQ>>(block, num_blocks, [&](auto blocks_at_once) {
        constexpr int NB = decltype(blocks_at_once)::value;
        Vector scores[NQ][NB];
        score_blocks<NQ, NB>(queries, keys + block, shape.head_dim, scores, values_ahead);
        for (int q = 0; q < NQ; q++)
            for (int b = 0; b < NB; b++) {
                const Vector score = seen_scores(shape, scores[q][b], first + (block + b) * BLOCK, positions[q]);
                store(&weights[q][(block + b) * BLOCK], score);
                most[q] = largest(most[q], score);
            }
    });
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
    int64_t vector = 0;
    by_halves<AT_ONCE<NQ>>(vector, shape.head_dim / LANES, [&](auto vectors_at_once) {
        constexpr int ND = decltype(vectors_at_once)::value;
        mix_values<NQ, ND>(weights, count, values, shape.head_dim, vector * LANES, out, keys_ahead);
    });
}

// Where the blocks of a chunk lie for one kv head, those that any tile of the segment sees; returns how many positions they have.
template <typename T>
int64_t find_blocks(const AttentionShape& shape, const Segment& segment, int64_t chunk, int64_t kv_head, const T* cache,
                    const T* (&blocks)[CHUNK / BLOCK]) {
    const int64_t first = chunk * CHUNK, filled = std::min<int64_t>(CHUNK, segment.first_position + segment.num_rows - first);
    for (int64_t b = 0; b < (filled + BLOCK - 1) / BLOCK; b++)
        blocks[b] = cache + (segment.blocks[first / BLOCK + b] * shape.num_kv_heads + kv_head) * BLOCK * shape.head_dim;
    return filled;
}

// One chunk of one tile for one kv head; results per query: out [head_dim], largest score, sum.
// `wide(...)`, if it gives true, has computed all queries of the tile itself. `keys_ahead` are those that are read next.
template <typename T, typename WideAttention>
void attend_chunk(const AttentionShape& shape, const QueryTile& tile, int64_t kv_head, int64_t chunk, const float* q,
                  int64_t q_stride, const T* keys, const T* values, float* partials, int64_t partial_size, Ahead<T> keys_ahead,
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
    const T* key_blocks[CHUNK / BLOCK];
    const T* value_blocks[CHUNK / BLOCK];
    const int64_t filled = find_blocks(shape, *tile.segment, chunk, kv_head, keys, key_blocks);
    find_blocks(shape, *tile.segment, chunk, kv_head, values, value_blocks);
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
    Ahead<T> values_ahead(value_blocks, (count + BLOCK - 1) / BLOCK, BLOCK * dim);
    if (wide(queries, positions, num_queries, first, count, filled, key_blocks, value_blocks, values_ahead, keys_ahead, outs, maxima, sums))
        i = num_queries;
    in_groups<6>(i, num_queries, [&](auto queries_at_once) {
        constexpr int NQ = decltype(queries_at_once)::value;
        attend_queries<NQ>(shape, queries + i, positions + i, first, count, key_blocks, value_blocks, values_ahead, keys_ahead,
                           outs + i, maxima + i, sums + i);
    });
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
