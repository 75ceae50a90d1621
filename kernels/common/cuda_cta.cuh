// The program of one CTA of the CUDA kernels, as code that also runs on a CPU.
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

#include "cuda_problem.h"

namespace tollhouse::cuda {

constexpr int kWarpLanes = kBlock;  // a lane is an element of a block
constexpr int kWarps = 8;
constexpr int kEights = 4;  // parts of a block of 8 codes each, as codes_at gives them

// Four codes times four activations.
TOLLHOUSE_BOTH inline float dot4(uint32_t codes, const float* x) {
  float sum = 0;
  for (int i = 0; i < 4; i++) sum += static_cast<float>(codes >> 8 * i & 255u) * x[i];
  return sum;
}

// Likewise with int8 activations, four in a word; codes are 0..255.
TOLLHOUSE_BOTH inline int dot4(uint32_t codes, uint32_t x) {
#ifdef __CUDA_ARCH__
  // Unsigned by signed: what is at least 128 in a code would count as negative.
  const int flipped = __dp4a(static_cast<int>(codes ^ 0x80808080u), static_cast<int>(x), 0);
  return flipped + 128 * __dp4a(0x01010101, static_cast<int>(x), 0);
#else
  int sum = 0;
  for (int i = 0; i < 4; i++) {
    sum += static_cast<int>(codes >> 8 * i & 255u) * static_cast<int8_t>(x >> 8 * i & 255u);
  }
  return sum;
#endif
}

// Shared memory of a CTA: the activations of its rows. Carved from one buffer of size_bytes().
template <bool kInt8, int kRows>
struct Shared {
  float* partial;  // [kRows, kWarps]: sums of squares
  float* scale;    // [kRows, blocks], kInt8 only
  float* sum;      // [kRows, blocks, 2]: of 16 k, as multiplied
  void* x;         // [kRows, blocks, 32] of int8 or of float

  TOLLHOUSE_BOTH Shared(void* bytes, int blocks)
      : partial(static_cast<float*>(bytes)),
        scale(partial + kRows * kWarps),
        sum(scale + (kInt8 ? kRows * blocks : 0)),
        x(sum + 2 * kRows * blocks) {}

