// The workspace of a build, from outside: the starter makes namespaces and a scratch in them, and runs our worker there. What
// is in the scratch nobody else sees, and it goes when the worker, or this process, goes.
import { createRequire } from "node:module"
import { constants } from "node:os"
import path from "node:path"
import type { Duplex, Readable } from "node:stream"
import { pathToFileURL } from "node:url"
import { types } from "node:util"
import { BuildError, ContainerError, EnvironmentError } from "../errors.ts"
import { packageRoot } from "../native/load.ts"
import { startStarter, type Starter } from "../runtime/starter.ts"
import type { Failure, PipedDescriptors } from "../runtime/starter-protocol.ts"
import { idMapArguments, type IdMaps } from "../runtime/subordinate-ids.ts"
import type { OnProgress } from "../units.ts"
import type { Scratch } from "./scratch.ts"
import { decodeFrames, encodeFrame } from "./frames.ts"
import { fromWire } from "./wire-error.ts"
import type { Reply, Request } from "./workspace-protocol.ts"

/** Gets what scripts print; where it gives a promise, there is no more of that stream until it is kept. */
export type OnOutput = (bytes: Buffer, stream: "stdout" | "stderr") => unknown

/** What a workspace is made of. */
export interface WorkspaceOptions {
  /** A folder that the scratch is mounted over, in the workspace only. */
  readonly session: string
  readonly scratch: Scratch
  readonly ids: IdMaps | undefined
  /** Descriptors that the worker gets, in this order; {@link Workspace.descriptor} says by which numbers. */
  readonly fds: readonly number[]
  readonly signal: AbortSignal | undefined
  /** What scripts print. No more comes of a stream until a promise is kept. */
  readonly onOutput: OnOutput
  readonly onStep: (text: string) => void
  readonly onNotice: (text: string) => void
}

/** The worker's number of the first descriptor that is passed on: they come behind the standard streams. */
const FIRST_PASSED = 3

/** No address that a stream can listen on: Node would open a debugger there when it gets SIGUSR1 before the worker has begun. */
const noDebugger = "--inspect-port=[ff00::]:1024"

/** How the worker is started: compiled, or as it is where this file is not compiled either. */
function workerCommand(): string[] {
  const own = import.meta.filename
  if (!own.endsWith(".ts"))
    return [
      process.execPath,
      noDebugger,
      "--",
      path.join(packageRoot, "dist", "definition", "workspace-start.js"),
    ]
  const tsx = pathToFileURL(createRequire(own).resolve("tsx")).href
  return [
    process.execPath,
    noDebugger,
    `--import=${tsx}`,
    "--",
    path.join(import.meta.dirname, "workspace-start.ts"),
  ]
}

/** What the machine lacks for one kind of scratch, another may not need. */
const SCRATCH_STEPS: readonly string[] = ["scratch", "fuse", "loop_attach", "crypt_activate", "dlopen"]

function starterError({ step, message }: Failure): ContainerError {
  if (SCRATCH_STEPS.includes(step))
    return new BuildError("ERR_BUILD_SCRATCH", `the scratch of the build: ${message}`)
  return new EnvironmentError(
    "ERR_ENV_NO_KERNEL_SUPPORT",
    `the workspace of the build cannot be made: ${message}`,
  )
}

function scratchArguments(scratch: Scratch): string[] {
  switch (scratch.kind) {
    case "plain":
      return [`--folder=${scratch.folder}`]
    case "memory":
      return [`--memory=${scratch.memory}`]
    case "userspace":
      return [`--memory=${scratch.memory}`, `--spill=${scratch.folder}`, `--disk=${scratch.disk}`]
    case "kernel":
      return [`--volume=${scratch.folder}`, `--disk=${scratch.disk}`]
  }
}

/** By SIGKILL, as the kernel does where there is no memory. */
const KILLED = 128 + constants.signals.SIGKILL

export class Workspace implements AsyncDisposable {
  readonly #starter: Starter
  readonly #replies: AsyncGenerator
  readonly #options: WorkspaceOptions
  /** Requests and replies. */
  readonly #control: Duplex
  /** What requests speak of. */
  readonly #secrets: Duplex
  #started = false
  /** What kept us from talking to it. */
  #broken: Error | undefined

