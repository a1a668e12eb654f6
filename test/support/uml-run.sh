#!/bin/bash
# Runs a command as root in a User-Mode Linux guest: a Linux kernel as an ordinary process, on this machine's own files,
# with device-mapper, dm-crypt, dm-verity, loop devices and whatever else the kernel of the machine may lack. No privilege needed
# by itself, but the guest's root can only touch what the caller can.
#
#   uml-run.sh [--mem SIZE] [--timeout SECONDS] [--root DIR] [--uml DIR] [--kernel PARAMETER]... [--stdin] --
#     COMMAND [ARGUMENT...]
#
# --mem      memory of the guest, default 2G
# --timeout  seconds until the guest is killed, default 600
# --root     the guest's root file system, default / ; another one is a directory like those of debootstrap
# --uml      another kernel than the machine's: an unpacked package of user-mode-linux
# --kernel   a parameter of the guest's kernel, e.g. lsm=apparmor
# --stdin    the command reads this script's standard input, which is read to its end before the guest starts
#
# The guest sees the files of the root directory and writes them for real, except below /tmp, /run and /dev, which are
# its own; the working directory is visible wherever it lies (with --root the command starts in /). The environment is
# PATH, HOME=/root, TERM=dumb, CI and SIFCRYPT_*; anything else through env(1). Output streams out here as it is written.
# The exit status is the command's; 124 when the guest was killed for time or ended by itself, 125 for a mistake in the
# call or a missing package.
#
# One processor and slow system calls (each one is a few context switches of the host): for tests, and for times only where
# what is compared runs in it.
# Boots in about two seconds. Debian packages: user-mode-linux, kmod.
set -euo pipefail

fail() {
  echo "uml-run: $*" >&2
  exit 125
}

memory=2G limit=600 root=/ take_stdin=no parameters=()
linux=linux.uml modules=/usr/lib/uml/modules
while [[ $# -gt 0 ]]; do
  case $1 in
    --mem) memory=${2:?}; shift 2 ;;
    --timeout) limit=${2:?}; shift 2 ;;
    --root) root=$(readlink -e -- "${2:?}") || fail "no such directory: $2"; shift 2 ;;
    --uml) linux=${2:?}/usr/bin/linux.uml modules=$2/usr/lib/uml/modules; shift 2 ;;
    --kernel) parameters+=("${2:?}"); shift 2 ;;
    --stdin) take_stdin=yes; shift ;;
    --) shift; break ;;
    *) fail "unknown option $1" ;;
  esac
