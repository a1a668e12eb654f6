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
# Not below /mnt, /srv, /run or /tmp: those are covered or shared by the containers that are started from here.
place=$(mktemp -d /var/lib/sifcrypt-XXXXXX)
chmod 755 "$place"
status=0
unshare --mount --propagation private bash -c '
  mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"' within-reach "$PWD" "$place" "$@" || status=$?
rmdir "$place"
exit "$status"
