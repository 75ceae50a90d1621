// RmsNormSwiGLUQ4 on the CPU: a gate tile and its up tile are neighbours in memory, so the two
// sums meet in registers and 2F intermediate values per row are never written.
#include "rmsnorm_swiglu_q4.h"

namespace tollhouse {

void rmsnorm_swiglu_q4(const Isa& isa, Accuracy accuracy, const Q4Matrix& gate_up,
                       const InputRows& in, float* y, const Threads& threads) {
  const Activations a = prepare(isa, accuracy, in, threads);
  const Dot dot = dot_of(isa, accuracy, gate_up);
  walk(gate_up, a.rows, threads, [&](int tile, int first_row, int rows) {
    alignas(64) float gate[kRowsMax * kLanes], up[kRowsMax * kLanes];
    dot(gate_up.tile(tile, 0), a, first_row, rows, gate);
    dot(gate_up.tile(tile, 1), a, first_row, rows, up);
    isa.swiglu(gate, up, rows * kLanes, gate);
    const int column = tile * kLanes, lanes = std::min(kLanes, gate_up.rows() - column);
    for (int r = 0; r < rows; r++) {
      float* out = y + static_cast<size_t>(first_row + r) * gate_up.rows() + column;
      std::copy_n(gate + r * kLanes, lanes, out);
    }
  });
}

}  // namespace tollhouse
