// Which deltas of adapters a pass adds with its products, in tiles, and which later; and where what they need lies.
#pragma once
#include "row_works.h"

namespace loramux {

constexpr int64_t ROWS_FOR_TILES = 7;  // of a bank

class DeltaPlanner : protected RowWorks {
  protected:
    using RowWorks::RowWorks;

    // Those deltas that fit tiles are added up with an operation's products, from activations as these read them; all others
    // later. In the fast mode also those of banks that have but a few rows: to bring their numbers into tiles takes longer than to
    // use them for these.
    bool fits_tiles(const Matrix& matrix, const BankRows& bank, const Delta& delta) const {
        return is_wide() && matrix.packed && delta.fits_tiles() && (invariant || bank.num_rows >= ROWS_FOR_TILES);
    }

    bool adds_all_in_tiles(const Operation& o) const {
        bool all = is_wide();
        each_delta(o, [&](const Matrix& matrix, const BankRows& bank, const Delta& delta) { all = all && fits_tiles(matrix, bank, delta); });
        return all;
    }

    template <typename Work>
    void each_delta(const Operation& o, const Work& work) const {
        for (const Matrix& matrix : o.matrices)
            for (int64_t b = 0; b < pass.num_banks; b++)
                if (const Delta& delta = pass.banks[b].deltas[matrix.index]; delta.a) work(matrix, pass.banks[b], delta);
    }

    // Writes down where each bank's low-rank products of each matrix go, of deltas that are not added in tiles; gives the number
    // of blocks of ranks. Every thread has a plan of its own, and all are the same: that costs less than to wait for one.
    int64_t plan_deltas(const Operation& o, DeltaPlan& plan) const {
        plan.clear();
        int64_t blocks = 0, floats = 0;
        for (size_t m = 0; m < o.matrices.size(); m++)
            for (int64_t b = 0; b < pass.num_banks; b++) {
                const Delta& delta = pass.banks[b].deltas[o.matrices[m].index];
                if (!delta.a || fits_tiles(o.matrices[m], pass.banks[b], delta)) continue;
                plan.push_back({static_cast<int64_t>(m), b, blocks, floats});
                blocks += (delta.rank + RANKS - 1) / RANKS;
                floats += pass.banks[b].num_rows * delta.rank;
            }
        return blocks;
    }

    bool has_dora(const Matrix& matrix) const {
        bool any = false;
        for (int64_t b = 0; b < pass.num_banks; b++) any = any || pass.banks[b].deltas[matrix.index].base_factor;
        return any;
    }

    // Where the products of each matrix are kept for a DoRA, as they are before other adapters' deltas join them in tiles; null
    // where these do not, or no DoRA asks.
    void find_before_deltas(const Operation& o, const WideDeltas* deltas, float** before) {
        float* room = p.before_deltas.data();
        for (size_t m = 0; m < o.matrices.size(); m++) {
            before[m] = deltas && deltas->steps(m) && has_dora(o.matrices[m]) ? room : nullptr;
            if (before[m]) room += whole_blocks(pass.num_rows) * p.values[o.matrices[m].out].stride;
        }
    }

    void reserve_low_rank() {
        int64_t most = 0, most_steps = 0, most_before = 0;
        for (const Operation& operation : p.operations) {
            int64_t floats = 0, steps = 0, stride = 0;
            bool has_some_in_tiles = false, has_some_dora = false;
            for (const Matrix& matrix : operation.matrices) {
                int64_t half_steps = 0;
                for (int64_t b = 0; b < pass.num_banks; b++) {
                    const Delta& delta = pass.banks[b].deltas[matrix.index];
                    if (!delta.a) continue;
                    floats += delta.rank * pass.banks[b].num_rows;
                    const int64_t halves = (delta.rank + HALF_STEP - 1) / HALF_STEP;
                    half_steps += invariant ? (halves + 1) / 2 * 2 : halves;
                    has_some_in_tiles = has_some_in_tiles || fits_tiles(matrix, pass.banks[b], delta);
                    has_some_dora = has_some_dora || delta.base_factor;
                }
                steps += (half_steps + 1) / 2;
                stride += p.values[matrix.out].stride;
            }
            most = std::max(most, floats);
            most_steps = std::max(most_steps, steps);
            if (has_some_in_tiles && has_some_dora) most_before = std::max(most_before, whole_blocks(pass.num_rows) * stride);
        }
        if (most) p.low.reserve(most);
        if (most_steps && is_wide()) p.wide_low.reserve(pass.num_rows, most_steps);
        if (most_before && is_wide()) p.before_deltas.reserve(most_before);
    }
};

}  // namespace loramux
