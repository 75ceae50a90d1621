// MatMulQ on the CPU: prepare the rows as they are, multiply.
#include "matmul_q.h"

namespace tollhouse {

void matmul_q(const Isa& isa, Accuracy accuracy, const Matrices& w, const float* x, int rows,
              float* y, const Threads& threads) {
  const InputRows in{x, rows};
  multiply(isa, accuracy, w, prepare(isa, accuracy, in, w, threads), nullptr, y, threads);
}

}  // namespace tollhouse
