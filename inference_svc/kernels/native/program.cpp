// The plain C interface of the compiled code.
#include <memory>

#include "program.h"
#include "runner.h"

using namespace loramux;

extern "C" {

// What all programs of a model share.
struct Library {
    Library(int num_threads, bool invariant) : threads(num_threads), invariant(invariant) {}
    Threads threads;
    const bool invariant;  // no row's arithmetic depends on the other rows
    Arena arena;
    std::vector<std::unique_ptr<Packed>> packed;
};

int32_t lx_has_wide_products() { return has_wide_products(); }
Library* lx_library(int32_t num_threads, int32_t invariant) { return new Library(num_threads, invariant); }
void lx_library_free(Library* library) { delete library; }
int64_t lx_packed_bytes(const Library* library) { return static_cast<int64_t>(library->arena.total()); }

// Null if a scale does not fit; the caller then multiplies in float32.
Packed* lx_pack(Library* library, int32_t type, const uint8_t* data, int64_t rows, int64_t columns) {
    auto packed = std::make_unique<Packed>();
    if (!pack(library->threads, library->arena, type, data, rows, columns, *packed)) return nullptr;
    library->packed.push_back(std::move(packed));
    return library->packed.back().get();
}

// Memory in large pages, for what the caller keeps.
void* lx_allocate(int64_t bytes) { return allocate(static_cast<size_t>(std::max<int64_t>(bytes, LARGE_PAGE))); }
void lx_release(void* memory) { std::free(memory); }

Program* lx_program() { return new Program(); }
void lx_program_free(Program* program) { delete program; }

int32_t lx_input(Program* program, int64_t width) { return program->input = program->new_value(width); }

int32_t lx_embed(Program* program, int32_t type, const uint8_t* data, int64_t row_bytes, int64_t width, float scale) {
    Operation o(EMBED);
    o.table.type = type, o.table.data = data, o.table.row_bytes = row_bytes, o.table.in_features = width;
    o.number = scale;
    o.output = program->new_value(width);
    program->operations.push_back(o);
    return o.output;
}

int32_t lx_linear(Program* program, int32_t x, int64_t index, int32_t type, const uint8_t* data, int64_t row_bytes,
                  int64_t out_features, const Packed* packed, const float* bias) {
    const int32_t out = program->new_value(out_features);
    const Matrix matrix{type, data, out_features, program->values[x].width, row_bytes, packed, bias, index, out};
    // Linear layers that read the same value one after the other are one operation.
    auto& operations = program->operations;
    if (!operations.empty() && operations.back().kind == LINEAR && operations.back().inputs[0] == x &&
        static_cast<int64_t>(operations.back().matrices.size()) < MOST_MATRICES) {
        operations.back().matrices.push_back(matrix);
        return out;
    }
    Operation o(LINEAR);
    o.inputs[0] = x;
    o.matrices.push_back(matrix);
    operations.push_back(o);
    return out;
}

int32_t lx_norm(Program* program, int32_t x, int32_t kind, const float* weight, const float* bias, float eps) {
    Operation o(kind);
    o.inputs[0] = x, o.weight = weight, o.bias = bias, o.number = eps;
    o.output = program->new_value(program->values[x].width);
    program->operations.push_back(o);
    return o.output;
}

int32_t lx_split(Program* program, int32_t x, int64_t first, int64_t width) {
    const int32_t part = program->new_value(width);
    program->values[part].parent = x;
    program->values[part].stride = program->values[x].stride;
    program->values[part].offset = program->values[x].offset + first;
    return part;
}

int32_t lx_rotary(Program* program, int32_t x, const float* cosines, const float* sines, int64_t half, int64_t head_dim) {
    Operation o(ROTARY);
    o.inputs[0] = x, o.cosines = cosines, o.sines = sines, o.half = half, o.head_dim = head_dim;
    o.output = program->new_value(program->values[x].width);
    program->operations.push_back(o);
    return o.output;
}

int32_t lx_attention(Program* program, int32_t q, int32_t k, int32_t v, int64_t layer, const AttentionShape* shape) {
    Operation o(ATTENTION);
    o.inputs[0] = q, o.inputs[1] = k, o.inputs[2] = v, o.layer = layer, o.shape = *shape;
    o.output = program->new_value(program->values[q].width);
    program->operations.push_back(o);
    return o.output;
}

// An activation of x, times y if y >= 0; a sum; a soft cap.
int32_t lx_elementwise(Program* program, int32_t kind, int32_t x, int32_t y, float number) {
    Operation o(kind);
    o.inputs[0] = x, o.inputs[1] = y, o.number = number;
    o.output = program->new_value(program->values[x].width);
    program->operations.push_back(o);
    return o.output;
}

void lx_finish(Program* program, int32_t result) { program->finish(result); }

// 1 if there is not enough memory for so many rows; nothing has run then.
int32_t lx_run(Program* program, Library* library, const Pass* pass) {
    Runner runner(*program, library->threads, *pass, library->invariant);
    try {
        runner.prepare();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    library->threads.run([&](int thread) { runner.run(thread); });
    return 0;
}

// The products alone, for tests: y [num_rows, rows of packed], by the products of few rows or by those of many that a scaling
// pass or the rest has. 0 where the processor has no such products.
int32_t lx_product(Library* library, const Packed* packed, const float* x, int64_t num_rows, float* y, int32_t kind) {
    enum { ROUNDED, WIDE, INT16 };
    if (kind != ROUNDED && !has_wide_products()) return 0;
    const int64_t stride = packed->tiles * LANES;
    Buffer<float> whole;  // blocks and tiles
    whole.reserve(whole_blocks(num_rows) * stride);
    Rounded rounded;
    Wide wide;
    Int16 int16;
    rounded.reserve(num_rows, packed->steps);
    wide.reserve(num_rows, packed->steps);
    int16.reserve(num_rows, packed->steps);
    for (int64_t row = 0; row < num_rows; row++) {
        const float* numbers = x + row * packed->columns;
        round_steps(packed->bits, numbers, row, 0, packed->steps, rounded);
        widen_steps(numbers, row, 0, packed->steps, wide);
        round_row_to_int16(numbers, packed->columns, row, int16);
    }
    const Output output{whole.data(), stride, nullptr};
    library->threads.run([&](int) {
        kind == ROUNDED ? begin_matrix_tiles() : begin_wide_tiles();
        library->threads.share((packed->tiles + 1) / 2, 1, [&](int64_t first, int64_t end) {
            for (int64_t tile = 2 * first; tile < std::min(2 * end, packed->tiles); tile++) {
                if (kind == ROUNDED) rounded_product_tile(*packed, tile, rounded, 0, num_rows, output);
                if (kind == WIDE && tile % 2 == 0) wide_product(*packed, tile, wide, 0, num_rows, MoreSteps(), output);
                if (kind == INT16) int16_product(*packed, tile, int16, 0, num_rows, output);
            }
        });
        end_matrix_tiles();
    });
    for (int64_t row = 0; row < num_rows; row++)
        std::memcpy(y + row * packed->rows, whole.data() + row * stride, packed->rows * sizeof(float));
    return 1;
}
}
