// Linear layers for few tokens: every product is bound by reading the weights, so each is read from memory once and
// multiplied with all tokens while it is in a cache.
//
// Portable C with GCC/Clang vector types; the int8 dot product uses AVX-512 VNNI where the machine has it.
#include "linear.h"

#include <math.h>
#include <string.h>

// A chunk of ROWS outputs is multiplied with up to TOKENS planes of tokens at a time.

#define TOKENS 8
#define WORDS(in) (((in) + 3) / 4)  // of four input channels

// Tiles are written for a constant number of tokens, so that their accumulators are registers.
#define WITH_CONSTANT(N, CALL)   \
  switch (N) {                   \
    case 1: CALL(1); break;      \
    case 2: CALL(2); break;      \
    case 3: CALL(3); break;      \
    case 4: CALL(4); break;      \
    case 5: CALL(5); break;      \
    case 6: CALL(6); break;      \
    case 7: CALL(7); break;      \
    default: CALL(8);            \
  }
#define INLINE static inline __attribute__((always_inline))

// Lane r of the result: the sum of the lanes of v[r * TOKENS].
#ifdef __AVX512F__
#define LOW32(x, y) (f32x16) _mm512_unpacklo_epi32((__m512i)(x), (__m512i)(y))
#define HIGH32(x, y) (f32x16) _mm512_unpackhi_epi32((__m512i)(x), (__m512i)(y))
#define LOW64(x, y) (f32x16) _mm512_unpacklo_epi64((__m512i)(x), (__m512i)(y))
#define HIGH64(x, y) (f32x16) _mm512_unpackhi_epi64((__m512i)(x), (__m512i)(y))
#define EVEN128(x, y) (f32x16) _mm512_shuffle_i32x4((__m512i)(x), (__m512i)(y), 0x88)
#define ODD128(x, y) (f32x16) _mm512_shuffle_i32x4((__m512i)(x), (__m512i)(y), 0xdd)
static inline f32x16 sum_rows(const f32x16 *v) {
  f32x16 a[8], b[4], c[2];
  for (int i = 0; i < 8; i++) {
    const f32x16 even = v[2 * i * TOKENS], odd = v[(2 * i + 1) * TOKENS];
    a[i] = LOW32(even, odd) + HIGH32(even, odd);
  }
  for (int i = 0; i < 4; i++) b[i] = LOW64(a[2 * i], a[2 * i + 1]) + HIGH64(a[2 * i], a[2 * i + 1]);
  for (int i = 0; i < 2; i++) c[i] = EVEN128(b[2 * i], b[2 * i + 1]) + ODD128(b[2 * i], b[2 * i + 1]);
  return EVEN128(c[0], c[1]) + ODD128(c[0], c[1]);
}
#else
static inline f32x16 sum_rows(const f32x16 *v) {
  f32x16 out = {};
  for (int r = 0; r < LANES; r++)
    for (int i = 0; i < LANES; i++) out[r] += v[r * TOKENS][i];
  return out;
}
#endif

// R <= 2 weight rows times T tokens. `in` is a multiple of LANES (checked by the caller).
INLINE void float_tile(const int R, const int T, const float *w, const float *x, int in, f32x16 *out) {
  f32x16 acc[2][TOKENS];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) acc[r][t] = (f32x16){};
  for (int k = 0; k < in; k += LANES) {
    f32x16 row[2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) row[r] = load16(w + (size_t)r * in + k);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      f32x16 v = load16(x + (size_t)t * in + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][t] += row[r] * v;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) out[r * TOKENS + t] = acc[r][t];
}

// All rows of a chunk times T tokens, two rows at a time so that a token is loaded once for both.
INLINE void float_products_t(const int T, const float *w, const float *x, int rows, int in, f32x16 *out) {
  int r = 0;
  for (; r + 2 <= rows; r += 2) float_tile(2, T, w + (size_t)r * in, x, in, out + r * TOKENS);
  if (r < rows) float_tile(1, T, w + (size_t)r * in, x, in, out + r * TOKENS);
}
static void float_products(int T, const float *w, const float *x, int rows, int in, f32x16 *out) {
#define CALL(T) float_products_t(T, w, x, rows, in, out)
  WITH_CONSTANT(T, CALL)
#undef CALL
}

