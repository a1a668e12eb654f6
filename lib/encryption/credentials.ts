// Credentials: what the caller names and what the environment names, in the order of precedence that the peers have.
import { createPublicKey, type KeyObject } from "node:crypto"
import { existsSync, readdirSync } from "node:fs"
import { types } from "node:util"
import * as is from "../arguments.ts"
import { overwritingFreed } from "../device/process.ts"
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
import type { SifObject } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import { gnuPgSource, type GnuPgSource } from "./gnupg-keys.ts"
import { keyProviderSource, type KeyProviderSource } from "./key-providers.ts"
import { configuredCredentials } from "./key-configuration.ts"
import { readSecret, readSecretFile, secretSource, type SecretSource } from "./secret-sources.ts"

/**
 * One key or passphrase: of somebody who shall be able to open an image (`recipients`), or to open it with (`unlock`). A list of
 * them is in the order in which they are tried.
 */
export type CredentialSource =
  | {
      /**
       * A file with an RSA key, or its bytes: a public one for a recipient, a private one to open. PEM or DER of any kind,
       * certificates, OpenSSH, JWK, PKCS#12: docs/cli.md has the list. Or the key itself.
       */
      readonly key: SecretSource | KeyObject
      /** Of a protected key file. It is read, or asked for, only if one is needed; asked for at most three times. */
      readonly password?: SecretSource | undefined
    }
  /** Where it is in a file, from a descriptor or a command, one line end at its very end is not part of it. */
  | { readonly passphrase: SecretSource }
  | {
      /**
       * Where to look for `SIFCRYPT_`, `APPTAINER_` and `SINGULARITY_ENCRYPTION_PEM_PATH`, `…_PEM_DATA` and `…_PASSPHRASE`,
       * usually `process.env`. It counts only where the list names nothing else.
       */
      readonly environment: Readonly<Record<string, string | undefined>>
      /** Of a protected key file. */
      readonly password?: SecretSource | undefined
    }
  | {
      /**
       * A file that says which key opens which image (docs/cli.md, `keys.toml`). It counts only where the list names nothing else and no
       * environment does.
       */
      readonly keysFile: string
      /** Of a protected key file that it does not name one for. */
      readonly password?: SecretSource | undefined
    }
  /** Opens layers of OCI images, and nothing else. It is asked about no image that it did not wrap keys of. */
  | KeyProviderSource
  /** Likewise. Secret keys stay with GnuPG's agent. */
  | GnuPgSource

type Kind<K extends string> = Extract<CredentialSource, Readonly<Record<K, unknown>>>

const credentialSource = is.variants<CredentialSource>({
  key: is.shape<Kind<"key">>({
    key: is.required((value, name) => (types.isKeyObject(value) ? value : secretSource(value, name))),
    password: secretSource,
  }),
  passphrase: is.shape<Kind<"passphrase">>({ passphrase: is.required(secretSource) }),
  environment: is.shape<Kind<"environment">>({
    environment: is.required(is.variables),
    password: secretSource,
  }),
  keysFile: is.shape<Kind<"keysFile">>({ keysFile: is.required(is.path), password: secretSource }),
  provider: keyProviderSource,
  gnupg: gnuPgSource,
})

/**
 * A list that names somebody. An empty one, or one that is undefined, is a key that got lost on the way here.
 *
 * @throws KeyError `ERR_KEY_MISSING`.
 */
export const credentialList: is.Check<CredentialSource[]> = (value, name) => {
  const sources = value === undefined ? [] : is.list(credentialSource)(value, name)
  if (sources.length === 0)
    throw new KeyError("ERR_KEY_MISSING", `${name} was given and names no key and no passphrase`)
  return sources
}

/** One way to an image's secret. */
export type Credential =
  | { readonly kind: "rsa"; readonly key: KeyObject; readonly origin: string }
  | { readonly kind: "passphrase"; readonly passphrase: Secret; readonly origin: string }

/** Longest passphrase, bytes. */
const MAX_PASSPHRASE_SIZE: Bytes = 8192
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
function firstVariable(environment: Kind<"environment">["environment"]): Variable | undefined {
  for (const prefix of prefixes)
    for (const [suffix, kind] of kinds) {
      const name = `${prefix}_ENCRYPTION_${suffix}`
      const value = environment[name]
      if (value !== undefined) return { name, kind, value }
    }
  return undefined
}

