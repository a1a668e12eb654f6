#!/bin/bash
# Every test (`npm test`): sets the machine up, then runs
#   unit, vectors                     mocha, here
#   native, e2e                       the same with processes, mounts and temporary files of their own, as slurm and clients
#   core      the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer, one program for each *_test.cc, and one for each
#             fuzz target, which tries its corpus; the one of threads under ThreadSanitizer as well
#   uml       mocha as root in a User-Mode Linux guest: device-mapper, loop devices, the kernel engine
#   interop   mocha beside a live Apptainer (test/support/peer.sh), left out if the package mirror cannot give one
#   peer      the same command lines under that Apptainer and here, compared
#   slurm     jobs on a cluster of this machine's own (test/support/slurm-cluster.sh), as root
#   clients   workflow programs and MPI of Debian that call apptainer, which is this command
#   prebuilds only if it is named: what prebuilds/ has for arm64, under an emulator, and for musl; fails where there is nothing
#   soak      only if it is named: what e2e and uml do a few times, as often as is promised (500 runs, 200 kills, 200 at once),
#             slurm with Debian unstable's Slurm as well (test/support/slurm-unstable.sh), core under MemorySanitizer, and
#             threads that end while the addon works, under AddressSanitizer
# Two lanes run beside each other where the machine has the processors and the memory; SIFCRYPT_LANES=1 forbids it. Each takes
# the next of what is still to be done, and what that has to say is printed at its end, with its seconds and its slowest tests.
# Before the end what failed is named once more, with the first lines of what it said; the last line is the sum, `N passed, N
# failed`; a skipped test is printed with its reason, and is a failure if CI is set. Arguments: names of suites, to run only those.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
project=$PWD

# node_modules/.bin first: nothing below is fetched by npx.
export PATH="$project/node_modules/.bin:$PATH"
suites=" ${*:-core unit vectors native e2e slurm uml interop peer clients} "
for name; do
  case $name in
    core | unit | vectors | native | e2e | slurm | uml | interop | peer | clients | prebuilds | soak) ;;
    *) echo "test.sh: no suite is called $name" >&2 && exit 2 ;;
  esac
done

if [[ -z ${SIFCRYPT_WITHIN_REACH:-} ]]; then
  scripts/setup.sh
  exec scripts/within-reach.sh scripts/test.sh "$@"
fi

# What the machine has to offer to an ordinary user is the test set-up's business, not the product's. Where it cannot be had
# (a container without the right to it), the tests that need it fail and say so.
if [[ $EUID -eq 0 ]]; then
  [[ -e /dev/fuse ]] || mknod /dev/fuse c 10 229 || true
  chmod 666 /dev/fuse || true
  [[ -e /dev/net/tun ]] || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200; } || true
  chmod 666 /dev/net/tun || true
  # A bare debootstrap has none, and fusermount3 unmounts nothing without it.
  [[ -e /etc/mtab ]] || ln -s ../proc/self/mounts /etc/mtab
fi

# One file for each suite, or part of one, NAME.counts, with lines `count PASSED FAILED …`, `failed TITLE`, `why LINE`,
# `skip TITLE: REASON` and `left-out TEXT`; the reporter writes them, and what is here.
results=$project/build/test-results
rm -rf "$results"
mkdir -p "$results"

# The test files of a suite: test/NAME/**/*.test.ts.
has_tests() {
  [[ -d test/$1 && -n $(find "test/$1" -name '*.test.ts' -print -quit) ]]
}

mocha_here=(mocha --forbid-only --reporter "$project/test/support/reporter.cjs")

mocha_in_guest() {
  local limit=$1
  shift
  # As Debian's kernels are: AppArmor is there, and confines nothing before a profile is loaded.
  test/support/uml-run.sh --mem 3G --timeout "$limit" --kernel lsm=apparmor --kernel apparmor=1 -- \
    "${mocha_here[@]}" --timeout 300000 "$@"
}

