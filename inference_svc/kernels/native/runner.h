// Runs a program over the rows of a pass: all threads walk the list of operations together and share the work of each.
#pragma once
#include <algorithm>
#include <chrono>

#include "delta_planner.h"
#include "float_products.h"
#include "threads.h"

namespace loramux {

#if defined(LORAMUX_PROFILE)
double profile[16];  // seconds by kind of operation, of the first thread
extern "C" double* lx_profile() { return profile; }
#endif

class Runner : DeltaPlanner {
  public:
    Runner(Program& program, Threads& threads, const Pass& pass, bool invariant)
        : DeltaPlanner(program, pass, invariant), t(threads) {}

    void prepare() {
        for (size_t i = 0; i < p.buffers.size(); i++) p.buffers[i].reserve(whole_blocks(pass.num_rows) * p.buffer_widths[i]);
        if (p.input >= 0) {
            const Value& value = p.values[p.input];
            for (int64_t row = 0; row < pass.num_rows; row++)
                std::memcpy(p.at(p.input) + row * value.stride, pass.input + row * value.width, value.width * sizeof(float));
        }
        for (Rounded& rounded : p.rounded) rounded.reserve(pass.num_rows, p.most_steps);
        if (is_int16()) p.int16.reserve(pass.num_rows, p.most_steps);
        if (is_wide()) {
            for (Wide& wide : p.wide) wide.reserve(pass.num_rows, p.most_steps);
            find_rows_in_blocks();
        }
        reserve_low_rank();
        for (const Operation& operation : p.operations)
            if (operation.kind == ATTENTION) return plan_tiles(operation.shape);
    }

    void run([[maybe_unused]] int thread) {
        const bool tiles = is_wide() || is_int16() || pass.num_rows >= ROWS_FOR_MATRIX_TILES;
        if (is_wide() || is_int16())
            begin_wide_tiles();
        else if (tiles)
            begin_matrix_tiles();
        const Wide* wide = &p.wide[0];
        for (size_t i = 0; i < p.stages.size(); i++) {
            const Stage& stage = p.stages[i];
#if defined(LORAMUX_PROFILE)
            const auto start = std::chrono::steady_clock::now();
#endif
            if (stage.can_fuse && fuses(stage, p.stages[i + 1])) {
                fused_linear(stage, p.stages[++i], *wide);
                wide = &p.wide[1];
            } else {
                run_stage(stage, *wide);
                if (stage.is(LINEAR)) wide = &p.wide[0];
            }
#if defined(LORAMUX_PROFILE)
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            if (thread == 0 && !stage.works.empty()) profile[stage.works.back().kind] += seconds;
#endif
        }
        copy_out();
        if (tiles) end_matrix_tiles();
    }

  private:
    Threads& t;

    int64_t num_blocks() const { return whole_blocks(pass.num_rows) / ROWS; }

    void find_rows_in_blocks() {
        p.rows_in_blocks.assign(pass.num_banks * num_blocks(), 0);
        for (int64_t b = 0; b < pass.num_banks; b++)
            for (int64_t i = 0; i < pass.banks[b].num_rows; i++)
                p.rows_in_blocks[b * num_blocks() + pass.banks[b].rows[i] / ROWS] = 1;
    }

