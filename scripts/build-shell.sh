#!/bin/bash
# Builds sifcrypt-shell, which interprets environment scripts, from the distribution's sources of what it is made of: no
# module is fetched. Or looks for what is suspicious in its own.
#
#   build-shell.sh OUTPUT
#   build-shell.sh --vet
set -euo pipefail
# Go's own note is what native/sources_note.cc is in the others.
digest=$("$(dirname "${BASH_SOURCE[0]}")/native-digest.sh")
command=(build -trimpath -ldflags "-s -w -buildid=sifcrypt:$digest" -o "$(realpath -m -- "$1")")
[[ $1 == --vet ]] && command=(vet)
cd "$(dirname "${BASH_SOURCE[0]}")/../native/shell"
unset GOFLAGS GOOS
export GOARCH=${SIFCRYPT_GOARCH-}
# Without a home folder there is no place for what the next build could use.
export GOCACHE=${GOCACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/go-build}
export GOPATH=/usr/share/gocode GO111MODULE=off CGO_ENABLED=0
# By the names of files: otherwise the path of this folder would be in the program.
exec go "${command[@]}" ./*.go
