// RmsNormMatMulQ4: residual add, RMSNorm and 4-bit product in one pass. See README.md beside it.
#pragma once

#include "../common/q4_product.h"

namespace tollhouse {

// in.gain must be given. y [rows, N] = rms_norm(x + skip) * gain @ W^T.
void rmsnorm_matmul_q4(const Isa& isa, Accuracy accuracy, const Q4Matrix& w, const InputRows& in,
                       float* y, const Threads& threads);

}  // namespace tollhouse