# Runs a command where nothing is seen of the processes, mounts and temporary files of others: its tests look for what is left.
# Where there is no right to that, one such command runs at a time.
apart() {
  if ! unshare --mount --pid --fork true 2>/dev/null; then
    flock "$results/apart" "$@"
    return
  fi
  local place status=0
  place=$(mktemp -d)
  # shellcheck disable=SC2016
  unshare --mount --pid --fork --kill-child --mount-proc --propagation private bash -c '
    set -e
    trap "exit 143" TERM
    place=$1
    shift
    mkdir -p "/tmp/tsx-$EUID" "$place/tmp/tsx-$EUID" "$place/var/tmp"
    # What tsx has compiled is for all.
    mount --bind "/tmp/tsx-$EUID" "$place/tmp/tsx-$EUID"
    for folder in /var/tmp /tmp; do
      chmod 1777 "$place$folder"
      mount --rbind "$place$folder" "$folder"
    done
    mount -t tmpfs -o mode=1777 apart /dev/shm
    # What root has in common there are processes, which those of another suite do not see and take for ended.
    mkdir -p -m 700 /run/sifcrypt
    mount -t tmpfs -o mode=700 apart /run/sifcrypt
    # This is process 1, which waits for what others leave to it.
    "$@"
    exit' apart "$place" "$@" || status=$?
  rm -rf "$place"
  return "$status"
}

# What a test has left open keeps mocha from ending.
suite_mocha() {
  timeout --foreground --kill-after=10 3000 "${mocha_here[@]}" "$@"
}

# The files of a suite, the largest first: all, or every so many-th from one on.
files_of() {
  local name=$1 part=${2:-1} parts=${3:-1}
  find "test/$name" -name '*.test.ts' -size +0 -printf '%s %p\n' | LC_ALL=C sort -k 1,1nr -k 2 |
    awk -v part="$part" -v parts="$parts" '(NR - part) % parts == 0 { print $2 }'
}

# The C++ of a folder, with a kind of sanitizer. CMake's cache has the place of the project, which is another in each run of a clone that is
# not within reach.
build_sanitized() {
  rm -f "$1/CMakeCache.txt"
  cmake -S . -B "$1" "-DSIFCRYPT_SANITIZE=$2" && cmake --build "$1" -j "$(nproc)"
}

suite_core() {
  local passed=0 failed=0 log=$results/core.log source
  if build_sanitized build-sanitize ON >"$log" 2>&1; then
    for source in test/native/core/*_test.cc test/fuzz/*_fuzz.cc; do
      [[ -e $source ]] || continue
      local name status=0 checks started=$SECONDS corpus=()
      name=$(basename "$source" .cc)
      [[ $name == *_test ]] || corpus=("test/fuzz/corpus/${name%_fuzz}")
      timeout 600 "build-sanitize/$name" "${corpus[@]}" 2>&1 | tee "$log" || status=$?
      checks=$(sed -nE 's/^(.*[^0-9])?([0-9]+) checks.*$/\2/p' "$log" | tail -n 1)
      if [[ $status -eq 0 ]]; then
        passed=$((passed + ${checks:-1}))
        echo "  ok $name, $((SECONDS - started)) s"
      else
        failed=$((failed + 1))
        echo "  FAILED $name, status $status"
        echo "failed $name" >>"$SIFCRYPT_COUNTS"
      fi
    done
  else
    tail -n 40 "$log" >&2
    echo "  FAILED: the build with sanitizers"
    failed=$((failed + 1))
  fi
  # What is shared between threads, a second time, under ThreadSanitizer.
  if build_sanitized build-thread thread >"$log" 2>&1 && timeout 300 build-thread/concurrency_test; then
    passed=$((passed + 1))
    echo "  ok concurrency_test, ThreadSanitizer"
  else
    tail -n 40 "$log" >&2
    echo "  FAILED: concurrency_test under ThreadSanitizer"
    failed=$((failed + 1))
  fi
  echo "count $passed $failed" >>"$SIFCRYPT_COUNTS"
  [[ $failed -eq 0 ]]
}

suite_uml() {
  if command -v linux.uml >/dev/null; then
    mocha_in_guest 1200 "test/uml/**/*.test.ts"
  else
    {
      echo "skip the whole suite: this machine has no linux.uml (Debian's user-mode-linux, amd64 only)"
      echo "count 0 0"
    } >>"$SIFCRYPT_COUNTS"
  fi
}

