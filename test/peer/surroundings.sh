#!/bin/bash
# Runs a shell script as an ordinary user in surroundings that are the same for the live peer and for us: the user, home,
# host files, an empty /tmp. Needs root, to make them; the script itself has only the user's rights.
#
#   surroundings.sh peer|own PEER FOLDER UID SCRIPT
#
# PEER is the peer's tree. FOLDER is seen at its own path, is the working directory, holds the home folder (home) and the
# passwd file. With `peer` the peer's tree is the root; with `own` this machine's, with the peer's host files over its own.
set -euo pipefail
[[ $# -eq 5 ]] || { echo "usage: surroundings.sh peer|own PEER FOLDER UID SCRIPT" >&2; exit 2; }
# shellcheck disable=SC2016
exec unshare --mount --pid --fork --kill-child --propagation private bash -c '
  set -euo pipefail
  side=$1 peer=$2 folder=$3 uid=$4 script=$5
  if [[ $side == peer ]]; then
    mount --bind "$peer" "$peer"
    root=$peer
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
  else
    root=
    for file in hosts resolv.conf; do
      [[ ! -f $(readlink -f /etc/$file) ]] || mount --bind "$peer/etc/$file" "$(readlink -f /etc/$file)"
    done
  fi
  mount -t tmpfs -o mode=1777 tmp "$root/tmp"
  mount -t proc proc "$root/proc"
  mount --bind "$folder/passwd" "$root/etc/passwd"
  mount --bind "$folder/group" "$root/etc/group"
  if [[ $side == peer ]]; then
    cd "$root"
    pivot_root . mnt
    umount -l /mnt
  fi
  cd "$folder"
  exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --inh-caps=-all env -i HOME="$folder/home" \
    PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin TERM=dumb sh "$script"' surroundings "$@"
