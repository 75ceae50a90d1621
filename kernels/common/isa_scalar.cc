// Scalar: the plain statement of each inner loop, and the fallback on any machine.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "q4_matrix.h"

namespace tollhouse {
namespace {

#include "row_loops.h"

// q of one lane, in the order of k.
void unpack(const uint8_t* block, int lane, int8_t* q) {
  for (int k = 0; k < kBlock / 2; k++) {
    const uint8_t packed = block[k / 4 * 4 * kLanes + lane * 4 + k % 4];
    q[k] = static_cast<int8_t>(packed & 15);
    q[k + kBlock / 2] = static_cast<int8_t>(packed >> 4);
  }
}

float load_scale(const uint8_t* at, int lane, bool half) {
  if (!half) {
    float value;
    std::memcpy(&value, at + lane * sizeof value, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at + lane * sizeof bits, sizeof bits);
  return float_of_half(bits);
}

template <bool kHalf, bool kInt8>
void dot(const uint8_t* tile, const Activations& a, int first_row, int rows, float* out) {
  constexpr int kScaleBytes = kLanes * (kHalf ? 2 : 4);
  std::fill(out, out + rows * kLanes, 0.0f);
  for (int b = 0; b < a.blocks; b++, tile += kNibbleBytes + 2 * kScaleBytes) {
    for (int lane = 0; lane < kLanes; lane++) {
      int8_t q[kBlock];
      unpack(tile, lane, q);
      const float d = load_scale(tile + kNibbleBytes, lane, kHalf);
      const float m = load_scale(tile + kNibbleBytes + kScaleBytes, lane, kHalf);
      for (int r = 0; r < rows; r++) {
        const size_t at = a.first_block(first_row + r) + static_cast<size_t>(b) * kRowsMax;
        float product;
        if constexpr (kInt8) {
          const int8_t* x = a.q + at * kBlock;
          int exact = 0;
          for (int k = 0; k < kBlock; k++) exact += q[k] * x[k];
          product = a.scale[at] * static_cast<float>(exact);
        } else {
          const float* x = a.x + at * kBlock;
          product = 0;
          for (int k = 0; k < kBlock; k++) product += static_cast<float>(q[k]) * x[k];
        }
        out[r * kLanes + lane] += d * product + m * a.sum[at];
      }
    }
  }
}

}  // namespace

const Isa kScalarIsa = {"scalar",
                        {dot<false, false>, dot<true, false>},
                        {dot<false, true>, dot<true, true>},
                        rms_norm,
                        quantize,
                        arrange,
                        swiglu};

}  // namespace tollhouse
