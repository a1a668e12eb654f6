// A digest in a file, for scripts: all of it or nothing, also where the power goes, and there before anybody is told that something was done.
import { randomBytes } from "node:crypto"
import { realpathSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"

/** Is something else than a file there: a pipe, a device? That is written to, not replaced. */
function isSpecial(file: string): boolean {
  try {
    return !statSync(file).isFile()
  } catch {
    return false
  }
}

/** Where a link leads is replaced, and not the link. */
function target(file: string): string {
  try {
    return realpathSync(file)
  } catch {
    return file
  }
}

export function writeDigestFile(file: string | undefined, digest: string): void {
  if (file === undefined) return
  const text = `${digest}\n`
  if (isSpecial(file)) {
    writeFileSync(file, text)
    return
  }
  const name = target(file)
  const partial = path.join(path.dirname(name), `.${path.basename(name)}.${randomBytes(6).toString("hex")}`)
  try {
    writeFileSync(partial, text, { flag: "wx", flush: true })
    renameSync(partial, name)
  } catch (error) {
    rmSync(partial, { force: true })
    throw error
  }
}
