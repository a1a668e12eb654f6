#!/bin/bash
# Builds what is native into build/Release (`npm run build:native`). In a clone with node-gyp; where the package is installed, and npm
# has not brought what only its developers need, with cmake and the two packages of headers, of the versions that a clone has. What is
# missing on the machine is installed as root, or named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -e node_modules/.bin/node-gyp ]]; then
  exec node_modules/.bin/node-gyp rebuild
fi
[[ -w . ]] || { echo "build-native: $PWD is not this user's to write to: as its owner it is built" >&2; exit 1; }
scripts/system-packages.sh build
headers=$PWD/build/headers
rm -rf build
mkdir -p "$headers"
version() { node -p "require('./package.json').devDependencies['$1']"; }
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$headers" \
  "node-addon-api@$(version node-addon-api)" "node-api-headers@$(version node-api-headers)"
cmake -S . -B build/made -DCMAKE_JS_INC="$headers/node_modules/node-addon-api;$headers/node_modules/node-api-headers/include" \
  -DCMAKE_RUNTIME_OUTPUT_DIRECTORY="$PWD/build/Release" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/build/Release"
cmake --build build/made -j "$(nproc)"
rm -rf build/made "$headers"
