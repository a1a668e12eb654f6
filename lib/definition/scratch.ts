// Where root file systems lie while a definition file is built: the policy. Nothing of them is to be on a disk in plain.
import { accessSync, constants, realpathSync, statfsSync } from "node:fs"
import { tmpdir } from "node:os"
import { kernelObstacle } from "../runtime/engine.ts"
import { freeMemory } from "../device/memory.ts"
import { BuildError, EnvironmentError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/**
 * `kernel`: a throw-away LUKS2 volume, root only. `userspace`: memory, and what does not fit in an encrypted file. `memory`: nothing
 * else. `auto`: the first of these three that this machine has.
 */
export type ScratchKind = "auto" | "kernel" | "userspace" | "memory"

/** How {@link ScratchKind} is chosen and bounded. */
export interface ScratchOptions {
  /** Default: `auto`. */
  readonly scratch?: ScratchKind | undefined
  /** Most memory that the root file systems under construction may take, bytes. Default: three quarters of what is free. */
  readonly scratchMemory?: Bytes | undefined
  /** Most room that their encrypted part may take on the disk. Default: nine tenths of what is free. */
  readonly scratchDisk?: Bytes | undefined
  /** Where the encrypted part lies, in an unnamed file. Default: TMPDIR, /tmp, or /var/tmp where that is memory. */
  readonly tmpFolder?: string | undefined
  /**
   * They lie in an ordinary folder below `tmpFolder` instead, readable for root and whoever gets the disk; it is left if all
   * processes of the build are killed at once.
   */
  readonly plainScratch?: boolean | undefined
}

/** What a workspace is told. */
export type Scratch =
  | { readonly kind: "kernel"; readonly folder: string; readonly disk: Bytes }
  | { readonly kind: "userspace"; readonly folder: string; readonly disk: Bytes; readonly memory: Bytes }
  | { readonly kind: "memory"; readonly memory: Bytes }
  | { readonly kind: "plain"; readonly folder: string }

const MIN_MEMORY: Bytes = 64 << 20
const TMPFS_MAGIC = 0x01021994 // linux/magic.h
const FUSE_DEVICE = "/dev/fuse"

function isMemory(folder: string): boolean {
  try {
    return statfsSync(folder).type === TMPFS_MAGIC
  } catch {
    return false // Whoever uses it is told why that does not work.
  }
}

/** The folder of temporary files. */
export function temporaryFolder({ tmpFolder }: ScratchOptions): string {
  let folder = tmpFolder ?? tmpdir()
  if (tmpFolder === undefined && isMemory(folder) && isUsable("/var/tmp") && !isMemory("/var/tmp"))
    folder = "/var/tmp"
  try {
    return realpathSync(folder)
  } catch (cause) {
    throw new BuildError(
      "ERR_BUILD_SCRATCH",
      `cannot use ${folder} for temporary files: ${(cause as Error).message}`,
      {
        path: folder,
        cause,
      },
    )
  }
}

function isUsable(file: string): boolean {
  try {
    accessSync(file, constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

/**
 * The kinds of scratch to try, best first.
 *
 * @throws EnvironmentError when the kind that is wanted cannot work here; BuildError `ERR_BUILD_SCRATCH`; RangeError.
 */
export function scratchesFor(options: ScratchOptions): [Scratch, ...Scratch[]] {
  const { scratch: wanted = "auto", scratchMemory, scratchDisk } = options
  for (const size of [scratchMemory, scratchDisk])
    if (size !== undefined && !(Number.isSafeInteger(size) && size > 0))
      throw new RangeError(`a scratch of ${size} bytes is not possible`)
  const memory = scratchMemory ?? Math.max(MIN_MEMORY, Math.floor((freeMemory()?.bytes ?? 1 << 30) * 0.75))
  if (wanted === "memory") return [{ kind: "memory", memory }]
  const folder = temporaryFolder(options)
  const { bavail, bsize } = statfsSync(folder)
  const disk = scratchDisk ?? Math.floor(bavail * bsize * 0.9)
  const kernel = { kind: "kernel", folder, disk } as const
  const userspace = { kind: "userspace", folder, disk, memory } as const
  if (wanted === "kernel") {
    const obstacle = kernelObstacle(true)
    if (obstacle !== undefined) throw obstacle
    return [kernel]
  }
  const served = isUsable(FUSE_DEVICE)
  if (wanted === "userspace") {
    if (served) return [userspace]
    throw new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      `${FUSE_DEVICE} cannot be opened, by which the scratch is served`,
    )
  }
  const others: [Scratch, ...Scratch[]] = served
    ? [userspace, { kind: "memory", memory }]
    : [{ kind: "memory", memory }]
  return kernelObstacle(true) === undefined ? [kernel, ...others] : others
}
