# shellcheck shell=bash
# What sources.lock names, fetched, and roots made of it. Sourced in the project's folder, with `work`, the folder for roots.
lock=scripts/prebuilds/sources.lock
cache=${SIFCRYPT_PREBUILDS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sifcrypt/prebuilds}
mkdir -p "$cache"

# The file of a line of the lock: from the cache, or fetched, and in either case what the lock says.
fetched() {
  local hash=$1 address=$2 file=$cache/$1
  if [[ ! -e $file ]]; then
    curl --fail --silent --show-error --location --retry 3 --output "$file.part" "$address" ||
      { echo "prebuilds: $address cannot be fetched" >&2; return 1; }
    mv "$file.part" "$file"
  fi
  if ! sha256sum --quiet --check <<<"$hash  $file" >/dev/null 2>&1; then
    rm -f "$file"
    echo "prebuilds: $address is not what sources.lock says" >&2
    return 1
  fi
}

# All files of some groups.
fetch_all() {
  local kind hash address
  while read -r kind hash address; do
    [[ " $* " != *" $kind "* ]] || fetched "$hash" "$address" || return
  done <"$lock"
}

# A root of the packages of a group: unpacked only, which is all that a compiler needs.
make_root() {
  local group=$1 root=$work/root-$1 kind hash address made shell
  made=$(grep "^$group " "$lock" | sha256sum)
  [[ "$(cat "$root.made" 2>/dev/null)" != "$made" ]] || return 0
  echo "making the root: $group"
  rm -rf --one-file-system "$root"
  mkdir -p "$root"/{build,dev,proc,tmp}
  # First what the folders are called.
  while read -r kind hash address; do
    dpkg-deb --extract "$cache/$hash" "$root"
  done < <(grep "^$group .*/base-files_" "$lock"; grep "^$group " "$lock" | grep -v /base-files_)
  # Links that scripts of packages make.
  for shell in dash bash; do
    [[ -e $root/bin/sh || ! -e $root/bin/$shell ]] || ln -s "$shell" "$root/bin/sh"
  done
  [[ -e $root/usr/bin/awk ]] || ln -s mawk "$root/usr/bin/awk"
  echo "$made" >"$root.made"
}
