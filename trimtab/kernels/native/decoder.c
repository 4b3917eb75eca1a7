// One decoding step of a Llama-type transformer in one call: no host work between operations.
//
// The weights are the caller's tensors as they lie ([out, in] row-major, float32 or int8), the keys and values the
// caller's cache ([batch, kv_heads, capacity, head_dim] float32). A step carries M tokens, each with its row of the
// batch and its position; M is small (a verification window times the batch), so every product is bound by reading
// the weights once, and a weight row is multiplied with all tokens while it is in registers.
//
// Portable C with GCC/Clang vector types; the int8 dot product uses AVX-512 VNNI where the machine has it.
// Formats are those of linear_w8a8.py and quantized_linear.py, which are also the reference in the tests.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define MAX_PARTS 3
typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x16_u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i32x16 __attribute__((vector_size(64)));

enum { FLOAT = 0, INT8 = 1 };
enum { SILU = 0, GELU_TANH = 1 };

typedef struct {
  int32_t kind, out_features;
  const void *weight;   // [out, in] float32 or int8
  const float *scale;   // [out], INT8
  const int32_t *sums;  // [out] sum of each int8 row, INT8
  const float *bias;    // [out] or NULL
  const float *outlier_weight;  // [outliers, out], INT8
} Part;

// Linears that read the same input; their outputs lie side by side.
typedef struct {
  int32_t parts, in_features, outliers, planes;
  const int64_t *outlier_index;  // [outliers]
  Part part[MAX_PARTS];
} Linear;

typedef struct {
  Linear qkv, output, gate_up, down;
  const float *attention_norm, *query_norm, *key_norm, *after_attention_norm, *mlp_norm, *after_mlp_norm;
  int32_t sliding_window;  // 0: none
  int32_t rope;            // index into Step.cos and Step.sin
} Layer;

typedef struct {
  int32_t hidden, intermediate, heads, kv_heads, head_dim, layers, activation;
  float eps, scaling;
  const float *norm;
  const Layer *layer;
  Linear head;
} Decoder;

typedef struct {
  int32_t tokens, selected, threads;
  int64_t capacity, longest;        // slots of a cache row; most keys that any token sees
  const int64_t *row, *position;    // [tokens]
  const int64_t *select;            // [selected] tokens whose logits are wanted
  const float *cos[2], *sin[2];     // [tokens, head_dim]; sin with the sign of rotate_half
  float *const *keys, *const *values;  // [layers]
  float *x;                         // [tokens, hidden] embeddings, overwritten
  float *logits;                    // [selected, vocab]
  float *scratch;                   // scratch_floats() of them
} Step;

// ---- scalars and vectors ------------------------------------------------------------------------------------------

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

// e^x for 16 floats, relative error about 1e-7: 2^n * polynomial(f), Cephes' coefficients.
static inline f32x16 exp16(f32x16 x) {
  const f32x16 low = (f32x16){} - 87.0f, high = (f32x16){} + 88.0f;
  x = pick(x < low, low, x);
  x = pick(x > high, high, x);
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

static float dot(const float *a, const float *b, int n) {
  f32x16 acc = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES) acc += load16(a + i) * load16(b + i);
  float s = sum16(acc);
  for (; i < n; i++) s += a[i] * b[i];
  return s;
}

static void rms_norm(const float *x, const float *weight, float eps, int n, float *out) {
  float s = 1.0f / sqrtf(dot(x, x, n) / n + eps);
  for (int i = 0; i < n; i++) out[i] = x[i] * s * weight[i];
}

// ---- linear layers ------------------------------------------------------------------------------------------------
// A chunk is 16 weight rows. Its products with up to 8 tokens are accumulated as vectors along the input; then the 16
// accumulators of a token are summed to one vector of 16 outputs.

#define ROWS 16
#define TOKENS 8

