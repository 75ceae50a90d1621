// RmsNormSwiGLUQ on the GPU. The program is ../common/cuda_cta.cuh, with norm, gate and up.
#include "../common/cuda_launch.cuh"

namespace tollhouse::cuda {

int rmsnorm_swiglu_q(const Problem& problem, bool int8, void* stream) {
  return launch<true, true>(problem, int8, stream);
}

}  // namespace tollhouse::cuda
