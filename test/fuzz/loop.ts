// Tries parsers on changed inputs. What comes out is a value or one of the errors that a parser has, never one that the command would call
// a defect, and it takes no more steps than any input may.
import { Session, type Profiler } from "node:inspector"
import { ContainerError } from "../../lib/errors.ts"
import type { Bytes } from "../../lib/units.ts"
import type { Parser } from "./parsers.ts"
import { anywhere, pick, type Random } from "./structure.ts"

/** Of JavaScript for one input: a function or a part of one that was entered. Some ten nanoseconds each. */
export const MOST_STEPS = 50_000_000
/** Of the processor, for what is no JavaScript: regular expressions, ciphers. */
export const MOST_MICROSECONDS = 5_000_000
/** Inputs are this long at most; what a bound says is said of those. */
export const MOST_INPUT: Bytes = 64 << 10
/** Steps are added up of so many inputs, and told apart only where they are too many. */
const TOGETHER = 64

/** Counts what V8 enters, while it exists. The same input takes the same steps, whatever else the machine does. */
export class Steps implements Disposable {
  readonly #session = new Session()

  constructor() {
    this.#session.connect()
    this.#session.post("Profiler.enable")
    this.#session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true })
  }

  /** Since it was asked last. */
  take(): number {
    let steps = 0
    this.#session.post(
      "Profiler.takePreciseCoverage",
      (failure: Error | null, { result }: Profiler.TakePreciseCoverageReturnType) => {
        if (failure !== null) throw failure
        for (const { functions } of result)
          for (const { ranges } of functions) for (const { count } of ranges) steps += count
      },
    )
    return steps
  }

  [Symbol.dispose](): void {
    this.#session.post("Profiler.stopPreciseCoverage")
    this.#session.disconnect()
  }
}

/** An input that broke a rule. */
export class Finding extends Error {
  override readonly name = "Finding"
  readonly input: Buffer

  constructor(what: string, input: Buffer, message: string, cause?: unknown) {
    super(`${what}: ${message}: ${input.toString("base64").slice(0, 20_000)}`, { cause })
    this.input = input
  }
}

/** One input. True: it was read; false: it was refused. */
export async function tryInput(
  what: string,
  { parse, throws = [] }: Parser,
  input: Buffer,
): Promise<boolean> {
  const before = process.cpuUsage()
  let good = true
  try {
    await parse(Buffer.from(input))
  } catch (error) {
    if (!(error instanceof ContainerError) && !throws.some((kind) => error instanceof kind))
      throw new Finding(what, input, "an error that it does not have", error)
    good = false
  }
  const { user, system } = process.cpuUsage(before)
  if (user + system > MOST_MICROSECONDS) throw new Finding(what, input, `${(user + system) / 1000} ms`)
  return good
}

/** Is any of these more work than an input may be? */
async function checkSteps(
  what: string,
  parser: Parser,
  inputs: readonly Buffer[],
  steps: Steps,
): Promise<void> {
  if (steps.take() <= MOST_STEPS) return
  for (const input of inputs) {
    await tryInput(what, parser, input)
    const taken = steps.take()
    if (taken > MOST_STEPS) throw new Finding(what, input, `${taken} steps`)
  }
}

/** Changes real inputs and tries them, until `more` says that it is enough. How many were read, and how many refused. */
export async function tryParser(
  what: string,
  parser: Parser,
  random: Random,
  more: (tried: number) => boolean,
  steps: Steps,
): Promise<{ readonly read: number; readonly refused: number }> {
  const { inputs, change = anywhere } = parser
  steps.take()
  let read = 0
  let tried = 0
  let last: Buffer[] = []
  while (more(tried)) {
    const changed = change(Buffer.from(pick(inputs, random)), random).subarray(0, MOST_INPUT)
    last.push(changed)
    if (await tryInput(what, parser, changed)) read++
    tried++
    if (last.length === TOGETHER) {
      await checkSteps(what, parser, last, steps)
      last = []
    }
  }
  await checkSteps(what, parser, last, steps)
  return { read, refused: tried - read }
}
