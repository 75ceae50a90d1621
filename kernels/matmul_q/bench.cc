// Benchmark of MatMulQ: a down projection in every type, and Qwen2.5-Coder-0.5B's head.
#include "../common/bench.h"

#include "matmul_q.h"

namespace {

void measure(tollhouse::Type type, int n, int k) {
  using namespace tollhouse;
  const Isa& isa = *chosen_isa();
  const bench::Weights weights(type, n, k, 1);
  const auto copies = bench::cold_copies({weights.as_records()});
  for (int rows : {1, 4, 16, 128}) {
    const std::vector<float> x = bench::normal(static_cast<size_t>(rows) * k, 2);
    std::vector<float> y(static_cast<size_t>(rows) * n);
    const auto run = [&](int copy) {
      matmul_q(isa, Accuracy::kInt8, copies[copy], x.data(), rows, y.data(), Threads::serial());
    };
    run(0);
    std::vector<double> expected;
    for (int i = 0; i < n; i++) expected.push_back(weights.product(i, x.data()));
    bench::check(y, expected);
    char name[64];
    std::snprintf(name, sizeof name, "%s %d x %d", form_of(type).name, n, k);
    bench::time(name, rows, bench::size_bytes_of(copies[0]),
                static_cast<double>(rows) * n * k, static_cast<int>(copies.size()), run);
  }
}

}  // namespace

int main() {
  for (int type = 0; type < tollhouse::kTypes; type++) {
    measure(tollhouse::Type{type}, 1536, 8960);
  }
  measure(tollhouse::Type::kQ8_0, 151936, 896);
}
