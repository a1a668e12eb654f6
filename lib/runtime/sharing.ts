// What two payloads have to have in common to be in one container: everything that it is made of, who they are, and what they belong to.
import { createHash, createHmac } from "node:crypto"
import { fstatSync, readFileSync, readlinkSync, statSync } from "node:fs"
import { callerEnvironment } from "../caller-environment.ts"
import { plainRange } from "../encryption/encryption-format.ts"
import { RunError } from "../errors.ts"
import { starterPath } from "../native/load.ts"
import { ownFolder } from "../native/private-folder.ts"
import type { Place } from "./binds.ts"
import { launchSession } from "./launcher.ts"
import { execOptionTable, optionError, type ExecOptionRow, type ExecOptions } from "./options.ts"
import { hasLimits } from "./resources.ts"
import type { StarterSource } from "./starter-protocol.ts"

/**
 * Where the sockets of this user's shared containers are.
 *
 * @throws RunError `ERR_INSTANCE_FOLDER`.
 */
export function sharedFolder(): string {
  return ownFolder("shared")
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

/** Where it is not asked for, it is no reason to fail. */
function hasFolder(): boolean {
  try {
    sharedFolder()
    return true
  } catch (error) {
    if (error instanceof RunError) return false
    throw error
  }
}

/**
 * What it belongs to with all those that it may share a container with; undefined: it is alone.
 *
 * @throws RunError `ERR_RUN_OPTION` for what has to be alone and is not to be.
 */
export function sharingSession(options: ExecOptions, places: readonly Place[]): string | undefined {
  if (options.noSharens === true || options.sharens === false) return undefined
  const { name, isParallel } = launchSession(callerEnvironment())
  const isAsked = options.sharens === true
  if (!isAsked && !isParallel) return undefined
  const obstacle = obstacleToSharing(options, places)
  if (isAsked && obstacle !== undefined) throw optionError("sharens", obstacle)
  return obstacle === undefined && (isAsked || hasFolder()) ? name : undefined
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
 * The same for those who may share a container, and for nobody else. It takes the image's key to say it: who cannot open the image cannot
 * name what is shared.
 *
 * @param composed - What comes of the options on this machine.
 */
export function sharingDigest(
  source: StarterSource,
  options: ExecOptions,
  session: string,
  composed: readonly unknown[],
): string {
  const facts = [session, ownFacts(), imageFacts(source), optionFacts(options), composed]
  const text = JSON.stringify(facts, plainly)
  const key = source.unlocked?.dataKey.bytes
  const hash = key === undefined ? createHash("sha256") : createHmac("sha256", key)
  return hash.update(text).digest("hex")
}
