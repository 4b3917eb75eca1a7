// One decoding step of a Llama-type transformer in one call: no host work between operations.
//
// The weights are the caller's tensors as they lie ([out, in] row-major, float32 or int8), the keys and values the
// caller's cache ([batch, kv_heads, capacity, head_dim] float32). A step carries M tokens, each with its row of the
// batch and its position. For small M (a verification window times the batch) every product is bound by reading the
// weights, so each is read from memory once and multiplied with all tokens while it is in the first-level cache.
//
// Portable C with GCC/Clang vector types; the int8 dot product uses AVX-512 VNNI where the machine has it.
// Formats are those of linear_w8a8.py and quantized_linear.py, which are also the reference in the tests.
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

#define MAX_PARTS 3
#define MAX_OUTLIERS 64

enum { FLOAT = 0, INT8 = 1 };
enum { SILU = 0, GELU_TANH = 1 };

typedef struct {
  int32_t kind, out_features;
  const void *weight;   // [out, in] float32 or int8
  const float *scale;   // [out], INT8
  const int32_t *sums;  // [out] sum of each int8 row, INT8
  const float *bias;    // [out] or NULL
  const float *outlier_weight;  // [ceil(out / 32), outliers, 32], padded with zeros, INT8
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

// ---- vectors ------------------------------------------------------------------------------------------------------

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

// ---- work sharing -------------------------------------------------------------------------------------------------
// Threads of one OpenMP region take pieces of a loop as they come, and a loop ends when its pieces are done, not when
// every thread has arrived: on a busy machine a thread that has lost its core costs its share, while OpenMP's own
// loops, some 300 a step, would each wait for it.

typedef void Task(void *argument, int index, int thread);

typedef struct {
  Task *task;
  void *argument;
  int threads, count, grain, pieces;
  _Atomic uint64_t ticket;  // number of the loop << 32 | pieces that nobody has taken
  _Atomic int unfinished;   // pieces
  _Atomic int over;
} Team;

static inline void pause_or_yield(int *waited) {
  if (++*waited % 128 == 0) sched_yield();
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

// Whether there may be more to take.
static int take_piece(Team *team, int thread) {
  uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_acquire);
  if ((uint32_t)ticket == 0) return 0;
  // The number of the loop is part of the ticket, so nobody takes a piece of a later loop by mistake. Once a piece is
  // taken, the loop and its fields stay until that piece is done.
  if (!atomic_compare_exchange_weak_explicit(&team->ticket, &ticket, ticket - 1, memory_order_acq_rel,
                                             memory_order_relaxed))
    return 1;
  const int first = (team->pieces - (int)(uint32_t)ticket) * team->grain;
  const int end = first + team->grain < team->count ? first + team->grain : team->count;
  for (int i = first; i < end; i++) team->task(team->argument, i, thread);
  atomic_fetch_sub_explicit(&team->unfinished, 1, memory_order_release);
  return 1;
}

// Run a task for 0 .. count - 1; called by thread 0.
static void share(Team *team, Task *task, void *argument, int count) {
  if (team->threads == 1 || count == 1) {
    for (int i = 0; i < count; i++) task(argument, i, 0);
    return;
  }
  const int most = 8 * team->threads;
  team->task = task, team->argument = argument, team->count = count;
  team->grain = (count + most - 1) / most;
  team->pieces = (count + team->grain - 1) / team->grain;
  atomic_store_explicit(&team->unfinished, team->pieces, memory_order_relaxed);
  const uint64_t loop = (atomic_load_explicit(&team->ticket, memory_order_relaxed) >> 32) + 1;
  atomic_store_explicit(&team->ticket, loop << 32 | (uint32_t)team->pieces, memory_order_release);
  while (take_piece(team, 0)) {
  }
  for (int waited = 0; atomic_load_explicit(&team->unfinished, memory_order_acquire);) pause_or_yield(&waited);
}

// What the other threads do until the step is over.
static void help(Team *team, int thread) {
  for (int waited = 0; !atomic_load_explicit(&team->over, memory_order_acquire);)
    if (!take_piece(team, thread)) pause_or_yield(&waited);
}

// ---- linear layers ------------------------------------------------------------------------------------------------
// A chunk of ROWS weight rows is multiplied with up to TOKENS tokens at a time (with two planes: half as many tokens).
// Two ways to lay a product over the lanes of a vector:
// - along the input: weights and tokens are read as they lie and the accumulators of 16 rows are summed to one vector
//   of 16 outputs at the end;
// - along the rows: the chunk is first transposed into a buffer, which pays from PACK_FROM token planes on.

#define HALVES 2
#define ROWS (HALVES * LANES)
#define TOKENS 8
#define PACK_FROM 12

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
    for (int r = 0; r < LANES; r++)                         \
      for (int i = 0; i < LANES; i++) out[r] += v[r * TOKENS][i]; \
    return out;                                             \
  }
