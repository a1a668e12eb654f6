// Programs of another architecture: one for arm64, and an emulator for it that a few processes have and the machine has not.
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"

const BINFMT = "/proc/sys/fs/binfmt_misc"
/** What the package qemu-user-static would have registered. */
const REGISTRATION = "/usr/lib/binfmt.d/qemu-aarch64.conf"

/** Writes what the processor is called to /made and to its standard output, whatever its arguments are. */
export function arm64Program(): Buffer {
  const code = Buffer.from(
    new Uint32Array([
      0x92800c60, // mov  x0, #-100              openat(AT_FDCWD, "/made", O_WRONLY|O_CREAT, 0644)
      0x10000281, // adr  x1, path
      0xd2800822, // mov  x2, #0101
      0xd2803483, // mov  x3, #0644
      0xd2800708, // mov  x8, #56
      0xd4000001, // svc  #0
      0xaa0003f3, // mov  x19, x0
      0xd10803ff, // sub  sp, sp, #512
      0x910003e0, // mov  x0, sp                 uname(sp)
      0xd2801408, // mov  x8, #160
      0xd4000001, // svc  #0
      0xaa1303e0, // mov  x0, x19                write(x19, its field `machine`, 7)
      0x910413e1, // add  x1, sp, #260
      0xd28000e2, // mov  x2, #7
      0xd2800808, // mov  x8, #64
      0xd4000001, // svc  #0
      0xd2800020, // mov  x0, #1                 write(1, the same, 7)
      0xd4000001, // svc  #0
      0xd2800000, // mov  x0, #0                 exit(0)
      0xd2800ba8, // mov  x8, #93
      0xd4000001, // svc  #0
    ]).buffer,
  )
  // elf.h: Elf64_Ehdr, and the one Elf64_Phdr, of all of the file.
  const header = Buffer.alloc(64 + 56)
  const body = Buffer.concat([code, Buffer.from("/made\0")])
  const size = BigInt(header.length + body.length)
  const start = 0x400000n
  header.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  header.writeUInt16LE(2, 16) // ET_EXEC
  header.writeUInt16LE(183, 18) // EM_AARCH64
  header.writeUInt32LE(1, 20)
  header.writeBigUInt64LE(start + BigInt(header.length), 24)
  header.writeBigUInt64LE(64n, 32)
  for (const [value, at] of [
    [64, 52],
    [56, 54],
    [1, 56],
  ] as const)
    header.writeUInt16LE(value, at)
  header.writeUInt32LE(1, 64) // PT_LOAD
  header.writeUInt32LE(5, 68) // PF_R | PF_X
  for (const [at, value] of [start, start, size, size, 0x10000n].entries())
    header.writeBigUInt64LE(value, 80 + 8 * at)
  return Buffer.concat([header, body])
}

/** Why there is none here; undefined: {@link emulating} works. */
export function noEmulation(): string | undefined {
  if (process.arch !== "x64") return "arm64 is emulated on amd64 alone"
  if (!existsSync(REGISTRATION)) return `there is no ${REGISTRATION}`
  const { status } = spawnSync("unshare", ["-rm", "mount", "-t", "binfmt_misc", "binfmt", BINFMT])
  return status === 0 ? undefined : "a user namespace can have no emulators of its own here"
}

/** A script that runs a program with its arguments where arm64 is emulated: below a user namespace that has an emulator (Linux 6.7). */
export function emulating(program: string): string {
  return `#!/bin/sh
export uid=$(id -u) gid=$(id -g)
exec unshare -rm sh -ec 'mount -t binfmt_misc binfmt ${BINFMT}
cat ${REGISTRATION} >${BINFMT}/register
exec unshare -U --map-user=$uid --map-group=$gid "$@"' sh ${program} "$@"
`
}
