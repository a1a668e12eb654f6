// The workspace of a build, from outside: the starter makes namespaces and a scratch in them, and runs our worker there. What
// is in the scratch nobody else sees, and it goes when the worker, or this process, goes.
import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { readFileSync } from "node:fs"
import { createRequire } from "node:module"
import { userInfo } from "node:os"
import path from "node:path"
import type { Duplex, Readable } from "node:stream"
import { fileURLToPath, pathToFileURL } from "node:url"
import * as errors from "../errors.ts"
import { BuildError, ContainerError, EnvironmentError, type ErrorCode } from "../errors.ts"
import { packageRoot, starterPath } from "../native/load.ts"
import { findProgram } from "../runtime/program.ts"
import { scrubbedEnvironment } from "../runtime/starter-protocol.ts"
import type { Bytes } from "../units.ts"
import type { Scratch } from "./scratch.ts"
import { decodeFrames, encodeFrame } from "./frames.ts"
import type { Reply, Request, WireError } from "./workspace-protocol.ts"

/** What a workspace is made of. */
export interface WorkspaceOptions {
  /** A folder that the scratch is mounted over, in the workspace only. */
  readonly session: string
  readonly scratch: Scratch
  readonly ids: IdMaps | undefined
  /** Descriptors that the worker gets, in this order; {@link Workspace.descriptor} says by which numbers. */
  readonly fds: readonly number[]
  readonly signal: AbortSignal | undefined
  /** What scripts print. */
  readonly onOutput: (bytes: Buffer, stream: "stdout" | "stderr") => void
  readonly onStep: (text: string) => void
  readonly onNotice: (text: string) => void
}

/** How ids of the workspace are those of this machine: `INSIDE:OUTSIDE:COUNT,…`. */
export interface IdMaps {
  readonly uids: string
  readonly gids: string
}

/** Status, watch, control and keys come before what is passed on. */
const FIRST_PASSED = 7

function subordinate(file: string, name: string, id: number): string | undefined {
  let text: string
  try {
    text = readFileSync(file, "utf8")
  } catch {
    return undefined // Nobody has any.
  }
  for (const line of text.split("\n")) {
    const [owner, start, count] = line.split(":")
    if ((owner === name || owner === String(id)) && Number(start) > 0 && Number(count) > 0)
      return `0:${id}:1,1:${start ?? ""}:${count ?? ""}`
  }
  return undefined
}

/** The caller's subordinate ids, if this machine gives any and can map them; root needs none. */
export function subordinateIds(): IdMaps | undefined {
  const uid = process.geteuid?.() ?? 0
  if (uid === 0) return undefined
  let name = ""
  try {
    name = userInfo().username
    findProgram("newuidmap", "it maps subordinate ids")
    findProgram("newgidmap", "it maps subordinate ids")
  } catch (error) {
    if (error instanceof EnvironmentError) return undefined
    // A uid without a passwd entry may still be named by its number.
  }
  const uids = subordinate("/etc/subuid", name, uid)
  const gids = subordinate("/etc/subgid", name, process.getegid?.() ?? 0)
  return uids === undefined || gids === undefined ? undefined : { uids, gids }
}

/** How the worker is started: compiled, or as it is where this file is not compiled either. */
function workerCommand(): string[] {
  const own = import.meta.url
  if (!own.endsWith(".ts"))
    return [process.execPath, path.join(packageRoot, "dist", "definition", "workspace-worker.js")]
  const tsx = pathToFileURL(createRequire(own).resolve("tsx")).href
  return [process.execPath, `--import=${tsx}`, fileURLToPath(new URL("workspace-worker.ts", own))]
}

/** The error that the worker met. */
function fromWire(error: WireError): Error {
  const { name, code, message, path: file, errno, syscall } = error
  const kind: unknown = (errors as Readonly<Record<string, unknown>>)[name]
  if (typeof kind === "function" && (kind.prototype instanceof ContainerError || kind === ContainerError)) {
    const Kind = kind as new (code: ErrorCode, text: string, options: { path?: string }) => ContainerError
    return new Kind(code as ErrorCode, message, file === undefined ? {} : { path: file })
  }
  return Object.assign(new Error(message), {
    ...(code === undefined ? {} : { code }),
    ...(errno === undefined ? {} : { errno }),
    ...(syscall === undefined ? {} : { syscall }),
  })
}

interface StarterFailure {
  readonly event: string
  readonly step?: string
  readonly errno?: string
  readonly message?: string
}

/** What the machine lacks for one kind of scratch, another may not need. */
const SCRATCH_STEPS: readonly string[] = ["scratch", "fuse", "loop_attach", "crypt_activate", "dlopen"]

