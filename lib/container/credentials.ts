// Credentials: what the caller names and what the environment names, in the order of precedence that the peers have.
import type { KeyObject } from "node:crypto"
import { existsSync, readdirSync } from "node:fs"
import { open } from "node:fs/promises"
import { KeyError } from "../errors.ts"
import { MAX_PEM_SIZE, parsePrivateKey, parsePublicKey } from "../key/pem.ts"
import { allocateSecret, Secret } from "../key/secret.ts"
import type { Bytes } from "../units.ts"

/** Keys and passphrases, or where they are. What is given here comes before anything in `env`. */
export interface CredentialOptions {
  /** Files with an RSA key in PEM form: a public one to build, a private one to open. */
  readonly pemPaths?: readonly string[]
  /** The same, already read. */
  readonly pemData?: readonly Uint8Array[]
  /** Copied; the caller wipes its own, which {@link allocateSecret} makes so that this wipes every copy. */
  readonly passphrase?: Uint8Array
  /** A file that holds a passphrase; one line end at its end is not part of it. */
  readonly passphraseFile?: string
  /**
   * Where to look for `SIFCRYPT_`, `APPTAINER_` and `SINGULARITY_ENCRYPTION_PEM_PATH`, `…_PEM_DATA` and `…_PASSPHRASE`
   * when nothing else is given; usually `process.env`. Default: nowhere.
   */
  readonly env?: Readonly<Record<string, string | undefined>>
}

/** One way to an image's secret. */
export type Credential =
  | { readonly kind: "rsa"; readonly key: KeyObject; readonly origin: string }
  | { readonly kind: "passphrase"; readonly passphrase: Secret; readonly origin: string }

/** Longest passphrase, bytes. */
const MAX_PASSPHRASE_SIZE: Bytes = 8192

const prefixes = ["SIFCRYPT", "APPTAINER", "SINGULARITY"] as const

async function readSmallFile(path: string, limit: Bytes): Promise<Buffer> {
  const file = await open(path, "r")
  // A pipe has no size of its own: room for all that may come.
  const { size } = await file.stat()
  const buffer = allocateSecret(size > 0 && size < limit ? size + 1 : limit + 1)
  try {
    let used = 0
    for (;;) {
      const { bytesRead } = await file.read(buffer, used, buffer.length - used, null)
      if (bytesRead === 0) break
      used += bytesRead
      if (used === buffer.length)
        throw new KeyError("ERR_KEY_FORMAT", `${path}: more than ${limit} bytes`, { path })
    }
    const bytes = allocateSecret(used)
    buffer.copy(bytes, 0, 0, used)
    return bytes
  } finally {
    buffer.fill(0)
    await file.close()
  }
}

async function readKeyFile(path: string, limit: Bytes): Promise<Buffer> {
  try {
    return await readSmallFile(path, limit)
  } catch (cause) {
    if (cause instanceof KeyError) throw cause
    const { code, message } = cause as NodeJS.ErrnoException
    const why = code === "ENOENT" ? "there is no such file" : message
    throw new KeyError("ERR_KEY_MISSING", `cannot read the key file ${path}: ${why}`, { path, cause })
  }
}

type ParseKey = (file: Buffer, origin: string) => KeyObject

async function rsaFromFile(path: string, parse: ParseKey): Promise<Credential> {
  const file = await readKeyFile(path, MAX_PEM_SIZE)
  try {
    return { kind: "rsa", key: parse(file, path), origin: path }
  } finally {
    file.fill(0)
  }
}

