// Linear layers with float32 or int8 weights for few tokens; formats are those of linear_w8a8.py and
// quantized_linear.py.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "team.h"
#include "vectors.h"

#define HALVES 2
#define ROWS (HALVES * LANES)  // outputs of a chunk, the least piece of work
#define MAX_PARTS 3
#define MAX_OUTLIERS 64

enum { FLOAT = 0, INT8 = 1 };

typedef struct {
  int32_t kind, out_features;
  const void *weight;   // [out, in] row-major float32; int8 as `packed` of native/linear.py has it
  const float *scale;   // [out], INT8
  const float *bias;    // [out] or NULL
  const float *outlier_weight;  // [ceil(out / 32), outliers, 32], padded with zeros, INT8
} Part;

// Linears that read the same input; their outputs lie side by side.
typedef struct {
  int32_t parts, in_features, outliers, planes;
  const int64_t *outlier_index;  // [outliers]
  Part part[MAX_PARTS];
} Linear;

// Working memory of the linears: quantised activations of all tokens, and a copy of one for each thread.
typedef struct {
  float *scale, *outliers, *copies;
  int32_t *offset;  // [tokens, 2] what the unsigned weights add to the sums of a plane
  int8_t *planes;   // [tokens, planes, in], the high one first, each filled up with zeros to whole words of 4
} Workspace;

#pragma GCC visibility push(hidden)

// The next `count` floats of some memory, in whole cache lines; from NULL it only counts.
float *take(float **memory, size_t count);

// Working memory for up to `tokens` tokens of linears of up to `wide` input channels.
Workspace workspace(float **memory, size_t tokens, size_t wide, size_t threads);

// out [tokens, out_features]
void linear(Team *team, const Linear *l, const float *x, int tokens, float *out, const Workspace *work);

#pragma GCC visibility pop
