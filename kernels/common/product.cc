// Preparation of activations and the plain product. See product.h.
#include "product.h"

namespace tollhouse {
namespace {

// Grows to the largest call that a thread has made and stays.
struct Scratch {
  std::vector<float> x, scale, sum, float_halves;
  std::vector<int8_t> q;
  std::vector<int32_t> halves;
  std::array<std::vector<int32_t>, kOffsets.size()> starts;
};
thread_local Scratch t_scratch;
thread_local std::vector<float> t_row;

template <class T>
T* at_least(std::vector<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

}  // namespace

Activations prepare(const Isa& isa, Accuracy accuracy, const InputRows& in, const Matrices& w,
                    const Threads& threads) {
  const bool int8 = accuracy == Accuracy::kInt8, norm = in.gain != nullptr;
  const int width = w[0].width(), blocks = width / kBlock;
  const int beside = std::min(in.rows, kRowsMax);
  const size_t rows = in.rows;
  const size_t places = (rows + beside - 1) / beside * beside * blocks;
  Scratch& scratch = t_scratch;
  float* x = int8 ? nullptr : at_least(scratch.x, places * kBlock);
  float* float_halves = int8 ? nullptr : at_least(scratch.float_halves, 2 * places);
  int8_t* q = int8 ? at_least(scratch.q, places * kBlock) : nullptr;
  float* scale = int8 ? at_least(scratch.scale, places) : nullptr;
  float* sum = int8 ? at_least(scratch.sum, places) : nullptr;
  int32_t* halves = int8 ? at_least(scratch.halves, 2 * places) : nullptr;
  std::array<int32_t*, kOffsets.size()> starts{};
  if (int8) {
    for (const QuantizedMatrix& matrix : w) {
      const size_t place = offset_place(matrix.type());
      if (place < starts.size()) starts[place] = at_least(scratch.starts[place], 2 * places);
    }
  }
  Activations a{in.rows, blocks, beside, x, float_halves, q, scale, sum, {}};
  std::copy(starts.begin(), starts.end(), a.starts.begin());

  const auto prepare_row = [&](size_t r) {
    const float* row = in.x + r * width;
    const size_t first = a.first_block(static_cast<int>(r));
    if (norm) {
      float* h = at_least(t_row, width);
      isa.rms_norm(row, in.skip ? in.skip + r * width : nullptr, in.gain, in.epsilon, width,
                   in.residual ? in.residual + r * width : nullptr, h);
      row = h;
    }
    if (!int8) {
      isa.arrange(row, blocks, beside, x + first * kBlock, float_halves + 2 * first);
      return;
    }
    isa.quantize(row, blocks, beside, q + first * kBlock, scale + first, sum + first,
                 halves + 2 * first);
    for (size_t i = 0; i < starts.size(); i++) {
      if (starts[i] == nullptr) continue;
      for (int b = 0; b < blocks; b++) {
        const size_t at = 2 * (first + static_cast<size_t>(b) * beside);
        starts[i][at] = -kOffsets[i] * halves[at];
        starts[i][at + 1] = -kOffsets[i] * halves[at + 1];
      }
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

void multiply(const Isa& isa, Accuracy accuracy, const Matrices& w, const Activations& a,
              const float* bias, float* y, const Threads& threads) {
  int tiles = 0, columns = 0;
  for (const QuantizedMatrix& matrix : w) {
    tiles += matrix.tiles();
    columns += matrix.rows();
  }
  walk(w, tiles, a.rows, threads, [&](int tile, int first_row, int rows) {
    const QuantizedMatrix* matrix = w.data();
    int first_column = 0;
    for (; tile >= matrix->tiles(); matrix++) {
      tile -= matrix->tiles();
      first_column += matrix->rows();
    }
    alignas(64) float sums[kRowsMax * kLanes];
    dot_of(isa, accuracy, *matrix)(matrix->tile(tile), a, first_row, rows, sums);
    const int lanes = std::min(kLanes, matrix->rows() - tile * kLanes);
    const int column = first_column + tile * kLanes;
    for (int r = 0; r < rows; r++) {
      float* out = y + static_cast<size_t>(first_row + r) * columns + column;
      const float* sum = sums + r * kLanes;
      for (int i = 0; i < lanes; i++) out[i] = sum[i] + (bias == nullptr ? 0.0f : bias[column + i]);
    }
  });
}

}  // namespace tollhouse