/** Names the variable that would be used, if any. */
export function credentialVariable(sources: readonly CredentialSource[]): string | undefined {
  for (const source of sources) if ("environment" in source) return firstVariable(source.environment)?.name
  return undefined
}

/** Does it count whatever else is there? */
export function isExplicit(source: CredentialSource): boolean {
  return !("environment" in source) && !("keysFile" in source)
}

/** Bytes of a key file or a passphrase, and what to call them in messages. */
type Given =
  | { readonly kind: "key"; readonly bytes: Buffer; readonly origin: string; readonly password: KeyPassword }
  | { readonly kind: "object"; readonly key: KeyObject; readonly origin: string }
  | { readonly kind: "passphrase"; readonly bytes: Buffer; readonly origin: string }
  /** What opens layers of OCI images alone. */
  | { readonly kind: "layers"; readonly source: KeyProviderSource | GnuPgSource; readonly origin: string }

/**
 * Credentials as they were named. Each source is read once, when one is needed first: descriptors, pipes and commands give their
 * bytes once, and nobody is asked before all that can refuse an image has had its say. Disposing wipes what was read.
 */
export class Credentials implements Disposable {
  readonly sources: readonly CredentialSource[]
  readonly #passwords = new Map<SecretSource | undefined, KeyPassword>()
  readonly #wipe: Buffer[] = []
  readonly #made: Disposable[] = []
  #given: Promise<readonly Given[]> | undefined

  constructor(sources: readonly CredentialSource[] = []) {
    const named = sources.filter(isExplicit)
    this.sources = named.length > 0 ? named : sources
  }

