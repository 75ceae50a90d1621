#!/bin/sh
# Builds the operators for ONNX Runtime. Needs a C++17 g++ (11 or later); for CUDA also nvcc 12 or 13.
#
#   kernels/build.sh          local_models/lib/libtollhouse_ops.so, the CPU's operators
#   kernels/build.sh --cuda   local_models/lib/libtollhouse_ops_cuda.so, for sm_80, 86, 89 and 90
#   kernels/build.sh --twin   build/kernels/libtollhouse_twin.so, the CUDA kernels run on the CPU
#   kernels/build.sh --bench  build/kernels/bench_*, one stand-alone benchmark per kernel
#
# Prints what it built. A library that already holds its sources' stamp is left as it is; without a
# compiler nothing is built and that is no error, because Tollhouse runs without.
set -eu
cd "$(dirname "$0")/.."
export LC_ALL=C # one order of file names everywhere

# One binary runs anywhere on x86-64: each isa_*.cc raises its own target, the rest stays at the base.
flags="-std=c++17 -O3 -fPIC -fvisibility=hidden -fopenmp-simd -fno-math-errno -fno-trapping-math
  -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-maybe-uninitialized" # GCC 12 doubts its own intrinsics
portable="kernels/common/isa.cc kernels/common/isa_*.cc kernels/common/product.cc
  kernels/common/quantized_matrix.cc kernels/*/*_cpu.cc"

# Same bytes, same order as local_models/native.py reads them.
stamp=$(find kernels -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.sh' |
  sort | xargs cat | sha256sum | cut -d' ' -f1)

need() {
  command -v "$1" >/dev/null && return
  echo "kernels/build.sh: no $1 here, so ONNX Runtime's own operators will be used" >&2
  exit 0
}

# fresh LIBRARY: true, and says so, if it was built from these very sources.
fresh() {
  [ -f "$1" ] && grep -qF "$stamp" "$1" && echo "$1"
}

# Compiles each of $portable into its own object, side by side: the vector loops take most of the time.
# Leaves the objects' names in $objects.
compile() {
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  objects="" jobs=""
  # shellcheck disable=SC2086
  for source in $portable; do
    object=$scratch/$(basename "$source").o
    ${CXX:-g++} $flags -c "$source" -o "$object" &
    objects="$objects $object" jobs="$jobs $!"
  done
  for job in $jobs; do wait "$job"; done
}

# Runs "$@ -o LIBRARY". The file appears whole or not at all: a process may be loading the old one.
build() {
  library=$1
  shift
  mkdir -p "$(dirname "$library")"
  "$@" -o "$library.new.$$"
  mv "$library.new.$$" "$library"
  echo "$library"
}

# shellcheck disable=SC2086 # flags and file patterns are meant to split
case "${1:---cpu}" in
--cpu)
  need "${CXX:-g++}"
  out=local_models/lib/libtollhouse_ops.so
  if ! fresh $out; then
    compile
    build $out ${CXX:-g++} $flags -shared -DTOLLHOUSE_STAMP="\"$stamp\"" $objects \
      kernels/onnxruntime/register.cc
  fi
  ;;
--cuda)
  need "${NVCC:-nvcc}"
  out=local_models/lib/libtollhouse_ops_cuda.so
  fresh $out || build $out ${NVCC:-nvcc} -std=c++17 -O3 -shared -cudart shared --extended-lambda \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_86,code=sm_86 \
    -gencode arch=compute_89,code=sm_89 -gencode arch=compute_90,code=sm_90 \
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall -DTOLLHOUSE_STAMP="\"$stamp\"" kernels/*/*.cu
  ;;
--twin)
  need "${CXX:-g++}"
  out=build/kernels/libtollhouse_twin.so
  fresh $out || build $out ${CXX:-g++} $flags -fno-strict-aliasing -shared \
    -DTOLLHOUSE_STAMP="\"$stamp\"" kernels/common/cuda_twin.cc
  ;;
--bench)
  need "${CXX:-g++}"
  compile
  for source in kernels/*/bench.cc; do
    build "build/kernels/bench_$(basename "$(dirname "$source")")" \
      ${CXX:-g++} $flags $objects "$source"
  done
  ;;
*)
  sed -n '4,7s/^# *//p' "$0" >&2
  exit 2
  ;;
esac
