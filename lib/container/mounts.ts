// Mounts that outlive a call: listed from what the kernel knows, so there is no file of ours that could be stale.
import * as is from "../arguments.ts"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { closeSync, constants, openSync, readdirSync, readFileSync, readSync, realpathSync } from "node:fs"
import path from "node:path"
import { DeviceError } from "../errors.ts"
import { loadAddon } from "../native/load.ts"
import { readMounts, type MountEntry } from "../runtime/mountinfo.ts"
import { findProgram } from "../runtime/program.ts"
import { scrubbedEnvironment, type ConcreteEngine } from "../runtime/starter-protocol.ts"
import { HEADER_SIZE, parseHeader } from "../sif/format.ts"

/** One mount of ours. */
export interface MountInfo {
  /** Its absolute path. */
  readonly image: string
  /** The folder, resolved. */
  readonly target: string
  readonly engine: ConcreteEngine
  /** The process that serves it; none for the kernel engine, or when the process is gone. */
  readonly pid: number | undefined
}

const FUSE_TYPE = "fuse.sifcrypt"

function readText(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8").trimEnd()
  } catch {
    return undefined // the process or device went away, or is not ours to look at
  }
}

/** The starter that serves `target`: its command line says so, and readers of /proc see that of any process. */
function servingPid(target: string): number | undefined {
  const found = readdirSync("/proc").filter((name) => {
    if (!/^\d+$/.test(name)) return false
    const args = readText(`/proc/${name}/cmdline`)?.split("\0") ?? []
    return args[0] === "sifcrypt-starter" && args[1] === "mount" && args.includes(`--target=${target}`)
  })
  // The server and its child, the guard that unmounts if the server is killed.
  const parentOf = (name: string): string | undefined =>
    /^PPid:\s*(\d+)$/m.exec(readText(`/proc/${name}/status`) ?? "")?.[1]
  const server = found.find((name) => !found.includes(parentOf(name) ?? ""))
  return server === undefined ? undefined : Number(server)
}

/** Is that file a SIF image? The kernel names the backing file, not who attached it. */
function isSif(file: string): boolean {
  try {
    const fd = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK)
    try {
      const start = Buffer.alloc(HEADER_SIZE)
      readSync(fd, start, 0, start.length, 0)
      parseHeader(start)
      return true
    } finally {
      closeSync(fd)
    }
  } catch {
    return false // gone, unreadable or something else: none of ours
  }
}

/** The file behind a mapping of ours: dm-crypt's, dm-verity's, or one on the other. */
function mappedFile(node: string): string | undefined {
  if (readText(`${node}/dm/name`)?.startsWith("sifcrypt-") !== true) return undefined
  try {
    // Of a hash tree and what it is of, either: they lie in one file.
    const [below] = readdirSync(`${node}/slaves`)
    if (below === undefined) return undefined
    return readText(`/sys/block/${below}/loop/backing_file`) ?? mappedFile(`/sys/block/${below}`)
  } catch {
    return undefined // the mapping went away meanwhile
  }
}

/** The image behind a block device: through our mappings to the loop device, or a loop device alone (a plain image). */
function backingImage(entry: MountEntry): string | undefined {
  const node = `/sys/dev/block/${entry.device}`
  const plain = readText(`${node}/loop/backing_file`)
  if (plain !== undefined) return isSif(plain) ? plain : undefined
  return mappedFile(node)
}

function infoOf(entry: MountEntry): MountInfo | undefined {
  const { target } = entry
  if (entry.type === FUSE_TYPE)
    return { image: entry.source, target, engine: "userspace", pid: servingPid(target) }
  if (entry.type !== "squashfs") return undefined
  const image = backingImage(entry)
  return image === undefined ? undefined : { image, target, engine: "kernel", pid: undefined }
}

/**
 * The mounts of images that this process can see, in the order they were made. A plain image that the kernel mounts from a
 * loop device looks the same whoever mounted it, and is among them.
 */
export function listMounts(): Promise<readonly MountInfo[]> {
  return Promise.resolve().then(() => readMounts().flatMap((entry) => infoOf(entry) ?? []))
}

function realTarget(target: string): string {
  try {
    return realpathSync(target)
  } catch {
    // A dead FUSE mount answers ENOTCONN; its parent can still be resolved.
    const absolute = path.resolve(target)
    try {
      return path.join(realpathSync(path.dirname(absolute)), path.basename(absolute))
    } catch {
      return absolute
    }
  }
}

async function fusermount(target: string): Promise<void> {
  const child = spawn(findProgram("fusermount3", "it unmounts"), ["-u", "--", target], {
    stdio: ["ignore", "ignore", "pipe"],
    env: scrubbedEnvironment,
  })
  let message = ""
  child.stderr.on("error", () => undefined) // its status says how it went
  child.stderr.on("data", (chunk: Buffer) => {
    message += chunk.toString("utf8")
  })
  const [code] = (await once(child, "close")) as [number | null]
  if (code === 0) return
  throw new DeviceError(
    /busy/i.test(message) ? "ERR_MOUNT_BUSY" : "ERR_MOUNT",
    `cannot unmount ${target}: ${message.trim() || `fusermount3 ended with status ${String(code)}`}`,
    { path: target },
  )
}

/** The device number of what is mounted topmost on a folder; undefined when nothing is. */
export function mountDevice(target: string): string | undefined {
  return topmost(target)?.device
}

/** What one sees at `target`: mounts cover one another, and only the last can be taken away. */
function topmost(target: string): MountEntry | undefined {
  return readMounts().findLast((entry) => entry.target === target)
}

/**
 * Why somebody cannot mount on a folder: what is mounted there already may be why, of which an error of the system's says nothing. Only a
 * file system of FUSE: it may be dead or let nobody else look into it, and fusermount3 covers none. All others can be mounted over.
 */
export function coveredError(target: string, cause: unknown): unknown {
  const there = topmost(realTarget(target))
  return there?.type.startsWith("fuse") !== true
    ? cause
    : DeviceError.at(target, "ERR_MOUNT_BUSY", `${there.source} is mounted there already`, { cause })
}

/**
 * Takes a mount of ours away.
 *
 * @param device - Only if it is this one: the number of its device as /proc/self/mountinfo has it.
 * @throws DeviceError `ERR_MOUNT_NOT_OURS`, `ERR_MOUNT_BUSY`, `ERR_MOUNT`; EnvironmentError.
 */
export async function unmount(target: string, device?: string): Promise<void> {
  is.path(target, "target")
  if (device !== undefined) is.text(device, "device")
  const real = realTarget(target)
  const top = topmost(real)
  const ours = top !== undefined && infoOf(top) !== undefined
  if (!ours || (device !== undefined && device !== top.device))
    throw new DeviceError("ERR_MOUNT_NOT_OURS", `${target} is no mount of sifcrypt`, { path: target })
  if (process.geteuid?.() !== 0) {
    await fusermount(real)
    return
  }
  try {
    await loadAddon().unmountPath({ path: real, lazy: false })
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    throw new DeviceError(
      code === "EBUSY" ? "ERR_MOUNT_BUSY" : "ERR_MOUNT",
      `cannot unmount ${target}: ${code === "EBUSY" ? "it is in use" : message}`,
      { path: target, cause },
    )
  }
}
