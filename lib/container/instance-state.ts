// What is known of instances: a file each in a folder that is its user's alone. A file is a claim, not a fact: what it says
// of a process is held against the process before it is used.
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { lockFolder } from "../native/lock.ts"
import { ownFolder, readOwn } from "../native/private-folder.ts"
import { RunError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { starterPath } from "../native/load.ts"
import type { ExecOptions } from "../runtime/options.ts"
import type { ConcreteEngine } from "../runtime/starter-protocol.ts"

/** An instance's file. */
export interface InstanceState {
  readonly name: string
  readonly image: string
  readonly engine: ConcreteEngine
  /** The starter's process, and when it started, in the kernel's ticks since boot. */
  readonly pid: number
  readonly startTime: string
  /** As the starter was told. */
  readonly session: string
  readonly id: string
  readonly crun: string
  readonly logOut: string
  readonly logErr: string
  /** Who its commands are inside, and what they may: as it was started. */
  readonly privileges: Privileges
  /** It ends with what it runs, and is known until it is removed. */
  readonly service: boolean
  /** What its starter writes about it. */
  readonly journal: string
  /** Milliseconds since 1970. */
  readonly startedAt: number
  readonly stopSignal: NodeJS.Signals
  readonly stopTimeoutMs: number
  readonly labels: Readonly<Record<string, string>>
  /** Its networks that have a name, and its addresses there. */
  readonly networks: readonly { readonly name: string; readonly address: string }[]
}

export type Privileges = Pick<
  ExecOptions,
  "fakeroot" | "security" | "addCaps" | "dropCaps" | "keepPrivs" | "noPrivs" | "allowSetuid"
>

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/
const MAX_STATE_SIZE = 64 << 10

export function checkName(name: string): void {
  if (!NAME.test(name))
    throw new RunError("ERR_INSTANCE_NAME", `not a name for an instance: ${JSON.stringify(name)}`)
}

/**
 * Where the files of this user's instances are.
 *
 * @throws RunError `ERR_INSTANCE_FOLDER`.
 */
export function instanceFolder(): string {
  return ownFolder("instances")
}

/**
 * Is that what is heard of a process that is gone, or another's, which /proc may hide (EPERM: hidepid=1)? Where no file can be opened
 * nothing is known of it.
 */
export function tellsOfNone(error: unknown): boolean {
  return ["ENOENT", "ESRCH", "EACCES", "EPERM"].includes((error as NodeJS.ErrnoException).code ?? "")
}

/** When a process started; undefined: there is none. */
export function startTimeOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1")
    // The name before it may hold anything; its end is the last parenthesis. Field 22 of proc(5).
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    return fields[0] === "Z" ? undefined : fields[19]
  } catch (error) {
    if (!tellsOfNone(error)) throw error
    return undefined
  }
}

/** Does the process still run that the file tells of? */
export function isAlive({ pid, startTime, id }: InstanceState): boolean {
  if (startTimeOf(pid) !== startTime) return false
  try {
    const program = statSync(`/proc/${pid}/exe`)
    const ours = statSync(starterPath())
    const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0")
    return program.dev === ours.dev && program.ino === ours.ino && command.includes(`--id=${id}`)
  } catch (error) {
    if (!tellsOfNone(error)) throw error
    return false
  }
}

const texts = [
  ...(["name", "image", "startTime", "session", "id", "crun", "logOut", "logErr"] as const),
  ...(["journal", "stopSignal"] as const),
] as const

const isState = (value: unknown): value is InstanceState => {
  const state = value as Partial<Record<keyof InstanceState, unknown>> | null
  return (
    typeof state === "object" &&
    state !== null &&
    Number.isSafeInteger(state.pid) &&
    (state.pid as number) > 1 &&
    typeof state.privileges === "object" &&
    state.privileges !== null &&
    ["kernel", "userspace", "memory"].includes(String(state.engine)) &&
    typeof state.service === "boolean" &&
    Array.isArray(state.networks) &&
    typeof state.labels === "object" &&
    Number.isSafeInteger(state.stopTimeoutMs) &&
    Number.isSafeInteger(state.startedAt) &&
    texts.every((key) => typeof state[key] === "string")
  )
}

const fileOf = (folder: string, name: string): string => path.join(folder, `${name}.json`)

/** The file's content; undefined when it is no instance's. */
function readState(folder: string, name: string): InstanceState | undefined {
  try {
    const found = readOwn(fileOf(folder, name), MAX_STATE_SIZE)
    const state: unknown = found === undefined ? undefined : parseJson(found)
    return isState(state) && state.name === name ? state : undefined
  } catch {
    return undefined
  }
}

/** An instance that runs; with `ended` also a service that has. */
export function findInstance(name: string, ended = false): InstanceState | undefined {
  checkName(name)
  const state = readState(instanceFolder(), name)
  return state !== undefined && (isAlive(state) || (ended && state.service)) ? state : undefined
}

