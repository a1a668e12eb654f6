#!/bin/bash
# Every test in a container, as Dockerfile.test has it, without Docker: Debian's buildah builds the image, on a base that debootstrap
# makes, and podman runs it, out of the same store, in namespaces and by crun. As root.
#
#   container-test.sh [SUITE...]            builds what is missing, and runs the tests (arguments of scripts/test.sh)
#   container-test.sh --build               builds only
#   container-test.sh --run [SUITE...]      runs only, what was built before
#
# On a machine that has cgroups of version 1 as well, which crun refuses, podman sees version 2 alone and makes none.
# SIFCRYPT_CONTAINER_RUN=buildah has buildah run it, in a chroot, which nearly every container allows: there the kernel makes no user
# namespace, so what ordinary users run (much of e2e, slurm, clients) fails.
# SIFCRYPT_CONTAINER_SUITE names another distribution's release than bookworm. What is built lies in SIFCRYPT_CONTAINER_ROOT,
# by default sifcrypt/container below XDG_CACHE_HOME (~/.cache), and needs 25 GB there while it is built; the base is kept. STORAGE_DRIVER=vfs does
# without overlays, and needs more. NODE_EXTRA_CA_CERTS names certificates that npm trusts as well, inside too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ $EUID -eq 0 ]] || { echo "container-test: a privileged container needs root" >&2; exit 1; }
run=${SIFCRYPT_CONTAINER_RUN:-podman}
case $run in buildah | podman) ;; *) echo "container-test: SIFCRYPT_CONTAINER_RUN is buildah or podman, not $run" >&2; exit 2 ;; esac
for program in "$run" buildah debootstrap capsh; do
  command -v "$program" >/dev/null || { echo "container-test: $program is missing: apt-get install $run buildah debootstrap libcap2-bin" >&2; exit 1; }
done

release=${SIFCRYPT_CONTAINER_SUITE:-bookworm}
place=${SIFCRYPT_CONTAINER_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/sifcrypt/container}
mkdir -p "$place"
# It asks for nothing that a container of its own would not give.
export BUILDAH_ISOLATION=chroot
stores=(--root "$place/store" --runroot "$place/run" --storage-driver "${STORAGE_DRIVER:-overlay}")

build_image() {
  base=localhost/sifcrypt-base:$release
  if ! buildah "${stores[@]}" inspect --type image "$base" >/dev/null 2>&1; then
    echo "making the base: $release"
    work=$(mktemp -d "$place/base.XXXXXX")
    trap 'rm -rf --one-file-system "$work"' EXIT
    unshare --mount --propagation private debootstrap --variant=minbase "$release" "$work/root" >"$work/log" 2>&1 ||
      { tail -n 20 "$work/log" >&2; exit 1; }
    tar -C "$work/root" --one-file-system --exclude='./var/cache/apt/archives/*.deb' -cf "$work/base.tar" .
    container=$(buildah "${stores[@]}" from scratch)
    buildah "${stores[@]}" add --quiet "$container" "$work/base.tar" / >/dev/null
    buildah "${stores[@]}" commit --quiet --rm "$container" "$base" >/dev/null
    rm -rf --one-file-system "$work"
    trap - EXIT
  fi

  build=(--quiet --layers=false --build-arg "BASE=$base")
  if [[ -n ${NODE_EXTRA_CA_CERTS:-} ]]; then
    inside=/run/certificates.pem
    build+=(--volume "$(realpath -- "$NODE_EXTRA_CA_CERTS"):$inside:ro" --build-arg "NODE_EXTRA_CA_CERTS=$inside")
  fi
  echo "building the image"
  buildah "${stores[@]}" bud "${build[@]}" -f Dockerfile.test -t sifcrypt-test .
}

if [[ ${1:-} == --run ]]; then
  shift
else
  build_image
  [[ ${1:-} != --build ]] || exit 0
fi

echo "running the tests"
# Of its own accord podman asks for more than root may have without CAP_SYS_RESOURCE, and of processes for more than it has left itself;
# buildah for 1024 files, which is too few.
files=$(ulimit -Hn) processes=$(ulimit -Hu)
[[ $processes != unlimited && $processes -lt 32768 ]] || processes=32768
limits=(--ulimit "nofile=$files:$files" --ulimit "nproc=$processes:$processes")
if [[ $run == podman ]]; then
  options=(run --rm --privileged --network host "${limits[@]}")
  [[ "$(stat --file-system --format %T /sys/fs/cgroup)" == cgroup2fs ]] || options+=(--cgroups disabled)
  # shellcheck disable=SC2016
  exec unshare --mount --propagation private bash -c '
    if [[ "$(stat --file-system --format %T /sys/fs/cgroup)" != cgroup2fs ]]; then
      umount --lazy /sys/fs/cgroup
      mount -t cgroup2 cgroup2 /sys/fs/cgroup
    fi
    exec podman "$@"' podman "${stores[@]}" --cgroup-manager cgroupfs "${options[@]}" localhost/sifcrypt-test scripts/test.sh "$@"
fi
# What --privileged is to Docker: every capability that this process may have. /dev is the machine's.
capabilities=$(capsh --decode="$(awk '/^CapBnd/ { print $2 }' /proc/self/status)")
capabilities=${capabilities#*=}
container=$(buildah "${stores[@]}" from "${limits[@]}" localhost/sifcrypt-test)
trap 'buildah "${stores[@]}" rm "$container" >/dev/null' EXIT
buildah "${stores[@]}" run --cap-add "${capabilities^^}" "$container" -- scripts/test.sh "$@"
