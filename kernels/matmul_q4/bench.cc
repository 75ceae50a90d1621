// Benchmark of MatMulQ4: SmolLM2-135M's down projection and head. See ../common/bench.h.
#include "../common/bench.h"

#include "matmul_q4.h"

int main() {
  using namespace tollhouse;
  const Isa& isa = *chosen_isa();
  const struct {
    const char* name;
    int n, k;
  } shapes[] = {{"down 576 x 1536", 576, 1536}, {"head 49152 x 576", 49152, 576}};
  for (const auto& shape : shapes) {
    const bench::Weights weights(shape.n, shape.k, 1);
    std::vector<Q4Matrix> copies;
    do {
      copies.emplace_back(shape.n, shape.k, std::initializer_list<Q4Source>{weights.source()});
    } while (static_cast<int>(copies.size()) < bench::cold_copies(copies[0].size_bytes()));
    for (int rows : {1, 4, 16, 128}) {
      const std::vector<float> x = bench::normal(static_cast<size_t>(rows) * shape.k, 2);
      std::vector<float> y(static_cast<size_t>(rows) * shape.n);
      const auto run = [&](int copy) {
        matmul_q4(isa, Accuracy::kInt8, copies[copy], x.data(), rows, y.data(), Threads::serial());
      };
      run(0);
      std::vector<double> expected;
      for (int n = 0; n < shape.n; n++) expected.push_back(weights.product(n, x.data()));
      bench::check(y, expected);
      bench::time(shape.name, rows, copies[0].size_bytes(),
                  static_cast<double>(rows) * shape.n * shape.k, static_cast<int>(copies.size()),
                  run);
    }
  }
}
