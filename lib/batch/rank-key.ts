// How the ranks of a step on one node have its key with one request: the first of them asks for it, and gives it to the others. They meet
// at a socket that has no file, so nothing is left of it whoever is killed. Its name and a word, which whoever starts the step has drawn and
// which its ranks alone have in their environments, keep others away: other users, whom the kernel names, and payloads.
import { createHmac, randomBytes, timingSafeEqual } from "node:crypto"
import { EventEmitter, once } from "node:events"
import { connect, createServer, type Server, type Socket } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"
import { allocateSecret } from "../key/secret.ts"
import { loadAddon } from "../native/load.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { peerOf, readLine } from "./authenticators.ts"
import { MAX_SECRET } from "./secret-table.ts"

/** What a step's ranks have in common, hexadecimal. */
export const STEP_VARIABLE = "SIFCRYPT_BATCH_STEP"
const WORD_SIZE: Bytes = 32
/** How often to look for the first rank. */
const PAUSE_MS: Milliseconds = 20
/** Before the key: of an image without one there is nothing else. */
const GIVEN = 1

export function newStepWord(): string {
  return randomBytes(WORD_SIZE).toString("hex")
}

/** What says that this process is a rank, which is nobody else's to know: taken from the environment. undefined: it is none. */
export function takeStepWord(environment: NodeJS.ProcessEnv): Buffer | undefined {
  const text = environment[STEP_VARIABLE]
  Reflect.deleteProperty(environment, STEP_VARIABLE)
  return text !== undefined && /^[0-9a-f]{64}$/.test(text) ? Buffer.from(text, "hex") : undefined
}

/** A name of Linux's own kind, without a file: it says nothing of the word, which every user may see it for. */
function meetingPlace(word: Buffer, node: string): string {
  return `\0sifcrypt-${createHmac("sha256", word).update(node).digest("hex")}`
}

/** The first rank of a node, as the others see it. */
export class KeyGiver implements AsyncDisposable {
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  readonly #word: Buffer
  /** Ranks that have not asked, and that have not got it. */
  #toAsk: number
  #toServe: number
  #answer: Buffer | undefined
  readonly #given = new EventEmitter().setMaxListeners(0)

  private constructor(word: Buffer, others: number) {
    this.#word = word
    this.#toAsk = this.#toServe = others
    this.#server = createServer({ allowHalfOpen: true }, (socket) => {
      this.#sockets.add(socket)
      socket.once("close", () => this.#sockets.delete(socket))
      socket.on("error", () => undefined) // that rank has gone
      this.#meet(socket).catch(() => socket.destroy())
    })
  }

  /**
   * Waits for the others.
   *
   * @param others - How many they are: so often it is given.
   */
  static async listen(word: Buffer, node: string, others: number): Promise<KeyGiver> {
    const giver = new KeyGiver(word, others)
    giver.#server.listen(meetingPlace(word, node))
    await once(giver.#server, "listening")
    return giver
  }

  async #meet(socket: Socket): Promise<void> {
    if (peerOf(socket).uid !== process.geteuid?.()) throw new Error("it is another user's")
    const said = Buffer.from(await readLine(socket, 2 * WORD_SIZE + 1), "hex")
    if (said.length !== WORD_SIZE || !timingSafeEqual(said, this.#word)) throw new Error("it is no rank")
    if (this.#toAsk-- <= 0) throw new Error("every rank has asked")
    const answer = this.#answer ?? ((await once(this.#given, "answer")) as [Buffer])[0]
    await new Promise<void>((resolve, reject) => {
      socket.once("close", () => {
        reject(new Error("it has gone"))
      })
      socket.end(answer, resolve)
    })
    socket.destroy()
    if (--this.#toServe === 0) this.#given.emit("served")
  }

  /**
   * Gives it to who has asked, and who will.
   *
   * @param secret - Of the image, the caller's to wipe; undefined: it needs none.
   */
  give(secret: Uint8Array | undefined): void {
    const answer = loadAddon().secretMemory({ size: 1 + (secret?.length ?? 0) })
    answer[0] = GIVEN
    if (secret !== undefined) answer.set(secret, 1)
    this.#answer = answer
    this.#given.emit("answer", answer)
  }

  /** Waits until every other rank has it. */
  async served(signal: AbortSignal): Promise<void> {
    if (this.#toServe > 0) await once(this.#given, "served", { signal })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
    await once(this.#server, "close")
    this.#answer?.fill(0)
  }
}

/** undefined: nobody is there. */
async function connectTo(place: string): Promise<Socket | undefined> {
  const socket = connect(place)
  try {
    await once(socket, "connect")
    return socket
  } catch (error) {
    socket.destroy()
    // A queue that is full empties.
    if (["ECONNREFUSED", "EAGAIN"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined
    throw error
  }
}

/**
 * What the first rank of this node has got for all.
 *
 * @returns The caller wipes it; empty for an image that needs none.
 * @throws Error where the first rank has none to give; the signal's reason.
 */
export async function askFirstRank(word: Buffer, node: string, signal: AbortSignal): Promise<Buffer> {
  // It comes when it is started, or never, and Slurm ends its step then.
  for (;;) {
    signal.throwIfAborted()
    const socket = await connectTo(meetingPlace(word, node))
    if (socket !== undefined) return await take(socket, word, signal)
    await sleep(PAUSE_MS)
  }
}

async function take(socket: Socket, word: Buffer, signal: AbortSignal): Promise<Buffer> {
  const stop = (): void => {
    socket.destroy(signal.reason as Error)
  }
  signal.addEventListener("abort", stop)
  const answer = allocateSecret(1 + MAX_SECRET)
  let size = 0
  try {
    signal.throwIfAborted()
    if (peerOf(socket).uid !== process.geteuid?.()) throw new Error("it is another user's")
    socket.write(`${word.toString("hex")}\n`)
    for await (const piece of socket as AsyncIterable<Buffer>) {
      size += piece.copy(answer, size)
      piece.fill(0)
    }
    if (answer[0] !== GIVEN) throw new Error("it has got none")
    return answer.subarray(1, size)
  } catch (cause) {
    answer.fill(0)
    signal.throwIfAborted()
    const why = (cause as Error).message
    throw new Error(`the first rank on this node has no key to give: ${why}`, { cause })
  } finally {
    signal.removeEventListener("abort", stop)
    socket.destroy()
  }
}
