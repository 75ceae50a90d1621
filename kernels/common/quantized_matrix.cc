// Repacking of GGUF's blocks. See quantized_matrix.h for the layout.
#include "quantized_matrix.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace tollhouse {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLine = 64;
constexpr size_t kReserved = size_t{256} << 20;

size_t rounded_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

std::shared_ptr<uint8_t> reserve(size_t size) {
  size = rounded_up(std::max(size, kReserved), kHugePage);
  void* p = std::aligned_alloc(kHugePage, size);
  if (p == nullptr) throw std::bad_alloc();
#ifdef __linux__
  madvise(p, size, MADV_HUGEPAGE);  // advice only, where the kernel grants it
#endif
  return {static_cast<uint8_t*>(p), [](uint8_t* bytes) { std::free(bytes); }};
}

// Zeros, at a cache line's border. Cut from a reservation that lives as long as any of its matrices:
// with allocations of their own, matrices under 2 MB would have no huge page and each other a tail
// without, and a row is read a quarter slower from small pages. What is not used yet takes no memory,
// but for at most one huge page.
std::shared_ptr<uint8_t> room(size_t size) {
  static std::mutex mutex;
  static std::weak_ptr<uint8_t> latest;
  static size_t used, reserved;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<uint8_t> reservation = latest.lock();
  if (reservation == nullptr || reserved - used < size) {
    reservation = reserve(size);
    latest = reservation;
    used = 0;
    reserved = std::max(size, kReserved);
  }
  uint8_t* begin = reservation.get() + used;
  used = std::min(reserved, rounded_up(used + size, kLine));
  std::memset(begin, 0, size);
  return {std::move(reservation), begin};
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

size_t tile_bytes_of(Type type, int width) {
  return with_type(type, [&](auto constant) -> size_t {
    using Layout = TileLayout<decltype(constant)::value>;
    return static_cast<size_t>(width / kBlock / Layout::kForm.blocks) * Layout::kGroup;
  });
}

int tiles_of(const Records& records) { return (records.rows + kLanes - 1) / kLanes; }

}  // namespace

QuantizedMatrix::QuantizedMatrix(const Records& records)
    : QuantizedMatrix(records, room(tile_bytes_of(records.type, records.width) * tiles_of(records)),
                      tile_bytes_of(records.type, records.width)) {}

std::vector<QuantizedMatrix> QuantizedMatrix::taking_turns(const std::vector<Records>& parts) {
  size_t stride = 0;
  for (const Records& part : parts) stride += tile_bytes_of(part.type, part.width);
  std::shared_ptr<uint8_t> place = room(stride * tiles_of(parts[0]));
  std::vector<QuantizedMatrix> matrices;
  for (const Records& part : parts) {
    matrices.push_back(QuantizedMatrix(part, place, stride));
    place = {place, place.get() + matrices.back().tile_bytes_};
  }
  return matrices;
}

QuantizedMatrix::QuantizedMatrix(const Records& records, std::shared_ptr<uint8_t> room,
                                 size_t stride)
    : type_(records.type), rows_(records.rows), width_(records.width),
      tile_bytes_(tile_bytes_of(type_, width_)), stride_(stride), first_(std::move(room)) {
  with_type(type_, [&](auto constant) {
    using Layout = TileLayout<decltype(constant)::value>;
    constexpr Form kForm = Layout::kForm;
    const size_t groups = width_ / kBlock / kForm.blocks;
    for (int row = 0; row < rows_; row++) {
      const uint8_t* record = records.at + row * groups * kForm.bytes;
      uint8_t* group = first_.get() + row / kLanes * stride_;
      for (size_t g = 0; g < groups; g++, record += kForm.bytes, group += Layout::kGroup) {
        pack_record<decltype(constant)::value>(record, row % kLanes, group);
      }
    }
  });
}

}  // namespace tollhouse
