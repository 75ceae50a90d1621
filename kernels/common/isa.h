// Isa: the few inner loops that each instruction set has its own version of, and their choice.
//
// Everything above this file is the same code on every machine. The set is chosen once per process
// by what the CPU reports, or by TOLLHOUSE_ISA (avx512vnni, avx2 or scalar) for tests and bug hunts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "gguf_blocks.h"

namespace tollhouse {

// How activations enter the product; the numbers are those of ONNX Runtime's accuracy_level.
enum class Accuracy : int { kFloat = 1, kInt8 = 4 };

constexpr int kRowsMax = 16;  // rows of activations that one call of a dot product takes

// The codes of weight 0 that types without a minimum have.
constexpr std::array<int, 4> kOffsets = {8, 16, 32, 128};

// Place of a type's offset in kOffsets; past its end where the type has a minimum instead.
constexpr size_t offset_place(Type type) {
  size_t place = 0;
  while (place < kOffsets.size() && kOffsets[place] != form_of(type).offset) place++;
  return place;
}

// Activations of one call, ready for the dot products: for each group of kRowsMax rows, block after
// block, the rows of the group side by side. All rows of a register block then sit at constant
// distances from one pointer (README.md, "What was tried"). A call of fewer rows keeps only as many
// places: one row with 15 empty ones beside it would use an eighth of the first-level cache's sets.
// Sums carry the affine part of W:
// sum_k (d (code - offset) + m) x = d * (sum_k code x - offset * sum_k x) + m * sum_k x.
struct Activations {
  int rows;
  int blocks;
  int beside;           // rows side by side: kRowsMax, or all if they are fewer
  const float* x;       // Accuracy::kFloat: [groups, blocks, beside, 32]
  const float* halves;  // Accuracy::kFloat: [groups, blocks, beside, 2], sums of 16 k
  const int8_t* q;      // Accuracy::kInt8, as x: x ~ scale * q
  const float* scale;   // Accuracy::kInt8: [groups, blocks, beside]
  const float* sum;     // likewise: scale * sum(q)
  // Accuracy::kInt8: [groups, blocks, beside, 2], -offset * sum(q) of 16 k: where the integer
  // sums begin. One array for each offset that a type has; null where no matrix of the call has it.
  std::array<const int32_t*, kOffsets.size()> starts;

  // Index of the first block of a row in scale and sum; times 32, in x and q; times 2, in halves and
  // starts. The next block of the same row is `beside` further on.
  size_t first_block(int row) const {
    return static_cast<size_t>(row / beside) * blocks * beside + row % beside;
  }
};

// out [rows, 16] = activations of `rows` rows from first_row, all of one group, times one tile.
// A row's result depends on nothing but that row: not on its neighbours, not on the thread.
using Dot = void (*)(const uint8_t* tile, const Activations&, int first_row, int rows, float* out);

using Dots = std::array<Dot, kTypes>;  // by Type

struct Isa {
  const char* name;
  Dots float_dots, int8_dots;
  // residual = x + skip (skip may be null); h = residual / rms(residual) * gain. residual may be null.
  void (*rms_norm)(const float* x, const float* skip, const float* gain, float epsilon, int width,
                   float* residual, float* h);
  // One row into its places in Activations. Symmetric int8 per block: scale = max|x| / 127, round to
  // nearest even. halves: sum(q) of 16 k, as starts.
  void (*quantize)(const float* x, int blocks, int beside, int8_t* q, float* scale, float* sum,
                   int32_t* halves);
  void (*arrange)(const float* x, int blocks, int beside, float* arranged, float* halves);
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
