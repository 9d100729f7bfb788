// A recorded model: a list of operations on values.
//
// A value is a matrix of rows [num_tokens, width] in a buffer whose rows are `stride` floats apart; buffers are reused once
// nobody reads their value any more. Widths that are reduced over are multiples of 16.
#pragma once
#include <algorithm>
#include <vector>

#include "adapters.h"
#include "attention.h"
#include "int16_products.h"
#include "memory.h"
#include "products.h"
#include "quantized.h"
#include "vector.h"
#include "wide_adapters.h"
#include "wide_products.h"

namespace loramux {

constexpr int64_t MOST_MATRICES = 8;  // of one operation

enum Kind : int32_t {
    EMBED, LINEAR, RMS_NORM, LAYER_NORM, ROTARY, ATTENTION, SILU, GELU, GELU_TANH, ADD, SOFTCAP,
    // What a program adds by itself, row by row:
    ROUND,  // the input of a linear operation, as its products read it
    STORE,  // keys and values, in the cache
    JOIN,   // what the chunks of an attention gave
};

inline bool is_elementwise(Kind kind) { return (kind >= SILU && kind <= SOFTCAP) || kind == ROUND; }

struct Matrix {  // of a linear layer
    int32_t type;
    const uint8_t* data;  // as in the file
    int64_t out_features, in_features, row_bytes;
    const Packed* packed;  // null: products in float32
    const float* bias;     // or null
    int64_t index;         // of the linear layer: where a bank keeps its delta
    int32_t out;           // value

    int64_t tiles() const { return (out_features + 15) / 16; }
};

struct Operation {
    explicit Operation(int32_t kind) : kind(static_cast<Kind>(kind)) {}

    Kind kind;
    int32_t inputs[3] = {-1, -1, -1};
    int32_t output = -1;
    std::vector<Matrix> matrices;  // LINEAR: all that read the same value
    // LINEAR: tiles of 16 outputs as (matrix, tile), by where they are in their matrix: a thread's part of the list is the
    // same part of every matrix's columns, and the operations that follow find them in its cache.
    std::vector<std::pair<int32_t, int64_t>> tiles;
    Matrix table = {};             // EMBED
    const float* weight = nullptr;
    const float* bias = nullptr;
    const float* cosines = nullptr;  // ROTARY: [positions, half]
    const float* sines = nullptr;
    int64_t half = 0, head_dim = 0, layer = 0;
    float number = 0.0f;  // eps, scale of an embedding, limit of a soft cap
    AttentionShape shape = {};
};

// Work that the threads share before they wait for each other: a linear operation, an attention, or whatever else comes one
// after the other, row by row. A row so goes from one operation to the next while it is in the cache.
struct Stage {
    struct Work {
        Kind kind;
        int64_t operation;
    };
    std::vector<Work> works;
    int64_t width = 0;  // of every work, if each column is by itself: a row may be cut then; else 0
    // A linear operation whose outputs the next stage alone reads, to activate and round them and nothing else.
    bool can_fuse = false;

