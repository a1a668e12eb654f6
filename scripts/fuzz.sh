#!/bin/bash
# Searches for inputs that break what reads hostile input: each native target of test/fuzz with libFuzzer under AddressSanitizer and
# UndefinedBehaviorSanitizer, and "parsers", those that are TypeScript, with the generators of test/fuzz/parsers.ts.
#
#   scripts/fuzz.sh HOURS [TARGET]...   so long in all, on all processors, each target for its share; no target: all of them
#   scripts/fuzz.sh --changed [MOST]    one minute for each native target whose sources are not those of test/fuzz/corpus/sources, but
#                                       no more than so many minutes of all processors together: what has no room is named
#   scripts/fuzz.sh --minimise          of what the runs so far have found to reach more, what is small goes into test/fuzz/corpus
#   scripts/fuzz.sh --replay TARGET FILE   the input in a file
#
# The last lines say of each target how many inputs were tried and what was found. A finding's input lies in build-fuzz/findings, and is
# shown; it goes into test/fuzz/corpus/TARGET with what mends it, and every run of the core suite tries it from then on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Bytes of what each corpus has besides seeds: under the name that libFuzzer gave it.
most_found=50000
changed_seconds=60
# Freed memory is kept for long enough, and not for hundreds of MiB, whose pages cost half of the time.
export ASAN_OPTIONS=quarantine_size_mb=16:malloc_context_size=8

natives=()
for source in test/fuzz/*_fuzz.cc; do
  name=$(basename "$source" _fuzz.cc)
  natives+=("$name")
done

usage() {
  echo "usage: scripts/fuzz.sh HOURS [${natives[*]} parsers]... | --changed [MOST] | --minimise | --replay TARGET FILE" >&2
  exit 2
}

# Of these targets. CMake's cache has the place of the project, which within-reach.sh may have changed.
build() {
  rm -f build-fuzz/CMakeCache.txt
  cmake -S . -B build-fuzz -DSIFCRYPT_SANITIZE=fuzzer -DCMAKE_CXX_COMPILER=clang++ >build-fuzz/build.log 2>&1 &&
    cmake --build build-fuzz -j "$(nproc)" --target "${@/%/_fuzz}" >>build-fuzz/build.log 2>&1 || {
    tail -n 40 build-fuzz/build.log >&2
    exit 1
  }
}

# What a target is built of: itself, and what is behind all headers that are included there.
files_of() {
  local unread=("test/fuzz/$1_fuzz.cc" "test/fuzz/$1_mutator.cc" test/fuzz/target.h) seen=' ' file include part
  while [[ ${#unread[@]} -gt 0 ]]; do
    file=${unread[0]}
    unread=("${unread[@]:1}")
    [[ -e $file && $seen != *" $file "* ]] || continue
    seen+="$file "
    while read -r include; do
      part=native/${include%.h}
      unread+=("$part.h" "$part.cc")
    done < <(sed -nE 's/^#include "((core|starter)\/[a-z0-9_]+\.h)"$/\1/p' "$file")
  done
  # shellcheck disable=SC2086
  printf '%s\n' $seen
}

# Of one target, in a file that says how it went: its seconds, runs, edges that were reached.
fuzz_native() {
  local name=$1 seconds=$2 folder=build-fuzz/found/$1 log=build-fuzz/$1.log status=0
  mkdir -p "$folder" build-fuzz/findings
  # Nothing is written into the corpus of the repository: the first folder takes what is found. Loops are found by counting; by the clock
  # only what waits for ever, as on a machine that has much to do anything takes long.
  "build-fuzz/${name}_fuzz" -max_total_time="$seconds" -max_len=65536 -timeout=600 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="build-fuzz/findings/$name-" "$folder" "test/fuzz/corpus/$name" >"$log" 2>&1 || status=$?
  local runs edges
  runs=$(sed -nE 's/^stat::number_of_executed_units: +([0-9]+)$/\1/p' "$log")
  edges=$(sed -nE 's/^#[0-9]+.* cov: ([0-9]+).*/\1/p' "$log" | tail -n 1)
  if [[ $status -eq 0 ]]; then
    echo "$name: $seconds s, ${runs:-0} runs, ${edges:-0} edges, nothing found"
  else
    echo "$name: $seconds s, FOUND, see $log: $(grep -m 1 -E '^(broken|too much work|SUMMARY)' "$log" || echo "status $status")"
  fi
}

# The inputs, which have 64 KiB at most, as whoever has only this output can try them again.
show_findings() {
  local input
  for input in "build-fuzz/findings/$1-"*; do
    # Slow is what takes ten seconds by the clock, as on a machine that has much to do anything may.
    [[ -e $input && $input != *-slow-unit-* ]] || continue
    echo "base64 -d <<'END' | gunzip >input && scripts/fuzz.sh --replay $1 input"
    gzip -9n <"$input" | base64 -w 120
    echo END
  done
}

fuzz_parsers() {
  local log=build-fuzz/parsers.log status=0
  node --import tsx test/fuzz/main.ts "$1" >"$log" 2>&1 || status=$?
  if [[ $status -eq 0 ]]; then
    echo "parsers: $1 s, $(tail -n 1 "$log")"
  else
    echo "parsers: $1 s, FOUND, see $log"
  fi
}