  static size_t size_bytes(int blocks) {
    const size_t per_block = kInt8 ? 3 * sizeof(float) + kBlock : sizeof(float) * (2 + kBlock);
    return kRows * (kWarps * sizeof(float) + blocks * per_block);
  }
};

// The part of y that one CTA computes.
struct Tile {
  int first_row, rows;        // rows <= kRows
  int first_column, columns;
};

template <bool kNorm>
TOLLHOUSE_BOTH float input_at(const Problem& p, size_t at) {
  return kNorm && p.skip != nullptr ? p.x[at] + p.skip[at] : p.x[at];
}

// Phase 1: each warp squares its share of every row. The first CTA of a row writes the residual.
template <int kRows, class Cta, class S>
TOLLHOUSE_BOTH void sum_squares(Cta& cta, const Problem& p, const Tile& tile, const S& shared) {
  cta.phase([&](int warp) {
    for (int r = 0; r < tile.rows; r++) {
      const size_t row = static_cast<size_t>(tile.first_row + r) * p.width;
      float total[1];
      cta.sums(total, [&](int lane, float* share) {
        for (int k = warp * kWarpLanes + lane; k < p.width; k += kWarps * kWarpLanes) {
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
TOLLHOUSE_BOTH void stage_rows(Cta& cta, const Problem& p, const Tile& tile, const S& shared) {
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
      float totals[2];  // of the first and the last 16 k
      if (kInt8) {
        const float largest = cta.largest([&](int lane) { return fabsf(element(lane)); });
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        auto* place = static_cast<int8_t*>(shared.x) + static_cast<size_t>(at) * kBlock;
        cta.sums(totals, [&](int lane, float* share) {
          const float rounded = rintf(element(lane) * inverse);
          place[lane] = static_cast<int8_t>(rounded);
          share[lane / 16] = rounded;
        });
        cta.once([&] {
          shared.scale[at] = largest / 127.0f;
          for (int half = 0; half < 2; half++) {
            shared.sum[2 * at + half] = largest / 127.0f * totals[half];
          }
        });
      } else {
        auto* place = static_cast<float*>(shared.x) + static_cast<size_t>(at) * kBlock;
        cta.sums(totals,
                 [&](int lane, float* share) { share[lane / 16] = place[lane] = element(lane); });
        cta.once([&] {
          for (int half = 0; half < 2; half++) shared.sum[2 * at + half] = totals[half];
        });
      }
    }
  });
}

// Inner products of one column of W with every row, by one warp: a lane takes every 32nd part of 8
// codes.
template <bool kInt8, int kRows, class Cta, class S>
TOLLHOUSE_BOTH void column_sums(Cta& cta, const Problem& p, const Weights& w, int column,
                                const S& shared, float (&totals)[kRows]) {
  const int blocks = p.width / kBlock;
  const Form form = form_of(w.type);
  const uint8_t* row =
      w.records + static_cast<size_t>(column) * (blocks / form.blocks) * form.bytes;
  cta.sums(totals, [&](int lane, float* share) {
    for (int part = lane; part < blocks * kEights; part += kWarpLanes) {
      const int b = part / kEights, j = part % kEights;
      const uint8_t* record = row + static_cast<size_t>(b / form.blocks) * form.bytes;
      const Codes codes = codes_at(w.type, record, b % form.blocks, j);
      const Affine affine = affine_at(w.type, record, b % form.blocks);
      // The block's shifts are added once, by the lane of its first part.
      const float low_shift = j == 0 ? affine.low_shift : 0.0f;
      const float high_shift = j == 0 ? affine.high_shift : 0.0f;
      for (int r = 0; r < kRows; r++) {
        const int at = r * blocks + b;
        float low, high;
        if (kInt8) {
          const auto* x = static_cast<const uint32_t*>(shared.x) + 8 * at + j;
          low = shared.scale[at] * static_cast<float>(dot4(codes.low, x[0]));
          high = shared.scale[at] * static_cast<float>(dot4(codes.high, x[4]));
        } else {
          const auto* x = static_cast<const float*>(shared.x) + kBlock * at + 4 * j;
          low = dot4(codes.low, x);
          high = dot4(codes.high, x + 16);
        }
        share[r] += affine.low_scale * low + low_shift * shared.sum[2 * at] +
                    affine.high_scale * high + high_shift * shared.sum[2 * at + 1];
      }
    }
  });
}

TOLLHOUSE_BOTH inline float silu(float x) {
  const float e = expf(-fabsf(x));  // never overflows
  return x * (x < 0 ? e : 1.0f) / (1.0f + e);
}

// The whole program. kGated: weights[0] is the gate, weights[1] is up; else y has the columns of all
// weights side by side.
template <bool kNorm, bool kGated, bool kInt8, int kRows, class Cta>
TOLLHOUSE_BOTH void run_cta(Cta& cta, const Problem& p, const Tile& tile, void* shared_bytes) {
  const Shared<kInt8, kRows> shared(shared_bytes, p.width / kBlock);
  if (kNorm) sum_squares<kRows>(cta, p, tile, shared);
  stage_rows<kNorm, kInt8, kRows>(cta, p, tile, shared);
  cta.phase([&](int warp) {
    for (int c = warp; c < tile.columns; c += kWarps) {
      const int column = tile.first_column + c;
      int part = 0, of_part = column;
      while (!kGated && of_part >= p.weights[part].columns) of_part -= p.weights[part++].columns;
      // Rows past tile.rows multiply stale shared memory; their sums are not written.
      float y[kRows], up[kRows];
      column_sums<kInt8, kRows>(cta, p, p.weights[part], of_part, shared, y);
      if (kGated) column_sums<kInt8, kRows>(cta, p, p.weights[1], column, shared, up);
      cta.once([&] {
        const float bias = p.bias == nullptr ? 0.0f : p.bias[column];
        for (int r = 0; r < tile.rows; r++) {
          const float value = kGated ? silu(y[r]) * up[r] : y[r] + bias;
          p.y[static_cast<size_t>(tile.first_row + r) * p.columns + column] = value;
        }
      });
    }
  });
}

}  // namespace tollhouse::cuda