// Lane r of the result: the sum of the lanes of v[r * TOKENS].
#ifdef __AVX512F__
#define LOW32(T, x, y) (T) _mm512_unpacklo_epi32((__m512i)(x), (__m512i)(y))
#define HIGH32(T, x, y) (T) _mm512_unpackhi_epi32((__m512i)(x), (__m512i)(y))
#define LOW64(T, x, y) (T) _mm512_unpacklo_epi64((__m512i)(x), (__m512i)(y))
#define HIGH64(T, x, y) (T) _mm512_unpackhi_epi64((__m512i)(x), (__m512i)(y))
#define EVEN128(T, x, y) (T) _mm512_shuffle_i32x4((__m512i)(x), (__m512i)(y), 0x88)
#define ODD128(T, x, y) (T) _mm512_shuffle_i32x4((__m512i)(x), (__m512i)(y), 0xdd)
#define SUM_ROWS(NAME, T)                                                                                  \
  static inline T NAME(const T *v) {                                                                       \
    T a[8], b[4], c[2];                                                                                    \
    for (int i = 0; i < 8; i++)                                                                            \
      a[i] = LOW32(T, v[2 * i * TOKENS], v[(2 * i + 1) * TOKENS]) +                                        \
             HIGH32(T, v[2 * i * TOKENS], v[(2 * i + 1) * TOKENS]);                                        \
    for (int i = 0; i < 4; i++) b[i] = LOW64(T, a[2 * i], a[2 * i + 1]) + HIGH64(T, a[2 * i], a[2 * i + 1]);  \
    for (int i = 0; i < 2; i++) c[i] = EVEN128(T, b[2 * i], b[2 * i + 1]) + ODD128(T, b[2 * i], b[2 * i + 1]); \
    return EVEN128(T, c[0], c[1]) + ODD128(T, c[0], c[1]);                                                 \
  }
#else
#define SUM_ROWS(NAME, T)                                   \
  static inline T NAME(const T *v) {                        \
    T out = {};                                             \
    for (int r = 0; r < ROWS; r++)                          \
      for (int i = 0; i < LANES; i++) out[r] += v[r * TOKENS][i]; \
    return out;                                             \
  }
#endif
SUM_ROWS(sum_rows_f, f32x16)
SUM_ROWS(sum_rows_i, i32x16)

// R weight rows times T tokens; both constant after inlining, so the accumulators stay in registers. `in` is a
// multiple of LANES (checked by the caller).
static inline __attribute__((always_inline)) void float_tile(const int R, const int T, const float *w, const float *x,
                                                             int in, f32x16 *out) {
  f32x16 acc[R][T];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) acc[r][t] = (f32x16){};
  for (int k = 0; k < in; k += LANES) {
    f32x16 row[R];
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

// The same for int8 weights and offset-128 unsigned bytes, exact in int32.
static inline __attribute__((always_inline)) void int8_tile(const int R, const int T, const int8_t *w, const uint8_t *x,
                                                            int in, i32x16 *out) {
#ifdef __AVX512VNNI__
  __m512i acc[R][T];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) acc[r][t] = _mm512_setzero_si512();
  for (int k = 0; k < in; k += 64) {
    const __mmask64 mask = in - k >= 64 ? ~0ull : (1ull << (in - k)) - 1;
    __m512i row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) row[r] = _mm512_maskz_loadu_epi8(mask, w + (size_t)r * in + k);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const __m512i v = _mm512_maskz_loadu_epi8(mask, x + (size_t)t * in + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], v, row[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) out[r * TOKENS + t] = (i32x16)acc[r][t];
#else
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) {
      int32_t s = 0;
      const int8_t *a = w + (size_t)r * in;
      const uint8_t *b = x + (size_t)t * in;
#pragma omp simd reduction(+ : s)
      for (int k = 0; k < in; k++) s += (int32_t)a[k] * (int32_t)b[k];
      out[r * TOKENS + t] = (i32x16){s};
    }
#endif
}

