// LUKS2 keyslots through libcryptsetup: one call at a time, and the library's errno in this package's words.
import { constants } from "node:os"
import { EnvironmentError, LuksError } from "../errors.ts"
import type { NativeKdf, NativeVerity } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes, KdfLimits, Milliseconds } from "../units.ts"
import { planLuksChange, requireRoom, type LuksChange } from "./luks-change.ts"
import {
  derivationCost,
  encodeForChange,
  passCost,
  type LuksHeader,
  type LuksKeyslot,
} from "./luks-header.ts"
import { changedBlock } from "./verity.ts"
import { limitError } from "./limits.ts"
import { freeMemory, requireMemory, type FreeMemory } from "./memory.ts"

/** Bytes of the header that we write: both metadata copies and the keyslots area. */
export const LUKS_HEADER_SIZE: Bytes = 4 * 1024 * 1024

/** For a secret that is random itself: the smallest cost that LUKS2 knows. */
export const RANDOM_SECRET_KDF: NativeKdf = { type: "pbkdf2", iterations: 1000, memory: 0, parallel: 0 }

/** For a passphrase: the same wherever an image is built, so that a small node can open what a large one made. */
export const PASSPHRASE_KDF: NativeKdf = { type: "argon2id", iterations: 4, memory: 256 * 1024, parallel: 4 }

/** For a passphrase where only FIPS-approved functions may be used. */
export const FIPS_PASSPHRASE_KDF: NativeKdf = {
  type: "pbkdf2",
  iterations: 2_000_000,
  memory: 0,
  parallel: 0,
}

/** What {@link formatLuks} makes. */
export interface LuksFormatOptions {
  readonly keyslots: readonly { readonly secret: Uint8Array; readonly kdf: NativeKdf }[]
  /** Default 4096. */
  readonly sectorSize?: Bytes | undefined
  /** Default 64: AES-256-XTS. */
  readonly volumeKeySize?: Bytes | undefined
  /** Default {@link LUKS_HEADER_SIZE}. */
  readonly headerSize?: Bytes | undefined
}

/** What {@link changeKeyslots} does. */
export interface LuksChangeOptions {
  /** As it was read from the image. */
  readonly header: LuksHeader
  readonly volumeKey: Uint8Array
  readonly add?: readonly { readonly secret: Uint8Array; readonly kdf: NativeKdf }[] | undefined
  /** Numbers of keyslots. One at least must be left, or added. */
  readonly remove?: readonly number[] | undefined
}

/** What {@link unlockLuks} opens. */
export interface LuksUnlockOptions {
  /** The image, open for reading. */
  readonly fd: number
  /** Where the partition starts in it. */
  readonly offset: Bytes
  readonly header: LuksHeader
  /** With this the keyslots are verified when they are read. */
  readonly verity?: NativeVerity | undefined
  readonly secret: Uint8Array
  /** Only this keyslot; default: each in turn. */
  readonly keyslot?: number | undefined
  /** For messages. */
  readonly path?: string | undefined
}

interface SystemFailure extends Error {
  readonly errno: number
  readonly syscall: string
}

function isSystemFailure(cause: unknown): cause is SystemFailure {
  return cause instanceof Error && "errno" in cause && typeof cause.errno === "number" && "syscall" in cause
}

function errnoOf(cause: unknown): number {
  return isSystemFailure(cause) ? -cause.errno : 0
}

/** ELIBACC, which node:os does not list. */
const ELIBACC = 79
const { ENOENT, ENOMEM, ENOSPC, ENOSYS, ENOTSUP, EPERM } = constants.errno

type Meaning = readonly [code: LuksError["code"], message: string]

const unlocking: Readonly<Record<number, Meaning>> = {
  [EPERM]: ["ERR_LUKS_PASSPHRASE", "the secret opens no keyslot"],
  [ENOENT]: ["ERR_LUKS_UNSUPPORTED", "each keyslot of the LUKS2 header is marked to be ignored (priority 0)"],
}
const changing: Readonly<Record<number, Meaning>> = {
  [EPERM]: ["ERR_LUKS_HEADER", "the volume key is not the one of this LUKS2 header"],
  [ENOSPC]: ["ERR_LUKS_FULL", "the metadata of the LUKS2 header has no room for another keyslot"],
}