// The int32 products of a chunk with N planes, exact: sums[plane][half], less what `offset` of the plane says.
#ifdef __AVX512VNNI__
// The instruction multiplies unsigned with signed bytes: packed weights are w + 128, which adds 128 times the sum of
// the plane to every product.
INLINE void int8_tile(const int N, const int8_t *weight, const int8_t *x, int in, i32x16 (*sums)[HALVES]) {
  const __m512i *w = (const __m512i *)weight;
  __m512i acc[TOKENS][HALVES];
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) acc[i][0] = acc[i][1] = _mm512_setzero_si512();
  for (int k = 0; k < WORDS(in); k++, w += HALVES) {
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      int32_t four;
      memcpy(&four, x + 4 * ((size_t)i * WORDS(in) + k), 4);
      acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], w[0], _mm512_set1_epi32(four));
      acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], w[1], _mm512_set1_epi32(four));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; i++) sums[i][0] = (i32x16)acc[i][0], sums[i][1] = (i32x16)acc[i][1];
}
static void int8_products(int n, const int8_t *chunk, const int8_t *x, int rows, int in, i32x16 (*sums)[HALVES]) {
  (void)rows;
#define CALL(N) int8_tile(N, chunk, x, in, sums)
  WITH_CONSTANT(n, CALL)
#undef CALL
}
#else
static inline int32_t int8_dot(const int8_t *a, const int8_t *b, int n) {
  int32_t s = 0;
  int k = 0;
#ifdef __AVX2__
  __m256i acc = _mm256_setzero_si256();
  for (; k + LANES <= n; k += LANES) {
    const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(a + k)));
    const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + k)));
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(v, w));
  }
  int32_t lanes[8];
  memcpy(lanes, &acc, sizeof lanes);
  for (int i = 0; i < 8; i++) s += lanes[i];
#endif
#pragma omp simd reduction(+ : s)
  for (int i = k; i < n; i++) s += (int32_t)a[i] * (int32_t)b[i];
  return s;
}
static void int8_products(int n, const int8_t *chunk, const int8_t *x, int rows, int in, i32x16 (*sums)[HALVES]) {
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < n; i++)
      sums[i][r / LANES][r % LANES] = int8_dot(chunk + (size_t)r * in, x + 4 * (size_t)i * WORDS(in), in);
}
#endif

// Whether int8 weights are to be packed (native/linear.py).
#ifdef __AVX512VNNI__
#define PACKS 1
#else
#define PACKS 0
#endif
int32_t packs_int8(void) { return PACKS; }

// 16 outputs of which the first `rows` exist, any number of them.
static inline f32x16 get(const float *p, int rows) {
  if (rows >= LANES) return load16(p);
  f32x16 v = {};
  for (int r = 0; r < rows; r++) v[r] = p[r];
  return v;
}
static inline void put(float *p, f32x16 v, int rows) {
  if (rows >= LANES)
    store16(p, v);
  else
    for (int r = 0; r < rows; r++) p[r] = v[r];
}

// Tokens a tile: as many as fit, evenly over the tiles.
static inline int tile_tokens(int tokens, int planes) {
  const int most = TOKENS / planes, tiles = (tokens + most - 1) / most;
  return (tokens + tiles - 1) / tiles;
}

// out[t * stride + r] for rows first .. first + rows of a part
static void float_chunk(const Part *p, const float *x, int first, int rows, int in, int tokens, float *out, size_t stride) {
  f32x16 acc[ROWS * TOKENS];
  if (rows < ROWS) memset(acc, 0, sizeof acc);
  const int tile = tile_tokens(tokens, 1);
  for (int t = 0; t < tokens; t += tile) {
    const int T = tokens - t < tile ? tokens - t : tile;
    float_products(T, (const float *)p->weight + (size_t)first * in, x + (size_t)t * in, rows, in, acc);
    for (int half = 0; half < HALVES; half++) {
      const int n = rows - half * LANES;
      const f32x16 bias = p->bias ? get(p->bias + first + half * LANES, n) : (f32x16){};
      for (int i = 0; i < T; i++)
        put(out + (size_t)(t + i) * stride + half * LANES, sum_rows(acc + half * LANES * TOKENS + i) + bias, n);
    }
  }
}

