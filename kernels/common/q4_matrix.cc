// Repacking of 4-bit weights. See q4_matrix.h for the layout.
#include "q4_matrix.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace tollhouse {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

uint8_t* allocate(size_t size) {
  const size_t align = size >= kHugePage ? kHugePage : 4096;
  const size_t rounded = (size + align - 1) / align * align;
  void* p = std::aligned_alloc(align, rounded);
  if (p == nullptr) throw std::bad_alloc();
#ifdef __linux__
  // Advice only: fewer TLB misses on large matrices where the kernel grants it.
  if (size >= kHugePage) madvise(p, rounded, MADV_HUGEPAGE);
#endif
  std::memset(p, 0, rounded);
  return static_cast<uint8_t*>(p);
}

bool fits_half(const float* values, size_t count) {
  return std::all_of(values, values + count,
                     [](float v) { return float_of_half(half_bits(v)) == v; });
}

}  // namespace

uint16_t half_bits(float value) {
  uint32_t f;
  std::memcpy(&f, &value, 4);
  const uint32_t sign = f >> 16 & 0x8000u;
  const uint32_t magnitude = f & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);     // NaN
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);    // too large
  if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);               // underflow
  const bool subnormal = magnitude < 0x38800000u;
  const uint32_t shift = subnormal ? 126u - (magnitude >> 23) : 13u;
  const uint32_t full = subnormal ? (magnitude & 0x7fffffu) | 0x800000u : magnitude - 0x38000000u;
  const uint32_t half = full >> shift;
  const uint32_t rest = full & ((1u << shift) - 1), tie = 1u << (shift - 1);
  const uint32_t up = rest > tie || (rest == tie && (half & 1u)) ? 1u : 0u;
  return static_cast<uint16_t>(sign | (half + up));
}

float float_of_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 31u, mantissa = bits & 1023u;
  float value;
  uint32_t f;
  if (exponent == 0) {
    value = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&f, &value, 4);
    f |= sign;
  } else {
    f = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | mantissa << 13;
  }
  std::memcpy(&value, &f, 4);
  return value;
}

void Q4Matrix::Free::operator()(uint8_t* p) const { std::free(p); }

Q4Matrix::Q4Matrix(int rows, int width, std::initializer_list<Q4Source> sources)
    : rows_(rows), width_(width), sources_(static_cast<int>(sources.size())) {
  const size_t scales = static_cast<size_t>(rows) * blocks();
  half_scales_ = std::all_of(sources.begin(), sources.end(), [&](const Q4Source& s) {
    return fits_half(s.d, scales) && fits_half(s.m, scales);
  });
  size_bytes_ = tile_bytes() * tiles() * sources_;
  bytes_.reset(allocate(size_bytes_));
  int woven = 0;
  for (const Q4Source& source : sources) {
    for (int t = 0; t < tiles(); t++) {
      pack_tile(source, t * kLanes, const_cast<uint8_t*>(tile(t, woven)));
    }
    woven++;
  }
}

void Q4Matrix::pack_tile(const Q4Source& source, int first_row, uint8_t* out) const {
  const size_t scale_bytes = half_scales_ ? sizeof(uint16_t) : sizeof(float);
  const int lanes = std::min(kLanes, rows_ - first_row);
  for (int b = 0; b < blocks(); b++, out += block_bytes()) {
    for (int r = 0; r < lanes; r++) {
      const size_t block = static_cast<size_t>(first_row + r) * blocks() + b;
      const uint8_t* q = source.q + block * (kBlock / 2);
      for (int k = 0; k < kBlock / 2; k++) {
        const uint8_t low = q[k / 2] >> k % 2 * 4 & 15;
        const uint8_t high = q[k / 2 + kBlock / 4] >> k % 2 * 4 & 15;
        out[k / 4 * 4 * kLanes + r * 4 + k % 4] = static_cast<uint8_t>(low | high << 4);
      }
      uint8_t* d = out + kNibbleBytes + r * scale_bytes;
      uint8_t* m = d + kLanes * scale_bytes;
      if (half_scales_) {
        const uint16_t dh = half_bits(source.d[block]), mh = half_bits(source.m[block]);
        std::memcpy(d, &dh, sizeof dh);
        std::memcpy(m, &mh, sizeof mh);
      } else {
        std::memcpy(d, &source.d[block], sizeof(float));
        std::memcpy(m, &source.m[block], sizeof(float));
      }
    }
  }
}

}  // namespace tollhouse
