// Credentials: what the caller names and what the environment names, in the order of precedence that the peers have.
import { createPublicKey, type KeyObject } from "node:crypto"
import { existsSync, readdirSync } from "node:fs"
import { KeyError } from "../errors.ts"
import { admitKey } from "../key/admission.ts"
import { MAX_PASSWORD_SIZE } from "../key/der-key.ts"
import {
  checkRecipient,
  checkRsa,
  MAX_KEY_FILE_SIZE,
  parsePrivateKey,
  parsePublicKey,
} from "../key/key-file.ts"
import { allocateSecret, Secret } from "../key/secret.ts"
import type { Bytes } from "../units.ts"
import { readCommand, readDescriptor, readSecretFile } from "./secret-sources.ts"

/** Keys and passphrases, or where they are. What is given here comes before anything in `env`. */
export interface CredentialOptions {
  /**
   * Files with an RSA key: a public one to build, a private one to open. PEM or DER of any kind, certificates, OpenSSH,
   * JWK: docs/cli.md has the list.
   */
  readonly pemPaths?: readonly string[]
  /** The same, already read. */
  readonly pemData?: readonly Uint8Array[]
  /** The same, already parsed. */
  readonly keys?: readonly KeyObject[]
  /** A descriptor that the bytes of a key file are read from: 0, 3 or above. It is read to its end, once, and closed. */
  readonly keyFd?: number
  /**
   * A command for /bin/sh whose standard output is a key file, as of a vault or gpg. Its environment is this process's
   * without the variables of `env` below.
   */
  readonly keyCommand?: string
  /** The password of a protected key file. Copied; the caller wipes its own. */
  readonly keyPassphrase?: Uint8Array
  /** A file that holds it; one line end at its end is not part of it. */
  readonly keyPassphraseFile?: string
  /** The same from a descriptor, as for `keyFd`. */
  readonly keyPassphraseFd?: number
  /**
   * Asked for the password of a protected key file when neither is given, at most three times.
   *
   * @param origin - The file, descriptor or variable.
   * @param attempt - 1, or more when the answer before was wrong.
   * @returns The password, which is wiped then; undefined: there is none.
   */
  readonly askKeyPassphrase?: (origin: string, attempt: number) => Promise<Uint8Array | undefined>
  /** Copied; the caller wipes its own, which {@link allocateSecret} makes so that this wipes every copy. */
  readonly passphrase?: Uint8Array
  /** Asked for a passphrase once the image's keys are needed, after all that can refuse the image. What it gives is wiped. */
  readonly askPassphrase?: () => Promise<Uint8Array>
  /** A file that holds a passphrase; one line end at its end is not part of it. */
  readonly passphraseFile?: string
  /** The same from a descriptor, as for `keyFd`. */
  readonly passphraseFd?: number
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
/** Line ends at its end. */
const LINE_END_SIZE: Bytes = 2
const MAX_ATTEMPTS = 3

const prefixes = ["SIFCRYPT", "APPTAINER", "SINGULARITY"] as const
const kinds = [
  ["PEM_PATH", "path"],
  ["PEM_DATA", "data"],
  ["PASSPHRASE", "passphrase"],
] as const

interface Variable {
  readonly name: string
  readonly kind: "path" | "data" | "passphrase"
  readonly value: string
}

/** The first variable that is set; an empty one counts as set, as with the peers. */
function firstVariable(options: CredentialOptions): Variable | undefined {
  for (const prefix of prefixes)
    for (const [suffix, kind] of kinds) {
      const name = `${prefix}_ENCRYPTION_${suffix}`
      const value = options.env?.[name]
      if (value !== undefined) return { name, kind, value }
    }
  return undefined
}

/** Names the variable that would be used, if any. */
export function credentialVariable(options: CredentialOptions): string | undefined {
  return firstVariable(options)?.name
}

/** Bytes of a key file or a passphrase, and what to call them in messages. */
interface Given {
  readonly kind: "key" | "passphrase"
  readonly bytes: Buffer
  readonly origin: string
}

/** Credential options of which everything explicit was read: descriptors, pipes and commands give their bytes once. */
export interface GatheredCredentials extends CredentialOptions, Disposable {
  readonly gathered: readonly Given[]
}

/** A secret in a buffer of our own. */
export function copyOf(bytes: Uint8Array): Buffer {
  const copy = allocateSecret(bytes.length)
  copy.set(bytes)
  return copy
}

/** Without the line end at the very end of a passphrase's file. */
function withoutLineEnd(file: Buffer): Buffer {
  const last = file.at(-1) === 0x0a ? (file.at(-2) === 0x0d ? 2 : 1) : 0
  return file.subarray(0, file.length - last)
}

async function fromVariable({ name, kind, value }: Variable): Promise<Given> {
  if (value === "") throw new KeyError("ERR_KEY_MISSING", `${name} is set but empty`)
  if (kind === "path")
    return { kind: "key", bytes: await readSecretFile(value, MAX_KEY_FILE_SIZE), origin: value }
  const bytes = allocateSecret(Buffer.byteLength(value))
  bytes.write(value)
  return { kind: kind === "data" ? "key" : "passphrase", bytes, origin: name }
}

/** Everything explicit, in order. */
async function* explicitly(
  options: CredentialOptions,
  signal: AbortSignal | undefined,
): AsyncGenerator<Given> {
  const { pemPaths = [], pemData = [], keyFd, keyCommand, passphraseFile, passphraseFd } = options
  const { passphrase, askPassphrase } = options
  for (const path of pemPaths)
    yield { kind: "key", bytes: await readSecretFile(path, MAX_KEY_FILE_SIZE, signal), origin: path }
  for (const [index, data] of pemData.entries())
    yield { kind: "key", bytes: copyOf(data), origin: `key ${index + 1}` }
  if (keyFd !== undefined)
    yield {
      kind: "key",
      bytes: await readDescriptor(keyFd, MAX_KEY_FILE_SIZE),
      origin: `descriptor ${keyFd}`,
    }
  if (keyCommand !== undefined) {
    const bytes = await readCommand(keyCommand, MAX_KEY_FILE_SIZE, signal)
    yield { kind: "key", bytes, origin: "the output of the key command" }
  }
  if (passphrase !== undefined)
    yield { kind: "passphrase", bytes: copyOf(passphrase), origin: "the passphrase" }
  if (askPassphrase !== undefined) {
    const typed = await askPassphrase()
    const bytes = copyOf(typed)
    typed.fill(0)
    yield { kind: "passphrase", bytes, origin: "the passphrase" }
  }
  const limit = MAX_PASSPHRASE_SIZE + LINE_END_SIZE
  if (passphraseFile !== undefined) {
    const file = await readSecretFile(passphraseFile, limit, signal)
    yield { kind: "passphrase", bytes: withoutLineEnd(file), origin: passphraseFile }
  }
  if (passphraseFd !== undefined) {
    const bytes = withoutLineEnd(await readDescriptor(passphraseFd, limit))
    yield { kind: "passphrase", bytes, origin: `descriptor ${passphraseFd}` }
  }
}

/**
 * Reads everything explicit, so that the options can be used more than once. Disposing wipes it.
 *
 * @throws KeyError; RangeError for a number that is no descriptor.
 */
export async function gatherCredentials(
  options: CredentialOptions,
  signal?: AbortSignal,
): Promise<GatheredCredentials> {
  const gathered: Given[] = []
  const wipe = (): void => {
    for (const { bytes } of gathered) bytes.fill(0)
  }
  try {
    for await (const given of explicitly(options, signal)) gathered.push(given)
    return { ...options, gathered, [Symbol.dispose]: wipe }
  } catch (error) {
    wipe()
    throw error
  }
}

function isGathered(options: CredentialOptions): options is GatheredCredentials {
  return "gathered" in options
}

function passphraseOf({ bytes, origin }: Given): Credential {
  if (bytes.length === 0)
    throw new KeyError(
      "ERR_KEY_MISSING",
      `${origin}: the passphrase is empty, and an empty passphrase protects nothing`,
    )
  if (bytes.length > MAX_PASSPHRASE_SIZE)
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: a passphrase has at most ${MAX_PASSPHRASE_SIZE} bytes`)
  return { kind: "passphrase", passphrase: new Secret(bytes), origin }
}

type ParseKey = (file: Buffer, origin: string, password?: Buffer) => Promise<KeyObject>

/** Where the password of a key file comes from. */
export type KeyPasswordOptions = Pick<
  CredentialOptions,
  "keyPassphrase" | "keyPassphraseFile" | "keyPassphraseFd" | "askKeyPassphrase"
>

/** The password of key files that the options name, asked for when it is needed. Disposing wipes it. */
export class KeyPassword implements Disposable {
  readonly #options: KeyPasswordOptions
  #given: Buffer | undefined

  constructor(options: KeyPasswordOptions) {
    this.#options = options
  }
  /** What `use` makes of a key, without a password and then, while it says that one is needed, with each that there is. */
  async unlock<T>(origin: string, use: (password: Buffer | undefined) => Promise<T>): Promise<T> {
    for (let attempt = 0, tried: Buffer | undefined; ;) {
      try {
        return await use(tried)
      } catch (error) {
        const code = error instanceof KeyError ? error.code : undefined
        if (code !== "ERR_KEY_LOCKED" && code !== "ERR_KEY_PASSPHRASE") throw error
        tried = await this.next(origin, ++attempt)
        if (tried === undefined) throw error
      }
    }
  }
  /** undefined: none is left to try. */
  async next(origin: string, attempt: number): Promise<Buffer | undefined> {
    const { keyPassphrase, keyPassphraseFile, keyPassphraseFd, askKeyPassphrase } = this.#options
    if ([keyPassphrase, keyPassphraseFile, keyPassphraseFd].some((given) => given !== undefined)) {
      if (attempt > 1) return undefined
      const limit = MAX_PASSWORD_SIZE + LINE_END_SIZE
      if (keyPassphrase !== undefined) this.#given ??= copyOf(keyPassphrase)
      else if (keyPassphraseFile !== undefined)
        this.#given ??= withoutLineEnd(await readSecretFile(keyPassphraseFile, limit))
      else if (keyPassphraseFd !== undefined)
        this.#given ??= withoutLineEnd(await readDescriptor(keyPassphraseFd, limit))
      if (this.#given !== undefined) return this.#checked(this.#given, origin)
    }
    const answer = attempt > MAX_ATTEMPTS ? undefined : await askKeyPassphrase?.(origin, attempt)
    if (answer === undefined) return undefined
    this.#given?.fill(0)
    this.#given = copyOf(answer)
    answer.fill(0)
    return this.#checked(this.#given, origin)
  }
  #checked(password: Buffer, origin: string): Buffer {
    if (password.length > MAX_PASSWORD_SIZE)
      throw new KeyError(
        "ERR_KEY_FORMAT",
        `${origin}: a key's password has at most ${MAX_PASSWORD_SIZE} bytes`,
      )
    return password
  }
  [Symbol.dispose](): void {
    this.#given?.fill(0)
  }
}

