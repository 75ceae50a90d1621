// Preparation of activations and the plain product. See q4_product.h.
#include "q4_product.h"

#include <vector>

namespace tollhouse {
namespace {

// Grows to the largest call that a thread has made and stays.
struct Scratch {
  std::vector<float> x, scale, sum;
  std::vector<int8_t> q;
};
thread_local Scratch t_scratch;
thread_local std::vector<float> t_row;

template <class T>
T* at_least(std::vector<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace

Activations prepare(const Isa& isa, Accuracy accuracy, const InputRows& in,
                    const Threads& threads) {
  const bool int8 = accuracy == Accuracy::kInt8, norm = in.gain != nullptr;
  const int blocks = in.width / kBlock;
  const size_t rows = in.rows, width = in.width;
  const size_t places = (rows + kRowsMax - 1) / kRowsMax * kRowsMax * blocks;
  float* sum = at_least(t_scratch.sum, places);
  float* scale = int8 ? at_least(t_scratch.scale, places) : nullptr;
  int8_t* q = int8 ? at_least(t_scratch.q, places * kBlock) : nullptr;
  float* x = int8 ? nullptr : at_least(t_scratch.x, places * kBlock);
  const Activations a{in.rows, blocks, x, q, scale, sum};

  const auto prepare_row = [&](size_t r) {
    const float* row = in.x + r * width;
    const size_t first = a.first_block(static_cast<int>(r));
    if (norm) {
      float* h = at_least(t_row, width);
      isa.rms_norm(row, in.skip ? in.skip + r * width : nullptr, in.gain, in.epsilon, in.width,
                   in.residual ? in.residual + r * width : nullptr, h);
      row = h;
    }
    if (int8) {
      isa.quantize(row, blocks, q + first * kBlock, scale + first, sum + first);
    } else {
      isa.arrange(row, blocks, x + first * kBlock, sum + first);
    }
  };
  // A row takes a fraction of a microsecond: fewer than 16 are done before a thread would wake.
  constexpr size_t kRowsPerTask = 8;
  const size_t tasks = rows < 2 * kRowsPerTask ? 1 : (rows + kRowsPerTask - 1) / kRowsPerTask;
  threads.parallel(tasks, [&](size_t task) {
    for (size_t r = rows * task / tasks; r < rows * (task + 1) / tasks; r++) prepare_row(r);
  });
  return a;
}

void multiply(const Isa& isa, Accuracy accuracy, const Q4Matrix& w, const Activations& a, float* y,
              const Threads& threads) {
  const Dot dot = dot_of(isa, accuracy, w);
  walk(w, a.rows, threads, [&](int tile, int first_row, int rows) {
    alignas(64) float sums[kRowsMax * kLanes];
    dot(w.tile(tile, 0), a, first_row, rows, sums);
    const int column = tile * kLanes, lanes = std::min(kLanes, w.rows() - column);
    for (int r = 0; r < rows; r++) {
      float* out = y + static_cast<size_t>(first_row + r) * w.rows() + column;
      std::copy_n(sums + r * kLanes, lanes, out);
    }
  });
}

}  // namespace tollhouse