// All rows of a chunk times T <= TOKENS tokens, two rows at a time so that a token is loaded once for both.
#define CHUNK(NAME, TILE, W, X, ACC)                                                                        \
  static inline __attribute__((always_inline)) void NAME##_t(const int T, const W *w, const X *x, int rows, int in, ACC *out) { \
    int r = 0;                                                                                              \
    for (; r + 2 <= rows; r += 2) TILE(2, T, w + (size_t)r * in, x, in, out + r * TOKENS);                  \
    if (r < rows) TILE(1, T, w + (size_t)r * in, x, in, out + r * TOKENS);                                  \
  }                                                                                                         \
  static void NAME(int T, const W *w, const X *x, int rows, int in, ACC *out) {                             \
    switch (T) {                                                                                            \
      case 1: NAME##_t(1, w, x, rows, in, out); break;                                                      \
      case 2: NAME##_t(2, w, x, rows, in, out); break;                                                      \
      case 3: NAME##_t(3, w, x, rows, in, out); break;                                                      \
      case 4: NAME##_t(4, w, x, rows, in, out); break;                                                      \
      case 5: NAME##_t(5, w, x, rows, in, out); break;                                                      \
      case 6: NAME##_t(6, w, x, rows, in, out); break;                                                      \
      case 7: NAME##_t(7, w, x, rows, in, out); break;                                                      \
      default: NAME##_t(8, w, x, rows, in, out);                                                            \
    }                                                                                                       \
  }
CHUNK(float_products, float_tile, float, float, f32x16)
CHUNK(int8_products, int8_tile, int8_t, uint8_t, i32x16)

// A vector of 16 outputs of which the first `rows` exist.
static inline f32x16 get(const float *p, int rows) {
  if (rows == ROWS) return load16(p);
  f32x16 v = {};
  for (int r = 0; r < rows; r++) v[r] = p[r];
  return v;
}
static inline void put(float *p, f32x16 v, int rows) {
  if (rows == ROWS)
    store16(p, v);
  else
    for (int r = 0; r < rows; r++) p[r] = v[r];
}

// out[t * stride + r] for rows first .. first + rows of a part
static void float_chunk(const Part *p, const float *x, int first, int rows, int in, int tokens, float *out, size_t stride) {
  f32x16 acc[ROWS * TOKENS];
  if (rows < ROWS) memset(acc, 0, sizeof acc);
  const f32x16 bias = p->bias ? get(p->bias + first, rows) : (f32x16){};
  for (int t = 0; t < tokens; t += TOKENS) {
    const int T = tokens - t < TOKENS ? tokens - t : TOKENS;
    float_products(T, (const float *)p->weight + (size_t)first * in, x + (size_t)t * in, rows, in, acc);
    for (int i = 0; i < T; i++) put(out + (size_t)(t + i) * stride, sum_rows_f(acc + i) + bias, rows);
  }
}

// Activations of one product: planes of all tokens, high planes first, then low ones.
typedef struct {
  const uint8_t *planes;
  const float *scale, *outliers;
} Quantized;

static void int8_chunk(const Linear *l, const Part *p, const Quantized *q, int first, int rows, int tokens, float *out,
                       size_t stride) {
  const int in = l->in_features, planes = tokens * l->planes;
  const f32x16 scale = get(p->scale + first, rows), bias = p->bias ? get(p->bias + first, rows) : (f32x16){};
  i32x16 acc[ROWS * TOKENS], offset = {}, sums[planes];
  if (rows < ROWS) memset(acc, 0, sizeof acc);
  for (int r = 0; r < rows; r++) offset[r] = 128 * p->sums[first + r];
  for (int t = 0; t < planes; t += TOKENS) {
    const int T = planes - t < TOKENS ? planes - t : TOKENS;
    int8_products(T, (const int8_t *)p->weight + (size_t)first * in, q->planes + (size_t)t * in, rows, in, acc);
    for (int i = 0; i < T; i++) sums[t + i] = sum_rows_i(acc + i) - offset;
  }
  for (int t = 0; t < tokens; t++) {
    f32x16 v = __builtin_convertvector(sums[t], f32x16);
    if (l->planes == 2) v = 256.0f * v + __builtin_convertvector(sums[tokens + t], f32x16);
    v *= scale * q->scale[t];
    const float *outliers = q->outliers + (size_t)t * l->outliers;
    for (int j = 0; j < l->outliers; j++)
      v += outliers[j] * get(p->outlier_weight + (size_t)j * p->out_features + first, rows);
    put(out + (size_t)t * stride, v + bias, rows);
  }
}

