// RmsNormSwiGLUQ4 on the GPU. The program is ../common/q4_cta.cuh, with norm, gate and up.
#include "../common/cuda_launch.cuh"

namespace tollhouse::cuda {

int rmsnorm_swiglu_q4(const Q4Problem& problem, bool int8, void* stream) {
  return launch<true, true>(problem, int8, stream);
}

}  // namespace tollhouse::cuda
