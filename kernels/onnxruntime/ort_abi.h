// The part of ONNX Runtime's C interface that a custom-operator library needs, as facts of its ABI.
//
// No wheel of ONNX Runtime carries its headers. The interface is a table of function pointers that
// only ever grows at its end, so a slot number, once published, stays: those used here have all
// existed since version 1.18 (API 18), and tests run them against the installed release.
// Knows slots and layouts. Does not know our operators.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tollhouse::ort {

// API version asked for at load: the oldest whose table has every slot below.
constexpr uint32_t kApiVersion = 18;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kUint8 = 2, kInt64 = 7 };
enum Presence : int { kRequired = 0, kOptional = 1 };

struct Status;
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;
struct CustomOp;
struct Table;  // OrtApi: read through Api below

struct ApiBase {
  const Table* (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

// One operator: the callbacks ONNX Runtime makes, in the order of its OrtCustomOp.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Table*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Presence (*input_presence)(const CustomOp*, size_t);
  Presence (*output_presence)(const CustomOp*, size_t);
  int (*input_memory_type)(const CustomOp*, size_t);
  int (*variadic_input_min)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_min)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Table*, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "26 pointer-sized fields, no padding");

// Typed access to the slots we use. A null Status* is success.
class Api {
 public:
  explicit Api(const Table* table) : slots_(reinterpret_cast<void* const*>(table)) {}

  Status* create_status(ErrorCode code, const char* message) const {
    return call<0, Status*>(code, message);
  }
  const char* error_message(const Status* s) const { return call<2, const char*>(s); }
  void release(Status* s) const { call<93, void>(s); }

  Status* create_domain(const char* name, CustomOpDomain** out) const {
    return call<26, Status*>(name, out);
  }
  Status* add_op(CustomOpDomain* domain, const CustomOp* op) const {
    return call<27, Status*>(domain, op);
  }
  Status* add_domain(SessionOptions* options, CustomOpDomain* domain) const {
    return call<28, Status*>(options, domain);
  }

  Status* mutable_data(Value* value, void** out) const { return call<51, Status*>(value, out); }
  Status* tensor_info(const Value* value, TensorInfo** out) const {
    return call<65, Status*>(value, out);
  }
  Status* element_type(const TensorInfo* info, ElementType* out) const {
    return call<60, Status*>(info, out);
  }
  Status* rank(const TensorInfo* info, size_t* out) const { return call<61, Status*>(info, out); }
  Status* dims(const TensorInfo* info, int64_t* out, size_t rank) const {
    return call<62, Status*>(info, out, rank);
  }
  void release(TensorInfo* info) const { call<99, void>(info); }

  Status* attribute(const KernelInfo* info, const char* name, float* out) const {
    return call<85, Status*>(info, name, out);
  }
  Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const {
    return call<86, Status*>(info, name, out);
  }
  Status* attribute(const KernelInfo* info, const char* name, char* out, size_t* size) const {
    return call<87, Status*>(info, name, out, size);
  }
  Status* node_name(const KernelInfo* info, char* out, size_t* size) const {
    return call<244, Status*>(info, out, size);
  }
  Status* constant_input(const KernelInfo* info, size_t i, int* constant, const Value** out) const {
    return call<249, Status*>(info, i, constant, out);
  }

  Status* input(const KernelContext* context, size_t i, const Value** out) const {
    return call<90, Status*>(context, i, out);
  }
  Status* output(KernelContext* context, size_t i, const int64_t* dims, size_t rank,
                 Value** out) const {
    return call<91, Status*>(context, i, dims, rank, out);
  }
  Status* gpu_stream(const KernelContext* context, void** out) const {
    return call<193, Status*>(context, out);
  }
  Status* parallel_for(const KernelContext* context, void (*task)(void*, size_t), size_t tasks,
                       size_t batches, void* state) const {
    return call<274, Status*>(context, task, tasks, batches, state);
  }

 private:
  template <size_t kSlot, class Result, class... Args>
  Result call(Args... args) const {
    return reinterpret_cast<Result (*)(Args...)>(slots_[kSlot])(args...);
  }

  void* const* slots_;
};

}  // namespace tollhouse::ort
