// GGUF's quantized blocks: what each type stores, and where its bits are. For host and device.
//
// A row of W is cut along k into blocks of 32; a record holds one block, or eight in the K types.
//   W[k] = scale * (code - offset) + minimum
// Types without a minimum have a fixed offset, the code of weight 0. Q6_K has a scale for each half of
// a block, the others one for both. Source: ggml's block definitions (ggml-common.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define TOLLHOUSE_BOTH __host__ __device__
#else
#define TOLLHOUSE_BOTH
#endif

namespace tollhouse {

constexpr int kBlock = 32;

enum class Type : int { kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ4_K, kQ5_K, kQ6_K };
constexpr int kTypes = 8;

struct Form {
  char name[5];
  int bits;     // of a code
  int offset;   // the code of weight 0, where there is no minimum
  bool minimum;
  int blocks;   // in a record
  int bytes;    // of a record

  TOLLHOUSE_BOTH constexpr bool is_k() const { return blocks > 1; }
  TOLLHOUSE_BOTH constexpr bool half_scales() const { return bits == 6; }  // two in a block
};

TOLLHOUSE_BOTH constexpr Form form_of(Type type) {
  switch (type) {
    case Type::kQ4_0: return {"Q4_0", 4, 8, false, 1, 18};
    case Type::kQ4_1: return {"Q4_1", 4, 0, true, 1, 20};
    case Type::kQ5_0: return {"Q5_0", 5, 16, false, 1, 22};
    case Type::kQ5_1: return {"Q5_1", 5, 0, true, 1, 24};
    case Type::kQ8_0: return {"Q8_0", 8, 128, false, 1, 34};
    case Type::kQ4_K: return {"Q4_K", 4, 0, true, 8, 144};
    case Type::kQ5_K: return {"Q5_K", 5, 0, true, 8, 176};
    default: return {"Q6_K", 6, 32, false, 8, 210};
  }
}

// A matrix W [rows, width] as the file has it.
struct Records {
  Type type;
  int rows;
  int width;          // K, a multiple of 32 and of a record's weights
  const uint8_t* at;  // [rows, bytes of a row]