    // Cuts the rows into tiles; all layers have the same heads.
    void plan_tiles(const AttentionShape& shape) {
        p.tiles.clear();
        p.attention_items.clear();
        p.tile_of_row.resize(pass.num_rows);
        int64_t num_partials = 0, source = 0;
        const int64_t most = attends_wide(shape) ? wide_rows_per_tile(shape) : rows_per_tile(shape);
        for (int64_t s = 0; s < pass.num_segments; s++) {
            const Segment& segment = pass.segments[s];
            const int64_t first_tile = static_cast<int64_t>(p.tiles.size());
            for (int64_t first = 0; first < segment.num_rows; first += most) {
                const int64_t count = std::min(most, segment.num_rows - first);
                const int64_t chunks = (segment.first_position + first + count + CHUNK - 1) / CHUNK;
                for (int64_t row = 0; row < count; row++) p.tile_of_row[segment.first_row + first + row] = p.tiles.size();
                p.tiles.push_back({&segment, first, count, chunks, num_partials});
                num_partials += count * shape.num_heads * chunks;
            }
            // Later tiles see more chunks.
            const int64_t end_tile = static_cast<int64_t>(p.tiles.size()), num_chunks = p.tiles.back().num_chunks;
            int64_t tile = first_tile;
            for (int64_t chunk = 0; chunk < num_chunks; chunk++) {
                while (p.tiles[tile].num_chunks <= chunk) tile++;
                for (int64_t head = 0; head < shape.num_kv_heads; head++, source++)
                    for (int64_t i = tile; i < end_tile; i++) p.attention_items.push_back({i, chunk, head, source, end_tile - tile == 1});
            }
        }
        p.partials.reserve(num_partials * (shape.head_dim + 2));
    }

    bool attends_wide(const AttentionShape& shape) const { return is_wide() && pass.half_cache && has_wide_attention(shape); }

    void run_stage(const Stage& stage, const Wide& wide) {
        if (stage.works.empty()) return;
        const Operation& first = p.operations[stage.works[0].operation];
        if (stage.is(LINEAR)) return linear(first, wide);
        if (stage.is(ATTENTION)) return attention(first);
        if (by_rows() || !stage.width)
            return t.share(pass.num_rows, by_rows() ? 4 : 1, [&](int64_t row, int64_t end) {
                for (; row < end; row++)
                    for (const Stage::Work& work : stage.works) run_row(work, row, 0, EVERY);
            });
        constexpr int64_t piece = 256;
        const int64_t pieces = (stage.width + piece - 1) / piece;
        t.share(pieces * pass.num_rows, 1, [&](int64_t item, int64_t end) {
            for (; item < end; item++)
                for (const Stage::Work& work : stage.works)
                    run_row(work, item % pass.num_rows, item / pass.num_rows * piece, (item / pass.num_rows + 1) * piece);
        });
    }

    static constexpr int64_t EVERY = int64_t{1} << 40;  // column

    // With many rows a thread takes a part of them through what is done row by row; with few, a part of the columns, if it
    // can do without the others.
    bool by_rows() const { return is_int16() || pass.num_rows >= 2 * ROWS * t.count(); }

    void linear(const Operation& o, const Wide& wide) {
        const int32_t input = o.inputs[0];
        const float* x = p.at(input);
        const int64_t x_stride = p.values[input].stride;
        // Items, for each part of the rows: tiles of 16 outputs of all matrices; then blocks of ranks of all deltas.
        static thread_local DeltaPlan plan;
        const WideDeltas* deltas = is_wide() ? low_rank_in_tiles(o, wide) : nullptr;
        float* before[MOST_MATRICES];
        find_before_deltas(o, deltas, before);
        const int64_t num_tiles = static_cast<int64_t>(o.tiles.size()), parts = num_parts();
        const int64_t num_blocks = plan_deltas(o, plan), num_items = num_tiles + num_blocks;
        t.share(num_items * parts, grain(num_items * parts), [&](int64_t first, int64_t end) {
            for (int64_t item = first; item < end; item++) {
                const Part part{item / num_items, parts};
                const int64_t index = item % num_items;
                if (index >= num_tiles) {
                    ranks_of(o, plan, index - num_tiles, part, x, x_stride);
                    continue;
                }
                const auto& [matrix, tile] = o.tiles[index];
                multiply(o, matrix, tile, x, x_stride, wide, deltas, before[matrix], first_row(part), first_row(part.next()));
            }
        });
        if (num_blocks) add_deltas(o, plan, before, parts);
    }

    // Not where adapters change the outputs only later, nor where they read the result in float32.
    bool fuses(const Stage& stage, const Stage& next) const {
        return adds_all_in_tiles(p.operations[stage.works[0].operation]) && adds_all_in_tiles(p.operations[next.works[1].operation]);
    }

