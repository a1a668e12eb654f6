// What this process allows others to see of it.
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

/**
 * Ends this process with a status, whatever its threads are doing: `process.exit` waits for what runs on Node's thread pool, and a
 * key derivation there cannot be interrupted. Nothing is flushed.
 *
 * @throws EnvironmentError `ERR_ENV_NO_ADDON`.
 */
export function exitNow(status: number): never {
  return loadAddon().exitNow({ status })
}
