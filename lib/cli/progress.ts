// How far something is: a bar on a terminal, that leaves no trace; or lines, where that is asked for.
import type { OnProgress } from "../index.ts"
import { errors } from "./output.ts"
import { humanBytes, inform, occupyLine, printable } from "./terminal.ts"
import { variable } from "./variables.ts"
import { tellsNews } from "./verbosity.ts"

const kinds = ["auto", "bar", "plain", "none"] as const
export type ProgressKind = (typeof kinds)[number]

/** For commands that take their time. */
export const progressRow: readonly [
  flags: "--progress <kind>",
  help: string,
  values: readonly ProgressKind[],
] = [
  "--progress <kind>",
  "auto (default): a bar on a terminal; bar: on a dumb one, too; plain: a line every few seconds; none",
  kinds,
]

let asked: ProgressKind = "auto"

/** What the command line asks for; else the variable. A word that is none of ours is somebody else's. */
export function setProgress(kind: unknown): void {
  const word = kind ?? variable("PROGRESS")
  asked = kinds.find((one) => one === word) ?? "auto"
}

/** What is shown now. A dumb terminal cannot take a line back. */
function shownKind(): "bar" | "plain" | "none" {
  if (!tellsNews() || asked === "none") return "none"
  if (asked === "plain") return "plain"
  if (!errors().isTTY) return "none"
  const { TERM = "dumb" } = process.env
  return TERM === "dumb" && asked !== "bar" ? "plain" : "bar"
}

const REDRAW_MS = 100
const LINE_MS = 5000
/** The rate is that of so long before now. */
const WINDOW_MS = 10_000
const BAR_WIDTH = 24

/** Seconds for people: `7 s`, `3 min`, `2 h 5 min`. */
export function humanTime(seconds: number): string {
  if (seconds < 100) return `${Math.ceil(seconds)} s`
  const minutes = Math.ceil(seconds / 60)
  return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

interface Sample {
  readonly at: number
  readonly bytes: number
}

/** `42%  1.2 GiB of 2.8 GiB, 310.0 MiB/s, 5 s left`, as far as it is known. */
export function progressText(first: Sample, now: Sample, total: number | undefined): string {
  const seconds = (now.at - first.at) / 1000
  const rate = seconds > 0.2 && now.bytes > first.bytes ? (now.bytes - first.bytes) / seconds : undefined
  const { bytes } = now
  const parts = [
    `${humanBytes(bytes)}${total === undefined ? "" : ` of ${humanBytes(total)}`}`,
    ...(rate === undefined ? [] : [`${humanBytes(rate)}/s`]),
    ...(rate === undefined || total === undefined ? [] : [`${humanTime((total - bytes) / rate)} left`]),
  ]
  const share = total === undefined || total === 0 ? "" : `${Math.floor((bytes / total) * 100)}%  `
  return `${share}${parts.join(", ")}`
}

/** `[=======>       ]` in so many columns. */
export function progressBar(share: number, width: number): string {
  const done = Math.round(Math.min(1, share) * (width - 2))
  const filled = done === width - 2 ? "=".repeat(done) : `${"=".repeat(done)}>`
  return `[${filled.slice(0, width - 2).padEnd(width - 2)}]`
}

/** A line of so many columns: one that wraps could not be taken back. */
export function progressLine(
  label: string,
  text: string,
  share: number | undefined,
  columns: number,
): string {
  const room = columns - 1 - text.length - 1
  const bar = share === undefined || room < BAR_WIDTH + 12 ? "" : `${progressBar(share, BAR_WIDTH)} `
  const left = Math.max(0, room - bar.length)
  const begin = label.length > left ? `${label.slice(0, Math.max(0, left - 1))}…` : label
  return `${begin} ${bar}${text}`.slice(0, columns - 1)
}

/** Shows how far one thing is. */
export class Progress {
  readonly #label: string
  #samples: Sample[] = []
  #told: number | undefined
  #isDrawn = false
  readonly #clear = (): void => {
    this.#isDrawn = false
    occupyLine(undefined)
    errors().write("\r\u001b[K")
  }

  constructor(label: string) {
    this.#label = printable(label)
  }

  /** @param total - Where it is known. */
  update(bytes: number, total?: number): void {
    const kind = shownKind()
    const at = performance.now()
    if (kind === "none" || at - (this.#samples.at(-1)?.at ?? -Infinity) < REDRAW_MS) return
    const now = { at, bytes }
    this.#samples = [...this.#samples.filter((one) => at - one.at < WINDOW_MS), now]
    const text = progressText(this.#samples[0] ?? now, now, total)
    if (kind === "bar") {
      const share = total === undefined || total === 0 ? undefined : bytes / total
      errors().write(`\r\u001b[K${progressLine(this.#label, text, share, errors().columns || 80)}`)
      this.#isDrawn = true
      occupyLine(this.#clear)
    } else if (at - (this.#told ??= at) >= LINE_MS) {
      this.#told = at
      inform(`${this.#label}: ${text}`)
    }
  }

  done(): void {
    if (this.#isDrawn) this.#clear()
  }
}

/**
 * Shows the progress of `work` meanwhile; and on a terminal says at its end what was done, how much that was and how long it took.
 *
 * @param done - What was done; without it nothing is said.
 */
export async function withProgress<T>(
  label: string,
  work: (onProgress: OnProgress | undefined) => Promise<T>,
  done?: string,
): Promise<T> {
  const progress = new Progress(label)
  const start = performance.now()
  let most = 0
  // Where nobody looks, nobody adds up how much there is.
  const isWatched = shownKind() !== "none" || errors().isTTY
  const onProgress: OnProgress = (bytes, total) => {
    most = Math.max(most, bytes)
    progress.update(bytes, total)
  }
  const result = await work(isWatched ? onProgress : undefined).finally(() => {
    progress.done()
  })
  // What had nothing to read says itself why.
  if (done !== undefined && most > 0) informDone(done, most, performance.now() - start)
  return result
}

/** What went well, for somebody at a terminal. */
export function informDone(what: string, bytes: number, milliseconds: number): void {
  if (errors().isTTY) inform(`${what}: ${humanBytes(bytes)} in ${(milliseconds / 1000).toFixed(1)} s`)
}
