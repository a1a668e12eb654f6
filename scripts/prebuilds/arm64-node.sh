#!/bin/bash
# Prints the path of a program that is Node for arm64, emulated, with the libraries of the oldest Debian that is supported: made once, of what
# sources.lock names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=$PWD/build/prebuilds
mkdir -p "$work"
. scripts/prebuilds/roots.sh
command -v qemu-aarch64-static >/dev/null || { echo "arm64-node: qemu-aarch64-static is missing (scripts/system-packages.sh prebuilds)" >&2; exit 1; }
fetch_all arm64 arm64-node
make_root arm64 >&2
if [[ ! -e $work/arm64-node/bin/node ]]; then
  rm -rf "$work/arm64-node.part"
  mkdir "$work/arm64-node.part"
  tar -xzf "$cache/$(sed -n 's/^arm64-node \([^ ]*\) .*/\1/p' "$lock")" -C "$work/arm64-node.part" --strip-components=1
  mv "$work/arm64-node.part" "$work/arm64-node"
fi
printf '#!/bin/sh\nexec qemu-aarch64-static -L "%s" "%s" "$@"\n' "$work/root-arm64" "$work/arm64-node/bin/node" >"$work/node-arm64"
chmod 755 "$work/node-arm64"
echo "$work/node-arm64"
