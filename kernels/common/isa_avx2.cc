// AVX2 with FMA: the same walk over a tile, one half (8 lanes) after the other.
//
// Without VNNI, vpmaddubsw adds products of unsigned codes and activations in pairs to int16, where
// they saturate past 32,767. So only as many are summed there as fit: eight of 4 bits (8 * 2 * 15 *
// 127 = 30,480), four of 5 (31,496), two of 6 (32,004). Codes of 8 bits do not fit at all: their
// sign moves to the activations, and one product is at most 2 * 128 * 127 = 32,512.
#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "isa.h"
#include "quantized_matrix.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace tollhouse {
namespace {

#include "row_loops.h"

constexpr int kHalfLanes = kLanes / 2;

__m256i load(const uint8_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

__m256i shifted_left(__m256i x, int count) {
  return count >= 0 ? _mm256_slli_epi16(x, count) : _mm256_srli_epi16(x, -count);
}

// The codes of one block, of lanes 8 * half and up: w[g] those of k = 4g.., one in a byte.
template <Type kType>
void unpack(const uint8_t* at, int half, __m256i (&w)[8]) {
  constexpr int kBits = form_of(kType).bits;
  at += 32 * half;
  if constexpr (kBits == 8) {
    for (int g = 0; g < 8; g++) w[g] = load(at + 64 * g);
    return;
  }
  const __m256i nibble = _mm256_set1_epi8(15);
  constexpr int kUpper = kBits - 4;
  const __m256i upper = _mm256_set1_epi8(((1 << kBits) - 1) & ~15);
  const __m256i first = kBits > 4 ? load(at + 256) : nibble;
  const __m256i second = kBits == 6 ? load(at + 256 + 64) : first;
  const int high_place = kBits == 6 ? 0 : 4;
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    const __m256i packed = load(at + 64 * g);
    w[g] = _mm256_and_si256(packed, nibble);
    w[g + 4] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
    if constexpr (kBits > 4) {
      const __m256i low = _mm256_and_si256(shifted_left(first, 4 - kUpper * g), upper);
      const __m256i high =
          _mm256_and_si256(shifted_left(second, 4 - high_place - kUpper * g), upper);
      w[g] = _mm256_or_si256(w[g], low);
      w[g + 4] = _mm256_or_si256(w[g + 4], high);
    }
  }
}

// A walk over the blocks of half a tile: their codes, and their scales as floats.
template <Type kType>
struct TileBlock {
  using Layout = TileLayout<kType>;
  static constexpr Form kForm = Layout::kForm;

  const uint8_t* at;
  int half;
  __m256i w[8];
  __m256 d, m;            // of the K types' group
  __m256 low, high, min;  // scales of the first and the last 16 k (high only in Q6_K); minimum

  void next(int b) {
    if constexpr (kForm.is_k()) {
      if (b % kForm.blocks == 0) {
        d = halves_at(at);
        if constexpr (kForm.minimum) m = halves_at(at + kHalfBytes);
        at += Layout::kHead;
      }
    }
    unpack<kType>(at, half, w);
    const uint8_t* scales = at + Layout::kCodes;
    if constexpr (!kForm.is_k()) {
      low = halves_at(scales);
      if constexpr (kForm.minimum) min = halves_at(scales + kHalfBytes);
    } else {
      low = _mm256_mul_ps(d, bytes_at(scales));
      const __m256 second = bytes_at(scales + kLanes);
      if constexpr (kForm.half_scales()) high = _mm256_mul_ps(d, second);
      if constexpr (kForm.minimum) min = _mm256_mul_ps(m, second);
    }
    at += Layout::kBytes;
  }

  // acc + minimum * sum. The K types store what is subtracted.
  __m256 with_minimum(__m256 acc, __m256 sum) const {
    return kForm.is_k() ? _mm256_fnmadd_ps(min, sum, acc) : _mm256_fmadd_ps(min, sum, acc);
  }

 private:
  __m256 halves_at(const uint8_t* of_tile) const {
    const auto* eight = reinterpret_cast<const __m128i*>(of_tile + half * kHalfBytes / 2);
    return _mm256_cvtph_ps(_mm_loadu_si128(eight));
  }

  __m256 bytes_at(const uint8_t* of_tile) const {
    const __m128i eight =
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(of_tile + half * kHalfLanes));
    return _mm256_cvtepi32_ps(kForm.half_scales() ? _mm256_cvtepi8_epi32(eight)
                                                  : _mm256_cvtepu8_epi32(eight));
  }
};

// Sum of codes times activations over 16 k, as int32 per lane: w[0..3] by four[0..3].
template <int kBits>
__m256i sixteen(const __m256i* w, const int32_t* four) {
  constexpr int kFit = kBits >= 8 ? 1 : kBits == 6 ? 2 : 4;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total = _mm256_setzero_si256(), pairs = total;
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    const __m256i x = _mm256_set1_epi32(four[g]);
    const __m256i pair = kBits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(w[g]),
                                                           _mm256_sign_epi8(x, w[g]))
                                    : _mm256_maddubs_epi16(w[g], x);
    pairs = g % kFit == 0 ? pair : _mm256_add_epi16(pairs, pair);
    if (g % kFit == kFit - 1) total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, ones));
  }
  return total;
}

