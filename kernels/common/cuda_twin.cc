// The CUDA kernels' host twin: the CTA program of cuda_cta.cuh, run by loops instead of a GPU.
//
// Built as a library of its own for tests/local_models/test_cuda_twin.py; never shipped. Warps run one
// after another, forwards or backwards: a phase whose result depends on that order has a race.
#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "cuda_cta.cuh"

namespace tollhouse::cuda {
namespace {

// The Cta of the host: lanes are a loop, sums follow the device's butterfly.
struct HostCta {
  bool backwards;

  template <class F>
  void phase(const F& f) {
    for (int i = 0; i < kWarps; i++) f(backwards ? kWarps - 1 - i : i);
  }

  template <int kCount, class F>
  void sums(float (&totals)[kCount], const F& f) {
    std::array<std::array<float, kCount>, kWarpLanes> lanes{};
    for (int i = 0; i < kWarpLanes; i++) {
      const int lane = backwards ? kWarpLanes - 1 - i : i;
      f(lane, lanes[lane].data());
    }
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
      for (int lane = 0; lane < distance; lane++) {
        for (int i = 0; i < kCount; i++) lanes[lane][i] += lanes[lane + distance][i];
      }
    }
    std::copy(lanes[0].begin(), lanes[0].end(), totals);
  }

  template <class F>
  float largest(const F& f) {
    float value = f(0);
    for (int lane = 1; lane < kWarpLanes; lane++) value = std::max(value, f(lane));
    return value;
  }

  template <class F>
  void once(const F& f) {
    f();
  }
};

template <bool kNorm, bool kGated, bool kInt8, int kRows>
void run_grid(const Problem& p, int columns_per_cta, bool backwards) {
  // Not a number until written: what a CTA reads before writing shows in the result.
  const size_t floats = Shared<kInt8, kRows>::size_bytes(p.width / kBlock) / sizeof(float);
  for (int row = 0; row < p.rows; row += kRows) {
    for (int column = 0; column < p.columns; column += columns_per_cta) {
      std::vector<float> shared(floats, std::numeric_limits<float>::quiet_NaN());
      const Tile tile{row, std::min(kRows, p.rows - row), column,
                      std::min(columns_per_cta, p.columns - column)};
      HostCta cta{backwards};
      run_cta<kNorm, kGated, kInt8, kRows>(cta, p, tile, shared.data());
    }
  }
}

template <bool kNorm, bool kGated, bool kInt8>
void run_rows(const Problem& p, int rows_per_cta, int columns_per_cta, bool backwards) {
  if (rows_per_cta == 1) return run_grid<kNorm, kGated, kInt8, 1>(p, columns_per_cta, backwards);
  run_grid<kNorm, kGated, kInt8, 8>(p, columns_per_cta, backwards);
}

template <bool kNorm, bool kGated>
void run(const Problem& p, bool int8, int rows_per_cta, int columns_per_cta, bool backwards) {
  if (int8) return run_rows<kNorm, kGated, true>(p, rows_per_cta, columns_per_cta, backwards);
  run_rows<kNorm, kGated, false>(p, rows_per_cta, columns_per_cta, backwards);
}

}  // namespace
}  // namespace tollhouse::cuda

// Runs one grid. op: 0 MatMulQ, 1 RmsNormMatMulQ, 2 RmsNormSwiGLUQ; rows_per_cta: 1 or 8.
extern "C" __attribute__((visibility("default"))) void tollhouse_twin_run(
    const tollhouse::cuda::Problem* problem, int op, bool int8, int rows_per_cta,
    int columns_per_cta, bool backwards) {
  using tollhouse::cuda::run;
  switch (op) {
    case 0: return run<false, false>(*problem, int8, rows_per_cta, columns_per_cta, backwards);
    case 1: return run<true, false>(*problem, int8, rows_per_cta, columns_per_cta, backwards);
    default: return run<true, true>(*problem, int8, rows_per_cta, columns_per_cta, backwards);
  }
}

// Runs GatherQ's threads, one after another.
extern "C" __attribute__((visibility("default"))) void tollhouse_twin_gather(
    const tollhouse::cuda::GatherProblem* problem) {
  for (int index = 0; index < problem->count; index++) {
    for (int eight = 0; eight < problem->width / 8; eight++) {
      tollhouse::cuda::gather_one(*problem, index, eight);
    }
  }
}

extern "C" __attribute__((visibility("default"))) const char* tollhouse_twin_stamp() {
  return TOLLHOUSE_STAMP;  // lets build.sh see that the library is fresh
}
