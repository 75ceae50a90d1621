// AVX-512 with VNNI: one vpdpbusd multiplies 64 nibbles by 64 activations.
//
// A block of a tile is four loads; masks and shifts split them into eight operands, shared by all
// rows of a register block. A row then costs eight dot products with broadcast memory operands, one
// conversion and three multiply-adds.
#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "isa.h"
#include "q4_matrix.h"

#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")

namespace tollhouse {
namespace {

#include "row_loops.h"

// The hardware's own prefetchers stop at page borders; asking 8 KiB ahead crosses them (README.md,
// "What was tried"). A prefetch past the matrix's end reads nothing and cannot fault.
constexpr int kAhead = 8192;

template <bool kHalf>
struct TileBlock {
  static constexpr int kScaleBytes = kLanes * (kHalf ? 2 : 4);
  static constexpr int kBytes = kNibbleBytes + 2 * kScaleBytes;

  __m512i packed[4];
  __m512 d, m;

  explicit TileBlock(const uint8_t* at) {
    for (int line = 0; line < kBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + line, _MM_HINT_T0);
    }
    for (int g = 0; g < 4; g++) packed[g] = _mm512_loadu_si512(at + 64 * g);
    d = scale(at + kNibbleBytes);
    m = scale(at + kNibbleBytes + kScaleBytes);
  }

  static __m512 scale(const uint8_t* at) {
    if constexpr (kHalf) {
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    } else {
      return _mm512_loadu_ps(at);
    }
  }
};

template <bool kHalf, int kRows>
struct Int8Block {
  static void run(const uint8_t* tile, const Activations& a, int first_row, float* out) {
    const __m512i low_bits = _mm512_set1_epi8(15);
    const size_t first = a.first_block(first_row);
    const int8_t* x = a.q + first * kBlock;
    const float* scale = a.scale + first;
    const float* sum = a.sum + first;
    __m512 acc[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = _mm512_setzero_ps();
    for (int b = 0; b < a.blocks; b++) {
      const TileBlock<kHalf> block(tile);
      __m512i w[8];
      for (int g = 0; g < 4; g++) {
        w[g] = _mm512_and_si512(block.packed[g], low_bits);
        w[g + 4] = _mm512_and_si512(_mm512_srli_epi16(block.packed[g], 4), low_bits);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const auto* four = reinterpret_cast<const int32_t*>(x + r * kBlock);
        // Two chains: the sum of one is ready while the other's multiplier is busy.
        __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
        for (int g = 0; g < 8; g += 2) {
          even = _mm512_dpbusd_epi32(even, w[g], _mm512_set1_epi32(four[g]));
          odd = _mm512_dpbusd_epi32(odd, w[g + 1], _mm512_set1_epi32(four[g + 1]));
        }
        const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
        acc[r] = _mm512_fmadd_ps(product, _mm512_mul_ps(block.d, _mm512_set1_ps(scale[r])),
                                 _mm512_fmadd_ps(block.m, _mm512_set1_ps(sum[r]), acc[r]));
      }
      tile += TileBlock<kHalf>::kBytes, x += kRowsMax * kBlock;
      scale += kRowsMax, sum += kRowsMax;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) _mm512_storeu_ps(out + r * kLanes, acc[r]);
  }
};

template <bool kHalf, int kRows>
struct FloatBlock {
  static void run(const uint8_t* tile, const Activations& a, int first_row, float* out) {
    // A permute reads four index bits only, so the table lookup masks, converts and selects at once.
    const __m512 digits = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const size_t first = a.first_block(first_row);
    const float* x = a.x + first * kBlock;
    const float* sum = a.sum + first;
    __m512 acc[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = _mm512_setzero_ps();
    for (int b = 0; b < a.blocks; b++) {
      const TileBlock<kHalf> block(tile);
      __m512 even[kRows], odd[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) even[r] = odd[r] = _mm512_setzero_ps();
      for (int g = 0; g < 4; g++) {
        __m512i nibbles = block.packed[g];
        for (int i = 0; i < 4; i++) {
          const __m512 low = _mm512_permutexvar_ps(nibbles, digits);
          const __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(nibbles, 4), digits);
          nibbles = _mm512_srli_epi32(nibbles, 8);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; r++) {
            const float* k = x + r * kBlock + 4 * g + i;
            even[r] = _mm512_fmadd_ps(low, _mm512_set1_ps(k[0]), even[r]);
            odd[r] = _mm512_fmadd_ps(high, _mm512_set1_ps(k[kBlock / 2]), odd[r]);
          }
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const __m512 affine = _mm512_set1_ps(sum[r]);
        acc[r] = _mm512_fmadd_ps(_mm512_add_ps(even[r], odd[r]), block.d,
                                 _mm512_fmadd_ps(block.m, affine, acc[r]));
      }
      tile += TileBlock<kHalf>::kBytes, x += kRowsMax * kBlock, sum += kRowsMax;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) _mm512_storeu_ps(out + r * kLanes, acc[r]);
  }
};

#include "row_blocks.h"

}  // namespace

// 16 rows fill the 32 registers in int8 (16 sums, 8 operands, d, m, temporaries); floats need two
// sums a row more.
const Isa kAvx512VnniIsa = {"avx512vnni",
                            {dot<FloatBlock, false, 8>, dot<FloatBlock, true, 8>},
                            {dot<Int8Block, false, 16>, dot<Int8Block, true, 16>},
                            rms_norm,
                            quantize,
                            arrange,
                            swiglu};

}  // namespace tollhouse
#pragma GCC pop_options
#endif