static void quantize(const Linear *l, const float *x, int token, int tokens, uint8_t *planes, float *scale, float *outliers,
                     float *copy) {
  const int in = l->in_features;
  memcpy(copy, x, sizeof(float) * in);
  for (int j = 0; j < l->outliers; j++) {
    outliers[j] = x[l->outlier_index[j]];
    copy[l->outlier_index[j]] = 0;
  }
  float top = 1e-30f;
  for (int k = 0; k < in; k++) {
    float a = fabsf(copy[k]);
    top = a > top ? a : top;
  }
  const float s = top / (l->planes == 2 ? 32512.0f : 127.0f);
  *scale = s;
  uint8_t *high = planes + (size_t)token * in, *low = planes + (size_t)(tokens + token) * in;
  if (l->planes == 2) {
    for (int k = 0; k < in; k++) {
      int32_t v = (int32_t)rintf(copy[k] / s), h = (v + 128) >> 8;
      high[k] = (uint8_t)(h + 128);
      low[k] = (uint8_t)(v - 256 * h + 128);
    }
  } else {
    for (int k = 0; k < in; k++) high[k] = (uint8_t)((int32_t)rintf(copy[k] / s) + 128);
  }
}

static int out_features(const Linear *l) {
  int n = 0;
  for (int i = 0; i < l->parts; i++) n += l->part[i].out_features;
  return n;
}

// out [tokens, out_features]
static void linear(const Linear *l, const float *x, int tokens, float *out, float *scratch, int threads) {
  const int in = l->in_features, total = out_features(l);
  float *scale = scratch, *outliers = scale + tokens, *copies = outliers + (size_t)tokens * l->outliers;
  uint8_t *planes = (uint8_t *)(copies + (size_t)tokens * in);
  const Quantized q = {planes, scale, outliers};
  int chunks = 0;
  for (int i = 0; i < l->parts; i++) chunks += (l->part[i].out_features + ROWS - 1) / ROWS;
#pragma omp parallel num_threads(threads)
  {
    if (l->part[0].kind == INT8) {
#pragma omp for schedule(static)
      for (int t = 0; t < tokens; t++)
        quantize(l, x + (size_t)t * in, t, tokens, planes, scale + t, outliers + (size_t)t * l->outliers, copies + (size_t)t * in);
    }
    // Contiguous runs of weight rows, so that each thread streams its own part of memory.
#pragma omp for schedule(static)
    for (int chunk = 0; chunk < chunks; chunk++) {
      const Part *p = l->part;
      int first = chunk * ROWS, offset = 0;
      while (first >= (p->out_features + ROWS - 1) / ROWS * ROWS) {
        first -= (p->out_features + ROWS - 1) / ROWS * ROWS;
        offset += p->out_features;
        p++;
      }
      const int rows = p->out_features - first < ROWS ? p->out_features - first : ROWS;
      if (p->kind == INT8)
        int8_chunk(l, p, &q, first, rows, tokens, out + offset + first, total);
      else
        float_chunk(p, x, first, rows, in, tokens, out + offset + first, total);
    }
  }
}

// ---- attention ----------------------------------------------------------------------------------------------------

