// Products in float32: matrices are unpacked row by row; sixteen lanes along the columns for every element.
#pragma once
#include "products.h"

namespace loramux {

// y[m, n] for MR rows of x and NR rows of w; each element has its own lanes, whatever MR and NR.
template <int MR, int NR>
void float_tile(const float* x, int64_t x_stride, const float* w, int64_t length, float* y, int64_t y_stride) {
    Vector totals[MR][NR] = {};
    for (int64_t k = 0; k < length; k += LANES) {
        Vector wv[NR];
        for (int n = 0; n < NR; n++) wv[n] = load(w + n * length + k);
        for (int m = 0; m < MR; m++) {
            const Vector xv = load(x + m * x_stride + k);
            for (int n = 0; n < NR; n++) totals[m][n] = fma(xv, wv[n], totals[m][n]);
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) y[m * y_stride + n] = sum(totals[m][n]);
}

// Four outputs first.. for rows row..end: unpacks four rows of the matrix. Columns are a multiple of 16.
inline void float_product(int32_t type, const uint8_t* w, int64_t row_bytes, int64_t columns, int64_t first, int count,
                          const float* x, int64_t x_stride, int64_t row, int64_t end, const Output& output) {
    static thread_local Buffer<float> unpacked;
    const int64_t length = columns;
    float* rows = unpacked.reserve(4 * length);
    for (int n = 0; n < count; n++) unpack_row(type, w + (first + n) * row_bytes, columns, rows + n * length);
    auto put = [&](int64_t row, const float* values) {
        for (int n = 0; n < count; n++)
            output.y[row * output.stride + first + n] = output.bias ? values[n] + output.bias[first + n] : values[n];
    };
    float results[4 * 4];
    for (; end - row >= 4; row += 4) {
        float_tile<4, 4>(x + row * x_stride, x_stride, rows, length, results, 4);
        for (int m = 0; m < 4; m++) put(row + m, results + 4 * m);
    }
    for (; row < end; row++) {
        float_tile<1, 4>(x + row * x_stride, x_stride, rows, length, results, 4);
        put(row, results);
    }
}

}  // namespace loramux
