// Descriptors of the caller's that the payload gets, under the numbers that they have.
import { fstatSync, readlinkSync } from "node:fs"
import { optionError } from "./options.ts"

const FIRST = 3
const MAX = 1024 // native/starter/options.cc

/**
 * The descriptors that `preserveFds` asks for: all are open, and none is this package's or Node's. What Node opens first takes
 * the lowest number that is free and polls the others, so it lies wherever the caller left a gap.
 *
 * @param image - The image's descriptor. Others of the same file may have taken the place of one that a secret was read from.
 */
export function preservedDescriptors(count: number, image: number): number[] {
  if (!Number.isInteger(count) || count < 0 || count > MAX)
    throw optionError("preserveFds", `${count} is no number from 0 to ${MAX}`)
  const descriptors = Array.from({ length: count }, (_, i) => FIRST + i)
  for (const fd of descriptors)
    if (!isGiven(fd, image))
      throw optionError("preserveFds", `descriptor ${fd} was not given to this process`)
  return descriptors
}

function isGiven(fd: number, image: number): boolean {
  const own = fstatSync(image, { bigint: true })
  try {
    const { dev, ino } = fstatSync(fd, { bigint: true })
    return (
      !(dev === own.dev && ino === own.ino) &&
      readlinkSync(`/proc/self/fd/${fd}`) !== "anon_inode:[eventpoll]"
    )
  } catch {
    return false // it is not open
  }
}