#endif
SUM_ROWS(sum_rows_f, f32x16)
SUM_ROWS(sum_rows_i, i32x16)

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

// The same for int8 weights and offset-128 unsigned bytes, exact in int32.
INLINE void int8_tile(const int R, const int T, const int8_t *w, const uint8_t *x, int in, i32x16 *out) {
#ifdef __AVX512VNNI__
  __m512i acc[2][TOKENS];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) acc[r][t] = _mm512_setzero_si512();
  for (int k = 0; k < in; k += 64) {
    const __mmask64 mask = in - k >= 64 ? ~0ull : (1ull << (in - k)) - 1;
    __m512i row[2];
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

// All rows of a chunk times T tokens, two rows at a time so that a token is loaded once for both.
#define PRODUCTS(NAME, TILE, W, X, ACC)                                                                \
  INLINE void NAME##_t(const int T, const W *w, const X *x, int rows, int in, ACC *out) {              \
    int r = 0;                                                                                         \
    for (; r + 2 <= rows; r += 2) TILE(2, T, w + (size_t)r * in, x, in, out + r * TOKENS);             \
    if (r < rows) TILE(1, T, w + (size_t)r * in, x, in, out + r * TOKENS);                             \
  }                                                                                                    \
  static void NAME(int T, const W *w, const X *x, int rows, int in, ACC *out) {                        \
    WITH_CONSTANT(T, NAME##_CALL)                                                                      \
  }
#define float_products_CALL(T) float_products_t(T, w, x, rows, in, out)
#define int8_products_CALL(T) int8_products_t(T, w, x, rows, in, out)
PRODUCTS(float_products, float_tile, float, float, f32x16)
PRODUCTS(int8_products, int8_tile, int8_t, uint8_t, i32x16)

#ifdef __AVX512VNNI__
// Four input channels of each of 16 rows side by side: packed[k / 4 * HALVES + half]. Rows beyond `rows` are zero.
static void pack(const int8_t *w, int rows, int in, i32x16 *packed) {
  for (int half = 0; half < HALVES; half++)
    for (int k = 0; k < in; k += 64) {
      const __mmask64 mask = in - k >= 64 ? ~0ull : (1ull << (in - k)) - 1;
      const int columns = in - k >= 64 ? 16 : (in - k) / 4;
      i32x16 a[16], b[16], c[16];
      for (int r = 0; r < 16; r++) {
        const int row = half * LANES + r;
        a[r] = row < rows ? (i32x16)_mm512_maskz_loadu_epi8(mask, w + (size_t)row * in + k) : (i32x16){};
      }
      for (int i = 0; i < 16; i += 2) {
        b[i] = LOW32(i32x16, a[i], a[i + 1]);
        b[i + 1] = HIGH32(i32x16, a[i], a[i + 1]);
      }
      for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
          a[i + 2 * j] = LOW64(i32x16, b[i + j], b[i + j + 2]);
          a[i + 2 * j + 1] = HIGH64(i32x16, b[i + j], b[i + j + 2]);
        }
      // a[4 i + j] now holds columns j, 4 + j, 8 + j and 12 + j of rows 4 i .. 4 i + 3
      for (int j = 0; j < 4; j++) {
        const i32x16 even[2] = {EVEN128(i32x16, a[j], a[4 + j]), EVEN128(i32x16, a[8 + j], a[12 + j])};
        const i32x16 odd[2] = {ODD128(i32x16, a[j], a[4 + j]), ODD128(i32x16, a[8 + j], a[12 + j])};
        c[j] = EVEN128(i32x16, even[0], even[1]);
        c[4 + j] = EVEN128(i32x16, odd[0], odd[1]);
        c[8 + j] = ODD128(i32x16, even[0], even[1]);
        c[12 + j] = ODD128(i32x16, odd[0], odd[1]);
      }
      for (int j = 0; j < columns; j++) packed[(k / 4 + j) * HALVES + half] = c[j];
    }
}

