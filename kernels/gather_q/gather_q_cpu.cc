// GatherQ on the CPU: only the rows asked for are read, from where the graph has them.
#include "gather_q.h"

namespace tollhouse {

void gather_q(Type type, const uint8_t* records, int width, const int64_t* ids, size_t count,
              float* y) {
  const Form form = form_of(type);
  const int blocks = width / kBlock;
  const size_t row_bytes = static_cast<size_t>(blocks / form.blocks) * form.bytes;
  for (size_t i = 0; i < count; i++, y += width) {
    const uint8_t* row = records + static_cast<size_t>(ids[i]) * row_bytes;
    for (int eight = 0; eight < blocks * 4; eight++) {
      gather_eight(type, row, eight / 4, eight % 4, y);
    }
  }
}

}  // namespace tollhouse
