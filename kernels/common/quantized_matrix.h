// QuantizedMatrix: GGUF's blocks repacked once, at load, into the order in which the CPU reads them.
//
// Nothing is rounded: codes, fp16 scales and the K types' small scales stay the numbers they are. A
// tile holds 16 rows of W; tiles lie one after another, and inside a tile the blocks of 32 k:
//
//   codes   512 B for 8 bits: 8 vectors of 16 lanes x 4 bytes. Lane r of vector g holds row r; its
//           byte i is the code of k = 4g + i, which is the operand order of the 4-way dot product
//           (vpdpbusd). For fewer bits 256 B: vector g = 0..3 has the lower four bits of k = 4g + i
//           in the low nibble and of k = 16 + 4g + i in the high one
//   upper   5 bits: 64 B, bit g of lane r's byte i is the fifth of k = 4g + i, bit 4 + g that of
//           16 + 4g + i. 6 bits: 2 x 64 B, bits 2g and 2g + 1 of byte i of the first are the upper
//           two of k = 4g + i, of the second those of 16 + 4g + i
//   scales  d of 16 rows as fp16, then m where there is one. In the K types these stand once
//           before eight blocks, and a block has its small scales: 16 bytes, then 16 more
//
// Read once, in order, from first to last. Rows past N are zero. Matrices are cut from large
// reservations of huge pages, in the order in which they are made, so that the next one's beginning
// follows: a prefetch past the end of a matrix is of use. Knows layout; does not know
// instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "gguf_blocks.h"

namespace tollhouse {

constexpr int kLanes = 16;  // rows of W per tile
constexpr int kHalfBytes = kLanes * 2;  // 16 numbers as fp16

// Bytes of the parts above.
template <Type kType>
struct TileLayout {
  static constexpr Form kForm = form_of(kType);
  static constexpr int kHalves = kHalfBytes * (kForm.minimum ? 2 : 1);
  static constexpr int kHead = kForm.is_k() ? kHalves : 0;  // before each group of kForm.blocks
  static constexpr int kCodes = kForm.bits * kBlock * kLanes / 8;
  static constexpr int kScales = kForm.is_k() ? 2 * kLanes : kHalves;
  static constexpr int kBytes = kCodes + kScales;  // of a block
  static constexpr int kGroup = kHead + kForm.blocks * kBytes;
};

class QuantizedMatrix {
 public:
  // Its tiles lie one after another.
  explicit QuantizedMatrix(const Records& records);

  // Matrices of equal rows whose tiles take turns: tile 0 of each, then tile 1 of each.
  static std::vector<QuantizedMatrix> taking_turns(const std::vector<Records>& parts);

  Type type() const { return type_; }
  int rows() const { return rows_; }    // N
  int width() const { return width_; }  // K
  int tiles() const { return (rows_ + kLanes - 1) / kLanes; }
  size_t size_bytes() const { return tile_bytes_ * tiles(); }
  const uint8_t* tile(int index) const { return first_.get() + index * stride_; }

 private:
  // room: zeros, for a tile at each multiple of stride.
  QuantizedMatrix(const Records& records, std::shared_ptr<uint8_t> room, size_t stride);

  Type type_;
  int rows_, width_;
  size_t tile_bytes_, stride_;
  std::shared_ptr<uint8_t> first_;  // tile; shares the reservation that it lies in
};

// Calls body(std::integral_constant<Type, type>) for a type known at run time.
template <class Body>
auto with_type(Type type, const Body& body) {
  switch (type) {
    case Type::kQ4_0: return body(std::integral_constant<Type, Type::kQ4_0>{});
    case Type::kQ4_1: return body(std::integral_constant<Type, Type::kQ4_1>{});
    case Type::kQ5_0: return body(std::integral_constant<Type, Type::kQ5_0>{});
    case Type::kQ5_1: return body(std::integral_constant<Type, Type::kQ5_1>{});
    case Type::kQ8_0: return body(std::integral_constant<Type, Type::kQ8_0>{});
    case Type::kQ4_K: return body(std::integral_constant<Type, Type::kQ4_K>{});
    case Type::kQ5_K: return body(std::integral_constant<Type, Type::kQ5_K>{});
    default: return body(std::integral_constant<Type, Type::kQ6_K>{});
  }
}

}  // namespace tollhouse
