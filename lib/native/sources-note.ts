// Reads which sources a native file was made of, and whether it may be loaded here at all, without loading it.
import { closeSync, fstatSync, openSync, readSync } from "node:fs"

const PROGRAM_HEADER_SIZE = 56 // elf(5), Elf64_Phdr
const PT_LOAD = 1
const PT_NOTE = 4
/** Machines of elf(5) that there are native files for, and what Node calls them. */
const architectures: ReadonlyMap<number, string> = new Map([
  [62, "x64"],
  [183, "arm64"],
])
// Linkers put notes at the front, for whoever reads no more than that (a core dump keeps the first page).
const MAX_HEAD = 4096

/** What the front of a native file says of it. */
export interface NativeFile {
  /**
   * The digest in its notes: that of `native/sources_note.cc`, or the build ID that scripts/build-shell.sh gives a Go program. Undefined if
   * it has none: then it is not one of ours, or older than the note.
   */
  readonly sources: string | undefined
  /** Whose machine code it is, by Node's name; undefined for what is none of ours. */
  readonly architecture: string | undefined
  /** Whether its end is missing. Whoever touches what is mapped there dies of SIGBUS, and the dynamic linker does. */
  readonly isCut: boolean
}

/**
 * Reads the front of a native file.
 *
 * @throws System errors.
 */
export function readNativeFile(file: string): NativeFile {
  const descriptor = openSync(file, "r")
  try {
    const bytes = Buffer.alloc(MAX_HEAD)
    const head = bytes.subarray(0, readSync(descriptor, bytes, 0, MAX_HEAD, 0))
    // Class and byte order: 64 bits, little-endian, as on all machines that there are prebuilt files for.
    if (head.length < 64 || head.toString("latin1", 0, 6) !== "\x7fELF\x02\x01")
      return { sources: undefined, architecture: undefined, isCut: false }
    const { size } = fstatSync(descriptor)
    const at = Number(head.readBigUInt64LE(32))
    const end = at + head.readUInt16LE(56) * PROGRAM_HEADER_SIZE
    let sources: string | undefined
    let isCut = false
    for (
      let header = at;
      header < end && header + PROGRAM_HEADER_SIZE <= head.length;
      header += PROGRAM_HEADER_SIZE
    ) {
      const type = head.readUInt32LE(header)
      const offset = Number(head.readBigUInt64LE(header + 8))
      const upTo = offset + Number(head.readBigUInt64LE(header + 32))
      if (type === PT_LOAD && upTo > size) isCut = true
      if (type !== PT_NOTE) continue
      const notes = head.toString("latin1", offset, upTo)
      sources ??= /(?:sifcrypt\0{4}|Go\0\0sifcrypt:)([0-9a-f]{64})/.exec(notes)?.[1]
    }
    return { sources, architecture: architectures.get(head.readUInt16LE(18)), isCut }
  } finally {
    closeSync(descriptor)
  }
}
