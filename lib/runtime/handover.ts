// The end of a process that has nothing to do any more but to wait for a payload: it becomes sifcrypt-starter, which does
// that in a fraction of the memory. Its process id, parent, terminal and streams stay what they are.
import { readFileSync } from "node:fs"
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
  readonly attempts: readonly Launch[]
  readonly bundle: Buffer
  /** Descriptors that keep their numbers. */
  readonly preserved?: readonly number[]
  readonly reporter: FailureReporter
}

const { errno } = constants

/**
 * Failures of a start that are about this machine (withEngine in lib/container/engine.ts decides alike), as
 * `STEP:ERRNO`.
 */
export const machineFailures: readonly string[] = [
  "loop_attach:*",
  "*:79", // ELIBACC: a library is missing
  ...[errno.ENOTSUP, errno.ENOENT, errno.ENODEV].map((number) => `crypt_activate:${number}`),
  `verity_activate:${errno.ENOTSUP}`,
  ...[errno.EPERM, errno.ENODEV].map((number) => `mount:${number}`),
]

/**
 * Becomes the starter of a payload. Listeners of `exit` are called first, with 0.
 *
 * @param interrupted - Asked after signals have been held back: is there one to act upon?
 * @returns Only when `interrupted`; signals stay held back then, and this process is to end.
 */
export async function handOver(options: HandoverOptions, interrupted: () => boolean): Promise<void> {
  const addon = loadAddon()
  const { attempts, bundle, reporter, preserved = [] } = options
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
  const starter: string[] = []
  for (const [index, attempt] of attempts.entries()) {
    if (index > 0) starter.push("--")
    starter.push(...attempt.compose(descriptors), `--bundle-fd=${descriptors.bytes("bundle", bundle)}`)
  }
  const env = Object.entries(reporter.env).map(([name, value]) => `${name}=${value ?? ""}`)
  const about = JSON.stringify(attempts.map(({ engine, image }) => ({ engine, image }) satisfies Attempt))
  const report = [String(env.length), ...env, reporter.file, ...reporter.args, about]
  const reportFd = descriptors.bytes("report", Buffer.from(report.map((text) => `${text}\0`).join("")))
  const retry = attempts.length > 1 ? [`--retry-on=${machineFailures.join(",")}`] : []
  const file = starterPath()
  addon.holdSignals()
  // What came before is told now.
  await new Promise((resolve) => setImmediate(resolve))
  if (interrupted()) return
  process.emit("exit", 0)
  addon.becomeProgram({
    file,
    arguments: ["sifcrypt-starter", "attend", `--report-fd=${reportFd}`, ...retry, ...starter],
    environment: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    // Node marks even those to be closed.
    kept: [0, 1, 2, ...preserved, ...kept],
  })
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
  const [about = "[]", attempt = "0", descriptor = ""] = last
  const { engine, image } = (JSON.parse(about) as Attempt[])[Number(attempt)] ?? {
    engine: "userspace",
    image: "",
  }
  const told = new Told(engine, image)
  told.add(readFileSync(Number(descriptor), "utf8"))
  return told.failure ?? told.endedEarly("it told nothing")
}
