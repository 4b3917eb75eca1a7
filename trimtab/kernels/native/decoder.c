// One decoding step of a Llama-type transformer in one call: no host work between operations.
//
// The linears are those of linear.h, the keys and values the caller's cache ([batch, kv_heads, capacity, head_dim]
// float32). A step carries M tokens, each with its row of the batch and its position.
//
// Portable C with GCC/Clang vector types.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "linear.h"

enum { SILU = 0, GELU_TANH = 1 };

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
  s.work = workspace(scratch, tokens, wide, threads);
  return s;
}

size_t scratch_floats(const Decoder *d, int64_t tokens, int64_t longest, int64_t threads) {
  float *end = NULL;
  divide(&end, d, tokens, longest, threads);
  return (size_t)((uintptr_t)end / sizeof(float)) + LANES;  // and room to align the first
}

typedef struct {
  const Decoder *decoder;
  const Step *step;
} StepCall;

static void run(Team *team, void *argument) {
  const Decoder *d = ((const StepCall *)argument)->decoder;
  const Step *s = ((const StepCall *)argument)->step;
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
  StepCall call = {d, s};
  run_team(s->threads, run, &call);
}
