// The ids that a user may have in a user namespace besides his own: /etc/subuid and /etc/subgid.
import { accessSync, constants, readFileSync } from "node:fs"

/** A line of a namespace's id map. */
export interface IdRange {
  readonly inside: number
  readonly outside: number
  readonly count: number
}

/** Subordinate ids of one line. */
interface SubordinateRange {
  readonly start: number
  readonly count: number
}

const MAX_ID = 0xffff_ffff

/** The ranges that a file of `NAME:START:COUNT` lines gives to a user, known by name or number. */
export function parseRanges(text: string, name: string, uid: number): SubordinateRange[] {
  return text.split("\n").flatMap((line) => {
    const [owner, first = "", size = ""] = line.trim().split(":")
    if ((owner !== name && owner !== String(uid)) || !/^\d{1,10}$/.test(first) || !/^\d{1,10}$/.test(size))
      return []
    const start = Number(first)
    const count = Number(size)
    return count > 0 && start + count <= MAX_ID ? [{ start, count }] : []
  })
}

/** Those that there are in a user namespace with this map; the kernel takes none that lies across two lines of it. */
export function mappedRanges(ranges: readonly SubordinateRange[], map: string): SubordinateRange[] {
  const lines = map.split("\n").map((line) => line.trim().split(/\s+/).map(Number))
  return ranges.filter(({ start, count }) =>
    lines.some(([inside = 0, , size = 0]) => start >= inside && start + count <= inside + size),
  )
}

function readRanges(kind: "uid" | "gid", name: string, uid: number): SubordinateRange[] {
  let text: string
  try {
    text = readFileSync(`/etc/sub${kind}`, "utf8")
  } catch {
    return [] // no such file: nobody has any
  }
  // Within somebody else's container the file may name what its user namespace has not.
  return mappedRanges(parseRanges(text, name, uid), readFileSync(`/proc/self/${kind}_map`, "utf8"))
}

/** Root inside is the caller; 1 and above are subordinate ids. */
function mapOf(own: number, ranges: readonly SubordinateRange[]): IdRange[] {
  const map: IdRange[] = [{ inside: 0, outside: own, count: 1 }]
  let next = 1
  for (const { start, count } of ranges) {
    map.push({ inside: next, outside: start, count })
    next += count
  }
  return map
}

export interface IdMaps {
  readonly uids: readonly IdRange[]
  readonly gids: readonly IdRange[]
}

/** The programs that write such a map; they know who may have which. */
const writers = ["newuidmap", "newgidmap"]

function isInstalled(program: string): boolean {
  return ["/usr/bin", "/bin", "/usr/local/bin"].some((folder) => {
    try {
      accessSync(`${folder}/${program}`, constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

/** undefined: the user has no subordinate ids, or this machine nothing that maps them. */
export function subordinateIds(name: string, uid: number, gid: number): IdMaps | undefined {
  const uids = readRanges("uid", name, uid)
  const gids = readRanges("gid", name, uid)
  if (uids.length === 0 || gids.length === 0 || !writers.every(isInstalled)) return undefined
  return { uids: mapOf(uid, uids), gids: mapOf(gid, gids) }
}

/** The caller alone, as root. */
export function oneId(uid: number, gid: number): IdMaps {
  return { uids: mapOf(uid, []), gids: mapOf(gid, []) }
}

/** In the starter's words; `of`: whose they are, if not the container's. */
export function idMapArguments({ uids, gids }: IdMaps, of = ""): string[] {
  const words = (map: readonly IdRange[]): string =>
    map.map(({ inside, outside, count }) => `${inside}:${outside}:${count}`).join(",")
  return [`--${of}uid-map=${words(uids)}`, `--${of}gid-map=${words(gids)}`]
}
