// What this process allows others to see of it.
import { constants } from "node:os"
import * as is from "../arguments.ts"
import { loadAddon } from "../native/load.ts"

/**
 * Keeps this process out of core dumps, and other processes of the same user from reading its memory. For programs that
 * are about to hold keys; the command does it before it reads one. Cannot be undone, and ends at the next exec.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`.
 * @see prctl(2), PR_SET_DUMPABLE
 */
export function forbidDumps(): void {
  loadAddon().forbidDumps()
}

const exitStatus = is.whole(0, 255)

/**
 * Ends this process with a status, whatever its threads are doing: `process.exit` waits for what runs on Node's thread pool, and a
 * key derivation there cannot be interrupted. Nothing is flushed.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`.
 */
export function exitNow(status: number): never {
  return loadAddon().exitNow({ status: exitStatus(status, "status") })
}

const signalNames = is.list(is.oneOf(...(Object.keys(constants.signals) as NodeJS.Signals[])))

/**
 * Ends this process, as {@link exitNow} does, when one of these signals came so long ago: with 128 plus its number. A handler gets the signal
 * as before, but may be kept from it, as JavaScript is while a key is derived. Those without a handler are left alone, so `process.on`
 * comes first. Called again, it is the patience that changes.
 *
 * @param patienceMs - 0: handlers alone decide.
 * @param withChildrenMs - Where this process has children then, which may have something to undo: at least as long.
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`.
 */
export function endAfterSignals(
  signals: readonly NodeJS.Signals[],
  patienceMs: number,
  withChildrenMs: number,
): void {
  const numbers = signalNames(signals, "signals").map((name) => constants.signals[name])
  loadAddon().endAfterSignals({
    signals: numbers,
    patienceMs: is.milliseconds(patienceMs, "patienceMs"),
    withChildrenMs: is.milliseconds(withChildrenMs, "withChildrenMs"),
  })
}

let overwriting = 0

/**
 * Runs `body` so that what it frees is overwritten: for work of others' code with secrets, which frees some of them as they are. What malloc
 * keeps at hand for the next who asks is not: that is `body`'s to ask for and write over. Without effect where the C library cannot.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`; what `body` throws.
 * @see mallopt(3), M_PERTURB
 */
export async function overwritingFreed<T>(body: () => T | Promise<T>): Promise<T> {
  const addon = loadAddon()
  if (overwriting++ === 0) addon.overwriteFreed({ on: true })
  try {
    return await body()
  } finally {
    if (--overwriting === 0) addon.overwriteFreed({ on: false })
  }
}
