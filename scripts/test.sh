#!/bin/bash
# Every test (`npm test`): sets the machine up, then runs
#   core      the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer, one program for each *_test.cc; the one
#             of threads under ThreadSanitizer as well
#   unit, vectors, native, e2e        mocha, here
#   uml       mocha as root in a User-Mode Linux guest: device-mapper, loop devices, the kernel engine
#   interop   mocha beside a live Apptainer (test/support/peer.sh), left out if the package mirror cannot give one
#   peer      the same command lines under that Apptainer and here, compared
# The last line is the sum, `N passed, N failed`; a skipped test is printed with its reason, and is a failure if CI is
# set. Arguments: names of suites, to run only those.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
project=$PWD

# node_modules/.bin first: nothing below is fetched by npx.
export PATH="$project/node_modules/.bin:$PATH"
suites=" ${*:-core unit vectors native e2e uml interop peer} "
passed=0 failed=0
skipped=() left_out=()

if [[ -z ${SIFCRYPT_WITHIN_REACH:-} ]]; then
  scripts/setup.sh
  exec scripts/within-reach.sh scripts/test.sh "$@"
fi

mkdir -p build
export SIFCRYPT_COUNTS=$project/build/test-counts
trap 'rm -f "$SIFCRYPT_COUNTS"' EXIT

# What the machine has to offer to an ordinary user is the test set-up's business, not the product's. Where it cannot be had
# (a container without the right to it), the tests that need it fail and say so.
if [[ $EUID -eq 0 ]]; then
  [[ -e /dev/fuse ]] || mknod /dev/fuse c 10 229 || true
  chmod 666 /dev/fuse || true
  # A bare debootstrap has none, and fusermount3 unmounts nothing without it.
  [[ -e /etc/mtab ]] || ln -s ../proc/self/mounts /etc/mtab
fi

title() {
  printf '\n== %s\n' "$1"
}

# Runs a mocha command and adds up what its reporter counted; one that ends without a count has failed.
mocha_suite() {
  local name=$1 status=0 kind rest counted_failures=0 counts=0
  shift
  title "$name"
  : >"$SIFCRYPT_COUNTS"
  "$@" </dev/null || status=$?
  while read -r kind rest; do
    case $kind in
      count)
        read -r p f _ <<<"$rest"
        passed=$((passed + p)) failed=$((failed + f))
        counted_failures=$((counted_failures + f)) counts=$((counts + 1))
        ;;
      skip) skipped+=("$name: $rest") ;;
    esac
  done <"$SIFCRYPT_COUNTS"
  if [[ $counts -eq 0 || ($status -ne 0 && $counted_failures -eq 0) ]]; then
    echo "$name: ended with status $status and ${counts} reports" >&2
    failed=$((failed + 1))
  fi
}

# The test files of a suite: test/NAME/**/*.test.ts.
has_tests() {
  [[ -d test/$1 && -n $(find "test/$1" -name '*.test.ts' -print -quit) ]]
}

wanted() {
  [[ $suites == *" $1 "* ]]
}

mocha_here=(mocha --forbid-only --reporter "$project/test/support/reporter.cjs")

if wanted core; then
  title "core (C++, sanitizers)"
  if cmake -S . -B build-sanitize -DSIFCRYPT_SANITIZE=ON >build/cmake.log 2>&1 &&
    cmake --build build-sanitize -j "$(nproc)" >>build/cmake.log 2>&1; then
    for source in test/native/core/*_test.cc; do
      [[ -e $source ]] || continue
      name=$(basename "$source" .cc)
      status=0
      timeout 600 "build-sanitize/$name" </dev/null 2>&1 | tee build/core-test.log || status=$?
      checks=$(sed -nE 's/^(.*[^0-9])?([0-9]+) checks.*$/\2/p' build/core-test.log | tail -n 1)
      if [[ $status -eq 0 ]]; then
        passed=$((passed + ${checks:-1}))
        echo "  ok $name"
      else
        failed=$((failed + 1))
        echo "  FAILED $name, status $status"
      fi
    done
  else
    tail -n 40 build/cmake.log >&2
    echo "  FAILED: the build with sanitizers"
    failed=$((failed + 1))
  fi
  # What is shared between threads, a second time, under ThreadSanitizer.
  if cmake -S . -B build-thread -DSIFCRYPT_SANITIZE=thread >build/cmake.log 2>&1 &&
    cmake --build build-thread -j "$(nproc)" --target concurrency_test >>build/cmake.log 2>&1 &&
    timeout 300 build-thread/concurrency_test </dev/null; then
    passed=$((passed + 1))
    echo "  ok concurrency_test, ThreadSanitizer"
  else
    tail -n 40 build/cmake.log >&2
    echo "  FAILED: concurrency_test under ThreadSanitizer"
    failed=$((failed + 1))
  fi
fi

for suite in unit vectors native e2e; do
  if wanted "$suite" && has_tests "$suite"; then
    mocha_suite "$suite" "${mocha_here[@]}" "test/$suite/**/*.test.ts"
  fi
done

if wanted uml && has_tests uml; then
  if command -v linux.uml >/dev/null; then
    mocha_suite "uml (root, in User-Mode Linux)" test/support/uml-run.sh --mem 3G --timeout 900 -- \
      "${mocha_here[@]}" --timeout 300000 "test/uml/**/*.test.ts"
  else
    skipped+=("uml: the whole suite: this machine has no linux.uml (Debian's user-mode-linux, amd64 only)")
  fi
fi

for suite in interop peer; do
  if wanted "$suite" && has_tests "$suite"; then
    status=0
    peer=$(test/support/peer.sh) || status=$?
    if [[ $status -eq 0 ]]; then
      SIFCRYPT_PEER_ROOT=$peer mocha_suite "$suite (live Apptainer)" "${mocha_here[@]}" --timeout 300000 \
        "test/$suite/**/*.test.ts"
    elif [[ $status -eq 4 ]]; then
      skipped+=("$suite: the whole suite: the live peer cannot be made here, the reason is above")
    elif [[ $status -eq 3 ]]; then
      left_out+=("$suite: the package mirror cannot give the live peer; the images it made earlier were tested")
    else
      echo "$suite: test/support/peer.sh ended with status $status" >&2
      failed=$((failed + 1))
    fi
  fi
done

echo
if [[ ${#skipped[@]} -gt 0 ]]; then
  echo "${#skipped[@]} skipped:"
  printf '  %s\n' "${skipped[@]}"
  if [[ -n ${CI:-} ]]; then
    echo "nothing may be skipped in CI: counted as failed"
    failed=$((failed + ${#skipped[@]}))
  fi
fi
[[ ${#left_out[@]} -eq 0 ]] || printf 'left out: %s\n' "${left_out[@]}"
echo "$passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]
