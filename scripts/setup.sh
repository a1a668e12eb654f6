#!/bin/bash
# Brings a bare clone to where it runs: system packages, npm packages, native build, TypeScript build. Does only what
# is out of date, so a second run takes seconds. Arguments: groups of scripts/system-packages.sh (default: all).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Runs a command quietly: one line when it starts, its output only if it fails. (The shell's errexit is off in there.)
step() {
  local what=$1 log status=0
  shift
  echo "$what"
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null 9<&- || status=$?
  if [[ $status -ne 0 ]]; then
    cat "$log" >&2
    echo "setup: $what: failed with status $status" >&2
  fi
  rm -f "$log"
  return "$status"
}

if ! node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)'; then
  echo "setup: Node.js 20.19 or newer is needed, this is $(node --version)" >&2
  exit 1
fi

# One set-up of a folder at a time.
exec 9<package.json
flock 9

if ! scripts/system-packages.sh "$@"; then
  # What was missing has been said, and root has installed what can be had. Of the rest only what tests need can be done without:
  # they say so themselves.
  if [[ $EUID -eq 0 || $# -gt 0 ]] || ! scripts/system-packages.sh run build demo 2>/dev/null; then exit 1; fi
fi

step "installing npm packages" scripts/npm-packages.sh

# A tsbuildinfo outlives a deleted dist/, and then nothing would be written.
build_typescript() {
  [[ -e dist/index.js ]] || rm -f build/typescript.tsbuildinfo
  node_modules/.bin/tsc -p tsconfig.build.json &&
    node scripts/bundle-command.mjs
}

# Headers that came with this Node are used where they are; otherwise node-gyp fetches those of this version once.
build_native() {
  local gyp=(node_modules/.bin/node-gyp) prefix input
  prefix=$(node -p 'require("node:path").resolve(process.execPath, "..", "..")')
  [[ -e $prefix/include/node/node_api.h ]] && gyp+=("--nodedir=$prefix")
  # make follows the sources and their headers; what decides which sources there are is only read when configuring.
  for input in binding.gyp native/{sources.txt,bindings,core,init,shell,starter,.} scripts/static-libraries.sh package-lock.json; do
    if [[ ! -e build/Makefile || $input -nt build/Makefile ]]; then
      "${gyp[@]}" configure --loglevel=warn && touch build/Makefile || return
      break
    fi
  done
  "${gyp[@]}" build --loglevel=warn --jobs "$(nproc)"
}

step "building what is native" build_native
step "building the TypeScript" build_typescript
