// What the operators ask of their node and their tensors, on any execution provider.
//
// Shape rules are stated once, here; the CPU and the CUDA registration add only where to run.
#pragma once

#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "../common/gguf_blocks.h"
#include "ort_op.h"

namespace tollhouse::ort {

constexpr std::array<Port, 2> kMatMulInputs = {{{"x", kFloat}, {"w", kUint8}}};
constexpr std::array<Port, 1> kMatMulOutputs = {{{"y", kFloat}}};
constexpr std::array<Port, 7> kRmsNormMatMulInputs = {{{"x", kFloat},
                                                       {"skip", kFloat, kOptional},
                                                       {"gain", kFloat},
                                                       {"bias", kFloat, kOptional},
                                                       {"w0", kUint8},
                                                       {"w1", kUint8, kOptional},
                                                       {"w2", kUint8, kOptional}}};
constexpr std::array<Port, 5> kRmsNormSwiGLUInputs = {{{"x", kFloat},
                                                       {"skip", kFloat, kOptional},
                                                       {"gain", kFloat},
                                                       {"gate", kUint8},
                                                       {"up", kUint8}}};
constexpr std::array<Port, 2> kRmsNormOutputs = {
    {{"y", kFloat}, {"residual", kFloat, kOptional}}};
constexpr std::array<Port, 2> kGatherInputs = {{{"ids", kInt64}, {"w", kUint8}}};

// The weights and attributes of a node, checked.
struct Weighted {
  std::string title;
  std::vector<Records> sources;  // of one width
  int width = 0;
  int accuracy_level = 1;  // 1 or 4
  float epsilon = 0;       // of the norm; 0 without one

  // Weights lie in the inputs from `first` on, as many as the attribute `types` has names, which
  // must be at least `least`.
  template <class Ports>
  static Weighted read(const Node& node, const Ports& ports, size_t first, size_t least) {
    Weighted w;
    w.title = node.title();
    std::istringstream names(node.text("types"));
    std::string name;
    while (names >> name) {
      const size_t place = first + w.sources.size();
      if (place == ports.size()) throw Refused(w.title + ": types names too many weights");
      w.sources.push_back(source(node, w.title, type_of(w.title, name), place, ports[place].name));
    }
    if (w.sources.size() < least) throw Refused(w.title + ": types names too few weights");
    w.width = w.sources[0].width;
    for (const Records& s : w.sources) {
      if (s.width != w.width) {
        throw Refused(w.title + ": weights are " + std::to_string(w.width) + " and " +
                      std::to_string(s.width) + " wide");
      }
    }
    return w;
  }

  // And what a product has besides.
  template <class Ports>
  static Weighted read_product(const Node& node, const Ports& ports, size_t first, size_t least,
                               bool norm) {
    Weighted w = read(node, ports, first, least);
    const int64_t level = node.integer("accuracy_level");
    if (level != 1 && level != 4) {
      throw Refused(w.title + ": accuracy_level is " + std::to_string(level) +
                    "; 1 (float32) and 4 (int8) exist");
    }
    w.accuracy_level = static_cast<int>(level);
    if (norm) w.epsilon = node.real("epsilon");
    if (!(w.epsilon >= 0)) throw Refused(w.title + ": epsilon is negative or not a number");
    return w;
  }

  // Gate and up, whose outputs are multiplied.
  void require_equal_rows() const {
    if (sources[0].rows != sources[1].rows) {
      throw Refused(title + ": gate has " + std::to_string(sources[0].rows) + " rows, up " +
                    std::to_string(sources[1].rows));
    }
  }

  int columns() const {
    int sum = 0;
    for (const Records& s : sources) sum += s.rows;
    return sum;
  }

 private:
  static Type type_of(const std::string& title, const std::string& name) {
    std::string known;
    for (int i = 0; i < kTypes; i++) {
      if (name == form_of(Type{i}).name) return Type{i};
      known += std::string(i == 0 ? "" : ", ") + form_of(Type{i}).name;
    }
    throw Refused(title + ": type " + name + " is none of " + known);
  }

  static Records source(const Node& node, const std::string& title, Type type, size_t index,
                       const char* name) {
    const Form form = form_of(type);
    const Node::Constant found = node.constant(index, name);
    const int64_t rows = found.dims.at[0], bytes = found.dims.at[1];
    if (found.dims.rank != 2 || rows < 1 || bytes < form.bytes || bytes % form.bytes != 0) {
      throw Refused(title + ": " + name + " has shape " + found.dims.text() +
                    ", expected rows of " + std::to_string(form.bytes) + "-byte records of " +
                    form.name);
    }
    const int64_t width = bytes / form.bytes * form.blocks * kBlock;
    // 2^29 columns or K: no int overflows in any sum of three.
    constexpr int64_t kMax = int64_t{1} << 29;
    if (rows > kMax || width > kMax) {
      throw Refused(title + ": " + name + " has shape " + found.dims.text() + ", too large");
    }
    return {type, static_cast<int>(rows), static_cast<int>(width),
            static_cast<const uint8_t*>(found.data)};
  }
};

// The tensors of one call of a product, checked. rows may be 0.
struct ProductCall {
  const float* x;
  const float* skip = nullptr;
  const float* gain = nullptr;
  const float* bias = nullptr;
  int rows;
  float* y;
  float* residual = nullptr;

  // columns: of y. has_bias: whether the inputs have a place for it, which may be empty.
  static ProductCall read(const Call& call, const Weighted& w, int columns, bool norm,
                          bool has_bias) {
    const auto x = call.input(0, w.title + ": x");
    if (x.dims.rank == 0 || x.dims.back() != w.width) {
      throw Refused(w.title + ": x has shape " + x.dims.text() + ", expected [..., " +
                    std::to_string(w.width) + "]");
    }
    const int64_t rows = x.dims.rows();
    const int64_t rows_max = std::numeric_limits<int>::max() / w.width;
    if (rows > rows_max) {
      throw Refused(w.title + ": " + std::to_string(rows) + " rows in one call, at most " +
                    std::to_string(rows_max));
    }
    ProductCall c{x.data, nullptr, nullptr, nullptr, static_cast<int>(rows), nullptr, nullptr};
    if (norm) {
      const auto skip = call.input(1, w.title + ": skip");
      if (skip.dims.rank != 0 && !(skip.dims == x.dims)) {
        throw Refused(w.title + ": skip has shape " + skip.dims.text() + ", x " + x.dims.text());
      }
      c.skip = skip.data;
      c.gain = vector(call, w.title, 2, "gain", w.width);
      if (has_bias) c.bias = vector(call, w.title, 3, "bias", columns);
      c.residual = call.output(1, x.dims);
    }
    c.y = call.output(0, x.dims.with_last(columns));
    return c;
  }

 private:
  static const float* vector(const Call& call, const std::string& title, size_t index,
                             const char* name, int size) {
    const auto found = call.input(index, title + ": " + name);
    if (found.data != nullptr && !(found.dims == dims_of({size}))) {
      throw Refused(title + ": " + name + " has shape " + found.dims.text() + ", expected [" +
                    std::to_string(size) + "]");
    }
    return found.data;
  }
};

}  // namespace tollhouse::ort