// One query against keys[0..n) and values[0..n), rows of D floats; D is constant after inlining.
static inline __attribute__((always_inline)) void attend(const int D, const float *query, const float *keys,
                                                         const float *values, int n, float scaling, float *scores,
                                                         float *out) {
  const int V = D / LANES;
  f32x16 q[V], acc[V];
#pragma GCC unroll 16
  for (int i = 0; i < V; i++) q[i] = load16(query + i * LANES), acc[i] = (f32x16){};
  float top = -INFINITY;
  for (int t = 0; t < n; t++) {
    const float *k = keys + (size_t)t * D;
    f32x16 s = {};
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) s += q[i] * load16(k + i * LANES);
    scores[t] = sum16(s) * scaling;
    top = scores[t] > top ? scores[t] : top;
  }
  f32x16 mass = {};
  int t = 0;
  for (; t + LANES <= n; t += LANES) {
    f32x16 e = exp16(load16(scores + t) - top);
    store16(scores + t, e);
    mass += e;
  }
  float total = sum16(mass);
  for (; t < n; t++) total += scores[t] = expf(scores[t] - top);
  for (t = 0; t < n; t++) {
    const float *v = values + (size_t)t * D;
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) acc[i] += load16(v + i * LANES) * scores[t];
  }
#pragma GCC unroll 16
  for (int i = 0; i < V; i++) store16(out + i * LANES, acc[i] / total);
}

static void attention(const Decoder *d, const Layer *y, const Step *s, int layer, const float *qkv, float *out,
                      float *scores) {
  const int D = d->head_dim, groups = d->heads / d->kv_heads, width = (d->heads + 2 * d->kv_heads) * D;
  const int tasks = s->tokens * d->heads;
#pragma omp parallel num_threads(s->threads)
  {
    float *mine = scores;
#ifdef _OPENMP
    extern int omp_get_thread_num(void);
    mine += (size_t)omp_get_thread_num() * (s->longest + LANES);
#endif
#pragma omp for schedule(static)
    for (int task = 0; task < tasks; task++) {
      const int t = task / d->heads, h = task % d->heads;
      const int64_t last = s->position[t];
      const int64_t first = y->sliding_window && last >= y->sliding_window ? last - y->sliding_window + 1 : 0;
      const size_t base = ((size_t)(s->row[t] * d->kv_heads + h / groups) * s->capacity + first) * D;
      const float *query = qkv + (size_t)t * width + (size_t)h * D;
      float *o = out + ((size_t)t * d->heads + h) * D;
      const int n = (int)(last - first + 1);
      switch (D) {
        case 32: attend(32, query, s->keys[layer] + base, s->values[layer] + base, n, d->scaling, mine, o); break;
        case 64: attend(64, query, s->keys[layer] + base, s->values[layer] + base, n, d->scaling, mine, o); break;
        case 128: attend(128, query, s->keys[layer] + base, s->values[layer] + base, n, d->scaling, mine, o); break;
        default: attend(256, query, s->keys[layer] + base, s->values[layer] + base, n, d->scaling, mine, o); break;
      }
    }
  }
}

// Norm and rotate queries and keys, store keys and values at their positions.
static void place(const Decoder *d, const Layer *y, const Step *s, int layer, int t, float *qkv, float *rotated) {
  const int D = d->head_dim, half = D / 2;
  const float *cosine = s->cos[y->rope] + (size_t)t * D, *sine = s->sin[y->rope] + (size_t)t * D;
  for (int h = 0; h < d->heads + d->kv_heads; h++) {
    float *x = qkv + (size_t)h * D;
    const float *weight = h < d->heads ? y->query_norm : y->key_norm;
    if (weight) rms_norm(x, weight, d->eps, D, x);
    for (int i = 0; i < half; i++) {
      rotated[i] = x[i] * cosine[i] + x[i + half] * sine[i];
      rotated[i + half] = x[i + half] * cosine[i + half] + x[i] * sine[i + half];
    }
    memcpy(x, rotated, sizeof(float) * D);
  }
  for (int h = 0; h < d->kv_heads; h++) {
    const size_t slot = ((size_t)(s->row[t] * d->kv_heads + h) * s->capacity + s->position[t]) * D;
    memcpy(s->keys[layer] + slot, qkv + (size_t)(d->heads + h) * D, sizeof(float) * D);
    memcpy(s->values[layer] + slot, qkv + (size_t)(d->heads + d->kv_heads + h) * D, sizeof(float) * D);
  }
}

// ---- the step -----------------------------------------------------------------------------------------------------

