// Benchmark of RmsNormMatMulQ: Qwen2.5-Coder-0.5B's norm and QKV projection with its three types.
#include "../common/bench.h"

#include "rmsnorm_matmul_q.h"

int main() {
  using namespace tollhouse;
  const Isa& isa = *chosen_isa();
  constexpr int kK = 896;
  constexpr float kEpsilon = 1e-6f;
  const bench::Weights q(Type::kQ5_0, 896, kK, 1), k(Type::kQ5_0, 128, kK, 5),
      v(Type::kQ8_0, 128, kK, 6);
  const auto copies = bench::cold_copies({q.as_records(), k.as_records(), v.as_records()});
  const int columns = q.n + k.n + v.n;
  const std::vector<float> gain = bench::normal(kK, 3), bias = bench::normal(columns, 7);
  for (int rows : {1, 4, 16, 128}) {
    const size_t values = static_cast<size_t>(rows) * kK;
    const std::vector<float> x = bench::normal(values, 2), skip = bench::normal(values, 4);
    std::vector<float> y(static_cast<size_t>(rows) * columns), residual(values), h(kK);
    const auto run = [&](int copy) {
      const InputRows in{x.data(), rows, gain.data(), skip.data(), kEpsilon, residual.data()};
      rmsnorm_matmul_q(isa, Accuracy::kInt8, copies[copy], in, bias.data(), y.data(),
                       Threads::serial());
    };
    run(0);
    bench::rms_norm(x.data(), skip.data(), gain.data(), kEpsilon, kK, h.data());
    std::vector<double> expected;
    for (const bench::Weights* w : {&q, &k, &v}) {
      for (int n = 0; n < w->n; n++) {
        expected.push_back(w->product(n, h.data()) + bias[expected.size()]);
      }
    }
    bench::check(y, expected);
    bench::time("norm + qkv 1152 x 896", rows, bench::size_bytes_of(copies[0]),
                static_cast<double>(rows) * columns * kK, static_cast<int>(copies.size()), run);
  }
}