function starterError({ step = "", message = "" }: StarterFailure): ContainerError {
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

export class Workspace implements AsyncDisposable {
  readonly #child: ChildProcess
  readonly #replies: AsyncGenerator
  readonly #options: WorkspaceOptions
  readonly #exited: Promise<unknown>
  readonly #status: Promise<void>
  #failure: ContainerError | undefined
  #started = false

  constructor(options: WorkspaceOptions) {
    this.#options = options
    const { session, scratch, ids, fds, signal, onOutput } = options
    const args = [
      "workspace",
      `--session=${session}`,
      ...scratchArguments(scratch),
      ...(ids === undefined ? [] : [`--uid-map=${ids.uids}`, `--gid-map=${ids.gids}`]),
      "--status-fd=3",
      "--watch-fd=4",
      "--",
      ...workerCommand(),
      "5",
      "6",
    ]
    const pipes = Array.from({ length: FIRST_PASSED - 1 }, () => "pipe" as const)
    this.#child = spawn(starterPath(), args, {
      argv0: "sifcrypt-starter",
      stdio: ["ignore", ...pipes, ...fds],
      env: scrubbedEnvironment,
    })
    this.#exited = once(this.#child, "close")
    this.#exited.catch(() => undefined)
    this.#child.on("error", () => undefined)
    this.#stream(1).on("data", (bytes: Buffer) => {
      onOutput(bytes, "stdout")
    })
    this.#stream(2).on("data", (bytes: Buffer) => {
      onOutput(bytes, "stderr")
    })
    this.#status = this.#listen()
    this.#status.catch(() => undefined)
    for (const fd of [4, 5, 6]) this.#stream(fd).on("error", () => undefined)
    this.#replies = decodeFrames(this.#stream(5))
    signal?.addEventListener("abort", this.#stop, { once: true })
    if (signal?.aborted === true) this.#stop()
  }

  #stream(fd: number): Duplex {
    return this.#child.stdio[fd] as Duplex
  }

  #stop = (): void => {
    this.#stream(4).destroy()
  }

  /** Until it is ready, or has failed. */
  #listen(): Promise<void> {
    let unread = ""
    const status = this.#stream(3) as Readable
    return new Promise((resolve, reject) => {
      status
        .setEncoding("utf8")
        .on("data", (text: string) => {
          const lines = (unread + text).split("\n")
          unread = lines.pop() ?? ""
          for (const line of lines) {
            const told = JSON.parse(line) as StarterFailure
            if (told.event === "ready") {
              this.#started = true
              resolve()
            } else if (told.event === "error") this.#failure ??= starterError(told)
          }
        })
        .on("close", () => {
          reject(this.#end())
        })
    })
  }

  /** Why there is no answer any more. */
  #end(): ContainerError {
    return (
      this.#failure ??
      new BuildError(
        "ERR_BUILD_SCRATCH",
        this.#started
          ? "the process in the workspace was killed"
          : "the workspace of the build did not start",
      )
    )
  }

  /**
   * Waits until its scratch is there.
   *
   * @throws BuildError `ERR_BUILD_SCRATCH`, EnvironmentError.
   */
  ready(): Promise<void> {
    return this.#status
  }

  /** The worker's number of the descriptor that was given as the `index`-th. */
  static descriptor(index: number): number {
    return FIRST_PASSED + index
  }

  /** The next secret that a message speaks of; the callee copies. */
  sendSecret(secret: Uint8Array): void {
    const copy = Buffer.alloc(secret.length)
    copy.set(secret)
    this.#stream(6).write(copy, () => copy.fill(0))
  }

  /**
   * Asks for something and waits for it.
   *
   * @param onProgress - Bytes so far.
   */
  async ask(request: Request, onProgress: (bytes: Bytes) => void = () => undefined): Promise<unknown> {
    const { signal, onStep, onNotice } = this.#options
    this.#stream(5).write(encodeFrame(request))
    for (;;) {
      // A pipe that breaks says no more than one that ends.
      const next = await this.#replies.next().catch(() => undefined)
      signal?.throwIfAborted()
      if (next === undefined || next.done === true) break
      const reply = next.value as Reply
      if (reply.kind === "step") onStep(reply.text)
      else if (reply.kind === "notice") onNotice(reply.text)
      else if (reply.kind === "progress") onProgress(reply.bytes)
      else if (reply.kind === "failed") throw fromWire(reply.error)
      else return reply.value
    }
    await this.#exited
    throw this.#end()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#options.signal?.removeEventListener("abort", this.#stop)
    this.#stop()
    await this.#exited.catch(() => undefined)
  }
}
