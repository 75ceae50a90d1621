// Isa: the few inner loops that each instruction set has its own version of, and their choice.
//
// Everything above this file is the same code on every machine. The set is chosen once per process
// by what the CPU reports, or by TOLLHOUSE_ISA (avx512vnni, avx2 or scalar) for tests and bug hunts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tollhouse {

// How activations enter the product; the numbers are those of ONNX Runtime's accuracy_level.
enum class Accuracy : int { kFloat = 1, kInt8 = 4 };

constexpr int kRowsMax = 16;  // rows of activations that one call of a dot product takes

// Activations of one call, ready for the dot products: for each group of kRowsMax rows, block after
// block, the rows of the group side by side. All rows of a register block then sit at constant
// distances from one pointer (README.md, "What was tried"). Block sums carry the affine term of W:
// sum_k (d q + m) x = d * sum_k q x + m * sum_k x.
struct Activations {
  int rows;
  int blocks;
  const float* x;      // Accuracy::kFloat: [groups, blocks, kRowsMax, 32]
  const int8_t* q;     // Accuracy::kInt8, likewise: x ~ scale * q
  const float* scale;  // Accuracy::kInt8: [groups, blocks, kRowsMax]
  const float* sum;    // [groups, blocks, kRowsMax], of the block as multiplied: scale * sum(q)

  // Index of the first block of a row in scale and sum; times 32, in x and q. The next block of the
  // same row is kRowsMax further on.
  size_t first_block(int row) const {
    return static_cast<size_t>(row / kRowsMax) * blocks * kRowsMax + row % kRowsMax;
  }
};

// out [rows, 16] = activations of `rows` rows from first_row, all of one group, times one tile.
// A row's result depends on nothing but that row: not on its neighbours, not on the thread.
using Dot = void (*)(const uint8_t* tile, const Activations&, int first_row, int rows, float* out);

struct Isa {
  const char* name;
  Dot float_dot[2];  // [half_scales]
  Dot int8_dot[2];
  // residual = x + skip (skip may be null); h = residual / rms(residual) * gain. residual may be null.
  void (*rms_norm)(const float* x, const float* skip, const float* gain, float epsilon, int width,
                   float* residual, float* h);
  // One row into its places in Activations. Symmetric int8 per block: scale = max|x| / 127, round to
  // nearest even.
  void (*quantize)(const float* x, int blocks, int8_t* q, float* scale, float* sum);
  void (*arrange)(const float* x, int blocks, float* arranged, float* sum);
  // y = silu(gate) * up
  void (*swiglu)(const float* gate, const float* up, int count, float* y);
};

extern const Isa kScalarIsa;
#ifdef __x86_64__
extern const Isa kAvx2Isa;
extern const Isa kAvx512VnniIsa;
#endif

// The set in use. Null if TOLLHOUSE_ISA names one that does not exist or that this CPU lacks.
const Isa* chosen_isa();

}  // namespace tollhouse