# Into the corpus of one target, the smallest first, up to its bytes; what is in it stays.
minimise() {
  local name=$1 corpus=test/fuzz/corpus/$1 merged=build-fuzz/merged/$1 log=build-fuzz/$1.merge.log found room size
  rm -rf "$merged" "$merged.control"
  mkdir -p "$merged" "build-fuzz/found/$name"
  cp "$corpus"/* "$merged"
  # What libFuzzer tells its own processes lies in no folder for temporary files, which a target may have of its own.
  "build-fuzz/${name}_fuzz" -merge=1 -merge_control_file="$merged.control" -max_len=65536 "$merged" "build-fuzz/found/$name" >"$log" 2>&1 || {
    tail -n 40 "$log" >&2
    return 1
  }
  room=$((most_found - $(found_in "$corpus" | awk '{ sum += $1 } END { print sum + 0 }')))
  while read -r size found; do
    [[ -e $corpus/$found ]] && continue
    [[ $size -le $room ]] || break
    cp "$merged/$found" "$corpus"
    room=$((room - size))
  done < <(found_in "$merged")
  echo "$name: $(found_in "$corpus" | wc -l) of the $(found_in "$merged" | wc -l) that reach more"
}

# Size and name of what libFuzzer has named.
found_in() {
  find "$1" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -printf '%s %f\n' | LC_ALL=C sort -k 1,1n -k 2
}

# In as many processes as there are processors; the lines of all, and whether nothing was found.
fuzz() {
  local seconds=$1 name results built=()
  shift
  results=$(mktemp)
  for name; do [[ $name == parsers ]] || built+=("$name"); done
  [[ ${#built[@]} -eq 0 ]] || build "${built[@]}"
  export -f fuzz_native fuzz_parsers
  for name; do
    rm -f "build-fuzz/findings/$name-"*
    if [[ $name == parsers ]]; then echo "fuzz_parsers $seconds"; else echo "fuzz_native $name $seconds"; fi
  done | xargs -P "$(nproc)" -I {} bash -c '{}' | tee "$results"
  local found=0
  ! grep -q FOUND "$results" || found=1
  rm "$results"
  # When all have ended: their lines would be among each other.
  for name in "${built[@]}"; do show_findings "$name"; done
  return "$found"
}

# All targets with the digests of their sources: of before a search, which is what it was of. What all are built of does not count: a
# change there would be one of every target, and their corpora, which every run tries, show what it breaks.
sources() {
  local name all
  all=$(for name in "${natives[@]}"; do files_of "$name"; done | LC_ALL=C sort | uniq -c |
    awk -v targets=${#natives[@]} '$1 == targets { print $2 }')
  for name in "${natives[@]}"; do
    echo "$name $(files_of "$name" | LC_ALL=C sort | grep -vxF "$all" | xargs cat | sha256sum | cut -d ' ' -f 1)"
  done
}

# Takes down that these targets were searched, with the digests of before.
note_searched() {
  local before=$1 name digest searched=" ${*:2} "
  while read -r name digest; do
    if [[ $searched == *" $name "* ]]; then
      echo "$name $digest"
    else
      # Of one that was never searched there is none.
      awk -v name="$name" '$1 == name' test/fuzz/corpus/sources
    fi
  done <<<"$before" >build-fuzz/sources
  mv build-fuzz/sources test/fuzz/corpus/sources
}

mkdir -p build-fuzz
case ${1:-} in
  --changed)
    [[ $# -le 2 && ${2:-1} =~ ^[1-9][0-9]?$ ]] || usage
    before=$(sources)
    # Where nothing was taken down, nothing was searched.
    touch test/fuzz/corpus/sources
    # In an order that is another one after each change, so that it is not always the same that have no room.
    mapfile -t changed < <(grep -vxFf test/fuzz/corpus/sources <<<"$before" | LC_ALL=C sort -k 2 | cut -d ' ' -f 1)
    [[ ${#changed[@]} -gt 0 ]] || { echo "no target's sources have changed since it was last searched" && exit 0; }
    some=("${changed[@]:0:${2:-${#changed[@]}}}") others=("${changed[@]:${2:-${#changed[@]}}}")
    [[ ${#others[@]} -eq 0 ]] || echo "changed, but not searched now: ${others[*]} (scripts/fuzz.sh --changed)"
    fuzz "$changed_seconds" "${some[@]}"
    note_searched "$before" "${some[@]}"
    ;;
  --minimise)
    [[ $# -eq 1 ]] || usage
    build "${natives[@]}"
    for name in "${natives[@]}"; do minimise "$name"; done
    ;;
  --replay)
    [[ $# -eq 3 && " ${natives[*]} " == *" $2 "* && -e $3 ]] || usage
    build "$2"
    exec "build-fuzz/$2_fuzz" "$3"
    ;;
  '' | . | *.*.* | *[!0-9.]*) usage ;;
  *)
    hours=$1
    shift
    targets=("$@")
    [[ $# -gt 0 ]] || targets=("${natives[@]}" parsers)
    for name in "${targets[@]}"; do
      [[ " ${natives[*]} parsers " == *" $name "* ]] || usage
    done
    workers=$(nproc)
    [[ $workers -le ${#targets[@]} ]] || workers=${#targets[@]}
    # For libFuzzer 0 is for ever.
    seconds=$(awk -v hours="$hours" -v workers="$workers" -v targets=${#targets[@]} \
      'BEGIN { share = int(hours * 3600 * workers / targets); print share < 1 ? 1 : share }')
    before=$(sources)
    fuzz "$seconds" "${targets[@]}"
    # As long as --changed would have taken.
    [[ $seconds -lt $changed_seconds ]] || note_searched "$before" "${targets[@]}"
    ;;
esac
