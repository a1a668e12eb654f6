// The end of a process that has nothing to do any more but to wait for a payload: it becomes sifcrypt-starter, which does
// that in a fraction of the memory. Its process id, parent, terminal and streams stay what they are. The starter that owns the payload
// begins before that, and mounts while the bundle is composed.
import * as is from "../arguments.ts"
import { closeSync, readFileSync, writeSync } from "node:fs"
import { constants } from "node:os"
import { loadAddon, starterPath } from "../native/load.ts"
import { Told, type ConcreteEngine, type Descriptors, type Launch } from "./starter-protocol.ts"

/** A program that speaks of a failure. */
export interface FailureReporter {
  /** Absolute. */
  readonly file: string
  readonly args: readonly string[]
  /** All of its environment. */
  readonly env: NodeJS.ProcessEnv
}

/** What {@link handOver} needs. */
export interface HandoverOptions {
  /** The first one, and what is done where the kernel cannot do that. */
  readonly attempts: readonly [Launch, ...Launch[]]
  readonly bundle: Promise<Buffer>
  /** Descriptors that keep their numbers. */
  readonly preserved?: readonly number[] | undefined
  readonly reporter: FailureReporter
}

const { errno } = constants

/**
 * Failures of a start that are about this machine (withEngine in lib/runtime/engine.ts decides alike), as
 * `STEP:ERRNO`.
 */
export const machineFailures: readonly string[] = [
  "loop_attach:*",
  "*:79", // ELIBACC: a library is missing
  ...[errno.ENOTSUP, errno.ENOENT, errno.ENODEV].map((number) => `crypt_activate:${number}`),
  `verity_activate:${errno.ENOTSUP}`,
  ...[errno.EPERM, errno.ENODEV].map((number) => `mount:${number}`),
]

const environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]

/** A starter that has begun. */
class Begun {
  readonly #pid: number
  /** What it tells. */
  readonly #status: number
  /** When this is closed it undoes what it has done. */
  readonly #watch: number
  /** It waits for the end of this before it starts the payload. */
  readonly #bundle: number

  private constructor(pid: number, status: number, watch: number, bundle: number) {
    this.#pid = pid
    this.#status = status
    this.#watch = watch
    this.#bundle = bundle
  }

  static async start(launch: Launch, preserved: readonly number[]): Promise<Begun> {
    const addon = loadAddon()
    const [theirs, ours]: [number[], number[]] = [[], []]
    const opened = (list: number[], fd: number): number => {
      list.push(fd)
      return fd
    }
    const shared: number[] = []
    try {
      const args = launch.compose({
        share: (fd) => opened(shared, fd),
        secret: (bytes) => opened(theirs, addon.filledPipe({ bytes })),
        bytes: (name, bytes) => opened(theirs, addon.memoryFile({ name, bytes })),
      })
      const status = addon.openPipe()
      args.push(`--status-fd=${opened(theirs, status.writer)}`)
      opened(ours, status.reader)
      const watch = addon.openPipe()
      args.push(`--watch-fd=${opened(theirs, watch.reader)}`)
      opened(ours, watch.writer)
      const bundle = addon.openPipe()
      args.push(`--bundle-fd=${opened(theirs, bundle.reader)}`)
      opened(ours, bundle.writer)
      const pid = await addon.startProgram({
        file: starterPath(),
        arguments: ["sifcrypt-starter", ...args],
        environment,
        inherited: [0, 1, 2, ...preserved, ...shared, ...theirs],
      })
      return new Begun(pid, status.reader, watch.writer, bundle.writer)
    } catch (error) {
      for (const fd of ours) closeSync(fd)
      throw error
    } finally {
      for (const fd of theirs) closeSync(fd)
    }
  }

