// What two payloads have to have in common to be in one container: everything that it is made of, who they are, and what they belong to.
import { createHash, createHmac, randomBytes } from "node:crypto"
import {
  closeSync,
  constants,
  fstatSync,
  linkSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { callerEnvironment } from "../caller-environment.ts"
import { plainRange, type FindHeldKey } from "../encryption/encryption-format.ts"
import { RunError } from "../errors.ts"
import { loadAddon, starterPath } from "../native/load.ts"
import { ownFolder, ownFolderThere, readOwn } from "../native/private-folder.ts"
import type { Place } from "./binds.ts"
import { launchSession } from "./launcher.ts"
import { execOptionTable, optionError, type ExecOptionRow, type ExecOptions } from "./options.ts"
import { hasLimits } from "./resources.ts"
import type { StarterSource } from "./starter-protocol.ts"
import type { Bytes } from "../units.ts"

/**
 * Where the sockets of this user's shared containers are.
 *
 * @throws RunError `ERR_INSTANCE_FOLDER`.
 */
export function sharedFolder(): string {
  return ownFolder("shared")
}

const MAX_NOTE: Bytes = 200
const MAX_HELD: Bytes = 4096
const lockSuffix = ".lock" // native/starter/seats.cc

/** What the lock of a shared container says of the key that its starter holds for those who can open it as well. */
export function heldKeyNote(id: string, pid: number, fd: number): string {
  return `${id} ${pid} ${fd}`
}

/** A number of a process, or of a descriptor. */
const NUMBER = /^\d{1,10}$/

/** What shared containers of this user's hold, by its name; undefined: nothing. */
export function heldKeys(): FindHeldKey | undefined {
  let folder: string | undefined
  let names: readonly string[]
  try {
    folder = ownFolderThere("shared")
    if (folder === undefined) return undefined
    names = readdirSync(folder)
  } catch {
    return undefined // what only saves time keeps no image from being opened
  }
  const places = new Map<string, string>()
  for (const name of names) {
    const note = name.endsWith(lockSuffix) ? readOwn(path.join(folder, name), MAX_NOTE) : undefined
    const [id = "", pid = "", fd = ""] = note?.split(" ") ?? []
    if (NUMBER.test(pid) && NUMBER.test(fd)) places.set(id, `/proc/${pid}/fd/${fd}`)
  }
  if (places.size === 0) return undefined
  return (id) => {
    const place = places.get(id)
    if (place === undefined) return undefined
    try {
      // Of its own memory. Whatever else it may be by now has not been sealed under this secret; but to open what is no file may do
      // something, and some files of the kernel's have no end, and no size.
      if (!statSync(place).isFile()) return undefined
      const held = openSync(place, constants.O_RDONLY | constants.O_NONBLOCK)
      try {
        const { size } = fstatSync(held)
        if (size === 0 || size > MAX_HELD) return undefined
        const bytes = Buffer.alloc(size)
        return readSync(held, bytes, 0, size, 0) === size ? bytes : undefined
      } finally {
        closeSync(held)
      }
    } catch {
      return undefined // it has ended, or is not to be looked at: then the key is found without it
    }
  }
}

/** Why it has to be alone. */
function obstacleToSharing(options: ExecOptions, places: readonly Place[]): string | undefined {
  if (options.writable === true) return "what is written into the image itself is written by one alone"
  if ((options.overlay ?? []).length > 0) return "an overlay is one command's"
  if (places.some((place) => place.source !== undefined && place.image !== undefined))
    return "what is bound out of an image is one command's"
  if (options.applyCgroups !== undefined || hasLimits(options)) return "limits are one command's"
  return undefined
}

/** What flock(2) says where a file system, one of the network's, has no locks. */
const withoutLocks: readonly (string | undefined)[] = ["ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"]

/**
 * Locks a file, or a folder, where the sockets are.
 *
 * @returns false: somebody else has it.
 * @throws RunError `ERR_RUN_OPTION` where nothing can be locked.
 */
export async function lockShared(fd: number, place: string): Promise<boolean> {
  try {
    return await loadAddon().lockFile(fd)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (!withoutLocks.includes(code)) throw error
    throw optionError(
      "sharens",
      `${place} is on a file system without locks (${code ?? ""}): XDG_RUNTIME_DIR can name a folder of this machine`,
    )
  }
}

/** Where it is not asked for, what keeps commands from finding each other here is no reason to fail. */
async function canMeet(): Promise<boolean> {
  try {
    const folder = sharedFolder()
    const fd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY)
    try {
      await lockShared(fd, folder)
      return true
    } finally {
      closeSync(fd)
    }
  } catch (error) {
    if (error instanceof RunError || (error as NodeJS.ErrnoException).code !== undefined) return false
    throw error
  }
}

/**
 * What it belongs to with all those that it may share a container with; undefined: it is alone.
 *
 * @throws RunError `ERR_RUN_OPTION` for what has to be alone and is not to be.
 */
export async function sharingSession(
  options: ExecOptions,
  places: readonly Place[],
): Promise<string | undefined> {
  if (options.noSharens === true || options.sharens === false) return undefined
  const { name, isParallel } = launchSession(callerEnvironment())
  const isAsked = options.sharens === true
  if (!isAsked && !isParallel) return undefined
  const obstacle = obstacleToSharing(options, places)
  if (isAsked && obstacle !== undefined) throw optionError("sharens", obstacle)
  return obstacle === undefined && (isAsked || (await canMeet())) ? name : undefined
}

