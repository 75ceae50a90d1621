// GatherQ: rows of a matrix in GGUF's blocks, as floats: the embedding of tokens.
#pragma once

#include "../common/gguf_blocks.h"

namespace tollhouse {

// The eight weights k = 4 j + i and 16 + 4 j + i of one block of a row, into y [K].
TOLLHOUSE_BOTH inline void gather_eight(Type type, const uint8_t* row, int block, int j, float* y) {
  const Form form = form_of(type);
  const uint8_t* record = row + static_cast<size_t>(block / form.blocks) * form.bytes;
  const Codes codes = codes_at(type, record, block % form.blocks, j);
  const Affine w = affine_at(type, record, block % form.blocks);
  float* out = y + block * kBlock + 4 * j;
  for (int i = 0; i < 4; i++) {
    // The offset leaves the code while both are small integers, so that only one product rounds.
    const auto offset = form.minimum ? 0 : form.offset;
    const int low = static_cast<int>(codes.low >> 8 * i & 255u) - offset;
    const int high = static_cast<int>(codes.high >> 8 * i & 255u) - offset;
    out[i] = w.low_scale * static_cast<float>(low) + (form.minimum ? w.low_shift : 0.0f);
    out[16 + i] = w.high_scale * static_cast<float>(high) + (form.minimum ? w.high_shift : 0.0f);
  }
}

// y [count, K] = rows ids[0], ids[1], .. of records [N, row_bytes]; every id must be in 0..N - 1.
void gather_q(Type type, const uint8_t* records, int width, const int64_t* ids, size_t count,
              float* y);

}  // namespace tollhouse
