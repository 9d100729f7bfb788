// Deltas of adapters in passes of many rows: their B's are further steps of a matrix' products, and what A x gives, times its
// scalings, is the activations of these steps. So a delta is added up where the product is, and nothing is read or written twice.
//
// The ranks of all banks that a matrix has deltas of lie one after the other, each bank's from a half step on. In the invariant
// mode from a step on: even columns of a step are added up, and odd ones, and then both, so that what shares a step with a row's
// ranks would decide in which order these are added.
#pragma once
#include <vector>

#include "adapters.h"
#include "wide_products.h"

namespace loramux {

constexpr int64_t HALF_STEP = 16;  // ranks

struct HalfStep {
    const BankRows* bank;
    const Delta* delta;
    const uint8_t* has_rows;  // by block: the bank has rows in it
    int64_t first_rank, count;
    int64_t matrix, step;  // of the operation's matrices; among all steps of the operation
    bool is_second, is_alone;  // of its step; its step has no other
};

// The deltas of one operation: half steps of its matrices, one matrix after the other.
class WideDeltas {
  public:
    std::vector<HalfStep> halves;
    std::vector<int64_t> first_step;  // by matrix, and where the last one's end; a matrix begins with a whole step

    void clear() { halves.clear(), first_of_step_.clear(), first_step.assign(1, 0); }

    void add(const BankRows& bank, const Delta& delta, const uint8_t* has_rows, bool begins_step) {
        const int64_t matrix = static_cast<int64_t>(first_step.size()) - 1;
        for (int64_t rank = 0; rank < delta.rank; rank += HALF_STEP, begins_step = false) {
            const bool is_second = !begins_step && num_steps() > first_step.back() && halves.back().is_alone;
            if (is_second)
                halves.back().is_alone = false;
            else
                first_of_step_.push_back(static_cast<int64_t>(halves.size()));
            halves.push_back({&bank, &delta, has_rows, rank, std::min(HALF_STEP, delta.rank - rank), matrix, num_steps() - 1,
                              is_second, !is_second});
        }
    }

    void end_matrix() { first_step.push_back(num_steps()); }

    // Which blocks have rows of a step's banks.
    void find_used(int64_t num_blocks) {
        used_.assign(num_steps() * num_blocks, 0);
        num_blocks_ = num_blocks;
        for (const HalfStep& half : halves) {
            const int64_t first = first_step[half.matrix];
            uint8_t* used = used_.data() + first * num_blocks + half.step - first;
            for (int64_t block = 0; block < num_blocks; block++) used[block * steps(half.matrix)] |= half.has_rows[block];
        }
    }

    const uint8_t* is_used(int64_t matrix) const { return used_.data() + first_step[matrix] * num_blocks_; }  // [blocks][steps]

    int64_t steps(int64_t matrix) const { return first_step[matrix + 1] - first_step[matrix]; }

    // The half steps of a step of a matrix: two, or one.
    template <typename Work>
    void each_half(int64_t matrix, int64_t step, const Work& work) const {
        const HalfStep* half = &halves[first_of_step_[first_step[matrix] + step]];
        work(half[0]);
        if (!half->is_alone) work(half[1]);
    }

  private:
    int64_t num_steps() const { return static_cast<int64_t>(first_of_step_.size()); }

    std::vector<int64_t> first_of_step_;  // half step
    std::vector<uint8_t> used_;
    int64_t num_blocks_ = 0;
};

#if defined(LORAMUX_WIDE)
// 16 numbers of a row of halves, of `count` there are.
inline __m512 some_halves(const half_t* p, int64_t count) {
    if (count >= LANES) return (__m512)load_half(p);
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << std::max<int64_t>(count, 0)) - 1), p));
}

// Swaps rows and columns of 16 x 16 words of 32 bits.
inline void transpose(__m512i (&r)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
    }
}

// A of a half step as tiles read weights: for each 32 columns 16 pairs of them, 16 ranks each.
inline void widen_a(const HalfStep& half, int64_t in_features, uint8_t* out) {
    const half_t* a = static_cast<const half_t*>(half.delta->a) + half.first_rank * in_features;
    for (int64_t column = 0; column < in_features; column += 32, out += 1024) {
        __m512i rows[16] = {};
        for (int64_t rank = 0; rank < half.count; rank++) {
            const half_t* numbers = a + rank * in_features + column;
            prefetch(numbers + 128);
            rows[rank] = in_step_order((__m512i)_mm512_cvtne2ps_pbh((__m512)load_half(numbers + 16), (__m512)load_half(numbers)));
        }
        transpose(rows);
        for (int i = 0; i < 16; i++) _mm512_store_si512(out + 64 * i, rows[i]);
    }
}

