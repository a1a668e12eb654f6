#!/bin/bash
# Runs a command in the live peer on this machine's kernel, as a user of choice: what Apptainer does for an ordinary
# user (gocryptfs, squashfuse). Needs root, to enter the peer; the command itself has only the user's rights.
#
#   peer-run.sh [--bind DIR]... UID COMMAND [ARGUMENT...]
#
# DIR is visible inside at the same path. The command starts in the last DIR, else in /. HOME is a fresh tmpfs.
# The peer's tree becomes the root by pivot_root in a mount and pid namespace of its own, not by chroot: the kernel
# refuses user namespaces to a process in a chroot, and Apptainer needs one. /dev/fuse has to be open to the user.
# Tried with Apptainer 1.4.5: build -e and exec of an encrypted image, both as uid 1000 without fakeroot and without subuids.
set -euo pipefail
binds=()
while [[ ${1:-} == --bind ]]; do
  binds+=("$(readlink -e -- "$2")")
  shift 2
done
[[ $# -ge 2 ]] || { echo "usage: peer-run.sh [--bind DIR]... UID COMMAND [ARGUMENT...]" >&2; exit 2; }
peer=$("${BASH_SOURCE[0]%/*}/peer.sh")
# shellcheck disable=SC2016
exec unshare --mount --pid --fork --kill-child --propagation private bash -c '
  set -euo pipefail
  peer=$1 count=$2
  shift 2
  mount --bind "$peer" "$peer"
  mount -t tmpfs -o mode=1777 tmp "$peer/tmp"
  mount -t tmpfs -o mode=755 run "$peer/run"
  start=/
  for ((; count > 0; count--)); do
    mkdir -p "$peer$1"
    mount --rbind "$1" "$peer$1"
    start=$1
    shift
  done
  uid=$1
  shift
  cd "$peer"
  mount -t proc proc proc
  mount --rbind /dev dev
  mount --rbind /sys sys
  mount -t tmpfs -o "mode=700,uid=$uid,gid=$uid" home home/peer
  pivot_root . mnt
  umount -l /mnt
  cd "$start"
  exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all env -i HOME=/home/peer \
    PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin TERM=dumb "$@"' peer-run "$peer" "${#binds[@]}" "${binds[@]}" "$@"