    // Low-rank products of the deltas of an operation that fit tiles; null if it has none. Every thread has the same plan of its
    // own.
    const WideDeltas* low_rank_in_tiles(const Operation& o, const Wide& wide) {
        static thread_local WideDeltas deltas;
        deltas.clear();
        for (const Matrix& matrix : o.matrices) {
            for (int64_t b = 0; b < pass.num_banks; b++) {
                const BankRows& bank = pass.banks[b];
                const Delta& delta = bank.deltas[matrix.index];
                if (delta.a && fits_tiles(matrix, bank, delta)) deltas.add(bank, delta, p.rows_in_blocks.data() + b * num_blocks(), invariant);
            }
            deltas.end_matrix();
        }
        const int64_t num_halves = static_cast<int64_t>(deltas.halves.size());
        // Often there is a single half step: the threads then share its rows.
        const int64_t parts = by_rows() ? std::max<int64_t>(num_parts(), t.count()) : 1;
        if (!num_halves) return nullptr;
        deltas.find_used(num_blocks());
        t.share(num_halves * parts, 1, [&](int64_t item, int64_t end) {
            for (; item < end; item++) {
                const Part part{item / num_halves, parts};
                const HalfStep& half = deltas.halves[item % num_halves];
                wide_low_rank(half, wide, o.matrices[half.matrix].in_features, first_row(part), first_row(part.next()), p.wide_low);
            }
        });
        return &deltas;
    }

    // Fused: a linear operation, what activates its outputs, and the rounding of that, 32 columns at a time. With many rows the
    // outputs are more than a cache holds: to write and read them cost as much as the products.
    void fused_linear(const Stage& stage, const Stage& next, const Wide& wide) {
        const Operation &o = p.operations[stage.works[0].operation], &activation = p.operations[next.works[0].operation];
        const int64_t num_items = p.values[activation.output].width / 32, parts = num_parts();
        const WideDeltas* deltas = low_rank_in_tiles(o, wide);
        t.share(num_items * parts, grain(num_items * parts), [&](int64_t item, int64_t end) {
            static thread_local Buffer<float> products[2];
            for (; item < end; item++) {
                const Part part{item / num_items, parts};
                const int64_t step = item % num_items, first = first_row(part), end_row = first_row(part.next());
                const float* inputs[2] = {};
                for (int i = 0; i < 2; i++) {
                    if (activation.inputs[i] < 0) continue;
                    const auto [matrix, column] = p.columns_of(o, activation.inputs[i]);
                    const int64_t tile = column / LANES + 2 * step;
                    float* room = products[i].reserve((whole_blocks(end_row) - first) * 32);
                    const MoreSteps more = more_steps(deltas, matrix - o.matrices.data(), matrix->out_features, tile, first, end_row, p.wide_low);
                    wide_product(*matrix->packed, tile, wide, first, end_row, more, {room, 32, matrix->bias, first, tile * LANES});
                    inputs[i] = room;
                }
                for (int64_t row = first; row < end_row; row++) {
                    alignas(64) float out[32];
                    const int64_t at = 32 * (row - first);
                    activate(activation.kind, inputs[0] + at, inputs[1] ? inputs[1] + at : nullptr, 32, out);
                    widen_row(out, p.wide[1].block(row / ROWS)[step].numbers[row % ROWS]);
                }
            }
        });
    }

    struct Part {
        int64_t index, count;
        Part next() const { return {index + 1, count}; }
    };

    // Products take as many rows together as leave room in a core's cache: what a matrix is unpacked to serves all of them.
    int64_t num_parts() const {
        constexpr int64_t most_rows = 256;
        return std::max<int64_t>(1, (pass.num_rows + most_rows - 1) / most_rows);
    }

    // The first row of a part of the rows: it begins with a block.
    int64_t first_row(Part part) const {
        return std::min(whole_blocks(pass.num_rows) / ROWS * part.index / part.count * ROWS, pass.num_rows);
    }

    // The first of a bank's rows, which ascend, in a part of the rows.
    int64_t first_row(Part part, const BankRows& bank) const {
        return std::lower_bound(bank.rows, bank.rows + bank.num_rows, first_row(part)) - bank.rows;
    }

