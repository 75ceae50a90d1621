// RmsNormMatMulQ: residual add, RMSNorm, products with up to three matrices and bias in one pass.
#pragma once

#include "../common/product.h"

namespace tollhouse {

// in.gain must be given. y [rows, sum of N] = rms_norm(x + skip) * gain @ W^T + bias, W being the
// matrices one on top of another; bias [sum of N] may be null.
void rmsnorm_matmul_q(const Isa& isa, Accuracy accuracy, const Matrices& w, const InputRows& in,
                      const float* bias, float* y, const Threads& threads);

}  // namespace tollhouse
