// The broker of a job set: a process of its user, on the machine that submits, which has the secrets of the set's images in locked memory
// and gives them to tasks that run. It ends with the set.
import { appendFileSync } from "node:fs"
import { rm } from "node:fs/promises"
import { createServer, isIP, type AddressInfo, type Server, type Socket } from "node:net"
import { hostname, userInfo } from "node:os"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { forbidDumps } from "../device/process.ts"
import { thenUndone } from "../disposal.ts"
import { BatchError } from "../errors.ts"
import { ownFolder } from "../native/private-folder.ts"
import { Turns } from "../turns.ts"
import type { Milliseconds } from "../units.ts"
import { answerLine, openCredential, readLine, type Opened } from "./authenticators.ts"
import type { FoundTask, JobSet } from "./job-set.ts"
import {
  MAX_REQUEST,
  newPair,
  parseRequest,
  seal,
  type ExchangePair,
  type KeyRequest,
  type Sealed,
} from "./key-exchange.ts"
import { SecretTable } from "./secret-table.ts"
import { keepOut } from "./ssh-access.ts"
import { hostsOf, isActive, jobByNumber, queue } from "./slurm.ts"

/** Requests that are looked at, and that wait for it. */
const MAX_AT_ONCE = 8
const MAX_WAITING = 512

/** How often Slurm is asked whether the set is done. */
const POLL_MS: readonly [Milliseconds, Milliseconds] = [1000, 10_000]
/** A submission that is not complete by then never will be. */
const SUBMISSION_MS: Milliseconds = 300_000

/** What a task is told. `later`: it may ask again. A refusal is sealed, too, for whoever has asked and has a key. */
export type Answer =
  | { readonly status: "released"; readonly sealed: string }
  | { readonly status: "later" | "refused"; readonly reason: string; readonly sealed?: string }

type Withheld = Extract<Answer, { readonly reason: string }>

class Broker {
  readonly #set: JobSet
  readonly #secrets: SecretTable
  readonly #pair: ExchangePair = newPair()
  readonly #turns = new Turns(MAX_AT_ONCE)
  /** How often a secret was given: by array, element, start, node. */
  readonly #released = new Map<string, number>()
  /** What of that an answer is. */
  readonly #counts = new WeakMap<Answer, string>()
  readonly #nonces = new Set<string>()
  readonly #sockets = new Set<Socket>()

  constructor(set: JobSet, secrets: SecretTable) {
    this.#set = set
    this.#secrets = secrets
  }

  get publicKey(): string {
    return this.#pair.publicKey.toString("base64")
  }

