// RmsNormMatMulQ4 on the CPU: a normalised row is quantised while it is in the first-level cache.
#include "rmsnorm_matmul_q4.h"

namespace tollhouse {

void rmsnorm_matmul_q4(const Isa& isa, Accuracy accuracy, const Q4Matrix& w, const InputRows& in,
                       float* y, const Threads& threads) {
  multiply(isa, accuracy, w, prepare(isa, accuracy, in, threads), y, threads);
}

}  // namespace tollhouse
