#!/bin/bash
# Prints a folder with the User-Mode Linux of Debian unstable (for `uml-run.sh --uml`), made once. Its processes need no ptrace
# (`seccomp=on`, since Linux 6.16), so a system call costs a third of what it does in older ones, which is nearer to a machine's own
# kernel. As its C library may be newer than this machine's, it is told to use that of the peer, which is the same Debian.
#
#   guest-kernel.sh PEER
#
# The place is sifcrypt/guest-kernel below XDG_CACHE_HOME (~/.cache). Needs root, as the peer does.
set -euo pipefail
peer=$(readlink -e -- "${1:?}")
place=${XDG_CACHE_HOME:-$HOME/.cache}/sifcrypt/guest-kernel
here=$(dirname "${BASH_SOURCE[0]}")
if [[ "$(cat "$place/peer" 2>/dev/null)" == "$peer" ]]; then
  echo "$place"
  exit 0
fi
mkdir -p "${place%/*}"
work=$(mktemp -d "$place.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
# shellcheck disable=SC2016
"$here/../test/support/peer-run.sh" --bind "$work" 0 bash -c '
  set -euo pipefail
  apt=(apt-get -qq -o Dir::State::Lists=/tmp -o Dir::Cache=/tmp -o APT::Sandbox::User=root)
  "${apt[@]}" update
  "${apt[@]}" download user-mode-linux patchelf
  dpkg-deb -x user-mode-linux_*.deb .
  dpkg-deb -x patchelf_*.deb /tmp/patchelf
  /tmp/patchelf/usr/bin/patchelf --set-interpreter "$1/lib64/ld-linux-x86-64.so.2" \
    --set-rpath "$1/usr/lib/x86_64-linux-gnu" usr/bin/linux.uml
  rm -- *.deb' guest-kernel "$peer" >&2
echo "$peer" >"$work/peer"
rm -rf "$place"
mv -T "$work" "$place"
trap - EXIT
echo "$place"
