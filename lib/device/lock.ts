// One process at a time writes what lies in a folder.
import { constants } from "node:fs"
import { open, type FileHandle } from "node:fs/promises"
import { setTimeout as sleep } from "node:timers/promises"
import { loadAddon } from "../native/load.ts"

/** How long to wait for somebody else, and how often to look. */
const PATIENCE_MS = 5000
const PAUSE_MS = 20

/**
 * Locks a folder until the handle is closed, or this process ends.
 *
 * @returns undefined when somebody else has it all the time.
 * @throws System errors; EnvironmentError `ERR_ENV_NO_ADDON`.
 * @see flock(2)
 */
export async function lockFolder(folder: string): Promise<FileHandle | undefined> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    for (let waited = 0; waited < PATIENCE_MS; waited += PAUSE_MS) {
      if (await loadAddon().lockFile(handle.fd)) return handle
      await sleep(PAUSE_MS)
    }
  } catch (error) {
    await handle.close()
    throw error
  }
  await handle.close()
  return undefined
}
