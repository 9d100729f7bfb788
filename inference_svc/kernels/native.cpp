// Products and attention on the CPU in float32, over packed weights. Plain C interface, no dependency but OpenMP.
//
// Every output element is computed by one thread, in an order that follows from the reduction length alone: it does not
// depend on how many rows there are, on where its row stands, or on the number of threads. That is what makes these kernels
// batch-invariant, so keep it when changing them: no splitting of a reduction, the same lanes for every row.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

// Type numbers of the GGUF file format.
enum Type : int32_t { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, BF16 = 30 };

float half_at(const uint8_t* p) {
    _Float16 value;
    std::memcpy(&value, p, sizeof value);
    return static_cast<float>(value);
}

Vector load(const float* p) {
    Vector value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

float sum(const Vector& v) {
    float half[LANES];
    std::memcpy(half, &v, sizeof half);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) half[i] += half[i + width];
    return half[0];
}

// One row of a packed weight as float32; the same arithmetic as the reference, block by block.
void unpack_row(const uint8_t* row, int32_t type, int64_t columns, float* out) {
    if (type == F32) {
        std::memcpy(out, row, columns * sizeof(float));
    } else if (type == F16) {
        for (int64_t i = 0; i < columns; i++) out[i] = half_at(row + 2 * i);
    } else if (type == BF16) {
        for (int64_t i = 0; i < columns; i++) {
            uint16_t bits;
            std::memcpy(&bits, row + 2 * i, 2);
            const uint32_t wide = static_cast<uint32_t>(bits) << 16;
            std::memcpy(out + i, &wide, 4);
        }
    } else {
        for (int64_t block = 0; block < columns / 32; block++, out += 32) {
            if (type == Q8_0) {
                const float scale = half_at(row);
                const int8_t* values = reinterpret_cast<const int8_t*>(row + 2);
                for (int i = 0; i < 32; i++) out[i] = scale * static_cast<float>(values[i]);
                row += 34;
                continue;
            }
            const bool has_minimum = type == Q4_1 || type == Q5_1;
            const bool has_high_bits = type == Q5_0 || type == Q5_1;
            const float scale = half_at(row);
            const float minimum = has_minimum ? half_at(row + 2) : 0.0f;
            row += has_minimum ? 4 : 2;
            uint32_t high = 0;
            if (has_high_bits) {
                std::memcpy(&high, row, 4);
                row += 4;
            }
            const int zero = has_minimum ? 0 : (has_high_bits ? 16 : 8);
            for (int i = 0; i < 16; i++) {
                int low_value = row[i] & 15, high_value = row[i] >> 4;
                if (has_high_bits) {
                    low_value |= ((high >> i) & 1) << 4;
                    high_value |= ((high >> (i + 16)) & 1) << 4;
                }
                out[i] = scale * static_cast<float>(low_value - zero);
                out[i + 16] = scale * static_cast<float>(high_value - zero);
            }
            if (has_minimum)
                for (int i = 0; i < 32; i++) out[i] = out[i] + minimum;
            row += 16;
        }
    }
}

// y[m, n] for MR rows of x and NR rows of w; each element has its own lanes, summed in the same order whatever MR and NR.
template <int MR, int NR>
void tile(const float* x, const float* w, int64_t length, float* y, int64_t y_stride) {
    Vector sums[MR][NR] = {};
    for (int64_t k = 0; k < length; k += LANES) {
        Vector wv[NR];
        for (int n = 0; n < NR; n++) wv[n] = load(w + n * length + k);
        for (int m = 0; m < MR; m++) {
            const Vector xv = load(x + m * length + k);
            for (int n = 0; n < NR; n++) sums[m][n] += xv * wv[n];
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) y[m * y_stride + n] = sum(sums[m][n]);
}

template <int NR>
void columns(const float* x, int64_t num_rows, const float* w, int64_t length, float* y, int64_t y_stride) {
    int64_t m = 0;
    for (; m + 4 <= num_rows; m += 4) tile<4, NR>(x + m * length, w, length, y + m * y_stride, y_stride);
    for (; m < num_rows; m++) tile<1, NR>(x + m * length, w, length, y + m * y_stride, y_stride);
}

}  // namespace

extern "C" {

// y[num_rows, out_features] = x[num_rows, in_features] times the transpose of w[out_features, in_features].
void loramux_linear(const float* x, int64_t num_rows, int64_t in_features, const uint8_t* w, int32_t type,
                    int64_t row_bytes, int64_t out_features, float* y) {
    const int64_t length = (in_features + LANES - 1) / LANES * LANES;
    std::vector<float> padded;
    if (length != in_features) {
        padded.assign(num_rows * length, 0.0f);
        for (int64_t m = 0; m < num_rows; m++)
            std::memcpy(&padded[m * length], x + m * in_features, in_features * sizeof(float));
        x = padded.data();
    }
    const int64_t groups = (out_features + 3) / 4;
#pragma omp parallel if (num_rows * in_features * out_features > 65536)
    {
        std::vector<float> rows(4 * length, 0.0f);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups; group++) {
            const int64_t first = group * 4, count = std::min<int64_t>(4, out_features - first);
            for (int64_t n = 0; n < count; n++)
                unpack_row(w + (first + n) * row_bytes, type, in_features, &rows[n * length]);
            if (count == 4)
                columns<4>(x, num_rows, rows.data(), length, y + first, out_features);
            else
                for (int64_t n = 0; n < count; n++)
                    columns<1>(x, num_rows, &rows[n * length], length, y + first + n, out_features);
        }
    }
}

// Causal grouped-query attention of one segment: queries [num_rows, num_heads, head_dim] at first_position.. over one layer's
// keys and values [num_blocks, block_size, num_kv_heads, head_dim]; head_dim is a multiple of 16.
void loramux_attention(const float* queries, int64_t num_rows, int64_t first_position, int64_t num_heads,
                       int64_t num_kv_heads, int64_t head_dim, const float* keys, const float* values,
                       const int64_t* blocks, int64_t block_size, float scale, float* output) {
    const int64_t group = num_heads / num_kv_heads;
#pragma omp parallel if (num_rows * (first_position + num_rows) > 256)
    {
        std::vector<float> scores(first_position + num_rows);
#pragma omp for schedule(dynamic, 4)
        for (int64_t item = 0; item < num_rows * num_heads; item++) {
            const int64_t row = item / num_heads, head = item % num_heads, kv_head = head / group;
            const int64_t length = first_position + row + 1;
            const float* q = queries + item * head_dim;
            auto slot = [&](int64_t position) {
                const int64_t token = blocks[position / block_size] * block_size + position % block_size;
                return (token * num_kv_heads + kv_head) * head_dim;
            };
            float largest = -INFINITY;
            for (int64_t position = 0; position < length; position++) {
                const float* k = keys + slot(position);
                Vector dot = {};
                for (int64_t d = 0; d < head_dim; d += LANES) dot += load(q + d) * load(k + d);
                scores[position] = sum(dot) * scale;
                largest = std::max(largest, scores[position]);
            }
            float total = 0.0f;
            for (int64_t position = 0; position < length; position++) {
                scores[position] = std::exp(scores[position] - largest);
                total += scores[position];
            }
            float* out = output + item * head_dim;
            std::fill(out, out + head_dim, 0.0f);
            for (int64_t position = 0; position < length; position++) {
                const float weight = scores[position] / total;
                const float* v = values + slot(position);
                for (int64_t d = 0; d < head_dim; d++) out[d] += weight * v[d];
            }
        }
    }
}
}