done
[[ $# -gt 0 ]] || fail "no command"
command -v "$linux" >/dev/null || fail "$linux is missing, it is in Debian's package user-mode-linux"
[[ -d $modules ]] || fail "$modules is missing, it is in Debian's package user-mode-linux"

# Where the two sides meet: script and command in, output and status out. Inside the guest's root, because init is
# started from there, and not below /tmp or /run, which the guest covers.
box=$(mktemp -d "${root%/}/var/tmp/uml-run.XXXXXX")
inside=/var/tmp/${box##*/}
kernel='' readers=()
clean_up() {
  trap '' INT TERM HUP
  # What has ended by itself needs no signal.
  [[ -z $kernel ]] || kill -KILL -- "-$kernel" 2>/dev/null || true
  for reader in "${readers[@]}"; do kill "$reader" 2>/dev/null || true; done
  rm -rf "$box"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

here=$PWD
[[ $root == / ]] || here=/
{
  printf 'box=%q\n' "$box"
  printf 'modules=%q\n' "$modules"
  printf 'here=%q\n' "$here"
  printf 'command=('
  printf '%q ' "$@"
  printf ')\n'
  printf 'environment=(PATH=%q HOME=/root TERM=dumb' "$PATH"
  while IFS='=' read -r -d '' name value; do
    case $name in
      CI | SIFCRYPT_*) printf ' %s=%q' "$name" "$value" ;;
    esac
  done < <(env -0)
  printf ')\n'
} >"$box/settings"
cat >"$box/init" <<'INIT'
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. "${0%/*}/settings"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 dev /dev
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /dev/pts /dev/mapper
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -sfn /proc/self/fd /dev/fd
ln -sfn /proc/self/fd/0 /dev/stdin
ln -sfn /proc/self/fd/1 /dev/stdout
ln -sfn /proc/self/fd/2 /dev/stderr
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/uml-box /run/uml-modules/lib/modules
mount -t hostfs -o "$box" box /run/uml-box
mount -t hostfs -o "$modules" modules /run/uml-modules/lib/modules
mount -t tmpfs -o mode=1777,size=75% tmp /tmp
if [[ $here == /tmp/* || $here == /run/* ]]; then
  mkdir -p "$here"
  mount -t hostfs -o "$here" here "$here"
fi
# The ciphers first: encrypted-keys, which dm-crypt wants, asks for one when it is loaded.
for module in aes_generic cbc xts algif_skcipher loop dm-mod dm-crypt dm-verity squashfs overlay fuse; do
  modprobe -d /run/uml-modules "$module" 2>>/run/uml-box/err || echo "uml-run: no module $module" >>/run/uml-box/err
done
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null
if [[ ! -e /dev/mapper/control ]]; then
  mknod /dev/mapper/control c 10 "$(awk '$2 == "device-mapper" { print $1 }' /proc/misc)"
fi
[[ -e /dev/fuse ]] || mknod /dev/fuse c 10 229
chmod 666 /dev/fuse
ip link set lo up 2>/dev/null || ifconfig lo up 2>/dev/null
cd "$here" && env -i "${environment[@]}" "${command[@]}" </run/uml-box/stdin >/run/uml-box/out 2>>/run/uml-box/err
echo "$?" >/run/uml-box/status
sync
echo o >/proc/sysrq-trigger
sleep 10
INIT
chmod 755 "$box/init"
: >"$box/out"
: >"$box/err"
if [[ $take_stdin == yes ]]; then cat >"$box/stdin"; else : >"$box/stdin"; fi

# What the kernel lacks on processors with much state; see there.
cc -O2 -fPIC -shared -o "$box/uml-xstate.so" "$(dirname "${BASH_SOURCE[0]}")/uml-xstate.c" ||
  fail "a C compiler is missing (scripts/system-packages.sh installs it)"

# The guest has one processor. Its processes are processes here, which take turns: on one processor of this machine that takes two
# thirds of the time.
pin=()
if [[ $(taskset -cp $$ 2>/dev/null) =~ ([0-9]+)$ ]]; then pin=(taskset -c "${BASH_REMATCH[1]}"); fi

# The guest's memory is a file in /dev/shm that it executes. A container's is small, and mostly forbids that.
own=()
if [[ $EUID -eq 0 && $(findmnt --noheadings --output OPTIONS --target /dev/shm) == *noexec* ]]; then
  # shellcheck disable=SC2016
  own=(unshare --mount --propagation private sh -ec 'mount -t tmpfs -o mode=1777 guest /dev/shm; exec "$@"' sh)
fi

# A session of its own, so that the kernel and the processes of the guest are one group to kill.
LD_PRELOAD=$box/uml-xstate.so "${own[@]}" setsid timeout --foreground -k 5 "$limit" "${pin[@]}" "$linux" "mem=$memory" \
  root=/dev/root rootfstype=hostfs "rootflags=$root" rw "uml_dir=$box" "init=$inside/init" "${parameters[@]}" con=null con0=null,fd:1 quiet panic=1 </dev/null >"$box/console" 2>&1 &
kernel=$!
tail -q -n +1 -f -s 0.1 "--pid=$kernel" "$box/out" &
readers+=($!)
tail -q -n +1 -f -s 0.1 "--pid=$kernel" "$box/err" >&2 &
readers+=($!)
{ wait "$kernel" || true; } 2>/dev/null
kill -KILL -- "-$kernel" 2>/dev/null || true
kernel=''
wait "${readers[@]}" || true
readers=()
if [[ ! -s $box/status ]]; then
  echo "uml-run: the guest ended without a status (limit ${limit} s), its console:" >&2
  tail -n 20 "$box/console" >&2
  exit 124
fi
exit "$(<"$box/status")"
