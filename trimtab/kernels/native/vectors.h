// Sixteen floats at a time, with GCC/Clang vector types: one AVX-512 register, or several narrower ones.
#pragma once
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 16
typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x16_u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i32x16 __attribute__((vector_size(64)));

#ifdef __AVX512F__
static inline float sum16(f32x16 v) { return _mm512_reduce_add_ps((__m512)v); }
#else
static inline float sum16(f32x16 v) {
  float s = 0;
  for (int i = 0; i < LANES; i++) s += v[i];
  return s;
}
#endif

static inline f32x16 load16(const float *p) { return *(const f32x16_u *)p; }
static inline void store16(float *p, f32x16 v) { *(f32x16_u *)p = v; }

static inline f32x16 pick(i32x16 mask, f32x16 yes, f32x16 no) {
  return (f32x16)(((i32x16)yes & mask) | ((i32x16)no & ~mask));
}

#ifdef __AVX512F__
static inline f32x16 larger(f32x16 a, f32x16 b) { return (f32x16)_mm512_max_ps((__m512)a, (__m512)b); }
static inline f32x16 smaller(f32x16 a, f32x16 b) { return (f32x16)_mm512_min_ps((__m512)a, (__m512)b); }
#else
static inline f32x16 larger(f32x16 a, f32x16 b) { return pick(a > b, a, b); }
static inline f32x16 smaller(f32x16 a, f32x16 b) { return pick(a < b, a, b); }
#endif

// e^x for 16 floats, relative error about 1e-7: 2^n * polynomial(f), Cephes' coefficients.
static inline f32x16 exp16(f32x16 x) {
  const f32x16 low = (f32x16){} - 87.0f, high = (f32x16){} + 88.0f;
  x = smaller(high, larger(low, x));
  // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
  f32x16 n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  x = x - n * 0.693359375f + n * 2.12194440e-4f;
  f32x16 y = x * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * x * x + x + 1.0f;
  return y * (f32x16)((__builtin_convertvector(n, i32x16) + 127) << 23);
}
