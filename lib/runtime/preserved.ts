// Descriptors of the caller's that the payload gets, under the numbers that they have.
import { fstatSync, readdirSync, readlinkSync } from "node:fs"
import { optionError } from "./options.ts"

const FIRST = 3
const MAX = 1024 // native/starter/options.cc

/** Descriptors up to the one with this number. */
function all(count: number): number[] {
  if (!Number.isInteger(count) || count < 0 || count > MAX)
    throw optionError("preserveFds", `${count} is no number from 0 to ${MAX}`)
  return Array.from({ length: count }, (_, i) => FIRST + i)
}

function these(list: readonly number[]): number[] {
  const wrong = list.find((fd) => !Number.isInteger(fd) || fd < FIRST || fd >= FIRST + MAX)
  if (wrong !== undefined)
    throw optionError("preserveFds", `${wrong} is no descriptor from ${FIRST} to ${FIRST + MAX - 1}`)
  return [...new Set(list)].sort((a, b) => a - b)
}

/** What sifcrypt-init is told where there are others between them: those would be the payload's, too. */
export function keptArguments(descriptors: readonly number[]): readonly string[] {
  const last = descriptors.at(-1) ?? 0
  return last >= FIRST + descriptors.length ? [`--keep-fds=${descriptors.join(",")}`] : []
}

/**
 * The descriptors that `preserveFds` asks for: all are open, and none is this package's or Node's. What Node opens first takes
 * the lowest number that is free and polls the others, so it lies wherever the caller left a gap.
 *
 * @param image - The image's descriptor, if there is one. Others of the same file may have taken the place of one that a secret was
 * read from.
 */
export function preservedDescriptors(asked: number | readonly number[], image?: number): number[] {
  const descriptors = typeof asked === "number" ? all(asked) : these(asked)
  for (const fd of descriptors)
    if (!isGiven(fd, image))
      throw optionError("preserveFds", `descriptor ${fd} was not given to this process`)
  return descriptors
}

/** Which of this process's descriptors are of this. */
function descriptorsOf(what: string): string[] {
  return readdirSync("/proc/self/fd").filter((name) => {
    try {
      return Number(name) >= FIRST && readlinkSync(`/proc/self/fd/${name}`) === what
    } catch {
      return false // what the folder was read with
    }
  })
}

function isGiven(fd: number, image: number | undefined): boolean {
  const own = image === undefined ? undefined : fstatSync(image, { bigint: true })
  try {
    const { dev, ino } = fstatSync(fd, { bigint: true })
    const what = readlinkSync(`/proc/self/fd/${fd}`)
    if (/^anon_inode:\[(?:eventpoll|eventfd|io_uring)\]$/.test(what)) return false
    // Of a pipe that Node tells itself something through, both ends are here.
    const isPipe = what.startsWith("pipe:")
    return !(dev === own?.dev && ino === own.ino) && !(isPipe && descriptorsOf(what).length > 1)
  } catch {
    return false // it is not open
  }
}