    bool is(Kind kind) const { return works.size() == 1 && works[0].kind == kind; }
};

struct Value {
    int64_t width = 0, stride = 0, offset = 0;
    int32_t buffer = -1;
    int32_t parent = -1;  // of a split: its buffer is the parent's
};

struct Pass {  // as in the Python side
    int64_t num_rows;
    const int64_t* token_ids;
    const int64_t* positions;
    const int64_t* slots;
    int64_t num_segments;
    const Segment* segments;
    int64_t num_banks;
    const BankRows* banks;
    void* keys;  // [num_layers][num_blocks * BLOCK * num_kv_heads * head_dim]
    void* values;
    int64_t layer_size;  // elements of a layer's keys
    int32_t half_cache;
    int32_t has_scaling_pass;
    int32_t is_of_prompts;  // all of its rows; what is generated has passes of its own
    const float* input;  // rows of value 0, if the program has an input
    float* output;       // [num_rows, width of the result]
};

struct PlannedDelta {  // of one bank for one matrix of an operation
    int64_t matrix, bank;
    int64_t first_block;  // of ranks
    int64_t first_float;  // of its low-rank products
};
typedef std::vector<PlannedDelta> DeltaPlan;

struct Program {
    std::vector<Operation> operations;
    std::vector<Value> values;
    int32_t input = -1, result = -1;
    std::vector<Stage> stages;
    int64_t most_steps = 0;  // of 32 columns, of any linear operation's input
    std::vector<Buffer<float>> buffers;
    std::vector<int64_t> buffer_widths;
    // Working memory of a pass.
    Rounded rounded[2];  // for 4-bit codes, for 8-bit codes
    Wide wide[2];  // of which the second has what was activated in the cache
    Int16 int16;
    Wide wide_low;  // low-rank products of an operation
    Buffer<float> before_deltas;  // products of an operation, for a DoRA, before deltas join them in tiles
    std::vector<uint8_t> rows_in_blocks;  // [banks][blocks]: a bank has rows there
    std::vector<QueryTile> tiles;
    std::vector<int64_t> tile_of_row;
    std::vector<AttentionItem> attention_items;
    Buffer<float> partials, low;

    int32_t new_value(int64_t width) {
        Value value;
        value.width = width;
        // An odd number of cache lines: a column of many rows would otherwise fall into very few sets of the cache.
        value.stride = ((width + LANES - 1) / LANES | 1) * LANES;
        values.push_back(value);
        return static_cast<int32_t>(values.size()) - 1;
    }

    float* at(int32_t value) {
        const Value& v = values[value];
        return buffers[v.buffer].data() + v.offset;
    }

    // Where the columns of a value come from: null where they are no whole pairs of tiles of one matrix.
    struct Columns {
        const Matrix* matrix;
        int64_t first;
    };
    Columns columns_of(const Operation& linear, int32_t value) const {
        for (const Matrix& matrix : linear.matrices) {
            const int64_t first = values[value].offset - values[matrix.out].offset;
            if (root(value) == root(matrix.out) && first % 32 == 0 && values[value].width % 32 == 0) return {&matrix, first};
        }
        return {nullptr, 0};
    }

    int32_t root(int32_t value) const { return values[value].parent < 0 ? value : root(values[value].parent); }

    static void order_tiles(Operation& operation) {
        for (size_t m = 0; m < operation.matrices.size(); m++)
            for (int64_t tile = 0; tile < operation.matrices[m].tiles(); tile++) operation.tiles.emplace_back(m, tile);
        std::stable_sort(operation.tiles.begin(), operation.tiles.end(), [&](const auto& a, const auto& b) {
            return a.second * operation.matrices[b.first].tiles() < b.second * operation.matrices[a.first].tiles();
        });
    }

    void finish(int32_t result_value) {
        result = result_value;
        for (Operation& operation : operations) order_tiles(operation);
        cut_into_stages();
        give_buffers();
    }

  private:
    void cut_into_stages() {
        const int64_t count = static_cast<int64_t>(operations.size());
        auto alone = [&](Kind kind, int64_t index) {
            stages.push_back({{{kind, index}}});
            stages.emplace_back();
        };
        stages.emplace_back();
        for (int64_t i = 0; i < count; i++) {
            const Kind kind = operations[i].kind;
            if (kind == LINEAR) {
                stages.back().works.push_back({ROUND, i});
                alone(LINEAR, i);
                most_steps = std::max(most_steps, operations[i].matrices[0].in_features / 32);
            } else if (kind == ATTENTION) {
                stages.back().works.push_back({STORE, i});
                alone(ATTENTION, i);
                stages.back().works.push_back({JOIN, i});
            } else {
                stages.back().works.push_back({kind, i});
            }
        }
        for (Stage& stage : stages) stage.width = common_width(stage);
        for (size_t i = 0; i + 1 < stages.size(); i++) stages[i].can_fuse = can_fuse(stages[i], stages[i + 1]);
    }

