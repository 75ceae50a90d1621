// RmsNormSwiGLUQ on the CPU: a tile of gate and its tile of up are multiplied one after the other, so
// that the two sums meet in the first-level cache and 2F intermediate values per row are never written.
#include "rmsnorm_swiglu_q.h"

namespace tollhouse {

void rmsnorm_swiglu_q(const Isa& isa, Accuracy accuracy, const Matrices& w, const InputRows& in,
                      float* y, const Threads& threads) {
  const QuantizedMatrix &gate = w[0], &up = w[1];
  const Activations a = prepare(isa, accuracy, in, w, threads);
  const Dot gate_dot = dot_of(isa, accuracy, gate), up_dot = dot_of(isa, accuracy, up);
  walk(w, gate.tiles(), a.rows, threads, [&](int tile, int first_row, int rows) {
    alignas(64) float gated[kRowsMax * kLanes], upper[kRowsMax * kLanes];
    gate_dot(gate.tile(tile), a, first_row, rows, gated);
    up_dot(up.tile(tile), a, first_row, rows, upper);
    isa.swiglu(gated, upper, rows * kLanes, gated);
    const int column = tile * kLanes, lanes = std::min(kLanes, gate.rows() - column);
    for (int r = 0; r < rows; r++) {
      float* out = y + static_cast<size_t>(first_row + r) * gate.rows() + column;
      std::copy_n(gated + r * kLanes, lanes, out);
    }
  });
}

}  // namespace tollhouse
