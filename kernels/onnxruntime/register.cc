// The library's door on the CPU: the operators for ONNX Runtime, and the stamp of their sources.
#include "../common/isa.h"
#include "../gather_q/gather_q.h"
#include "../matmul_q/matmul_q.h"
#include "../rmsnorm_matmul_q/rmsnorm_matmul_q.h"
#include "../rmsnorm_swiglu_q/rmsnorm_swiglu_q.h"
#include "mapped_pages.h"
#include "weights_node.h"

#define TOLLHOUSE_EXPORT extern "C" __attribute__((visibility("default")))

namespace tollhouse::ort {
namespace {

Threads pool_of(const Call& call) {
  return {const_cast<Call*>(&call),
          [](void* pool, size_t tasks, void (*task)(void*, size_t), void* state) {
            static_cast<const Call*>(pool)->parallel(tasks, task, state);
          }};
}

InputRows rows_of(const ProductCall& c, const Weighted& w) {
  return {c.x, c.rows, c.gain, c.skip, w.epsilon, c.residual};
}

Matrices repacked(const Weighted& weighted) {
  Matrices matrices;
  for (const Records& s : weighted.sources) {
    matrices.emplace_back(s);
    drop_mapped_pages(s.at, s.size_bytes());
  }
  return matrices;
}

// Gate and up, in the order in which they are read.
Matrices repacked_pair(const Weighted& weighted) {
  weighted.require_equal_rows();
  Matrices matrices = QuantizedMatrix::taking_turns(weighted.sources);
  for (const Records& s : weighted.sources) drop_mapped_pages(s.at, s.size_bytes());
  return matrices;
}

class MatMulQ {
 public:
  static constexpr const char* kName = "MatMulQ";
  static constexpr auto& kInputs = kMatMulInputs;
  static constexpr auto& kOutputs = kMatMulOutputs;

  explicit MatMulQ(const Node& node)
      : w_(Weighted::read_product(node, kInputs, 1, 1, false)), matrices_(repacked(w_)) {}

  void compute(const Call& call) const {
    const auto c = ProductCall::read(call, w_, w_.columns(), false, false);
    if (c.rows == 0) return;
    matmul_q(*chosen_isa(), Accuracy{w_.accuracy_level}, matrices_, c.x, c.rows, c.y,
             pool_of(call));
  }

 private:
  Weighted w_;
  Matrices matrices_;
};

class RmsNormMatMulQ {
 public:
  static constexpr const char* kName = "RmsNormMatMulQ";
  static constexpr auto& kInputs = kRmsNormMatMulInputs;
  static constexpr auto& kOutputs = kRmsNormOutputs;

  explicit RmsNormMatMulQ(const Node& node)
      : w_(Weighted::read_product(node, kInputs, 4, 1, true)), matrices_(repacked(w_)) {}

  void compute(const Call& call) const {
    const auto c = ProductCall::read(call, w_, w_.columns(), true, true);
    if (c.rows == 0) return;
    rmsnorm_matmul_q(*chosen_isa(), Accuracy{w_.accuracy_level}, matrices_, rows_of(c, w_), c.bias,
                     c.y, pool_of(call));
  }

 private:
  Weighted w_;
  Matrices matrices_;
};

class RmsNormSwiGLUQ {
 public:
  static constexpr const char* kName = "RmsNormSwiGLUQ";
  static constexpr auto& kInputs = kRmsNormSwiGLUInputs;
  static constexpr auto& kOutputs = kRmsNormOutputs;

  explicit RmsNormSwiGLUQ(const Node& node)
      : w_(Weighted::read_product(node, kInputs, 3, 2, true)), matrices_(repacked_pair(w_)) {}

  void compute(const Call& call) const {
    const auto c = ProductCall::read(call, w_, w_.sources[0].rows, true, false);
    if (c.rows == 0) return;
    rmsnorm_swiglu_q(*chosen_isa(), Accuracy{w_.accuracy_level}, matrices_, rows_of(c, w_), c.y,
                     pool_of(call));
  }

 private:
  Weighted w_;
  Matrices matrices_;
};

class GatherQ {
 public:
  static constexpr const char* kName = "GatherQ";
  static constexpr auto& kInputs = kGatherInputs;
  static constexpr auto& kOutputs = kMatMulOutputs;

  explicit GatherQ(const Node& node) : w_(Weighted::read(node, kInputs, 1, 1)) {}

  void compute(const Call& call) const {
    const auto ids = call.input<int64_t>(0, w_.title + ": ids");
    const Records& s = w_.sources[0];
    size_t count = 1;
    for (size_t i = 0; i < ids.dims.rank; i++) count *= static_cast<size_t>(ids.dims.at[i]);
    for (size_t i = 0; i < count; i++) {
      if (ids.data[i] < 0 || ids.data[i] >= s.rows) {
        throw Refused(w_.title + ": id " + std::to_string(ids.data[i]) + " is none of 0 to " +
                      std::to_string(s.rows - 1));
      }
    }
    float* y = call.output(0, ids.dims.with(s.width));
    // Read where they are: a few rows of a mapped file, and not a copy of it all.
    const auto* records = static_cast<const uint8_t*>(call.data(1));
    gather_q(s.type, records, s.width, ids.data, count, y);
  }

 private:
  Weighted w_;
};

}  // namespace
}  // namespace tollhouse::ort

// SHA-256 of the sources, as build.sh computed it; tells a stale library from a fresh one.
TOLLHOUSE_EXPORT const char* tollhouse_ops_stamp() { return TOLLHOUSE_STAMP; }

// Raised whenever a graph for other operators would be written: native.py takes no other number.
TOLLHOUSE_EXPORT int tollhouse_ops_interface() { return 2; }

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
  static const Op<MatMulQ> matmul("CPUExecutionProvider");
  static const Op<RmsNormMatMulQ> rmsnorm_matmul("CPUExecutionProvider");
  static const Op<RmsNormSwiGLUQ> rmsnorm_swiglu("CPUExecutionProvider");
  static const Op<GatherQ> gather("CPUExecutionProvider");
  return register_ops(api, options, matmul, rmsnorm_matmul, rmsnorm_swiglu, gather);
}
