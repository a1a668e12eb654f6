#!/bin/bash
# Makes what prebuilds/ ships (`npm run prebuilds`), for x64 and arm64, glibc and musl, on any Debian of x64: nothing of the machine
# gets into the files. Compilers and sources are those of scripts/prebuilds/sources.lock, each checked by its SHA-256, and run in a root
# that is made of them; two runs give the same bytes. As root, or as a user who may have a user namespace.
#
#   prebuilds.sh [TARGET...]              default: all of linux-x64-glibc linux-x64-musl linux-arm64-glibc linux-arm64-musl
#   prebuilds.sh --check [TARGET...]      makes them a second time, from nothing but the downloads, and compares
#
# SIFCRYPT_PREBUILDS_CACHE keeps the downloads; default: sifcrypt/prebuilds below XDG_CACHE_HOME (~/.cache).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
project=$PWD
work=$project/build/prebuilds
export SIFCRYPT_JOBS=${SIFCRYPT_JOBS:-$(nproc)}

check=''
[[ ${1:-} != --check ]] || { check=yes work=$work-check; shift; }
all=(linux-x64-glibc linux-x64-musl linux-arm64-glibc linux-arm64-musl)
[[ $# -gt 0 ]] && targets=("$@") || targets=("${all[@]}")
for target in "${targets[@]}"; do
  [[ " ${all[*]} " == *" $target "* ]] || { echo "prebuilds: no target is called $target, there are ${all[*]}" >&2 && exit 2; }
done
[[ -z $check ]] || rm -rf --one-file-system "$work"
mkdir -p "$work"
. scripts/prebuilds/roots.sh

# Runs a command in a root: with its own mounts, the work folder as /build, and nothing of this environment.
inside() {
  local root=$1 namespace=(--mount --propagation private)
  shift
  [[ $EUID -eq 0 ]] || namespace+=(--user --map-root-user)
  # shellcheck disable=SC2016
  unshare "${namespace[@]}" bash -c '
    set -e
    mount --rbind /dev "$1/dev"
    mount --rbind /proc "$1/proc"
    mount --bind "$2" "$1/build"
    root=$1 jobs=$3
    shift 3
    exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/build LC_ALL=C TZ=UTC \
      SOURCE_DATE_EPOCH=1 SIFCRYPT_JOBS="$jobs" "$@"' inside "$root" "$work" "$SIFCRYPT_JOBS" "$@" </dev/null
}

scripts/system-packages.sh prebuilds
# The headers of Node's interface.
scripts/npm-packages.sh
echo "fetching what sources.lock names, into $cache"
fetch_all tools go declarations fuse3 openssl zlib libdeflate lz4 libzstd xz-utils zig
make_root tools
make_root go
if [[ ! -e $work/zig/zig ]]; then
  mkdir -p "$work/zig"
  tar -xzf "$cache/$(sed -n 's/^zig \([^ ]*\) .*/\1/p' "$lock")" -C "$work/zig" --strip-components=1
fi

# The sources under the names that they are published by, which is what dpkg-source looks for.
rm -rf "$work/archives" "$work/project" "$work/out"
mkdir -p "$work/archives" "$work/project/declarations" "$work/out"
while read -r kind hash address; do
  case $kind in
    '#' | tools | go | zig | arm64*) ;;
    declarations) dpkg-deb --fsys-tarfile "$cache/$hash" | tar -xf - -C "$work/project/declarations" --strip-components=3 --wildcards '*.h' ;;
    *)
      name=${address##*/}
      name=${name//%7e/\~} name=${name//%2b/+}
      cp "$cache/$hash" "$work/archives/$name"
      ;;
  esac
done <"$lock"
cp -a native scripts CMakeLists.txt "$work/project/"
for headers in node-addon-api node-api-headers; do
  cp -aL "node_modules/$headers" "$work/project/$headers"
done

for target in "${targets[@]}"; do
  echo "$target: libraries"
  inside "$work/root-tools" /bin/bash /build/project/scripts/prebuilds/libraries.sh "$target"
  echo "$target: binaries"
  inside "$work/root-tools" /bin/bash /build/project/scripts/prebuilds/binaries.sh "$target"
done
for machine in $(printf '%s\n' "${targets[@]}" | sed -E 's/-(glibc|musl)$//' | sort -u); do
  echo "$machine: sifcrypt-shell"
  case $machine in *-x64) architecture=amd64 ;; *-arm64) architecture=arm64 ;; esac
  inside "$work/root-go" /usr/bin/env PATH=/usr/lib/go-1.24/bin:/usr/bin SIFCRYPT_GOARCH=$architecture GOCACHE=/build/go-cache \
    GOROOT=/usr/lib/go-1.24 /bin/bash /build/project/scripts/build-shell.sh "/build/out/$machine/sifcrypt-shell"
done

digest=$(scripts/native-digest.sh)
find "$work/out" -type f -exec chmod 755 {} +
scripts/prebuilds/check-binary.sh "$digest" "$work"/out/*/*
node scripts/prebuilds/manifest.mjs write "$work/out"

if [[ -n $check ]]; then
  # Each file that was made, and what the manifest says of it.
  status=0
  for file in "$work"/out/*/*; do
    name=${file#"$work/out/"}
    cmp "$file" "prebuilds/$name" || status=1
    node -e 'const [a, b] = process.argv.slice(2).map((file) => JSON.stringify(require(file).files[process.argv[1]]));
      if (a !== b) { console.error(`manifest.json says otherwise of ${process.argv[1]}`); process.exitCode = 1 }' \
      "$name" "$work/out/manifest.json" "$project/prebuilds/manifest.json" || status=1
  done
  [[ $status -ne 0 ]] || echo "the same bytes: $(cd "$work/out" && echo */*)"
  exit "$status"
fi
if [[ ${#targets[@]} -eq ${#all[@]} ]]; then
  rm -rf prebuilds/linux-*
  mv "$work"/out/linux-* "$work/out/manifest.json" prebuilds/
  (cd prebuilds && ls -l linux-*)
else
  echo "made, and not put into prebuilds/, which has all targets or none: $work/out"
fi
