// Programs of the system that we start, from fixed places.
import { accessSync, constants } from "node:fs"
import path from "node:path"
import { EnvironmentError } from "../errors.ts"

const folders = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/usr/local/sbin", "/sbin"]

/**
 * An absolute path.
 *
 * @param purpose - What it is for, in the message.
 * @param more - Folders that it may be in as well.
 * @throws EnvironmentError `ERR_ENV_NO_PROGRAM`.
 */
export function findProgram(name: string, purpose: string, more: readonly string[] = []): string {
  for (const folder of [...folders, ...more]) {
    const file = path.join(folder, name)
    try {
      accessSync(file, constants.X_OK)
      return file
    } catch {
      continue
    }
  }
  throw new EnvironmentError("ERR_ENV_NO_PROGRAM", `${name} is not installed; ${purpose}`)
}
