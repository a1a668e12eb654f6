// What this process allows others to see of it.
import { whole } from "../arguments.ts"
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

const exitStatus = whole(0, 255)

/**
 * Ends this process with a status, whatever its threads are doing: `process.exit` waits for what runs on Node's thread pool, and a
 * key derivation there cannot be interrupted. Nothing is flushed.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`.
 */
export function exitNow(status: number): never {
  return loadAddon().exitNow({ status: exitStatus(status, "status") })
}

/**
 * Runs `body` so that what it frees is overwritten: for work of others' code with secrets, which frees them as they are. What malloc keeps
 * at hand for the next who asks is not: that is `body`'s to ask for and write over. Without effect where the C library cannot.
 *
 * @see mallopt(3), M_PERTURB
 */
export function overwritingFreed<T>(body: () => T): T {
  const addon = loadAddon()
  addon.overwriteFreed({ on: true })
  try {
    return body()
  } finally {
    addon.overwriteFreed({ on: false })
  }
}
