// Choice of the instruction set. See isa.h.
#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace tollhouse {
namespace {

// Best first.
struct Candidate {
  const Isa* isa;
  bool supported;
};

const Isa* choose() {
  const Candidate candidates[] = {
#ifdef __x86_64__
      // The compiler's run-time check also asks the operating system whether it saves the registers.
      {&kAvx512VnniIsa, __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq")},
      {&kAvx2Isa, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c")},
#endif
      {&kScalarIsa, true},
  };
  const char* wanted = std::getenv("TOLLHOUSE_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (const Candidate& c : candidates) {
    if (c.supported && (any || std::strcmp(wanted, c.isa->name) == 0)) return c.isa;
  }
  return nullptr;
}

}  // namespace

const Isa* chosen_isa() {
  static const Isa* isa = choose();
  return isa;
}

}  // namespace tollhouse
