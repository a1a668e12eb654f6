// Runs a payload in an opened image.
import { readFileSync, realpathSync } from "node:fs"
import { realpath } from "node:fs/promises"
import { userInfo } from "node:os"
import path from "node:path"
import { isatty } from "node:tty"
import type { Tree } from "../device/tree.ts"
import { starterPath } from "../native/load.ts"
import { composeBinds, homeOf, parseBinds, type Bind } from "../runtime/binds.ts"
import { chooseSession, makeBundle, type Action } from "../runtime/bundle.ts"
import { readEnvFile } from "../runtime/env-file.ts"
import { composeEnvironment } from "../runtime/environment.ts"
import { gpuBinds } from "../runtime/gpu.ts"
import { impliedOptions, refuseUnsupported, type ExecOptions } from "../runtime/options.ts"
import { gecosOf, type Identity } from "../runtime/passwd.ts"
import { findProgram } from "../runtime/program.ts"
import { handOver } from "../runtime/handover.ts"
import { startStarter } from "../runtime/starter.ts"
import { cacheArgument, type ConcreteEngine, type StarterOptions } from "../runtime/starter-protocol.ts"
import { enginesFor, withEngine, type Startable } from "./engine.ts"

/** How a payload ended. */
export interface RunResult {
  /** Its exit status; 128 plus the signal's number when a signal ended it. */
  readonly exitCode: number
}

/** A payload that runs. Disposing it ends it. */
export interface Running extends AsyncDisposable {
  /** The one that was chosen. */
  readonly engine: ConcreteEngine
  /** The starter's process, which passes signals on. */
  readonly pid: number
  /** The payload's streams; null unless `stdio` is `pipe`. */
  readonly stdin: NodeJS.WritableStream | null
  /** Read it at once: what nobody reads when the payload ends is gone. */
  readonly stdout: NodeJS.ReadableStream | null
  readonly stderr: NodeJS.ReadableStream | null
  /** How it ended, everything undone. Rejects with the signal's reason, or a RunError when the payload was lost. */
  readonly exited: Promise<RunResult>
  /** Sends the payload a signal. */
  kill(signal: NodeJS.Signals): void
}

/** Read from /proc: process.umask() changes it for a moment, for all threads. */
function currentUmask(): number {
  const octal = /^Umask:\s*([0-7]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1]
  return octal === undefined ? 0o022 : parseInt(octal, 8)
}

function callerIdentity(): Identity {
  const uid = process.geteuid?.() ?? 0
  const gid = process.getegid?.() ?? 0
  try {
    const { username, homedir, shell } = userInfo()
    const gecos = gecosOf(readFileSync("/etc/passwd", "utf8"), uid)
    return {
      ...{ uid, gid, name: username, group: username, home: homedir, shell: shell ?? "/bin/sh" },
      ...(gecos === undefined ? {} : { gecos }),
    }
  } catch {
    // A uid without a passwd entry, as batch systems and containers have them.
    const home = process.env["HOME"]
    return {
      uid,
      gid,
      name: `user${uid}`,
      group: `group${gid}`,
      home: home !== undefined && path.isAbsolute(home) ? home : "/",
      shell: "/bin/sh",
    }
  }
}

/** Binds for processors that are not the machine's own. */
function gpu(options: ExecOptions): Bind[] {
  const search = { devices: options.contain === true }
  return [
    ...(options.nv === true && options.noNv !== true ? gpuBinds("nv", search) : []),
    ...(options.rocm === true && options.noRocm !== true ? gpuBinds("rocm", search) : []),
  ]
}

