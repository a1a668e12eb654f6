#!/bin/bash
# In the root: builds the addon, the starter and, by musl's compiler, the static sifcrypt-init of an architecture with CMakeLists.txt
# and the libraries of libraries.sh, into /build/out. What an earlier run has compiled with the same is compiled again only where a source
# is newer.
set -euo pipefail
. /build/project/scripts/prebuilds/toolchain.sh "$1"
out=/build/out/${target%-*} libc=${target##*-} made=/build/made/$target
mkdir -p "$out"
with=$(cat "$prefix/made" /build/project/scripts/prebuilds/{toolchain,binaries}.sh /build/project/*/package.json | sha256sum)
[[ "$(cat "$made.with" 2>/dev/null)" == "$with" ]] || rm -rf "$made"
mkdir -p "$made"
echo "$with" >"$made.with"
# It is of all sources, also of one that is gone.
rm -f "$made/digest/native_digest.h"
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
cp "$made/sifcrypt.node" "$out/sifcrypt.$libc.node"
cp "$made/sifcrypt-starter" "$out/sifcrypt-starter.$libc"
[[ $libc == glibc ]] || cp "$made/sifcrypt-init" "$out/sifcrypt-init"
# A linker of programs refuses what nobody has; one of shared objects leaves it to who loads them. musl has it, or Node: its own interface,
# its OpenSSL and its zlib.
if [[ $libc == musl ]]; then
  sed -nE 's/^(\.globl|\.weak|WEAK64) ([^ ]+)$/\2/p' /build/zig/lib/libc/musl/libc.S >"$made.known"
  # A reader that fails, or finds nothing at all, is a failure.
  symbols=$(readelf --wide --dyn-syms "$out/sifcrypt.musl.node" | awk '$7 == "UND" && $5 == "GLOBAL" { print $8 }' | sort -u)
  [[ -n $symbols && -s $made.known ]] || { echo "$target: what the addon asks for, or what musl has, cannot be read" >&2; exit 1; }
  of_node='^((napi|node_api|EVP)_.*|CRYPTO_memcmp|OPENSSL_cleanse|PKCS12_key_gen_uni|RAND_bytes|inflate(Init2_|Reset|End)?)$'
  others=$(awk -v node="$of_node" 'NR == FNR { musl[$0]; next } !($0 in musl) && $0 !~ node' "$made.known" - <<<"$symbols")
  [[ -z $others ]] || { echo "$target: the addon asks for ${others//$'\n'/, }, which neither musl nor Node has" >&2; exit 1; }
fi
