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
/**
 * Work is added up of inputs that took so long together, and told apart only where it is too much: asking V8 costs as much as hundreds of
 * inputs do. In this time it takes about as many steps as an input may.
 */
const TOGETHER_MICROSECONDS = 100_000
/** The processor is asked after so many inputs. */
const TOGETHER = 64

/** What inputs cost, while it exists: what V8 enters, which is the same each time whatever else the machine does, and the processor. */
export class Work implements Disposable {
  readonly #session = new Session()
  #before = process.cpuUsage()

  constructor() {
    this.#session.connect()
    this.#session.post("Profiler.enable")
    this.#session.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true })
  }

  /** Of the processor, since it was asked last. */
  get microseconds(): number {
    const { user, system } = process.cpuUsage(this.#before)
    return user + system
  }

  /** Since it was asked last: what was too much for one input that may cost so many `times` what others may, in words; undefined: nothing was. */
  takeTooMuch(times: number = 1): string | undefined {
    const { microseconds } = this
    let steps = 0
    this.#session.post(
      "Profiler.takePreciseCoverage",
      (failure: Error | null, { result }: Profiler.TakePreciseCoverageReturnType) => {
        if (failure !== null) throw failure
        for (const { functions } of result)
          for (const { ranges } of functions) for (const { count } of ranges) steps += count
      },
    )
    this.#before = process.cpuUsage()
    if (steps > MOST_STEPS * times) return `${steps} steps`
    return microseconds > MOST_MICROSECONDS * times ? `${microseconds / 1000} ms` : undefined
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
  try {
    await parse(Buffer.from(input))
    return true
  } catch (error) {
    if (!(error instanceof ContainerError) && !throws.some((kind) => error instanceof kind))
      throw new Finding(what, input, "an error that it does not have", error)
    return false
  }
}

/** Is any of these more work than an input may be? */
async function checkWork(what: string, parser: Parser, inputs: readonly Buffer[], work: Work): Promise<void> {
  if (work.takeTooMuch(parser.times) === undefined) return
  for (const input of inputs) {
    await tryInput(what, parser, input)
    const tooMuch = work.takeTooMuch(parser.times)
    if (tooMuch !== undefined) throw new Finding(what, input, tooMuch)
  }
}

/** Changes real inputs and tries them, until `more` says that it is enough. How many were read, and how many refused. */
export async function tryParser(
  what: string,
  parser: Parser,
  random: Random,
  more: (tried: number) => boolean,
  work: Work,
): Promise<{ readonly read: number; readonly refused: number }> {
  const { inputs, change = anywhere } = parser
  work.takeTooMuch()
  let read = 0
  let tried = 0
  let last: Buffer[] = []
  while (more(tried)) {
    const changed = change(Buffer.from(pick(inputs, random)), random).subarray(0, MOST_INPUT)
    last.push(changed)
    if (await tryInput(what, parser, changed)) read++
    tried++
    if (last.length % TOGETHER === 0 && work.microseconds > TOGETHER_MICROSECONDS) {
      await checkWork(what, parser, last, work)
      last = []
    }
  }
  await checkWork(what, parser, last, work)
  return { read, refused: tried - read }
}
