// A Slurm cluster for tests, and two ordinary users on it whom the system's list of users knows: one whose jobs run, one who looks on.
import { execFile } from "node:child_process"
import { readFileSync } from "node:fs"
import path from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { allProcesses } from "./processes.ts"
import { newFolder } from "./scratch.ts"
import {
  cli,
  homeOf,
  idOf,
  runProgram,
  sifcrypt,
  startSifcrypt,
  type CommandOptions,
  type Result,
} from "./cli.ts"
import type { ChildProcess } from "node:child_process"

const script = path.join(path.dirname(fileURLToPath(import.meta.url)), "slurm-cluster.sh")

/** Debian's games: somebody who has nothing to do with it. */
export const observerId = 5

/** A task as `batch status --json` shows it. */
export interface Shown {
  readonly job: string
  readonly task: string
  readonly state: string
  readonly exitCode?: number
  readonly node?: string
  readonly reason?: string
  readonly attempts: readonly {
    readonly node: string
    readonly restarts: number
    readonly exitCode?: number
  }[]
  readonly slurmJob?: string
}

export class SlurmCluster implements AsyncDisposable {
  readonly folder: string
  readonly environment: Readonly<Record<string, string>>

  private constructor(folder: string) {
    this.folder = folder
    this.environment = { SLURM_CONF: path.join(folder, "slurm.conf") }
  }

  /**
   * @param extra - Lines for slurm.conf.
   * @param wrapper - What starts its daemons.
   */
  static async start(nodes: number, extra = "", wrapper: readonly string[] = []): Promise<SlurmCluster> {
    const cluster = new SlurmCluster(path.join(newFolder("slurm"), "cluster"))
    // Ports that nobody else uses here, for as many clusters as there are test processes: below those that the kernel gives to whoever
    // connects to something (32768 and more).
    const port = 20_000 + (process.pid % 1200) * 10
    const env = { NODES: String(nodes), PORT: String(port), EXTRA: extra }
    await cluster.control("start", [], env, wrapper)
    return cluster
  }

  async control(
    command: string,
    words: readonly string[] = [],
    env: Readonly<Record<string, string>> = {},
    wrapper: readonly string[] = [],
  ): Promise<void> {
    const [program = script, ...args] = [...wrapper, script, command, this.folder, ...words]
    await promisify(execFile)(program, args, { env: { ...process.env, ...env } })
  }

  get munge(): string {
    return path.join(this.folder, "munge", "socket")
  }

  /** One of Slurm's commands, as root or as the user; what it prints. */
  async slurm(argv: readonly string[], options: CommandOptions = { as: "self" }): Promise<string> {
    const { status, text, stderr } = await runProgram(argv, {
      ...options,
      env: { ...this.environment, ...options.env },
    })
    if (status !== 0) throw new Error(`${argv.join(" ")}: ${stderr}`)
    return text
  }

  #options(options: CommandOptions): CommandOptions {
    return { as: "nobody", timeoutMs: 110_000, ...options, env: { ...this.environment, ...options.env } }
  }

  /** `sifcrypt`, as the user. */
  async run(args: readonly string[], options: CommandOptions = {}): Promise<Result> {
    return await sifcrypt(args, this.#options(options))
  }

  start(args: readonly string[], options: CommandOptions = {}): ChildProcess {
    return startSifcrypt(args, this.#options(options))
  }

  async ok(args: readonly string[], options: CommandOptions = {}): Promise<string> {
    const result = await this.run(args, options)
    if (result.status !== 0)
      throw new Error(`sifcrypt ${args.join(" ")}: status ${String(result.status)}\n${result.stderr}`)
    return result.text
  }

  /** The tasks of a set, by their names; `wait`: when all have ended. */
  async status(set: string, wait = true): Promise<ReadonlyMap<string, Shown>> {
    const text = await this.ok(["batch", "status", "--json", ...(wait ? ["--wait"] : []), set])
    return new Map((JSON.parse(text) as Shown[]).map((one) => [`${one.job}/${one.task}`, one]))
  }

  /** A program as the observer. */
  async observe(argv: readonly string[], input?: string): Promise<Result> {
    const wrapper = ["setpriv", `--reuid=${observerId}`, `--regid=${observerId}`, "--clear-groups"]
    return await runProgram(argv, {
      as: "self",
      wrapper,
      env: this.environment,
      ...(input === undefined ? {} : { input }),
    })
  }

  /** With whatever still asks it: a broker whose tasks will never end would be seen by who comes next. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.control("stop")
    const own = `\0SLURM_CONF=${this.environment["SLURM_CONF"] ?? ""}\0`
    for (const { pid } of allProcesses())
      try {
        if (`\0${readFileSync(`/proc/${pid}/environ`, "latin1")}`.includes(own)) process.kill(pid, "SIGKILL")
      } catch (error) {
        if (!["ENOENT", "ESRCH"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error
      }
  }
}

/** Whose jobs they are. */
export const user: { readonly id: number; readonly home: () => string; readonly command: string } = {
  id: idOf("nobody"),
  home: (): string => homeOf("nobody"),
  command: cli,
}
