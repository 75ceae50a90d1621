// The program of one CTA of the 4-bit CUDA kernels, as code that also runs on a CPU.
//
// A CTA is kWarps warps of 32 lanes. The program is a list of phases; in a phase every warp runs the
// same function, and a barrier ends it. Lanes meet in two ways only, `sums` and `largest`, warps only
// through shared memory across a barrier. A Cta supplies these: DeviceCta with shuffles and
// __syncthreads (cuda_launch.cuh), HostCta with plain loops (cuda_twin.cc). What the tests drive on a
// machine without a GPU is therefore this very text: indexing, tails, layouts, arithmetic.
//
// Each CTA normalises and quantises its rows for itself, into shared memory. That repeats a few
// hundred operations per CTA and saves a launch and a trip through global memory.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "q4_problem.h"

#ifdef __CUDACC__
#define TOLLHOUSE_BOTH __host__ __device__
#else
#define TOLLHOUSE_BOTH
#endif

namespace tollhouse::cuda {

constexpr int kBlock = 32;       // k per (d, m), and lanes per warp: a lane is an element of a block
constexpr int kWarps = 8;
constexpr int kWordsPerBlock = 4;  // of 8 codes each, the lowest k in the lowest nibble

// One lane's share: 8 codes times 8 activations. Four lanes make a block.
TOLLHOUSE_BOTH inline float dot8(uint32_t codes, const float* x) {
  float sum = 0;
  for (int i = 0; i < 8; i++) sum += static_cast<float>(codes >> 4 * i & 15u) * x[i];
  return sum;
}

// Four products of unsigned codes (0..15) and int8 activations, added to sum.
TOLLHOUSE_BOTH inline int dot4(uint32_t codes, uint32_t x, int sum) {
#ifdef __CUDA_ARCH__
  return __dp4a(static_cast<int>(codes), static_cast<int>(x), sum);
#else
  for (int i = 0; i < 4; i++) {
    sum += static_cast<int>(codes >> 8 * i & 255u) * static_cast<int8_t>(x >> 8 * i & 255u);
  }
  return sum;
#endif
}

// x holds the activations of the even codes in its first four bytes, of the odd ones in the others.
TOLLHOUSE_BOTH inline int dot8(uint32_t codes, const uint32_t* x) {
  const int even = dot4(codes & 0x0f0f0f0fu, x[0], 0);
  return dot4(codes >> 4 & 0x0f0f0f0fu, x[1], even);
}

// Where element k of a block lies, so that dot8 finds even and odd codes' partners together.
TOLLHOUSE_BOTH inline int even_odd_place(int k) { return k / 8 * 8 + k % 2 * 4 + k % 8 / 2; }

// Shared memory of a CTA: the activations of its rows. Carved from one buffer of size_bytes().
template <bool kInt8, int kRows>
struct Shared {
  float* partial;  // [kRows, kWarps]: sums of squares
  float* scale;    // [kRows, blocks], kInt8 only
  float* sum;      // [kRows, blocks]
  void* x;         // [kRows, blocks, 32] of int8, even_odd_place within a block, or of float

  TOLLHOUSE_BOTH Shared(void* bytes, int blocks)
      : partial(static_cast<float*>(bytes)),
        scale(partial + kRows * kWarps),
        sum(scale + (kInt8 ? kRows * blocks : 0)),
        x(sum + kRows * blocks) {}