  log(event: string, facts: object = {}): void {
    const line = JSON.stringify({ time: new Date().toISOString(), event, ...facts })
    appendFileSync(this.#set.path("log", "broker.log"), `${line}\n`, { mode: 0o600 })
  }

  /** Is it a task of this set that runs there, and may it have this secret? */
  async #judge(
    request: KeyRequest,
  ): Promise<Withheld | { readonly task: FoundTask; readonly count: string }> {
    const refuse = (reason: string): Withheld => ({ status: "refused", reason })
    if (request.set !== this.#set.manifest.id) return refuse("it is about another job set")
    // Another's copy of a request changes nothing: the answer is sealed for the task. It is not counted twice all the same.
    if (this.#nonces.has(request.nonce)) return refuse("it was asked before")
    this.#nonces.add(request.nonce)
    const { complete } = await this.#set.submitted()
    const task = await this.#set.taskOf(request.array, request.element)
    if (task === undefined)
      return complete
        ? refuse("no array of this job set has such an element")
        : { status: "later", reason: "the job set is still being submitted" }
    const image = this.#set.image(task.task)
    if (image.digest !== request.digest) return refuse("its task has another image")
    const job = await jobByNumber(request.slurmJob)
    if (job === undefined || job.array !== request.array || job.element !== request.element)
      return refuse(`job ${request.slurmJob} is not that element of that array`)
    if (job.uid !== process.geteuid?.()) return refuse("the job is somebody else's")
    if (job.state !== "RUNNING") return refuse(`the job is ${job.state}, not RUNNING`)
    if (!(await hostsOf(job.nodes)).includes(request.node))
      return refuse(`the job does not run on ${request.node}`)
    const count = [request.array, request.element, job.restarts, request.node].join(":")
    if ((this.#released.get(count) ?? 0) > task.job.maxTaskRetries)
      return refuse("it had the key as often as it can be started")
    return { task, count }
  }

  async #answer(opened: Opened): Promise<Answer> {
    if ("failure" in opened) {
      this.log("refused", { uid: opened.uid, reason: opened.failure })
      return { status: "refused", reason: "the credential is not accepted" }
    }
    const { uid, payload } = opened
    if (uid !== process.geteuid?.()) {
      this.log("refused", { uid, reason: "the credential is somebody else's" })
      return { status: "refused", reason: "the credential is not accepted" }
    }
    let request: KeyRequest
    try {
      request = parseRequest(payload)
    } catch (error) {
      this.log("refused", { uid, reason: (error as Error).message })
      return { status: "refused", reason: "it is no request" }
    }
    const { slurmJob, array, element, node, digest } = request
    const about = { uid, slurmJob, array, element, node, digest }
    const sealedFor = (bytes: Uint8Array, what: Sealed): string =>
      seal(bytes, this.#pair, request.publicKey, payload, what).toString("base64")
    const tell = (answer: Withheld): Answer => {
      this.log(answer.status, { ...about, ...answer })
      return answer.status === "later"
        ? answer
        : { ...answer, sealed: sealedFor(Buffer.from(answer.reason), "refusal") }
    }
    const verdict = await this.#judge(request)
    if ("status" in verdict) return tell(verdict)
    const secret = this.#secrets.get(digest)
    if (secret === undefined)
      return tell({ status: "refused", reason: "there is no secret of this image here" })
    const sealed = sealedFor(secret, "key")
    // What cannot be written down is not given, and does not count: it is asked for again.
    this.log("released", { ...about, job: verdict.task.job.id, task: verdict.task.task.id })
    this.#count(verdict.count, 1)
    const answer: Answer = { status: "released", sealed }
    this.#counts.set(answer, verdict.count)
    return answer
  }

  #count(count: string, more: number): void {
    this.#released.set(count, (this.#released.get(count) ?? 0) + more)
  }

  /** Serves one connection: a line, an answer, no more. */
  async #serve(socket: Socket, isOwn: boolean): Promise<void> {
    const line = await readLine(socket)
    if (this.#turns.waiting >= MAX_WAITING) {
      socket.end(`${JSON.stringify({ status: "later", reason: "the broker is busy" })}\n`)
      return
    }
    const answer = await this.#turns.take(async (): Promise<Answer> => {
      const [kind, word = ""] = line.split(" ")
      if (kind === "munge" && !isOwn)
        return await this.#answer(await openCredential(word, this.#set.manifest.cluster.mungeSocket))
      // Nobody but this user comes through this socket.
      if (kind === "ssh" && isOwn && word.length <= 2 * MAX_REQUEST)
        return await this.#answer({ uid: process.geteuid?.() ?? 0, payload: Buffer.from(word, "base64") })
      this.log("refused", { from: socket.remoteAddress, reason: "it is no request" })
      return { status: "refused", reason: "it is no request" }
    })
    answerLine(socket, answer, () => {
      const count = this.#counts.get(answer)
      // Nobody has got it: it may be asked for again.
      if (count !== undefined) this.#count(count, -1)
    })
  }

