// The product that the operators share. Rows are prepared once, then tiles are walked by threads.
//
// A kernel is a prologue (what becomes of a row before the product), this walk, and an epilogue (what
// becomes of the sums of 16 outputs). Allocates nothing once its thread-local scratch has grown.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "isa.h"
#include "quantized_matrix.h"
#include "threads.h"

namespace tollhouse {

// Matrices of one width that meet the same rows. Each has a type of its own.
using Matrices = std::vector<QuantizedMatrix>;

// Rows that enter a product: plain, or normalised on the way in when gain is given.
struct InputRows {
  const float* x;               // [rows, width]
  int rows;
  const float* gain = nullptr;  // [width]; null: no normalisation
  const float* skip = nullptr;  // [rows, width], added before normalisation
  float epsilon = 0;
  float* residual = nullptr;    // [rows, width], receives x + skip; may be null
};

// Normalises and quantises each row, for products with these matrices. The result lives in the
// calling thread's scratch, until its next call.
Activations prepare(const Isa& isa, Accuracy accuracy, const InputRows& in, const Matrices& w,
                    const Threads& threads);

// Tasks that a walk is cut into: about 16 KB of weights' worth of time each (a microsecond at
// 16 GB/s, ten times the cost of claiming a task), and enough to balance 16 threads.
inline size_t task_count(const Matrices& w, int tiles, int rows) {
  constexpr size_t kTaskBytes = 16 << 10, kTasksMax = 64;
  size_t size_bytes = 0;
  for (const QuantizedMatrix& matrix : w) size_bytes += matrix.size_bytes();
  const size_t work = size_bytes * static_cast<size_t>(std::max(1, rows / 4));
  return std::min({work / kTaskBytes + 1, kTasksMax, static_cast<size_t>(tiles)});
}

// Calls body(tile, first_row, rows) for tiles 0..tiles - 1 and every group of up to kRowsMax rows.
// 128 rows at a time: their int8 activations stay in the second-level cache while a task's tiles
// pass by.
template <class Body>
void walk(const Matrices& w, int tiles, int rows, const Threads& threads, const Body& body) {
  constexpr int kRowsCached = 128;
  const size_t tasks = task_count(w, tiles, rows);
  threads.parallel(tasks, [&](size_t task) {
    const int begin = static_cast<int>(tiles * task / tasks);
    const int end = static_cast<int>(tiles * (task + 1) / tasks);
    for (int cached = 0; cached < rows; cached += kRowsCached) {
      const int last = std::min(rows, cached + kRowsCached);
      for (int tile = begin; tile < end; tile++) {
        for (int row = cached; row < last; row += kRowsMax) {
          body(tile, row, std::min(kRowsMax, last - row));
        }
      }
    }
  });
}

inline Dot dot_of(const Isa& isa, Accuracy accuracy, const QuantizedMatrix& w) {
  const Dots& dots = accuracy == Accuracy::kInt8 ? isa.int8_dots : isa.float_dots;
  return dots[static_cast<size_t>(w.type())];
}

// y [rows, sum of N]: the products with each matrix side by side, plus bias [sum of N] if not null.
void multiply(const Isa& isa, Accuracy accuracy, const Matrices& w, const Activations& a,
              const float* bias, float* y, const Threads& threads);

}  // namespace tollhouse
