#!/bin/sh
# Prints what native binaries and JavaScript know each other by: the SHA-256 of everything in native/.
#
#   native-digest.sh [--header FILE]         writes it into FILE instead, for native/sources_note.cc
set -eu
cd "$(dirname "$0")/.."
digest=$(find native -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)
case ${1:-} in
  '') echo "$digest" ;;
  --header) echo "#define SIFCRYPT_NATIVE_DIGEST \"$digest\"" >"$2" ;;
  *) echo "usage: $0 [--header FILE]" >&2 && exit 2 ;;
esac