  constructor(options: WorkspaceOptions) {
    this.#options = options
    const { session, scratch, ids, fds, signal, onOutput } = options
    const numbers: number[] = []
    const compose = ({ pipe }: PipedDescriptors): string[] => {
      numbers.push(pipe(), pipe())
      return [
        "workspace",
        `--session=${session}`,
        ...scratchArguments(scratch),
        ...(ids === undefined ? [] : idMapArguments(ids)),
        "--",
        ...workerCommand(),
        ...numbers.map(String),
      ]
    }
    this.#starter = startStarter({
      launch: { engine: "userspace", image: "the workspace of the build", explain: starterError, compose },
      attached: true,
      // Under the numbers of Workspace.descriptor.
      stdio: ["ignore", "pipe", "pipe", ...fds],
    })
    const [control, secrets] = numbers.map((fd) => this.#starter.child.stdio[fd] as Duplex)
    if (control === undefined || secrets === undefined) throw new Error("a launch is composed when it starts")
    this.#control = control
    this.#secrets = secrets
    const { stdout, stderr } = this.#starter.child
    // It does not go on without one that breaks.
    for (const pipe of [control, secrets, stdout, stderr])
      pipe?.on("error", (cause) => {
        this.#broken ??= cause
        this.#stop()
      })
    const listen = (stream: Readable | null, name: "stdout" | "stderr"): void => {
      stream?.on("data", (bytes: Buffer) => {
        const taken = onOutput(bytes, name)
        if (!types.isPromise(taken)) return
        stream.pause()
        const go = (): unknown => stream.resume()
        taken.then(go, go)
      })
    }
    listen(stdout, "stdout")
    listen(stderr, "stderr")
    this.#replies = decodeFrames(control)
    signal?.addEventListener("abort", this.#stop, { once: true })
    if (signal?.aborted === true) this.#stop()
  }

  #stop = (): void => {
    this.#starter.release()
  }

  /** Why there is no answer any more, when all has ended. */
  async #end(): Promise<ContainerError> {
    let status: number
    try {
      status = (await this.#starter.ended).code
    } catch (error) {
      if (error instanceof ContainerError) return error
      throw error
    }
    const what = this.#started
      ? "the process in the workspace"
      : "the workspace of the build did not start: its process"
    if (status === KILLED) return new BuildError("ERR_BUILD_SCRATCH", `${what} was killed`)
    const cause = this.#broken ?? new Error(`status ${status}`)
    return new BuildError("ERR_BUILD_SCRATCH", `${what} has ended: ${cause.message}`, { cause })
  }

  /**
   * Waits until its scratch is there.
   *
   * @throws BuildError `ERR_BUILD_SCRATCH`, EnvironmentError.
   */
  async ready(): Promise<void> {
    try {
      await this.#starter.ready
      this.#started = true
    } catch {
      throw await this.#end()
    }
  }

  /** The worker's number of the descriptor that was given as the `index`-th. */
  static descriptor(index: number): number {
    return FIRST_PASSED + index
  }

  /** The next secret that a message speaks of; the callee copies. */
  sendSecret(secret: Uint8Array): void {
    const copy = Buffer.alloc(secret.length)
    copy.set(secret)
    this.#secrets.write(copy, () => copy.fill(0))
  }

  /**
   * Asks for something and waits for it.
   *
   * @param onProgress - Bytes so far, of how many, where that is known.
   * @param onFilled - What a stage begins with is read, and used when that does not throw.
   */
  async ask(
    request: Request,
    onProgress: OnProgress = () => undefined,
    onFilled: (stage: number) => void = () => undefined,
  ): Promise<unknown> {
    const { signal, onStep, onNotice } = this.#options
    const say = (what: Request): void => void this.#control.write(encodeFrame(what))
    say(request)
    for (;;) {
      // A pipe that breaks says no more than one that ends.
      const next = await this.#replies.next().catch(() => undefined)
      signal?.throwIfAborted()
      if (next === undefined || next.done === true) break
      const reply = next.value as Reply
      if (reply.kind === "step") onStep(reply.text)
      else if (reply.kind === "notice") onNotice(reply.text)
      else if (reply.kind === "progress") onProgress(reply.bytes, reply.total)
      else if (reply.kind === "filled") {
        onFilled(reply.stage)
        say({ kind: "use" })
      } else if (reply.kind === "failed") {
        // It may have missed what did not get through.
        if (this.#broken !== undefined) break
        throw fromWire(reply.error)
      } else return reply.value
    }
    throw await this.#end()
  }

  /** Nothing more is asked of it: it ends while others go on. Disposing waits for that. */
  release(): void {
    this.#options.signal?.removeEventListener("abort", this.#stop)
    this.#stop()
    // How it ended has been told to whoever asked it for something.
    this.#starter.ended.catch(() => undefined)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release()
    await this.#starter.ended.catch(() => undefined)
  }
}
