// One call of a 4-bit CUDA kernel: pointers into device memory, sizes, and the three entry points.
//
// Weights are read as the graph stores them: q [N, K/32, 16], d and m [N, K/32] as float32.
#pragma once

#include <cstdint>

namespace tollhouse::cuda {

struct Q4Weights {
  const uint8_t* q;
  const float* d;
  const float* m;
};

struct Q4Problem {
  const float* x;       // [rows, width]
  const float* skip;    // [rows, width] or null
  const float* gain;    // [width] where there is a norm
  float epsilon;
  Q4Weights weights[2];  // the second only for gate and up
  int rows;
  int width;             // a multiple of 32
  int columns;
  float* y;              // [rows, columns]
  float* residual;       // [rows, width] or null
};

// Enqueue on a cudaStream_t; the result is a cudaError_t. int8: activations as int8, else float32.
int matmul_q4(const Q4Problem& problem, bool int8, void* stream);
int rmsnorm_matmul_q4(const Q4Problem& problem, bool int8, void* stream);
int rmsnorm_swiglu_q4(const Q4Problem& problem, bool int8, void* stream);

}  // namespace tollhouse::cuda
