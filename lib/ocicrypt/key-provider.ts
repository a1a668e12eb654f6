// Key providers: programs and services of the user's that wrap and unwrap layer keys, in ocicrypt's protocol. They get the key that is to
// be wrapped, or what was wrapped, and the parameters that the user gave for them; no other key and no other provider's parameter.
import { programEnvironment } from "../caller-environment.ts"
import { KeyError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { takeSecret, writeSecret } from "../key/secret-json.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import type { ProviderEntry } from "./provider-config.ts"
import { callService } from "./provider-service.ts"

/** As `provider:NAME[:PARAMETER]` has it. */
export interface ProviderChoice {
  readonly name: string
  readonly parameters: readonly string[]
}

/** Of one answer: what is wrapped has some hundred bytes. */
const MAX_ANSWER: Bytes = 2 << 20
/** A person may have to press a button. */
const TIMEOUT: Milliseconds = 60_000

/** What it gets where no parameter was given. */
const ENABLED = "Enabled"

const base64 = (text: string): string => Buffer.from(text).toString("base64")

/** One that the user has named. */
export class KeyProvider {
  readonly name: string
  readonly #entry: ProviderEntry
  readonly #parameters: string
  readonly #signal: AbortSignal | undefined
  readonly #timeout: Milliseconds

  constructor(
    { name, parameters }: ProviderChoice,
    entry: ProviderEntry,
    {
      signal,
      timeoutMs = TIMEOUT,
    }: { readonly signal?: AbortSignal | undefined; readonly timeoutMs?: Milliseconds } = {},
  ) {
    this.name = name
    this.#entry = entry
    const given = parameters.length === 0 ? [ENABLED] : parameters
    this.#parameters = JSON.stringify({ [name]: given.map(base64) })
    this.#signal = signal
    this.#timeout = timeoutMs
  }

  /** @throws KeyError `ERR_KEY_PROVIDER`; the signal's reason. */
  async wrap(secret: Buffer): Promise<Buffer> {
    const ec = `{"Parameters":${this.#parameters},"DecryptConfig":{"Parameters":{}}}`
    const input = writeSecret(
      `{"op":"keywrap","keywrapparams":{"ec":${ec},"optsdata":`,
      secret,
      `},"keyunwrapparams":{"dc":null,"annotation":null}}`,
    )
    const answer = await this.#call("WrapKey", input)
    const annotation = this.#read(answer, "keywrapresults")["annotation"]
    const wrapped = typeof annotation === "string" ? Buffer.from(annotation, "base64") : undefined
    if (wrapped === undefined || wrapped.length === 0)
      throw this.#failure("its answer has nothing that was wrapped")
    return wrapped
  }

  /**
   * @returns What was wrapped, which the caller wipes.
   * @throws KeyError `ERR_KEY_PROVIDER`; the signal's reason.
   */
  async unwrap(message: Buffer): Promise<Buffer> {
    const annotation = message.toString("base64")
    const input = Buffer.from(
      `{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":${this.#parameters}},"annotation":"${annotation}"}}`,
    )
    const answer = await this.#call("UnWrapKey", input)
    try {
      const secret = takeSecret(answer, ["keyunwrapresults", "optsdata"])
      if (secret === undefined) throw this.#failure("its answer has no layer key")
      return secret
    } finally {
      answer.fill(0)
    }
  }

  #failure(why: string, cause?: unknown): KeyError {
    return new KeyError("ERR_KEY_PROVIDER", `the key provider ${this.name}: ${why}`, { cause })
  }

  #read(answer: Buffer, part: string): Readonly<Record<string, unknown>> {
    try {
      const value = (parseJson(answer.toString("utf8")) ?? {}) as Readonly<Record<string, unknown>>
      return (value[part] ?? {}) as Readonly<Record<string, unknown>>
    } catch (cause) {
      throw this.#failure("its answer is no JSON", cause)
    }
  }

  async #call(operation: "WrapKey" | "UnWrapKey", input: Buffer): Promise<Buffer> {
    const options = { limit: MAX_ANSWER, timeoutMs: this.#timeout, signal: this.#signal }
    try {
      return "path" in this.#entry
        ? await runProgram(this.#entry.path, this.#entry.args, {
            ...options,
            ...{ argv0: this.#entry.argv0, input, alone: true, env: programEnvironment() },
          })
        : await callService(this.#entry, operation, input, options)
    } catch (cause) {
      if (cause instanceof ProgramFailure) throw this.#failure(`it ${cause.message}`, cause)
      throw cause
    } finally {
      input.fill(0)
    }
  }
}