async function keyOf(given: Given, password: KeyPassword, parse: ParseKey): Promise<Credential> {
  const { bytes, origin } = given
  const key = await password.unlock(origin, (tried) => parse(bytes, origin, tried))
  return { kind: "rsa", key, origin }
}

type CheckKey = (key: KeyObject, origin: string) => KeyObject

async function resolve(
  options: CredentialOptions,
  parse: ParseKey,
  check: CheckKey,
  signal: AbortSignal | undefined,
): Promise<Credential[]> {
  if (!isGathered(options)) {
    using gathered = await gatherCredentials(options, signal)
    return await resolve(gathered, parse, check, signal)
  }
  const found: Credential[] = []
  using password = new KeyPassword(options)
  const variable = hasExplicitCredentials(options) ? undefined : firstVariable(options)
  const own = variable === undefined ? undefined : await fromVariable(variable)
  try {
    for (const [index, key] of (options.keys ?? []).entries()) {
      const origin = `key object ${index + 1}`
      found.push({ kind: "rsa", key: check(key, origin), origin })
    }
    for (const given of own === undefined ? options.gathered : [own]) {
      signal?.throwIfAborted()
      found.push(given.kind === "key" ? await keyOf(given, password, parse) : passphraseOf(given))
    }
    return found
  } catch (error) {
    wipeCredentials(found)
    throw error
  } finally {
    own?.bytes.fill(0)
  }
}