    // Items in a piece: few enough pieces that taking one costs nothing, enough that nobody waits for long.
    int64_t grain(int64_t num_items) const { return std::max<int64_t>(1, num_items / (8 * t.count())); }

    void multiply(const Operation& o, int64_t index, int64_t tile, const float* x, int64_t x_stride, const Wide& wide,
                  const WideDeltas* deltas, float* before, int64_t first_row, int64_t end_row) {
        const Matrix& matrix = o.matrices[index];
        const Output output{p.at(matrix.out), p.values[matrix.out].stride, matrix.bias};
        if (matrix.packed && is_wide()) {
            if (tile % 2) return;
            MoreSteps more = more_steps(deltas, index, matrix.out_features, tile, first_row, end_row, p.wide_low);
            more.before = before;
            return wide_product(*matrix.packed, tile, wide, first_row, end_row, more, output);
        }
        if (matrix.packed && is_int16()) return int16_product(*matrix.packed, tile, p.int16, first_row, end_row, output);
        if (matrix.packed)
            return rounded_product_tile(*matrix.packed, tile, p.rounded[matrix.packed->bits / 8], first_row, end_row, output);
        for (int64_t first = tile * 16; first < std::min(tile * 16 + 16, matrix.out_features); first += 4) {
            const int count = static_cast<int>(std::min<int64_t>(4, matrix.out_features - first));
            float_product(matrix.type, matrix.data, matrix.row_bytes, matrix.in_features, first, count, x, x_stride, first_row,
                          end_row, output);
        }
    }

    void ranks_of(const Operation& o, const DeltaPlan& plan, int64_t item, Part part, const float* x, int64_t x_stride) {
        const auto after = std::upper_bound(plan.begin(), plan.end(), item,
                                            [](int64_t value, const PlannedDelta& planned) { return value < planned.first_block; });
        const PlannedDelta& planned = *(after - 1);
        const Matrix& matrix = o.matrices[planned.matrix];
        const BankRows& bank = pass.banks[planned.bank];
        const Delta& delta = bank.deltas[matrix.index];
        const int64_t first = (item - planned.first_block) * RANKS;
        const uint8_t* ahead = delta.a_at((first + RANKS) * matrix.in_features);
        if (first + RANKS >= delta.rank && after != plan.end())
            ahead = pass.banks[after->bank].deltas[o.matrices[after->matrix].index].a_at(0);
        low_rank(bank, delta, first, matrix.in_features, first_row(part, bank), first_row(part.next(), bank), x, x_stride, ahead,
                 p.low.data() + planned.first_float);
    }

    void add_deltas(const Operation& o, const DeltaPlan& plan, float* const* before, int64_t parts) {
        int64_t counts[MOST_MATRICES + 1] = {0};
        const int64_t num_matrices = static_cast<int64_t>(o.matrices.size());
        for (int64_t m = 0; m < num_matrices; m++) counts[m + 1] = counts[m] + (o.matrices[m].out_features + OUTPUTS - 1) / OUTPUTS;
        const int64_t num_items = counts[num_matrices];
        auto is_before = [](const PlannedDelta& planned, int64_t matrix) { return planned.matrix < matrix; };
        t.share(num_items * parts, grain(num_items * parts), [&](int64_t first_item, int64_t end) {
            static thread_local Buffer<float> copies;
            for (int64_t i = first_item; i < end; i++) {
                const Part part{i / num_items, parts};
                const int64_t item = i % num_items;
                int64_t m = 0;
                while (item >= counts[m + 1]) m++;
                const Matrix& matrix = o.matrices[m];
                const int64_t first = (item - counts[m]) * OUTPUTS;
                float* y = p.at(matrix.out);
                const int64_t y_stride = p.values[matrix.out].stride;
                const float* base = copy_of_base(matrix, before[m] ? before[m] : y, first, part, copies);
                const auto begin = std::lower_bound(plan.begin(), plan.end(), m, is_before);
                const auto last = std::lower_bound(begin, plan.end(), m + 1, is_before);
                for (auto planned = begin; planned != last; ++planned) {
                    const BankRows& bank = pass.banks[planned->bank];
                    const bool is_last = planned + 1 == last;
                    const Delta& next = pass.banks[(is_last ? begin : planned + 1)->bank].deltas[matrix.index];
                    add_delta(bank, bank.deltas[matrix.index], p.low.data() + planned->first_float, first, matrix.out_features,
                              first_row(part, bank), first_row(part.next(), bank), base, next.b_at(first + is_last * OUTPUTS), y, y_stride);
                }
            }
        });
    }