  /** @param isOwn - Only this user can reach it. */
  server(isOwn: boolean): Server {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      this.#sockets.add(socket)
      socket.once("close", () => this.#sockets.delete(socket))
      socket.on("error", () => undefined) // whoever asked has gone
      this.#serve(socket, isOwn).catch((error: unknown) => {
        try {
          this.log("failed", { from: socket.remoteAddress, reason: (error as Error).message })
        } catch {
          // Where nothing can be written any more, nothing is given; it may be again.
        }
        answerLine(socket, { status: "later", reason: "the broker could not decide" })
      })
    })
    server.maxConnections = MAX_WAITING
    return server
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy()
  }

  /** Waits until nobody will ask any more, and says why. */
  async untilDone(publicKey: string, signal: AbortSignal | undefined): Promise<string> {
    const started = performance.now()
    let pause = POLL_MS[0]
    let idle = 0
    for (;;) {
      await sleep(pause, undefined, { signal }).catch(() => undefined)
      if (signal?.aborted === true) return "ended by a signal"
      pause = Math.min(POLL_MS[1], pause * 1.2)
      try {
        const place = await this.#set.broker()
        if (place?.publicKey !== publicKey) return "another broker has taken over, or the job set is gone"
        const { complete, arrays } = await this.#set.submitted()
        if (!complete) {
          if (performance.now() - started > SUBMISSION_MS) return "the job set was never submitted as a whole"
          continue
        }
        const own = new Set(arrays.map(({ array }) => array))
        const waits = (await queue(signal)).some((job) => own.has(job.array) && isActive(job))
        // A job that is requeued may be in no list for a moment.
        idle = waits ? 0 : idle + 1
        if (idle === 2) return "every task has ended"
      } catch (error) {
        // A controller that restarts comes back; a folder that is gone does not.
        if (error instanceof BatchError && error.code === "ERR_BATCH_SET") return error.message
      }
    }
  }
}

async function listen(
  server: Server,
  where: { path: string } | { host?: string; port: number },
): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject)
    server.listen(where, () => {
      server.removeListener("error", reject)
      resolve()
    })
  })
}

/** sockaddr_un(7): 108 bytes with the NUL at the end. */
const MAX_SOCKET_PATH = 107

/** In the job set, where its name is not too long: what is the user's at run time goes when he logs out. */
function socketPath(set: JobSet): string {
  const name = `socket.${process.pid}`
  const near = set.path(name)
  if (Buffer.byteLength(near) <= MAX_SOCKET_PATH) return near
  return path.join(ownFolder("batch"), `${set.manifest.id}.${name}`)
}

export interface ServeOptions {
  readonly set: JobSet
  /** A descriptor that the secrets are read from, as {@link SecretTable.write} writes them. */
  readonly secretsFd: number
  readonly host?: string | undefined
  readonly port: number
  readonly sshPort: number
  readonly onReady: () => Promise<void> | void
  readonly signal?: AbortSignal | undefined
}

/** Serves keys until the set is done. */
export async function serveKeys({
  set,
  secretsFd,
  host,
  port,
  sshPort,
  onReady,
  signal,
}: ServeOptions): Promise<void> {
  forbidDumps()
  using secrets = SecretTable.readFrom(secretsFd)
  // Who was to send them may have ended meanwhile, or could not.
  for (const { name, digest, encrypted } of set.manifest.images)
    if (encrypted && secrets.get(digest) === undefined)
      throw new BatchError("ERR_BATCH_KEY", `what opens ${name} has not come`)
  const broker = new Broker(set, secrets)
  const isMunge = set.manifest.cluster.authenticator === "munge"
  const server = broker.server(!isMunge)
  const socket = socketPath(set)
  const served = async (): Promise<void> => {
    if (isMunge) await listen(server, { port, ...(host !== undefined && isIP(host) !== 0 ? { host } : {}) })
    else await listen(server, { path: socket })
    const place = {
      host: host ?? hostname(),
      publicKey: broker.publicKey,
      pid: process.pid,
      ...(isMunge
        ? { port: (server.address() as AddressInfo).port }
        : { port: 0, ssh: { port: sshPort, user: userInfo().username, socket } }),
    }
    await set.writeBroker(place)
    broker.log("started", { host: place.host, port: place.port })
    await onReady()
    broker.log("ended", { reason: await broker.untilDone(broker.publicKey, signal) })
  }
  await thenUndone(served, async () => {
    server.close()
    broker.close()
    await rm(socket, { force: true })
    const place = await set.broker().catch(() => undefined)
    if (place?.publicKey === broker.publicKey) {
      if (!isMunge) await keepOut(set)
      await set.removeBroker()
    }
  })
}
