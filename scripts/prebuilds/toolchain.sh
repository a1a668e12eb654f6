# shellcheck shell=bash
# The compilers of a target, for the scripts that run in the root: sourced with TARGET (linux-ARCHITECTURE-LIBC) as $1.
target=$1
case $target in
  linux-x64-*) triple=x86_64-linux machine=x86_64 cross='' openssl_target=linux-x86_64 ;;
  linux-arm64-*) triple=aarch64-linux machine=aarch64 cross=aarch64-linux-gnu- openssl_target=linux-aarch64 ;;
esac
prefix=/build/libraries/$target
tools=/build/tools/$target
# Paths are the same in every run, and are not to be read in what is shipped all the same.
common="-ffile-prefix-map=/build=. -ffunction-sections -fdata-sections -fstack-protector-strong"
mkdir -p "$tools" /build/made
case $target in
  *-glibc)
    common+=" -D_FORTIFY_SOURCE=2"
    printf '#!/bin/sh\nexec %sgcc "$@"\n' "$cross" >"$tools/cc"
    printf '#!/bin/sh\nexec %sg++ "$@"\n' "$cross" >"$tools/c++"
    ;;
  *-musl)
    export ZIG_GLOBAL_CACHE_DIR=/build/zig-cache ZIG_LOCAL_CACHE_DIR=/build/zig-cache
    # It links a program statically, with a musl that it makes for that, unless a shared library is asked for: here is one, which nothing
    # needs, so that none is asked for at run time but musl's. And of the linker, which is LLVM's by a name that meson has not heard, it
    # knows no --exclude-libs.
    "${cross}gcc" -shared -nostdlib -x c /dev/null -o "$tools/libnothing.so"
    for language in cc c++; do
      cat >"$tools/$language" <<WRAPPER
#!/bin/sh
how="-L$tools -lnothing"
for argument; do
  shift
  case \$argument in
    -static) how=-pie ;;
    -c | -E | -S | -shared) how='' ;;
    -Wl,--version) exec echo "LLD (compatible with GNU linkers)" ;;
    -Wl,--exclude-libs,ALL) argument=-Wl,--version-script=/build/project/scripts/prebuilds/addon.map ;;
  esac
  set -- "\$@" "\$argument"
done
exec /build/zig/zig $language -target $triple-musl -O2 "\$@" \$how
WRAPPER
    done
    ;;
esac
printf '#!/bin/sh\nexec %sar "$@"\n' "$cross" >"$tools/ar"
printf '#!/bin/sh\nexec %sranlib "$@"\n' "$cross" >"$tools/ranlib"
chmod 755 "$tools"/*
CC=$tools/cc CXX=$tools/c++ AR=$tools/ar RANLIB=$tools/ranlib
export CC CXX AR RANLIB
