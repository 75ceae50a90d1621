// Scalar: the plain statement of each inner loop, and the fallback on any machine.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "quantized_matrix.h"

namespace tollhouse {
namespace {

#include "row_loops.h"

// Codes of one lane, in the order of k.
template <Type kType>
void unpack(const uint8_t* block, int lane, uint8_t* codes) {
  constexpr int kBits = form_of(kType).bits;
  for (int k = 0; k < kBlock / 2; k++) {
    const int g = k / 4, place = lane * 4 + k % 4;
    const uint8_t packed = block[64 * g + place];
    if constexpr (kBits == 8) {
      codes[k] = packed;
      codes[k + 16] = block[64 * (g + 4) + place];
      continue;
    }
    uint8_t low = 0, high = 0;
    if constexpr (kBits == 5) {
      low = block[256 + place] >> g & 1;
      high = block[256 + place] >> (4 + g) & 1;
    } else if constexpr (kBits == 6) {
      low = block[256 + place] >> 2 * g & 3;
      high = block[256 + 64 + place] >> 2 * g & 3;
    }
    codes[k] = static_cast<uint8_t>((packed & 15) | low << 4);
    codes[k + 16] = static_cast<uint8_t>(packed >> 4 | high << 4);
  }
}

float half_at(const uint8_t* at, int lane) {
  uint16_t bits;
  std::memcpy(&bits, at + lane * sizeof bits, sizeof bits);
  return float_of_half(bits);
}

// halves: where the fp16 scales of this block's group are; small: the block's own, in the K types.
template <Type kType>
Affine affine_of(const uint8_t* halves, const uint8_t* small, int lane) {
  constexpr Form kForm = form_of(kType);
  const float d = half_at(halves, lane);
  const float offset = static_cast<float>(kForm.offset);
  if constexpr (kForm.half_scales()) {
    const float low = d * static_cast<float>(static_cast<int8_t>(small[lane]));
    const float high = d * static_cast<float>(static_cast<int8_t>(small[kLanes + lane]));
    return {low, -offset * low, high, -offset * high};
  }
  float scale = d, shift = -offset * d;
  if constexpr (kForm.minimum) shift = half_at(halves + kHalfBytes, lane);
  if constexpr (kForm.is_k()) {
    scale *= static_cast<float>(small[lane]);
    shift *= -static_cast<float>(small[kLanes + lane]);
  }
  return {scale, shift, scale, shift};
}

template <Type kType, bool kInt8>
void dot(const uint8_t* tile, const Activations& a, int first_row, int rows, float* out) {
  using Layout = TileLayout<kType>;
  std::fill(out, out + rows * kLanes, 0.0f);
  for (int b = 0; b < a.blocks; b++) {
    const uint8_t* group = tile + b / Layout::kForm.blocks * Layout::kGroup;
    const uint8_t* block = group + Layout::kHead + b % Layout::kForm.blocks * Layout::kBytes;
    const uint8_t* small = block + Layout::kCodes;
    for (int lane = 0; lane < kLanes; lane++) {
      uint8_t codes[kBlock];
      unpack<kType>(block, lane, codes);
      const Affine w = affine_of<kType>(Layout::kForm.is_k() ? group : small, small, lane);
      for (int r = 0; r < rows; r++) {
        const size_t at = a.first_block(first_row + r) + static_cast<size_t>(b) * a.beside;
        float products[2], sums[2];
        for (int half = 0; half < 2; half++) {
          const int begin = half * kBlock / 2;
          if constexpr (kInt8) {
            const int8_t* x = a.q + at * kBlock;
            int exact = 0, total = 0;
            for (int k = begin; k < begin + kBlock / 2; k++) {
              exact += codes[k] * x[k];
              total += x[k];
            }
            products[half] = a.scale[at] * static_cast<float>(exact);
            sums[half] = a.scale[at] * static_cast<float>(total);
          } else {
            const float* x = a.x + at * kBlock;
            products[half] = 0;
            for (int k = begin; k < begin + kBlock / 2; k++) {
              products[half] += static_cast<float>(codes[k]) * x[k];
            }
            sums[half] = a.halves[2 * at + half];
          }
        }
        out[r * kLanes + lane] += w.low_scale * products[0] + w.low_shift * sums[0] +
                                  w.high_scale * products[1] + w.high_shift * sums[1];
      }
    }
  }
}

template <bool kInt8>
constexpr Dots dots() {
  return {dot<Type::kQ4_0, kInt8>, dot<Type::kQ4_1, kInt8>, dot<Type::kQ5_0, kInt8>,
          dot<Type::kQ5_1, kInt8>, dot<Type::kQ8_0, kInt8>, dot<Type::kQ4_K, kInt8>,
          dot<Type::kQ5_K, kInt8>, dot<Type::kQ6_K, kInt8>};
}

}  // namespace

const Isa kScalarIsa = {"scalar", dots<false>(), dots<true>(), rms_norm, quantize, arrange, swiglu};

}  // namespace tollhouse
