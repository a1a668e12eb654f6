#!/bin/bash
# Builds what prebuilds/ ships for this machine (`npm run prebuild`): the same sources and flags as a local build, with the
# C++ runtime linked in and symbols stripped. Works in a copy, so that a local build stays as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh build
copy=$PWD/build/prebuild
rm -rf "$copy"
mkdir -p "$copy"
cp -r native scripts binding.gyp package.json "$copy/"
ln -s "$PWD/node_modules" "$copy/node_modules"
prefix=$(node -p 'require("node:path").resolve(process.execPath, "..", "..")')
gyp=(node_modules/.bin/node-gyp rebuild --loglevel=warn --jobs "$(nproc)")
[[ -e $prefix/include/node/node_api.h ]] && gyp+=("--nodedir=$prefix")
(cd "$copy" && SIFCRYPT_STATIC_RUNTIME=1 "${gyp[@]}")
read -r platform libc < <(node -p 'const glibc = process.report.getReport().header.glibcVersionRuntime;
  `${process.platform}-${process.arch} ${glibc === undefined ? "musl" : "glibc"}`')
mkdir -p "prebuilds/$platform"
strip --strip-unneeded -o "prebuilds/$platform/sifcrypt.$libc.node" "$copy/build/Release/sifcrypt.node"
for program in sifcrypt-starter sifcrypt-init sifcrypt-shell; do
  strip -o "prebuilds/$platform/$program.$libc" "$copy/build/Release/$program"
done
rm -rf "$copy"
ls -l "prebuilds/$platform"
