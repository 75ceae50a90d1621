// Register blocks: the switch from a run-time number of rows to a loop unrolled for that number.
//
// Included by the vector versions inside their target region, like row_loops.h. Expects the template
// `block<kHalf, kRows>(tile, activations, first_row, out)` for kRows = 1..kUnroll.

template <template <bool, int> class Block, bool kHalf, int kRows>
void run_block(const uint8_t* tile, const Activations& a, int first_row, int rows, float* out) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return run_block<Block, kHalf, kRows - 1>(tile, a, first_row, rows, out);
    }
  }
  Block<kHalf, kRows>::run(tile, a, first_row, out);
}

// Splits rows into the fewest blocks of nearly equal size: 9 rows are 5 + 4, not 8 + 1.
template <template <bool, int> class Block, bool kHalf, int kUnroll>
void dot(const uint8_t* tile, const Activations& a, int first_row, int rows, float* out) {
  for (int left = (rows + kUnroll - 1) / kUnroll; left > 0; left--) {
    const int now = (rows + left - 1) / left;
    run_block<Block, kHalf, kUnroll>(tile, a, first_row, now, out);
    first_row += now;
    rows -= now;
    out += now * kLanes;
  }
}
