// Benchmark of RmsNormSwiGLUQ: Qwen2.5-Coder-0.5B's norm, gate, up and SwiGLU. See ../common/bench.h.
#include "../common/bench.h"

#include "rmsnorm_swiglu_q.h"

int main() {
  using namespace tollhouse;
  const Isa& isa = *chosen_isa();
  constexpr int kF = 4864, kK = 896;
  constexpr float kEpsilon = 1e-6f;
  const bench::Weights gate(Type::kQ5_0, kF, kK, 1), up(Type::kQ5_0, kF, kK, 5);
  const auto copies = bench::cold_copies({gate.as_records(), up.as_records()});
  const std::vector<float> gain = bench::normal(kK, 3);
  for (int rows : {1, 4, 16, 128}) {
    const size_t values = static_cast<size_t>(rows) * kK;
    const std::vector<float> x = bench::normal(values, 2), skip = bench::normal(values, 4);
    std::vector<float> y(static_cast<size_t>(rows) * kF), residual(values), h(kK);
    const auto run = [&](int copy) {
      const InputRows in{x.data(), rows, gain.data(), skip.data(), kEpsilon, residual.data()};
      rmsnorm_swiglu_q(isa, Accuracy::kInt8, copies[copy], in, y.data(), Threads::serial());
    };
    run(0);
    bench::rms_norm(x.data(), skip.data(), gain.data(), kEpsilon, kK, h.data());
    std::vector<double> expected;
    for (int n = 0; n < kF; n++) {
      const double g = gate.product(n, h.data());
      expected.push_back(g / (1 + std::exp(-g)) * up.product(n, h.data()));
    }
    bench::check(y, expected);
    bench::time("norm + gate/up + SwiGLU", rows, bench::size_bytes_of(copies[0]),
                2.0 * rows * kF * kK, static_cast<int>(copies.size()), run);
  }
}
