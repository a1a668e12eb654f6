// A user's keys.toml: which key opens which image, for whoever starts us with an environment that others have emptied.
import { createHash } from "node:crypto"
import { constants, read, type Stats } from "node:fs"
import { lstat } from "node:fs/promises"
import { userInfo } from "node:os"
import path from "node:path"
import { promisify } from "node:util"
import * as is from "../arguments.ts"
import { readBounded, TooLarge } from "../bounded-file.ts"
import { KeyError } from "../errors.ts"
import { parseFingerprint } from "../key/fingerprint.ts"
import { isHeld } from "../native/private-folder.ts"
import { DataType, type SifObject } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import type { SecretSource } from "./secret-sources.ts"

/** What opens an image, as a line of the file says. */
export type ConfiguredCredential =
  | { readonly key: SecretSource; readonly password: SecretSource | undefined }
  | { readonly passphrase: SecretSource }

interface Row {
  /** Each that is there has to hold. */
  readonly image: string | undefined
  readonly recipient: string | undefined
  readonly signer: string | undefined
  readonly credential: ConfiguredCredential
}

const MAX_SIZE: Bytes = 1 << 20
const MAX_ROWS = 1000
const PIECE: Bytes = 1 << 20
const ENTITY_AT: Bytes = 4
const ENTITY_SIZE: Bytes = 20
const conditions = ["image", "recipient", "signer"] as const
const sources = ["pem-path", "key-command", "passphrase-file"] as const
const known: readonly string[] = [...conditions, ...sources, "key-passphrase-file"]

/** In a home. */
const PLACE = path.join(".config", "sifcrypt", "keys.toml")

/** Where it is looked for: HOME may be one of the variables that are gone. */
export function keyConfigurationFile(environment: Readonly<Record<string, string | undefined>>): string {
  const { XDG_CONFIG_HOME: config = "", HOME: home = "" } = is.variables(environment, "environment")
  if (path.isAbsolute(config)) return path.join(config, "sifcrypt", "keys.toml")
  return path.join(path.isAbsolute(home) ? home : homeOfUser(), PLACE)
}

function homeOfUser(): string {
  try {
    return userInfo().homedir
  } catch {
    return "/" // a uid without a line in passwd
  }
}

function broken(file: string, what: string, cause?: unknown): KeyError {
  return KeyError.at(file, "ERR_KEY_CONFIGURATION", what, { cause })
}

/** It can start programs: nobody else may have written it. */
function checkOwn(file: string, name: string, { uid, mode }: Stats, others: number): void {
  const self = process.geteuid?.() ?? 0
  if (uid !== self && uid !== 0) throw broken(file, `${name} belongs to user ${uid}`)
  if ((mode & others) !== 0)
    throw broken(file, `${name} has mode ${(mode & 0o7777).toString(8)}: it has to be yours alone`)
}

/** undefined: there is none. */
async function readOwn(file: string): Promise<Buffer | undefined> {
  const folder = path.dirname(file)
  try {
    checkOwn(file, folder, await lstat(folder), 0o022)
    if (!(await isHeld(folder)))
      throw broken(file, `others may write to what ${folder} lies in, or say where a link to it leads`)
    const check = (info: Stats): void => {
      if (!info.isFile()) throw broken(file, "it is no regular file")
      checkOwn(file, "it", info, 0o077)
    }
    return await readBounded(file, MAX_SIZE, { flags: constants.O_NOFOLLOW, check })
  } catch (cause) {
    if (cause instanceof KeyError) throw cause
    if (cause instanceof TooLarge) throw broken(file, cause.message)
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === "ENOENT" || code === "ENOTDIR") return undefined
    throw broken(file, code === "ELOOP" ? "it is a symbolic link" : `cannot be read: ${message}`, cause)
  }
}

/** `~/` is the home that the file lies in, or the user's. */
function absolute(file: string, where: string, name: string): string {
  const home = (): string =>
    file.endsWith(`/${PLACE}`) ? `/${file.slice(0, -PLACE.length - 1)}` : homeOfUser()
  const expanded = name.startsWith("~/") ? path.join(home(), name.slice(2)) : name
  if (!path.isAbsolute(expanded))
    throw broken(file, `${where}: ${name} is neither an absolute path nor ~/...`)
  return expanded
}

