// A GnuPG of the test's own: a home with its keys and its agent, gone when the test is.
import { execFileSync } from "node:child_process"
import { chmodSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"

export class GnuPg implements Disposable {
  readonly home: string

  constructor() {
    // A socket's name has at most 107 bytes.
    this.home = mkdtempSync(path.join(tmpdir(), "gpg-"))
    chmodSync(this.home, 0o700)
  }

  get env(): Readonly<Record<string, string>> {
    return { GNUPGHOME: this.home }
  }

  /** Runs it; its complaint is in the error. */
  run(args: readonly string[], input: Uint8Array | string = ""): Buffer {
    return execFileSync("gpg", ["--batch", "--no-tty", "--quiet", ...args], {
      input,
      env: { ...process.env, ...this.env },
      stdio: ["pipe", "pipe", "pipe"],
    })
  }

  /** Makes a key; returns the whole fingerprint of its primary key. */
  generate(name: string, kind: string, usage: string, password = ""): string {
    const secret = ["--pinentry-mode", "loopback", "--passphrase", password]
    this.run([...secret, "--quick-generate-key", name, kind, usage, "never"])
    const listing = this.run(["--with-colons", "--list-secret-keys", name]).toString("utf8")
    return /^fpr:{9}([0-9A-F]{40}):/m.exec(listing)?.[1] ?? ""
  }

  /** Ends the agent, which knows passwords; the next one reads its configuration anew. */
  forget(): void {
    execFileSync("gpgconf", ["--kill", "all"], { env: { ...process.env, ...this.env }, stdio: "ignore" })
  }

  [Symbol.dispose](): void {
    this.forget()
    rmSync(this.home, { recursive: true, force: true, maxRetries: 3 })
  }
}
