// AVX-512 with VNNI: one vpdpbusd multiplies 64 codes by 64 activations.
//
// A block of a tile becomes eight operands of codes, shared by all rows of a register block. A row
// then costs eight dot products with broadcast memory operands, a conversion and two or three
// multiply-adds. The first four operands hold the first 16 k of a block and have a chain of their
// own: one chain's sum is ready while the other's multiplier is busy, and Q6_K scales them apart.
#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "isa.h"
#include "quantized_matrix.h"

#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")

namespace tollhouse {
namespace {

#include "row_loops.h"

// The hardware's own prefetchers stop at page borders; asking 8 KiB ahead crosses them (README.md,
// "What was tried"). A prefetch past the matrix's end reads nothing and cannot fault.
constexpr int kAhead = 8192;

// a where the mask's bit is set, else b.
__m512i choose(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

__m512i shifted_left(__m512i x, int count) {
  return count >= 0 ? _mm512_slli_epi16(x, count) : _mm512_srli_epi16(x, -count);
}

// The codes of one block: w[g] those of k = 4g.., one in a byte.
template <Type kType>
void unpack(const uint8_t* at, __m512i (&w)[8]) {
  constexpr int kBits = form_of(kType).bits;
  if constexpr (kBits == 8) {
    for (int g = 0; g < 8; g++) w[g] = _mm512_loadu_si512(at + 64 * g);
    return;
  }
  const __m512i nibble = _mm512_set1_epi8(15);
  if constexpr (kBits == 4) {
    for (int g = 0; g < 4; g++) {
      const __m512i packed = _mm512_loadu_si512(at + 64 * g);
      w[g] = _mm512_and_si512(packed, nibble);
      w[g + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
    }
    return;
  }
  // Upper bits are moved over the nibble's; what lies above them is cut off.
  constexpr int kUpper = kBits - 4;
  const __m512i code = _mm512_set1_epi8((1 << kBits) - 1);
  const __m512i first = _mm512_loadu_si512(at + 256);
  const __m512i second = kBits == 6 ? _mm512_loadu_si512(at + 256 + 64) : first;
  const int high_place = kBits == 6 ? 0 : 4;
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    const __m512i packed = _mm512_loadu_si512(at + 64 * g);
    const __m512i low_upper = shifted_left(first, 4 - kUpper * g);
    const __m512i high_upper = shifted_left(second, 4 - high_place - kUpper * g);
    w[g] = _mm512_and_si512(choose(nibble, packed, low_upper), code);
    w[g + 4] =
        _mm512_and_si512(choose(nibble, _mm512_srli_epi16(packed, 4), high_upper), code);
  }
}

__m512 halves_at(const uint8_t* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}

template <bool kSigned>
__m512 bytes_at(const uint8_t* at) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm512_cvtepi32_ps(kSigned ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
}

// A walk over the blocks of a tile: their codes, and their scales as floats.
template <Type kType>
struct TileBlock {
  using Layout = TileLayout<kType>;
  static constexpr Form kForm = Layout::kForm;

  const uint8_t* at;
  __m512i w[8];
  __m512 d, m;            // of the K types' group
  __m512 low, high, min;  // scales of the first and the last 16 k (high only in Q6_K); minimum

  void next(int b) {
    if constexpr (kForm.is_k()) {
      if (b % kForm.blocks == 0) {
        d = halves_at(at);
        if constexpr (kForm.minimum) m = halves_at(at + kHalfBytes);
        at += Layout::kHead;
      }
    }
    for (int line = 0; line < Layout::kBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + line, _MM_HINT_T0);
    }
    unpack<kType>(at, w);
    const uint8_t* scales = at + Layout::kCodes;
    if constexpr (!kForm.is_k()) {
      low = halves_at(scales);
      if constexpr (kForm.minimum) min = halves_at(scales + kHalfBytes);
    } else {
      low = _mm512_mul_ps(d, bytes_at<kForm.half_scales()>(scales));
      const __m512 second = bytes_at<kForm.half_scales()>(scales + kLanes);
      if constexpr (kForm.half_scales()) high = _mm512_mul_ps(d, second);
      if constexpr (kForm.minimum) min = _mm512_mul_ps(m, second);
    }
    at += Layout::kBytes;
  }

  // acc + minimum * sum. The K types store what is subtracted.
  __m512 with_minimum(__m512 acc, __m512 sum) const {
    return kForm.is_k() ? _mm512_fnmadd_ps(min, sum, acc) : _mm512_fmadd_ps(min, sum, acc);
  }
};

template <Type kType, int kRows>
struct Int8Block {
  static void run(const uint8_t* tile, const Activations& a, int first_row, float* out) {
    constexpr Form kForm = form_of(kType);
    const size_t first = a.first_block(first_row);
    const int8_t* x = a.q + first * kBlock;
    const float* scale = a.scale + first;
    const float* sum = a.sum + first;
    const int32_t* start = kForm.minimum ? nullptr : a.starts[offset_place(kType)] + 2 * first;
    __m512 acc[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = _mm512_setzero_ps();
    TileBlock<kType> block{};
    block.at = tile;
    for (int b = 0; b < a.blocks; b++) {
      block.next(b);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const auto* four = reinterpret_cast<const int32_t*>(x + r * kBlock);
        __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
        if constexpr (!kForm.minimum) {
          low = _mm512_set1_epi32(start[2 * r]);
          high = _mm512_set1_epi32(start[2 * r + 1]);
        }
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
          low = _mm512_dpbusd_epi32(low, block.w[g], _mm512_set1_epi32(four[g]));
          high = _mm512_dpbusd_epi32(high, block.w[g + 4], _mm512_set1_epi32(four[g + 4]));
        }
        const __m512 s = _mm512_set1_ps(scale[r]);
        if constexpr (kForm.half_scales()) {
          const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), block.high,
                                              _mm512_mul_ps(_mm512_cvtepi32_ps(low), block.low));
          acc[r] = _mm512_fmadd_ps(both, s, acc[r]);
        } else {
          const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(low, high));
          if constexpr (kForm.minimum) {
            acc[r] = block.with_minimum(acc[r], _mm512_set1_ps(sum[r]));
          }
          acc[r] = _mm512_fmadd_ps(product, _mm512_mul_ps(block.low, s), acc[r]);
        }
      }
      x += a.beside * kBlock, scale += a.beside, sum += a.beside;
      if constexpr (!kForm.minimum) start += 2 * a.beside;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) _mm512_storeu_ps(out + r * kLanes, acc[r]);
  }
};

