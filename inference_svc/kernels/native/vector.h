// Sixteen floats at a time, and what is built from them. The order of every sum is part of the definition: results do not
// depend on how many rows are computed together, nor on the number of threads. The compiler may not contract a product and
// a sum by itself (-ffp-contract=off); where one rounding is wanted, `fma` says so.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace loramux {

constexpr int LANES = 16;
typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4)));
typedef uint16_t half_t;  // bits of an IEEE half

inline Vector load(const float* p) {
    Vector value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

inline void store(float* p, Vector value) { std::memcpy(p, &value, sizeof value); }

inline Vector splat(float value) { return value - Vector{}; }  // x - 0 is x, also of -0: the compiler leaves it out, not x + 0

// Calls work(N) for as many of first..end at once as N says: MOST as long as there are, then what is left.
//
// For work whose sums are to stay in registers: they do so only if N is known when it is compiled, and every loop over them
// is unrolled (#pragma GCC unroll); otherwise gcc 12 stores them on every turn.
template <int MOST, typename Work>
void in_groups(int64_t& first, int64_t end, const Work& work) {
    for (; end - first >= MOST; first += MOST) work(std::integral_constant<int, MOST>());
    if constexpr (MOST > 1) in_groups<MOST - 1>(first, end, work);
}

#if defined(__AVX512F__)
inline Vector fma(Vector a, Vector b, Vector c) { return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline Vector largest(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vector smallest(Vector a, Vector b) { return (Vector)_mm512_min_ps((__m512)a, (__m512)b); }
inline Vector load_half(const half_t* p) {
    return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(half_t* p, Vector value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
struct Halves {  // of a vector
    __m256 low, high;
};
inline Halves halves(Vector v) {
    Halves result;
    std::memcpy(&result, &v, sizeof result);
    return result;
}
inline Vector whole(__m256 low, __m256 high) {
    const Halves parts = {low, high};
    Vector v;
    std::memcpy(&v, &parts, sizeof v);
    return v;
}
inline Vector fma(Vector a, Vector b, Vector c) {
    const Halves x = halves(a), y = halves(b), z = halves(c);
    return whole(_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high));
}
inline Vector largest(Vector a, Vector b) {
    const Halves x = halves(a), y = halves(b);
    return whole(_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high));
}
inline Vector smallest(Vector a, Vector b) {
    const Halves x = halves(a), y = halves(b);
    return whole(_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high));
}
inline Vector load_half(const half_t* p) {
    const __m128i* halves_at = reinterpret_cast<const __m128i*>(p);
    return whole(_mm256_cvtph_ps(_mm_loadu_si128(halves_at)), _mm256_cvtph_ps(_mm_loadu_si128(halves_at + 1)));
}
inline void store_half(half_t* p, Vector value) {
    const Halves x = halves(value);
    __m128i* halves_at = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(halves_at, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves_at + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
inline Vector largest(Vector a, Vector b) { return a > b ? a : b; }
inline Vector smallest(Vector a, Vector b) { return a < b ? a : b; }
inline Vector load_half(const half_t* p) {
    Vector value;
    for (int i = 0; i < LANES; i++) {
        _Float16 half;
        std::memcpy(&half, p + i, sizeof half);
        value[i] = static_cast<float>(half);
    }
    return value;
}
inline void store_half(half_t* p, Vector value) {
    for (int i = 0; i < LANES; i++) {
        const _Float16 half = static_cast<_Float16>(value[i]);
        std::memcpy(p + i, &half, sizeof half);
    }
}
#endif

inline Vector load_any(const float* p) { return load(p); }
inline Vector load_any(const half_t* p) { return load_half(p); }

inline float half_at(const void* p) {
    _Float16 value;
    std::memcpy(&value, p, sizeof value);
    return static_cast<float>(value);
}

inline float number_at(const float* p) { return *p; }
inline float number_at(const half_t* p) { return half_at(p); }

inline half_t to_half(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    half_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

#if defined(__AVX512F__)
// The same tree of sums as below.
inline float sum(Vector v) { return _mm512_reduce_add_ps((__m512)v); }
inline float largest_of(Vector v) { return _mm512_reduce_max_ps((__m512)v); }
#else
inline float sum(Vector v) {
    float half[LANES];
    store(half, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) half[i] += half[i + width];
    return half[0];
}

inline float largest_of(Vector v) {
    float half[LANES];
    store(half, v);
    for (int i = 1; i < LANES; i++) half[0] = std::fmax(half[0], half[i]);
    return half[0];
}
#endif

// e^x to about 2 units in the last place: 2^n times a polynomial for the rest (Cephes' expf coefficients).
inline Vector exp(Vector x) {
    x = smallest(largest(x, splat(-87.33654f)), splat(88.37626f));
    const Vector shifted = fma(x, splat(1.44269504f), splat(12582912.0f));  // 1.5 * 2^23: rounds to a whole number
    const Vector whole = shifted - 12582912.0f;
    Vector rest = fma(whole, splat(-0.693359375f), x);
    rest = fma(whole, splat(2.12194440e-4f), rest);
    Vector p = splat(1.9875691500e-4f);
    p = fma(p, rest, splat(1.3981999507e-3f));
    p = fma(p, rest, splat(8.3334519073e-3f));
    p = fma(p, rest, splat(4.1665795894e-2f));
    p = fma(p, rest, splat(1.6666665459e-1f));
    p = fma(p, rest, splat(5.0000001201e-1f));
    p = fma(p * rest, rest, rest + 1.0f);
    Integers bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4B400000 + 127) << 23;
    Vector scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

inline Vector tanh(Vector x) {
    const Vector e = exp(x * 2.0f);
    return (e - 1.0f) / (e + 1.0f);
}

}  // namespace loramux