/** What any operation of the library can meet. */
const missing: Readonly<Record<number, (because: string) => readonly [EnvironmentError["code"], string]>> = {
  [ELIBACC]: (because) => ["ERR_ENV_NO_LIBRARY", `libcryptsetup cannot be used: ${because}`],
  [ENOMEM]: () => ["ERR_ENV_NO_MEMORY", "no memory for the key derivation"],
  [ENOTSUP]: (because) => ["ERR_ENV_NO_KERNEL_SUPPORT", `LUKS2 needs what is missing here: ${because}`],
  [ENOSYS]: (because) => ["ERR_ENV_NO_KERNEL_SUPPORT", `LUKS2 needs what is missing here: ${because}`],
}

/** The library allows one call at a time, and each holds one of Node's four pool threads: so they wait here, not there. */
let last: Promise<unknown> = Promise.resolve()

function inTurn<T>(operation: () => Promise<T>): Promise<T> {
  const result = last.then(operation)
  last = result.then(
    () => undefined,
    () => undefined,
  )
  return result
}

/**
 * Makes a LUKS2 header in memory: aes-xts-plain64, one segment from its end on.
 *
 * @returns The header, mostly zeros (write it with holes), and the volume key, which the caller wipes.
 * @throws LuksError `ERR_LUKS_FORMAT`; EnvironmentError when libcryptsetup, memory or a descriptor is missing.
 */
export function formatLuks(
  options: LuksFormatOptions,
): Promise<{ readonly header: Buffer; readonly volumeKey: Buffer }> {
  const { keyslots, sectorSize = 4096, volumeKeySize = 64, headerSize = LUKS_HEADER_SIZE } = options
  return inTurn(async () => {
    const memory = Math.max(0, ...keyslots.map(({ kdf }) => kdf.memory))
    if (memory > 0) requireMemory(memory, "a keyslot", freeMemory())
    try {
      return await loadAddon().luksFormat({ keyslots, sectorSize, volumeKeySize, headerSize })
    } catch (cause) {
      throw translated(cause, ["ERR_LUKS_FORMAT", "cannot make a LUKS2 header"])
    }
  })
}

/** What is longer than this is told before: about what we make ourselves takes. */
export const QUICK: Pick<KdfLimits, "work" | "iterations"> = { work: 4 * 1024 * 1024, iterations: 8_000_000 }

/** Measured instead of something longer: tenths of a second. */
const SAMPLE = { memory: 64 * 1024, work: 256 * 1024, iterations: 400_000 }
/** libcryptsetup makes no keyslot with more threads. */
const MAX_THREADS = 4

async function timeOf(kdf: NativeKdf): Promise<Milliseconds> {
  const start = performance.now()
  const { volumeKey } = await formatLuks({ keyslots: [{ secret: Buffer.alloc(1), kdf }] })
  volumeKey.fill(0)
  return performance.now() - start
}

/**
 * How long it takes here to try all of these keyslots, from short derivations of the same kind.
 *
 * @returns undefined when it is {@link QUICK}.
 * @throws As {@link formatLuks}.
 */
export async function derivationTime(keyslots: readonly LuksKeyslot[]): Promise<Milliseconds | undefined> {
  const { work, iterations } = derivationCost(keyslots)
  if (work <= QUICK.work && iterations <= QUICK.iterations) return undefined
  let estimate = 0
  const { kdf } = keyslots.reduce((most, one) => (one.kdf.memory > most.kdf.memory ? one : most))
  if (kdf.memory > 0) {
    const memory = Math.min(kdf.memory, SAMPLE.memory)
    const parallel = Math.min(kdf.parallel, MAX_THREADS)
    const pass = passCost({ memory, parallel })
    const sample = { ...kdf, memory, parallel, iterations: Math.max(4, Math.ceil(SAMPLE.work / pass)) }
    estimate += ((await timeOf(sample)) * work) / (pass * sample.iterations)
  }
  if (iterations > 0) {
    const sample = { type: "pbkdf2", iterations: SAMPLE.iterations, memory: 0, parallel: 0 } as const
    estimate += ((await timeOf(sample)) * iterations) / SAMPLE.iterations
  }
  return estimate
}

let prepared: Promise<void> | undefined

/**
 * Starts loading libcryptsetup on another thread, while its caller reads headers and keys. Whether that worked shows when
 * the library is used.
 */
export function prepareLuks(): void {
  prepared ??= inTurn(() => loadAddon().luksPrepare()).catch(() => undefined)
}

