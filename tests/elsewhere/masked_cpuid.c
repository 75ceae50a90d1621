// Preloaded, it answers CPUID instructions that have been replaced by UD2 (masked_cpu.py does that in
// a copy of ONNX Runtime) as a CPU without VNNI would, or, with MASKED_CPU=avx2, without AVX-512.
// The code runs at full speed: what chose its loops by CPUID chooses those of the lesser CPU.
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))
// Leaf 7: F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS,
// VP2INTERSECT, AMX-BF16, FP16, AMX-TILE, AMX-INT8.
static const unsigned avx512_ebx = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned avx512_ecx = BIT(1) | BIT(6) | BIT(12) | BIT(14);
static const unsigned avx512_edx = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
static const unsigned vnni_ecx = BIT(11);
static const unsigned vnni_and_bf16_eax = BIT(4) | BIT(5);  // subleaf 1: AVX-VNNI, AVX512-BF16

static int avx2_alone;

static void answer(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned leaf = registers[REG_RAX], subleaf = registers[REG_RCX];
  unsigned eax, ebx, ecx, edx;
  if (memcmp((void *)registers[REG_RIP], "\x0f\x0b", 2) != 0) abort();  // a real illegal instruction
  __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
  if (leaf == 7 && subleaf == 0) {
    ecx &= ~vnni_ecx;
    if (avx2_alone) ebx &= ~avx512_ebx, ecx &= ~avx512_ecx, edx &= ~avx512_edx;
  } else if (leaf == 7 && subleaf == 1) {
    eax &= ~vnni_and_bf16_eax;
  }
  registers[REG_RAX] = eax, registers[REG_RBX] = ebx, registers[REG_RCX] = ecx, registers[REG_RDX] = edx;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
  const char *wanted = getenv("MASKED_CPU");
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  avx2_alone = wanted != NULL && strcmp(wanted, "avx2") == 0;
  sigaction(SIGILL, &action, NULL);
}