async function start(how: StarterOptions, bundle: Promise<Buffer>, options: ExecOptions): Promise<Running> {
  const { signal, stdio = "pipe" } = options
  const { engine } = how
  const starter = startStarter({
    ...how,
    bundle,
    attached: true,
    stdio: [stdio, stdio, stdio],
  })
  const stop = (): void => {
    starter.release()
  }
  signal?.addEventListener("abort", stop, { once: true })
  if (signal?.aborted === true) stop()
  const finish = async (): Promise<RunResult> => {
    try {
      const exitCode = await starter.ended
      signal?.throwIfAborted()
      return { exitCode }
    } finally {
      signal?.removeEventListener("abort", stop)
    }
  }
  const exited = finish()
  // It may end before anybody asks how.
  exited.catch(() => undefined)
  try {
    await Promise.all([starter.ready, bundle])
  } catch (error) {
    await exited.catch(() => undefined)
    signal?.throwIfAborted()
    throw error
  }
  const { child } = starter
  return {
    engine,
    pid: child.pid ?? 0,
    stdin: child.stdin,
    stdout: child.stdout,
    stderr: child.stderr,
    exited,
    kill: (name) => {
      child.kill(name)
    },
    async [Symbol.asyncDispose](): Promise<void> {
      starter.release()
      await exited.catch(() => undefined)
    },
  }
}

/**
 * Runs `action` in an image.
 *
 * @param tree - What is inside, where that can be known beforehand.
 */
export async function runImage(
  startable: Startable,
  tree: Tree | undefined,
  action: Action,
  argv: readonly string[],
  asked: ExecOptions,
): Promise<Running> {
  const options = impliedOptions(asked)
  refuseUnsupported(options)
  const { signal, stdio = "pipe" } = options
  signal?.throwIfAborted()
  const crun = findProgram("crun", "it runs the container")
  const hostCwd = await realpath(process.cwd())
  const who = callerIdentity()
  const caller = { uid: who.uid, gid: who.gid, home: who.home, cwd: hostCwd }
  const places = composeBinds(
    caller,
    [...parseBinds(options.binds ?? [], hostCwd).map((bind) => ({ nested: true, ...bind })), ...gpu(options)],
    options,
  )
  const identity = { ...who, home: homeOf(caller, options).destination }
  const session = chooseSession(
    places.flatMap(({ source }) => (source === undefined ? [] : [realpathSync(source)])),
  )
  const bundle = makeBundle({
    tree,
    image: startable.source.image,
    action,
    argv,
    identity,
    hostCwd,
    asked: options,
    places,
    session,
    environment: composeEnvironment({
      host: { ...process.env, USER_PATH: process.env["PATH"] },
      assignments: options.env ?? [],
      ...(options.envFile === undefined
        ? {}
        : { fromFile: await readEnvFile(options.envFile, process.env, argv) }),
      clean: options.cleanEnv === true,
      omit: options.noEnv ?? [],
      ...(options.onNotice === undefined ? {} : { onNotice: options.onNotice }),
    }),
    // isTTY of process.stdin would make a stream of it first.
    terminal: stdio === "inherit" && [0, 1, 2].every((fd) => isatty(fd)),
    umask: options.noUmask === true ? 0o022 : currentUmask(),
    starter: starterPath(),
  })
  // It may fail while nobody waits for it yet.
  bundle.catch(() => undefined)
  const { uid, gid } = identity
  const how = (engine: ConcreteEngine): StarterOptions => ({
    command: "run",
    engine,
    source: startable.source,
    args: [
      `--session=${session}`,
      `--crun=${crun}`,
      `--id=sifcrypt-${process.pid}-${Date.now().toString(36)}`,
      cacheArgument(options.cacheSize),
      // In a user namespace with one id everything else would be nobody's.
      ...(uid === 0 ? [] : [`--owner=${uid}:${gid}`]),
    ],
  })
  const wanted = options.engine ?? "auto"
  if (options.replaceProcess !== undefined) {
    if (stdio !== "inherit") throw new TypeError("a process that is replaced has no streams to give away")
    const attempts = enginesFor(wanted, startable).map(how)
    const reporter = options.replaceProcess
    await handOver({ attempts, bundle: await bundle, reporter }, () => signal?.aborted === true)
    signal?.throwIfAborted()
  }
  return await withEngine(wanted, startable, (engine) => start(how(engine), bundle, options))
}