# With a live Apptainer.
suite_beside_peer() {
  local peer status=0
  peer=$(test/support/peer.sh) || status=$?
  case $status in
    0) SIFCRYPT_PEER_ROOT=$peer "${mocha_here[@]}" --timeout 300000 "test/$1/**/*.test.ts" ;;
    4)
      {
        echo "skip the whole suite: the live peer cannot be made here, the reason is above"
        echo "count 0 0"
      } >>"$SIFCRYPT_COUNTS"
      ;;
    3)
      {
        echo "left-out the package mirror cannot give the live peer; the images it made earlier were tested"
        echo "count 0 0"
      } >>"$SIFCRYPT_COUNTS"
      ;;
    *)
      echo "$1: test/support/peer.sh ended with status $status" >&2
      return 1
      ;;
  esac
}

suite_apart() {
  local name=$1 part=${2:-1} files
  mapfile -t files < <(files_of "$name" "$part" "${parts[$name]:-1}")
  apart timeout --foreground --kill-after=10 3000 "${mocha_here[@]}" "${files[@]}"
}

has_slurm() {
  [[ $EUID -ne 0 ]] || return 0
  echo "skip all that runs on Slurm: slurmd starts jobs as their owners, which takes root" >>"$SIFCRYPT_COUNTS"
  return 1
}

suite_slurm() {
  if has_slurm; then
    suite_apart slurm
  else
    echo "count 0 0" >>"$SIFCRYPT_COUNTS"
  fi
}

# What is used and was never written: the tests of the core and each fuzz target on its corpus, under MemorySanitizer. CMakeLists.txt says
# which it cannot see through.
under_memory_sanitizer() {
  local passed=0 failed=0 log=$results/memory.log program name corpus
  # What is no target any more is not run.
  rm -f build-memory/*_fuzz build-memory/*_test
  if CXX=clang++ build_sanitized build-memory memory >"$log" 2>&1; then
    for program in build-memory/*_fuzz build-memory/*_test; do
      name=$(basename "$program") corpus=()
      [[ $name == *_test ]] || corpus=("test/fuzz/corpus/${name%_fuzz}")
      if timeout 600 "$program" "${corpus[@]}" >"$log" 2>&1; then
        passed=$((passed + 1))
      else
        tr '\r' '\n' <"$log" | tail -n 40 >&2
        failed=$((failed + 1))
        echo "failed $name, MemorySanitizer" >>"$SIFCRYPT_COUNTS"
      fi
    done
  else
    tail -n 40 "$log" >&2
    failed=1
    echo "failed the build with MemorySanitizer" >>"$SIFCRYPT_COUNTS"
  fi
  echo "count $passed $failed" >>"$SIFCRYPT_COUNTS"
  [[ $failed -eq 0 ]]
}

suite_soak() {
  local status=0 files folders=(test/e2e test/native test/unit) slurm=false
  export SIFCRYPT_SOAK=1
  if has_slurm; then
    slurm=true
    folders+=(test/slurm)
  fi
  # Whoever knows of a larger number.
  mapfile -t files < <(grep -rlE --include='*.test.ts' 'support/soak|SIFCRYPT_SOAK' "${folders[@]}" | LC_ALL=C sort)
  under_memory_sanitizer || status=$?
  apart "${mocha_here[@]}" "${files[@]}" || status=$?
  # And the Slurm and MUNGE of Debian unstable.
  if [[ $slurm == true ]]; then
    apart test/support/slurm-unstable.sh "${mocha_here[@]}" test/slurm/*.test.ts || status=$?
  fi
  if command -v linux.uml >/dev/null; then
    mocha_in_guest 7200 test/uml/soak.test.ts test/uml/network.test.ts || status=$?
    mocha_in_guest 36000 test/uml/faults.test.ts || status=$?
  else
    echo "skip the kernel engine: this machine has no linux.uml (Debian's user-mode-linux, amd64 only)" >>"$SIFCRYPT_COUNTS"
  fi
  return "$status"
}

# A suite, or a part of one: NAME, or NAME.PART.
run_suite() {
  local job=$1 name=${1%.*} part=${1#*.} status=0 started=$SECONDS
  [[ $job == *.* ]] || part=1
  export SIFCRYPT_COUNTS=$results/$job.counts
  : >"$SIFCRYPT_COUNTS"
  case $name in
    unit | vectors) suite_mocha "test/$name/**/*.test.ts" || status=$? ;;
    native | e2e | clients | prebuilds) suite_apart "$name" "$part" || status=$? ;;
    interop | peer) suite_beside_peer "$name" || status=$? ;;
    core | uml | slurm | soak) "suite_$name" || status=$? ;;
  esac </dev/null
  # A failure that was counted needs no second one.
  if ! grep -q '^count' "$SIFCRYPT_COUNTS"; then
    echo "$job: ended with status $status and no report" >&2
    echo "count 0 1" >>"$SIFCRYPT_COUNTS"
  elif [[ $status -ne 0 ]] && ! grep -qE '^count [0-9]+ [1-9]' "$SIFCRYPT_COUNTS"; then
    echo "$job: ended with status $status" >&2
    echo "count 0 1" >>"$SIFCRYPT_COUNTS"
  fi
  echo "$job: $((SECONDS - started)) s"
}

