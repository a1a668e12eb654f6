#!/bin/bash
# Writes one of each thing that this version makes into test/vectors/releases/VERSION: what every later version has to open. A release does it
# (release.sh); a folder that is there stays as it is. Needs the built command.
#
#   release-vectors.sh VERSION
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${1:-}
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || { echo "usage: $0 X.Y.Z" >&2; exit 2; }
command=$PWD/dist/cli/main.js vectors=$PWD/test/vectors
[[ ! -e $vectors/releases/$version ]] || { echo "release-vectors: $vectors/releases/$version is there" >&2; exit 1; }
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
# Neither keys nor configuration of whoever releases.
export HOME=$place/home XDG_CACHE_HOME=$place/home/cache XDG_CONFIG_HOME=$place/home/config
mkdir -p "$HOME" "$place/tree/data" "$place/$version"
chmod 755 "$place" "$place/tree" "$place/tree/data"
cd "$place/$version"
sifcrypt() { "$command" --quiet "$@"; }

# Keys, all of them public.
printf 'correct horse battery staple' >passphrase
sifcrypt cert create --file-prefix key --bits 2048 --days 36500 --password-file passphrase >/dev/null
sifcrypt cert convert --to pkcs1 --plain --password-file passphrase key.pfx key.pem >/dev/null
sifcrypt cert convert --to pem --plain --password-file passphrase key.pfx key-certificate.pem >/dev/null 2>&1
openssl x509 -in key-certificate.pem -out certificate.pem
sifcrypt cert convert --to pkcs8 --password-file passphrase --new-password-file passphrase key.pfx key-pkcs8.pem >/dev/null
sifcrypt cert convert --to pfx --legacy --password-file passphrase --new-password-file passphrase key.pfx key-legacy.pfx >/dev/null
openssl genpkey -algorithm ed25519 -out signer.pem
openssl pkey -in signer.pem -pubout -out signer.pub.pem
mkdir -m 700 keys
SIFCRYPT_KEYSDIR=$PWD/keys sifcrypt key newpair -N Frozen -E frozen@example.org --type ed25519 -P '' >/dev/null

printf 'hello\n' >"$place/tree/data/hello"
ln -s hello "$place/tree/data/link"
printf 'more than one block of a file system, %s times\n' {1..8000} >"$place/tree/data/blocks"
printf 'Bootstrap: localimage\nFrom: plain.sif\n%%labels\n    frozen yes\n' >"$place/image.def"

# Images: plain and signed with a hash tree; made of it, and all that describes it sealed; of the other format; an overlay.
sifcrypt build plain.sif "$place/tree"
(cp plain.sif "$place" && cd "$place" && sifcrypt build described.sif image.def)
sifcrypt encrypt --pbkdf pbkdf2:1000 --pem-path key-public.pem --passphrase-file passphrase "$place/described.sif" luks.sif
sifcrypt build --format gocryptfs --pem-path key-public.pem gocryptfs.sif "$place/tree"
for image in plain luks gocryptfs; do
  sifcrypt sign --tree --key signer.pem $image.sif >/dev/null
  sifcrypt sign --secret-keyring keys/pgp-secret $image.sif >/dev/null
done
sifcrypt overlay create --sparse overlay.img

# Overlays of the other kinds: in a plain image, and encrypted. Of the latter is kept what a file system has something in: of what is written
# over zeros there would be 64 MiB.
sifcrypt build overlay-inside.sif "$place/tree"
sifcrypt overlay create --create-dir /frozen overlay-inside.sif
sifcrypt overlay create --sparse --create-dir /frozen "$place/plain-overlay.img"
sifcrypt overlay create --encrypt --create-dir /frozen --pem-path key-public.pem overlay-encrypted.sif
node - "$place/plain-overlay.img" overlay-encrypted.sif "$(sifcrypt sif info --json 1 overlay-encrypted.sif)" <<'END'
const { readFileSync, writeFileSync } = require("node:fs")
const [, , plainFile, file, info] = process.argv
const plain = readFileSync(plainFile)
const sealed = readFileSync(file)
const { offset, size } = JSON.parse(info)
const start = offset + size - plain.length
for (let at = 0; at < plain.length; at += 4096)
  if (plain.subarray(at, at + 4096).every((byte) => byte === 0)) sealed.fill(0, start + at, start + at + 4096)
writeFileSync(file, sealed)
END

# Layers, encrypted, and what is kept of an image that is opened by its name.
sifcrypt image encrypt --recipient jwe:key-public.pem "oci:$vectors/oci/layout" oci:layers >/dev/null
sifcrypt image encrypt --recipient pkcs7:certificate.pem --recipient pgp:keys/pgp-public "oci:$vectors/oci/layout" oci:layers-others >/dev/null
SIFCRYPT_CACHEDIR=$PWD/cache sifcrypt ls --key key.pem oci:layers >/dev/null

# Holes and zeros are most of some of them.
gzip -9n ./*.sif overlay.img
for name in layers layers-others; do
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cz -f $name.tar.gz $name
done
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -Scz -f cache.tar.gz cache
rm -rf layers layers-others cache
# As they come out of a repository.
chmod -R a-x+X,u+rw,go=rX .
mkdir -p "$vectors/releases"
cp -r "$place/$version" "$vectors/releases/"
