// What the three 4-bit operators ask of their node and their tensors, on any execution provider.
//
// Shape rules are stated once, here; the CPU and the CUDA registration add only where to run.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "../common/q4_matrix.h"
#include "ort_op.h"

namespace tollhouse::ort {

constexpr std::array<Port, 4> kMatMulInputs = {
    {{"x", kFloat}, {"q", kUint8}, {"d", kFloat}, {"m", kFloat}}};
constexpr std::array<Port, 1> kMatMulOutputs = {{{"y", kFloat}}};
constexpr std::array<Port, 6> kRmsNormMatMulInputs = {{{"x", kFloat},
                                                       {"skip", kFloat, kOptional},
                                                       {"gain", kFloat},
                                                       {"q", kUint8},
                                                       {"d", kFloat},
                                                       {"m", kFloat}}};
constexpr std::array<Port, 9> kRmsNormSwiGLUInputs = {{{"x", kFloat},
                                                       {"skip", kFloat, kOptional},
                                                       {"gain", kFloat},
                                                       {"gate_q", kUint8},
                                                       {"gate_d", kFloat},
                                                       {"gate_m", kFloat},
                                                       {"up_q", kUint8},
                                                       {"up_d", kFloat},
                                                       {"up_m", kFloat}}};
constexpr std::array<Port, 2> kRmsNormOutputs = {
    {{"y", kFloat}, {"residual", kFloat, kOptional}}};

// The attributes of a node, checked.
struct Q4Attributes {
  std::string title;
  int width;           // K
  int columns;         // N or F
  int accuracy_level;  // 1 or 4
  float epsilon;       // of the norm; 0 without one

  static Q4Attributes read(const Node& node, const char* columns_name, bool norm) {
    const std::string title = node.title();
    const auto size = [&](const char* name) {
      const int64_t value = node.integer(name);
      if (value < 1 || value > std::numeric_limits<int>::max() / 2) {
        throw Refused(title + ": " + name + " is " + std::to_string(value) + ", not 1 to 2^30");
      }
      return static_cast<int>(value);
    };
    Q4Attributes a{title, size("K"), size(columns_name),
                   static_cast<int>(node.integer("accuracy_level")),
                   norm ? node.real("epsilon") : 0.0f};
    if (a.width % kBlock != 0) {
      throw Refused(title + ": K is " + std::to_string(a.width) + ", not a multiple of 32");
    }
    if (a.accuracy_level != 1 && a.accuracy_level != 4) {
      throw Refused(title + ": accuracy_level is " + std::to_string(a.accuracy_level) +
                    "; 1 (float32) and 4 (int8) exist");
    }
    if (!(a.epsilon >= 0)) throw Refused(title + ": epsilon is negative or not a number");
    return a;
  }

  // Weights in the inputs first, first + 1 and first + 2, named by the schema.
  template <class Ports>
  Q4Source source(const Node& node, const Ports& ports, size_t first) const {
    const int64_t blocks = width / kBlock;
    const Dims scales = dims_of({columns, blocks});
    return {node.constant<uint8_t>(first, ports[first].name,
                                   dims_of({columns, blocks, kBlock / 2})),
            node.constant<float>(first + 1, ports[first + 1].name, scales),
            node.constant<float>(first + 2, ports[first + 2].name, scales)};
  }
};

// The tensors of one call, checked. rows may be 0.
struct Q4Call {
  const float* x;
  const float* skip = nullptr;
  const float* gain = nullptr;
  int rows;
  float* y;
  float* residual = nullptr;

  static Q4Call read(const Call& call, const Q4Attributes& a, bool norm) {
    const auto x = call.input(0, a.title + ": x");
    if (x.dims.rank == 0 || x.dims.back() != a.width) {
      throw Refused(a.title + ": x has shape " + x.dims.text() + ", expected [..., " +
                    std::to_string(a.width) + "]");
    }
    const int64_t rows = x.dims.rows();
    const int64_t rows_max = std::numeric_limits<int>::max() / a.width;
    if (rows > rows_max) {
      throw Refused(a.title + ": " + std::to_string(rows) + " rows in one call, at most " +
                    std::to_string(rows_max));
    }
    Q4Call c{x.data, nullptr, nullptr, static_cast<int>(rows), nullptr, nullptr};
    if (norm) {
      const auto skip = call.input(1, a.title + ": skip");
      if (skip.dims.rank != 0 && !(skip.dims == x.dims)) {
        throw Refused(a.title + ": skip has shape " + skip.dims.text() + ", x " + x.dims.text());
      }
      const auto gain = call.input(2, a.title + ": gain");
      if (!(gain.dims == dims_of({a.width}))) {
        throw Refused(a.title + ": gain has shape " + gain.dims.text() + ", expected [" +
                      std::to_string(a.width) + "]");
      }
      c.skip = skip.data;
      c.gain = gain.data;
      c.residual = call.output(1, x.dims);
    }
    c.y = call.output(0, x.dims.with_last(a.columns));
    return c;
  }
};

}  // namespace tollhouse::ort
