// Which engine an image gets.
import * as is from "../arguments.ts"
import { closeSync, openSync, readFileSync, statSync } from "node:fs"
import type { LuksPolicy } from "../device/luks-header.ts"
import { DeviceError, EnvironmentError } from "../errors.ts"
import type { ConcreteEngine, StarterSource } from "./starter-protocol.ts"
import type { SifPartition } from "../sif/format.ts"
import type { Bytes } from "../units.ts"
import type { Unlocked } from "../encryption/encryption-format.ts"

/** `auto`: the kernel for root where it can, else user space, and memory where there is no FUSE. */
export type Engine = "auto" | ConcreteEngine

export const engineName: is.Check<Engine> = is.oneOf("auto", "kernel", "userspace", "memory")

/** An opened image as an engine takes it. */
export interface Startable {
  readonly source: StarterSource
  /** Ext3 file systems in the image that would lie over its root. */
  readonly overlays?: readonly SifPartition[] | undefined
  /** What was verified is not to be written to. */
  readonly vouched?: boolean
  /** Go's name of what its programs are for; undefined, or `unknown`: nobody said. */
  readonly architecture?: string | undefined
  /** Of the image, and of what is opened for its payload. */
  readonly policy?: Omit<LuksPolicy, "allowCipher">
}

/** Can user space read it? */
export function isReadable({ source }: Startable): boolean {
  return source.unlocked?.kernelOnly === undefined
}

/** Opening it makes the kernel load the module behind it; a node alone means nothing. */
function answers(device: string): boolean {
  try {
    closeSync(openSync(device, "r+"))
    return true
  } catch {
    return false
  }
}

/** A private /dev may lack the node, which the native side then makes. */
function hasDeviceMapper(): boolean {
  return answers("/dev/mapper/control") || /^\s*\d+ device-mapper$/m.test(readFileSync("/proc/misc", "utf8"))
}

/** What keeps the kernel from mounting images here, or encrypted ones; undefined when nothing obvious does. */
export function kernelObstacle(encrypted: boolean): EnvironmentError | undefined {
  if (process.geteuid?.() !== 0)
    return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", "the kernel engine needs root")
  if (!answers("/dev/loop-control"))
    return new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      "the kernel engine needs loop devices, which are missing here",
    )
  // The capability bounding set of a container may lack it though the user is root.
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0"
  const CAP_SYS_ADMIN = 21n // linux/capability.h
  if (((BigInt(`0x${effective}`) >> CAP_SYS_ADMIN) & 1n) === 0n)
    return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", "the kernel engine needs CAP_SYS_ADMIN")
  // Root of a user namespace may neither attach loop devices nor mount a block device.
  const initial = /^\s*0\s+0\s+4294967295\s*$/.test(readFileSync("/proc/self/uid_map", "utf8"))
  if (!initial)
    return new EnvironmentError(
      "ERR_ENV_NO_PRIVILEGE",
      "the kernel engine needs root outside a user namespace",
    )
  if (encrypted && !hasDeviceMapper())
    return new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      "the kernel engine needs device-mapper with dm-crypt, which is missing here",
    )
  return undefined
}

function obstacleFor(unlocked: Unlocked | undefined): EnvironmentError | undefined {
  if (unlocked === undefined || unlocked.dmCrypt !== undefined) return kernelObstacle(unlocked !== undefined)
  return new EnvironmentError(
    "ERR_ENV_NO_KERNEL_SUPPORT",
    `the image is encrypted with ${unlocked.lock.format.name}, which no kernel reads: only the userspace engine does`,
  )
}

/**
 * Decides between the engines.
 *
 * @param path - Of an image beside the one that is run: messages name it.
 * @throws EnvironmentError when `wanted` cannot work here, `ERR_ENV_NO_KERNEL_SUPPORT` also for a cipher that only the
 * kernel knows where there is no kernel engine.
 */
export function chooseEngine(wanted: Engine, unlocked: Unlocked | undefined, path?: string): ConcreteEngine {
  const own = wanted === "userspace" || wanted === "memory"
  const obstacle = own ? undefined : obstacleFor(unlocked)
  if (wanted === "kernel" && obstacle !== undefined) throw obstacle
  if (wanted === "kernel" || (wanted === "auto" && obstacle === undefined)) return "kernel"
  if (unlocked?.kernelOnly !== undefined)
    throw new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      `${path === undefined ? "" : `${path}: `}the ${own ? wanted : "userspace"} engine does not know the cipher ${unlocked.kernelOnly}`,
      { path },
    )
  return own ? wanted : withoutKernel()
}

const FUSE = (10 << 8) | 229 // linux/miscdevice.h: MISC_MAJOR, FUSE_MINOR

/** Another device in its place, as containers have it, would only be noticed when it is mounted. */
function hasFuse(): boolean {
  return answers("/dev/fuse") && statSync("/dev/fuse").rdev === FUSE
}

/** The engines without the kernel's drivers. */
export type OwnEngine = Exclude<ConcreteEngine, "kernel">

function withoutKernel(): OwnEngine {
  return hasFuse() ? "userspace" : "memory"
}

/** What reads images beside the one that is run, where the kernel does not. */
export function engineBeside(wanted: Engine, engine: ConcreteEngine): OwnEngine {
  if (engine === "memory") return engine
  return wanted === "auto" ? withoutKernel() : "userspace"
}

/** Is it about what this machine lacks, so that another engine may do better? */
export function isAboutMachine(error: unknown): boolean {
  return (
    error instanceof EnvironmentError || (error instanceof DeviceError && error.code.startsWith("ERR_LOOP_"))
  )
}

/** What a loop device can show: it counts in sectors, and leaves out what does not fill one. */
const SECTOR: Bytes = 512

/** A squashfs behind a launch line starts in the middle of one. */
export function fillsSectors({ offset, size }: Pick<StarterSource, "offset" | "size">): boolean {
  return offset % SECTOR === 0 && size % SECTOR === 0
}

function alignmentObstacle(source: StarterSource): EnvironmentError | undefined {
  if (source.folder !== undefined || fillsSectors(source)) return undefined
  const { image } = source
  return EnvironmentError.at(
    image,
    "ERR_ENV_NO_KERNEL_SUPPORT",
    "its file system does not fill whole sectors of a loop device: only the userspace engine reads it",
  )
}

/** The engine for an image, and the one that takes over where that turns out not to work. */
export function enginesFor(wanted: Engine, startable: Startable): ConcreteEngine[] {
  const { source } = startable
  const mayBeKernel = wanted === "auto" || wanted === "kernel"
  const obstacle = mayBeKernel ? alignmentObstacle(source) : undefined
  if (obstacle !== undefined && wanted === "kernel") throw obstacle
  // A folder is there already: nothing serves it, and nothing has to be unpacked.
  const other = source.folder === undefined ? withoutKernel() : "userspace"
  const chosen = chooseEngine(obstacle === undefined ? wanted : other, source.unlocked)
  const engine = chosen === "kernel" || wanted === chosen ? chosen : other
  return wanted === "auto" && engine === "kernel" && isReadable(startable) ? [engine, other] : [engine]
}

/**
 * Starts an image with the engine that is wanted; with `auto` user space takes over where the kernel cannot.
 */
export async function withEngine<T>(
  wanted: Engine,
  startable: Startable,
  start: (engine: ConcreteEngine) => Promise<T>,
): Promise<T> {
  const [engine = "userspace", instead] = enginesFor(wanted, startable)
  try {
    return await start(engine)
  } catch (error) {
    if (instead === undefined || !isAboutMachine(error)) throw error
    return await start(instead)
  }
}
