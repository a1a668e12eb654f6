// SIGINT, SIGTERM and SIGHUP undo what is under way: the command's AbortSignal fires, its work is taken back, and the
// process exits with 128 plus the signal's number.
import { constants } from "node:os"

/** The reason an interrupted command ends with. */
export class Interrupted extends Error {
  readonly exitCode: number
  constructor(signal: "SIGINT" | "SIGTERM" | "SIGHUP") {
    super(`interrupted by ${signal}`)
    this.name = "AbortError"
    this.exitCode = 128 + constants.signals[signal]
  }
}

const controller = new AbortController()

/** Fires when the process is asked to stop. */
export const interruption: AbortSignal = controller.signal

/** Who gets signals instead, once there is a payload. */
let receiver: ((signal: NodeJS.Signals) => void) | undefined

/** Turns the signals into an abort; a second one of the same kind ends the process at once, as the kernel would. */
export function undoOnSignals(): void {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    const handler = (): void => {
      if (receiver !== undefined) {
        receiver(signal)
        return
      }
      process.removeListener(signal, handler)
      controller.abort(new Interrupted(signal))
    }
    process.on(signal, handler)
  }
}

/** From now on `next` gets the signals. The handlers stay: a signal that comes between two of them would be lost. */
export function passSignalsTo(next: (signal: NodeJS.Signals) => void): void {
  receiver = next
  for (const signal of ["SIGQUIT", "SIGUSR1", "SIGUSR2"] as const)
    process.on(signal, () => {
      next(signal)
    })
}

let ending: NodeJS.Signals | undefined

/** The process is to end as its payload did: by this signal, when all is done. */
export function endWith(signal: NodeJS.Signals): void {
  ending = signal
}

/** Raises the signal of {@link endWith}. Comes back where Node itself does not die of it; then the exit status tells. */
export function dieAsAsked(): void {
  // Node answers SIGUSR1 with its debugger.
  if (ending === undefined || ending === "SIGUSR1") return
  process.removeAllListeners(ending)
  process.kill(process.pid, ending)
}