  size_t size_bytes() const {
    const Form form = form_of(type);
    return static_cast<size_t>(rows) * (width / kBlock / form.blocks) * form.bytes;
  }
};

// Eight codes of a block, one in a byte: byte i of low is that of k = 4 j + i, of high 16 + 4 j + i.
struct Codes {
  uint32_t low, high;
};

namespace gguf {

// Every field lies at an even address and no better.
TOLLHOUSE_BOTH inline uint32_t word(const uint8_t* at) {
#ifdef __CUDA_ARCH__
  const auto* halves = reinterpret_cast<const uint16_t*>(at);
  return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
#else
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
#endif
}

TOLLHOUSE_BOTH inline uint16_t half(const uint8_t* at) {
  return static_cast<uint16_t>(at[0] | at[1] << 8);
}

// Bits 0..3 of x to bit 4 of bytes 0..3.
TOLLHOUSE_BOTH inline uint32_t fifth_bits(uint32_t x) {
  return (x & 1u) << 4 | (x & 2u) << 11 | (x & 4u) << 18 | (x & 8u) << 25;
}

constexpr uint32_t kNibbles = 0x0f0f0f0fu;

}  // namespace gguf

// Codes j = 0..3 of one block of a record.
TOLLHOUSE_BOTH inline Codes codes_at(Type type, const uint8_t* record, int block, int j) {
  using namespace gguf;
  switch (type) {
    case Type::kQ4_0:
    case Type::kQ4_1: {
      const uint32_t packed = word(record + (type == Type::kQ4_0 ? 2 : 4) + 4 * j);
      return {packed & kNibbles, packed >> 4 & kNibbles};
    }
    case Type::kQ5_0:
    case Type::kQ5_1: {
      const uint8_t* at = record + (type == Type::kQ5_0 ? 2 : 4);
      const uint32_t fifths = word(at), packed = word(at + 4 + 4 * j);
      return {(packed & kNibbles) | fifth_bits(fifths >> 4 * j),
              (packed >> 4 & kNibbles) | fifth_bits(fifths >> (16 + 4 * j))};
    }
    case Type::kQ8_0:  // signed there; here, like the others, from 0
      return {word(record + 2 + 4 * j) ^ 0x80808080u, word(record + 18 + 4 * j) ^ 0x80808080u};
    case Type::kQ4_K:
    case Type::kQ5_K: {
      const bool five = type == Type::kQ5_K;
      const uint8_t* at = record + (five ? 48 : 16) + block / 2 * 32 + 4 * j;
      const int shift = block % 2 * 4;
      Codes codes{word(at) >> shift & kNibbles, word(at + 16) >> shift & kNibbles};
      if (five) {
        codes.low |= (word(record + 16 + 4 * j) >> block & 0x01010101u) << 4;
        codes.high |= (word(record + 32 + 4 * j) >> block & 0x01010101u) << 4;
      }
      return codes;
    }
    default: {
      const int part = block % 4;  // of the 128 weights that share their bytes
      const uint8_t* low = record + block / 4 * 64 + part % 2 * 32 + 4 * j;
      const uint8_t* high = record + 128 + block / 4 * 32 + 4 * j;
      const int shift = part / 2 * 4, pair = part * 2;
      return {(word(low) >> shift & kNibbles) | (word(high) >> pair & 0x03030303u) << 4,
              (word(low + 16) >> shift & kNibbles) | (word(high + 16) >> pair & 0x03030303u) << 4};
    }
  }
}

// The stored numbers behind a block's scales. Without K: scale = d, minimum = m, and the small ones
// stay 0. Q4_K, Q5_K: scale = d * low, minimum = -m * high. Q6_K: d * low and d * high, signed.
struct StoredScales {
  uint16_t d, m;  // fp16
  uint8_t low, high;
};

TOLLHOUSE_BOTH inline StoredScales scales_at(Type type, const uint8_t* record, int block) {
  using gguf::half;
  switch (type) {
    case Type::kQ4_1:
    case Type::kQ5_1: return {half(record), half(record + 2), 0, 0};
    case Type::kQ4_K:
    case Type::kQ5_K: {
      const uint8_t* six = record + 4;
      if (block < 4) {
        return {half(record), half(record + 2), static_cast<uint8_t>(six[block] & 63),
                static_cast<uint8_t>(six[block + 4] & 63)};
      }
      const uint8_t both = six[block + 4];
      return {half(record), half(record + 2),
              static_cast<uint8_t>((both & 15) | six[block - 4] >> 6 << 4),
              static_cast<uint8_t>(both >> 4 | six[block] >> 6 << 4)};
    }
    case Type::kQ6_K:
      return {half(record + 208), 0, record[192 + 2 * block], record[193 + 2 * block]};
    default: return {half(record), 0, 0, 0};
  }
}

TOLLHOUSE_BOTH inline float float_of_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 31u, mantissa = bits & 1023u;
  float value;
  uint32_t f;
  if (exponent == 0) {
    value = static_cast<float>(mantissa) * 0x1p-24f;
    memcpy(&f, &value, 4);
    f |= sign;
  } else {
    f = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | mantissa << 13;
  }
  memcpy(&value, &f, 4);
  return value;
}

// A block's numbers as floats, exact: W = scale * code + shift, for the first and the last 16 k.
struct Affine {
  float low_scale, low_shift, high_scale, high_shift;
};

TOLLHOUSE_BOTH inline Affine affine_at(Type type, const uint8_t* record, int block) {
  const Form form = form_of(type);
  const StoredScales s = scales_at(type, record, block);
  const float d = float_of_half(s.d), m = float_of_half(s.m);
  const auto offset = static_cast<float>(form.offset);
  if (form.half_scales()) {
    const float low = d * static_cast<float>(static_cast<int8_t>(s.low));
    const float high = d * static_cast<float>(static_cast<int8_t>(s.high));
    return {low, -offset * low, high, -offset * high};
  }
  const float scale = form.is_k() ? d * static_cast<float>(s.low) : d;
  const float minimum = form.is_k() ? -m * static_cast<float>(s.high) : m;
  const float shift = form.minimum ? minimum : -offset * d;
  return {scale, shift, scale, shift};
}

}  // namespace tollhouse
