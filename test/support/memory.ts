// Looks for bytes in the memory of another process.
import { closeSync, openSync, readFileSync, readSync } from "node:fs"

/** Bytes that must not be there, and what they are. */
export interface Needle {
  readonly what: string
  readonly bytes: Uint8Array
}

const PIECE = 4 << 20
/** Of a long needle, the start is enough; each part costs a pass over all memory. */
const LONGEST = 64
/** A part of a key as long as this is worth as much as the key; shorter ones would be found by chance. */
const PART = 16

interface Mapping {
  readonly start: number
  readonly end: number
  readonly name: string
}

/** What the process can write to, and all that comes from no file: code and constants hold nobody's secret. */
function mappings(pid: number): Mapping[] {
  const line = /^([0-9a-f]+)-([0-9a-f]+) (r)(.).. [0-9a-f]+ \S+ (\d+) *(.*)$/m
  return readFileSync(`/proc/${pid}/smaps`, "utf8")
    .split(/\n(?=[0-9a-f]+-)/)
    .flatMap((text) => {
      const [, start = "", end = "", , write, inode, name = ""] = line.exec(text) ?? []
      if (start === "" || name.startsWith("[v") || (write !== "w" && inode !== "0")) return []
      const isLocked = /^VmFlags:.* lo\b/m.test(text)
      const called = `${name === "" ? "anonymous" : name}${isLocked ? " (locked)" : ""}`
      return [{ start: parseInt(start, 16), end: parseInt(end, 16), name: called }]
    })
}

/**
 * Searches all of a process's memory for each 16 bytes of the first 64 of the needles, so that a copy in two halves is
 * found, too.
 *
 * @returns What was found and where, each kind once per mapping.
 */
export function searchMemory(pid: number, needles: readonly Needle[]): string[] {
  const parts = needles.flatMap(({ what, bytes }) => {
    const all: { what: string; bytes: Buffer }[] = []
    for (let at = 0; at + PART <= Math.min(bytes.length, LONGEST); at += PART)
      all.push({ what, bytes: Buffer.from(bytes.subarray(at, at + PART)) })
    return all
  })
  const found = new Set<string>()
  const memory = openSync(`/proc/${pid}/mem`, "r")
  const room = Buffer.alloc(PIECE + PART)
  try {
    for (const { start, end, name } of mappings(pid))
      for (let at = start; at < end; at += PIECE) {
        let size: number
        try {
          size = readSync(memory, room, 0, Math.min(room.length, end - at), at)
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code === "EIO") continue // nothing is mapped there any more
          throw error
        }
        const piece = room.subarray(0, size)
        for (const { what, bytes } of parts) if (piece.includes(bytes)) found.add(`${what} in ${name}`)
      }
  } finally {
    closeSync(memory)
    room.fill(0)
  }
  return [...found].sort()
}