INLINE void packed_tile(const int T, const i32x16 *packed, const uint8_t *x, int in, i32x16 (*out)[HALVES]) {
  __m512i acc[TOKENS][HALVES];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) acc[t][0] = acc[t][1] = _mm512_setzero_si512();
  for (int k = 0; k < in / 4; k++) {
    const __m512i low = (__m512i)packed[k * HALVES], high = (__m512i)packed[k * HALVES + 1];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      int32_t four;
      memcpy(&four, x + (size_t)t * in + 4 * k, 4);
      const __m512i v = _mm512_set1_epi32(four);
      acc[t][0] = _mm512_dpbusd_epi32(acc[t][0], v, low);
      acc[t][1] = _mm512_dpbusd_epi32(acc[t][1], v, high);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) out[t][0] = (i32x16)acc[t][0], out[t][1] = (i32x16)acc[t][1];
}
#endif

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
        put(out + (size_t)(t + i) * stride + half * LANES, sum_rows_f(acc + half * LANES * TOKENS + i) + bias, n);
    }
  }
}

// Activations of one product: for each token its scale, its outlier channels and its planes, the high one first.
typedef struct {
  const uint8_t *planes;
  const float *scale, *outliers;
} Quantized;

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

static void int8_chunk(const Linear *l, const Part *p, const Quantized *q, int first, int rows, int tokens, float *out,
                       size_t stride, i32x16 *packed) {
  const int in = l->in_features, planes = l->planes, tile = tile_tokens(tokens, planes);
  const int8_t *weight = (const int8_t *)p->weight + (size_t)first * in;
  const float *outlier_weight = p->outlier_weight + (size_t)first * l->outliers;
#ifdef __AVX512VNNI__
  const int packs = tokens * planes >= PACK_FROM;
  if (packs) pack(weight, rows, in, packed);
#endif
  i32x16 products[ROWS * TOKENS], sums[TOKENS][HALVES];
  f32x16 exact[TOKENS];
  if (rows < ROWS) memset(products, 0, sizeof products);
  for (int t = 0; t < tokens; t += tile) {
    const int T = tokens - t < tile ? tokens - t : tile, n = T * planes;
    const uint8_t *x = q->planes + (size_t)t * planes * in;
#ifdef __AVX512VNNI__
    if (packs) {
#define CALL(N) packed_tile(N, packed, x, in, sums)
      WITH_CONSTANT(n, CALL)
#undef CALL
    } else
#endif
    {
      int8_products(n, weight, x, rows, in, products);
      for (int i = 0; i < n; i++)
        for (int half = 0; half < HALVES; half++) sums[i][half] = sum_rows_i(products + half * LANES * TOKENS + i);
    }
    for (int half = 0; half < HALVES; half++) {
      const int here = rows - half * LANES, begin = first + half * LANES;
      if (here <= 0) break;
#define CALL(N) outlier_tile(N, outlier_weight + half * LANES, q->outliers + (size_t)t * l->outliers, l->outliers, exact)
      WITH_CONSTANT(T, CALL)
#undef CALL
      const f32x16 scale = get(p->scale + begin, here), bias = p->bias ? get(p->bias + begin, here) : (f32x16){};
      i32x16 offset = {};
      for (int r = 0; r < LANES && r < here; r++) offset[r] = 128 * p->sums[begin + r];
      for (int i = 0; i < T; i++) {
        f32x16 v = __builtin_convertvector(sums[i * planes][half] - offset, f32x16);
        if (planes == 2) v = 256.0f * v + __builtin_convertvector(sums[i * planes + 1][half] - offset, f32x16);
        put(out + (size_t)(t + i) * stride + half * LANES, v * (scale * q->scale[t + i]) + exact[i] + bias, here);
      }
    }
  }
}

// `planes` and `outliers` are those of this token.
static void quantize(const Linear *l, const float *x, uint8_t *planes, float *scale, float *outliers, float *copy) {
  const int in = l->in_features;
  memcpy(copy, x, sizeof(float) * in);
  for (int j = 0; j < l->outliers; j++) {
    outliers[j] = x[l->outlier_index[j]];
    copy[l->outlier_index[j]] = 0;
  }
  f32x16 tops = (f32x16){} + 1e-30f;
  for (int k = 0; k < in; k += LANES) {
    const f32x16 v = load16(copy + k), a = pick(v < 0, -v, v);
    tops = pick(a > tops, a, tops);
  }
  float top = 0;
  for (int i = 0; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
  const float s = top / (l->planes == 2 ? 32512.0f : 127.0f);
  *scale = s;
  if (l->planes == 2) {
    uint8_t *low = planes + in;
    for (int k = 0; k < in; k++) {
      int32_t v = (int32_t)rintf(copy[k] / s), h = (v + 128) >> 8;
      planes[k] = (uint8_t)(h + 128);
      low[k] = (uint8_t)(v - 256 * h + 128);
    }
  } else {
    for (int k = 0; k < in; k++) planes[k] = (uint8_t)((int32_t)rintf(copy[k] / s) + 128);
  }
}

static int out_features(const Linear *l) {
  int n = 0;
  for (int i = 0; i < l->parts; i++) n += l->part[i].out_features;
  return n;
}

static inline int chunks_of(const Part *p) { return (p->out_features + ROWS - 1) / ROWS; }

// Working memory of the linears: quantised activations of all tokens, and a transposed chunk of each thread.
typedef struct {
  float *scale, *outliers, *copies;
  uint8_t *planes;
  i32x16 *packed;
} Workspace;

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
  quantize(l, c->x + t * in, work->planes + t * l->planes * in, work->scale + t, work->outliers + (size_t)t * l->outliers,
           work->copies + thread * in);
}

