// What is done to a row by itself: everything but products with matrices and attention.
#pragma once
#include "program.h"
#include "wide_attention.h"

namespace loramux {

class RowWorks {
  public:
    RowWorks(Program& program, const Pass& pass, bool invariant) : p(program), pass(pass), invariant(invariant) {}

    // One piece of work on one row: its columns first..end, where it is cut.
    void run_row(const Stage::Work& work, int64_t row, int64_t first, int64_t end) {
        const Operation& o = p.operations[work.operation];
        switch (work.kind) {
            case EMBED: return embed(o, row);
            case RMS_NORM: case LAYER_NORM: return norm(o, row);
            case ROTARY: return rotary(o, row);
            case ROUND: return round(o, row, first, end);
            case STORE: return store_keys_and_values(o, row);
            case JOIN: return join(o, row);
            default: return elementwise(o, row, first, end);
        }
    }

  protected:
    Program& p;
    const Pass& pass;
    const bool invariant;

    float* row_of(int32_t value, int64_t row) { return p.at(value) + row * p.values[value].stride; }

    // In the invariant mode what a row is decides, not how many there are.
    bool is_wide() const {
        if (keeps_more() || !has_wide_products()) return false;
        return invariant ? pass.is_of_prompts : pass.num_rows >= ROWS_FOR_WIDE;
    }

    bool is_int16() const {
        return pass.num_rows >= ROWS_FOR_INT16 && !invariant && keeps_more() && has_wide_products() && p.most_steps <= MOST_INT16_STEPS;
    }

    static Vector activated(Kind kind, Vector x) {
        if (kind == SILU) return x / (exp(-x) + 1.0f);
        if (kind == GELU_TANH) return x * 0.5f * (tanh((x + x * x * x * 0.044715f) * 0.7978845608028654f) + 1.0f);
        Vector result;
        for (int i = 0; i < LANES; i++) result[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.7071067811865476f));
        return result;
    }

    // Activations of x, times y if there is one.
    static void activate(Kind kind, const float* x, const float* y, int64_t count, float* out) {
        for (int64_t i = 0; i < count; i += LANES) {
            const Vector value = activated(kind, load(x + i));
            store(out + i, y ? value * load(y + i) : value);
        }
    }

  private:
    // A program with an input is the head: what bfloat16 loses would be lost in the logits at once. Of a scaling pass, more of
    // the scalings would be lost than is promised.
    bool keeps_more() const { return pass.has_scaling_pass || p.input >= 0; }

    void embed(const Operation& o, int64_t row) {
        float* out = row_of(o.output, row);
        unpack_row(o.table.type, o.table.data + pass.token_ids[row] * o.table.row_bytes, o.table.in_features, out);
        if (o.number != 1.0f)
            for (int64_t i = 0; i < o.table.in_features; i++) out[i] *= o.number;
    }

    void norm(const Operation& o, int64_t row) {
        const int64_t width = p.values[o.output].width;
        const float* x = row_of(o.inputs[0], row);
        float* out = row_of(o.output, row);
        float mean = 0.0f;
        if (o.kind == LAYER_NORM) {
            Vector total = {};
            for (int64_t i = 0; i < width; i += LANES) total += load(x + i);
            mean = sum(total) / static_cast<float>(width);
        }
        Vector squares = {};
        for (int64_t i = 0; i < width; i += LANES) {
            const Vector centered = load(x + i) - mean;
            squares = fma(centered, centered, squares);
        }
        const float factor = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + o.number);
        for (int64_t i = 0; i < width; i += LANES) {
            const Vector y = (load(x + i) - mean) * factor * load(o.weight + i);
            store(out + i, o.bias ? y + load(o.bias + i) : y);
        }
    }

    void rotary(const Operation& o, int64_t row) {
        const float* cosines = o.cosines + pass.positions[row] * o.half;
        const float* sines = o.sines + pass.positions[row] * o.half;
        const float* x = row_of(o.inputs[0], row);
        float* out = row_of(o.output, row);
        for (int64_t head = 0; head < p.values[o.output].width; head += o.head_dim, x += o.head_dim, out += o.head_dim) {
            for (int64_t i = 0; i < o.half; i++) {
                const float a = x[i], b = x[i + o.half];
                out[i] = a * cosines[i] - b * sines[i];
                out[i + o.half] = b * cosines[i] + a * sines[i];
            }
            for (int64_t i = 2 * o.half; i < o.head_dim; i++) out[i] = x[i];
        }
    }

    void elementwise(const Operation& o, int64_t row, int64_t first, int64_t end) {
        const float* x = row_of(o.inputs[0], row);
        const float* y = o.inputs[1] < 0 ? nullptr : row_of(o.inputs[1], row);
        float* out = row_of(o.output, row);
        end = std::min(end, p.values[o.output].width);
        if (o.kind != ADD && o.kind != SOFTCAP) return activate(o.kind, x + first, y ? y + first : nullptr, end - first, out + first);
        for (int64_t i = first; i < end; i += LANES)
            store(out + i, o.kind == ADD ? load(x + i) + load(y + i) : tanh(load(x + i) * (1.0f / o.number)) * o.number);
    }

    void round(const Operation& o, int64_t row, int64_t first, int64_t end) {
        const float* x = row_of(o.inputs[0], row);
        end = std::min(end, o.matrices[0].in_features);
        bool is_read[2] = {false, false};  // 4-bit codes, 8-bit codes
        for (const Matrix& matrix : o.matrices)
            if (matrix.packed) is_read[matrix.packed->bits / 8] = true;
        if (is_wide()) {
            if (is_read[0] || is_read[1]) widen_steps(x, row, first / 32, end / 32, p.wide[0]);
            return;
        }
        if (is_int16()) {
            if (is_read[0] || is_read[1]) round_row_to_int16(x, o.matrices[0].in_features, row, p.int16);
            return;
        }
        for (const int bits : {4, 8})
            if (is_read[bits / 8]) round_steps(bits, x, row, first / 32, end / 32, p.rounded[bits / 8]);
    }

    void store_keys_and_values(const Operation& o, int64_t row) {
        const float *k = row_of(o.inputs[1], row), *v = row_of(o.inputs[2], row);
        const int64_t layer = o.layer * pass.layer_size;
        if (pass.half_cache)
            return write_cache(o.shape, pass.slots[row], k, v, static_cast<half_t*>(pass.keys) + layer, static_cast<half_t*>(pass.values) + layer);
        write_cache(o.shape, pass.slots[row], k, v, static_cast<float*>(pass.keys) + layer, static_cast<float*>(pass.values) + layer);
    }

    void join(const Operation& o, int64_t row) {
        const int64_t partial_size = o.shape.head_dim + 2;
        const QueryTile& tile = p.tiles[p.tile_of_row[row]];
        const int64_t within = row - tile.segment->first_row - tile.first;
        for (int64_t head = 0; head < o.shape.num_heads; head++) {
            const int64_t partial = tile.first_partial + (within * o.shape.num_heads + head) * tile.num_chunks;
            join_chunks(p.partials.data() + partial * partial_size, partial_size, tile.num_chunks, o.shape.head_dim,
                        row_of(o.output, row) + head * o.shape.head_dim);
        }
    }
};

}  // namespace loramux
