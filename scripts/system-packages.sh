#!/bin/bash
# The one list of system packages, with what each is for. As root, installs what is missing; as anybody else, prints
# the one command that does and ends with status 1. Costs nothing when nothing is missing.
#
#   scripts/system-packages.sh [run|build|demo|test|prebuilds]...        no argument: all of them
set -euo pipefail

# Groups, Debian or Ubuntu name, Fedora name, why. A dash: that distribution has no such package. A name that ends in
# @amd64 is a package of that architecture only. Fedora has no static libdeflate, fuse3 and OpenSSL
# libraries: there it can run and test a prebuilt package but not build one (docs/building.md).
packages() {
  sed -e '/^ *#/d' -e '/^ *$/d' <<'TABLE'
  run              crun                    crun                     runs the container (exec, run, shell)
  run              fuse3                   fuse3                    fusermount3, for mounts made outside a namespace
  run              libcryptsetup12         cryptsetup-libs          LUKS2 headers, keyslots and the kernel engine
  run              libdevmapper1.02.1      device-mapper-libs       mappings of the kernel engine
  build            g++                     gcc-c++                  compiles the addon and the starter
  build            make                    make                     node-gyp's generator
  build            python3                 python3                  node-gyp itself
  build            libcryptsetup-dev       cryptsetup-devel         declarations only, the library is opened when used
  build            libdevmapper-dev        device-mapper-devel      declarations only, as above
  build            libfuse3-dev            fuse3-devel              the starter's FUSE server
  build            libdeflate-dev          libdeflate-devel         gzip blocks
  build            libzstd-dev             libzstd-static           zstd blocks
  build            liblz4-dev              lz4-static               lz4 blocks
  build            liblzma-dev             xz-static                xz blocks
  build            zlib1g-dev              zlib-static              declarations only: the addon has Node's; tests of the core are linked with it
  build            libssl-dev              openssl-devel            AES-XTS in the starter
  build            golang-go               golang                   compiles sifcrypt-shell
  build            golang-mvdan-sh-dev     -                        its interpreter, as source; the next three are what that needs
  build            golang-golang-x-sync-dev -                       goroutines that fail
  build            golang-golang-x-sys-dev  -                       system calls
  build            golang-golang-x-term-dev -                       whether there is a terminal
  prebuilds        curl                    curl                     fetches compilers and sources
  prebuilds,test   xz-utils                xz                       unpacks them, and packs an archive
  prebuilds,test   qemu-user-static        qemu-user-static         runs what is for arm64
  prebuilds        musl                    musl-libc                runs what is for musl
  demo,test        busybox-static          busybox                  a root file system of one file
  build,test       cmake                   cmake                    builds in an installed package; the core with sanitizers
  test             clang                   clang                    the driver that clang-tidy takes its headers from
  test             libclang-rt-14-dev      compiler-rt              libFuzzer, which scripts/fuzz.sh takes
  test             libc++-14-dev           libcxx-devel             a C++ library that MemorySanitizer sees into
  test             libc++abi-14-dev        libcxxabi-devel          what it needs
  test             musl-dev                musl-devel               headers that the sources are compiled with by lint
  test             clang-format            clang-tools-extra        format check
  test             clang-tidy              clang-tools-extra        C++ lint
  test             cryptsetup-bin          cryptsetup               makes and reads LUKS2 beside us
  test             squashfs-tools          squashfs-tools           makes and reads squashfs beside us
  test             gocryptfs               gocryptfs                makes and reads gocryptfs beside us
  test             user-mode-linux@amd64   -                        a kernel with dm-crypt for the privileged tests
  test             kmod                    kmod                     modprobe in that kernel
  test             apparmor                apparmor-parser          profiles for it
  test             checkpolicy             checkpolicy              an SELinux policy for it
  test             debootstrap             debootstrap              makes the live peer
  test             attr                    attr                     getfattr, setfattr
  test             strace                  strace                   a system call that takes long
  test             libcap2-bin             libcap                   getcap, setcap, capsh
  test             fuse2fs                 -                        ext overlays of ordinary users
  test             fuse-overlayfs          fuse-overlayfs           the same, written
  test             uidmap                  shadow-utils             newuidmap
  test             passt                   passt                    connects networks of containers
  test             netavark                 netavark                 makes networks that containers are in together
  test             aardvark-dns             aardvark-dns             answers for names in them
  test             iptables                 iptables                 what netavark calls
  test             nftables                nftables                 keeps them from the machine's loopback
  test             iproute2                iproute                  a machine's network for them
  test             e2fsprogs               e2fsprogs                small file systems to fill up
  test             util-linux              util-linux               setpriv, losetup, unshare
  prebuilds,test   binutils                binutils                 readelf, strings
  test             procps                  procps-ng                ps, pgrep
  test             openssl                 openssl                  a second opinion on keys
  test             openssh-client          openssh                  ssh-keygen, for its forms of keys
  test             openssh-server          openssh-server           sshd, by which a builder on another machine is reached
  test             gnupg                   gnupg2                   signs with its agent, verifies what we sign
  test             softhsm2                softhsm                  a PKCS#11 token in files
  test             opensc                  opensc                   pkcs11-tool, which makes a key in it
  test             libengine-pkcs11-openssl openssl-pkcs11          openssl's way to tokens
  test             onak                    -                        a key server
  test             skopeo                  skopeo                   pushes images to a registry, and makes archives
  test             buildah                 buildah                  builds Dockerfile.test
  test             podman                  podman                   starts containers with our OCI runtime
  test             podman-compose          podman-compose           beside which services are measured
  test             wrk                     -                        asks services, for the same
  test             docker-registry         docker-distribution      the registry that images are fetched from
  test             zstd                    zstd                     layers of the other kind
  test             snakemake               -                        workflow programs that call the peers
  test             cwltool                 -                        the same
  test             toil                    -                        the same
  test             datalad-container       -                        the same
  test             groff                   groff                    reads the manual pages
  test             zsh                     zsh                      completes lines, as bash does
  test             fish                    fish                     the same
  test             openmpi-bin             openmpi                  starts processes that find each other in containers
  test             mpich                   mpich                    the same
  test             slurmctld               slurm-slurmctld          a cluster that jobs are submitted to
  test             slurmd                  slurm-slurmd             its nodes
  test             slurm-client            slurm                    its commands
  test             munge                   munge                    says which user asks on it
  test             openssh-server          openssh-server           the same where there is no munge
TABLE
}