static inline int32_t float_bits(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A sum less its offset; both may have left the range of int32, their difference has not.
static inline f32x16 to_float(i32x16 sum, int32_t offset) {
  typedef uint32_t u32x16 __attribute__((vector_size(64)));
  return __builtin_convertvector((i32x16)((u32x16)sum - (uint32_t)offset), f32x16);
}

INLINE void outlier_tile(const int T, const float *weight, const float *x, int outliers, f32x16 *acc) {
  f32x16 sum[TOKENS];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) sum[t] = (f32x16){};
  for (int j = 0; j < outliers; j++) {
    const f32x16 w = load16(weight + (size_t)j * ROWS);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) sum[t] += w * x[(size_t)t * outliers + j];
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) acc[t] = sum[t];
}

static void int8_chunk(const Linear *l, const Part *p, const Workspace *q, int first, int rows, int tokens, float *out,
                       size_t stride) {
  const int in = l->in_features, planes = l->planes, tile = tile_tokens(tokens, planes);
  const int8_t *weight = (const int8_t *)p->weight + (size_t)first * (PACKS ? 4 * WORDS(in) : in);
  const float *outlier_weight = p->outlier_weight + (size_t)first * l->outliers;
  i32x16 sums[TOKENS][HALVES];
  f32x16 exact[TOKENS];
  for (int t = 0; t < tokens; t += tile) {
    const int T = tokens - t < tile ? tokens - t : tile, n = T * planes;
    const int8_t *x = q->planes + 4 * (size_t)t * planes * WORDS(in);
    const int32_t *offset = q->offset + t * planes;
    int8_products(n, weight, x, rows, in, sums);
    for (int half = 0; half < HALVES; half++) {
      const int here = rows - half * LANES, begin = first + half * LANES;
      if (here <= 0) break;
#define CALL(N) outlier_tile(N, outlier_weight + half * LANES, q->outliers + (size_t)t * l->outliers, l->outliers, exact)
      WITH_CONSTANT(T, CALL)
#undef CALL
      const f32x16 scale = get(p->scale + begin, here), bias = p->bias ? get(p->bias + begin, here) : (f32x16){};
      for (int i = 0; i < T; i++) {
        f32x16 v = to_float(sums[i * planes][half], offset[i * planes]);
        if (planes == 2) v = 256.0f * v + to_float(sums[i * planes + 1][half], offset[i * planes + 1]);
        // the two scales one after the other: their product can be subnormal where the result is not
        put(out + (size_t)(t + i) * stride + half * LANES, v * q->scale[t + i] * scale + exact[i] + bias, here);
      }
    }
  }
}

// A token to int8 planes; one that holds inf or nan has no scale, and gives nan.
static void quantize(const Linear *l, const float *x, int8_t *planes, int32_t *offset, float *scale, float *outliers,
                     float *copy) {
  const int in = l->in_features, padded = 4 * WORDS(in);
  if (l->outliers) {
    x = memcpy(copy, x, sizeof(float) * in);
    for (int j = 0; j < l->outliers; j++) {
      outliers[j] = copy[l->outlier_index[j]];
      copy[l->outlier_index[j]] = 0;
    }
  }
  int32_t bits = float_bits(1e-30f);  // of non-negative floats, nan largest, they are in order
  for (int k = 0; k < in; k++) {
    const int32_t b = float_bits(x[k]) & 0x7fffffff;
    bits = b > bits ? b : bits;
  }
  memset(planes, 0, (size_t)l->planes * padded);
  memset(offset, 0, sizeof(int32_t) * l->planes);
  if (bits >= float_bits(INFINITY)) {
    *scale = NAN;
    return;
  }
  float top;
  memcpy(&top, &bits, sizeof top);
  const float s = *scale = top / (l->planes == 2 ? 32512.0f : 127.0f);
  int32_t high = 0, low = 0;
  if (l->planes == 2) {
    for (int k = 0; k < in; k++) {
      const int32_t v = (int32_t)rintf(x[k] / s), h = (v + 128) >> 8;
      planes[k] = (int8_t)h;
      planes[padded + k] = (int8_t)(v - 256 * h);
      high += h, low += v - 256 * h;
    }
  } else {
    for (int k = 0; k < in; k++) {
      const int32_t v = (int32_t)rintf(x[k] / s);
      planes[k] = (int8_t)v;
      high += v;
    }
  }
  if (PACKS) {
    offset[0] = 128 * high;
    if (l->planes == 2) offset[1] = 128 * low;
  }
}

