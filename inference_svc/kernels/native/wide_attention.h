// Attention of many rows: matrix tiles of bfloat16, as in wide_products.h.
//
// Queries and keys keep 16 bits, as a bfloat16 and the bfloat16 of what is left over; weights of positions and values keep 8.
#pragma once
#include "attention.h"
#include "wide_products.h"

namespace loramux {

constexpr int64_t QUERIES_FOR_WIDE = 17;  // fewer are not worth rewriting keys and values for, unless they must not depend on it

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
inline void pair_keys(const half_t* keys, int64_t dim, uint8_t* out, Ahead<half_t>& ahead) {
    for (int64_t d = 0; d < dim; d += 2, out += 64) {
        ahead.ask(1);
        const __m512 a = (__m512)load_half(keys + d * BLOCK), b = (__m512)load_half(keys + (d + 1) * BLOCK);
        _mm512_store_si512(out, paired(a, b));
        _mm512_store_si512(out + dim * 32, paired(left_over(a), left_over(b)));
    }
}

// 32 positions of 16 dimensions of values -> pairs of positions: [16][16][2]. Of those beyond `count` nothing is read.
inline void pair_values(const half_t* const* blocks, int64_t dim, int64_t first_d, int64_t count, uint8_t* out, Ahead<half_t>& ahead) {
    for (int64_t p = 0; p < PAIR; p += 2, out += 64) {
        ahead.ask(1);
        const half_t* v = p < count ? blocks[p / BLOCK] + p % BLOCK * dim + first_d : nullptr;
        const __m512 a = v ? (__m512)load_half(v) : _mm512_setzero_ps();
        const __m512 b = p + 1 < count ? (__m512)load_half(v + dim) : _mm512_setzero_ps();
        _mm512_store_si512(out, paired(a, b));
    }
}

constexpr int64_t MOST_BLOCKS = CHUNK / BLOCK, MOST_PAIRS = CHUNK / PAIR;

// Keys and values of a chunk as matrix tiles read them, rewritten on the way by the first tile of queries that needs them, for
// itself and for those that follow.
class PairedChunk {
  public:
    int64_t num_blocks = 0, num_pairs = 0;  // so many blocks of keys and pairs of blocks of values are kept

    // Of a chunk that nobody else reads only two blocks, two pairs, have room.
    void begin(int64_t head_dim, bool is_kept) {
        num_blocks = num_pairs = 0;
        dim_ = head_dim;
        mask_ = is_kept ? -1 : 1;
        keys_.reserve((is_kept ? MOST_BLOCKS : 2) * dim_ * 64);
        values_.reserve((is_kept ? MOST_PAIRS : 2) * dim_ * 64);
    }

    uint8_t* keys(int64_t block) { return keys_.data() + (block & mask_) * dim_ * 64; }
    // 16 dimensions from first_d on.
    uint8_t* values(int64_t pair, int64_t first_d) { return values_.data() + ((pair & mask_) * dim_ + first_d) * 64; }

    void keep(int64_t blocks, int64_t pairs) {
        if (mask_ == 1) return;
        num_blocks = std::max(num_blocks, blocks);
        num_pairs = std::max(num_pairs, pairs);
    }

