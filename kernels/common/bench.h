// A stand-alone benchmark: check against the plain definition, then time, one thread, no ONNX Runtime.
//
// Prints microseconds (median of rounds), the weights' rate in GB/s and the arithmetic's in
// multiply-adds per nanosecond. TOLLHOUSE_ISA chooses the instruction set.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "isa.h"
#include "q4_matrix.h"

namespace tollhouse::bench {

// Random weights [n, k] in the graph's form, with scales that fp16 holds exactly.
struct Weights {
  int n, k;
  std::vector<uint8_t> q;
  std::vector<float> d, m;

  Weights(int n_, int k_, unsigned seed) : n(n_), k(k_) {
    std::mt19937 random(seed);
    const size_t blocks = static_cast<size_t>(n) * k / kBlock;
    for (size_t i = 0; i < blocks * kBlock / 2; i++) q.push_back(static_cast<uint8_t>(random()));
    for (size_t i = 0; i < blocks; i++) {
      d.push_back(static_cast<float>(1 + random() % 15) / 1024);
      m.push_back(-static_cast<float>(random() % 128) / 1024);
    }
  }

  Q4Source source() const { return {q.data(), d.data(), m.data()}; }

  // The definition, in double: sum over k of (d q + m) x.
  double product(int row, const float* x) const {
    double sum = 0;
    for (int i = 0; i < k; i++) {
      const size_t at = static_cast<size_t>(row) * k + i;
      const int code = q[at / 2] >> at % 2 * 4 & 15;
      sum += (static_cast<double>(d[at / kBlock]) * code + m[at / kBlock]) * x[i];
    }
    return sum;
  }
};

inline std::vector<float> normal(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& v : values) v = distribution(random);
  return values;
}

inline void rms_norm(const float* x, const float* skip, const float* gain, float epsilon, int width,
                     float* h) {
  double squares = 0;
  for (int i = 0; i < width; i++) squares += std::pow(static_cast<double>(x[i]) + skip[i], 2);
  for (int i = 0; i < width; i++) {
    h[i] = static_cast<float>((x[i] + skip[i]) / std::sqrt(squares / width + epsilon) * gain[i]);
  }
}

// Exits if found is not expected to 2% of the largest value: int8 activations lose up to 1%, where
// two products are multiplied.
inline void check(const std::vector<float>& found, const std::vector<double>& expected) {
  double largest = 0, worst = 0;
  for (double e : expected) largest = std::max(largest, std::fabs(e));
  for (size_t i = 0; i < expected.size(); i++) {
    worst = std::max(worst, std::fabs(found[i] - expected[i]));
  }
  if (!(worst < 0.02 * largest)) {
    std::fprintf(stderr, "wrong: off by %.2f%% of the largest value\n", 100 * worst / largest);
    std::exit(1);
  }
}

// Enough copies of a matrix to read past a 32 MB last-level cache.
inline int cold_copies(size_t size_bytes) {
  return static_cast<int>(std::max<size_t>(2, (size_t{64} << 20) / size_bytes));
}

template <class Run>
void time(const char* what, int rows, size_t weight_bytes, double multiply_adds, int copies,
          const Run& run) {
  constexpr int kRounds = 11;
  std::vector<double> micros;
  for (int round = 0; round < kRounds; round++) {
    const auto start = std::chrono::steady_clock::now();
    for (int copy = 0; copy < copies; copy++) run(copy);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    micros.push_back(took.count() / copies);
  }
  std::sort(micros.begin(), micros.end());
  const double median = micros[kRounds / 2];
  std::printf("%-10s %-28s rows %4d  %9.1f us (%.1f-%.1f)  %5.1f GB/s  %6.1f MAC/ns\n",
              chosen_isa()->name, what, rows, median, micros[1], micros[kRounds - 2],
              static_cast<double>(weight_bytes) / median / 1e3, multiply_adds / median / 1e3);
}

}  // namespace tollhouse::bench
