// GatherQ on the GPU: a thread for eight weights. A row that is not there becomes not-a-number.
#include <cuda_runtime.h>

#include "../common/cuda_problem.h"
#include "gather_q.h"

namespace tollhouse::cuda {
namespace {

__global__ void gather_kernel(GatherProblem p) {
  const size_t eights = static_cast<size_t>(p.width) / 8;
  const size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= static_cast<size_t>(p.count) * eights) return;
  gather_one(p, at / eights, static_cast<int>(at % eights));
}

}  // namespace

int gather_q(const GatherProblem& problem, void* stream) {
  constexpr int kThreads = 256;
  const size_t all = static_cast<size_t>(problem.count) * problem.width / 8;
  const auto ctas = static_cast<unsigned>((all + kThreads - 1) / kThreads);
  gather_kernel<<<ctas, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(problem);
  return cudaGetLastError();
}

}  // namespace tollhouse::cuda
