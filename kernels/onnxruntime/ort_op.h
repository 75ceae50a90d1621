// One custom operator of ONNX Runtime: reading its node, checking its tensors, failing politely.
//
// A kernel class declares kName, kInputs and kOutputs, is built from a Node and has compute(Call&).
// It throws Refused for anything wrong with the graph or the tensors; here, at the border, that
// becomes a status, so that no exception crosses the C interface.
#pragma once

#include <array>
#include <cstdio>
#include <exception>
#include <string>

#include "ort_abi.h"

namespace tollhouse::ort {

struct Refused : std::exception {
  explicit Refused(std::string text) : message(std::move(text)) {}
  const char* what() const noexcept override { return message.c_str(); }
  std::string message;
};

// A call into ONNX Runtime that should not fail, failed: its status is passed on as it is.
struct Failed {
  Status* status;
};

inline void must(Status* status) {
  if (status != nullptr) throw Failed{status};
}

struct Port {
  const char* name;
  ElementType type;
  Presence presence = kRequired;
};

// Dimensions without a heap: ours have two to four.
struct Dims {
  static constexpr size_t kRankMax = 8;
  std::array<int64_t, kRankMax> at{};
  size_t rank = 0;

  int64_t back() const { return at[rank - 1]; }
  int64_t rows() const {
    int64_t product = 1;
    for (size_t i = 0; i + 1 < rank; i++) product *= at[i];
    return product;
  }
  Dims with(int64_t size) const {
    Dims other = *this;
    if (rank == kRankMax) throw Refused("a tensor has rank " + std::to_string(rank) + " already");
    other.at[other.rank++] = size;
    return other;
  }
  Dims with_last(int64_t size) const {
    Dims other = *this;
    other.at[rank - 1] = size;
    return other;
  }
  bool operator==(const Dims& o) const { return rank == o.rank && at == o.at; }
  std::string text() const {
    std::string s = "[";
    for (size_t i = 0; i < rank; i++) s += (i ? ", " : "") + std::to_string(at[i]);
    return s + "]";
  }
};

inline Dims dims_of(std::initializer_list<int64_t> sizes) {
  Dims d;
  for (int64_t size : sizes) d.at[d.rank++] = size;
  return d;
}

inline Dims read_dims(const Api& api, const Value* value, const std::string& what) {
  TensorInfo* info = nullptr;
  must(api.tensor_info(value, &info));
  Dims d;
  Status* status = api.rank(info, &d.rank);
  const bool readable = status == nullptr && d.rank >= 1 && d.rank <= Dims::kRankMax;
  if (readable) status = api.dims(info, d.at.data(), d.rank);
  api.release(info);
  must(status);
  if (!readable) throw Refused(what + " has rank " + std::to_string(d.rank) + ", not 1 to 8");
  return d;
}

inline const void* read_data(const Api& api, const Value* value) {
  void* bytes = nullptr;  // the interface has no const twin; inputs are only ever read
  must(api.mutable_data(const_cast<Value*>(value), &bytes));
  return bytes;
}

// The node that a kernel is being made for.
class Node {
 public:
  Node(const Api& api, const KernelInfo* info, const char* op) : api_(api), info_(info), op_(op) {}

  const Api& api() const { return api_; }

  // "RmsNormMatMulQ 'blk.0.qkv'": how every message starts.
  std::string title() const {
    char name[256] = "";
    size_t size = sizeof name;
    if (Status* status = api_.node_name(info_, name, &size)) api_.release(status);
    return op_ + (" '" + std::string(name)) + "'";
  }

  int64_t integer(const char* name) const { return attribute<int64_t>(name); }
  float real(const char* name) const { return attribute<float>(name); }

  // An attribute of up to 255 bytes.
  std::string text(const char* name) const {
    char value[256] = "";
    size_t size = sizeof value;
    if (Status* status = api_.attribute(info_, name, value, &size)) {
      api_.release(status);
      throw Refused(title() + ": attribute " + name + " is missing or not a short text");
    }
    return value;
  }

  struct Constant {
    const void* data;
    Dims dims;
  };

  // An input that must be an initializer.
  Constant constant(size_t index, const char* name) const {
    int is_constant = 0;
    const Value* value = nullptr;
    must(api_.constant_input(info_, index, &is_constant, &value));
    if (is_constant == 0 || value == nullptr) {
      throw Refused(title() + ": " + name + " must be a constant initializer");
    }
    return {read_data(api_, value), read_dims(api_, value, title() + ": " + name)};
  }

