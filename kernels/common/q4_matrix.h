// Q4Matrix: 4-bit weights repacked once, at load, into the order in which the CPU reads them.
//
// Weight n,k is d * q + m with q in 0..15 and one (d, m) per 32 neighbours along k. A tile holds 16
// rows of W; tiles lie one after another, and inside a tile the blocks of 32 k follow each other:
//
//   256 B  nibbles: 4 vectors of 16 lanes x 4 bytes. Lane r of vector g holds row r; its byte i has
//          k = 4g + i in the low nibble and k = 16 + 4g + i in the high nibble, which is the operand
//          order of the 4-way dot product (vpdpbusd), with no shuffle between load and multiply
//    32 B  d of 16 rows, then 32 B m, as fp16; 64 B each as fp32 where fp16 would lose something
//
// So one block of a tile is 320 bytes (5 bits a weight), read once, in order, from first to last.
// Rows past N are zero. Knows layout; does not know instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>

namespace tollhouse {

constexpr int kBlock = 32;  // k per (d, m)
constexpr int kLanes = 16;  // rows of W per tile
constexpr int kNibbleBytes = kBlock * kLanes / 2;

// Weights as the graph stores them: q [N, K/32, 16] with the even k in the low nibble, d and m [N, K/32].
struct Q4Source {
  const uint8_t* q;
  const float* d;
  const float* m;
};

class Q4Matrix {
 public:
  // Several sources of equal shape are woven tile by tile (gate 0, up 0, gate 1, ...), so that an
  // epilogue which needs both reads one stream.
  Q4Matrix(int rows, int width, std::initializer_list<Q4Source> sources);

  int rows() const { return rows_; }      // N of each source
  int width() const { return width_; }    // K
  int blocks() const { return width_ / kBlock; }
  int tiles() const { return (rows_ + kLanes - 1) / kLanes; }
  bool half_scales() const { return half_scales_; }
  size_t size_bytes() const { return size_bytes_; }
  size_t tile_bytes() const { return static_cast<size_t>(blocks()) * block_bytes(); }
  const uint8_t* tile(int index, int source) const {
    return bytes_.get() + (static_cast<size_t>(index) * sources_ + source) * tile_bytes();
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const;
  };
  size_t block_bytes() const {
    return kNibbleBytes + kLanes * 2 * (half_scales_ ? sizeof(uint16_t) : sizeof(float));
  }
  void pack_tile(const Q4Source& source, int first_row, uint8_t* out) const;

  int rows_, width_, sources_;
  bool half_scales_;
  size_t size_bytes_;
  std::unique_ptr<uint8_t[], Free> bytes_;
};

uint16_t half_bits(float value);      // nearest fp16
float float_of_half(uint16_t bits);   // exact

}  // namespace tollhouse