/**
 * Recovers the volume key.
 *
 * Argon2 cannot be interrupted: this may take seconds. Memory is checked before, so that a small machine or cgroup gets an
 * error that says how much is needed, and not the kernel's out-of-memory killer.
 *
 * @returns The volume key, which the caller wipes, and the keyslot that gave it.
 * @throws LuksError `ERR_LUKS_PASSPHRASE` when the secret opens no keyslot, `ERR_LUKS_UNSUPPORTED` when each of them is to be
 * ignored, `ERR_LUKS_HEADER` when the header or its keyslots are damaged; SignatureError `ERR_SIGNATURE_INVALID` when they are not what was signed; EnvironmentError
 * `ERR_ENV_NO_MEMORY`, `ERR_ENV_NO_LIBRARY`, `ERR_ENV_LIMIT`.
 */
export function unlockLuks(
  options: LuksUnlockOptions,
): Promise<{ readonly volumeKey: Buffer; readonly keyslot: number }> {
  const { fd, offset, header, verity, secret, keyslot = -1, path } = options
  return inTurn(async () => {
    const tried = keyslot < 0 ? header.keyslots : header.keyslots.filter(({ id }) => id === keyslot)
    if (tried.length === 0) throw new LuksError("ERR_LUKS_HEADER", `there is no keyslot ${keyslot}`, { path })
    // PBKDF2 takes none, and asking takes longer than it does.
    if (tried.some(({ kdf }) => kdf.memory > 0)) checkMemory(tried, freeMemory())
    try {
      const { areaSize, metadata, stored } = header
      const partition = { fd, offset, size: stored.partitionSize, verity }
      return await loadAddon().luksUnlock({ ...partition, areaSize, metadata, secret, keyslot })
    } catch (cause) {
      const changed = changedBlock(path ?? "the image", cause)
      if (changed !== undefined) throw changed
      const other: Meaning = ["ERR_LUKS_HEADER", "libcryptsetup cannot open the LUKS2 header"]
      throw translated(cause, unlocking[errnoOf(cause)] ?? other, path)
    }
  })
}

/**
 * Adds and removes keyslots, in memory: the image changes when {@link applyLuksSteps} writes what this returns. The keyslots
 * that stay, and the encrypted data, are not touched.
 *
 * @throws LuksError `ERR_LUKS_FULL` when there is no room for what is added, `ERR_LUKS_HEADER` when a keyslot to be removed
 * is not there or the volume key is another one, `ERR_LUKS_COST` when the result would ask for more than the limits under
 * which the header was read; RangeError when no keyslot would be left; EnvironmentError as {@link formatLuks}.
 */
export function changeKeyslots(options: LuksChangeOptions): Promise<LuksChange> {
  const { header, volumeKey, add = [], remove = [] } = options
  return inTurn(async () => {
    const ids = new Set(header.keyslots.map(({ id }) => id))
    for (const id of remove)
      if (!ids.delete(id)) throw new LuksError("ERR_LUKS_HEADER", `there is no keyslot ${id}`)
    if (ids.size + add.length === 0) throw new RangeError("no keyslot would be left")
    requireRoom(header, add.length)
    const memory = Math.max(0, ...add.map(({ kdf }) => kdf.memory))
    if (memory > 0) requireMemory(memory, "a keyslot", freeMemory())
    try {
      const made = await loadAddon().luksAddKeyslots({ ...encodeForChange(header), volumeKey, keyslots: add })
      return planLuksChange(header, made, remove)
    } catch (cause) {
      const other: Meaning = ["ERR_LUKS_FORMAT", "cannot add a keyslot to the LUKS2 header"]
      throw translated(cause, changing[errnoOf(cause)] ?? other)
    }
  })
}

/** Our error for a failure of the addon; an error that is none of its system errors (a bug, a missing addon) stays itself. */
function translated(cause: unknown, [code, message]: Meaning, path?: string): unknown {
  if (!isSystemFailure(cause)) return cause
  const limit = limitError(message, cause, { path, cause })
  if (limit !== undefined) return limit
  const lacking = missing[errnoOf(cause)]?.(cause.message)
  return lacking === undefined
    ? new LuksError(code, message, { path, cause })
    : new EnvironmentError(lacking[0], lacking[1], { cause })
}

/**
 * Is there memory for the most demanding of these keyslots?
 *
 * @throws EnvironmentError `ERR_ENV_NO_MEMORY` that says how much is needed and what is free.
 */
export function checkMemory(keyslots: readonly LuksKeyslot[], free: FreeMemory | undefined): void {
  for (const { id, kdf } of keyslots) requireMemory(kdf.memory, `keyslot ${id}`, free)
}
