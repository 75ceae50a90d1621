// One call of a CUDA kernel: pointers into device memory, sizes, and the entry points.
//
// Weights are read as the graph stores them, in GGUF's records.
#pragma once

#include <cmath>
#include <cstdint>

#include "../gather_q/gather_q.h"
#include "gguf_blocks.h"

namespace tollhouse::cuda {

constexpr int kMatricesMax = 3;

struct Weights {
  const uint8_t* records;  // [columns, width / 32 / blocks in a record]
  Type type;
  int columns;
};

struct Problem {
  const float* x;         // [rows, width]
  const float* skip;      // [rows, width] or null
  const float* gain;      // [width] where there is a norm
  const float* bias;      // [columns] or null
  float epsilon;
  Weights weights[kMatricesMax];  // gate and up, or side by side; unused ones have no columns
  int rows;
  int width;              // a multiple of 32
  int columns;            // of y
  float* y;               // [rows, columns]
  float* residual;        // [rows, width] or null
};

struct GatherProblem {
  const int64_t* ids;      // [count]
  const uint8_t* records;  // [rows, width / 32 / blocks in a record]
  Type type;
  int count, rows, width;
  float* y;                // [count, width]
};

// Eight weights of one row of y.
TOLLHOUSE_BOTH inline void gather_one(const GatherProblem& p, size_t index, int eight) {
  const Form form = form_of(p.type);
  const size_t row_bytes = static_cast<size_t>(p.width / kBlock / form.blocks) * form.bytes;
  const int64_t id = p.ids[index];
  float* y = p.y + index * p.width;
  if (id < 0 || id >= p.rows) {
    const int first = eight / 4 * kBlock + eight % 4 * 4;
    for (int i = 0; i < 4; i++) y[first + i] = y[first + 16 + i] = NAN;
    return;
  }
  gather_eight(p.type, p.records + id * row_bytes, eight / 4, eight % 4, y);
}

// Enqueue on a cudaStream_t; the result is a cudaError_t. int8: activations as int8, else float32.
int matmul_q(const Problem& problem, bool int8, void* stream);
int rmsnorm_matmul_q(const Problem& problem, bool int8, void* stream);
int rmsnorm_swiglu_q(const Problem& problem, bool int8, void* stream);
int gather_q(const GatherProblem& problem, void* stream);

}  // namespace tollhouse::cuda
