// OpenSSL's own command, which made and reads what people have.
import { execFileSync } from "node:child_process"

/** Runs `openssl` and gives what it printed; throws with its complaint when it fails. */
export function openssl(args: readonly string[], input?: Uint8Array): Buffer {
  return execFileSync("openssl", args, { input, stdio: ["pipe", "pipe", "pipe"] })
}
