// AVX2 with FMA: the same walk over a tile, one half (8 lanes) after the other.
//
// Without VNNI, vpmaddubsw adds products in pairs to int16. Eight of them still fit: 8 * 2 * 15 * 127
// = 30,480 < 32,768, so one widening per block is enough.
#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "isa.h"
#include "q4_matrix.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace tollhouse {
namespace {

#include "row_loops.h"

constexpr int kHalfLanes = kLanes / 2;

template <bool kHalf>
struct TileBlock {
  static constexpr int kScaleBytes = kLanes * (kHalf ? 2 : 4);
  static constexpr int kBytes = kNibbleBytes + 2 * kScaleBytes;

  __m256i packed[4];
  __m256 d, m;

  TileBlock(const uint8_t* at, int half) {
    for (int g = 0; g < 4; g++) {
      packed[g] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 64 * g + 32 * half));
    }
    const uint8_t* scales = at + kNibbleBytes + half * kScaleBytes / 2;
    d = scale(scales);
    m = scale(scales + kScaleBytes);
  }

  static __m256 scale(const uint8_t* at) {
    if constexpr (kHalf) {
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    } else {
      return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
    }
  }
};

template <bool kHalf, int kRows>
struct Int8Block {
  static void run(const uint8_t* tile, const Activations& a, int first_row, float* out) {
    for (int half = 0; half < 2; half++) {
      run_half(tile, half, a, first_row, out + half * kHalfLanes);
    }
  }

  static void run_half(const uint8_t* tile, int half, const Activations& a, int first_row,
                       float* out) {
    const __m256i low_bits = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const size_t first = a.first_block(first_row);
    const int8_t* x = a.q + first * kBlock;
    const float* scale = a.scale + first;
    const float* sum = a.sum + first;
    __m256 acc[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = _mm256_setzero_ps();
    for (int b = 0; b < a.blocks; b++) {
      const TileBlock<kHalf> block(tile, half);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const auto* four = reinterpret_cast<const int32_t*>(x + r * kBlock);
        __m256i pairs = _mm256_setzero_si256();
        for (int g = 0; g < 4; g++) {
          const __m256i low = _mm256_and_si256(block.packed[g], low_bits);
          const __m256i high = _mm256_and_si256(_mm256_srli_epi16(block.packed[g], 4), low_bits);
          const __m256i first = _mm256_maddubs_epi16(low, _mm256_set1_epi32(four[g]));
          const __m256i second = _mm256_maddubs_epi16(high, _mm256_set1_epi32(four[g + 4]));
          pairs = _mm256_add_epi16(pairs, _mm256_add_epi16(first, second));
        }
        const __m256 product = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
        acc[r] = _mm256_fmadd_ps(product, _mm256_mul_ps(block.d, _mm256_set1_ps(scale[r])),
                                 _mm256_fmadd_ps(block.m, _mm256_set1_ps(sum[r]), acc[r]));
      }
      tile += TileBlock<kHalf>::kBytes, x += kRowsMax * kBlock;
      scale += kRowsMax, sum += kRowsMax;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) _mm256_storeu_ps(out + r * kLanes, acc[r]);
  }
};

template <bool kHalf, int kRows>
struct FloatBlock {
  static void run(const uint8_t* tile, const Activations& a, int first_row, float* out) {
    for (int half = 0; half < 2; half++) {
      run_half(tile, half, a, first_row, out + half * kHalfLanes);
    }
  }

  static void run_half(const uint8_t* tile, int half, const Activations& a, int first_row,
                       float* out) {
    const __m256i low_bits = _mm256_set1_epi32(15);
    const size_t first = a.first_block(first_row);
    const float* x = a.x + first * kBlock;
    const float* sum = a.sum + first;
    __m256 acc[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = _mm256_setzero_ps();
    for (int b = 0; b < a.blocks; b++) {
      const TileBlock<kHalf> block(tile, half);
      __m256 even[kRows], odd[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) even[r] = odd[r] = _mm256_setzero_ps();
      for (int g = 0; g < 4; g++) {
        __m256i nibbles = block.packed[g];
        for (int i = 0; i < 4; i++) {
          const __m256 low = _mm256_cvtepi32_ps(_mm256_and_si256(nibbles, low_bits));
          const __m256 high =
              _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(nibbles, 4), low_bits));
          nibbles = _mm256_srli_epi32(nibbles, 8);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; r++) {
            const float* k = x + r * kBlock + 4 * g + i;
            even[r] = _mm256_fmadd_ps(low, _mm256_set1_ps(k[0]), even[r]);
            odd[r] = _mm256_fmadd_ps(high, _mm256_set1_ps(k[kBlock / 2]), odd[r]);
          }
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const __m256 affine = _mm256_set1_ps(sum[r]);
        acc[r] = _mm256_fmadd_ps(_mm256_add_ps(even[r], odd[r]), block.d,
                                 _mm256_fmadd_ps(block.m, affine, acc[r]));
      }
      tile += TileBlock<kHalf>::kBytes, x += kRowsMax * kBlock, sum += kRowsMax;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) _mm256_storeu_ps(out + r * kLanes, acc[r]);
  }
};

#include "row_blocks.h"

}  // namespace

// Sixteen registers: four rows of int8 or three of floats leave room for the operands.
const Isa kAvx2Isa = {"avx2",
                      {dot<FloatBlock, false, 3>, dot<FloatBlock, true, 3>},
                      {dot<Int8Block, false, 4>, dot<Int8Block, true, 4>},
                      rms_norm,
                      quantize,
                      arrange,
                      swiglu};

}  // namespace tollhouse
#pragma GCC pop_options
#endif
