// Repacking of GGUF's blocks. See quantized_matrix.h for the layout.
#include "quantized_matrix.h"

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
  // Whole ones only: half an empty page for each matrix would add up to a tenth of a model.
  if (size >= kHugePage) madvise(p, size / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  std::memset(p, 0, size);
  return static_cast<uint8_t*>(p);
}

// Sets bits of a zeroed place that has room for four bytes.
void put(uint8_t* at, uint32_t bits) {
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  value |= bits;
  std::memcpy(at, &value, sizeof value);
}

// Codes j of one block into lane `lane` of a tile's block. In a byte, every shift stays in its own
// bits: the codes below 2^bits, the masks for the rest.
template <Type kType>
void pack_codes(const Codes& codes, int lane, int j, uint8_t* out) {
  constexpr int kBits = form_of(kType).bits;
  uint8_t* at = out + 64 * j + 4 * lane;
  if constexpr (kBits == 8) {
    put(at, codes.low);
    put(at + 256, codes.high);
  } else {
    put(at, (codes.low & gguf::kNibbles) | (codes.high & gguf::kNibbles) << 4);
    uint8_t* upper = out + 256 + 4 * lane;
    if constexpr (kBits == 5) {
      put(upper, (codes.low >> 4 & 0x01010101u) << j | (codes.high >> 4 & 0x01010101u) << (4 + j));
    } else if constexpr (kBits == 6) {
      put(upper, (codes.low >> 4 & 0x03030303u) << 2 * j);
      put(upper + 64, (codes.high >> 4 & 0x03030303u) << 2 * j);
    }
  }
}

template <Type kType>
void pack_record(const uint8_t* record, int lane, uint8_t* group) {
  using Layout = TileLayout<kType>;
  constexpr Form kForm = Layout::kForm;
  for (int b = 0; b < kForm.blocks; b++) {
    uint8_t* block = group + Layout::kHead + b * Layout::kBytes;
    for (int j = 0; j < 4; j++) pack_codes<kType>(codes_at(kType, record, b, j), lane, j, block);
    const StoredScales s = scales_at(kType, record, b);
    uint8_t* scales = block + Layout::kCodes;
    uint8_t* halves = kForm.is_k() ? group : scales;
    std::memcpy(halves + 2 * lane, &s.d, sizeof s.d);
    if constexpr (kForm.minimum) std::memcpy(halves + kHalfBytes + 2 * lane, &s.m, sizeof s.m);
    if constexpr (kForm.is_k()) {
      scales[lane] = s.low;
      scales[kLanes + lane] = s.high;
    }
  }
}

}  // namespace

void QuantizedMatrix::Free::operator()(uint8_t* p) const { std::free(p); }

QuantizedMatrix::QuantizedMatrix(Type type, int rows, int width, const uint8_t* records)
    : type_(type), rows_(rows), width_(width) {
  with_type(type, [&](auto constant) {
    using Layout = TileLayout<decltype(constant)::value>;
    constexpr Form kForm = Layout::kForm;
    const size_t groups = width / kBlock / kForm.blocks;
    tile_bytes_ = groups * Layout::kGroup;
    bytes_.reset(allocate(size_bytes()));
    for (int row = 0; row < rows; row++) {
      const uint8_t* record = records + row * groups * kForm.bytes;
      uint8_t* group = bytes_.get() + row / kLanes * tile_bytes_;
      for (size_t g = 0; g < groups; g++, record += kForm.bytes, group += Layout::kGroup) {
        pack_record<decltype(constant)::value>(record, row % kLanes, group);
      }
    }
  });
}

}  // namespace tollhouse