  private:
    Buffer<uint8_t> keys_, values_;
    int64_t dim_ = 0, mask_ = 1;
};

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

// Weights of positions, for 16 queries: [pairs of blocks][query][position].
typedef uint16_t PairWeights[MOST_PAIRS][16][32];

// Mixes of values for HALVES times 16 queries, of two times 16 dimensions from `first_d` on: [HALVES][2][16][16]. The chunk has
// `filled` positions.
template <int HALVES>
void mix_tiles(const PairWeights* weights, int64_t num_pairs, PairedChunk& chunk, const half_t* const* values, int64_t dim,
               int64_t first_d, int64_t filled, Ahead<half_t>& ahead, float (*mixed)[2][16 * 16]) {
    auto pair = [&](int64_t index) {
        if (index < chunk.num_pairs) return;
        for (int64_t d = first_d; d < first_d + 2 * LANES; d += LANES)
            pair_values(values + 2 * index, dim, d, filled - index * PAIR, chunk.values(index, d), ahead);
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
        _tile_loadd(6, chunk.values(index, first_d), 64);
        _tile_loadd(7, chunk.values(index, first_d + LANES), 64);
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
void attend_halves(const AttentionShape& shape, PairedChunk& chunk, const float* const* queries, const int64_t* positions,
                   int64_t num_queries, int64_t first, int64_t count, int64_t filled, const half_t* const* keys,
                   const half_t* const* values, Ahead<half_t>& values_ahead, Ahead<half_t>& keys_ahead, float* const* out,
                   float* maxima, float* sums) {
    const int64_t dim = shape.head_dim, num_blocks = (count + BLOCK - 1) / BLOCK, num_pairs = (num_blocks + 1) / 2;
    static thread_local Buffer<QueryStep> query_room;
    alignas(64) static thread_local float scores[HALVES][MOST_BLOCKS][16 * 16];
    alignas(64) static thread_local PairWeights weights[HALVES];
    QueryStep* rows[HALVES];
    rows[0] = query_room.reserve(HALVES * dim / 32);
    if constexpr (HALVES == 2) rows[1] = rows[0] + dim / 32;
    for (int64_t q = 0; q < num_queries; q++)
        for (int64_t step = 0; step < dim / 32; step++)
            widen(queries[q] + 32 * step, rows[q / 16][step].high[q % 16], rows[q / 16][step].low[q % 16]);
    // What was stored a moment ago cannot be read into a tile register: the next is prepared before the last is read.
    auto pair = [&](int64_t block) {
        if (block >= chunk.num_blocks && block < num_blocks) pair_keys(keys[block], dim, chunk.keys(block), values_ahead);
    };
    pair(0);
    for (int64_t block = 0; block < num_blocks; block++) {
        pair(block + 1);
        score_tiles<HALVES>(rows, chunk.keys(block), dim, scores[0][block], MOST_BLOCKS * 16 * 16);
    }
    // A few queries at once: each is a chain of sums and powers that wait for one another.
    int64_t q = 0;
    auto some = [&](auto queries_at_once) {
        constexpr int NQ = decltype(queries_at_once)::value;
        for (; num_queries - q >= NQ; q += NQ) {
            Vector most[NQ], total[NQ] = {};
            float top[NQ];
            auto score_at = [&](int i, int64_t block) { return scores[(q + i) / 16][block] + 16 * ((q + i) % 16); };
            for (int i = 0; i < NQ; i++) most[i] = splat(-INFINITY);
            for (int64_t block = 0; block < num_blocks; block++)
                for (int i = 0; i < NQ; i++) {
                    const Vector score = seen_scores(shape, load(score_at(i, block)), first + block * BLOCK, positions[q + i]);
                    store(score_at(i, block), score);
                    most[i] = largest(most[i], score);
                }
            for (int i = 0; i < NQ; i++) top[i] = largest_of(most[i]);
            for (int64_t block = 0; block < 2 * num_pairs; block++)
                for (int i = 0; i < NQ; i++) {
                    const Vector score = block < num_blocks ? load(score_at(i, block)) : splat(-INFINITY);
                    const Vector weight = score > -INFINITY ? exp(score - top[i]) : Vector{};
                    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)weight);
                    std::memcpy(weights[(q + i) / 16][block / 2][(q + i) % 16] + 16 * (block % 2), &rounded, 32);
                    total[i] += (Vector)_mm512_cvtpbh_ps(rounded);
                }
            for (int i = 0; i < NQ; i++) maxima[q + i] = top[i], sums[q + i] = sum(total[i]);
        }
    };
    some(std::integral_constant<int, 4>());
    some(std::integral_constant<int, 1>());
    alignas(64) float mixed[HALVES][2][16 * 16];
    for (int64_t d = 0; d < dim; d += 2 * LANES) {
        mix_tiles<HALVES>(weights, num_pairs, chunk, values, dim, d, filled, keys_ahead, mixed);
        for (int64_t q = 0; q < num_queries; q++)
            for (int64_t tile = 0; tile < 2; tile++) store(out[q] + d + tile * LANES, load(mixed[q / 16][tile] + 16 * (q % 16)));
    }
    chunk.keep(num_blocks, num_pairs);
}

// As attend_queries, for all queries of a tile.
inline void attend_wide(const AttentionShape& shape, PairedChunk& chunk, const float* const* queries, const int64_t* positions,
                        int64_t num_queries, int64_t first, int64_t count, int64_t filled, const half_t* const* keys,
                        const half_t* const* values, Ahead<half_t>& values_ahead, Ahead<half_t>& keys_ahead, float* const* out,
                        float* maxima, float* sums) {
    const auto attend = num_queries <= 16 ? attend_halves<1> : attend_halves<2>;
    attend(shape, chunk, queries, positions, num_queries, first, count, filled, keys, values, values_ahead, keys_ahead, out, maxima, sums);
}
#else
struct PairedChunk {
    void begin(int64_t, bool) {}
};
inline bool has_wide_attention(const AttentionShape&) { return false; }
inline void attend_wide(const AttentionShape&, PairedChunk&, const float* const*, const int64_t*, int64_t, int64_t, int64_t, int64_t,
                        const half_t* const*, const half_t* const*, Ahead<half_t>&, Ahead<half_t>&, float* const*, float*, float*) {}
#endif

}  // namespace loramux