function parseRow(file: string, value: unknown, index: number, password: SecretSource | undefined): Row {
  const where = `key ${index + 1}`
  if (typeof value !== "object" || value === null) throw broken(file, `${where} is no table`)
  for (const [key, entry] of Object.entries(value)) {
    if (!known.includes(key)) throw broken(file, `${where} has a key that is not known: ${key}`)
    if (typeof entry !== "string" || entry === "" || entry.includes("\0"))
      throw broken(file, `${where}: ${key} is no string`)
  }
  const row = value as Readonly<Record<string, string | undefined>>
  const { image, recipient } = row
  const signer = row["signer"]?.replaceAll(/\s/g, "").toUpperCase()
  if ([image, recipient, signer].every((condition) => condition === undefined))
    throw broken(file, `${where} does not say for which image: one of ${conditions.join(", ")}`)
  if (image !== undefined && !/^sha256:[0-9a-f]{64}$/.test(image))
    throw broken(file, `${where}: image is no digest of a file, sha256: and 64 digits`)
  const query = recipient === undefined ? undefined : parseFingerprint(recipient)
  if (recipient !== undefined && query?.hash !== "sha256")
    throw broken(
      file,
      `${where}: recipient is no SHA-256 fingerprint, as \`sifcrypt recipient list\` shows them`,
    )
  if (signer !== undefined && !/^[0-9A-F]{40}$/.test(signer))
    throw broken(file, `${where}: signer is no fingerprint of 40 digits`)
  const [source, ...others] = sources.filter((name) => row[name] !== undefined)
  if (source === undefined || others.length > 0)
    throw broken(file, `${where} names one of ${sources.join(", ")}`)
  const given = row[source] ?? ""
  const passwordFile = row["key-passphrase-file"]
  if (passwordFile !== undefined && source === "passphrase-file")
    throw broken(file, `${where}: key-passphrase-file is the password of a key`)
  const ofKey = passwordFile === undefined ? password : { file: absolute(file, where, passwordFile) }
  const from = source === "key-command" ? { command: given } : { file: absolute(file, where, given) }
  return {
    ...{ image, signer },
    recipient: query && `SHA256:${query.digest.toString("base64").replaceAll("=", "")}`,
    credential: source === "passphrase-file" ? { passphrase: from } : { key: from, password: ofKey },
  }
}

async function parseRows(
  file: string,
  bytes: Buffer,
  password: SecretSource | undefined,
): Promise<readonly Row[]> {
  const { parse } = await import("smol-toml")
  let table: Readonly<Record<string, unknown>>
  try {
    table = parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes))
  } catch (cause) {
    const [line = ""] = (cause as Error).message.split("\n")
    throw broken(file, `it is no valid TOML: ${line}`, cause)
  }
  const { key: rows = [], ...others } = table
  for (const name of Object.keys(others)) throw broken(file, `it has a key that is not known: ${name}`)
  if (!Array.isArray(rows)) throw broken(file, "key is no list of tables: [[key]]")
  if (rows.length > MAX_ROWS) throw broken(file, `it has more than ${MAX_ROWS} keys`)
  return rows.map((row, index) => parseRow(file, row, index, password))
}

const readAt = promisify(read)

async function digestOf({ fd }: SifImage, signal: AbortSignal | undefined): Promise<string> {
  const hash = createHash("sha256")
  const piece = Buffer.alloc(PIECE)
  for (let at = 0; ;) {
    signal?.throwIfAborted()
    const { bytesRead } = await readAt(fd, piece, 0, piece.length, at)
    if (bytesRead === 0) return `sha256:${hash.digest("hex")}`
    hash.update(piece.subarray(0, bytesRead))
    at += bytesRead
  }
}

/** Who is said to have signed some of it. */
function claimedSigners({ objects }: SifImage): readonly string[] {
  return objects
    .filter(({ type }) => type === DataType.signature)
    .map(({ extra }) => extra.toString("hex", ENTITY_AT, ENTITY_AT + ENTITY_SIZE).toUpperCase())
}

/**
 * What the file says opens an image, in its order. Who an image is for and who has signed it is what the image says: nobody can open it
 * by saying something else, but a wrong key is tried then.
 *
 * @param messages - The image's crypto messages, which are named by fingerprints.
 * @param password - Of key files that do not say where theirs is.
 * @throws KeyError `ERR_KEY_CONFIGURATION`; the signal's reason.
 */
export async function configuredCredentials(
  file: string,
  image: SifImage,
  messages: readonly SifObject[],
  password: SecretSource | undefined,
  signal: AbortSignal | undefined,
): Promise<readonly ConfiguredCredential[]> {
  const bytes = await readOwn(file)
  if (bytes === undefined) return []
  const recipients = messages.map(({ name }) => name)
  const signers = claimedSigners(image)
  const likely = (await parseRows(file, bytes, password)).filter(
    ({ recipient, signer }) =>
      (recipient === undefined || recipients.includes(recipient)) &&
      (signer === undefined || signers.includes(signer)),
  )
  // All of it has to be read for that.
  const digest = likely.some((row) => row.image !== undefined) ? await digestOf(image, signal) : undefined
  return likely
    .filter((row) => row.image === undefined || row.image === digest)
    .map(({ credential }) => credential)
}
