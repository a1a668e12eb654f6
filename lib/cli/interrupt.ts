// SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 undo what is under way: the command's AbortSignal fires, its work is taken back, and the
// process exits with 128 plus the signal's number. Some work cannot be stopped (deriving a key, a disk that does not answer) or keeps
// JavaScript from hearing of a signal at all: then the process ends without it. What is half done then is what a kill leaves: a file
// without a name, or a change that is not visible.
import { constants } from "node:os"
import { endAfterSignals, exitNow } from "../index.ts"

/** What ends a process unless it says otherwise, and comes from somebody who wants it to end. */
const undoing = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"] as const

/** The reason an interrupted command ends with. */
export class Interrupted extends Error {
  readonly exitCode: number
  constructor(signal: (typeof undoing)[number]) {
    super(`interrupted by ${signal}`)
    this.name = "AbortError"
    this.exitCode = 128 + constants.signals[signal]
  }
}

/** Whoever presses Ctrl-C waits so long at most. */
const PATIENCE_MS = 350
/** Where other processes have to undo something, they get the time to be asked, and then killed. */
const PATIENCE_WITH_HELPERS_MS = 5000

/** Where there is no addon: then nothing but a reader of our output keeps us, and JavaScript hears of signals. */
let ownPatienceMs: number | undefined

function endWithin(patienceMs: number, withHelpersMs: number): void {
  try {
    endAfterSignals(undoing, patienceMs, withHelpersMs)
  } catch {
    ownPatienceMs = patienceMs
  }
}

/** From now on an interruption has its time. */
export function endInTime(): void {
  endWithin(PATIENCE_MS, PATIENCE_WITH_HELPERS_MS)
}

/** From now on there is something to undo that takes its time, children or not: a mount of the kernel's. */
export function waitForHelpers(): void {
  endWithin(PATIENCE_WITH_HELPERS_MS, PATIENCE_WITH_HELPERS_MS)
}

const controller = new AbortController()

/** Fires when the process is asked to stop. */
export const interruption: AbortSignal = controller.signal

/** Who gets signals instead, once there is a payload. */
let receiver: ((signal: NodeJS.Signals) => void) | undefined

/** Turns the signals into an abort; a second one of the same kind ends the process at once, as the kernel would. */
export function undoOnSignals(): void {
  for (const signal of undoing) {
    const handler = (): void => {
      if (receiver !== undefined) {
        receiver(signal)
        return
      }
      process.removeListener(signal, handler)
      if (controller.signal.aborted) return
      const reason = new Interrupted(signal)
      if (ownPatienceMs !== undefined) setTimeout(leave, ownPatienceMs, reason.exitCode).unref()
      controller.abort(reason)
    }
    process.on(signal, handler)
  }
}

/** Ends the process now, whatever its threads still do. */
export function leave(code: number): never {
  try {
    exitNow(code)
  } catch {
    // Without the addon nothing of ours runs on a thread.
    process.exit(code)
  }
}

/** From now on `next` gets the signals. The handlers stay: a signal that comes between two of them would be lost. */
export function passSignalsTo(next: (signal: NodeJS.Signals) => void): void {
  receiver = next
  endWithin(0, 0)
  process.on("SIGQUIT", () => {
    next("SIGQUIT")
  })
}

let ending: NodeJS.Signals | undefined

/** The process is to end as its payload did: by this signal, when all is done. */
export function endWith(signal: NodeJS.Signals): void {
  ending = signal
}

/** Raises the signal of {@link endWith}. */
export function dieAsAsked(): void {
  if (ending === undefined) return
  process.removeAllListeners(ending)
  process.kill(process.pid, ending)
}
