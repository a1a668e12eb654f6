#!/bin/bash
# In the root: builds the addon, the starter and, by musl's compiler, the static sifcrypt-init of an architecture with CMakeLists.txt
# and the libraries of libraries.sh, into /build/out.
set -euo pipefail
. /build/project/scripts/prebuilds/toolchain.sh "$1"
out=/build/out/${target%-*} libc=${target##*-} made=/build/made/$target
mkdir -p "$out"
rm -rf "$made"
export SIFCRYPT_STATIC_RUNTIME=1
link="-L$prefix/lib -Wl,--gc-sections -Wl,-s"
includes="-isystem $prefix/include -isystem /build/project/declarations -isystem /build/project/node-addon-api"
cmake -S /build/project -B "$made" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR="$machine" \
  -DCMAKE_CXX_COMPILER="$CXX" -DCMAKE_AR="$AR" -DCMAKE_RANLIB="$RANLIB" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_FLAGS="$common $includes" -DCMAKE_EXE_LINKER_FLAGS="$link" -DCMAKE_SHARED_LINKER_FLAGS="$link" \
  -DCMAKE_JS_INC=/build/project/node-api-headers/include >"$made.log" 2>&1 || { cat "$made.log" >&2; exit 1; }
wanted=(sifcrypt sifcrypt-starter)
[[ $libc == glibc ]] || wanted+=(sifcrypt-init)
cmake --build "$made" -j "$SIFCRYPT_JOBS" --target "${wanted[@]}" >>"$made.log" 2>&1 || { tail -n 60 "$made.log" >&2; exit 1; }
mv "$made/sifcrypt.node" "$out/sifcrypt.$libc.node"
mv "$made/sifcrypt-starter" "$out/sifcrypt-starter.$libc"
[[ $libc == glibc ]] || mv "$made/sifcrypt-init" "$out/sifcrypt-init"