static void activate(int activation, const float *gate_up, int n, float *out) {
  const float *up = gate_up + n;
  for (int i = 0; i < n; i += LANES) {  // intermediate is a multiple of LANES (checked by the caller)
    f32x16 g = load16(gate_up + i);
    if (activation == GELU_TANH) {
      f32x16 e = exp16((g + g * g * g * 0.044715f) * 1.5957691216057308f);  // 2 sqrt(2 / pi)
      g = g * (1.0f - 1.0f / (e + 1.0f));  // 0.5 (1 + tanh(u)) = 1 - 1 / (e^2u + 1)
    } else {
      g = g / (1.0f + exp16(-g));
    }
    store16(out + i, g * load16(up + i));
  }
}

static void norm_all(const float *x, const float *weight, const Decoder *d, int tokens, float *out) {
  for (int t = 0; t < tokens; t++) rms_norm(x + (size_t)t * d->hidden, weight, d->eps, d->hidden, out + (size_t)t * d->hidden);
}

static void add_all(float *x, float *y, const float *weight, const Decoder *d, int tokens) {
  if (weight) norm_all(y, weight, d, tokens, y);
  for (size_t i = 0; i < (size_t)tokens * d->hidden; i++) x[i] += y[i];
}

static size_t widest(const Decoder *d) {
  size_t a = (size_t)d->heads * d->head_dim, b = d->intermediate, c = d->hidden;
  a = a > b ? a : b;
  return a > c ? a : c;
}

size_t scratch_floats(const Decoder *d, int64_t tokens, int64_t longest, int64_t threads) {
  const size_t wide = widest(d);
  const size_t qkv = (size_t)(d->heads + 2 * d->kv_heads) * d->head_dim, gate_up = 2 * (size_t)d->intermediate;
  // h, qkv | gate_up, attended | activated, then a linear's own: scale, outliers (at most wide), copy, two planes of bytes
  return (size_t)tokens * (d->hidden + (qkv > gate_up ? qkv : gate_up) + wide + 1 + 2 * wide + wide / 2 + 64) +
         (size_t)threads * (longest + LANES) + 1024;
}

void step(const Decoder *d, const Step *s) {
  const int T = s->tokens, D = d->head_dim, wide = (int)widest(d);
  const size_t qkv_width = (size_t)(d->heads + 2 * d->kv_heads) * D, gate_up_width = 2 * (size_t)d->intermediate;
  float *h = s->scratch, *middle = h + (size_t)T * d->hidden;
  float *inner = middle + (size_t)T * (qkv_width > gate_up_width ? qkv_width : gate_up_width);
  float *scores = inner + (size_t)T * wide, *rest = scores + (size_t)s->threads * (s->longest + LANES);
  for (int i = 0; i < d->layers; i++) {
    const Layer *y = d->layer + i;
    norm_all(s->x, y->attention_norm, d, T, h);
    linear(&y->qkv, h, T, middle, rest, s->threads);
    for (int t = 0; t < T; t++) place(d, y, s, i, t, middle + (size_t)t * qkv_width, rest);
    attention(d, y, s, i, middle, inner, scores);
    linear(&y->output, inner, T, h, rest, s->threads);
    add_all(s->x, h, y->after_attention_norm, d, T);

    norm_all(s->x, y->mlp_norm, d, T, h);
    linear(&y->gate_up, h, T, middle, rest, s->threads);
#pragma omp parallel for num_threads(s->threads) if (T > 1) schedule(static)
    for (int t = 0; t < T; t++)
      activate(d->activation, middle + (size_t)t * gate_up_width, d->intermediate, inner + (size_t)t * d->intermediate);
    linear(&y->down, inner, T, h, rest, s->threads);
    add_all(s->x, h, y->after_mlp_norm, d, T);
  }
  for (int j = 0; j < s->selected; j++)
    rms_norm(s->x + (size_t)s->select[j] * d->hidden, d->norm, d->eps, d->hidden, h + (size_t)j * d->hidden);
  linear(&d->head, h, s->selected, s->logits, rest, s->threads);
}
