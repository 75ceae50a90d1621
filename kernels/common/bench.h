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
#include "product.h"

namespace tollhouse::bench {

// Random weights [n, k] in the records of a type, every bit drawn, with small scales.
struct Weights {
  Type type;
  int n, k;
  std::vector<uint8_t> records;

  Weights(Type type_, int n_, int k_, unsigned seed) : type(type_), n(n_), k(k_) {
    std::mt19937 random(seed);
    const Form form = form_of(type);
    records.resize(static_cast<size_t>(n) * row_bytes());
    for (uint8_t& byte : records) byte = static_cast<uint8_t>(random());
    // 2^-10 to 2^-9 as fp16, and a hundredth of it where small scales multiply it once more.
    const uint8_t high_byte = form.is_k() ? 0x04 : 0x14;
    for (size_t at = 0; at < records.size(); at += form.bytes) {
      const size_t d = at + (type == Type::kQ6_K ? 208 : 0);
      records[d + 1] = high_byte;
      if (form.minimum) records[d + 3] = high_byte;
    }
  }

  size_t row_bytes() const {
    const Form form = form_of(type);
    return static_cast<size_t>(k / kBlock / form.blocks) * form.bytes;
  }

  Records as_records() const { return {type, n, k, records.data()}; }

  // The definition, in double: sum over k of (scale * code + shift) x.
  double product(int row, const float* x) const {
    const Form form = form_of(type);
    double sum = 0;
    for (int b = 0; b < k / kBlock; b++) {
      const uint8_t* record = records.data() + row * row_bytes() + b / form.blocks * form.bytes;
      const Affine w = affine_at(type, record, b % form.blocks);
      for (int i = 0; i < kBlock; i++) {
        const Codes eight = codes_at(type, record, b % form.blocks, i % 16 / 4);
        const int code = (i < 16 ? eight.low : eight.high) >> i % 4 * 8 & 255u;
        const double weight = i < 16 ? static_cast<double>(w.low_scale) * code + w.low_shift
                                     : static_cast<double>(w.high_scale) * code + w.high_shift;
        sum += weight * x[b * kBlock + i];
      }
    }
    return sum;
  }
};

// Enough copies of matrices to read past a 32 MB last-level cache; two are taken to be gate and up.
inline std::vector<Matrices> cold_copies(const std::vector<Records>& parts) {
  std::vector<Matrices> copies;
  size_t size_bytes = 0;
  while (copies.size() < 2 || size_bytes < size_t{64} << 20) {
    Matrices& matrices = copies.emplace_back();
    if (parts.size() == 2) {
      matrices = QuantizedMatrix::taking_turns(parts);
    } else {
      for (const Records& part : parts) matrices.emplace_back(part);
    }
    for (const QuantizedMatrix& matrix : matrices) size_bytes += matrix.size_bytes();
  }
  return copies;
}

inline size_t size_bytes_of(const Matrices& matrices) {
  size_t sum = 0;
  for (const QuantizedMatrix& matrix : matrices) sum += matrix.size_bytes();
  return sum;
}

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
