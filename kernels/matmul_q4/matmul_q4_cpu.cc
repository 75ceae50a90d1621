// MatMulQ4 on the CPU: prepare the rows as they are, multiply.
#include "matmul_q4.h"

namespace tollhouse {

void matmul_q4(const Isa& isa, Accuracy accuracy, const Q4Matrix& w, const float* x, int rows,
               float* y, const Threads& threads) {
  const InputRows in{x, rows, w.width()};
  multiply(isa, accuracy, w, prepare(isa, accuracy, in, threads), y, threads);
}

}  // namespace tollhouse