static int out_features(const Linear *l) {
  int n = 0;
  for (int i = 0; i < l->parts; i++) n += l->part[i].out_features;
  return n;
}

static inline int chunks_of(const Part *p) { return (p->out_features + ROWS - 1) / ROWS; }

typedef struct {
  const Linear *linear;
  const float *x;
  float *out;
  const Workspace *work;
  int tokens, total;
} LinearCall;

static void quantize_task(void *argument, int t, int thread) {
  const LinearCall *c = argument;
  const Linear *l = c->linear;
  const Workspace *work = c->work;
  const size_t in = l->in_features;
  quantize(l, c->x + t * in, work->planes + 4 * (size_t)t * l->planes * WORDS(in), work->offset + t * l->planes,
           work->scale + t, work->outliers + (size_t)t * l->outliers, work->copies + thread * in);
}

static void chunk_task(void *argument, int chunk, int thread) {
  (void)thread;
  const LinearCall *c = argument;
  const Linear *l = c->linear;
  const Part *p = l->part;
  int offset = 0;
  for (; chunk >= chunks_of(p); p++) {
    chunk -= chunks_of(p);
    offset += p->out_features;
  }
  const int first = chunk * ROWS, rows = p->out_features - first < ROWS ? p->out_features - first : ROWS;
  float *out = c->out + offset + first;
  if (p->kind == INT8)
    int8_chunk(l, p, c->work, first, rows, c->tokens, out, c->total);
  else
    float_chunk(p, c->x, first, rows, l->in_features, c->tokens, out, c->total);
}

void linear(Team *team, const Linear *l, const float *x, int tokens, float *out, const Workspace *work) {
  LinearCall call = {l, x, out, work, tokens, out_features(l)};
  int chunks = 0;
  for (int i = 0; i < l->parts; i++) chunks += chunks_of(l->part + i);
  if (l->part[0].kind == INT8) share(team, quantize_task, &call, tokens);
  share(team, chunk_task, &call, chunks);
}

// ---- working memory ------------------------------------------------------------------------------------------------

float *take(float **memory, size_t count) {
  float *here = *memory;
  *memory += (count + LANES - 1) / LANES * LANES;
  return here;
}

Workspace workspace(float **memory, size_t tokens, size_t wide, size_t threads) {
  Workspace w;
  w.scale = take(memory, tokens);
  w.offset = (int32_t *)take(memory, tokens * 2);
  w.outliers = take(memory, tokens * MAX_OUTLIERS);
  w.copies = take(memory, threads * wide);
  w.planes = (int8_t *)take(memory, tokens * 2 * WORDS(wide));
  return w;
}

// ---- one linear ----------------------------------------------------------------------------------------------------

typedef struct {
  const Linear *linear;
  const float *x;
  float *out, *memory;
  int tokens;
} SingleCall;

static void single(Team *team, void *argument) {
  const SingleCall *c = argument;
  float *memory = (float *)(((uintptr_t)c->memory + 63) & ~(uintptr_t)63);
  const Workspace work = workspace(&memory, c->tokens, c->linear->in_features, team->threads);
  linear(team, c->linear, c->x, c->tokens, c->out, &work);
}

size_t linear_floats(int64_t tokens, int64_t in, int64_t threads) {
  float *end = NULL;
  workspace(&end, tokens, in, threads);
  return (size_t)((uintptr_t)end / sizeof(float)) + LANES;  // and room to align the first
}

// x [tokens, in], scale and bias (or NULL) [out_features], out [tokens, out_features], memory linear_floats() of them;
// weight as in a Part.
void linear_w8a8(const float *x, const int8_t *weight, const float *scale, const float *bias, float *out,
                 float *memory, int64_t tokens, int64_t in, int64_t out_features, int32_t planes, int32_t threads) {
  const Part part = {.kind = INT8, .out_features = out_features, .weight = weight, .scale = scale, .bias = bias};
  const Linear l = {.parts = 1, .in_features = in, .planes = planes, .part = {part}};
  SingleCall call = {&l, x, out, memory, tokens};
  run_team(threads, single, &call);
}