lanes=${SIFCRYPT_LANES:-2}
available=$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo)
if [[ $(nproc) -lt 2 || $available -lt 8192 ]]; then lanes=1; fi

# What takes longest comes first, so that all lanes end at about the same time; the largest suite goes in parts.
declare -A parts=()
[[ $lanes -lt 2 ]] || parts[e2e]=6
jobs=()
for name in uml core e2e native interop unit peer slurm clients vectors prebuilds soak; do
  [[ $suites == *" $name "* ]] || continue
  case $name in
    core | soak) jobs+=("$name") ;;
    *)
      has_tests "$name" || continue
      if [[ -z ${parts[$name]:-} ]]; then
        jobs+=("$name")
      else
        for ((part = 1; part <= parts[$name]; part++)); do jobs+=("$name.$part"); done
      fi
      ;;
  esac
done

# Does what nobody has begun, and tells of each when it is done.
lane() {
  local job
  for job in "${jobs[@]}"; do
    mkdir "$results/$job.begun" 2>/dev/null || continue
    run_suite "$job" >"$results/$job.output" 2>&1
    flock "$results/telling" sh -c 'printf "\n== %s\n" "$1" && cat "$2"' tell "$job" "$results/$job.output"
  done
}

lane_status=0
if [[ $lanes -lt 2 || ${#jobs[@]} -eq 1 ]]; then
  for job in "${jobs[@]}"; do
    printf '\n== %s\n' "$job"
    run_suite "$job"
  done
else
  # Process groups of their own, each to be ended as one.
  set -m
  running=()
  for ((i = 0; i < lanes; i++)); do
    lane &
    running+=("$!")
  done
  set +m
  trap 'for one in "${running[@]}"; do kill -TERM -- "-$one" 2>/dev/null || true; done' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  for one in "${running[@]}"; do wait "$one" || lane_status=$?; done
  trap - EXIT
fi

passed=0 failed=0
if [[ $lane_status -ne 0 ]]; then
  echo "a lane ended with status $lane_status" >&2
  failed=1
fi
skipped=() left_out=() failures=()
for name in "${jobs[@]}"; do
  counts=$results/$name.counts
  [[ -s $counts ]] || echo "count 0 1" >"$counts"
  while read -r kind rest; do
    case $kind in
      count)
        read -r p f _ <<<"$rest"
        passed=$((passed + p)) failed=$((failed + f))
        ;;
      failed) failures+=("$name: $rest") ;;
      why) failures+=("    $rest") ;;
      skip) skipped+=("$name: $rest") ;;
      left-out) left_out+=("$name: $rest") ;;
    esac
  done <"$counts"
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
if [[ ${#failures[@]} -gt 0 ]]; then
  echo "failed:"
  printf '  %s\n' "${failures[@]}"
fi
[[ ${#left_out[@]} -eq 0 ]] || printf 'left out: %s\n' "${left_out[@]}"
echo "all suites: $SECONDS s"
echo "$passed passed, $failed failed" | tee "$results/sum"
[[ $failed -eq 0 && $passed -gt 0 ]]
