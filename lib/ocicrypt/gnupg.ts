// Keys that GnuPG has: public ones are taken out of its ring, secret ones stay with its agent, which decrypts and asks for passwords itself.
import { readlinkSync } from "node:fs"
import { isatty } from "node:tty"
import { programEnvironment } from "../caller-environment.ts"
import { EnvironmentError, KeyError } from "../errors.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { pgpRecipients } from "./pgp.ts"

const MAX_LISTING: Bytes = 64 << 20
const MAX_LAYER_KEY: Bytes = 64 << 10
/** Somebody may have to find a card, or type a password. */
const TIMEOUT: Milliseconds = 300_000
/** Of a hidden recipient. */
const ANY_KEY = `0x${"0".repeat(16)}`

/** gpg is told of the terminal, which its own standard input is not. */
export function terminalVariable(): Readonly<Record<string, string>> {
  return process.env["GPG_TTY"] === undefined && isatty(0) ? { GPG_TTY: readlinkSync("/proc/self/fd/0") } : {}
}

/** Where GnuPG's rings are, and what ends it. */
export interface GnuPgPlace {
  /** Default: GnuPG's own. */
  readonly homeFolder?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/** What GnuPG lists of a key. */
export interface ListedKey {
  /** Of its primary key. */
  fingerprint: string
  readonly validity: string
  /** It, or one of its subkeys, may sign. */
  readonly signs: boolean
  readonly keyIds: string[]
  readonly userIds: string[]
}

/** A colon in a field is written by its number. */
function unescape(field: string): string {
  return field.replace(/\\x([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)))
}

/** Keys as `gpg --with-colons` lists them (doc/DETAILS of GnuPG). */
export function parseListing(listing: string): ListedKey[] {
  const keys: ListedKey[] = []
  for (const line of listing.split("\n")) {
    const fields = line.split(":")
    const [kind, validity = ""] = fields
    const signs = fields[11]?.includes("S") === true
    if (kind === "pub" || kind === "sec")
      keys.push({ fingerprint: "", validity, signs, keyIds: [], userIds: [] })
    const key = keys.at(-1)
    if (key === undefined) continue
    if (kind === "pub" || kind === "sec" || kind === "sub" || kind === "ssb")
      key.keyIds.push((fields[4] ?? "").toLowerCase())
    if (kind === "fpr") key.fingerprint ||= fields[9] ?? ""
    if (kind === "uid" && validity !== "r") key.userIds.push(unescape(fields[9] ?? ""))
  }
  return keys
}

/** Is it this key's fingerprint, one of its IDs, or the name or the address of one of its users, all of it? */
function isCalled({ fingerprint, keyIds, userIds }: ListedKey, who: string): boolean {
  const hex = who.replaceAll(/[\s:]/g, "").replace(/^0x/i, "").toLowerCase()
  if (/^(?:[0-9a-f]{16}|[0-9a-f]{40}|[0-9a-f]{64})$/.test(hex))
    return fingerprint.toLowerCase() === hex || keyIds.includes(hex)
  return userIds.some((user) => {
    const [, name = user, address = user] = /^(.*?)\s*(?:\([^)]*\)\s*)?<([^>]*)>$/.exec(user) ?? []
    return [user, name, address].includes(who)
  })
}

/** The rings of GnuPG. */
export class GnuPg {
  readonly #place: GnuPgPlace

  constructor(place: GnuPgPlace) {
    this.#place = place
  }

  async #run(args: readonly string[], limit: Bytes, input?: Uint8Array): Promise<Buffer> {
    const { homeFolder, signal } = this.#place
    const home = homeFolder === undefined ? [] : ["--homedir", homeFolder]
    const words = ["--batch", "--no-tty", "--quiet", ...home, ...args]
    try {
      return await runProgram("gpg", words, {
        input,
        limit,
        timeoutMs: TIMEOUT,
        env: { ...programEnvironment(), ...terminalVariable() },
        alone: true,
        signal,
      })
    } catch (cause) {
      if (!(cause instanceof ProgramFailure)) throw cause
      if (cause.why === "absent")
        throw new EnvironmentError("ERR_ENV_NO_PROGRAM", "gpg is not installed", { cause })
      throw new KeyError("ERR_KEY_GNUPG", `gpg ${cause.message}`, { cause })
    }
  }

  async #list(kind: "--list-keys" | "--list-secret-keys"): Promise<ListedKey[]> {
    return parseListing((await this.#run(["--with-colons", kind], MAX_LISTING)).toString("utf8"))
  }

  /**
   * The one public key that is called so, as GnuPG exports it.
   *
   * @throws KeyError `ERR_KEY_GNUPG`; EnvironmentError `ERR_ENV_NO_PROGRAM`; the signal's reason.
   */
  async exportKey(who: string): Promise<Buffer> {
    const { fingerprint } = chosen(await this.#list("--list-keys"), who, "key")
    return await this.#run(["--export", fingerprint], MAX_LISTING)
  }

  /**
   * The one secret key that is called so; without a name, all of them.
   *
   * @throws As {@link exportKey}.
   */
  async secretKeys(who: string | undefined): Promise<GnuPgKeys> {
    const keys = await this.#list("--list-secret-keys")
    const wanted = who === undefined ? keys : [chosen(keys, who, "secret key")]
    return new GnuPgKeys(
      wanted.flatMap(({ keyIds }) => keyIds),
      (message) => this.#run(["--decrypt"], MAX_LAYER_KEY, message),
    )
  }
}

function chosen(keys: readonly ListedKey[], who: string, kind: string): ListedKey {
  const found = keys.filter((key) => !/^[reidn]/.test(key.validity) && isCalled(key, who))
  const [first] = found
  if (first !== undefined && found.length === 1) return first
  const name = JSON.stringify(who)
  const fail = (why: string): KeyError => new KeyError("ERR_KEY_GNUPG", why)
  if (first !== undefined)
    throw fail(
      `gpg has ${found.length} keys called ${name}, and one has to be chosen: ${found.map(({ fingerprint }) => fingerprint).join(", ")}`,
    )
  throw fail(
    keys.some((key) => isCalled(key, who))
      ? `gpg's ${kind} ${name} has expired, was revoked or is disabled`
      : `gpg has no ${kind} ${name}: it is the name or the address of a user, all of it, a fingerprint or a key ID`,
  )
}

/** Secret keys that GnuPG's agent has. */
export class GnuPgKeys {
  readonly #ids: ReadonlySet<string>
  readonly #decrypt: (message: Buffer) => Promise<Buffer>

  constructor(ids: readonly string[], decrypt: (message: Buffer) => Promise<Buffer>) {
    this.#ids = new Set([ANY_KEY, ...ids.map((id) => `0x${id}`)])
    this.#decrypt = decrypt
  }

  /**
   * Unwraps a layer's key. GnuPG is only asked about what is for one of these keys.
   *
   * @returns What was wrapped, which the caller wipes; undefined: for none of these keys.
   * @throws OciError `ERR_OCI_FORMAT`; KeyError `ERR_KEY_GNUPG`; the signal's reason.
   */
  async unwrap(message: Buffer, what: string): Promise<Buffer | undefined> {
    const recipients = await pgpRecipients(message, what)
    return recipients.some((id) => this.#ids.has(id)) ? await this.#decrypt(message) : undefined
  }
}
