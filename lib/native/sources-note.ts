// Reads which sources a native file was made of, without loading it.
import { closeSync, openSync, readSync } from "node:fs"

const PROGRAM_HEADER_SIZE = 56 // elf(5), Elf64_Phdr
const PT_NOTE = 4
// Linkers put notes at the front, for whoever reads no more than that (a core dump keeps the first page).
const MAX_HEAD = 4096

/**
 * The digest in the notes of a native file: that of `native/sources_note.cc`, or the build ID that scripts/build-shell.sh gives a Go program.
 *
 * @returns Undefined if it has none: then it is not one of ours, or older than the note.
 * @throws System errors.
 */
export function sourcesOf(file: string): string | undefined {
  const descriptor = openSync(file, "r")
  try {
    const bytes = Buffer.alloc(MAX_HEAD)
    const head = bytes.subarray(0, readSync(descriptor, bytes, 0, MAX_HEAD, 0))
    // Class and byte order: 64 bits, little-endian, as on all machines that there are prebuilt files for.
    if (head.length < 64 || head.toString("latin1", 0, 6) !== "\x7fELF\x02\x01") return undefined
    const at = Number(head.readBigUInt64LE(32))
    const end = at + head.readUInt16LE(56) * PROGRAM_HEADER_SIZE
    for (
      let header = at;
      header < end && header + PROGRAM_HEADER_SIZE <= head.length;
      header += PROGRAM_HEADER_SIZE
    ) {
      if (head.readUInt32LE(header) !== PT_NOTE) continue
      const offset = Number(head.readBigUInt64LE(header + 8))
      const notes = head.subarray(offset, offset + Number(head.readBigUInt64LE(header + 32)))
      const [, digest] =
        /(?:sifcrypt\0{4}|Go\0\0sifcrypt:)([0-9a-f]{64})/.exec(notes.toString("latin1")) ?? []
      if (digest !== undefined) return digest
    }
    return undefined
  } finally {
    closeSync(descriptor)
  }
}