wanted_group() {
  local group
  for group in ${1//,/ }; do
    [[ " $groups " == *" $group "* ]] && return 0
  done
  return 1
}

groups="${*:-run build demo test}"
for group in $groups; do
  case $group in
    run | build | demo | test | prebuilds) ;;
    *) echo "usage: $0 [run|build|demo|test|prebuilds]..." >&2; exit 2 ;;
  esac
done

if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
  family=debian machine=$(dpkg --print-architecture)
elif command -v dnf >/dev/null; then
  family=fedora machine=$(uname -m)
else
  echo "system-packages: neither apt-get nor dnf here; these are needed, by their Debian names:" >&2
  packages | while read -r group debian _; do if wanted_group "$group"; then echo "  ${debian%@*}"; fi; done | sort -u >&2
  exit 1
fi

names=()
while read -r group debian fedora _; do
  wanted_group "$group" || continue
  name=$debian
  [[ $family == fedora ]] && name=$fedora
  [[ $name == *@* && ${name#*@} != "$machine" ]] && continue
  name=${name%@*}
  [[ $name == - || " ${names[*]-} " == *" $name "* ]] || names+=("$name")
done < <(packages)

installed() {
  # Both tools fail for each name that is not installed, which is what is asked.
  if [[ $family == debian ]]; then
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${names[@]}" 2>/dev/null | sed -n 's/^installed //p'
  else
    rpm -q --whatprovides --qf '%{NAME}\n' "${names[@]}" 2>/dev/null | grep -v ' '
  fi || true
}

here=$(installed)
missing=()
for name in "${names[@]}"; do
  grep -qxF -- "$name" <<<"$here" || missing+=("$name")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $family == debian ]]; then
  command=(apt-get install -y --no-install-recommends "${missing[@]}")
else
  command=(dnf install -y --setopt=install_weak_deps=False "${missing[@]}")
fi
if [[ $EUID -ne 0 ]]; then
  echo "system-packages: missing: ${missing[*]}" >&2
  echo "system-packages: as root: ${command[*]}" >&2
  exit 1
fi

echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install_missing() {
  if [[ $family == debian ]]; then
    export DEBIAN_FRONTEND=noninteractive
    # An index that cannot be refreshed may still name everything that is needed: only the installation decides.
    apt-get -qq -o DPkg::Lock::Timeout=300 update || true
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "${missing[@]}"
  else
    "${command[@]}"
  fi
}
if ! install_missing >"$log" 2>&1 </dev/null; then
  cat "$log" >&2
  echo "system-packages: failed: ${command[*]}" >&2
  exit 1
fi
