// The way to another machine: the system's ssh, with its configuration, its agent and its known hosts.
import { spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { setTimeout as sleep } from "node:timers/promises"
import * as is from "../arguments.ts"
import { scriptEnvironment } from "../definition/definition-build.ts"
import { printable } from "../printable.ts"
import { findProgram } from "../runtime/program.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { Channel } from "./channel.ts"

/** What is started there. */
const SERVE_COMMAND = "serve-build"
/** With it, whatever that account may do. */
const UNCONFINED = "--allow-unconfined"

/** Where a build may take place. */
export interface RemoteAddress {
  /** As it was given. */
  readonly text: string
  readonly user: string | undefined
  /** A name, which may be one of ssh's configuration, or an address. */
  readonly host: string
  readonly port: number | undefined
  /** sifcrypt there; default: the one that is found. */
  readonly program: string | undefined
}

const FORM = "ssh://[USER@]HOST[:PORT][/PATH/OF/sifcrypt]"
const MAX_PORT = 65_535

/**
 * Only letters that no shell, here or there, takes for anything else, and nothing that begins like an option.
 *
 * @returns undefined: it is none.
 */
export function parseRemote(text: string): RemoteAddress | undefined {
  const [, user, bracketed, name, digits, program] =
    /^ssh:\/\/(?:([A-Za-z0-9_][\w.@+-]{0,255})@)?(?:\[([0-9A-Fa-f:.]+(?:%[\w.]+)?)\]|([A-Za-z0-9_][\w.-]{0,255}))(?::(\d{1,5}))?(\/[\w./@+-]{0,4095})?$/.exec(
      text,
    ) ?? []
  const host = bracketed ?? name
  const port = digits === undefined ? undefined : Number(digits)
  if (host === undefined || (port !== undefined && (port === 0 || port > MAX_PORT))) return undefined
  return { text, user, host, port, program: program === "/" ? undefined : program }
}

/** An address of {@link parseRemote}. */
export const remoteAddress: is.Check<string> = (value, name) => {
  const given = is.path(value, name)
  if (parseRemote(given) === undefined) throw is.invalidValue(`${name} is ${FORM}`)
  return given
}

/** Words for ssh. */
export function sshArguments(
  { user, host, port, program = "sifcrypt" }: RemoteAddress,
  allowUnconfined = false,
): string[] {
  return [
    // No terminal, no agent and no display of ours, no ports, and this command whatever the configuration has for the host.
    ...["-T", "-a", "-x", "-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none"],
    ...(user === undefined ? [] : ["-l", user]),
    ...(port === undefined ? [] : ["-p", String(port)]),
    "--",
    host,
    // In the place of the shell that is given it: so nothing is between sshd and the builder.
    ["exec", program, SERVE_COMMAND, ...(allowUnconfined ? [UNCONFINED] : [])].join(" "),
  ]
}

/** ssh is given so long to end by itself, which is when the other side has undone everything. */
const PATIENCE_MS: Milliseconds = 4000
/** And what it said so long to come. */
const LAST_WORDS_MS: Milliseconds = 500
const MAX_LINE: Bytes = 4096
const MAX_LINES = 100

/** What ssh, and whatever it starts there, says to people. */
class Complaints {
  readonly #onLine: (line: string) => void
  #begun = ""
  #count = 0
  #kept: string[] | undefined = []

  constructor(onLine: (line: string) => void) {
    this.#onLine = onLine
  }

  add(text: string): void {
    const lines = `${this.#begun}${text}`.split(/\r?\n|\r/)
    this.#begun = (lines.pop() ?? "").slice(0, MAX_LINE)
    for (const line of lines) this.#take(line.slice(0, MAX_LINE))
  }

  #take(line: string): void {
    if (line.trim() === "" || ++this.#count > MAX_LINES) return
    if (this.#kept === undefined) this.#onLine(line)
    else this.#kept.push(line)
  }

  /** What was said until now is news; until then it may be the reason. */
  tell(): void {
    const kept = this.#kept ?? []
    this.#kept = undefined
    kept.forEach(this.#onLine)
  }

  /** When all is said: the last of what was not told. */
  takeReason(): string | undefined {
    this.add("\n")
    return this.#kept?.at(-1)
  }
}

/** A connection. Disposing it ends ssh, and with it what was started there. */
export class Connection implements AsyncDisposable {
  readonly channel: Channel
  readonly #child: ChildProcess
  readonly #complaints: Complaints
  readonly #exited: Promise<unknown>
  /** It, and all that speaks through its pipes. */
  readonly #closed: Promise<unknown>

  private constructor(address: RemoteAddress, child: ChildProcess, onLine: (line: string) => void) {
    const { stdin, stdout, stderr } = child
    if (stdin === null || stdout === null || stderr === null) throw new Error("they are pipes")
    this.#child = child
    this.#exited = once(child, "exit")
    this.#closed = once(child, "close")
    // One that cannot be started is told of where its end is awaited.
    for (const end of [this.#exited, this.#closed]) end.catch(() => undefined)
    this.#complaints = new Complaints(onLine)
    stderr.on("error", () => undefined) // its status says how it went
    stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#complaints.add(text)
    })
    this.channel = new Channel(stdout, stdin, { name: address.text, isPatient: true })
  }

  /**
   * @param onNotice - Hears what ssh says once the other side has been reached.
   * @throws EnvironmentError `ERR_ENV_NO_PROGRAM`.
   */
  static open(
    address: RemoteAddress,
    onNotice: (text: string) => void,
    allowUnconfined?: boolean,
  ): Connection {
    const program = findProgram("ssh", "it connects to the machine that builds")
    const child = spawn(program, sshArguments(address, allowUnconfined), {
      stdio: ["pipe", "pipe", "pipe"],
      // Its configuration may send variables.
      env: scriptEnvironment(),
    })
    return new Connection(address, child, (line) => {
      onNotice(`${address.text}: ${line}`)
    })
  }

  /** The other side speaks. */
  reached(): void {
    this.#complaints.tell()
  }

  /** Why there is nobody: what ssh said last, or how it ended. */
  async reason(): Promise<string> {
    await this.#end()
    const said = this.#complaints.takeReason()
    if (said !== undefined) return printable(said)
    const { exitCode, signalCode } = this.#child
    return `ssh ended with ${signalCode ?? `status ${exitCode ?? 0}`}`
  }

  /** The other side is to hear that this is the end. */
  stop(): void {
    this.#child.stdin?.end()
    // What is still on its way is for nobody, and must not keep it.
    this.#child.stdout?.destroy()
  }

  async #end(): Promise<void> {
    this.stop()
    const killing = setTimeout(() => this.#child.kill("SIGKILL"), PATIENCE_MS)
    await this.#exited.catch(() => undefined)
    clearTimeout(killing)
    // What a process that it left behind (ControlPersist) keeps open is not waited for.
    const giving = new AbortController()
    const late = sleep(LAST_WORDS_MS, undefined, { signal: giving.signal }).catch(() => undefined)
    await Promise.race([this.#closed.catch(() => undefined), late])
    giving.abort()
    this.#child.stderr?.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#end()
    } finally {
      this.channel[Symbol.dispose]()
    }
  }
}