/** Was anything given explicitly? */
export function hasExplicitCredentials(options: CredentialOptions): boolean {
  const { pemPaths = [], pemData = [], keys = [] } = options
  return (
    pemPaths.length + pemData.length + keys.length > 0 ||
    [
      options.keyFd,
      options.keyCommand,
      options.passphrase,
      options.askPassphrase,
      options.passphraseFile,
      options.passphraseFd,
    ].some((given) => given !== undefined)
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
 * Who shall be able to open a new image: everything explicit, or else the first variable that is set.
 *
 * @param onNotice - Hears about a passphrase that looks like a mistake.
 * @throws KeyError, before anything is built.
 */
export async function resolveRecipients(
  options: CredentialOptions,
  onNotice: (text: string) => void,
  signal?: AbortSignal,
): Promise<Credential[]> {
  const checkKey: CheckKey = (key, origin) => {
    if (key.type === "secret") throw new TypeError(`${origin} is no key of a pair`)
    admitKey(key, origin)
    return checkRecipient(checkRsa(key.type === "private" ? createPublicKey(key) : key, origin), origin)
  }
  const found = await resolve(options, parsePublicKey, checkKey, signal)
  for (const credential of found)
    if (credential.kind === "passphrase" && isFileName(credential.passphrase.bytes))
      onNotice(`${credential.origin} holds the name of a file; was what is in that file meant?`)
  return found
}

/**
 * What to open an image with, in the order to try: everything explicit, or else the first variable that is set.
 *
 * @throws KeyError when one of them cannot be read.
 */
export async function resolveOpeners(
  options: CredentialOptions,
  signal?: AbortSignal,
): Promise<Credential[]> {
  const checkKey: CheckKey = (key, origin) => {
    if (key.type !== "private")
      throw new KeyError("ERR_KEY_PUBLIC", `${origin}: a private key is needed, found a ${key.type} key`)
    return checkRsa(admitKey(key, origin), origin)
  }
  return await resolve(options, parsePrivateKey, checkKey, signal)
}