function passphraseOf(bytes: Uint8Array, origin: string): Credential {
  if (bytes.length === 0)
    throw new KeyError(
      "ERR_KEY_MISSING",
      `${origin}: the passphrase is empty, and an empty passphrase protects nothing`,
    )
  if (bytes.length > MAX_PASSPHRASE_SIZE)
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: a passphrase has at most ${MAX_PASSPHRASE_SIZE} bytes`)
  return { kind: "passphrase", passphrase: new Secret(bytes), origin }
}

async function passphraseFromFile(path: string): Promise<Credential> {
  const file = await readKeyFile(path, MAX_PASSPHRASE_SIZE + 2)
  try {
    let end = file.length
    if (file[end - 1] === 0x0a) end -= file[end - 2] === 0x0d ? 2 : 1
    return passphraseOf(file.subarray(0, Math.max(0, end)), path)
  } finally {
    file.fill(0)
  }
}

/** The variables that are set, in order of precedence; an empty one counts as set, as with the peers. */
function* variables(env: Readonly<Record<string, string | undefined>>): Generator<{
  readonly name: string
  readonly kind: "path" | "data" | "passphrase"
  readonly value: string
}> {
  for (const [suffix, kind] of [
    ["PEM_PATH", "path"],
    ["PEM_DATA", "data"],
    ["PASSPHRASE", "passphrase"],
  ] as const)
    for (const prefix of prefixes) {
      const name = `${prefix}_ENCRYPTION_${suffix}`
      const value = env[name]
      if (value !== undefined) yield { name, kind, value }
    }
}

/** Names the variable that would be used, if any. */
export function credentialVariable(options: CredentialOptions): string | undefined {
  const [first] = variables(options.env ?? {})
  return first?.name
}

async function fromVariable(
  variable: { readonly name: string; readonly kind: "path" | "data" | "passphrase"; readonly value: string },
  parse: ParseKey,
): Promise<Credential> {
  const { name, kind, value } = variable
  if (value === "") throw new KeyError("ERR_KEY_MISSING", `${name} is set but empty`)
  if (kind === "path") return await rsaFromFile(value, parse)
  const bytes = allocateSecret(Buffer.byteLength(value))
  bytes.write(value)
  try {
    return kind === "data"
      ? { kind: "rsa", key: parse(bytes, name), origin: name }
      : passphraseOf(bytes, name)
  } finally {
    bytes.fill(0)
  }
}

/** Reads and parses what was given explicitly: all of it. */
async function explicit(options: CredentialOptions, parse: ParseKey): Promise<Credential[]> {
  const found: Credential[] = []
  try {
    for (const path of options.pemPaths ?? []) found.push(await rsaFromFile(path, parse))
    for (const [index, data] of (options.pemData ?? []).entries()) {
      const file = allocateSecret(data.length)
      file.set(data)
      try {
        const origin = `key ${index + 1}`
        found.push({ kind: "rsa", key: parse(file, origin), origin })
      } finally {
        file.fill(0)
      }
    }
    if (options.passphrase !== undefined) found.push(passphraseOf(options.passphrase, "the passphrase"))
    if (options.passphraseFile !== undefined) found.push(await passphraseFromFile(options.passphraseFile))
    return found
  } catch (error) {
    wipeCredentials(found)
    throw error
  }
}

/** Was anything given explicitly? */
export function hasExplicitCredentials(options: CredentialOptions): boolean {
  return (
    (options.pemPaths?.length ?? 0) + (options.pemData?.length ?? 0) > 0 ||
    options.passphrase !== undefined ||
    options.passphraseFile !== undefined
  )
}

/** Wipes the passphrases among them. */
export function wipeCredentials(credentials: readonly Credential[]): void {
  for (const credential of credentials) if (credential.kind === "passphrase") credential.passphrase.wipe()
}

/**
 * Is it the name of a file? A single name is looked for in the list of this folder, and not asked for: a passphrase must
 * not go to a file server as a name. What starts like a path is one.
 */
function isFileName(passphrase: Buffer): boolean {
  if (/^(?:\.{0,2}\/)/.test(passphrase.toString("latin1", 0, 3))) return existsSync(passphrase)
  return readdirSync(".", { encoding: "buffer" }).some((name) => passphrase.equals(name))
}

/**
 * Who shall be able to open a new image: everything explicit, or else the first variable.
 *
 * @param onNotice - Hears about a passphrase that looks like a mistake.
 * @throws KeyError, before anything is built.
 */
export async function resolveRecipients(
  options: CredentialOptions,
  onNotice: (text: string) => void,
): Promise<Credential[]> {
  let found = await explicit(options, parsePublicKey)
  if (found.length === 0) {
    const [first] = variables(options.env ?? {})
    if (first !== undefined) found = [await fromVariable(first, parsePublicKey)]
  }
  for (const credential of found)
    if (credential.kind === "passphrase" && isFileName(credential.passphrase.bytes))
      onNotice(`${credential.origin} holds the name of a file; was what is in that file meant?`)
  return found
}

/**
 * What to open an image with, in the order to try: everything explicit, or else every variable.
 *
 * @throws KeyError when one of them cannot be read.
 */
export async function resolveOpeners(options: CredentialOptions): Promise<Credential[]> {
  const found = await explicit(options, parsePrivateKey)
  if (found.length > 0) return found
  try {
    for (const variable of variables(options.env ?? {}))
      found.push(await fromVariable(variable, parsePrivateKey))
    return found
  } catch (error) {
    // The first one set decides; a later one that cannot be read is not needed when an earlier one could be.
    if (found.length > 0) return found
    throw error
  }
}
