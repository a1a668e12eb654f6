#!/bin/bash
# Looks at a file that is to be shipped: what it asks of the machine, how it is linked, and what it tells of who made it. Prints what is
# wrong with it, and ends with status 1 if there is something.
#
#   check-binary.sh DIGEST FILE...        DIGEST: of the sources that it has to be made of; FILE as in prebuilds/: PLATFORM-ARCH/NAME
set -euo pipefail
digest=$1
shift
floor=2.28
status=0
# The project's folder, as an expression that finds it and nothing else.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$(sed 's/[][(){}.*+?^$|\\]/\\&/g' <<<"$here")

# A search may find nothing; one that fails is no answer, and ends this.
found() {
  grep "$@" || [[ $? -eq 1 ]]
}

for file; do
  name=${file##*/} folder=${file%/*}
  wrong() { echo "check-binary: $file: $*" >&2; status=1; }
  header=$(LC_ALL=C readelf --wide --file-header --program-headers "$file")
  dynamic=$(LC_ALL=C readelf --wide --dynamic "$file")
  needed=$(sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p' <<<"$dynamic")
  case ${folder##*/} in
    linux-x64) machine=X86-64 ;;
    linux-arm64) machine=AArch64 ;;
    *) machine='no machine at all' ;;
  esac
  grep -q "Machine: .*$machine" <<<"$header" || wrong "it is not for $machine"

  allowed='^$' interpreter=''
  case $name in
    *glibc*)
      allowed='^(libc\.so\.6|libm\.so\.6|libdl\.so\.2|libpthread\.so\.0|ld-linux-(x86-64|aarch64)\.so\.[12])$'
      interpreter='/ld-linux-'
      ;;
    *musl*) allowed='^libc\.so$' interpreter='/lib/ld-musl-' ;;
  esac
  others=$(found -vE "$allowed" <<<"$needed")
  [[ -z $others ]] || wrong "it needs ${others//$'\n'/, }"
  # Read whole first: a reader that fails is a failure, and only a search may find nothing.
  versions=$(LC_ALL=C readelf --wide --version-info "$file")
  sections=$(LC_ALL=C readelf --wide --section-headers "$file")
  texts=$(LC_ALL=C strings -a "$file")
  versions=$(found -oE 'Name: [A-Z]+[A-Z_a-z0-9.]*' <<<"$versions")
  versions=$(cut -d ' ' -f 2 <<<"$versions" | sort -uV)
  highest=$(sed -n 's/^GLIBC_//p' <<<"$versions" | tail -n 1)
  [[ -z $highest || $(printf '%s\n' "$floor" "$highest" | sort -V | tail -n 1) == "$floor" ]] || wrong "it asks for GLIBC_$highest"
  foreign=$(found -E '^(GLIBCXX|CXXABI|GCC|OPENSSL|FUSE)_' <<<"$versions")
  [[ -z $foreign ]] || wrong "it asks for ${foreign//$'\n'/, }"
  grep -qE '\((RPATH|RUNPATH|TEXTREL)\)' <<<"$dynamic" && wrong "it has an RPATH, or relocations in its text"
  grep -qE 'GNU_STACK.* RWE' <<<"$header" && wrong "its stack is executable"
  grep -qE ' LOAD .* RWE ' <<<"$header" && wrong "memory of it is writable and executable"
  grep -qE ' \.(symtab|debug_[a-z]+) ' <<<"$sections" && wrong "it is not stripped"

  # Go's programs are neither position-independent nor do they have what would be made read-only: they have no dynamic linker.
  if [[ $name != sifcrypt-shell ]]; then
    grep -q 'Type: .*DYN' <<<"$header" || wrong "it is not position-independent"
    grep -q ' GNU_RELRO ' <<<"$header" || wrong "it has no RELRO"
  fi
  if [[ -n $interpreter ]]; then
    grep -qE '\((BIND_NOW|FLAGS|FLAGS_1)\).*(NOW|$)' <<<"$dynamic" || wrong "it binds late"
  fi
  case $name in
    sifcrypt-starter.*) grep -q "interpreter: .*$interpreter" <<<"$header" || wrong "its interpreter is not $interpreter…" ;;
    sifcrypt-init | sifcrypt-shell) grep -q 'interpreter:' <<<"$header" && wrong "it is not static" ;;
  esac

  paths=$(LC_ALL=C found -oE "(^|[^[:alnum:]_.])(/build/|/root/|/home/|/tmp/prebuilds|/usr/lib/gcc|$here/)[^ ]{0,40}" <<<"$texts")
  paths=$(sort -u <<<"$paths" | sed -n 1,3p)
  [[ -z $paths ]] || wrong "it tells where it was made: ${paths//$'\n'/, }"
  LC_ALL=C grep -qaE "(sifcrypt"$'\x01'"?|sifcrypt:).{0,4}$digest" "$file" || wrong "it does not say that it was made of the sources $digest"
done
exit "$status"
