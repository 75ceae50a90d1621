// The library's door on the GPU: the same operators for ONNX Runtime's CUDA provider.
//
// Needs libcudart and nothing else of CUDA. Enqueues on the stream that ONNX Runtime computes on, so
// a captured CUDA graph holds these kernels too.
#include <cuda_runtime.h>

#include "../common/cuda_problem.h"
#include "weights_node.h"

#define TOLLHOUSE_EXPORT extern "C" __attribute__((visibility("default")))

namespace tollhouse::ort {
namespace {

void launched(const std::string& title, int error) {
  if (error == 0) return;
  throw Refused(title + ": " + cudaGetErrorString(static_cast<cudaError_t>(error)));
}

// Weights stay where ONNX Runtime put them, in device memory; nothing is repacked.
template <class Schema>
class Product : public Schema {
 public:
  explicit Product(const Node& node)
      : w_(Weighted::read_product(node, Schema::kInputs, Schema::kFirstWeight, Schema::kLeast,
                                  Schema::kNorm)) {
    if (Schema::kGated) w_.require_equal_rows();
  }

  void compute(const Call& call) const {
    const int columns = Schema::kGated ? w_.sources[0].rows : w_.columns();
    const auto c = ProductCall::read(call, w_, columns, Schema::kNorm, Schema::kBias);
    if (c.rows == 0) return;
    cuda::Problem p{c.x,    c.skip,   c.gain,  c.bias, w_.epsilon, {},
                    c.rows, w_.width, columns, c.y,    c.residual};
    for (size_t i = 0; i < w_.sources.size(); i++) {
      p.weights[i] = {static_cast<const uint8_t*>(call.data(Schema::kFirstWeight + i)),
                      w_.sources[i].type, w_.sources[i].rows};
    }
    launched(w_.title, Schema::kLaunch(p, w_.accuracy_level == 4, call.gpu_stream()));
  }

 private:
  Weighted w_;
};

struct MatMul {
  static constexpr const char* kName = "MatMulQ";
  static constexpr auto& kInputs = kMatMulInputs;
  static constexpr auto& kOutputs = kMatMulOutputs;
  static constexpr bool kNorm = false, kBias = false, kGated = false;
  static constexpr size_t kFirstWeight = 1, kLeast = 1;
  static constexpr auto kLaunch = cuda::matmul_q;
};

struct RmsNormMatMul {
  static constexpr const char* kName = "RmsNormMatMulQ";
  static constexpr auto& kInputs = kRmsNormMatMulInputs;
  static constexpr auto& kOutputs = kRmsNormOutputs;
  static constexpr bool kNorm = true, kBias = true, kGated = false;
  static constexpr size_t kFirstWeight = 4, kLeast = 1;
  static constexpr auto kLaunch = cuda::rmsnorm_matmul_q;
};

struct RmsNormSwiGLU {
  static constexpr const char* kName = "RmsNormSwiGLUQ";
  static constexpr auto& kInputs = kRmsNormSwiGLUInputs;
  static constexpr auto& kOutputs = kRmsNormOutputs;
  static constexpr bool kNorm = true, kBias = false, kGated = true;
  static constexpr size_t kFirstWeight = 3, kLeast = 2;
  static constexpr auto kLaunch = cuda::rmsnorm_swiglu_q;
};

class Gather {
 public:
  static constexpr const char* kName = "GatherQ";
  static constexpr auto& kInputs = kGatherInputs;
  static constexpr auto& kOutputs = kMatMulOutputs;

  explicit Gather(const Node& node) : w_(Weighted::read(node, kInputs, 1, 1)) {}

  void compute(const Call& call) const {
    const auto ids = call.input<int64_t>(0, w_.title + ": ids");
    const Records& s = w_.sources[0];
    int64_t count = 1;
    for (size_t i = 0; i < ids.dims.rank; i++) count *= ids.dims.at[i];
    if (count > std::numeric_limits<int>::max()) throw Refused(w_.title + ": too many ids");
    float* y = call.output(0, ids.dims.with(s.width));
    if (count == 0) return;
    const cuda::GatherProblem p{ids.data, static_cast<const uint8_t*>(call.data(1)), s.type,
                                static_cast<int>(count), s.rows, s.width, y};
    launched(w_.title, cuda::gather_q(p, call.gpu_stream()));
  }

 private:
  Weighted w_;
};

}  // namespace
}  // namespace tollhouse::ort

TOLLHOUSE_EXPORT const char* tollhouse_ops_stamp() { return TOLLHOUSE_STAMP; }

TOLLHOUSE_EXPORT tollhouse::ort::Status* RegisterCustomOps(
    tollhouse::ort::SessionOptions* options, const tollhouse::ort::ApiBase* base) {
  using namespace tollhouse::ort;
  const Table* table = base->get_api(kApiVersion);
  if (table == nullptr) return nullptr;  // older than 1.18: nothing is registered, graphs say so
  static const Op<Product<MatMul>> matmul("CUDAExecutionProvider");
  static const Op<Product<RmsNormMatMul>> rmsnorm_matmul("CUDAExecutionProvider");
  static const Op<Product<RmsNormSwiGLU>> rmsnorm_swiglu("CUDAExecutionProvider");
  static const Op<Gather> gather("CUDAExecutionProvider");
  return register_ops(Api(table), options, matmul, rmsnorm_matmul, rmsnorm_swiglu, gather);
}
