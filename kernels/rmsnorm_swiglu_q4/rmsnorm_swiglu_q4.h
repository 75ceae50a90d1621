// RmsNormSwiGLUQ4: residual add, RMSNorm, gate and up products and SwiGLU in one pass. See README.md.
#pragma once

#include "../common/q4_product.h"

namespace tollhouse {

// gate_up holds two sources, gate first. y [rows, F] = silu(h @ Wg^T) * (h @ Wu^T) with
// h = rms_norm(x + skip) * gain; in.gain must be given.
void rmsnorm_swiglu_q4(const Isa& isa, Accuracy accuracy, const Q4Matrix& gate_up,
                       const InputRows& in, float* y, const Threads& threads);

}  // namespace tollhouse