static void chunk_task(void *argument, int chunk, int thread) {
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
  if (p->kind == INT8) {
    const Quantized q = {c->work->planes, c->work->scale, c->work->outliers};
    i32x16 *packed = c->work->packed + (size_t)thread * (l->in_features / 4) * HALVES;
    int8_chunk(l, p, &q, first, rows, c->tokens, out, c->total, packed);
  } else {
    float_chunk(p, c->x, first, rows, l->in_features, c->tokens, out, c->total);
  }
}

// out [tokens, out_features]
static void linear(Team *team, const Linear *l, const float *x, int tokens, float *out, const Workspace *work) {
  LinearCall call = {l, x, out, work, tokens, out_features(l)};
  int chunks = 0;
  for (int i = 0; i < l->parts; i++) chunks += chunks_of(l->part + i);
  if (l->part[0].kind == INT8) share(team, quantize_task, &call, tokens);
  share(team, chunk_task, &call, chunks);
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

typedef struct {
  const Decoder *decoder;
  const Layer *layer;
  const Step *step;
  int index;  // of the layer
  float *qkv, *out, *scores, *rotated;
} AttentionCall;

static void attend_task(void *argument, int task, int thread) {
  const AttentionCall *c = argument;
  const Decoder *d = c->decoder;
  const Step *s = c->step;
  const int D = d->head_dim, groups = d->heads / d->kv_heads, width = (d->heads + 2 * d->kv_heads) * D;
  const int t = task / d->heads, h = task % d->heads, window = c->layer->sliding_window;
  const int64_t last = s->position[t], first = window && last >= window ? last - window + 1 : 0;
  const size_t base = ((size_t)(s->row[t] * d->kv_heads + h / groups) * s->capacity + first) * D;
  const float *query = c->qkv + (size_t)t * width + (size_t)h * D;
  const float *keys = s->keys[c->index] + base, *values = s->values[c->index] + base;
  float *scores = c->scores + (size_t)thread * (s->longest + LANES), *out = c->out + ((size_t)t * d->heads + h) * D;
  const int n = (int)(last - first + 1);
  switch (D) {
    case 32: attend(32, query, keys, values, n, d->scaling, scores, out); break;
    case 64: attend(64, query, keys, values, n, d->scaling, scores, out); break;
    case 128: attend(128, query, keys, values, n, d->scaling, scores, out); break;
    default: attend(256, query, keys, values, n, d->scaling, scores, out); break;
  }
}

// Norm and rotate queries and keys of a token, store its keys and values at its position.
static void place_task(void *argument, int t, int thread) {
  const AttentionCall *c = argument;
  const Decoder *d = c->decoder;
  const Step *s = c->step;
  const int D = d->head_dim, half = D / 2;
  const float *cosine = s->cos[c->layer->rope] + (size_t)t * D, *sine = s->sin[c->layer->rope] + (size_t)t * D;
  float *qkv = c->qkv + (size_t)t * (d->heads + 2 * d->kv_heads) * D, *rotated = c->rotated + (size_t)thread * D;
  for (int h = 0; h < d->heads + d->kv_heads; h++) {
    float *x = qkv + (size_t)h * D;
    const float *weight = h < d->heads ? c->layer->query_norm : c->layer->key_norm;
    if (weight) rms_norm(x, weight, d->eps, D, x);
    for (int i = 0; i < half; i++) {
      rotated[i] = x[i] * cosine[i] + x[i + half] * sine[i];
      rotated[i + half] = x[i + half] * cosine[i + half] + x[i] * sine[i + half];
    }
    memcpy(x, rotated, sizeof(float) * D);
  }
  for (int h = 0; h < d->kv_heads; h++) {
    const size_t slot = ((size_t)(s->row[t] * d->kv_heads + h) * s->capacity + s->position[t]) * D;
    memcpy(s->keys[c->index] + slot, qkv + (size_t)(d->heads + h) * D, sizeof(float) * D);
    memcpy(s->values[c->index] + slot, qkv + (size_t)(d->heads + d->kv_heads + h) * D, sizeof(float) * D);
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

typedef struct {
  const Decoder *decoder;
  float *gate_up, *out;
} ActivateCall;

static void activate_task(void *argument, int t, int thread) {
  (void)thread;
  const ActivateCall *c = argument;
  const size_t n = c->decoder->intermediate;
  activate(c->decoder->activation, c->gate_up + 2 * t * n, (int)n, c->out + t * n);
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

static size_t widest_middle(const Decoder *d) {
  const size_t qkv = (size_t)(d->heads + 2 * d->kv_heads) * d->head_dim, gate_up = 2 * (size_t)d->intermediate;
  return qkv > gate_up ? qkv : gate_up;
}

// The next `count` floats of the scratch memory, aligned to a cache line; from NULL it only counts.
static float *take(float **scratch, size_t count) {
  float *here = *scratch;
  *scratch += (count + LANES - 1) / LANES * LANES;
  return here;
}

typedef struct {
  float *h, *middle, *inner, *scores;
  Workspace work;
} Scratch;

static Scratch divide(float **scratch, const Decoder *d, size_t tokens, size_t longest, size_t threads) {
  const size_t wide = widest(d);
  Scratch s;
  s.h = take(scratch, tokens * d->hidden);
  s.middle = take(scratch, tokens * widest_middle(d));
  s.inner = take(scratch, tokens * wide);
  s.scores = take(scratch, threads * (longest + LANES));
  s.work.scale = take(scratch, tokens);
  s.work.outliers = take(scratch, tokens * MAX_OUTLIERS);
  s.work.copies = take(scratch, threads * wide);
  s.work.planes = (uint8_t *)take(scratch, tokens * wide / 2 + 1);
  s.work.packed = (i32x16 *)take(scratch, threads * wide / 4 * ROWS);
  return s;
}

size_t scratch_floats(const Decoder *d, int64_t tokens, int64_t longest, int64_t threads) {
  float *end = NULL;
  divide(&end, d, tokens, longest, threads);
  return (size_t)((uintptr_t)end / sizeof(float)) + LANES;  // and room to align the first
}

static void run(Team *team, const Decoder *d, const Step *s) {
  const int T = s->tokens;
  float *start = (float *)(((uintptr_t)s->scratch + 63) & ~(uintptr_t)63);
  const Scratch m = divide(&start, d, T, s->longest, s->threads);
  for (int i = 0; i < d->layers; i++) {
    const Layer *y = d->layer + i;
    norm_all(s->x, y->attention_norm, d, T, m.h);
    linear(team, &y->qkv, m.h, T, m.middle, &m.work);
    AttentionCall attention = {d, y, s, i, m.middle, m.inner, m.scores, m.work.copies};
    share(team, place_task, &attention, T);
    share(team, attend_task, &attention, T * d->heads);
    linear(team, &y->output, m.inner, T, m.h, &m.work);
    add_all(s->x, m.h, y->after_attention_norm, d, T);

    norm_all(s->x, y->mlp_norm, d, T, m.h);
    linear(team, &y->gate_up, m.h, T, m.middle, &m.work);
    ActivateCall activation = {d, m.middle, m.inner};
    share(team, activate_task, &activation, T);
    linear(team, &y->down, m.inner, T, m.h, &m.work);
    add_all(s->x, m.h, y->after_mlp_norm, d, T);
  }
  for (int j = 0; j < s->selected; j++)
    rms_norm(s->x + (size_t)s->select[j] * d->hidden, d->norm, d->eps, d->hidden, m.h + (size_t)j * d->hidden);
  linear(team, &d->head, m.h, s->selected, s->logits, &m.work);
}

void step(const Decoder *d, const Step *s) {
  Team team = {.threads = s->threads};
#pragma omp parallel num_threads(s->threads)
  {
    int thread = 0;
#ifdef _OPENMP
    extern int omp_get_thread_num(void);
    thread = omp_get_thread_num();
#endif
    if (thread) {
      help(&team, thread);
    } else {
      run(&team, d, s);
      atomic_store_explicit(&team.over, 1, memory_order_release);
    }
  }
}
