// A container that several commands are in, and that lives as long as one of them does. There is no first among them: whoever finds none
// starts it, and from then on is one like the others (native/starter/seats.cc).
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import type { HeldKey } from "../encryption/encryption-format.ts"
import { RunError } from "../errors.ts"
import { loadAddon } from "../native/load.ts"
import { heldKeyNote, lockShared, sharedFolder } from "../runtime/sharing.ts"
import { letGo, startStarter, type Starter } from "../runtime/starter.ts"
import type { Launch } from "../runtime/starter-protocol.ts"
import { stays } from "./container-processes.ts"
import { startTimeOf } from "./instance-state.ts"

/** A place in a container that is shared. */
export interface Seat {
  /** It lives as long as somebody has such a descriptor open. */
  readonly fd: number
  /** Its starter. */
  readonly pid: number
}

const LOCK = ".lock" // native/starter/seats.cc
const PAUSE_MS = 10
/** Somebody else starts it, or comes in, meanwhile. */
const PATIENCE_MS = 600_000

/** Is it still the file of this name? */
function isThere(file: string, fd: number): boolean {
  const { dev, ino } = fstatSync(fd)
  const found = statSync(file, { throwIfNoEntry: false })
  return found?.dev === dev && found.ino === ino
}

/** The descriptor of a lock that this process has; undefined: somebody else has it. */
async function tryLock(file: string): Promise<number | undefined> {
  const fd = openSync(file, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
  try {
    // Who leaves removes it.
    if ((await lockShared(fd, path.dirname(file))) && isThere(file, fd)) return fd
  } catch (error) {
    closeSync(fd)
    // Nobody can lock it, so nobody has.
    if (error instanceof RunError) rmSync(file, { force: true })
    throw error
  }
  closeSync(fd)
  return undefined
}

async function lock(file: string, signal: AbortSignal | undefined): Promise<number> {
  // Asked for when there is something to wait for: the clock is a module that takes a millisecond to load.
  let late: number | undefined
  for (;;) {
    const fd = await tryLock(file)
    if (fd !== undefined) return fd
    signal?.throwIfAborted()
    late ??= performance.now() + PATIENCE_MS
    if (performance.now() > late)
      throw RunError.at(file, "ERR_INSTANCE_FOLDER", "another process has locked it")
    await sleep(PAUSE_MS)
  }
}

/** "strange": it is another user's, or is in a process namespace that is not seen from here. */
function connect(folder: number, name: string): Seat | "strange" | undefined {
  const addon = loadAddon()
  const fd = addon.connectIn({ folder, name })
  if (fd === undefined) return undefined
  const { uid, pid } = addon.peerOf({ fd })
  if (uid === process.geteuid?.() && pid > 1) return { fd, pid }
  closeSync(fd)
  return "strange"
}

function connectOwn(folder: number, name: string): Seat | undefined {
  const seat = connect(folder, name)
  if (seat !== "strange") return seat
  throw new RunError("ERR_RUN", "what is shared is another user's, or cannot be seen from here")
}

/** Removes what is left of those whose starter was killed. */
async function clearUp(folder: string, handle: number, own: string): Promise<void> {
  rmSync(path.join(folder, own), { force: true })
  const files = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile())
  for (const { name: file } of files) {
    if (!file.endsWith(LOCK) || file === `${own}${LOCK}`) continue
    const fd = await tryLock(path.join(folder, file))
    if (fd === undefined) continue
    const name = file.slice(0, -LOCK.length)
    try {
      const there = connect(handle, name)
      if (there === undefined)
        for (const left of [name, file]) rmSync(path.join(folder, left), { force: true })
      else if (there !== "strange") closeSync(there.fd)
    } catch (error) {
      // It is stopped, and has a queue.
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error
    } finally {
      closeSync(fd)
    }
  }
}

/** One that has started. */
export interface StartedShared {
  readonly starter: Starter
  /** What the lock is to say. */
  readonly note: string | undefined
}

/** Starts one; resolves when commands can join it. */
export async function startShared(
  launch: Launch,
  bundle: Promise<Buffer>,
  place: string,
  held: HeldKey | undefined,
): Promise<StartedShared> {
  const file = held && loadAddon().memoryFile({ name: "held", bytes: held.sealed })
  let heldAt = -1
  let starter: Starter
  try {
    // Until somebody is in it, it ends with this process.
    starter = startStarter({
      launch: {
        ...launch,
        compose: (descriptors) => {
          const words = [...launch.compose(descriptors), `--shared=${place}`]
          if (file === undefined) return words
          heldAt = descriptors.share(file)
          return [...words, `--held-fd=${heldAt}`]
        },
      },
      bundle,
      attached: "at first",
      stdio: ["ignore", "ignore", "ignore"],
    })
  } finally {
    if (file !== undefined) closeSync(file)
  }
  try {
    const [pid] = await Promise.all([starter.ready, bundle])
    const startTime = startTimeOf(pid)
    if (startTime === undefined || !(await stays(pid, startTime))) {
      await starter.ended
      throw new RunError("ERR_RUN", `${launch.image}: the shared container ended at once`)
    }
    return { starter, note: held && heldKeyNote(held.id, pid, heldAt) }
  } catch (error) {
    letGo(starter)
    throw error
  }
}

/**
 * A place in the container of this name, which is started where there is none.
 *
 * @param start - Is told where its socket is to be.
 * @throws What keeps it from being started; RunError `ERR_INSTANCE_FOLDER`; the signal's reason.
 */
export async function takeSeat(
  name: string,
  start: (place: string) => Promise<StartedShared>,
  signal?: AbortSignal,
): Promise<Seat> {
  const folder = sharedFolder()
  const place = path.join(folder, name)
  const held = await lock(`${place}${LOCK}`, signal)
  const handle = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  let seat: Seat | undefined
  try {
    seat = connectOwn(handle, name)
    if (seat !== undefined) return seat
    await clearUp(folder, handle, name)
    const { starter, note } = await start(place)
    seat = connectOwn(handle, name)
    if (note !== undefined) {
      ftruncateSync(held)
      writeSync(held, note, 0)
    }
    letGo(starter)
    if (seat === undefined) throw new RunError("ERR_RUN", "the shared container ended at once")
    return seat
  } finally {
    if (seat === undefined) rmSync(`${place}${LOCK}`, { force: true })
    closeSync(handle)
    closeSync(held)
  }
}
