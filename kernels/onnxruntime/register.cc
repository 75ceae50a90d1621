// The library's door on the CPU: three operators for ONNX Runtime, and the stamp of their sources.
#include "../common/isa.h"
#include "../matmul_q4/matmul_q4.h"
#include "../rmsnorm_matmul_q4/rmsnorm_matmul_q4.h"
#include "../rmsnorm_swiglu_q4/rmsnorm_swiglu_q4.h"
#include "q4_node.h"

#define TOLLHOUSE_EXPORT extern "C" __attribute__((visibility("default")))

namespace tollhouse::ort {
namespace {

Threads pool_of(const Call& call) {
  return {const_cast<Call*>(&call),
          [](void* pool, size_t tasks, void (*task)(void*, size_t), void* state) {
            static_cast<const Call*>(pool)->parallel(tasks, task, state);
          }};
}

InputRows rows_of(const Q4Call& c, const Q4Attributes& a) {
  return {c.x, c.rows, a.width, c.gain, c.skip, a.epsilon, c.residual};
}

class MatMulQ4 {
 public:
  static constexpr const char* kName = "MatMulQ4";
  static constexpr auto& kInputs = kMatMulInputs;
  static constexpr auto& kOutputs = kMatMulOutputs;

  explicit MatMulQ4(const Node& node)
      : a_(Q4Attributes::read(node, "N", false)),
        w_(a_.columns, a_.width, {a_.source(node, kInputs, 1)}) {}

  void compute(const Call& call) const {
    const Q4Call c = Q4Call::read(call, a_, false);
    if (c.rows == 0) return;
    matmul_q4(*chosen_isa(), Accuracy{a_.accuracy_level}, w_, c.x, c.rows, c.y, pool_of(call));
  }

 private:
  Q4Attributes a_;
  Q4Matrix w_;
};

class RmsNormMatMulQ4 {
 public:
  static constexpr const char* kName = "RmsNormMatMulQ4";
  static constexpr auto& kInputs = kRmsNormMatMulInputs;
  static constexpr auto& kOutputs = kRmsNormOutputs;

  explicit RmsNormMatMulQ4(const Node& node)
      : a_(Q4Attributes::read(node, "N", true)),
        w_(a_.columns, a_.width, {a_.source(node, kInputs, 3)}) {}

  void compute(const Call& call) const {
    const Q4Call c = Q4Call::read(call, a_, true);
    if (c.rows == 0) return;
    rmsnorm_matmul_q4(*chosen_isa(), Accuracy{a_.accuracy_level}, w_, rows_of(c, a_), c.y,
                      pool_of(call));
  }

 private:
  Q4Attributes a_;
  Q4Matrix w_;
};

class RmsNormSwiGLUQ4 {
 public:
  static constexpr const char* kName = "RmsNormSwiGLUQ4";
  static constexpr auto& kInputs = kRmsNormSwiGLUInputs;
  static constexpr auto& kOutputs = kRmsNormOutputs;

  explicit RmsNormSwiGLUQ4(const Node& node)
      : a_(Q4Attributes::read(node, "F", true)),
        gate_up_(a_.columns, a_.width, {a_.source(node, kInputs, 3), a_.source(node, kInputs, 6)}) {
  }

  void compute(const Call& call) const {
    const Q4Call c = Q4Call::read(call, a_, true);
    if (c.rows == 0) return;
    rmsnorm_swiglu_q4(*chosen_isa(), Accuracy{a_.accuracy_level}, gate_up_, rows_of(c, a_), c.y,
                      pool_of(call));
  }

 private:
  Q4Attributes a_;
  Q4Matrix gate_up_;
};

}  // namespace
}  // namespace tollhouse::ort

// SHA-256 of the sources, as build.sh computed it; tells a stale library from a fresh one.
TOLLHOUSE_EXPORT const char* tollhouse_ops_stamp() { return TOLLHOUSE_STAMP; }

// The instruction set in use, or null if TOLLHOUSE_ISA asks for one that is not there.
TOLLHOUSE_EXPORT const char* tollhouse_ops_isa() {
  const tollhouse::Isa* isa = tollhouse::chosen_isa();
  return isa == nullptr ? nullptr : isa->name;
}

// Called by ONNX Runtime once for each session that registers the library.
TOLLHOUSE_EXPORT tollhouse::ort::Status* RegisterCustomOps(
    tollhouse::ort::SessionOptions* options, const tollhouse::ort::ApiBase* base) {
  using namespace tollhouse::ort;
  const Table* table = base->get_api(kApiVersion);
  if (table == nullptr) return nullptr;  // older than 1.18: nothing is registered, graphs say so
  const Api api(table);
  if (tollhouse::chosen_isa() == nullptr) {
    return api.create_status(kInvalidArgument,
                             "TOLLHOUSE_ISA names no instruction set of this CPU: unset it, or "
                             "choose avx512vnni, avx2 or scalar");
  }
  static const Op<MatMulQ4> matmul("CPUExecutionProvider");
  static const Op<RmsNormMatMulQ4> rmsnorm_matmul("CPUExecutionProvider");
  static const Op<RmsNormSwiGLUQ4> rmsnorm_swiglu("CPUExecutionProvider");
  return register_ops(api, options, matmul, rmsnorm_matmul, rmsnorm_swiglu);
}
