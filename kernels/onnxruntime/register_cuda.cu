// The library's door on the GPU: the same three operators for ONNX Runtime's CUDA provider.
//
// Needs libcudart and nothing else of CUDA. Enqueues on the stream that ONNX Runtime computes on, so
// a captured CUDA graph holds these kernels too.
#include <cuda_runtime.h>

#include "../common/q4_problem.h"
#include "q4_node.h"

#define TOLLHOUSE_EXPORT extern "C" __attribute__((visibility("default")))

namespace tollhouse::ort {
namespace {

using Launch = int (*)(const cuda::Q4Problem&, bool, void*);

// Weights stay where ONNX Runtime put them, in device memory; nothing is repacked.
template <class Schema>
class Q4Kernel : public Schema {
 public:
  explicit Q4Kernel(const Node& node)
      : a_(Q4Attributes::read(node, Schema::kColumns, Schema::kNorm)) {
    for (int part = 0; part < Schema::kParts; part++) {
      a_.source(node, Schema::kInputs, Schema::kFirstWeight + 3 * part);
    }
  }

  void compute(const Call& call) const {
    const Q4Call c = Q4Call::read(call, a_, Schema::kNorm);
    if (c.rows == 0) return;
    cuda::Q4Problem p{c.x,    c.skip,  c.gain,     a_.epsilon, {},
                      c.rows, a_.width, a_.columns, c.y,        c.residual};
    for (int part = 0; part < Schema::kParts; part++) {
      const size_t first = Schema::kFirstWeight + 3 * part;
      p.weights[part] = {static_cast<const uint8_t*>(call.data(first)),
                         static_cast<const float*>(call.data(first + 1)),
                         static_cast<const float*>(call.data(first + 2))};
    }
    const int error = Schema::kLaunch(p, a_.accuracy_level == 4, call.gpu_stream());
    if (error != 0) {
      throw Refused(a_.title + ": " + cudaGetErrorString(static_cast<cudaError_t>(error)));
    }
  }

 private:
  Q4Attributes a_;
};

struct MatMul {
  static constexpr const char* kName = "MatMulQ4";
  static constexpr const char* kColumns = "N";
  static constexpr auto& kInputs = kMatMulInputs;
  static constexpr auto& kOutputs = kMatMulOutputs;
  static constexpr bool kNorm = false;
  static constexpr int kFirstWeight = 1, kParts = 1;
  static constexpr Launch kLaunch = cuda::matmul_q4;
};

struct RmsNormMatMul {
  static constexpr const char* kName = "RmsNormMatMulQ4";
  static constexpr const char* kColumns = "N";
  static constexpr auto& kInputs = kRmsNormMatMulInputs;
  static constexpr auto& kOutputs = kRmsNormOutputs;
  static constexpr bool kNorm = true;
  static constexpr int kFirstWeight = 3, kParts = 1;
  static constexpr Launch kLaunch = cuda::rmsnorm_matmul_q4;
};

struct RmsNormSwiGLU {
  static constexpr const char* kName = "RmsNormSwiGLUQ4";
  static constexpr const char* kColumns = "F";
  static constexpr auto& kInputs = kRmsNormSwiGLUInputs;
  static constexpr auto& kOutputs = kRmsNormOutputs;
  static constexpr bool kNorm = true;
  static constexpr int kFirstWeight = 3, kParts = 2;
  static constexpr Launch kLaunch = cuda::rmsnorm_swiglu_q4;
};

}  // namespace
}  // namespace tollhouse::ort

TOLLHOUSE_EXPORT const char* tollhouse_ops_stamp() { return TOLLHOUSE_STAMP; }

TOLLHOUSE_EXPORT tollhouse::ort::Status* RegisterCustomOps(
    tollhouse::ort::SessionOptions* options, const tollhouse::ort::ApiBase* base) {
  using namespace tollhouse::ort;
  const Table* table = base->get_api(kApiVersion);
  if (table == nullptr) return nullptr;  // older than 1.18: nothing is registered, graphs say so
  static const Op<Q4Kernel<MatMul>> matmul("CUDAExecutionProvider");
  static const Op<Q4Kernel<RmsNormMatMul>> rmsnorm_matmul("CUDAExecutionProvider");
  static const Op<Q4Kernel<RmsNormSwiGLU>> rmsnorm_swiglu("CUDAExecutionProvider");
  return register_ops(Api(table), options, matmul, rmsnorm_matmul, rmsnorm_swiglu);
}