template <Type kType, int kRows>
struct FloatBlock {
  static void run(const uint8_t* tile, const Activations& a, int first_row, float* out) {
    constexpr Form kForm = form_of(kType);
    const __m512i byte = _mm512_set1_epi32(255);
    const __m512 offset = _mm512_set1_ps(static_cast<float>(kForm.offset));
    const size_t first = a.first_block(first_row);
    const float* x = a.x + first * kBlock;
    const float* halves = a.halves + 2 * first;
    __m512 acc[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = _mm512_setzero_ps();
    TileBlock<kType> block{};
    block.at = tile;
    for (int b = 0; b < a.blocks; b++) {
      block.next(b);
      __m512 low[kRows], high[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) low[r] = high[r] = _mm512_setzero_ps();
      for (int g = 0; g < 4; g++) {
        __m512i first_codes = block.w[g], last_codes = block.w[g + 4];
        for (int i = 0; i < 4; i++) {
          // Weight 0 is 0 here: a large sum is not built up only to be subtracted.
          const __m512 f =
              _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(first_codes, byte)), offset);
          const __m512 l =
              _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(last_codes, byte)), offset);
          first_codes = _mm512_srli_epi32(first_codes, 8);
          last_codes = _mm512_srli_epi32(last_codes, 8);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; r++) {
            const float* k = x + r * kBlock + 4 * g + i;
            low[r] = _mm512_fmadd_ps(f, _mm512_set1_ps(k[0]), low[r]);
            high[r] = _mm512_fmadd_ps(l, _mm512_set1_ps(k[kBlock / 2]), high[r]);
          }
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        if constexpr (kForm.half_scales()) {
          acc[r] = _mm512_fmadd_ps(high[r], block.high, _mm512_fmadd_ps(low[r], block.low, acc[r]));
        } else {
          if constexpr (kForm.minimum) {
            acc[r] = block.with_minimum(acc[r], _mm512_set1_ps(halves[2 * r] + halves[2 * r + 1]));
          }
          acc[r] = _mm512_fmadd_ps(_mm512_add_ps(low[r], high[r]), block.low, acc[r]);
        }
      }
      x += a.beside * kBlock, halves += 2 * a.beside;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) _mm512_storeu_ps(out + r * kLanes, acc[r]);
  }
};

#include "row_blocks.h"

}  // namespace

// 16 rows fill the 32 registers in int8 (16 sums, 8 operands, scales, temporaries); floats need two
// sums a row more.
const Isa kAvx512VnniIsa = {"avx512vnni",          dots<FloatBlock, 8>(), dots<Int8Block, 16>(),
                            rms_norm,              quantize,              arrange,
                            swiglu};

}  // namespace tollhouse
#pragma GCC pop_options
#endif
