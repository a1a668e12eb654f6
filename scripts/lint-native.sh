#!/bin/bash
# C++ lint: clang-format over everything in native/, test/native and test/fuzz, clang-tidy (.clang-tidy) over every source file of
# native/; gofmt and go vet over native/shell. (The tests run under sanitizers; a fixed seed and the shell are what they need.)
# What GCC 10, which prebuilds/ is made with, has not of C++20 is looked for by its names; with musl's headers, which it is made with as
# well, all is compiled.
# What clang-tidy found clean is not looked at again until it, a header of its or the rules change. --fix formats in place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mapfile -t files < <(find native test/native test/fuzz -name '*.cc' -o -name '*.h' | sort)
if [[ ${1:-} == --fix ]]; then
  clang-format -i "${files[@]}"
  gofmt -w native/shell
  exit 0
fi
status=0
clang-format --dry-run --Werror "${files[@]}" || status=1
unformatted=$(gofmt -l native/shell)
[[ -z $unformatted ]] || { echo "gofmt: $unformatted" >&2; status=1; }
scripts/build-shell.sh --vet || status=1

later='#include <(format|latch|barrier|semaphore|source_location|syncstream|stacktrace)>|\bstd::(bit_cast|make_unique_for_overwrite)\b'
if grep -rnE "$later|\busing enum\b" native; then
  echo "lint-native: GCC 10 does not have these" >&2
  status=1
fi

mkdir -p build/tidy
scripts/native-digest.sh --header build/tidy/native_digest.h
includes="-Inative -Ibuild/tidy -isystem $(node -p 'require("node-addon-api").include_dir')
  -isystem $(node -p 'require("node-api-headers").include_dir')"
resources=$(clang++ -print-resource-dir)
# Headers of the C library and of C++'s are named one by one; of the machine's, only what neither has (libraries, the kernel's).
musl="-fsyntax-only -std=c++20 -D_FILE_OFFSET_BITS=64 -D_GNU_SOURCE -D_LIBCPP_HAS_MUSL_LIBC --target=$(uname -m)-linux-musl -nostdinc
  -isystem $resources/../../../include/c++/v1 -isystem $resources/include -isystem /usr/include/$(uname -m)-linux-musl $includes
  -idirafter /usr/include/$(uname -m)-linux-gnu -idirafter /usr/include"
# shellcheck disable=SC2086
find native -name '*.cc' -print0 | xargs -0 -n 1 -P "$(nproc)" clang++ $musl || { echo "lint-native: musl does not have that" >&2; status=1; }

flags="-std=c++20 -Wreserved-identifier -Wreserved-macro-identifier -D_FILE_OFFSET_BITS=64 -D_GNU_SOURCE -Itest/native $includes"
export flags

# shellcheck disable=SC2016
printf '%s\0' "${files[@]}" | grep -z '^native/.*\.cc$' | xargs -0 -n 1 -P "$(nproc)" bash -c '
  # A file with all that it includes, comments too: they tell clang-tidy what to let pass.
  stamp=build/tidy/$( (cat .clang-tidy; clang++ -E -C $flags "$1") 2>&1 | sha256sum | cut -c 1-32)
  [[ -e $stamp ]] && exit 0
  if output=$(clang-tidy --quiet "$1" -- $flags 2>&1); then
    touch "$stamp"
  else
    grep -v -E "^[0-9]+ warnings? (generated|treated)|^Suppressed|^Use -header-filter" <<<"$output"
    exit 1
  fi' lint || status=1
exit "$status"