 private:
  template <class T>
  T attribute(const char* name) const {
    T value{};
    if (Status* status = api_.attribute(info_, name, &value)) {
      api_.release(status);
      throw Refused(title() + ": attribute " + name + " is missing or of another type");
    }
    return value;
  }

  const Api& api_;
  const KernelInfo* info_;
  std::string op_;
};

// One run of a kernel.
class Call {
 public:
  Call(const Api& api, KernelContext* context) : api_(api), context_(context) {}

  template <class T>
  struct Input {
    const T* data = nullptr;  // null: an optional input that the node leaves out
    Dims dims;
  };

  template <class T = float>
  Input<T> input(size_t index, const std::string& what) const {
    const Value* value = nullptr;
    must(api_.input(context_, index, &value));
    if (value == nullptr) return {};
    return {static_cast<const T*>(read_data(api_, value)), read_dims(api_, value, what)};
  }

  // Data of an input whose shape was checked when the kernel was made.
  const void* data(size_t index) const {
    const Value* value = nullptr;
    must(api_.input(context_, index, &value));
    return read_data(api_, value);
  }

  // Null if the node leaves this output out.
  float* output(size_t index, const Dims& dims) const {
    Value* value = nullptr;
    must(api_.output(context_, index, dims.at.data(), dims.rank, &value));
    if (value == nullptr) return nullptr;
    void* bytes = nullptr;
    must(api_.mutable_data(value, &bytes));
    return static_cast<float*>(bytes);
  }

  void parallel(size_t tasks, void (*task)(void*, size_t), void* state) const {
    must(api_.parallel_for(context_, task, tasks, 0, state));
  }

  void* gpu_stream() const {
    void* stream = nullptr;
    must(api_.gpu_stream(context_, &stream));
    return stream;
  }

 private:
  const Api& api_;
  KernelContext* context_;
};

// Runs body; whatever it throws becomes a status.
template <class Body>
Status* guarded(const Api& api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const Refused& refused) {
    return api.create_status(kInvalidArgument, refused.what());
  } catch (const std::exception& error) {
    return api.create_status(kFail, error.what());
  }
}

// The table of callbacks for one kernel class on one execution provider.
template <class Kernel>
class Op : public CustomOp {
 public:
  explicit Op(const char* provider) : CustomOp{}, provider_(provider) {
    version = kApiVersion;
    name = [](const CustomOp*) { return Kernel::kName; };
    execution_provider = [](const CustomOp* op) { return static_cast<const Op*>(op)->provider_; };
    input_count = [](const CustomOp*) { return Kernel::kInputs.size(); };
    input_type = [](const CustomOp*, size_t i) { return Kernel::kInputs[i].type; };
    input_presence = [](const CustomOp*, size_t i) { return Kernel::kInputs[i].presence; };
    input_memory_type = [](const CustomOp*, size_t) { return 0; };
    output_count = [](const CustomOp*) { return Kernel::kOutputs.size(); };
    output_type = [](const CustomOp*, size_t i) { return Kernel::kOutputs[i].type; };
    output_presence = [](const CustomOp*, size_t i) { return Kernel::kOutputs[i].presence; };
    start_version = [](const CustomOp*) { return 1; };
    end_version = [](const CustomOp*) { return 1 << 30; };
    create_kernel_v2 = [](const CustomOp*, const Table* table, const KernelInfo* info,
                          void** kernel) {
      const Api api(table);
      return guarded(api, [&] {
        *kernel = new Loaded{api, Kernel(Node(api, info, Kernel::kName))};
      });
    };
    compute_v2 = [](void* kernel, KernelContext* context) {
      auto* loaded = static_cast<Loaded*>(kernel);
      return guarded(loaded->api, [&] { loaded->kernel.compute(Call(loaded->api, context)); });
    };
    destroy = [](void* kernel) { delete static_cast<Loaded*>(kernel); };
  }

 private:
  struct Loaded {
    Api api;
    Kernel kernel;
  };
  const char* provider_;
};

// Adds operators to the domain `tollhouse` of a session. The operators must outlive every session.
template <class... Ops>
Status* register_ops(const Api& api, SessionOptions* options, const Ops&... ops) {
  return guarded(api, [&] {
    // Owned by the process, like the operators: sessions made later use it again.
    static CustomOpDomain* domain = [&] {
      CustomOpDomain* fresh = nullptr;
      must(api.create_domain("tollhouse", &fresh));
      (must(api.add_op(fresh, &ops)), ...);
      return fresh;
    }();
    must(api.add_domain(options, domain));
  });
}

}  // namespace tollhouse::ort
