// OpenSSL's own command, which made and reads what people have.
import { execFileSync, spawnSync } from "node:child_process"

/** Runs `openssl` and gives what it printed; throws with its complaint when it fails. */
export function openssl(args: readonly string[], input?: Uint8Array): Buffer {
  return execFileSync("openssl", args, { input, stdio: ["pipe", "pipe", "pipe"] })
}

/** The same for what it tells on standard error. */
export function opensslNotes(args: readonly string[]): string {
  const { status, stderr } = spawnSync("openssl", args, { encoding: "utf8" })
  if (status !== 0) throw new Error(stderr)
  return stderr
}
