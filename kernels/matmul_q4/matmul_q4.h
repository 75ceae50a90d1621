// MatMulQ4: y = x @ W^T with 4-bit W. The folder's README.md has the idea and the roofline.
#pragma once

#include "../common/q4_product.h"

namespace tollhouse {

// x [rows, K], y [rows, N], both float32.
void matmul_q4(const Isa& isa, Accuracy accuracy, const Q4Matrix& w, const float* x, int rows,
               float* y, const Threads& threads);

}  // namespace tollhouse
