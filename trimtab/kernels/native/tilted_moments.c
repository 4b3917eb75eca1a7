// Moments of a direction under a distribution that is tilted along it; formula and layout in tilted_moments.py.
#include <math.h>
#include <stddef.h>

#include "vectors.h"

#define BLOCK 1024  // floats that are summed in float32 before they are added up in float64

typedef struct {
  double mass, first, second, third;  // sum of w * x^k
} Sums;

// The last few floats of a row, filled up.
static f32x16 load_rest(const float *p, int64_t count, float fill) {
  f32x16 v = (f32x16){} + fill;
  for (int64_t i = 0; i < count; i++) v[i] = p[i];
  return v;
}

typedef struct {
  f32x16 mass, first, second, third;
} Lanes;

static inline void add(f32x16 base, f32x16 push, float alpha, float top, Lanes *lanes) {
  const f32x16 w = exp16(base + alpha * push - top), wx = w * push, wxx = wx * push;
  lanes->mass += w, lanes->first += wx, lanes->second += wxx, lanes->third += wxx * push;
}

static inline void add_block(const float *base, const float *push, int64_t count, float alpha, float top, Sums *sums) {
  Lanes lanes = {0};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) add(load16(base + i), load16(push + i), alpha, top, &lanes);
  if (i < count)
    add(load_rest(base + i, count - i, -INFINITY), load_rest(push + i, count - i, 0.0f), alpha, top, &lanes);
  sums->mass += sum16(lanes.mass), sums->first += sum16(lanes.first);
  sums->second += sum16(lanes.second), sums->third += sum16(lanes.third);
}

static float largest(const float *base, const float *push, int64_t vocab, float alpha) {
  f32x16 top = (f32x16){} - INFINITY, other = top;
  int64_t i = 0;
  for (; i + 2 * LANES <= vocab; i += 2 * LANES) {
    top = larger(top, load16(base + i) + alpha * load16(push + i));
    other = larger(other, load16(base + i + LANES) + alpha * load16(push + i + LANES));
  }
  for (; i < vocab; i += LANES) {
    const int64_t rest = vocab - i < LANES ? vocab - i : LANES;
    other = larger(other, load_rest(base + i, rest, -INFINITY) + alpha * load_rest(push + i, rest, 0.0f));
  }
  top = larger(top, other);
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
