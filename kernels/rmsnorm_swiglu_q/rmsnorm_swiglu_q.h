// RmsNormSwiGLUQ: residual add, RMSNorm, gate and up products and SwiGLU in one pass. See README.md.
#pragma once

#include "../common/product.h"

namespace tollhouse {

// w: gate, then up, both [F, K]. y [rows, F] = silu(h @ Wg^T) * (h @ Wu^T) with
// h = rms_norm(x + skip) * gain; in.gain must be given.
void rmsnorm_swiglu_q(const Isa& isa, Accuracy accuracy, const Matrices& w, const InputRows& in,
                      float* y, const Threads& threads);

}  // namespace tollhouse
