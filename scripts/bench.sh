#!/bin/bash
# Measures this package beside its peers on this machine, in one run, and prints ratios (`npm run bench`; of images at registries
# and encrypted layers alone: `npm run bench registry`; of builds from a registry and of a definition file: `npm run bench layers`;
# of plain images, in the place of squashfuse_ll: `npm run bench reads`; of jobs on a cluster: `npm run bench batch`; of compose
# files: `npm run bench compose`; of many commands of one image: `npm run bench sharens`). Needs root: the peer runs in a root
# directory of its own, slurmd starts jobs as others, and a cold cache takes dropping it. Exit status 1 when a goal was missed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $EUID -eq 0 ]] || { echo "bench: needs root, for the peer's root directory and for dropping caches" >&2; exit 2; }
scripts/setup.sh
[[ -e /dev/fuse ]] || mknod /dev/fuse c 10 229
chmod 666 /dev/fuse
exec node --import tsx bench/main.ts "$@"
