// Who may run: the execution control list, which the system's administrator writes and Apptainer has, too. It is asked through the
// descriptor that is opened, before any key is used, and what cannot be relied on lets nothing run.
//
// A user who can make user namespaces, or bring a program of his or her own, gets around any check on the client's side: this is
// policy for honest users.
import * as is from "../arguments.ts"
import { constants, fstatSync, readlinkSync, statSync, type Stats } from "node:fs"
import { realpath } from "node:fs/promises"
import path from "node:path"
import { readBounded, TooLarge } from "../bounded-file.ts"
import { SignatureError } from "../errors.ts"
import { MAX_KEYRING_SIZE } from "../signing/openpgp.ts"
import { APPTAINER_FOLDER, checkSystem, globalRing, SYSTEM_FOLDER } from "../signing/rings.ts"
import { verifySif, type VerifyReport } from "../signing/verify.ts"
import { DataType } from "../sif/format.ts"
import { SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import { overlaysOf } from "../encryption/partition.ts"
import { openImagePath, type BareRoot } from "./image-root.ts"

/** `whitelist`: one of the listed signers signed all of it; `whitestrict`: each of them did; `blacklist`: none of them signed any of it. */
export type ExecutionMode = "whitelist" | "whitestrict" | "blacklist"

/** What the list says of an image, and why. */
export interface ExecutionVerdict {
  readonly path: string
  readonly allowed: boolean
  /** Why, in a sentence. */
  readonly reason: string
  /** The list that was asked; undefined: there is none, and everything may run. */
  readonly file: string | undefined
  /** It says `activated = true`; else everything may run. */
  readonly active: boolean
  /** The folder that the image was opened in; undefined: it was not looked for, or cannot be told. */
  readonly folder: string | undefined
  /** The group of the list that speaks of this folder. */
  readonly group: { readonly tag: string; readonly mode: ExecutionMode; readonly folder: string } | undefined
  /** Whose good signatures cover the image, of the signers in the system's key ring. */
  readonly signers: readonly string[]
}

interface Group {
  readonly tag: string
  readonly mode: ExecutionMode
  /** Empty: any folder that no other group names. */
  readonly folder: string
  readonly fingerprints: readonly string[]
}

interface Policy {
  readonly file: string
  /** Where the keys lie that it knows. */
  readonly systemFolder: string
  readonly active: boolean
  readonly legacy: boolean
  readonly groups: readonly Group[]
}

const POLICY_FILE = "ecl.toml"
const MAX_POLICY_SIZE: Bytes = 1 << 20
const modes: readonly string[] = ["whitelist", "whitestrict", "blacklist"] satisfies ExecutionMode[]
const FINGERPRINT_SIZE: Bytes = 20
/** In the extra area of a signature's descriptor, behind the hash type. */
const ENTITY_AT: Bytes = 4

function broken(file: string, what: string, cause?: unknown): SignatureError {
  return SignatureError.at(file, "ERR_ECL_FILE", what, { cause })
}

/**
 * A file that only root writes, in a folder that only root writes; undefined: there is none.
 *
 * @throws SignatureError `ERR_ECL_FILE`.
 */
async function readSystemFile(file: string, limit: Bytes): Promise<Buffer | undefined> {
  const folder = path.dirname(file)
  try {
    const above = statSync(folder, { throwIfNoEntry: false })
    if (above === undefined) return undefined
    checkSystem(folder, above, "ERR_ECL_FILE")
    const check = (info: Stats): void => {
      if (!info.isFile()) throw broken(file, "it is no regular file")
      checkSystem(file, info, "ERR_ECL_FILE")
    }
    return await readBounded(file, limit, { flags: constants.O_NOFOLLOW, check })
  } catch (cause) {
    if (cause instanceof SignatureError) throw cause
    if (cause instanceof TooLarge) throw broken(file, cause.message)
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === "ENOENT") return undefined
    throw broken(file, code === "ELOOP" ? "it is a symbolic link" : `cannot be read: ${message}`, cause)
  }
}

type Table = Readonly<Record<string, unknown>>

function isTable(value: unknown): value is Table {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date)
}

/** A misspelt key would say nothing, silently. */
function checkKeys(file: string, table: Table, known: readonly string[], where: string): void {
  for (const key of Object.keys(table))
    if (!known.includes(key)) throw broken(file, `${where} has a key that is not known: ${key}`)
}

