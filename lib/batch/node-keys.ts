// A node's own key, for job sets that no broker serves: a process that keeps it, as root or a user of its own, opens bundles for tasks
// that run on this node, each for its owner. Who asks, the kernel says; whether he runs there, Slurm does.
import { constants } from "node:fs"
import { lstat, rm } from "node:fs/promises"
import { connect, createServer, type Server, type Socket } from "node:net"
import type { KeyObject } from "node:crypto"
import { required, shape, text, type Check } from "../arguments.ts"
import { readBounded } from "../bounded-file.ts"
import { startTimeOf } from "../container/instance-state.ts"
import { forbidDumps } from "../device/process.ts"
import { BatchError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { MAX_KEY_FILE_SIZE, parsePrivateKey } from "../key/key-file.ts"
import { isHeld } from "../native/private-folder.ts"
import { Turns } from "../turns.ts"
import type { Bytes } from "../units.ts"
import { answerLine, exchange, peerOf, readLine } from "./authenticators.ts"
import { checkPart, keyFingerprint, openBundle, parseHead, type BundlePart } from "./bundle.ts"
import type { JobSet } from "./job-set.ts"
import { newPair, parseRequest, seal, type KeyRequest } from "./key-exchange.ts"
import { SecretTable } from "./secret-table.ts"
import { hostsOf, jobByNumber, processesOf } from "./slurm.ts"

/** A request with its part of a bundle: its secrets, and the digests of the images. */
const MAX_ASKED: Bytes = 256 << 10

/** Of each user: requests that are looked at, and that wait for it. Nobody can keep others waiting. */
const MAX_AT_ONCE = 4
const MAX_WAITING = 60

/** What a task sends: a request as the broker gets it, word by word, and what is to be opened. */
interface Asked {
  readonly request: string
  readonly bundle: BundlePart
}

const checkAsked: Check<Asked> = shape<Asked>({ request: required(text), bundle: required(checkPart) })

/** What it says: `sealed` for the task by a key that was made for this answer. */
export type NodeAnswer =
  | { readonly status: "released"; readonly sealed: string; readonly publicKey: string }
  | { readonly status: "later" | "refused"; readonly reason: string }

/** Something that happened, for whoever keeps a log. */
export type NodeEvent = Readonly<Record<string, string | number | undefined>>

/** Who asks. */
class Peer {
  readonly uid: number
  /** Of the process that connected, which may have ended: its socket another can have, and its number in time as well. */
  readonly pid: number
  readonly #started: string | undefined

  constructor(socket: Socket) {
    const { uid, pid } = peerOf(socket)
    this.uid = uid
    this.pid = pid
    this.#started = startTimeOf(pid)
  }

  /** Is it another process by now that has the number, or none? Where /proc shows nobody else's processes, nobody can tell. */
  hasEnded(): boolean {
    return startTimeOf(this.pid) !== this.#started
  }
}

/** The turns of one user. */
interface Caller {
  readonly turns: Turns
  connections: number
}

class NodeKeys {
  readonly #node: string
  readonly #keys: ReadonlyMap<string, KeyObject>
  readonly #log: (event: NodeEvent) => void
  readonly #callers = new Map<number, Caller>()
  readonly #sockets = new Set<Socket>()

  constructor(node: string, keys: ReadonlyMap<string, KeyObject>, log: (event: NodeEvent) => void) {
    this.#node = node
    this.#keys = keys
    this.#log = log
  }

  /** Why a task does not get what is in a bundle; undefined: it does. */
  async #judge(peer: Peer, request: KeyRequest, bundle: BundlePart): Promise<string | undefined> {
    const { uid, pid } = peer
    const head = parseHead(bundle.head)
    if (head.uid !== uid) return "the bundle is somebody else's"
    if (head.set !== request.set) return "the bundle is of another job set"
    if (Date.now() >= head.expires) return `the bundle was good until ${new Date(head.expires).toISOString()}`
    if (!head.digests.includes(request.digest)) return "the bundle is not for that image"
    if (!this.#keys.has(bundle.fingerprint)) return "the bundle is for another node's key"
    if (request.node !== this.#node) return `this is ${this.#node}`
    const ended = `process ${pid} has ended`
    if (peer.hasEnded()) return ended
    const job = await jobByNumber(request.slurmJob)
    if (job === undefined || job.array !== request.array || job.element !== request.element)
      return `job ${request.slurmJob} is not that element of that array`
    if (job.uid !== uid) return "the job is somebody else's"
    if (job.state !== "RUNNING") return `the job is ${job.state}, not RUNNING`
    if (!(await hostsOf(job.nodes)).includes(this.#node)) return "the job does not run here"
    // A payload of the job's could be of an image that its owner does not trust with the others.
    if (!(await processesOf(request.slurmJob, this.#node)).includes(pid))
      return `process ${pid} is not the job's own`
    return peer.hasEnded() ? ended : undefined
  }

  async #answer(peer: Peer, line: string): Promise<NodeAnswer> {
    const { uid, pid } = peer
    let asked: Asked
    let request: KeyRequest
    try {
      asked = checkAsked(parseJson(line), "it")
      request = parseRequest(Buffer.from(asked.request))
      parseHead(asked.bundle.head)
    } catch (error) {
      this.#log({ event: "refused", uid, pid, reason: (error as Error).message })
      return { status: "refused", reason: "it is no request" }
    }
    const { set, slurmJob, array, element, digest } = request
    const about = { uid, pid, set, slurmJob, array, element, digest }
    const refuse = (reason: string): NodeAnswer => {
      this.#log({ event: "refused", ...about, reason })
      return { status: "refused", reason }
    }
    const why = await this.#judge(peer, request, asked.bundle)
    if (why !== undefined) return refuse(why)
    const key = this.#keys.get(asked.bundle.fingerprint)
    const bytes = key && openBundle(asked.bundle, key)
    if (bytes === undefined)
      return refuse("the bundle does not open: it was changed, or made for another key")
    using secrets = SecretTable.of(bytes)
    const secret = secrets.get(digest)
    if (secret === undefined) return refuse("there is no secret of this image in the bundle")
    const pair = newPair()
    const sealed = seal(secret, pair, request.publicKey, Buffer.from(asked.request)).toString("base64")
    this.#log({ event: "released", ...about })
    return { status: "released", sealed, publicKey: pair.publicKey.toString("base64") }
  }

  async #serve(socket: Socket): Promise<void> {
    const peer = new Peer(socket)
    const caller = this.#callers.get(peer.uid) ?? {
      turns: new Turns(MAX_AT_ONCE),
      connections: 0,
    }
    if (caller.connections >= MAX_AT_ONCE + MAX_WAITING) {
      socket.destroy()
      return
    }
    this.#callers.set(peer.uid, caller)
    caller.connections++
    try {
      const line = await readLine(socket, MAX_ASKED)
      const answer = await caller.turns.take(async () => await this.#answer(peer, line))
      answerLine(socket, answer)
    } catch (error) {
      this.#log({ event: "failed", uid: peer.uid, pid: peer.pid, reason: (error as Error).message })
      answerLine(socket, { status: "later", reason: "the node could not decide" })
    } finally {
      if (--caller.connections === 0) this.#callers.delete(peer.uid)
    }
  }

  server(): Server {
    return createServer({ allowHalfOpen: true }, (socket) => {
      this.#sockets.add(socket)
      socket.once("close", () => this.#sockets.delete(socket))
      socket.on("error", () => undefined) // whoever asked has gone
      this.#serve(socket).catch(() => socket.destroy())
    })
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy()
  }
}

/** A key that lies where nobody but whoever serves it may read it. */
async function readNodeKey(file: string): Promise<KeyObject> {
  const fail = (why: string): BatchError => new BatchError("ERR_BATCH_KEY", `${file}: ${why}`, { path: file })
  const bytes = await readBounded(file, MAX_KEY_FILE_SIZE, {
    flags: constants.O_NOFOLLOW,
    check: ({ uid, mode }) => {
      if (uid !== process.geteuid?.()) throw fail(`it belongs to user ${uid}`)
      if ((mode & 0o077) !== 0) throw fail("others have a right to it: its mode has to be 0600")
    },
  }).catch((cause: unknown) => {
    throw cause instanceof BatchError ? cause : fail((cause as Error).message)
  })
  try {
    return await parsePrivateKey(bytes, file)
  } finally {
    bytes.fill(0)
  }
}

/** Takes away a socket that nobody listens at any more. */
async function removeStale(socket: string): Promise<void> {
  const info = await lstat(socket).catch(() => undefined)
  if (info?.isSocket() !== true) return
  const answers = await new Promise<boolean>((resolve) => {
    const probe = connect(socket)
    probe.once("connect", () => {
      probe.destroy()
      resolve(true)
    })
    probe.once("error", () => {
      resolve(false)
    })
  })
  if (!answers) await rm(socket, { force: true })
}

export interface ServeNodeOptions {
  /** As Slurm calls this machine. */
  readonly node: string
  /** Private keys of this node: several while one takes another's place. */
  readonly keys: readonly string[]
  readonly socket: string
  readonly onReady: () => void
  readonly log: (event: NodeEvent) => void
  readonly signal?: AbortSignal | undefined
}

/**
 * Opens bundles for tasks on this node until it is told to end.
 *
 * @throws BatchError `ERR_BATCH_KEY`; KeyError.
 */
export async function serveNodeKeys({
  node,
  keys,
  socket,
  onReady,
  log,
  signal,
}: ServeNodeOptions): Promise<void> {
  forbidDumps()
  const own = new Map<string, KeyObject>()
  for (const file of keys) {
    const key = await readNodeKey(file)
    own.set(keyFingerprint(key), key)
  }
  const serving = new NodeKeys(node, own, log)
  const server = serving.server()
  try {
    if (!(await isHeld(socket).catch(() => false)))
      throw new BatchError(
        "ERR_BATCH_KEY",
        `${socket}: its folder is missing, or others may put another socket there`,
      )
    await removeStale(socket)
    await new Promise<void>((resolve, reject) => {
      server.once("error", (cause: NodeJS.ErrnoException) => {
        const why = cause.code === "EADDRINUSE" ? "somebody listens there already" : cause.message
        reject(new BatchError("ERR_BATCH_KEY", `${socket}: ${why}`, { path: socket, cause }))
      })
      server.listen({ path: socket, readableAll: true, writableAll: true }, resolve)
    })
    log({ event: "started", node, keys: [...own.keys()].join(" ") })
    onReady()
    await new Promise<void>((resolve) => {
      if (signal?.aborted === true) resolve()
      signal?.addEventListener("abort", () => {
        resolve()
      })
    })
  } finally {
    server.close()
    serving.close()
  }
  log({ event: "ended", node })
}

/**
 * Asks this node to open the set's bundle.
 *
 * @returns What it says, a line; or why it cannot be asked.
 */
export async function askNode(
  set: JobSet,
  node: string,
  request: Buffer,
): Promise<{ readonly line: string } | { readonly reason: string }> {
  const { nodeKeys } = set.manifest.cluster
  const bundle = await set.bundle()
  if (nodeKeys === undefined || bundle === undefined) return { reason: "the job set has no bundle for nodes" }
  const own = bundle.nodes.find((one) => one.node === node)
  if (own === undefined) return { reason: `the bundle is not for ${node}` }
  const { fingerprint, key } = own
  const { head, sealed } = bundle
  const asked: Asked = { request: request.toString("utf8"), bundle: { head, sealed, fingerprint, key } }
  const path = nodeKeys.socket.replaceAll("%N", node)
  try {
    return { line: await exchange({ path }, JSON.stringify(asked)) }
  } catch (error) {
    return { reason: `nobody opens bundles on ${node}: ${(error as Error).message}` }
  }
}