/** All of this user's instances, by name. */
export async function allInstances(ended: boolean): Promise<InstanceState[]> {
  const folder = await clearUp()
  return readdirSync(folder)
    .flatMap((file) => (file.endsWith(".json") && NAME.test(file.slice(0, -5)) ? [file.slice(0, -5)] : []))
    .sort()
    .flatMap((name) => findInstance(name, ended) ?? [])
}

/** The paths of what is written about an instance, and by it. */
export function filesOf(name: string): {
  readonly logOut: string
  readonly logErr: string
  readonly journal: string
} {
  const file = path.join(instanceFolder(), name)
  return { logOut: `${file}.out`, logErr: `${file}.err`, journal: `${file}.journal` }
}

const claimOf = (folder: string, name: string): string => path.join(folder, `${name}.starting`)

/** Does a process that runs hold the name? */
function isClaimed(folder: string, name: string): boolean {
  let pid: string, startTime: string
  try {
    ;[pid = "", startTime = ""] = readFileSync(claimOf(folder, name), "utf8").split(" ")
  } catch {
    return false
  }
  return startTime !== "" && startTimeOf(Number(pid)) === startTime
}

/**
 * Removes what instances left that have ended, and starts that were killed: states, logs, claims. Only under the folder's
 * lock, without which nobody claims a name.
 */
function clearUpLocked(folder: string): void {
  for (const file of readdirSync(folder)) {
    const [, name, kind] = /^(.+)\.(starting|journal|(?:out|err|json)(?:\.\d+)?)$/.exec(file) ?? []
    // In this order: a start gives the name back after the state is written.
    if (name === undefined || !NAME.test(name) || isClaimed(folder, name)) continue
    const state = readState(folder, name)
    // What has become of a service is known until somebody removes it.
    const isOver = state !== undefined && !state.service && !isAlive(state)
    const isTemporary = kind === "starting" || kind?.startsWith("json.") === true
    const isLeft = kind === "json" ? isOver : isTemporary || isOver || !existsSync(fileOf(folder, name))
    if (isLeft) rmSync(path.join(folder, file), { force: true })
  }
}

/** Removes what is left of instances that are no more; gives the folder of the others. */
export async function clearUp(): Promise<string> {
  const folder = instanceFolder()
  await using lock = await lockFolder(folder)
  // Who holds it so long clears up as well.
  if (lock !== undefined) clearUpLocked(folder)
  return folder
}

/**
 * Takes a name for an instance that is about to start.
 *
 * @returns What gives it back.
 * @throws RunError `ERR_INSTANCE_EXISTS`, `ERR_INSTANCE_FOLDER`.
 */
export async function claim(name: string): Promise<() => void> {
  checkName(name)
  const folder = instanceFolder()
  await using lock = await lockFolder(folder)
  if (lock === undefined) throw RunError.at(folder, "ERR_INSTANCE_FOLDER", "another process has locked it")
  clearUpLocked(folder)
  if (isClaimed(folder, name) || findInstance(name) !== undefined) throw exists(name)
  // A service that has ended makes room.
  forget(name)
  const file = claimOf(folder, name)
  writeFileSync(file, `${process.pid} ${startTimeOf(process.pid) ?? ""}`, { mode: 0o600 })
  return () => {
    rmSync(file, { force: true })
  }
}

const exists = (name: string): RunError =>
  new RunError("ERR_INSTANCE_EXISTS", `there is an instance ${name} already`)

/**
 * Writes the file of one that has started.
 *
 * @throws RunError `ERR_RUN_OPTION` for one that could not be read again: nobody would find what runs.
 */
export function remember(state: InstanceState): void {
  const content = JSON.stringify(state)
  if (Buffer.byteLength(content) > MAX_STATE_SIZE)
    throw new RunError(
      "ERR_RUN_OPTION",
      `the instance ${state.name}: what is kept of it, as its labels, comes to more than ${MAX_STATE_SIZE} bytes`,
    )
  const file = fileOf(instanceFolder(), state.name)
  const temporary = `${file}.${process.pid}`
  writeFileSync(temporary, content, { flag: "wx", mode: 0o600 })
  renameSync(temporary, file)
}

/** Removes the files of one that is no more. */
export function forget(name: string): void {
  const folder = instanceFolder()
  rmSync(fileOf(folder, name), { force: true })
  const escaped = name.replaceAll(".", "\\.")
  const its = new RegExp(`^${escaped}\\.(?:journal|(?:out|err)(?:\\.\\d+)?)$`)
  for (const file of readdirSync(folder)) if (its.test(file)) rmSync(path.join(folder, file), { force: true })
}

/**
 * Removes a service that has ended.
 *
 * @throws RunError `ERR_INSTANCE_EXISTS`: it runs.
 */
export async function removeEnded(name: string): Promise<void> {
  checkName(name)
  const folder = instanceFolder()
  await using held = await lockFolder(folder)
  if (held === undefined) throw RunError.at(folder, "ERR_INSTANCE_FOLDER", "another process has locked it")
  if (isClaimed(folder, name) || findInstance(name) !== undefined)
    throw new RunError("ERR_INSTANCE_EXISTS", `the instance ${name} runs`)
  forget(name)
}
