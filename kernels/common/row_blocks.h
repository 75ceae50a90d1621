// Register blocks: the switch from a run-time number of rows to a loop unrolled for that number.
//
// Included by the vector versions inside their target region, like row_loops.h. Expects templates
// `Block<kType, kRows>::run(tile, activations, first_row, out)` for kRows = 1..kUnroll.

template <template <Type, int> class Block, Type kType, int kRows>
void run_block(const uint8_t* tile, const Activations& a, int first_row, int rows, float* out) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return run_block<Block, kType, kRows - 1>(tile, a, first_row, rows, out);
    }
  }
  Block<kType, kRows>::run(tile, a, first_row, out);
}

// Splits rows into the fewest blocks of nearly equal size: 9 rows are 5 + 4, not 8 + 1.
template <template <Type, int> class Block, Type kType, int kUnroll>
void dot(const uint8_t* tile, const Activations& a, int first_row, int rows, float* out) {
  for (int left = (rows + kUnroll - 1) / kUnroll; left > 0; left--) {
    const int now = (rows + left - 1) / left;
    run_block<Block, kType, kUnroll>(tile, a, first_row, now, out);
    first_row += now;
    rows -= now;
    out += now * kLanes;
  }
}

// One dot product for each type, in the order of Type.
template <template <Type, int> class Block, int kUnroll>
constexpr Dots dots() {
  return {dot<Block, Type::kQ4_0, kUnroll>, dot<Block, Type::kQ4_1, kUnroll>,
          dot<Block, Type::kQ5_0, kUnroll>, dot<Block, Type::kQ5_1, kUnroll>,
          dot<Block, Type::kQ8_0, kUnroll>, dot<Block, Type::kQ4_K, kUnroll>,
          dot<Block, Type::kQ5_K, kUnroll>, dot<Block, Type::kQ6_K, kUnroll>};
}
