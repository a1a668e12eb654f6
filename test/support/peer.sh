#!/bin/bash
# Makes the live peer once and prints its path: a root directory of Debian unstable, the only Debian that carries
# Apptainer and imgcrypt, with these, containerd, skopeo, cryptsetup, gocryptfs and squashfs-tools in it. Needs root,
# because it installs packages in a chroot; takes a minute and 500 MB; afterwards it costs nothing.
#
#   test/support/peer.sh
#
# The place is SIFCRYPT_PEER_ROOT, or sifcrypt/peer below XDG_CACHE_HOME (~/.cache). It is made under another name and
# renamed when it is complete. SIFCRYPT_PEER_MIRROR names another Debian mirror. Exit status: 0 done; 3 the mirror does
# not give it (the reason is on stderr); 4 cannot be made here (not root, debootstrap missing).
#
# How it is used, tried with Apptainer 1.4.5:
# - As root, kernel path (LUKS2 through dm-crypt), in the guest, which needs at least 2 GB for Argon2:
#     test/support/uml-run.sh --mem 3G --root PEER -- apptainer exec --pem-path KEY IMAGE COMMAND
#   Images and keys have to lie in the peer's tree and not below its /tmp or /run. The guest takes its modules with the
#   peer's own modprobe (kmod); the container mounts are taken from the peer's /etc, so hosts, resolv.conf, localtime
#   and mtab have to exist: a missing one ends in "mount source ... doesn't exist". Debian packages no setuid starter,
#   so nothing has to be switched off in apptainer.conf.
# - As an ordinary user on this machine's kernel (gocryptfs and squashfuse): test/support/peer-run.sh.
set -euo pipefail

stop() {
  local status=$1
  shift
  echo "peer: $*" >&2
  exit "$status"
}

recipe=2 # to be raised when what follows gives another tree
mirror=${SIFCRYPT_PEER_MIRROR:-http://deb.debian.org/debian}
packages=(apptainer ca-certificates containerd cryptsetup-bin crun fuse-overlayfs fuse2fs fuse3 gocryptfs imgcrypt
  iproute2 kmod skopeo squashfs-tools squashfuse tzdata uidmap util-linux)
root=${SIFCRYPT_PEER_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/sifcrypt/peer}

complete() {
  [[ "$(cat "$root/etc/sifcrypt-peer" 2>/dev/null)" == "$recipe" ]]
}

if complete; then
  echo "$root"
  exit 0
fi
[[ $EUID -eq 0 ]] || stop 4 "making $root needs root"
command -v debootstrap >/dev/null || stop 4 "debootstrap is missing"

mkdir -p "${root%/*}"
exec 9>"$root.lock"
flock 9
if complete; then
  echo "$root"
  exit 0
fi

work=$root.part
log=$root.log
rm -rf --one-file-system "$work"
trap 'rm -rf --one-file-system "$work"' EXIT
echo "peer: making $root from $mirror" >&2

# Everything that mounts does so in a mount namespace of its own: whatever happens, nothing stays mounted.
unshare --mount --propagation private debootstrap --variant=minbase sid "$work" "$mirror" >"$log" 2>&1 9>&- ||
  stop 3 "debootstrap failed: $(tail -n 1 "$log") (more in $log)"

printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d"
chmod 755 "$work/usr/sbin/policy-rc.d"
# A mirror may lag behind the week that unstable's index is valid for; its signature is checked all the same.
echo 'Acquire::Check-Valid-Until "false";' >"$work/etc/apt/apt.conf.d/99peer"
cp -L /etc/resolv.conf "$work/etc/resolv.conf" 2>/dev/null || : >"$work/etc/resolv.conf"
unshare --mount --propagation private bash -c '
  set -e
  root=$1
  shift
  mount -t proc proc "$root/proc"
  export DEBIAN_FRONTEND=noninteractive
  chroot "$root" apt-get -qq update
  chroot "$root" apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@"
  chroot "$root" apt-get clean' peer "$work" "${packages[@]}" >>"$log" 2>&1 9>&- ||
  stop 3 "the packages cannot be installed: $(grep -E '^(E|Err):?' "$log" | tail -n 1) (more in $log)"
rm -rf "$work/var/lib/apt/lists" "$work/usr/share/doc" "$work/usr/share/man" "$work/usr/share/locale"

ln -sfn ../proc/self/mounts "$work/etc/mtab"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$work/etc/hosts"
ln -sfn /usr/share/zoneinfo/UTC "$work/etc/localtime"
grep -q '^peer:' "$work/etc/passwd" || {
  echo 'peer:x:1000:1000::/home/peer:/bin/bash' >>"$work/etc/passwd"
  echo 'peer:x:1000:' >>"$work/etc/group"
  mkdir "$work/home/peer"
  chown 1000:1000 "$work/home/peer"
}

echo "$recipe" >"$work/etc/sifcrypt-peer"
rm -rf --one-file-system "$root"
mv -T "$work" "$root"
trap - EXIT
rm -f "$log"
echo "$root"
