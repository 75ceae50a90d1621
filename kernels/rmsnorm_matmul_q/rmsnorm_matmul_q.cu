// RmsNormMatMulQ on the GPU. The program is ../common/cuda_cta.cuh, with norm.
#include "../common/cuda_launch.cuh"

namespace tollhouse::cuda {

int rmsnorm_matmul_q(const Problem& problem, bool int8, void* stream) {
  return launch<true, false>(problem, int8, stream);
}

}  // namespace tollhouse::cuda