async function checkFolder(file: string, folder: string, where: string): Promise<void> {
  if (folder === "") return
  if (
    !path.isAbsolute(folder) ||
    path.normalize(folder) !== folder ||
    (folder !== "/" && folder.endsWith("/"))
  )
    throw broken(file, `${where}: dirpath ${folder} is no absolute path in its plain form`)
  let real: string
  try {
    real = await realpath(folder)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return // Nothing lies there.
    throw broken(file, `${where}: dirpath ${folder}: ${(cause as Error).message}`, cause)
  }
  if (real !== folder) throw broken(file, `${where}: dirpath ${folder} leads over a symbolic link to ${real}`)
}

async function parseGroup(file: string, value: unknown, index: number): Promise<Group> {
  const where = `execgroup ${index + 1}`
  if (!isTable(value)) throw broken(file, `${where} is no table`)
  checkKeys(file, value, ["tagname", "mode", "dirpath", "keyfp"], where)
  const { tagname = "", mode, dirpath = "", keyfp = [] } = value
  if (typeof tagname !== "string") throw broken(file, `${where}: tagname is no string`)
  if (typeof mode !== "string" || !modes.includes(mode))
    throw broken(file, `${where}: mode is one of ${modes.join(", ")}`)
  if (typeof dirpath !== "string") throw broken(file, `${where}: dirpath is no string`)
  await checkFolder(file, dirpath, where)
  const fingerprints = (Array.isArray(keyfp) ? keyfp : [keyfp]).map((entry: unknown) => {
    const text = typeof entry === "string" ? entry.replaceAll(/\s/g, "").toUpperCase() : ""
    if (!/^[0-9A-F]{40}$/.test(text))
      throw broken(file, `${where}: keyfp has what is no full fingerprint of 40 digits: ${String(entry)}`)
    return text
  })
  if (fingerprints.length === 0 && mode !== "blacklist")
    throw broken(file, `${where}: keyfp names nobody who may sign`)
  return { tag: tagname, mode: mode as ExecutionMode, folder: dirpath, fingerprints }
}

async function parsePolicy(file: string, bytes: Buffer): Promise<Policy> {
  const { parse } = await import("smol-toml")
  let table: Table
  try {
    table = parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes))
  } catch (cause) {
    const [line = ""] = (cause as Error).message.split("\n")
    throw broken(file, `it is no valid TOML: ${line}`, cause)
  }
  checkKeys(file, table, ["activated", "legacyinsecure", "execgroup"], "it")
  const { activated, legacyinsecure = false, execgroup = [] } = table
  if (typeof activated !== "boolean") throw broken(file, "it does not say whether it is activated")
  if (typeof legacyinsecure !== "boolean") throw broken(file, "legacyinsecure is neither true nor false")
  if (!Array.isArray(execgroup)) throw broken(file, "execgroup is no list of tables")
  const groups: Group[] = []
  for (const [index, value] of execgroup.entries()) groups.push(await parseGroup(file, value, index))
  const twice = groups.find(({ folder }, index) =>
    groups.some((other, at) => at < index && other.folder === folder),
  )
  if (twice !== undefined) throw broken(file, `several groups have the dirpath "${twice.folder}"`)
  return { file, systemFolder: path.dirname(file), active: activated, legacy: legacyinsecure, groups }
}

/** Ours; where there is none, Apptainer's: whoever wrote that meant the images of this machine. */
async function readPolicy(): Promise<Policy | undefined> {
  for (const folder of [SYSTEM_FOLDER, APPTAINER_FOLDER]) {
    const file = path.join(folder, POLICY_FILE)
    const bytes = await readSystemFile(file, MAX_POLICY_SIZE)
    if (bytes !== undefined) return await parsePolicy(file, bytes)
  }
  return undefined
}

/** The folder that the open file lies in; undefined: no path leads to it any more. */
function folderOf(image: SifImage): string | undefined {
  const link = readlinkSync(`/proc/self/fd/${image.fd}`)
  if (!path.isAbsolute(link)) return undefined
  const ours = fstatSync(image.fd, { bigint: true })
  const there = statSync(link, { bigint: true, throwIfNoEntry: false })
  return there?.dev === ours.dev && there.ino === ours.ino ? path.dirname(link) : undefined
}

/** Everybody who signed any of it, or is said to have: for who is on a blacklist the claim is enough. */
function namedSigners(image: SifImage, report: VerifyReport): Set<string> {
  const claimed = image.objects
    .filter(({ type }) => type === DataType.signature)
    .map(({ extra }) =>
      extra
        .subarray(ENTITY_AT, ENTITY_AT + FINGERPRINT_SIZE)
        .toString("hex")
        .toUpperCase(),
    )
  const known = report.signatures.flatMap(({ signer, keyId }) => [signer, keyId?.toUpperCase()])
  return new Set([...claimed, ...known].filter((one) => one !== undefined))
}

