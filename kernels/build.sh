#!/bin/sh
# Builds the operators for ONNX Runtime. Needs a C++17 g++ (11 or later); for CUDA also nvcc 12 or 13.
#
#   kernels/build.sh          local_models/lib/libtollhouse_ops.so, the CPU's operators
#   kernels/build.sh cuda     local_models/lib/libtollhouse_ops_cuda.so, for sm_80, 86, 89 and 90
#   kernels/build.sh twin     build/kernels/libtollhouse_twin.so, the CUDA kernels run on the CPU
#   kernels/build.sh bench    build/kernels/bench_*, one stand-alone benchmark per kernel
set -eu
cd "$(dirname "$0")/.."
export LC_ALL=C # one order of file names everywhere

# One binary runs anywhere on x86-64: each isa_*.cc raises its own target, the rest stays at the base.
flags="-std=c++17 -O3 -fPIC -fvisibility=hidden -fopenmp-simd -fno-math-errno -fno-trapping-math
  -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-maybe-uninitialized" # GCC 12 doubts its own intrinsics
portable="kernels/common/isa.cc kernels/common/isa_*.cc kernels/common/q4_*.cc kernels/*/*_cpu.cc"

# Same bytes, same order as local_models/native.py reads them.
stamp=$(find kernels -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.sh' |
  sort | xargs cat | sha256sum | cut -d' ' -f1)

# A library appears whole or not at all: a process may be loading the old one.
publish() {
  mkdir -p "$(dirname "$1")"
  mv "$1.new.$$" "$1"
  echo "$1"
}

need() {
  command -v "$1" >/dev/null && return
  echo "kernels/build.sh: no $1 on this machine; Tollhouse runs without, on ONNX Runtime's own operators" >&2
  exit 3
}

case "${1:-cpu}" in
cpu | twin | bench) need "${CXX:-g++}" ;;
cuda) need "${NVCC:-nvcc}" ;;
esac

case "${1:-cpu}" in
cpu)
  out=local_models/lib/libtollhouse_ops.so
  mkdir -p local_models/lib
  # shellcheck disable=SC2086 # word splitting is the point
  ${CXX:-g++} $flags -shared -DTOLLHOUSE_STAMP="\"$stamp\"" $portable \
    kernels/onnxruntime/register.cc -o $out.new.$$
  publish $out
  ;;
cuda)
  out=local_models/lib/libtollhouse_ops_cuda.so
  mkdir -p local_models/lib
  ${NVCC:-nvcc} -std=c++17 -O3 -shared -cudart shared --extended-lambda \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_86,code=sm_86 \
    -gencode arch=compute_89,code=sm_89 -gencode arch=compute_90,code=sm_90 \
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall -DTOLLHOUSE_STAMP="\"$stamp\"" \
    kernels/*/*.cu -o $out.new.$$
  publish $out
  ;;
twin)
  out=build/kernels/libtollhouse_twin.so
  mkdir -p build/kernels
  # shellcheck disable=SC2086
  ${CXX:-g++} $flags -shared kernels/common/cuda_twin.cc -o $out.new.$$
  publish $out
  ;;
bench)
  mkdir -p build/kernels
  for source in kernels/*/bench.cc; do
    out=build/kernels/bench_$(basename "$(dirname "$source")")
    # shellcheck disable=SC2086
    ${CXX:-g++} $flags $portable "$source" -o $out.new.$$
    publish "$out"
  done
  ;;
*)
  sed -n '4,7s/^# *//p' "$0" >&2
  exit 2
  ;;
esac