  /** @throws KeyError when one of them cannot be read. */
  read(signal?: AbortSignal): Promise<readonly Given[]> {
    return (this.#given ??= this.#read(signal))
  }

  async #read(signal: AbortSignal | undefined): Promise<Given[]> {
    const given: Given[] = []
    for (const [index, source] of this.sources.entries()) {
      signal?.throwIfAborted()
      if ("environment" in source) {
        const variable = firstVariable(source.environment)
        if (variable !== undefined) given.push(await this.#variable(variable, source.password, signal))
      } else if ("keysFile" in source) continue
      else if ("passphrase" in source) {
        const limit = MAX_PASSPHRASE_SIZE
        const found = await readSecret(source.passphrase, {
          limit,
          what: "the passphrase",
          signal,
          text: true,
        })
        if (found !== undefined) given.push({ kind: "passphrase", ...this.#kept(found) })
      } else if ("provider" in source)
        given.push({ kind: "layers", source, origin: `provider:${source.provider}` })
      else if ("gnupg" in source) given.push({ kind: "layers", source, origin: "GnuPG" })
      else if (types.isKeyObject(source.key))
        given.push({ kind: "object", key: source.key, origin: `key object ${index + 1}` })
      else {
        const limit = MAX_KEY_FILE_SIZE
        const found = await readSecret(source.key, { limit, what: `key ${index + 1}`, signal })
        if (found !== undefined)
          given.push({ kind: "key", ...this.#kept(found), password: this.#passwordOf(source.password) })
      }
    }
    return given
  }

  async #variable(
    { name, kind, value }: Variable,
    password: SecretSource | undefined,
    signal: AbortSignal | undefined,
  ): Promise<Given> {
    if (value === "") throw new KeyError("ERR_KEY_MISSING", `${name} is set but empty`)
    if (kind === "path") {
      const read = { bytes: await readSecretFile(value, MAX_KEY_FILE_SIZE, signal), origin: value }
      return { kind: "key", ...this.#kept(read), password: this.#passwordOf(password) }
    }
    const bytes = allocateSecret(Buffer.byteLength(value))
    bytes.write(value)
    const found = this.#kept({ bytes, origin: name })
    return kind === "data"
      ? { kind: "key", ...found, password: this.#passwordOf(password) }
      : { kind: "passphrase", ...found }
  }

  /** What a configuration says opens this image, each to be tried for itself. Wiped with the rest. */
  async configuredFor(
    image: SifImage,
    messages: readonly SifObject[],
    signal?: AbortSignal,
  ): Promise<readonly Credentials[]> {
    const source = this.sources.find((one): one is Kind<"keysFile"> => "keysFile" in one)
    if (source === undefined) return []
    const { keysFile, password } = source
    const found = await configuredCredentials(keysFile, image, messages, password, signal)
    return found.map((one) => {
      const made = new Credentials([one])
      this.adopt(made)
      return made
    })
  }

  /** What was made of a credential and is wiped with the rest. */
  adopt(made: Disposable): void {
    this.#made.push(made)
  }

  #kept<T extends { readonly bytes: Buffer }>(found: T): T {
    this.#wipe.push(found.bytes)
    return found
  }

  /** Several keys may be under one password, which a descriptor gives once. */
  #passwordOf(source: SecretSource | undefined): KeyPassword {
    const password = this.#passwords.get(source) ?? new KeyPassword(source)
    this.#passwords.set(source, password)
    return password
  }

  [Symbol.dispose](): void {
    for (const bytes of this.#wipe) bytes.fill(0)
    for (const made of this.#made) made[Symbol.dispose]()
    for (const password of this.#passwords.values()) password[Symbol.dispose]()
  }
}

function passphraseOf(bytes: Buffer, origin: string): Credential {
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

/** The password of key files, asked for when it is needed. Disposing wipes it. */
export class KeyPassword implements Disposable {
  readonly #source: SecretSource | undefined
  #given: Buffer | undefined

  constructor(source: SecretSource | undefined) {
    this.#source = source
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
    if (this.#source === undefined) return undefined
    const asked = "ask" in this.#source
    if (attempt > (asked ? MAX_ATTEMPTS : 1)) return undefined
    if (asked || this.#given === undefined) {
      const limit = MAX_PASSWORD_SIZE
      const found = await readSecret(this.#source, { limit, what: origin, attempt, text: true })
      this.#given?.fill(0)
      this.#given = found?.bytes
    }
    if (this.#given !== undefined && this.#given.length > MAX_PASSWORD_SIZE)
      throw new KeyError(
        "ERR_KEY_FORMAT",
        `${origin}: a key's password has at most ${MAX_PASSWORD_SIZE} bytes`,
      )
    return this.#given
  }
  [Symbol.dispose](): void {
    this.#given?.fill(0)
  }
}

type CheckKey = (key: KeyObject, origin: string) => KeyObject

async function resolve(
  credentials: Credentials,
  parse: ParseKey,
  check: CheckKey,
  signal: AbortSignal | undefined,
  checkLayers: (origin: string) => void = () => undefined,
): Promise<Credential[]> {
  const found: Credential[] = []
  try {
    for (const given of await credentials.read(signal)) {
      signal?.throwIfAborted()
      const { origin } = given
      if (given.kind === "layers") checkLayers(origin)
      else if (given.kind === "passphrase") found.push(passphraseOf(given.bytes, origin))
      else if (given.kind === "object") found.push({ kind: "rsa", key: check(given.key, origin), origin })
      else {
        const { bytes } = given
        const key = await given.password.unlock(origin, (tried) => parse(bytes, origin, tried))
        found.push({ kind: "rsa", key, origin })
      }
    }
    return found
  } catch (error) {
    wipeCredentials(found)
    throw error
  }
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
 * Who shall be able to open a new image.
 *
 * @param onNotice - Hears about a passphrase that looks like a mistake.
 * @throws KeyError, before anything is built.
 */
export async function resolveRecipients(
  credentials: Credentials,
  onNotice: (text: string) => void,
  signal?: AbortSignal,
): Promise<Credential[]> {
  const checkKey: CheckKey = (key, origin) => {
    if (key.type === "secret") throw new TypeError(`${origin} is no key of a pair`)
    admitKey(key, origin)
    return checkRecipient(checkRsa(key.type === "private" ? createPublicKey(key) : key, origin), origin)
  }
  const found = await resolve(credentials, parsePublicKey, checkKey, signal, (origin) => {
    throw new KeyError("ERR_KEY_TYPE", `${origin}: it is for layers of OCI images alone`)
  })
  for (const credential of found)
    if (credential.kind === "passphrase" && isFileName(credential.passphrase.bytes))
      onNotice(`${credential.origin} holds the name of a file; was what is in that file meant?`)
  return found
}

/**
 * What to open an image with, in the order to try.
 *
 * @throws KeyError when one of them cannot be read.
 */
export async function resolveOpeners(credentials: Credentials, signal?: AbortSignal): Promise<Credential[]> {
  const checkKey: CheckKey = (key, origin) => {
    if (key.type !== "private")
      throw new KeyError("ERR_KEY_PUBLIC", `${origin}: a private key is needed, found a ${key.type} key`)
    return checkRsa(admitKey(key, origin), origin)
  }
  // OpenSSL frees the DER that it has read as it is.
  return await overwritingFreed(() => resolve(credentials, parsePrivateKey, checkKey, signal))
}
