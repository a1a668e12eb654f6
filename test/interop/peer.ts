// The live peer: a Debian folder with Apptainer and cryptsetup, as it is and as the root of a User-Mode Linux guest.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import path from "node:path"
import { packageRoot, runProgram } from "../support/cli.ts"

const support = path.join(packageRoot, "test", "support")

/** The peer's folder; scripts/test.sh has made it and names it. */
export const peerRoot: string =
  process.env["SIFCRYPT_PEER_ROOT"] ??
  execFileSync(path.join(support, "peer.sh"), { encoding: "utf8" }).trim()
process.env["SIFCRYPT_PEER_ROOT"] = peerRoot

/** Runs a program of the peer on this machine's kernel, as root. What it says beside its output is not looked at. */
export function inPeer(program: string, ...args: readonly string[]): string {
  return execFileSync("chroot", [peerRoot, program, ...args], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  })
}

/** The user that peer-run.sh and the peer's passwd know. */
export const peerUser = 1000

/** Runs a command of the peer on this machine's kernel, as {@link peerUser} in a folder that both see. */
export function inPeerAsUser(place: string, command: readonly string[]): ReturnType<typeof runProgram> {
  const script = path.join(packageRoot, "test", "support", "peer-run.sh")
  return runProgram([script, "--bind", place, String(peerUser), ...command], {
    as: "self",
    env: { SIFCRYPT_PEER_ROOT: peerRoot },
    timeoutMs: 120_000,
  })
}

/** What a step in a guest did. */
export interface Step {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

/** A command with its arguments; what the shell should see of it is quoted. */
export type Command = readonly string[]

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`

/** Runs steps one after the other in one guest, whatever becomes of each; they find `folder` under its name `inside`. */
async function runInGuest<Name extends string>(
  options: readonly string[],
  folder: string,
  inside: string,
  steps: Readonly<Record<Name, Command>>,
): Promise<Record<Name, Step>> {
  const names = Object.keys(steps) as Name[]
  const script = names.map((name) => {
    const command = steps[name].map(quoted).join(" ")
    const [out, err, status] = ["out", "err", "status"].map((what) => quoted(`${name}.${what}`))
    return `${command} >${out ?? ""} 2>${err ?? ""}; echo $? >${status ?? ""}`
  })
  writeFileSync(path.join(folder, "steps.sh"), [`cd ${quoted(inside)} || exit`, ...script, ""].join("\n"))
  const { status, stderr } = await runProgram(
    [path.join(support, "uml-run.sh"), "--mem", "3G", ...options, "--", "bash", `${inside}/steps.sh`],
    { as: "self", cwd: packageRoot, env: { SIFCRYPT_PEER_ROOT: peerRoot }, timeoutMs: 280_000 },
  )
  assert.equal(status, 0, `the guest: ${stderr}`)
  const read = (file: string): string => readFileSync(path.join(folder, file), "utf8")
  const results = names.map((name): [Name, Step] => [
    name,
    {
      status: Number(read(`${name}.status`)),
      stdout: read(`${name}.out`),
      stderr: read(`${name}.err`),
    },
  ])
  return Object.fromEntries(results) as Record<Name, Step>
}

/** A folder that this machine and the peer both see. */
export class SharedFolder implements Disposable {
  /** Its path on this machine. */
  readonly path: string
  /** Its path in the peer. */
  readonly inside: string

  constructor() {
    // Not below /tmp or /run, which a guest has of its own.
    this.path = mkdtempSync(path.join(peerRoot, "var", "tmp", "sifcrypt-interop-"))
    this.inside = path.join("/", path.relative(peerRoot, this.path))
  }

  /** Copies a file there; returns its name in the peer. */
  take(file: string): string {
    const name = path.basename(file)
    copyFileSync(file, path.join(this.path, name))
    return path.join(this.inside, name)
  }

  /** Runs steps in a guest with the peer as its root: real root, real dm-crypt. */
  async inPeerGuest<Name extends string>(
    steps: Readonly<Record<Name, Command>>,
  ): Promise<Record<Name, Step>> {
    return await runInGuest(["--root", peerRoot], this.path, this.inside, steps)
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}

/** Runs steps in a guest with this machine's programs, in a folder with copies of `files`. */
export async function inOwnGuest<Name extends string>(
  files: readonly string[],
  steps: Readonly<Record<Name, Command>>,
): Promise<Record<Name, Step>> {
  // A guest sees the folder that it is started in, wherever that lies.
  const folder = mkdtempSync(path.join(packageRoot, "build", "interop-"))
  try {
    for (const file of files) copyFileSync(file, path.join(folder, path.basename(file)))
    return await runInGuest([], folder, folder, steps)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Asserts how a step ended. */
export function assertStep(step: Step, status: number): void {
  assert.equal(step.status, status, step.stderr)
}
