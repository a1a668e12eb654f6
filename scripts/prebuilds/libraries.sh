#!/bin/bash
# In the root: builds the static libraries of a target that scripts/static-libraries.sh names, of the distribution's sources with its
# patches, into /build/libraries/TARGET. What is there already was made by the same recipe and stays.
set -euo pipefail
scripts=/build/project/scripts/prebuilds
. "$scripts/toolchain.sh" "$1"

made=$({ grep -vE "^(go|declarations|arm64|arm64-node) " "$scripts/sources.lock"; cat "$scripts/toolchain.sh" "$scripts/libraries.sh"; } | sha256sum)
[[ "$(cat "$prefix/made" 2>/dev/null)" != "$made" ]] || exit 0
log=$prefix.log
rm -rf "$prefix" /build/sources
mkdir -p "$prefix/include" "$prefix/lib" /build/sources
cd /build/sources
trap 'status=$?; [[ $status -eq 0 ]] || tail -n 40 "$log" >&3' EXIT
exec 3>&2 >"$log" 2>&1

for description in /build/archives/*.dsc; do
  name=$(sed -n 's/^Source: //p' "$description")
  dpkg-source --no-check -x "$description" "/build/sources/$name"
done

# library NAME FLAGS SOURCES…: an archive of the objects, in the order in which they are named.
library() {
  local name=$1 flags=$2 objects=()
  shift 2
  for source; do objects+=("${source%.*}.o"); done
  # shellcheck disable=SC2016
  printf '%s\n' "$@" | xargs -P "$SIFCRYPT_JOBS" -I{} sh -c '
    object=$1; $CC $2 -fPIC $3 -c "$object" -o "${object%.*}.o"' library {} "$common" "$flags"
  $AR rcs "$prefix/lib/$name" "${objects[@]}"
}

(
  cd zlib
  sed -i 's/#ifdef HAVE_UNISTD_H.*/#if 1/' zconf.h
  library libz.a -O3 adler32.c compress.c crc32.c deflate.c infback.c inffast.c inflate.c inftrees.c trees.c uncompr.c zutil.c
  cp zlib.h zconf.h "$prefix/include/"
)
(
  cd libdeflate
  library libdeflate.a "-O2 -I." lib/*.c lib/*/cpu_features.c
  cp libdeflate.h "$prefix/include/"
)
(
  cd lz4/lib
  library liblz4.a -O3 lz4.c lz4hc.c lz4frame.c xxhash.c
  cp lz4*.h "$prefix/include/"
)
(
  cd libzstd/lib
  library libzstd.a "-O3 -DXXH_NAMESPACE=ZSTD_ -DZSTD_MULTITHREAD -DZSTD_DISABLE_ASM" common/*.c compress/*.c decompress/*.c
  cp zstd.h zstd_errors.h "$prefix/include/"
)
(
  cd xz-utils
  ./configure --host="$triple-gnu" --prefix="$prefix" --disable-shared --enable-static --with-pic --disable-nls \
    --disable-{xz,xzdec,lzmadec,lzmainfo,lzma-links,scripts,doc} CFLAGS="-O2 $common"
  make -C src/liblzma -j "$SIFCRYPT_JOBS" install
)
(
  # Its own build knows which of its features the C library has.
  printf '[binaries]\nc = %s\nar = %s\n[host_machine]\nsystem = "linux"\ncpu_family = "%s"\ncpu = "%s"\nendian = "little"\n' \
    "'$CC'" "'$AR'" "$machine" "$machine" | tr '"' "'" >cross.ini
  meson setup fuse3 fuse3-made --cross-file cross.ini --prefix=/usr --libdir=lib --default-library=static --buildtype=plain \
    -Dutils=false -Dexamples=false -Dtests=false -Dc_args="-O2 -fPIC $common"
  # /usr is where it looks for fusermount3.
  DESTDIR=$PWD/fuse3-installed ninja -C fuse3-made -j "$SIFCRYPT_JOBS" install
  cp fuse3-installed/usr/lib/libfuse3.a "$prefix/lib/"
  cp -r fuse3-installed/usr/include/fuse3 "$prefix/include/"
)
(
  cd openssl
  # AES-XTS, AES-CTR, AES-GCM, SHA-2 and PKCS#12's key derivation is what is used. What is left out here is not linked.
  read -rd '' -a features <<'FEATURES' || true
    no-shared no-tests no-dso no-module no-engine no-async no-autoload-config no-ui-console no-tls no-dtls no-comp no-cms no-cmp
    no-ocsp no-ts no-srp no-srtp no-psk no-ct no-rfc3779 no-gost no-sock no-ktls no-legacy no-deprecated no-aria no-bf no-blake2
    no-camellia no-cast no-chacha no-cmac no-des no-dh no-dsa no-ec no-idea no-md4 no-mdc2 no-ocb no-poly1305 no-rc2 no-rc4
    no-rmd160 no-scrypt no-seed no-siphash no-siv no-sm2 no-sm3 no-sm4 no-whirlpool no-filenames no-multiblock no-cached-fetch
FEATURES
  CC=$CC AR=$AR RANLIB=$RANLIB ./Configure "$openssl_target" "${features[@]}" -fPIC -O2 $common --prefix=/usr --openssldir=/etc/ssl --libdir=lib
  make -j "$SIFCRYPT_JOBS" build_generated
  make -j "$SIFCRYPT_JOBS" libcrypto.a
  cp libcrypto.a "$prefix/lib/"
  cp -r include/openssl "$prefix/include/"
)
rm -rf /build/sources
echo "$made" >"$prefix/made"
