// An RSA key in a PKCS#11 token, which does what only it can. Modules are libraries of others: none is loaded into this process, openssl's
// engine for them is a process of its own.
import type { KeyObject } from "node:crypto"
import { closeSync } from "node:fs"
import { programEnvironment } from "../caller-environment.ts"
import { EnvironmentError, KeyError } from "../errors.ts"
import { parsePublicKey } from "../key/key-file.ts"
import { loadAddon } from "../native/load.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import { Turns } from "../turns.ts"
import type { Bytes, Milliseconds } from "../units.ts"

/** Many a token, and many a module, serves one at a time: under load SoftHSM's ended with SIGSEGV for one of several. */
const turns = new Turns(1)

const MAX_OUTPUT: Bytes = 64 << 10
/** A person may have to touch it. */
const TIMEOUT: Milliseconds = 60_000

/** How a key is reached. */
export interface TokenPlace {
  /** Of its URI, without its type. */
  readonly key: string
  readonly module: string
  readonly env: Readonly<Record<string, string>>
}

/** One key of a token. Disposing wipes its PIN. */
export class TokenKey implements Disposable {
  readonly #place: TokenPlace
  readonly #pin: Buffer | undefined
  readonly #origin: string
  readonly #signal: AbortSignal | undefined
  #modulus = Buffer.alloc(0)

  /** @param pin - Becomes this one's. */
  constructor(place: TokenPlace, pin: Buffer | undefined, origin: string, signal: AbortSignal | undefined) {
    this.#place = place
    this.#pin = pin
    this.#origin = origin
    this.#signal = signal
  }

  /**
   * Its public half.
   *
   * @throws KeyError `ERR_KEY_TOKEN`, `ERR_KEY_PASSPHRASE` for a wrong PIN, `ERR_KEY_TYPE`; EnvironmentError `ERR_ENV_NO_PROGRAM`; the
   * signal's reason.
   */
  async publicKey(): Promise<KeyObject> {
    return await this.#read("public", ["-pubin"])
  }

  /**
   * Looks whether the key is there and the PIN is the right one: a token that is told a wrong one a few times locks itself.
   *
   * @throws As {@link publicKey}.
   */
  async check(): Promise<void> {
    const { n = "" } = (await this.#read("private", [])).export({ format: "jwk" })
    this.#modulus = Buffer.from(n, "base64url")
  }

  async #read(type: string, form: readonly string[]): Promise<KeyObject> {
    const pem = await this.#run(
      ["pkey", "-engine", "pkcs11", "-inform", "engine", ...form, "-pubout", "-in"],
      type,
    )
    return await parsePublicKey(pem, `${this.#origin}: the key in the token`)
  }

  /**
   * @returns What was encrypted, which the caller wipes; undefined: not for this key.
   * @throws As {@link publicKey}.
   */
  async decrypt(message: Buffer, oaepHash: "sha1" | "sha256"): Promise<Buffer | undefined> {
    // For a larger one a token has no other word than for its own failures.
    if (message.length !== this.#modulus.length || message.compare(this.#modulus) >= 0) return undefined
    const padding = ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", `rsa_oaep_md:${oaepHash}`]
    try {
      return await this.#run(
        ["pkeyutl", "-decrypt", "-engine", "pkcs11", "-keyform", "engine", ...padding, "-inkey"],
        "private",
        message,
      )
    } catch (error) {
      const isAnothers =
        error instanceof KeyError && /oaep decoding error|padding check failed/i.test(complaintOf(error))
      if (isAnothers) return undefined
      throw error
    }
  }

  #run(args: readonly string[], type: string, input?: Buffer): Promise<Buffer> {
    return turns.take(() => this.#runNow(args, type, input))
  }

  async #runNow(args: readonly string[], type: string, input: Buffer | undefined): Promise<Buffer> {
    const { key, module, env } = this.#place
    // Opened anew by its name, which a pipe can be.
    const pin = this.#pin === undefined ? undefined : loadAddon().filledPipe({ bytes: this.#pin })
    try {
      return await runProgram(
        "openssl",
        [...args, `pkcs11:${key};type=${type}${pin === undefined ? "" : ";pin-source=/dev/fd/3"}`],
        {
          input,
          limit: MAX_OUTPUT,
          timeoutMs: TIMEOUT,
          env: { ...programEnvironment(), ...env, PKCS11_MODULE_PATH: module },
          alone: true,
          descriptor: pin,
          signal: this.#signal,
        },
      )
    } catch (cause) {
      if (cause instanceof ProgramFailure) throw this.#failure(cause)
      throw cause
    } finally {
      if (pin !== undefined) closeSync(pin)
    }
  }

  #failure(cause: ProgramFailure): Error {
    const { complaint } = cause
    if (cause.why === "absent" || /no such engine/i.test(complaint))
      return new EnvironmentError(
        "ERR_ENV_NO_PROGRAM",
        `${this.#origin}: openssl with its engine for PKCS#11 (libengine-pkcs11-openssl, openssl-pkcs11) is not installed`,
        { cause },
      )
    const fail = (why: string): KeyError =>
      new KeyError("ERR_KEY_TOKEN", `${this.#origin}: ${why}`, { cause })
    if (/login failed|pin incorrect/i.test(complaint))
      return new KeyError("ERR_KEY_PASSPHRASE", `${this.#origin}: the token refuses this PIN`, { cause })
    if (/no matching initialized token/i.test(complaint)) return fail("there is no such token")
    if (/object not found|key was not found/i.test(complaint)) return fail("the token has no such key")
    if (/unable to load (?:PKCS#11 )?module/i.test(complaint))
      return fail(`${this.#place.module} cannot be loaded`)
    return fail(`openssl ${cause.message}`)
  }

  [Symbol.dispose](): void {
    this.#pin?.fill(0)
  }
}

function complaintOf({ cause }: KeyError): string {
  return cause instanceof ProgramFailure ? cause.complaint : ""
}
