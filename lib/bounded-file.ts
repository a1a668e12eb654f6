// Files that somebody names: keys, certificates, credentials, configurations. A file, a device or a pipe is read to its end, and no
// further than a limit; what waits for a pipe can be told to stop. A leaf: anyone may import it.
import { closeSync, constants, fstatSync, openSync, readSync, type Stats } from "node:fs"
import { open } from "node:fs/promises"
import { setTimeout } from "node:timers/promises"
import type { Bytes } from "./units.ts"

/** There are more bytes than were asked for. */
export class TooLarge extends Error {
  constructor(limit: Bytes) {
    super(`more than ${limit} bytes`)
  }
}

/** How a file is read. */
export interface BoundedReadOptions {
  /** For open(2), besides O_RDONLY. */
  readonly flags?: number | undefined
  /** Looks at what was opened, before anything is read, and throws where that will not do. */
  readonly check?: ((info: Stats) => void) | undefined
  /** Ends the wait for a pipe. */
  readonly signal?: AbortSignal | undefined
}

const PIPE_POLL_MS = 20
/** Where nothing else can be done meanwhile, a pipe is waited for so long. */
const MAX_BLOCKED_MS = 2000

/** Nothing that is read is left behind: it may be a secret. Bytes of a buffer of its own. */
function collector(size: Bytes, limit: Bytes): { buffer: Buffer; take: (used: number) => Buffer } {
  const buffer = Buffer.from(new ArrayBuffer(size > 0 && size <= limit ? size + 1 : limit + 1))
  return {
    buffer,
    take: (used) => {
      const bytes = Buffer.from(new ArrayBuffer(used))
      buffer.copy(bytes, 0, 0, used)
      return bytes
    },
  }
}

/** Nothing has come yet: the system says so, or a pipe that nobody has written to. */
function mustWait(outcome: number | NodeJS.ErrnoException, used: number, isPipe: boolean): boolean {
  if (typeof outcome === "number") return outcome === 0 && used === 0 && isPipe
  return outcome.code === "EAGAIN"
}

const errnoOf = (error: unknown): NodeJS.ErrnoException => error as NodeJS.ErrnoException

/**
 * All of a file. Its bytes may be a secret: the caller wipes them then.
 *
 * @throws {@link TooLarge}; the signal's reason; system errors.
 */
export async function readBounded(
  file: string,
  limit: Bytes,
  { flags = 0, check, signal }: BoundedReadOptions = {},
): Promise<Buffer> {
  signal?.throwIfAborted()
  // Otherwise a pipe that nobody writes to would keep a thread, and nothing could get it back.
  await using handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK | flags)
  // The system has just looked at it: it waits for nothing.
  const info = fstatSync(handle.fd)
  check?.(info)
  const { buffer, take } = collector(info.isFile() ? info.size : 0, limit)
  let used = 0
  try {
    for (;;) {
      const outcome = await handle
        .read(buffer, used, buffer.length - used, null)
        .then(({ bytesRead }) => bytesRead, errnoOf)
      if (mustWait(outcome, used, info.isFIFO())) {
        await setTimeout(PIPE_POLL_MS, undefined, { signal }).catch(() => undefined)
        signal?.throwIfAborted()
      } else if (typeof outcome !== "number") throw outcome
      else if (outcome === 0) return take(used)
      else if ((used += outcome) > limit) throw new TooLarge(limit)
      // What was asked for is one byte more than there is.
      else if (info.isFile() && used === info.size) return take(used)
    }
  } finally {
    buffer.fill(0, 0, used)
  }
}

/** The same where nothing can be awaited; a pipe has two seconds. */
export function readBoundedSync(file: string, limit: Bytes): Buffer {
  const fd = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const info = fstatSync(fd)
    const { buffer, take } = collector(info.isFile() ? info.size : 0, limit)
    const pause = new Int32Array(new SharedArrayBuffer(4))
    let used = 0
    for (let waited = 0; ;) {
      const outcome = readNow(fd, buffer, used)
      if (mustWait(outcome, used, info.isFIFO())) {
        if (waited >= MAX_BLOCKED_MS) throw new Error("nothing comes through the pipe")
        Atomics.wait(pause, 0, 0, PIPE_POLL_MS)
        waited += PIPE_POLL_MS
      } else if (typeof outcome !== "number") throw outcome
      else if (outcome === 0) return take(used)
      else if ((used += outcome) > limit) throw new TooLarge(limit)
    }
  } finally {
    closeSync(fd)
  }
}

function readNow(fd: number, buffer: Buffer, used: number): number | NodeJS.ErrnoException {
  try {
    return readSync(fd, buffer, used, buffer.length - used, null)
  } catch (error) {
    return errnoOf(error)
  }
}