    bool can_fuse(const Stage& stage, const Stage& next) const {
        if (!stage.is(LINEAR) || next.works.size() != 2 || next.works[1].kind != ROUND) return false;
        const Operation &linear = operations[stage.works[0].operation], &activation = operations[next.works[0].operation],
                        &reader = operations[next.works[1].operation];
        if (activation.kind < SILU || activation.kind > GELU_TANH || reader.inputs[0] != activation.output) return false;
        for (const Operation* o : {&linear, &reader})
            for (const Matrix& matrix : o->matrices)
                if (!matrix.packed) return false;
        for (const int32_t input : activation.inputs)
            if (input >= 0 && !columns_of(linear, input).matrix) return false;
        int64_t readers = 0;  // of all that would not be written
        auto is_read = [&](int32_t value) {
            bool is_ours = root(value) == root(activation.output);
            for (const Matrix& matrix : linear.matrices) is_ours = is_ours || root(value) == root(matrix.out);
            readers += is_ours;
        };
        is_read(result);
        for (const Operation& o : operations)
            for (const int32_t input : o.inputs)
                if (input >= 0) is_read(input);
        return readers == 1 + (activation.inputs[0] >= 0) + (activation.inputs[1] >= 0);
    }

    int64_t common_width(const Stage& stage) const {
        int64_t width = 0;
        for (const Stage::Work& work : stage.works) {
            const Operation& o = operations[work.operation];
            const int64_t own = values[work.kind == ROUND ? o.inputs[0] : o.output].width;
            if (!is_elementwise(work.kind) || (width && own != width)) return 0;
            width = own;
        }
        return width;
    }

    // True if this piece of work writes its operation's output.
    bool makes(const Stage::Work& work) const {
        const Operation& o = operations[work.operation];
        return o.output >= 0 && (o.kind == ATTENTION ? work.kind == JOIN : work.kind == o.kind);
    }

    // Gives each value a buffer; a buffer is free again after the stage of its value's last reader.
    void give_buffers() {
        const int64_t count = static_cast<int64_t>(stages.size());
        std::vector<int64_t> last(values.size(), -1);
        for (int64_t i = 0; i < count; i++)
            for (const Stage::Work& work : stages[i].works)
                for (const int32_t read : operations[work.operation].inputs)
                    if (read >= 0) last[root(read)] = i;
        last[root(result)] = count;
        std::vector<int32_t> free;
        auto give = [&](int32_t value) {
            Value& v = values[value];
            int32_t chosen = -1;
            for (const int32_t buffer : free)
                if (chosen < 0 || std::abs(buffer_widths[buffer] - v.stride) < std::abs(buffer_widths[chosen] - v.stride)) chosen = buffer;
            if (chosen < 0) {
                chosen = static_cast<int32_t>(buffer_widths.size());
                buffer_widths.push_back(0);
            } else {
                free.erase(std::find(free.begin(), free.end(), chosen));
            }
            buffer_widths[chosen] = std::max(buffer_widths[chosen], v.stride);
            v.buffer = chosen;
        };
        if (input >= 0) give(input);
        for (int64_t i = 0; i < count; i++) {
            for (const Stage::Work& work : stages[i].works) {
                const Operation& operation = operations[work.operation];
                if (work.kind == LINEAR)
                    for (const Matrix& matrix : operation.matrices) give(matrix.out);
                else if (makes(work))
                    give(operation.output);
            }
            for (size_t value = 0; value < values.size(); value++)
                if (last[value] == i && values[value].parent < 0) free.push_back(values[value].buffer);
        }
        for (size_t value = 0; value < values.size(); value++)
            if (values[value].parent >= 0) values[value].buffer = values[root(static_cast<int32_t>(value))].buffer;
        buffers = std::vector<Buffer<float>>(buffer_widths.size());
    }
};

}  // namespace loramux