template <Type kType, int kRows>
struct Int8Block {
  static void run(const uint8_t* tile, const Activations& a, int first_row, float* out) {
    for (int half = 0; half < 2; half++) {
      run_half(tile, half, a, first_row, out + half * kHalfLanes);
    }
  }

  static void run_half(const uint8_t* tile, int half, const Activations& a, int first_row,
                       float* out) {
    constexpr Form kForm = form_of(kType);
    constexpr bool kSigned = kForm.bits == 8;  // codes as signed numbers need no offset
    constexpr bool kStart = !kForm.minimum && !kSigned;
    const size_t first = a.first_block(first_row);
    const int8_t* x = a.q + first * kBlock;
    const float* scale = a.scale + first;
    const float* sum = a.sum + first;
    const int32_t* start = kStart ? a.starts[offset_place(kType)] + 2 * first : nullptr;
    __m256 acc[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) acc[r] = _mm256_setzero_ps();
    TileBlock<kType> block{};
    block.at = tile;
    block.half = half;
    for (int b = 0; b < a.blocks; b++) {
      block.next(b);
      if constexpr (kSigned) {
        for (__m256i& w : block.w) w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) {
        const auto* four = reinterpret_cast<const int32_t*>(x + r * kBlock);
        __m256i low = sixteen<kForm.bits>(block.w, four);
        __m256i high = sixteen<kForm.bits>(block.w + 4, four + 4);
        if constexpr (kStart) {
          low = _mm256_add_epi32(low, _mm256_set1_epi32(start[2 * r]));
          high = _mm256_add_epi32(high, _mm256_set1_epi32(start[2 * r + 1]));
        }
        const __m256 s = _mm256_set1_ps(scale[r]);
        if constexpr (kForm.half_scales()) {
          const __m256 both = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), block.high,
                                              _mm256_mul_ps(_mm256_cvtepi32_ps(low), block.low));
          acc[r] = _mm256_fmadd_ps(both, s, acc[r]);
        } else {
          const __m256 product = _mm256_cvtepi32_ps(_mm256_add_epi32(low, high));
          if constexpr (kForm.minimum) {
            acc[r] = block.with_minimum(acc[r], _mm256_set1_ps(sum[r]));
          }
          acc[r] = _mm256_fmadd_ps(product, _mm256_mul_ps(block.low, s), acc[r]);
        }
      }
      x += a.beside * kBlock, scale += a.beside, sum += a.beside;
      if constexpr (kStart) start += 2 * a.beside;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) _mm256_storeu_ps(out + r * kLanes, acc[r]);
  }
};

template <Type kType, int kRows>
struct FloatBlock {
  static void run(const uint8_t* tile, const Activations& a, int first_row, float* out) {
    for (int half = 0; half < 2; half++) {
      run_half(tile, half, a, first_row, out + half * kHalfLanes);
    }
  }

  static void run_half(const uint8_t* tile, int half, const Activations& a, int first_row,
                       float* out) {
    constexpr Form kForm = form_of(kType);
    const __m256i byte = _mm256_set1_epi32(255);
    const __m256 offset = _mm256_set1_ps(static_cast<float>(kForm.offset));
    const size_t first = a.first_block(first_row);
    const float* x = a.x + first * kBlock;
    const float* halves = a.halves + 2 * first;
    __m256 acc[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) acc[r] = _mm256_setzero_ps();
    TileBlock<kType> block{};
    block.at = tile;
    block.half = half;
    for (int b = 0; b < a.blocks; b++) {
      block.next(b);
      __m256 low[kRows], high[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) low[r] = high[r] = _mm256_setzero_ps();
      for (int g = 0; g < 4; g++) {
        __m256i first_codes = block.w[g], last_codes = block.w[g + 4];
        for (int i = 0; i < 4; i++) {
          // Weight 0 is 0 here: a large sum is not built up only to be subtracted.
          const __m256 f =
              _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(first_codes, byte)), offset);
          const __m256 l =
              _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(last_codes, byte)), offset);
          first_codes = _mm256_srli_epi32(first_codes, 8);
          last_codes = _mm256_srli_epi32(last_codes, 8);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; r++) {
            const float* k = x + r * kBlock + 4 * g + i;
            low[r] = _mm256_fmadd_ps(f, _mm256_set1_ps(k[0]), low[r]);
            high[r] = _mm256_fmadd_ps(l, _mm256_set1_ps(k[kBlock / 2]), high[r]);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) {
        if constexpr (kForm.half_scales()) {
          acc[r] = _mm256_fmadd_ps(high[r], block.high, _mm256_fmadd_ps(low[r], block.low, acc[r]));
        } else {
          if constexpr (kForm.minimum) {
            acc[r] = block.with_minimum(acc[r], _mm256_set1_ps(halves[2 * r] + halves[2 * r + 1]));
          }
          acc[r] = _mm256_fmadd_ps(_mm256_add_ps(low[r], high[r]), block.low, acc[r]);
        }
      }
      x += a.beside * kBlock, halves += 2 * a.beside;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) _mm256_storeu_ps(out + r * kLanes, acc[r]);
  }
};

#include "row_blocks.h"

}  // namespace

// Sixteen registers: four rows of int8 or three of floats leave room for the operands.
const Isa kAvx2Isa = {"avx2",   dots<FloatBlock, 3>(), dots<Int8Block, 4>(), rms_norm,
                      quantize, arrange,               swiglu};

}  // namespace tollhouse
#pragma GCC pop_options
#endif
