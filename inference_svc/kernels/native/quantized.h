// What the bits of GGUF's types mean, and the layout that the products read them in.
//
// Every type becomes codes, small whole numbers, with a scale and a minimum for 16 or 32 neighbours: w = scale * code +
// minimum, or w = scale * (code - zero) where the type has no minimum. Source: `block_*` in llama.cpp's ggml-common.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.h"
#include "threads.h"
#include "vector.h"

namespace loramux {

// Type numbers of the GGUF file format.
enum Type : int32_t {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
    Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23,
    BF16 = 30,
};

struct Coding {
    int bits;      // of a code in the packed layout: 4 or 8; 0: not coded (float types)
    int group;     // neighbours with one scale: 16 or 32
    bool has_min;  // else `zero` is taken from the code
    int zero;
    int block;       // values in a block of the file
    int block_bytes;
};

inline Coding coding_of(int32_t type) {
    switch (type) {
        case Q4_0: return {4, 32, false, 8, 32, 18};
        case Q4_1: return {4, 32, true, 0, 32, 20};
        case Q5_0: return {8, 32, false, 16, 32, 22};
        case Q5_1: return {8, 32, true, 0, 32, 24};
        case Q8_0: return {8, 32, false, 128, 32, 34};
        case Q2_K: return {4, 16, true, 0, 256, 84};
        case Q3_K: return {4, 16, false, 4, 256, 110};
        case Q4_K: return {4, 32, true, 0, 256, 144};
        case Q5_K: return {8, 32, true, 0, 256, 176};
        case Q6_K: return {8, 16, false, 32, 256, 210};
        case IQ4_NL: return {8, 32, false, 128, 32, 18};
        case IQ4_XS: return {8, 32, false, 128, 256, 136};
        default: return {0, 0, false, 0, 1, type == F32 ? 4 : 2};
    }
}

// The values that four bits of an IQ4 type choose from, each 128 more. Source: `kvalues_iq4nl` in ggml-common.h.
constexpr uint8_t IQ4_LEVELS[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// One block of the file: its codes, and scale and minimum of each group.
inline void decode_block(int32_t type, const uint8_t* p, uint8_t* codes, float* scales, float* minima) {
    auto nibbles = [&](const uint8_t* packed) {
        for (int i = 0; i < 16; i++) {
            codes[i] = packed[i] & 15;
            codes[i + 16] = packed[i] >> 4;
        }
    };
    auto fifth_bits = [&](const uint8_t* packed) {
        uint32_t high;
        std::memcpy(&high, packed, 4);
        for (int i = 0; i < 32; i++) codes[i] |= ((high >> i) & 1) << 4;
    };
    auto six_bit_scales = [&](const uint8_t* packed, float scale, float minimum) {
        for (int i = 0; i < 8; i++) {
            const int s = i < 4 ? packed[i] & 63 : (packed[i + 4] & 15) | ((packed[i - 4] >> 6) << 4);
            const int m = i < 4 ? packed[i + 4] & 63 : (packed[i + 4] >> 4) | ((packed[i] >> 6) << 4);
            scales[i] = scale * s;
            minima[i] = -(minimum * m);
        }
    };
    switch (type) {
        case Q4_0: scales[0] = half_at(p); nibbles(p + 2); break;
        case Q4_1: scales[0] = half_at(p); minima[0] = half_at(p + 2); nibbles(p + 4); break;
        case Q5_0: scales[0] = half_at(p); nibbles(p + 6); fifth_bits(p + 2); break;
        case Q5_1: scales[0] = half_at(p); minima[0] = half_at(p + 2); nibbles(p + 8); fifth_bits(p + 4); break;
        case IQ4_NL:
            scales[0] = half_at(p);
            nibbles(p + 2);
            for (int i = 0; i < 32; i++) codes[i] = IQ4_LEVELS[codes[i]];
            break;
        case IQ4_XS: {
            const float scale = half_at(p);
            for (int i = 0; i < 8; i++) {
                const int low = (p[4 + i / 2] >> (i % 2 * 4)) & 15, high = (p[2 + i / 4] >> (i % 4 * 2)) & 3;
                scales[i] = scale * ((low | (high << 4)) - 32);
            }
            for (int i = 0; i < 256; i++) codes[i] = IQ4_LEVELS[(p[8 + i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4)) & 15];
            break;
        }
        case Q8_0:
            scales[0] = half_at(p);
            for (int i = 0; i < 32; i++) codes[i] = static_cast<uint8_t>(p[2 + i] ^ 0x80);  // from signed to 128 more
            break;
        case Q2_K: {
            const float scale = half_at(p + 80), minimum = half_at(p + 82);
            for (int i = 0; i < 16; i++) {
                scales[i] = scale * (p[i] & 15);
                minima[i] = -(minimum * (p[i] >> 4));
            }
            for (int i = 0; i < 256; i++) codes[i] = (p[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
            break;
        }
        case Q3_K: {
            const float scale = half_at(p + 108);
            const uint8_t* packed = p + 96;
            for (int i = 0; i < 16; i++) {
                const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
                const int high = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
                scales[i] = scale * ((low | (high << 4)) - 32);
            }
            for (int i = 0; i < 256; i++) {
                const int low = (p[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
                codes[i] = static_cast<uint8_t>(low | (((p[i % 32] >> (i / 32)) & 1) << 2));
            }
            break;
        }
        case Q4_K:
            six_bit_scales(p + 4, half_at(p), half_at(p + 2));
            for (int group = 0; group < 8; group++)
                for (int i = 0; i < 32; i++) codes[group * 32 + i] = (p[16 + group / 2 * 32 + i] >> (group % 2 * 4)) & 15;
            break;
        case Q5_K:
            six_bit_scales(p + 4, half_at(p), half_at(p + 2));
            for (int group = 0; group < 8; group++)
                for (int i = 0; i < 32; i++) {
                    const int low = (p[48 + group / 2 * 32 + i] >> (group % 2 * 4)) & 15;
                    codes[group * 32 + i] = static_cast<uint8_t>(low | (((p[16 + i] >> group) & 1) << 4));
                }
            break;
        case Q6_K: {
            const float scale = half_at(p + 208);
            for (int i = 0; i < 16; i++) scales[i] = scale * static_cast<int8_t>(p[192 + i]);
            for (int group = 0; group < 8; group++)
                for (int i = 0; i < 32; i++) {
                    const int low = (p[group / 4 * 64 + group % 2 * 32 + i] >> (group % 4 / 2 * 4)) & 15;
                    const int high = (p[128 + group / 4 * 32 + i] >> (group % 4 * 2)) & 3;
                    codes[group * 32 + i] = static_cast<uint8_t>(low | (high << 4));
                }
            break;
        }
    }
}

// One row of a matrix as float32; the same arithmetic as the reference, so equal to the bit.
inline void unpack_row(int32_t type, const uint8_t* row, int64_t columns, float* out) {
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
        const Coding coding = coding_of(type);
        uint8_t codes[256];
        float scales[16], minima[16];
        for (int64_t block = 0; block < columns / coding.block; block++) {
            decode_block(type, row + block * coding.block_bytes, codes, scales, minima);
            for (int i = 0; i < coding.block; i++) {
                const int group = i / coding.group;
                const float value = scales[group] * static_cast<float>(codes[i] - coding.zero);
                *out++ = coding.has_min ? value + minima[group] : value;
            }
        }
    }
}

// A matrix in the order in which the products read it. Sixteen rows make a tile; a tile goes along the columns in steps of
// 32. A step holds the codes, column quad by column quad for all 16 rows (four bytes of a row side by side, as a dot product
// instruction takes them); 4-bit codes share bytes, columns 0-15 below columns 16-31. Then half-precision scales of the 16
// rows (twice for groups of 16), then minima likewise.
struct Packed {
    int64_t rows = 0, columns = 0, tiles = 0, steps = 0;
    int bits = 0;
    bool halves = false;  // groups of 16
    bool has_min = false;
    int zero = 0;
    int exponent = 0;  // of the power of two that brings the largest number to 2^12 or more, and below 2^13
    int64_t step_bytes = 0;
    uint8_t* data = nullptr;  // in the arena

    const uint8_t* tile(int64_t index) const { return data + index * steps * step_bytes; }
    int64_t bytes() const { return tiles * steps * step_bytes; }
};

// True if a number survives as a half nearly as exactly as a code with its scale is.
inline bool fits_half(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    return std::fabs(static_cast<float>(half) - value) <= std::fabs(value) * 0x1p-10f;
}

// Packs a tile of up to 16 rows; returns what no number of it exceeds, infinity if a scale is out of a half's range.
inline float pack_tile(int32_t type, const uint8_t* rows, int64_t row_bytes, int count, const Packed& packed, uint8_t* out) {
    const Coding coding = coding_of(type);
    const int64_t columns = packed.columns;
    const int groups_per_step = 32 / coding.group;
    std::vector<uint8_t> codes(16 * columns, 0);
    std::vector<float> scales(16 * columns / coding.group, 0.0f), minima(16 * columns / coding.group, 0.0f);
    for (int r = 0; r < count; r++)
        for (int64_t block = 0; block < columns / coding.block; block++) {
            const int64_t group = (r * columns + block * coding.block) / coding.group;
            decode_block(type, rows + r * row_bytes + block * coding.block_bytes, &codes[r * columns + block * coding.block],
                         &scales[group], &minima[group]);
        }
    float most = 0.0f;
    for (size_t group = 0; group < scales.size(); group++) {
        if (!fits_half(scales[group]) || !fits_half(minima[group])) return INFINITY;
        const float first = coding.has_min ? minima[group] : scales[group] * -coding.zero;
        most = std::max({most, std::fabs(first), std::fabs(first + scales[group] * ((1 << coding.bits) - 1))});
    }
    for (int64_t step = 0; step < packed.steps; step++, out += packed.step_bytes) {
        for (int r = 0; r < 16; r++) {
            uint32_t quads[8];  // four codes each
            std::memcpy(quads, &codes[r * columns + step * 32], sizeof quads);
            for (int quad = 0; quad < (coding.bits == 8 ? 8 : 4); quad++) {
                const uint32_t bytes = coding.bits == 8 ? quads[quad] : quads[quad] | quads[quad + 4] << 4;
                std::memcpy(out + quad * 64 + r * 4, &bytes, sizeof bytes);
            }
        }
        half_t* numbers = reinterpret_cast<half_t*>(out + (coding.bits == 8 ? 512 : 256));
        for (int half = 0; half < groups_per_step; half++)
            for (int r = 0; r < 16; r++) {
                const int64_t group = (r * columns + step * 32) / coding.group + half;
                numbers[half * 16 + r] = to_half(scales[group]);
                if (coding.has_min) numbers[(groups_per_step + half) * 16 + r] = to_half(minima[group]);
            }
    }
    return most;
}

// Packs rows [rows, columns] of a coded type; false if it cannot be packed (then the float product reads the original).
inline bool pack(Threads& threads, Arena& arena, int32_t type, const uint8_t* data, int64_t rows, int64_t columns, Packed& packed) {
    const Coding coding = coding_of(type);
    if (coding.bits == 0) return false;
    packed.rows = rows;
    packed.columns = columns;
    packed.tiles = (rows + 15) / 16;
    packed.steps = columns / 32;
    packed.bits = coding.bits;
    packed.halves = coding.group == 16;
    packed.has_min = coding.has_min;
    packed.zero = coding.zero;
    packed.step_bytes = (coding.bits == 8 ? 512 : 256) + 32 * (32 / coding.group) * (coding.has_min ? 2 : 1);
    packed.data = arena.take(packed.bytes());
    const int64_t row_bytes = columns / coding.block * coding.block_bytes;
    std::vector<float> most(packed.tiles);
    threads.run([&](int) {
        threads.share(packed.tiles, 4, [&](int64_t first, int64_t end) {
            for (int64_t tile = first; tile < end; tile++) {
                const int count = static_cast<int>(std::min<int64_t>(16, rows - tile * 16));
                uint8_t* out = packed.data + tile * packed.steps * packed.step_bytes;
                most[tile] = pack_tile(type, data + tile * 16 * row_bytes, row_bytes, count, packed, out);
            }
        });
    });
    float largest = 0.0f;
    for (const float value : most) largest = std::max(largest, value);
    if (std::isinf(largest)) return false;
    if (largest > 0.0f) packed.exponent = 12 - std::ilogb(largest);
    return true;
}

}  // namespace loramux
