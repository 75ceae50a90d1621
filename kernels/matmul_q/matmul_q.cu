// MatMulQ on the GPU. The program is ../common/cuda_cta.cuh, without norm and without gate.
#include "../common/cuda_launch.cuh"

namespace tollhouse::cuda {

int matmul_q(const Problem& problem, bool int8, void* stream) {
  return launch<false, false>(problem, int8, stream);
}

}  // namespace tollhouse::cuda
