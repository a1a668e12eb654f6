#!/bin/bash
# The main job in a minute (`npm run demo`): an RSA pair, a root file system of one static program, an encrypted image
# of it, a command run in that image, a wrong key refused; as the caller and, for root, as an ordinary user too. Each
# step with its time. Everything lies in a fresh private folder that is removed at the end.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -z ${SIFCRYPT_WITHIN_REACH:-} ]]; then
  "$project/scripts/setup.sh" run build demo
  SIFCRYPT_PROJECT=$project exec "$project/scripts/within-reach.sh" scripts/demo.sh
fi

cli=$project/dist/cli/main.js
unset "${!APPTAINER_@}" "${!SINGULARITY_@}"
umask 077

say() {
  printf '%s\n' "$@"
}

# As one would type it.
typed() {
  local argument
  for argument in "$@"; do
    if [[ $argument =~ ^[A-Za-z0-9_./:=-]+$ ]]; then printf ' %s' "$argument"; else printf " '%s'" "$argument"; fi
  done
}

milliseconds() {
  echo $((($(date +%s%N) - $1) / 1000000))
}

# step EXPECTED_STATUS WHAT COMMAND...: what is done, what a user would type for it, what comes out, how long it took.
step() {
  local expected=$1 what=$2 status=0 start
  shift 2
  say "" "# $what"
  [[ $1 != sifcrypt ]] || say "\$$(typed "$@")"
  start=$(date +%s%N)
  "$@" || status=$?
  say "  ($(milliseconds "$start") ms, exit status $status)"
  if [[ $status -ne $expected ]]; then
    say "demo: expected exit status $expected" >&2
    exit 1
  fi
}

sifcrypt() {
  node "$cli" "$@"
}

make_keys() {
  node -e '
    const { generateKeyPairSync } = require("node:crypto"), { writeFileSync } = require("node:fs")
    const [name] = process.argv.slice(1)
    const pair = generateKeyPairSync("rsa", { modulusLength: 2048 })
    writeFileSync(`${name}.pem`, pair.privateKey.export({ type: "pkcs1", format: "pem" }), { mode: 0o600 })
    writeFileSync(`${name}-public.pem`, pair.publicKey.export({ type: "pkcs1", format: "pem" }))' "$1"
}

make_root_file_system() {
  local name busybox=/bin/busybox
  [[ -x $busybox ]] || busybox=$(command -v busybox)
  mkdir -p rootfs/{bin,etc,dev,proc,sys,tmp,root,home}
  cp "$busybox" rootfs/bin/busybox
  for name in sh cat echo id ls uname; do ln -s busybox "rootfs/bin/$name"; done
  echo 'the plaintext of this file is on no disk' >rootfs/etc/secret
  chmod -R go+rX rootfs
}

# One whole round, in the current folder, as the current user.
demonstrate() {
  step 0 "an RSA pair: the public key encrypts, the private key opens" make_keys key
  step 0 "a tiny root file system" make_root_file_system
  step 0 "an encrypted image of it" sifcrypt build -e --pem-path key-public.pem demo.sif rootfs
  step 0 "what is in it, without a key" sifcrypt sif list demo.sif
  step 0 "a command in it" sifcrypt exec --pem-path key.pem demo.sif \
    /bin/sh -c 'echo "inside as $(id -u):$(id -g)"; cat /etc/secret'
  make_keys other
  step 22 "another key is refused, with status 22" sifcrypt exec --pem-path other.pem demo.sif /bin/cat /etc/secret
}

if [[ ${1:-} == --round ]]; then
  demonstrate
  exit 0
fi

folder=$(mktemp -d "${TMPDIR:-/tmp}/sifcrypt-demo.XXXXXX")
trap 'rm -rf --one-file-system "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

engine="userspace"
if [[ $EUID -eq 0 ]]; then
  if grep -qw device-mapper /proc/misc 2>/dev/null; then engine="kernel"; else engine="userspace, this kernel has no device-mapper"; fi
fi
say "" "== as $(id -un), engine: $engine"
mkdir "$folder/own"
(cd "$folder/own" && "$project/scripts/demo.sh" --round)

if [[ $EUID -eq 0 ]]; then
  # Without it the round below fails, and says so.
  [[ -e /dev/fuse ]] || mknod /dev/fuse c 10 229 || true
  if ! setpriv --reuid 65534 --regid 65534 --clear-groups test -w /dev/fuse; then
    say "" "# /dev/fuse is closed to ordinary users here: chmod 666 /dev/fuse"
    chmod 666 /dev/fuse
  fi
  say "" "" "== as an ordinary user (uid 65534), engine: userspace"
  chmod 711 "$folder"
  mkdir "$folder/user"
  chown 65534:65534 "$folder/user"
  (cd "$folder/user" && HOME=$folder/user setpriv --reuid 65534 --regid 65534 --clear-groups "$project/scripts/demo.sh" --round)
fi

cat <<END

Done, and removed again. With your own files:

  alias sifcrypt='${SIFCRYPT_PROJECT:-$project}/dist/cli/main.js'
  openssl genrsa -traditional -out key.pem 3072 && openssl rsa -in key.pem -RSAPublicKey_out -out key-public.pem
  sifcrypt build -e --pem-path key-public.pem image.sif DIRECTORY
  sifcrypt ls --pem-path key.pem image.sif /
  sifcrypt shell --pem-path key.pem image.sif
  sifcrypt --help
END
