// One process at a time writes a file, or what lies in a folder.
import { createHash } from "node:crypto"
import { constants, fstatSync } from "node:fs"
import { open, type FileHandle } from "node:fs/promises"
import { setTimeout as sleep } from "node:timers/promises"
import path from "node:path"
import { madeOf } from "../disposal.ts"
import { RunError } from "../errors.ts"
import { loadAddon } from "./load.ts"
import { ownFolder } from "./private-folder.ts"

/** How long to wait for somebody else, and how often to look. */
const PATIENCE_MS = 5000
const PAUSE_MS = 20
/** May be read by its group or by all. */
const FOR_OTHERS = 0o044

/** Where this user's processes lock; undefined: others keep him from having such a place, or nothing can be written. */
async function openOwnLocks(): Promise<FileHandle | undefined> {
  try {
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW
    return await open(path.join(ownFolder("locks"), "files"), flags, 0o600)
  } catch (error) {
    if (error instanceof RunError || (error as NodeJS.ErrnoException).code !== undefined) return undefined
    throw error
  }
}

/** The byte that stands for a file. */
function placeOf(fd: number): number {
  const { dev, ino } = fstatSync(fd, { bigint: true })
  return createHash("sha256").update(`${dev}:${ino}`).digest().readUIntBE(0, 6)
}

/** A folder that is locked until it is disposed of. */
export interface HeldFolder extends AsyncDisposable {
  readonly handle: FileHandle
}

/**
 * Locks a folder until it is disposed of, or this process ends. What others can read they can lock, too, and a folder cannot
 * be open for writing: such a one is locked among the processes of this user.
 *
 * @returns undefined when somebody else has it all the time.
 * @throws System errors; EnvironmentError `ERR_ENV_NO_ADDON`.
 * @see flock(2)
 */
export async function lockFolder(folder: string): Promise<HeldFolder | undefined> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  let own: FileHandle | undefined
  const held: HeldFolder = {
    handle,
    [Symbol.asyncDispose]: async () => {
      await handle.close()
      await own?.close()
    },
  }
  return await madeOf(held, async () => {
    const { mode } = await handle.stat()
    if ((mode & FOR_OTHERS) !== 0) own = await openOwnLocks()
    const among = own && { fd: own.fd, start: placeOf(handle.fd), length: 1, exclusive: true }
    const isMine = async (): Promise<boolean> =>
      among === undefined
        ? await loadAddon().lockFile(handle.fd)
        : (await loadAddon().lockRange(among)) === "none"
    for (let waited = 0; waited < PATIENCE_MS; waited += PAUSE_MS) {
      if (await isMine()) return held
      await sleep(PAUSE_MS)
    }
    return undefined
  })
}

/** A file that is locked for as long as it is open, and this beside it. */
export interface HeldFile extends AsyncDisposable {
  /** Whoever keeps the file open for longer keeps this open, too; undefined: there is none. */
  readonly fd: number | undefined
}

/**
 * Locks an open file until it is closed: one that is `exclusive`, and so open for writing, for itself.
 *
 * Who may only read a file can lock it as well, and would keep all from it who write. So there are two locks: the file's own,
 * which writers do not wait for while none but readers have it, and one among the processes of this user, in a file that only
 * he can open. His own readers are waited for.
 *
 * @returns undefined when somebody else has it all the time.
 * @throws The signal's reason; system errors; EnvironmentError `ERR_ENV_NO_ADDON`.
 * @see fcntl(2), open file description locks
 */
export async function lockOpenFile(
  fd: number,
  exclusive: boolean,
  patienceMs: number = PATIENCE_MS,
  signal?: AbortSignal,
): Promise<HeldFile | undefined> {
  const own = await openOwnLocks()
  const held: HeldFile = {
    fd: own?.fd,
    [Symbol.asyncDispose]: async () => {
      await own?.close()
    },
  }
  return await madeOf(held, async () => {
    const among = own && { fd: own.fd, start: placeOf(fd), length: 1, exclusive }
    let isMine = among === undefined
    for (let waited = 0; ; waited += PAUSE_MS) {
      isMine ||= among !== undefined && (await loadAddon().lockRange(among)) === "none"
      if (isMine) {
        const holder = await loadAddon().lockRange({ fd, start: 0, length: 0, exclusive })
        if (holder === "none" || (holder === "readers" && own !== undefined)) return held
      }
      signal?.throwIfAborted()
      if (waited >= patienceMs) return undefined
      await sleep(PAUSE_MS)
    }
  })
}
