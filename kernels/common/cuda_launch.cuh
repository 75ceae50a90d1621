// Launching the CTA program of cuda_cta.cuh on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda_cta.cuh"

namespace tollhouse::cuda {

// The Cta of the device: this thread is one lane of one warp.
struct DeviceCta {
  template <class F>
  __device__ void phase(const F& f) {
    f(static_cast<int>(threadIdx.x) / kWarpLanes);
    __syncthreads();
  }

  template <int kCount, class F>
  __device__ void sums(float (&totals)[kCount], const F& f) {
    for (int i = 0; i < kCount; i++) totals[i] = 0;
    f(static_cast<int>(threadIdx.x) % kWarpLanes, totals);
    for (int i = 0; i < kCount; i++) {
      for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
        totals[i] += __shfl_xor_sync(0xffffffffu, totals[i], distance);
      }
    }
  }

  template <class F>
  __device__ float largest(const F& f) {
    float value = f(static_cast<int>(threadIdx.x) % kWarpLanes);
    for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
      value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
  }

  template <class F>
  __device__ void once(const F& f) {
    if (threadIdx.x % kWarpLanes == 0) f();
  }
};

template <bool kNorm, bool kGated, bool kInt8, int kRows>
__global__ void __launch_bounds__(kWarps* kWarpLanes) product_kernel(Problem p, int columns_per_cta) {
  extern __shared__ float4 shared_bytes[];
  const int first_column = static_cast<int>(blockIdx.x) * columns_per_cta;
  const int first_row = static_cast<int>(blockIdx.y) * kRows;
  const Tile tile{first_row, min(kRows, p.rows - first_row), first_column,
                  min(columns_per_cta, p.columns - first_column)};
  DeviceCta cta;
  run_cta<kNorm, kGated, kInt8, kRows>(cta, p, tile, shared_bytes);
}

// What a CTA may use without opting in to more, on every architecture we build for.
constexpr size_t kSharedBytesMax = 48 << 10;

template <bool kNorm, bool kGated, bool kInt8, int kRows>
cudaError_t launch_rows(const Problem& p, cudaStream_t stream) {
  const size_t shared = Shared<kInt8, kRows>::size_bytes(p.width / kBlock);
  if (shared > kSharedBytesMax) {
    if constexpr (kRows > 1) {
      return launch_rows<kNorm, kGated, kInt8, kRows / 2>(p, stream);
    } else {
      return cudaErrorInvalidValue;  // K past 11,000 (float) or 38,000 (int8)
    }
  }
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return error;
  // Four CTAs per multiprocessor at most: wide matrices amortise the staging of rows.
  const int slots = kWarps * processors * 4;
  const int columns_per_cta = kWarps * ((p.columns + slots - 1) / slots);
  const dim3 grid((p.columns + columns_per_cta - 1) / columns_per_cta,
                  (p.rows + kRows - 1) / kRows);
  product_kernel<kNorm, kGated, kInt8, kRows>
      <<<grid, kWarps * kWarpLanes, shared, stream>>>(p, columns_per_cta);
  return cudaGetLastError();
}

template <bool kNorm, bool kGated>
int launch(const Problem& p, bool int8, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const auto run = [&](auto one, auto eight) { return p.rows == 1 ? one(p, on) : eight(p, on); };
  return int8 ? run(launch_rows<kNorm, kGated, true, 1>, launch_rows<kNorm, kGated, true, 8>)
              : run(launch_rows<kNorm, kGated, false, 1>, launch_rows<kNorm, kGated, false, 8>);
}

}  // namespace tollhouse::cuda
