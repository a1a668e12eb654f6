// Folders for what tests write: where every user may pass, and gone when the run ends.
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"

let root: string | undefined
let count = 0

function scratchRoot(): string {
  if (root === undefined) {
    const folder = mkdtempSync(path.join(tmpdir(), "sifcrypt-test-"))
    chmodSync(folder, 0o755)
    process.once("exit", () => {
      rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
    })
    root = folder
  }
  return root
}

/** A new folder, owned by `owner` (a user and group id) where root runs the tests. */
export function newFolder(name: string, owner?: number): string {
  const folder = path.join(scratchRoot(), `${++count}-${name}`)
  mkdirSync(folder)
  chmodSync(folder, 0o755)
  if (owner !== undefined && process.getuid?.() === 0) chownSync(folder, owner, owner)
  return folder
}
