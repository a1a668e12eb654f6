// The command line of an OCI runtime, as crun takes it, as far as it has to be understood.
import { isJsonObject, parseJson } from "../json.ts"

/** An option, or a word that is none, with the words that it was given by. */
interface Word {
  /** Long; of one that is not known as it is written. */
  readonly option?: string
  readonly value?: string
  readonly written: readonly string[]
}

/** Options with a value, by what stands for them. */
type Valued = ReadonlyMap<string, string>

const globals: Valued = new Map(
  ["cgroup-manager", "log", "log-format", "root", "rootless"].map((name) => [`--${name}`, name]),
)

/** Of the commands that make a container. */
const making: Valued = new Map([
  ...["bundle", "config", "console-socket", "pid-file", "preserve-fds"].map(
    (name) => [`--${name}`, name] as const,
  ),
  ["-b", "bundle"],
  ["-f", "config"],
])

function wordAt(words: readonly string[], at: number, valued: Valued): Word {
  const word = words[at] ?? ""
  if (!word.startsWith("-") || word === "-") return { written: [word] }
  const short = valued.get(word.slice(0, 2))
  if (short !== undefined && word.length > 2) return { option: short, value: word.slice(2), written: [word] }
  const [, name = word, given] = /^(--[^=]+)=(.*)$/s.exec(word) ?? []
  const option = valued.get(name)
  if (option === undefined) return { option: name, written: [word] }
  if (given !== undefined) return { option, value: given, written: [word] }
  const next = words[at + 1]
  return next === undefined ? { option, written: [word] } : { option, value: next, written: [word, next] }
}

/** Up to `--`, or with `isOrdered` the first word that is no option. */
function split(words: readonly string[], valued: Valued, isOrdered: boolean): readonly Word[] {
  const found: Word[] = []
  for (let at = 0; at < words.length && words[at] !== "--";) {
    const word = wordAt(words, at, valued)
    if (isOrdered && word.option === undefined) break
    found.push(word)
    at += word.written.length
  }
  return found
}

/** What an OCI runtime is asked to do. */
export class RuntimeCall {
  readonly #before: readonly Word[]
  /** Undefined: nothing, or about itself. */
  readonly command: string | undefined
  readonly #after: readonly Word[]
  /** From `--` on. */
  readonly #last: readonly string[]

  constructor(words: readonly string[]) {
    this.#before = split(words, globals, true)
    const at = this.#before.reduce((sum, { written }) => sum + written.length, 0)
    this.command = words[at]
    const rest = words.slice(at + 1)
    this.#after = split(rest, making, false)
    this.#last = rest.slice(this.#after.reduce((sum, { written }) => sum + written.length, 0))
  }

  /** Does it make a container of a bundle? */
  get makesContainer(): boolean {
    return this.command === "create" || this.command === "run"
  }

  /** What was said last. */
  #value(words: readonly Word[], name: string): string | undefined {
    return words.findLast(({ option, value }) => option === name && value !== undefined)?.value
  }

  get log(): string | undefined {
    return this.#value(this.#before, "log")
  }

  get logsJson(): boolean {
    return this.#value(this.#before, "log-format") === "json"
  }

  get bundle(): string {
    return this.#value(this.#after, "bundle") ?? "."
  }

  /** Relative to the bundle. */
  get config(): string {
    return this.#value(this.#after, "config") ?? "config.json"
  }

  /** So many descriptors above the standard ones are the container's. */
  get preserved(): string | undefined {
    return this.#value(this.#after, "preserve-fds")
  }

  /** The same of another configuration. */
  withConfig(file: string): readonly string[] {
    return [
      ...this.#before.flatMap(({ written }) => written),
      this.command ?? "",
      `--config=${file}`,
      ...this.#after.filter(({ option }) => option !== "config").flatMap(({ written }) => written),
      ...this.#last,
    ]
  }
}

/** An error as a line of an OCI runtime's log, which is what engines show of it. */
export function logLine(message: string, asJson: boolean, time: Date): string {
  const when = time.toISOString()
  return asJson
    ? `${JSON.stringify({ msg: message, level: "error", time: when })}\n`
    : `${when}: ${message.replaceAll(/\s*\n\s*/g, " ")}\n`
}

/** What the runtime says of its features, with ours; of one that says nothing, the least there is. */
export function withOwnFeatures(said: string | undefined, annotations: string): string {
  const known = said === undefined ? undefined : parseJson(said)
  const features = isJsonObject(known) ? known : { ociVersionMin: "1.0.0", ociVersionMax: "1.0.2" }
  const { potentiallyUnsafeConfigAnnotations: unsafe } = features
  return `${JSON.stringify(
    {
      ...features,
      potentiallyUnsafeConfigAnnotations: [
        ...(Array.isArray(unsafe) ? (unsafe as unknown[]) : []),
        annotations,
      ],
    },
    null,
    2,
  )}\n`
}
