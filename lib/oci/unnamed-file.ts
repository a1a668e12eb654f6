// A file that nobody finds: it has no name, or not for long.
import { randomBytes } from "node:crypto"
import { constants } from "node:fs"
import { open, unlink, type FileHandle } from "node:fs/promises"
import path from "node:path"
import type { Bytes } from "../units.ts"

/** Gone when it is closed, unless it is linked. */
export async function unnamedFile(folder: string, mode = 0o600): Promise<FileHandle> {
  try {
    const { O_RDWR } = constants
    // Linux's O_TMPFILE, which node:fs does not name.
    return await open(folder, O_RDWR | 0o20000000 | constants.O_DIRECTORY, mode)
  } catch {
    const name = path.join(folder, `.sifcrypt-${randomBytes(12).toString("hex")}`)
    const file = await open(name, "wx+", mode)
    await unlink(name)
    return file
  }
}

export async function writeAll(file: FileHandle, bytes: Buffer, position: Bytes): Promise<void> {
  for (let done = 0; done < bytes.length;)
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten
}
