// Weights that were repacked are not needed twice: gives their pages of a mapped file back.
#pragma once

#include <cstdint>
#include <cstdio>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace tollhouse::ort {

// Takes the pages that lie wholly in [data, data + size) out of this process's memory, if they are a
// file's: reading them again brings them back from the file. Anonymous memory is left as it is,
// because there the bytes would be lost. ONNX Runtime maps external weights and never writes to them.
inline void drop_mapped_pages(const void* data, size_t size) {
#ifdef __linux__
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
  if (begin >= end) return;
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) return;
  char line[1024];
  bool starts_line = true;
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    unsigned long from = 0, to = 0, inode = 0;
    const bool whole = starts_line;
    starts_line = false;
    for (const char* c = line; *c != '\0'; c++) starts_line = *c == '\n';
    if (!whole || std::sscanf(line, "%lx-%lx %*s %*x %*s %lu", &from, &to, &inode) != 3) continue;
    if (from > begin || to < end) continue;
    if (inode != 0) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
    break;
  }
  std::fclose(maps);
#else
  (void)data, (void)size;
#endif
}

}  // namespace tollhouse::ort