/** What speaks against it; undefined: it may run. */
function objection(group: Group, image: SifImage, report: VerifyReport): string | undefined {
  if (!report.verified) {
    const [first] = report.failures
    const about = first?.object === undefined ? "" : `object ${first.object}: `
    return `it is not validly signed: ${about}${first?.reason ?? "nothing was verified"}`
  }
  const { fingerprints, mode } = group
  const signed = (fingerprint: string): boolean => report.signers.includes(fingerprint)
  switch (mode) {
    case "whitelist":
      return fingerprints.some(signed) ? undefined : "none of the listed signers signed all of it"
    case "whitestrict": {
      const absent = fingerprints.find((fingerprint) => !signed(fingerprint))
      return absent === undefined ? undefined : `${absent} did not sign all of it`
    }
    case "blacklist": {
      const named = namedSigners(image, report)
      const listed = fingerprints.find((fingerprint) => named.has(fingerprint))
      return listed === undefined ? undefined : `${listed} signed it`
    }
  }
}

/** Asks the list about an opened image. */
export async function examineExecution(image: SifImage, signal?: AbortSignal): Promise<ExecutionVerdict> {
  const policy = await readPolicy()
  const base = { path: image.path, folder: undefined, group: undefined, signers: [] }
  if (policy === undefined)
    return { ...base, allowed: true, active: false, file: undefined, reason: "there is no list" }
  const { file, active, groups, legacy, systemFolder } = policy
  if (!active) return { ...base, allowed: true, active, file, reason: `${file} is not activated` }
  const folder = folderOf(image)
  if (folder === undefined)
    return { ...base, allowed: false, active, file, reason: "no folder holds it any more" }
  const group = groups.find((one) => one.folder === folder) ?? groups.find((one) => one.folder === "")
  if (group === undefined)
    return {
      ...base,
      allowed: false,
      active,
      file,
      folder,
      reason: `the folder ${folder} is in no execgroup of ${file}`,
    }
  const ring = await readSystemFile(globalRing(systemFolder).publicFile, MAX_KEYRING_SIZE)
  const keys = {
    keyrings: ring === undefined || ring.length === 0 ? [] : [ring],
    signal,
  }
  let report = await verifySif(image, keys)
  if (!report.verified && legacy) {
    // An overlay would run as well.
    const alone = overlaysOf(image.objects, image.primary()).length === 0
    report = await verifySif(image, { ...keys, legacy: alone ? "primary" : "all" })
  }
  const against = objection(group, image, report)
  const name =
    group.tag === "" ? `execgroup of ${group.folder === "" ? "any folder" : group.folder}` : group.tag
  return {
    ...base,
    allowed: against === undefined,
    active,
    file,
    folder,
    group: { tag: group.tag, mode: group.mode, folder: group.folder },
    signers: report.signers,
    reason:
      against === undefined
        ? `${name} (${group.mode}) of ${file} allows it`
        : `${name} (${group.mode}) of ${file} does not allow it: ${against}`,
  }
}

/** @throws SignatureError `ERR_ECL_REFUSED`. */
export function requireAllowed({ path: image, allowed, reason }: ExecutionVerdict): void {
  if (!allowed)
    throw new SignatureError("ERR_ECL_REFUSED", `${image} may not run here: ${reason}`, { path: image })
}

/** Asks the list about what is no SIF. Nobody signs that, so an activated list does not let it run. */
export async function examineBare({ path: image, what }: BareRoot): Promise<ExecutionVerdict> {
  const policy = await readPolicy()
  const { file, active = false } = policy ?? { file: undefined }
  const reason = active
    ? `it is ${what}, which nobody signs, and ${file ?? "the list"} lets only signed images run`
    : file === undefined
      ? "there is no list"
      : `${file} is not activated`
  const none = { folder: undefined, group: undefined, signers: [] }
  return { ...none, path: image, allowed: !active, active, file, reason }
}

const checkOptions = is.shape<{ readonly signal?: AbortSignal }>({ signal: is.abortSignal })

/**
 * What the execution control list of this system says of an image: `/etc/sifcrypt/ecl.toml`, or where there is none
 * `/etc/apptainer/ecl.toml`. {@link open} asks the same, on the file that it opens, unless it is to be read only.
 *
 * @throws SignatureError `ERR_ECL_FILE` for a list that cannot be relied on; SifError of a malformed image; the signal's reason.
 */
export async function checkExecution(
  file: string,
  options: { readonly signal?: AbortSignal } = {},
): Promise<ExecutionVerdict> {
  const { signal } = checkOptions(options, "options")
  await using image = await openImagePath(file)
  return image instanceof SifImage ? await examineExecution(image, signal) : await examineBare(image)
}