const SECRET = "secret"
const SECRET_SIZE: Bytes = 32

/** undefined: there is none. */
function readSecret(file: string): Buffer | undefined {
  let fd: number
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined
    throw error
  }
  try {
    const { uid, mode, size } = fstatSync(fd)
    const isOwn = (mode & constants.S_IFMT) === constants.S_IFREG && uid === process.geteuid?.()
    if (!isOwn || (mode & 0o077) !== 0 || size !== SECRET_SIZE)
      throw new RunError(
        "ERR_INSTANCE_FOLDER",
        `${file}: not a file of ${SECRET_SIZE} bytes for you alone (mode 0600)`,
        { path: file },
      )
    return readFileSync(fd)
  } finally {
    closeSync(fd)
  }
}

/**
 * This user's, on this machine, and no program's of another's. The name of a shared container is seen by all; with it they cannot try out of
 * what it was made.
 */
function sharingSecret(): Buffer {
  const file = path.join(sharedFolder(), SECRET)
  const found = readSecret(file)
  if (found !== undefined) return found
  const unfinished = `${file}.${randomBytes(8).toString("hex")}`
  try {
    writeFileSync(unfinished, randomBytes(SECRET_SIZE), { flag: "wx", mode: 0o600 })
    // Whoever is first: all have what is there then.
    linkSync(unfinished, file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error
  } finally {
    rmSync(unfinished, { force: true })
  }
  return sharingSecret()
}

/** Of the process: who it is, and what it may. */
const statusLines = /^(?:Uid|Gid|Groups|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters):.*$/gm

/** The label of a security module; empty: there is none. */
function ownLabel(): string {
  try {
    return readFileSync("/proc/self/attr/current", "latin1")
  } catch {
    return ""
  }
}

/** Which file it is, as it is now. */
function identityOf(fd: number | string): readonly string[] {
  const found = typeof fd === "number" ? fstatSync(fd, { bigint: true }) : statSync(fd, { bigint: true })
  const { dev, ino, size, mtimeNs, ctimeNs } = found
  return [dev, ino, size, mtimeNs, ctimeNs].map(String)
}

/** Which one this process is in; empty: this kernel has none of this kind. */
function namespaceOf(kind: string): string {
  try {
    return readlinkSync(`/proc/self/ns/${kind}`)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return ""
    throw error
  }
}

/** The process itself, and what it sees of the machine. */
function ownFacts(): readonly unknown[] {
  // One by one: a process that nobody may look into cannot list its own.
  const namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"].map(namespaceOf)
  const { dev, ino } = statSync("/", { bigint: true })
  return [
    namespaces,
    [String(dev), String(ino)],
    readFileSync("/proc/self/status", "latin1").match(statusLines),
    ownLabel(),
    identityOf(starterPath()),
  ]
}

/** A folder changes while it is used, and is what it is all the same. */
function imageFacts(source: StarterSource): readonly unknown[] {
  const { offset, size, verity, segment } = plainRange(source, source, source.unlocked)
  return [
    identityOf(source.fd).slice(0, source.folder === undefined ? undefined : 2),
    offset,
    size,
    verity,
    segment,
  ]
}

/** Of what is asked for, all that is not about the command alone. */
function optionFacts(options: ExecOptions): readonly unknown[] {
  const rows = Object.entries<ExecOptionRow>(execOptionTable)
  const own = new Set(["sharens", "noSharens", "preserveFds"])
  const common = rows.flatMap(([key, [, , , more]]) => (more?.joins === true || own.has(key) ? [] : [key]))
  return [...common, "files", "cacheSize"].map((key) => [key, options[key as keyof ExecOptions]])
}

/** Bytes by their digest: a file that is given along may be a secret. (A Buffer's `value` is its numbers already.) */
function plainly(this: Readonly<Record<string, unknown>>, key: string, value: unknown): unknown {
  const own = this[key]
  if (own instanceof Uint8Array) return createHash("sha256").update(own).digest("hex")
  return value instanceof Map ? [...value] : value
}

/**
 * The same for those who may share a container, and for nobody else. It takes the image's key to say it, or this user's secret where the
 * image has none: who cannot open the image cannot name what is shared, and who sees the name cannot try out of what it was made.
 *
 * @param composed - What comes of the options on this machine.
 * @throws RunError `ERR_INSTANCE_FOLDER`.
 */
export function sharingDigest(
  source: StarterSource,
  options: ExecOptions,
  session: string,
  composed: readonly unknown[],
): string {
  const facts = [session, ownFacts(), imageFacts(source), optionFacts(options), composed]
  const text = JSON.stringify(facts, plainly)
  const nameUnder = (key: Uint8Array): string => createHmac("sha256", key).update(text).digest("hex")
  if (source.unlocked !== undefined) return nameUnder(source.unlocked.dataKey.bytes)
  const secret = sharingSecret()
  try {
    return nameUnder(secret)
  } finally {
    secret.fill(0)
  }
}
