// Moments of a direction under a distribution that is tilted along it; formula and layout in tilted_moments.py.
#include <math.h>
#include <stddef.h>

#include "vectors.h"

#define BLOCK 1024  // floats that are summed in float32 before they are added up in float64

typedef struct {
  double mass, first, second, third;  // sum of w * x^k
} Sums;

static inline f32x16 maximum(f32x16 a, f32x16 b) { return pick(a > b, a, b); }

// The last few floats of a row, filled up.
static f32x16 load_rest(const float *p, int64_t count, float fill) {
  f32x16 v = (f32x16){} + fill;
  for (int64_t i = 0; i < count; i++) v[i] = p[i];
  return v;
}

static inline void add_block(const float *base, const float *push, int64_t count, float alpha, float top, Sums *sums) {
  f32x16 mass = {}, first = {}, second = {}, third = {};
  for (int64_t i = 0; i < count; i += LANES) {
    const int whole = count - i >= LANES;
    const f32x16 x = whole ? load16(push + i) : load_rest(push + i, count - i, 0.0f);
    const f32x16 y = whole ? load16(base + i) : load_rest(base + i, count - i, -INFINITY);
    const f32x16 w = exp16(y + alpha * x - top);
    const f32x16 wx = w * x, wxx = wx * x;
    mass += w, first += wx, second += wxx, third += wxx * x;
  }
  sums->mass += sum16(mass), sums->first += sum16(first), sums->second += sum16(second), sums->third += sum16(third);
}

static float largest(const float *base, const float *push, int64_t vocab, float alpha) {
  f32x16 top = (f32x16){} - INFINITY;
  int64_t i = 0;
  for (; i + LANES <= vocab; i += LANES) top = maximum(load16(base + i) + alpha * load16(push + i), top);
  if (i < vocab) top = maximum(load_rest(base + i, vocab - i, -INFINITY) + alpha * load_rest(push + i, vocab - i, 0.0f), top);
  float found = top[0];
  for (int lane = 1; lane < LANES; lane++) found = top[lane] > found ? top[lane] : found;
  return found;
}

static void moments(const float *base, const float *push, int64_t vocab, float alpha, float *out) {
  const float top = largest(base, push, vocab, alpha);
  Sums sums = {0};
  for (int64_t i = 0; i < vocab; i += BLOCK)
    add_block(base + i, push + i, vocab - i < BLOCK ? vocab - i : BLOCK, alpha, top, &sums);
  const double mean = sums.first / sums.mass, second = sums.second / sums.mass, third = sums.third / sums.mass;
  out[0] = (float)(top + log(sums.mass));
  out[1] = (float)mean;
  out[2] = (float)(second - mean * mean);
  out[3] = (float)(third - 3 * mean * second + 2 * mean * mean * mean);
}

// base [rows, vocab], push [rows, directions, vocab], alpha [rows, directions, points], out [.., points, 4].
void tilted_moments(const float *base, const float *push, const float *alpha, float *out, int64_t rows,
                    int64_t directions, int64_t points, int64_t vocab, int32_t threads) {
  const int64_t count = rows * directions * points;
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 1 && threads > 1)
  for (int64_t i = 0; i < count; i++) {
    const int64_t direction = i / points, row = direction / directions;
    moments(base + row * vocab, push + direction * vocab, vocab, alpha[i], out + 4 * i);
  }
}
