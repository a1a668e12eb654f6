#!/bin/bash
# Runs a command with the project at a path that every user can reach, in a mount namespace of its own: a clone in /root
# is closed to the ordinary users that the demo and the tests run things as. Where it is open already, or there is no
# right to mount, the command just runs.
#
#   scripts/within-reach.sh SCRIPT [ARGUMENT...]        SCRIPT relative to the project
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SIFCRYPT_WITHIN_REACH=1
nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)
if [[ $EUID -ne 0 ]] || "${nobody[@]}" test -r "$PWD/package.json" || ! unshare --mount true 2>/dev/null; then
  exec "$@"
fi
exec unshare --mount --propagation private bash -c '
  mount -t tmpfs -o mode=755,size=1m reach /mnt && mkdir /mnt/sifcrypt && mount --bind "$1" /mnt/sifcrypt &&
    cd /mnt/sifcrypt && shift && exec "$@"' within-reach "$PWD" "$@"
