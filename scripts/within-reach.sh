#!/bin/bash
# Runs a command with the project at a path that every user can reach, in a mount namespace of its own: a clone in /root
# is closed to the ordinary users that the demo and the tests run things as, and one below /tmp is covered by the containers
# that are started from here. Where it is open already, or there is no right to mount, the command just runs.
#
#   scripts/within-reach.sh SCRIPT [ARGUMENT...]        SCRIPT relative to the project
#
# What it runs has no descriptors but the first three: what else whoever calls it has left open would be seen in what is tested.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SIFCRYPT_WITHIN_REACH=1
for descriptor in "/proc/$$/fd/"*; do
  number=${descriptor##*/}
  # 255 is this script, which a command does not get.
  [[ $number -le 2 || $number -eq 255 ]] || exec {number}>&-
done
nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)
covered='^/(mnt|srv|run|tmp)/'
if [[ $EUID -ne 0 ]] || ! unshare --mount true 2>/dev/null ||
  { [[ ! $(pwd -P) =~ $covered ]] && "${nobody[@]}" test -r "$PWD/package.json"; }; then
  exec "$@"
fi
place=$(mktemp -d /var/lib/sifcrypt-XXXXXX)
chmod 755 "$place"
status=0
unshare --mount --propagation private bash -c '
  mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"' within-reach "$PWD" "$place" "$@" || status=$?
rmdir "$place"
exit "$status"