  /** For its attendant, who keeps these. */
  get descriptors(): readonly number[] {
    return [this.#status, this.#watch]
  }
  get argument(): string {
    return `--begun=${[this.#pid, ...this.descriptors].join(",")}`
  }

  /**
   * The end of the bundle is the end of this program, and of the secrets in its memory: that descriptor is closed when it becomes another
   * one, and not before. Closing it right before that would have a payload milliseconds earlier, beside that memory.
   */
  send(bundle: Buffer): void {
    try {
      for (let at = 0; at < bundle.length;) at += writeSync(this.#bundle, bundle, at)
    } catch (error) {
      // It has ended, and has told why.
      if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error
    }
  }

  /** Takes back what it has done. */
  async end(): Promise<void> {
    closeSync(this.#watch)
    await loadAddon().waitForProgram({ pid: this.#pid })
    closeSync(this.#status)
    closeSync(this.#bundle)
  }
}

/**
 * Becomes `sifcrypt-starter`. Listeners of `exit` are called first, with 0.
 *
 * @param env - `NAME=VALUE`.
 * @param kept - Descriptors besides the standard ones.
 * @param interrupted - Asked after signals have been held back: is there one to act upon?
 * @returns Only when `interrupted`; signals stay held back then, and this process is to end.
 */
export async function becomeStarter(
  args: readonly string[],
  env: readonly string[],
  kept: readonly number[],
  interrupted: () => boolean,
): Promise<void> {
  const addon = loadAddon()
  addon.holdSignals()
  // What came before is told now: by the second, since the first may come before anybody has looked.
  await new Promise((resolve) => setImmediate(resolve))
  await new Promise((resolve) => setImmediate(resolve))
  if (interrupted()) return
  process.emit("exit", 0)
  addon.becomeProgram({
    file: starterPath(),
    arguments: ["sifcrypt-starter", ...args],
    environment: env,
    // Node marks even those to be closed.
    kept: [0, 1, 2, ...kept],
  })
}

/**
 * Becomes the attendant of a payload's starter. Listeners of `exit` are called first, with 0.
 *
 * @param interrupted - Asked after signals have been held back: is there one to act upon?
 * @returns Only when `interrupted`; signals stay held back then, and this process is to end.
 * @throws What keeps the bundle from being composed.
 */
export async function handOver(options: HandoverOptions, interrupted: () => boolean): Promise<void> {
  const addon = loadAddon()
  const { attempts, reporter, preserved = [] } = options
  const [first, ...others] = attempts
  const begun = await Begun.start(first, preserved)
  try {
    const bundle = await options.bundle
    const kept: number[] = []
    const keep = (fd: number): number => {
      kept.push(fd)
      return fd
    }
    const descriptors: Descriptors = {
      share: (fd) => (kept.includes(fd) ? fd : keep(fd)),
      secret: (bytes) => keep(addon.filledPipe({ bytes })),
      bytes: (name, bytes) => keep(addon.memoryFile({ name, bytes })),
    }
    const starters = others.flatMap((attempt) => [
      "--",
      ...attempt.compose(descriptors),
      `--bundle-fd=${descriptors.bytes("bundle", bundle)}`,
    ])
    const env = Object.entries(reporter.env).map(([name, value]) => `${name}=${value ?? ""}`)
    const about = JSON.stringify(attempts.map(({ engine, image }) => ({ engine, image }) satisfies Attempt))
    const report = [String(env.length), ...env, reporter.file, ...reporter.args, about]
    const reportFd = descriptors.bytes("report", Buffer.from(report.map((text) => `${text}\0`).join("")))
    const retry = others.length > 0 ? [`--retry-on=${machineFailures.join(",")}`] : []
    begun.send(bundle)
    await becomeStarter(
      ["attend", `--report-fd=${reportFd}`, ...retry, begun.argument, ...starters],
      environment,
      [...preserved, ...begun.descriptors, ...kept],
      interrupted,
    )
  } catch (error) {
    await begun.end()
    throw error
  }
  await begun.end()
}

interface Attempt {
  readonly engine: ConcreteEngine
  readonly image: string
}

/**
 * Why a payload did not start, for the program that {@link ExecOptions.replaceProcess} names.
 *
 * @param last - The last three arguments it was started with.
 */
export function startFailure(last: readonly string[]): Error {
  const [about = "[]", attempt = "0", descriptor = ""] = is.list(is.text)(last, "last")
  const { engine, image } = (JSON.parse(about) as Attempt[])[Number(attempt)] ?? {
    engine: "userspace",
    image: "",
  }
  const told = new Told({ engine, image })
  told.add(readFileSync(Number(descriptor), "utf8"))
  return told.failure ?? told.endedEarly("it told nothing")
}
