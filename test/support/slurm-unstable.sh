#!/bin/bash
# Runs a command, such as mocha with the tests of test/slurm, where Slurm and MUNGE are those of Debian unstable: in a root directory
# that is made once, with this machine's kernel, temporary folder and Node.js, and this project at its own path. Needs root; making it
# takes a minute or two and 500 MB.
#
#   test/support/slurm-unstable.sh node_modules/.bin/mocha test/slurm/nodes.test.ts
#
# The place is sifcrypt/slurm-unstable below XDG_CACHE_HOME (~/.cache); SIFCRYPT_PEER_MIRROR names another Debian mirror.
set -euo pipefail

recipe=2 # to be raised when what follows gives another tree
mirror=${SIFCRYPT_PEER_MIRROR:-http://deb.debian.org/debian}
packages=(busybox-static ca-certificates crun docker-registry fuse3 hostname libcryptsetup12 mpich munge openssh-client openssh-server
  openssl procps python3 slurm-client slurmctld slurmd)
root=${XDG_CACHE_HOME:-$HOME/.cache}/sifcrypt/slurm-unstable

[[ $EUID -eq 0 ]] || {
  echo "slurm-unstable: making a root directory, and slurmd, need root" >&2
  exit 4
}
mkdir -p "${root%/*}"
exec 9>"$root.lock"
flock 9
if [[ "$(cat "$root/etc/sifcrypt-slurm" 2>/dev/null)" != "$recipe" ]]; then
  rm -rf --one-file-system "$root"
  echo "slurm-unstable: making $root from $mirror" >&2
  # Nothing that it mounts or starts stays.
  unshare --mount --pid --fork --propagation private debootstrap --variant=minbase \
    --include="$(IFS=,; echo "${packages[*]}")" unstable "$root" "$mirror" >"$root.log" 2>&1 || {
    tail -n 20 "$root.log" >&2
    exit 3
  }
  rm -rf "$root/var/cache/apt/archives"/*.deb
  echo "$recipe" >"$root/etc/sifcrypt-slurm"
fi
flock -u 9
# A new root, and not chroot's: who is in one of those makes no user namespace.
exec unshare --mount --propagation private bash -c '
  set -euo pipefail
  root=$1 node=$2
  shift 2
  mount --bind "$root" "$root"
  mkdir -p "$root$PWD" "$root/old"
  for place in "$PWD" /tmp; do mount --bind "$place" "$root$place"; done
  for place in /dev /sys; do mount --rbind "$place" "$root$place"; done
  mount -t proc proc "$root/proc"
  touch "$root/usr/bin/node"
  mount --bind "$node" "$root/usr/bin/node"
  cp /etc/hosts /etc/resolv.conf "$root/etc/"
  here=$PWD
  cd "$root"
  pivot_root . old
  cd "$here"
  umount -l /old
  export PATH=$here/node_modules/.bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  exec "$@"' \
  slurm-unstable "$root" "$(readlink -f "$(command -v node)")" "$@"
