// A connection to another sifcrypt: frames in both directions, and noticing that nobody is there any more.
import { once } from "node:events"
import type { Readable, Writable } from "node:stream"
import { BuildError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { printable } from "../printable.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { decodeFrames, encodeFrame, FrameError, FrameKind, GREETING, MAX_DATA, type Frame } from "./frames.ts"

/** How often each side says that it is there, and how long the other one believes it. */
const PING_MS: Milliseconds = 10_000
const SILENCE_MS: Milliseconds = 120_000

const OUTPUT_KINDS = { stdout: FrameKind.stdout, stderr: FrameKind.stderr } as const

export interface ChannelOptions {
  /** What the other side is called in messages. */
  readonly name: string
  /** Default: two minutes. */
  readonly silenceMs?: Milliseconds | undefined
  /** Somebody may have to type a password before the first word. */
  readonly isPatient?: boolean
}

/** What the other side does not do. */
export function remoteError(name: string, what: string, cause?: unknown): BuildError {
  return new BuildError("ERR_BUILD_REMOTE", `${name}: ${what}`, { cause })
}

export class Channel implements Disposable {
  readonly name: string
  readonly #output: Writable
  readonly #frames: AsyncGenerator<Frame, void, undefined>
  readonly #over = new AbortController()
  readonly #timers: NodeJS.Timeout[] = []
  #heard = performance.now()
  #hasHeard = false

  constructor(
    input: Readable,
    output: Writable,
    { name, silenceMs = SILENCE_MS, isPatient = false }: ChannelOptions,
  ) {
    this.name = name
    this.#output = output
    // Whoever writes, or waits for room, is told; nobody may be writing. A process that ends closes its input without an error.
    const onGone = (cause?: Error): void => {
      this.#end(remoteError(name, "the connection ended", cause))
    }
    output.on("error", onGone).on("close", onGone)
    // Whoever reads is told.
    input.on("error", () => undefined)
    this.#frames = decodeFrames(this.#chunks(input), (start) => this.#stranger(start))
    const check = (): void => {
      const silence = performance.now() - this.#heard
      if (silence < silenceMs || (isPatient && !this.#hasHeard)) return
      const seconds = Math.round(silence / 1000)
      this.#end(remoteError(name, `nothing was heard for ${seconds} seconds`))
      input.destroy()
    }
    this.#timers.push(setInterval(check, silenceMs / 8).unref())
  }

  async *#chunks(input: Readable): AsyncGenerator<Buffer> {
    try {
      for await (const chunk of input as AsyncIterable<Buffer>) {
        this.#heard = performance.now()
        this.#hasHeard = true
        yield chunk
      }
    } catch (cause) {
      // Ours is the reason, if there is one.
      this.#over.signal.throwIfAborted()
      throw remoteError(this.name, "the connection broke", cause)
    }
    this.#over.signal.throwIfAborted()
  }

  #stranger(start: Buffer): BuildError {
    if (start.length === 0) return remoteError(this.name, "the connection ended before anything was said")
    const said = JSON.stringify(printable(start.toString("latin1")))
    return remoteError(this.name, `no sifcrypt answers there: what comes begins with ${said}`)
  }

  /** From here on whatever waits for this connection fails so. */
  #end(reason: Error): void {
    if (!this.#over.signal.aborted) this.#over.abort(reason)
  }

  /** Fires when the connection is of no use any more. */
  get over(): AbortSignal {
    return this.#over.signal
  }

  /** Has anything come at all? */
  get hasHeard(): boolean {
    return this.#hasHeard
  }

  /** What the other side said makes no sense. */
  wrong(what: string, cause?: unknown): BuildError {
    return remoteError(this.name, `what it says is not understood: ${what}`, cause)
  }

  async #write(bytes: Buffer): Promise<void> {
    const { signal } = this.#over
    signal.throwIfAborted()
    if (this.#output.write(bytes)) return
    try {
      await once(this.#output, "drain", { signal })
    } catch (cause) {
      signal.throwIfAborted()
      throw remoteError(this.name, "the connection ended", cause)
    }
  }

  /** The first that is said. Pings begin with it. */
  async greet(message: object): Promise<void> {
    const body = Buffer.from(JSON.stringify(message))
    await this.#write(Buffer.concat([GREETING, encodeFrame(FrameKind.message, body)]))
    const ping = (): void => {
      // What waits to be sent says as much.
      if (this.#output.writableLength === 0 && this.#output.writable)
        this.#output.write(encodeFrame(FrameKind.ping))
    }
    this.#timers.push(setInterval(ping, PING_MS).unref())
  }

  async send(message: object): Promise<void> {
    await this.#write(encodeFrame(FrameKind.message, Buffer.from(JSON.stringify(message))))
  }

  /** Without waiting until there is room for it. */
  say(message: object): void {
    if (!this.over.aborted)
      this.#output.write(encodeFrame(FrameKind.message, Buffer.from(JSON.stringify(message))))
  }

  /** Something is still to be sent: what is of passing interest need not be said. */
  get isBusy(): boolean {
    return this.#output.writableNeedDrain
  }

  async sendOutput(bytes: Buffer, stream: "stdout" | "stderr"): Promise<void> {
    for (let at = 0; at < bytes.length; at += MAX_DATA)
      await this.#write(encodeFrame(OUTPUT_KINDS[stream], bytes.subarray(at, at + MAX_DATA)))
  }

  /** A stream, whole. */
  async sendStream(
    pieces: AsyncIterable<Buffer> | Iterable<Buffer>,
    onSent?: (bytes: Bytes) => void,
  ): Promise<void> {
    for await (const piece of pieces) {
      for (let at = 0; at < piece.length; at += MAX_DATA)
        await this.#write(encodeFrame(FrameKind.data, piece.subarray(at, at + MAX_DATA)))
      onSent?.(piece.length)
    }
    await this.#write(encodeFrame(FrameKind.end))
  }

  /** There is nothing more to say. Waits until all of it has gone, or nobody wants it. */
  async finish(): Promise<void> {
    const { signal } = this.#over
    if (signal.aborted || this.#output.destroyed) return
    await new Promise<void>((resolve) => {
      const done = (): void => {
        signal.removeEventListener("abort", done)
        resolve()
      }
      signal.addEventListener("abort", done, { once: true })
      this.#output.end(done)
    })
  }

  /**
   * The next that is no ping; undefined: the other side has ended.
   *
   * @throws BuildError `ERR_BUILD_REMOTE`.
   */
  async next(): Promise<Frame | undefined> {
    for (;;) {
      let next
      try {
        next = await this.#frames.next()
      } catch (cause) {
        const error = cause instanceof FrameError ? this.wrong(cause.message, cause) : cause
        this.#end(error as Error)
        throw error
      }
      if (next.done === true) {
        this.#end(remoteError(this.name, "the connection ended"))
        return undefined
      }
      if (next.value.kind !== FrameKind.ping) return next.value
    }
  }

  async #expect(kind: FrameKind): Promise<Frame> {
    const frame = await this.next()
    if (frame === undefined) throw remoteError(this.name, "the connection ended")
    return this.#checked(frame, kind)
  }

  #checked(frame: Frame, kind: FrameKind): Frame {
    if (frame.kind !== kind && !(kind === FrameKind.data && frame.kind === FrameKind.end))
      throw this.wrong(`a frame of kind ${frame.kind} where one of kind ${kind} belongs`)
    return frame
  }

  /** The JSON of a message. */
  parse({ body }: Frame): unknown {
    try {
      return parseJson(new TextDecoder("utf-8", { fatal: true }).decode(body))
    } catch (cause) {
      throw this.wrong("a message is no JSON", cause)
    }
  }

  /** The next, which is a message. */
  async message(): Promise<unknown> {
    return this.parse(await this.#expect(FrameKind.message))
  }

  /** The next, which is a message; undefined: the other side has ended. */
  async messageOrEnd(): Promise<unknown> {
    const frame = await this.next()
    return frame && this.parse(this.#checked(frame, FrameKind.message))
  }

  /** The next, which is a stream of at most so many bytes, piece by piece. */
  async *stream(limit: Bytes): AsyncGenerator<Buffer, void, undefined> {
    for (let size = 0; ;) {
      const { kind, body } = await this.#expect(FrameKind.data)
      if (kind === FrameKind.end) return
      size += body.length
      if (size > limit) throw this.wrong(`a stream of more than ${limit} bytes`)
      yield body
    }
  }

  /** All of such a stream, in memory. */
  async bytes(limit: Bytes): Promise<Buffer> {
    // However small the pieces are, they take no more memory than their bytes do twice.
    let all = Buffer.alloc(Math.min(limit, MAX_DATA))
    let size = 0
    for await (const piece of this.stream(limit)) {
      if (size + piece.length > all.length) {
        const larger = Buffer.alloc(Math.min(limit, Math.max(2 * all.length, size + piece.length)))
        all.copy(larger, 0, 0, size)
        all = larger
      }
      size += piece.copy(all, size)
    }
    return all.subarray(0, size)
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers) clearInterval(timer)
  }
}
