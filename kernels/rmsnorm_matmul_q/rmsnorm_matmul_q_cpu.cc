// RmsNormMatMulQ on the CPU: a normalised row is quantised while it is in the first-level cache.
#include "rmsnorm_matmul_q.h"

namespace tollhouse {

void rmsnorm_matmul_q(const Isa& isa, Accuracy accuracy, const Matrices& w, const InputRows& in,
                      const float* bias, float* y, const Threads& threads) {
  multiply(isa, accuracy, w, prepare(isa, accuracy, in, w, threads), bias, y, threads);
}

}  // namespace tollhouse
