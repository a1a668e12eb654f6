#!/bin/bash
# Makes the corpus' first inputs, by the tools that make such files: test/fuzz/seeds.sh, as root. What libFuzzer and people have
# added since stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/corpus"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A small tree with everything that a tree can have.
tree=$work/tree
mkdir -p "$tree/a/b/c" "$tree/empty"
echo content >"$tree/content"
seq 1 3000 >"$tree/a/numbers"
head -c 9000 /dev/urandom >"$tree/a/b/noise"
truncate -s 300000 "$tree/a/hole"
echo end | dd of="$tree/a/hole" bs=1 seek=299000 conv=notrunc status=none
ln "$tree/content" "$tree/a/hard"
ln -s ../content "$tree/a/soft"
ln -s b "$tree/a/l"
mkfifo "$tree/fifo"
mknod "$tree/device" c 1 3
for number in $(seq 1 40); do echo "$number" >"$tree/a/b/c/file-with-a-long-name-$number"; done
setfattr -n user.comment -v x "$tree/content"
setfattr -n trusted.long -v "$(head -c 300 /dev/zero | tr '\0' y)" "$tree/a"
chmod 4755 "$tree/a/numbers"
touch -d @1700000000 "$tree"/*

mkdir -p squashfs extract layers streams gocryptfs verity scratch options bundle luks writer
quiet=(-noappend -no-progress -quiet -root-mode 755)
for compressor in gzip zstd lz4 xz; do
  mksquashfs "$tree" "squashfs/$compressor" "${quiet[@]}" -comp "$compressor" -b 4096 -nopad
done
# Tables that are not compressed, for who changes bytes.
mksquashfs "$tree" squashfs/plain "${quiet[@]}" -noI -noD -noF -noX -b 16384 -nopad
mksquashfs "$tree/a/b/c" squashfs/names "${quiet[@]}" -noI -noD -noF -nopad
mksquashfs "$tree/content" squashfs/content "${quiet[@]}" -noI -nopad
mksquashfs "$work/tree/empty" squashfs/empty "${quiet[@]}" -nopad
for image in squashfs/{gzip,plain,names}; do cp "$image" extract/; done

# Layers: each format of GNU tar, with a second layer that hides things of the first.
rm "$tree"/a/b/noise "$tree"/a/b/c/file-with-a-long-name-[1-4]?
for format in ustar pax gnu; do
  tar -C "$tree" --format="$format" -b 1 -cf "layers/$format" --exclude=./a/hole .
done
tar -C "$tree" --format=v7 -b 1 -cf layers/v7 a/b content
tar -C "$tree" --format=pax --xattrs --xattrs-include='*' --sparse -b 1 -cf layers/sparse a/hole content
tar -C "$tree" --format=gnu --sparse -b 1 -cf layers/gnu-sparse a/hole
mkdir -p "$work/over/a"
touch "$work/over/a/.wh.soft" "$work/over/a/.wh..wh..opq" "$work/over/.wh.fifo"
echo over >"$work/over/a/numbers"
tar -C "$work/over" -b 1 -cf "$work/over.tar" .
cat layers/ustar "$work/over.tar" >layers/over
gzip -9 -c layers/over >layers/gzip
zstd -q -19 -c layers/over >layers/zstd
xz -9 -c layers/over >layers/xz

# Compressed streams behind the byte that says how often each comes.
seq 1 2000 >"$work/text"
stream() { { printf "$1" && cat; } >"streams/$2"; }
gzip -c "$work/text" | stream '\x00' gzip
zstd -q -c "$work/text" | stream '\x01' zstd
xz -c "$work/text" | stream '\x00' xz
stream '\x00' plain <"$work/text"
head -c 70000 /dev/zero | gzip -9 -c | stream '\xf0' gzip-ahead
head -c 3000 /dev/urandom | zstd -q -c | stream '\xf1' zstd-ahead
head -c 3000 /dev/urandom | stream '\xf2' plain-ahead
{ zstd -q -c "$work/text" && printf '\x50\x2a\x4d\x18\x04\x00\x00\x00abcd' && zstd -q -c "$work/text"; } | stream '\x00' zstd-skippable

# What is sealed, and what gocryptfs has written.
for how in 0 2 4 8 10; do { printf "\\x$(printf %02x "$how")abc" && head -c 9000 "$work/text"; } >"gocryptfs/sealed-$how"; done
mkdir "$work/cipher"
echo word | gocryptfs -init -q -plaintextnames -scryptn 10 "$work/cipher" >/dev/null
mkdir "$work/plain"
if gocryptfs -q -extpass 'echo word' "$work/cipher" "$work/plain" >/dev/null 2>&1; then
  head -c 5000 "$work/text" >"$work/plain/file"
  fusermount3 -u "$work/plain"
  { printf '\x01abc' && cat "$work/cipher/file"; } >gocryptfs/written
fi
for how in 0 1 2 4 8 3; do { printf "\\x$(printf %02x "$how")ab\\x90\\x00" && head -c 300 "$work/text"; } >"verity/blocks-$how"; done
{ printf '\x00ab\x90\x01' && head -c 300 "$work/text"; } >verity/many

# Calls in a row.
for seed in 1 2 3 4; do head -c 2000 /dev/zero | openssl enc -aes-128-ctr -K "0$seed" -iv 00 2>/dev/null >"scratch/calls-$seed"; done
for seed in 1 2 3 4; do head -c 900 /dev/zero | openssl enc -aes-128-ctr -K "1$seed" -iv 00 2>/dev/null >"writer/tree-$seed"; done

# Command lines as lib/runtime makes them; 0, 1 and 2 are open descriptors.
words() { printf "$1" && shift && printf '%s\0' "$@"; }
image=(--image-fd=0 --engine=userspace --offset=4096 --size=8192)
verity=(--verity-offset=8192 --verity-size=4096 "--verity-root=$(printf 'ab%.0s' {1..32})" "--verity-salt=$(printf 'cd%.0s' {1..32})")
words '\x00' --message-name=x "${image[@]}" "${verity[@]}" --key-fd=1 --cipher=xts --sector-size=4096 --iv-tweak=0 --session=/s \
  --bundle-fd=0 --crun=/usr/bin/crun --layer=kind=directory,writable=1,path=/o,x --layer=kind=squashfs,image-fd=0,engine=userspace,offset=0,size=1 \
  --bind-image=kind=ext,image-fd=0,engine=kernel,offset=0,size=1,lock-fd=1 --uid-map=0:1000:1,1:100000:65536 --gid-map=0:1000:1 --init=1 \
  --terminal=1 --cgroup-manager=cgroupfs --cgroup=/x/y --id=a-b.c --status-fd=1 --watch-fd=2 --owner=1:2 >options/run
words '\x00' "${image[@]}" --session=/s --bundle-fd=0 --crun=/c --id=a --status-fd=1 --pasta=/p --resolver=10.0.0.1 \
  --publish=tcp,0.0.0.0,8080,80,2 --publish=udp,127.0.0.1,53,53,1 --join=n,br0,10.1.0.0/24,10.1.0.1,internal,10.1.0.5,web,db --networks=/n \
  --netavark=/v --aardvark=/a --container-name=c --dns=10.0.0.2 --networks-uid-map=0:1:2 --networks-gid-map=0:1:2 --restart=on-failure,3 \
  --health=1000,2000,0,3 --log-out=/o --log-err=/e --log-size=1000 --log-files=2 >options/run-network
words '\x00' --folder=/f --image-fd=0 --engine=userspace --writable=1 --session=/s --bundle-fd=0 --crun=/c --id=a --status-fd=1 >options/run-folder
words '\x00' --image-fd=0 --engine=memory --memory=1000 --offset=0 --size=1 --session=/s --bundle-fd=0 --crun=/c --id=a --status-fd=1 >options/run-memory
words '\x01' "${image[@]}" --target=/t --status-fd=1 --view-head-fd=0 --view-size=1000 --view-root-size=10 --view-piece=head,0,0,10 \
  --view-piece=root,10,0,5 >options/mount
words '\x02' --folder-fd=0 --socket-fd=1 --rootless=1 --pasta=/p --resolver=10.0.0.1 --netavark=/n --aardvark=/a >options/keep
words '\x03' --pid=123 --session=/s --id=a --crun=/c --folder=f --bundle-fd=0 --status-fd=1 --watch-fd=2 >options/join
words '\x04' --session=/s --memory=1000 --spill=/t --disk=1000 --uid-map=0:1:1 --gid-map=0:1:1 --status-fd=1 --watch-fd=2 -- /bin/x a b >options/workspace

{ printf '600 7 config.json\n{"a":1}' && printf '644 0 empty\n' && printf '755 4 a-b_c.d\nabcd'; } >bundle/records
printf '\0/etc\0r\0\0/dev/null\0d\0002\0/x\0\0' >bundle/binds
printf 'd\0/a\0f\0/b\0' >bundle/words

# The JSON of headers: by cryptsetup, with each kind of keyslot, and one whose volume key is known.
luks() {
  truncate -s 20M "$work/luks"
  echo -n fuzz | cryptsetup -q luksFormat --type luks2 --luks2-metadata-size 16k --luks2-keyslots-size 512k "$@" "$work/luks" -
  dd if="$work/luks" bs=1 skip=4096 count=12288 status=none | tr -d '\0' >"luks/$name"
}
head -c 64 /dev/zero >"$work/zeros"
name=pbkdf2 luks --pbkdf pbkdf2 --pbkdf-force-iterations 1000
name=argon2id luks --pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 32 --pbkdf-parallel 1
name=known luks --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-size 512 --volume-key-file "$work/zeros"
name=label luks --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --label x --subsystem y --sector-size 4096