// B of a step for 16 outputs, as tiles read weights.
inline void widen_b(const WideDeltas& deltas, int64_t matrix, int64_t step, int64_t tile, int64_t out_features, uint8_t* out) {
    std::memset(out, 0, 1024);
    int64_t half_index = 0;
    deltas.each_half(matrix, step, [&](const HalfStep& half) {
        const half_t* b = static_cast<const half_t*>(half.delta->b) + half.first_rank * out_features + tile * LANES;
        const int64_t columns = out_features - tile * LANES;
        uint8_t* pairs = out + 512 * half_index++;
        for (int64_t rank = 0; rank < half.count; rank += 2, b += 2 * out_features, pairs += 64) {
            prefetch(b + 2 * LANES);
            prefetch(b + out_features + 2 * LANES);
            const __m512 second = rank + 1 < half.count ? some_halves(b + out_features, columns) : _mm512_setzero_ps();
            _mm512_store_si512(pairs, paired(some_halves(b, columns), second));
        }
    });
}

// The deltas of a matrix, if there are any, for two tiles of its outputs and the rows first..end.
inline MoreSteps more_steps(const WideDeltas* deltas, int64_t matrix, int64_t out_features, int64_t tile, int64_t first, int64_t end,
                            const Wide& low) {
    if (!deltas || !deltas->steps(matrix)) return {};
    static thread_local Buffer<uint8_t> numbers;
    const int64_t count = deltas->steps(matrix);
    uint8_t* room = numbers.reserve(2 * count * 1024);
    const uint8_t* is_used = deltas->is_used(matrix);
    for (int64_t step = 0; step < count; step++) {
        bool used = false;
        for (int64_t block = first / ROWS; block < whole_blocks(end) / ROWS; block++) used = used || is_used[block * count + step];
        for (int64_t i = 0; used && i < 2; i++) widen_b(*deltas, matrix, step, tile + i, out_features, room + (i * count + step) * 1024);
    }
    return {count, room, &low, deltas->first_step[matrix], is_used};
}

// What A x of one half step gives for the rows first..end, times its scalings, as activations in blocks of `low`; whole blocks
// are written, with nothing for rows that the bank does not have. The rows begin with a block.
inline void wide_low_rank(const HalfStep& half, const Wide& x, int64_t in_features, int64_t first, int64_t end, Wide& low) {
    static thread_local Buffer<uint8_t> room;
    const Delta& delta = *half.delta;
    const BankRows& bank = *half.bank;
    const int64_t steps = in_features / 32, end_block = whole_blocks(end) / ROWS;
    uint8_t* a = room.reserve(steps * 1024);
    bool is_widened = false;
    int64_t index = std::lower_bound(bank.rows, bank.rows + bank.num_rows, first) - bank.rows;
    for (int64_t block = first / ROWS; block < end_block; block++) {
        uint16_t* out = low.block(block)[half.step].numbers[0] + half.is_second * HALF_STEP;
        const int64_t bytes = (half.is_alone ? 2 : 1) * HALF_STEP * sizeof(uint16_t);  // what would be its other half is nothing
        for (int row = 0; row < ROWS; row++) std::memset(out + 32 * row, 0, bytes);
        if (!half.has_rows[block]) continue;
        if (!is_widened) widen_a(half, in_features, a);
        is_widened = true;
        // Sums of even and odd steps are apart: a sum is ready for its next product only after others have begun.
        alignas(64) float sums[2][ROWS][LANES];
        fence();
        _tile_zero(0);
        _tile_zero(1);
        const WideStep* numbers = x.block(block);
        int64_t k = 0;
        for (; k + 1 < steps; k += 2) {
            _tile_loadd(4, numbers[k].numbers, 64);
            _tile_loadd(6, a + k * 1024, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, numbers[k + 1].numbers, 64);
            _tile_loadd(7, a + (k + 1) * 1024, 64);
            _tile_dpbf16ps(1, 5, 7);
        }
        if (k < steps) {
            _tile_loadd(4, numbers[k].numbers, 64);
            _tile_loadd(6, a + k * 1024, 64);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, sums[0], 64);
        _tile_stored(1, sums[1], 64);
        fence();
        const int64_t* experts = delta.expert_of_rank + half.first_rank;
        for (; index < bank.num_rows && bank.rows[index] < (block + 1) * ROWS; index++) {
            const int64_t row = bank.rows[index] % ROWS;
            const float* scalings = bank.scalings_of(index, delta);
            alignas(64) float weights[LANES] = {};
            for (int64_t rank = 0; rank < half.count; rank++) weights[rank] = scalings[experts[rank]];
            const Vector weight = load(weights), sum = load(sums[0][row]) + load(sums[1][row]);
            const __m256bh low_rank = _mm512_cvtneps_pbh((__m512)(sum * (weight * delta.factor)));
            std::memcpy(out + 32 * row, &low_rank, sizeof low_rank);
        }
    }
}
#else
inline MoreSteps more_steps(const WideDeltas*, int64_t, int64_t, int64_t, int64_t, int64_t, const Wide&) { return {}; }
inline void wide_low_rank(const HalfStep&, const Wide&, int64_t, int64_t, int64_t, Wide&) {}
#endif

}  // namespace loramux
