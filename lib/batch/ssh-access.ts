// How tasks come through sshd: by a key of the job set, which lies where only its user can read it, and with which nobody can do anything
// there but reach the broker. It goes with the broker.
import { randomBytes } from "node:crypto"
import { execFile } from "node:child_process"
import { mkdir, readFile, realpath, rename, rm, stat, writeFile } from "node:fs/promises"
import path from "node:path"
import { promisify } from "node:util"
import { BatchError, EnvironmentError } from "../errors.ts"
import { lockFolder } from "../native/lock.ts"
import type { JobSet } from "./job-set.ts"
import { slurmEnvironment } from "./slurm.ts"

function sshFolder(): string {
  const home = process.env["HOME"]
  if (home === undefined || home === "")
    throw new BatchError("ERR_BATCH_KEY", "tasks cannot come through sshd: HOME is not set")
  return path.join(home, ".ssh")
}

async function run(program: string, args: readonly string[]): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(program, [...args], {
      env: slurmEnvironment(),
      timeout: 30_000,
    })
    return stdout
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT")
      throw new EnvironmentError(
        "ERR_ENV_NO_PROGRAM",
        `${program} is not installed (package openssh-client)`,
        { cause },
      )
    throw new BatchError("ERR_BATCH_KEY", `${program}: ${(cause as Error).message}`, { cause })
  }
}

/** Changes the list of keys that sshd lets in; what else is in it stays, byte by byte. */
async function changeAuthorized(change: (lines: readonly string[]) => readonly string[]): Promise<void> {
  const folder = sshFolder()
  await mkdir(folder, { recursive: true, mode: 0o700 })
  await using lock = await lockFolder(folder)
  if (lock === undefined)
    throw new BatchError("ERR_BATCH_KEY", `${folder}: somebody else has it locked`, { path: folder })
  const name = path.join(folder, "authorized_keys")
  // Some keep theirs elsewhere, behind a link, which stays.
  const file = await realpath(name).catch(() => name)
  const former = await readFile(file, "latin1").catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return ""
    throw error
  })
  // Each byte is a letter here.
  const lines = former === "" ? [] : former.replace(/\n$/, "").split("\n")
  const text = change(lines)
    .map((line) => `${line}\n`)
    .join("")
  if (text === former) return
  const mode = former === "" ? 0o600 : (await stat(file)).mode & 0o777
  const temporary = `${file}.${randomBytes(8).toString("hex")}`
  try {
    await writeFile(temporary, text, { mode, flag: "wx", encoding: "latin1" })
    await rename(temporary, file)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
}

const commentOf = ({ manifest }: JobSet): string => `sifcrypt-batch-${manifest.id}`

/** In double quotes, as sshd(8) reads its options: a backslash is one, unless it stands before a quote. */
function option(command: string): string {
  if (/[\n\r]|\\$/.test(command))
    throw new BatchError(
      "ERR_BATCH_KEY",
      "sshd takes no command with a line end in it, or a backslash at its end",
    )
  return `"${command.replaceAll('"', '\\"')}"`
}

/**
 * Lets tasks of a set come through the sshd of this machine.
 *
 * @param command - For a shell: what sshd starts for them.
 * @throws BatchError `ERR_BATCH_KEY` where no sshd answers; EnvironmentError `ERR_ENV_NO_PROGRAM`.
 */
export async function letIn(set: JobSet, host: string, port: number, command: string): Promise<void> {
  const key = set.path("ssh", "key")
  await rm(set.path("ssh"), { recursive: true, force: true })
  await mkdir(set.path("ssh"), { mode: 0o700 })
  const hosts = await run("ssh-keyscan", ["-T", "5", "-p", String(port), host])
  if (!/^[^#\s]/m.test(hosts))
    throw new BatchError("ERR_BATCH_KEY", `no sshd answers at ${host}, port ${port}`)
  await writeFile(set.path("ssh", "known_hosts"), hosts, { mode: 0o600 })
  await run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", commentOf(set), "-f", key])
  const publicKey = (await readFile(`${key}.pub`, "utf8")).trim()
  const line = Buffer.from(`restrict,command=${option(command)} ${publicKey}`).toString("latin1")
  await changeAuthorized((lines) => [...lines.filter((one) => !one.endsWith(` ${commentOf(set)}`)), line])
}

/** They come no more. */
export async function keepOut(set: JobSet): Promise<void> {
  await changeAuthorized((lines) => lines.filter((one) => !one.endsWith(` ${commentOf(set)}`)))
}