    // W x of OUTPUTS outputs of a part of the rows, if a DoRA needs it: what the base says, before any adapter changes it.
    const float* copy_of_base(const Matrix& matrix, const float* products, int64_t first, Part part, Buffer<float>& copies) {
        if (!has_dora(matrix)) return nullptr;
        const int64_t count = std::min(OUTPUTS, matrix.out_features - first), y_stride = p.values[matrix.out].stride;
        float* base = copies.reserve(pass.num_rows * OUTPUTS);
        for (int64_t row = first_row(part); row < first_row(part.next()); row++)
            for (int64_t n = 0; n < count; n++)
                base[row * OUTPUTS + n] = products[row * y_stride + first + n] - (matrix.bias ? matrix.bias[first + n] : 0.0f);
        return base;
    }

    void attention(const Operation& o) {
        if (pass.half_cache)
            attend(o, static_cast<half_t*>(pass.keys) + o.layer * pass.layer_size, static_cast<half_t*>(pass.values) + o.layer * pass.layer_size);
        else
            attend(o, static_cast<float*>(pass.keys) + o.layer * pass.layer_size, static_cast<float*>(pass.values) + o.layer * pass.layer_size);
    }

    template <typename T>
    void attend(const Operation& o, T* keys, T* values) {
        const AttentionShape& shape = o.shape;
        const int64_t partial_size = shape.head_dim + 2;
        const float* q = p.at(o.inputs[0]);
        const int64_t q_stride = p.values[o.inputs[0]].stride;
        static thread_local PairedChunk paired;
        int64_t source = -1;  // of what is paired
        auto wide = [&](const float* const* queries, const int64_t* positions, int64_t num_queries, auto... rest) {
            if constexpr (std::is_same_v<T, half_t>)
                if ((invariant || num_queries >= QUERIES_FOR_WIDE) && attends_wide(shape)) {
                    attend_wide(shape, paired, queries, positions, num_queries, rest...);
                    return true;
                }
            return false;
        };
        t.share(static_cast<int64_t>(p.attention_items.size()), 1, [&](int64_t first_item, int64_t end) {
            for (int64_t i = first_item; i < end; i++) {
                const AttentionItem& item = p.attention_items[i];
                if (item.source != source) paired.begin(shape.head_dim, !item.is_alone);
                source = item.source;
                // What this thread does next is most often the next item.
                const T* next_keys[CHUNK / BLOCK];
                int64_t num_next = 0;
                if (i + 1 < static_cast<int64_t>(p.attention_items.size()) && p.attention_items[i + 1].source != source) {
                    const AttentionItem& next = p.attention_items[i + 1];
                    num_next = (find_blocks(shape, *p.tiles[next.tile].segment, next.chunk, next.kv_head, keys, next_keys) + BLOCK - 1) / BLOCK;
                }
                attend_chunk(shape, p.tiles[item.tile], item.kv_head, item.chunk, q, q_stride, keys, values, p.partials.data(),
                             partial_size, Ahead<T>(next_keys, num_next, BLOCK * shape.head_dim), wide);
            }
        });
    }

    void copy_out() {
        const Value& value = p.values[p.result];
        t.share(pass.num_rows, 4, [&](int64_t first, int64_t end) {
            for (int64_t row = first; row < end; row++)
                std::memcpy(pass.output + row * value.width, row_of(p.result, row), value.width * sizeof(float));
        });
    }
};

}  // namespace loramux