  static size_t size_bytes(int blocks) {
    const size_t per_block = kInt8 ? 2 * sizeof(float) + kBlock : sizeof(float) * (1 + kBlock);
    return kRows * (kWarps * sizeof(float) + blocks * per_block);
  }
};

// The part of y that one CTA computes.
struct Tile {
  int first_row, rows;        // rows <= kRows
  int first_column, columns;
};

template <bool kNorm>
TOLLHOUSE_BOTH float input_at(const Q4Problem& p, size_t at) {
  return kNorm && p.skip != nullptr ? p.x[at] + p.skip[at] : p.x[at];
}

// Phase 1: each warp squares its share of every row. The first CTA of a row writes the residual.
template <int kRows, class Cta, class S>
TOLLHOUSE_BOTH void sum_squares(Cta& cta, const Q4Problem& p, const Tile& tile, const S& shared) {
  cta.phase([&](int warp) {
    for (int r = 0; r < tile.rows; r++) {
      const size_t row = static_cast<size_t>(tile.first_row + r) * p.width;
      float total[1];
      cta.sums(total, [&](int lane, float* share) {
        for (int k = warp * kBlock + lane; k < p.width; k += kWarps * kBlock) {
          const float value = input_at<true>(p, row + k);
          if (p.residual != nullptr && tile.first_column == 0) p.residual[row + k] = value;
          share[0] += value * value;
        }
      });
      cta.once([&] { shared.partial[r * kWarps + warp] = total[0]; });
    }
  });
}

// Phase 2: a warp takes a block of a row, a lane an element of it.
template <bool kNorm, bool kInt8, int kRows, class Cta, class S>
TOLLHOUSE_BOTH void stage_rows(Cta& cta, const Q4Problem& p, const Tile& tile, const S& shared) {
  const int blocks = p.width / kBlock;
  cta.phase([&](int warp) {
    for (int item = warp; item < tile.rows * blocks; item += kWarps) {
      const int r = item / blocks, b = item % blocks;
      float inverse_rms = 1;
      if (kNorm) {
        float squares = 0;
        for (int w = 0; w < kWarps; w++) squares += shared.partial[r * kWarps + w];
        inverse_rms = 1.0f / sqrtf(squares / static_cast<float>(p.width) + p.epsilon);
      }
      const size_t row = static_cast<size_t>(tile.first_row + r) * p.width;
      const auto element = [&](int lane) {
        const int k = b * kBlock + lane;
        const float value = input_at<kNorm>(p, row + k);
        return kNorm ? value * inverse_rms * p.gain[k] : value;
      };
      const int at = r * blocks + b;
      float total[1];
      if (kInt8) {
        const float largest = cta.largest([&](int lane) { return fabsf(element(lane)); });
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        auto* place = static_cast<int8_t*>(shared.x) + static_cast<size_t>(at) * kBlock;
        cta.sums(total, [&](int lane, float* share) {
          const float rounded = rintf(element(lane) * inverse);
          place[even_odd_place(lane)] = static_cast<int8_t>(rounded);
          share[0] = rounded;
        });
        cta.once([&] {
          shared.scale[at] = largest / 127.0f;
          shared.sum[at] = largest / 127.0f * total[0];
        });
      } else {
        auto* place = static_cast<float*>(shared.x) + static_cast<size_t>(at) * kBlock;
        cta.sums(total, [&](int lane, float* share) { share[0] = place[lane] = element(lane); });
        cta.once([&] { shared.sum[at] = total[0]; });
      }
    }
  });
}

// Inner products of one column of W with every row, by one warp: a lane takes every 32nd word of 8
// codes, so that a warp reads 128 bytes in a row.
template <bool kInt8, int kRows, class Cta, class S>
TOLLHOUSE_BOTH void column_sums(Cta& cta, const Q4Problem& p, const Q4Weights& w, int column,
                                const S& shared, float (&totals)[kRows]) {
  const int blocks = p.width / kBlock;
  const size_t first_block = static_cast<size_t>(column) * blocks;
  const auto* words = reinterpret_cast<const uint32_t*>(w.q) + first_block * kWordsPerBlock;
  cta.sums(totals, [&](int lane, float* share) {
    for (int word = lane; word < blocks * kWordsPerBlock; word += kBlock) {
      const int b = word / kWordsPerBlock;
      const uint32_t codes = words[word];
      const float d = w.d[first_block + b];
      // The block's affine term is added once, by the lane of its first word.
      const float m = word % kWordsPerBlock == 0 ? w.m[first_block + b] : 0.0f;
      for (int r = 0; r < kRows; r++) {
        const int at = r * blocks + b;
        const int x = r * blocks * kWordsPerBlock + word;  // in units of 8 activations
        float product;
        if (kInt8) {
          const int exact = dot8(codes, static_cast<const uint32_t*>(shared.x) + 2 * x);
          product = shared.scale[at] * static_cast<float>(exact);
        } else {
          product = dot8(codes, static_cast<const float*>(shared.x) + 8 * x);
        }
        share[r] += d * product + m * shared.sum[at];
      }
    }
  });
}

TOLLHOUSE_BOTH inline float silu(float x) {
  const float e = expf(-fabsf(x));  // never overflows
  return x * (x < 0 ? e : 1.0f) / (1.0f + e);
}

// The whole program. kGated: weights[0] is the gate, weights[1] is up.
template <bool kNorm, bool kGated, bool kInt8, int kRows, class Cta>
TOLLHOUSE_BOTH void run_cta(Cta& cta, const Q4Problem& p, const Tile& tile, void* shared_bytes) {
  const Shared<kInt8, kRows> shared(shared_bytes, p.width / kBlock);
  if (kNorm) sum_squares<kRows>(cta, p, tile, shared);
  stage_rows<kNorm, kInt8, kRows>(cta, p, tile, shared);
  cta.phase([&](int warp) {
    for (int c = warp; c < tile.columns; c += kWarps) {
      const int column = tile.first_column + c;
      // Rows past tile.rows multiply stale shared memory; their sums are not written.
      float y[kRows], up[kRows];
      column_sums<kInt8, kRows>(cta, p, p.weights[0], column, shared, y);
      if (kGated) column_sums<kInt8, kRows>(cta, p, p.weights[1], column, shared, up);
      cta.once([&] {
        for (int r = 0; r < tile.rows; r++) {
          const float value = kGated ? silu(y[r]) * up[r] : y[r];
          p.y[static_cast<size_t>(tile.first_row + r) * p.columns + column] = value;
        }
      });
    }
  });
}

}  // namespace tollhouse::cuda
