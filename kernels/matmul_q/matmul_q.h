// MatMulQ: y = x @ W^T with W in GGUF's blocks. The folder's README.md has the idea and the roofline.
#pragma once

#include "../common/product.h"

namespace tollhouse {

// w: one matrix. x [rows, K], y [rows, N], both float32.
void matmul_q(const Isa& isa, Accuracy accuracy, const Matrices& w, const float* x, int rows,
              float* y, const Threads& threads);

}  // namespace tollhouse
