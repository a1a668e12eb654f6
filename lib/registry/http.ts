// One HTTP request, with redirects and retries as a registry's client needs them. Where a credential goes is decided here.
import { randomInt } from "node:crypto"
import { readdirSync } from "node:fs"
import type http from "node:http"
import path from "node:path"
import { rootCertificates, type SecureContextOptions } from "node:tls"
import { setTimeout as sleep } from "node:timers/promises"
import { readBoundedSync } from "../bounded-file.ts"
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { Connections, type Request as SentRequest } from "../http/connections.ts"
import { mayBeLoopback, type Environment } from "../http/proxy.ts"
import type { Bytes } from "../units.ts"

const MAX_REDIRECTS = 5
export const MAX_TRIES = 5
const IDLE_MS = 60_000
const LONGEST_WAIT_MS = 30_000

/** How requests are made. */
export interface HttpOptions {
  readonly signal?: AbortSignal | undefined
  /** Of the first pause before a failed request is tried again; the next ones are longer. Default 1000. */
  readonly retryDelayMs?: number | undefined
  /** The host that the rest is about, with its port where it is not the usual one. */
  readonly registry: string
  /** Certificates besides the usual ones, for the registry and nobody else: `*.crt`, and `*.cert` with its `*.key` to show. */
  readonly ownCertFolder?: string | undefined
  /** With such a folder for each host, by its name and port. */
  readonly certFolders?: readonly string[] | undefined
  /** For the variables that name proxies and certificates. */
  readonly environment: Environment
}

export interface Request extends Pick<SentRequest, "method" | "headers"> {
  readonly body?: string | Buffer | undefined
  /** Sent to the host of the URL alone, never along with a redirect to another. */
  readonly authorization?: string | undefined
}

/** What is sent as it comes, once. */
export interface Upload extends Omit<Request, "body"> {
  readonly body: AsyncIterable<Buffer>
  readonly size: Bytes
}

export type Reply = http.IncomingMessage

/** What distributions keep the machine's certificates in. */
const bundles = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
]

/** Bundles of roots have some hundred KiB. */
const MAX_BUNDLE_SIZE: Bytes = 8 << 20

function readable(file: string): Buffer | undefined {
  try {
    return readBoundedSync(file, MAX_BUNDLE_SIZE)
  } catch {
    return undefined
  }
}

/** Node trusts a list of its own; the administrator's additions are in the system's. */
function trust(folders: readonly string[], environment: Environment): SecureContextOptions {
  const named = environment["SSL_CERT_FILE"]
  const system = [...(named === undefined ? [] : [named]), ...bundles]
    .map(readable)
    .find((one) => one !== undefined)
  const ca: (string | Buffer)[] = [...rootCertificates, ...(system === undefined ? [] : [system])]
  const cert: Buffer[] = []
  const key: Buffer[] = []
  for (const folder of folders) {
    let names: string[] = []
    try {
      names = readdirSync(folder)
    } catch {
      // There need not be any.
    }
    for (const name of names) {
      const bytes = /\.(?:crt|cert|key)$/.test(name) ? readable(path.join(folder, name)) : undefined
      if (bytes === undefined) continue
      if (name.endsWith(".crt")) ca.push(bytes)
      else if (name.endsWith(".cert")) cert.push(bytes)
      else key.push(bytes)
    }
  }
  return { ca, ...(cert.length > 0 && key.length > 0 ? { cert, key } : {}) }
}

/** Nothing was sent, or what was sent may be sent again. */
function isTransient(cause: unknown): boolean {
  const { code } = cause as NodeJS.ErrnoException
  const codes = [
    "ECONNRESET",
    "ECONNREFUSED",
    "EPIPE",
    "ETIMEDOUT",
    "EAI_AGAIN",
    "ENETUNREACH",
    "EHOSTUNREACH",
  ]
  return code !== undefined && codes.includes(code)
}

/**
 * Tries of what may break off, and be taken up where it did: as many as {@link MAX_TRIES} for each hundredth of it, and for each MiB.
 * Whoever breaks off more often gets no further.
 */
export class Tries {
  readonly #step: Bytes
  #count = 0
  #from: Bytes

  constructor(size: Bytes, have: Bytes) {
    this.#step = Math.max(1 << 20, size / 100)
    this.#from = have
  }

  /** After a break. How many there were since it last got further. */
  broken(have: Bytes): number {
    if (have - this.#from >= this.#step) {
      this.#count = 0
      this.#from = have
    }
    return ++this.#count
  }
}

/** Does it ask to come again? */
export function isBusy({ statusCode = 0 }: Reply): boolean {
  return statusCode === 408 || statusCode === 429 || statusCode >= 500
}

/** How long it wants not to be asked. */
export function retryAfter(reply: Reply): number {
  const text = reply.headers["retry-after"]
  if (text === undefined) return 0
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000
  return Number.isFinite(seconds) ? Math.max(0, seconds * 1000) : 0
}

const reasons: Readonly<Record<string, string>> = {
  ENOTFOUND: "there is no such host",
  EAI_AGAIN: "its name cannot be resolved",
  ECONNREFUSED: "the connection is refused",
  EPROTO: "it does not speak TLS",
}

function unreachable(url: URL, cause: unknown): OciError {
  const { message, code = "" } = cause as NodeJS.ErrnoException
  return new OciError("ERR_OCI_REGISTRY", `${url.host}: ${reasons[code] ?? (message || code)}`, { cause })
}

/**
 * Where an answer leads.
 *
 * @throws OciError `ERR_OCI_REGISTRY`.
 */
export function nextPlace(url: URL, location: string): URL {
  const next = URL.canParse(location, url.href) ? new URL(location, url.href) : undefined
  if (next === undefined || !/^https?:$/.test(next.protocol))
    throw new OciError("ERR_OCI_REGISTRY", `${url.host}: a redirect to ${JSON.stringify(location)}`)
  if (url.protocol === "https:" && next.protocol === "http:")
    throw new OciError("ERR_OCI_REGISTRY", `${url.host}: a redirect from https to ${next.origin}`)
  // What listens there answers this machine, and is nothing that a registry elsewhere could mean.
  if (mayBeLoopback(next) && !mayBeLoopback(url))
    throw new OciError("ERR_OCI_REGISTRY", `${url.host}: a redirect to this machine, to ${next.origin}`)
  return next
}

/** The client of one registry. */
export class HttpClient implements Disposable {
  readonly #options: HttpOptions
  readonly #connections: Connections
  readonly #elsewhere = new WeakSet<Reply>()
  #hasCertificate = false

  constructor(options: HttpOptions) {
    const { registry, ownCertFolder, certFolders = [], environment } = options
    this.#options = options
    this.#connections = new Connections({
      environment,
      keepAlive: true,
      trust: (host) => {
        const folders = [...(ownCertFolder === undefined ? [] : [ownCertFolder]), ...certFolders]
        const own = host === registry && ownCertFolder !== undefined ? [ownCertFolder] : []
        const trusted = trust([...folders.map((folder) => path.join(folder, host)), ...own], environment)
        this.#hasCertificate ||= trusted.cert !== undefined
        return trusted
      },
    })
  }

  /** Was somebody asked who may want to know by a certificate who we are, and was there one to show? */
  get hasCertificate(): boolean {
    return this.#hasCertificate
  }

  async #once(url: URL, { authorization, method, headers, body }: Request | Upload): Promise<Reply> {
    return await this.#connections.request(url, {
      method,
      body,
      headers: { ...headers, ...(authorization === undefined ? {} : { authorization }) },
      signal: this.#options.signal,
      idleMs: IDLE_MS,
    })
  }

  /** Follows redirects; what answers is not tried again. */
  async #follow(start: URL, request: Request): Promise<Reply> {
    let url = start
    let { authorization } = request
    for (let redirects = 0; ; redirects++) {
      const reply = await this.#once(url, { ...request, authorization })
      const { location } = reply.headers
      if (![301, 302, 303, 307, 308].includes(reply.statusCode ?? 0) || location === undefined) {
        if (url.origin !== start.origin) this.#elsewhere.add(reply)
        return reply
      }
      reply.destroy()
      if (redirects === MAX_REDIRECTS)
        throw new OciError("ERR_OCI_REGISTRY", `${start.host}: more than ${MAX_REDIRECTS} redirects`)
      const next = nextPlace(url, location)
      // Host, scheme and port: whoever is there is somebody else.
      if (next.origin !== url.origin) authorization = undefined
      // What is sent is a token, or meant for this registry.
      if (next.origin !== url.origin && request.body !== undefined)
        throw new OciError(
          "ERR_OCI_REGISTRY",
          `${url.host}: with what it was to get, it sends us to ${next.host}`,
        )
      url = next
    }
  }

  /**
   * Any status but those that ask to come again. The body is the caller's to read or destroy.
   *
   * @throws OciError `ERR_OCI_REGISTRY`; the signal's reason.
   */
  async request(url: URL, request: Request = {}): Promise<Reply> {
    const { signal } = this.#options
    for (let tries = 1; ; tries++) {
      let wait = 0
      try {
        const reply = await this.#follow(url, request)
        if (tries === MAX_TRIES || !isBusy(reply)) return reply
        wait = retryAfter(reply)
        reply.destroy()
      } catch (cause) {
        signal?.throwIfAborted()
        if (cause instanceof OciError) throw cause
        if (tries === MAX_TRIES || !isTransient(cause)) throw unreachable(url, cause)
      }
      await this.pause(tries, wait)
    }
  }

  /**
   * Sends a body as it comes. Neither a redirect nor another try can have it again.
   *
   * @returns undefined: the connection broke, and nobody knows after how much.
   * @throws OciError `ERR_OCI_REGISTRY`; the signal's reason; whatever the body fails with.
   */
  async upload(url: URL, { size, body, headers, ...request }: Upload): Promise<Reply | undefined> {
    let sent: Bytes = 0
    let failure: { readonly reason: unknown } | undefined
    async function* counted(): AsyncGenerator<Buffer, void, undefined> {
      try {
        for await (const piece of body) {
          sent += piece.length
          yield piece
        }
      } catch (reason) {
        failure = { reason }
        throw reason
      }
    }
    try {
      const reply = await this.#once(url, {
        ...request,
        size,
        headers: { ...headers, "content-length": String(size) },
        body: counted(),
      })
      if (reply.statusCode !== 202 || sent === size) return reply
      reply.destroy()
    } catch (cause) {
      this.#options.signal?.throwIfAborted()
      if (failure !== undefined) throw failure.reason
      if (!isTransient(cause)) throw unreachable(url, cause)
      return undefined
    }
    throw new OciError("ERR_OCI_REGISTRY", `${url.host}: it is content with ${sent} of ${size} bytes`)
  }

  /** Did a redirect lead to somebody else, who answered? What they ask for they do not get. */
  isFromElsewhere(reply: Reply): boolean {
    return this.#elsewhere.has(reply)
  }

  /** Before another try. */
  async pause(tries: number, atLeastMs = 0): Promise<void> {
    const { signal, retryDelayMs = 1000 } = this.#options
    const longer = retryDelayMs * 2 ** (tries - 1) * (0.75 + randomInt(500) / 1000)
    await sleep(Math.min(LONGEST_WAIT_MS, Math.max(longer, atLeastMs)), undefined, {
      signal,
    }).catch((error: unknown) => {
      signal?.throwIfAborted()
      throw error
    })
  }

  [Symbol.dispose](): void {
    this.#connections[Symbol.dispose]()
  }
}

/**
 * All of a body.
 *
 * @throws OciError `ERR_OCI_LIMIT`, `ERR_OCI_REGISTRY`.
 */
export async function readBody(reply: Reply, limit: Bytes, what: string): Promise<Buffer> {
  const pieces: Buffer[] = []
  let size = 0
  try {
    for await (const piece of reply as AsyncIterable<Buffer>) {
      size += piece.length
      if (size > limit) throw new OciError("ERR_OCI_LIMIT", `${what}: an answer of more than ${limit} bytes`)
      pieces.push(piece)
    }
  } catch (cause) {
    if (cause instanceof OciError) throw cause
    throw new OciError("ERR_OCI_REGISTRY", `${what}: ${(cause as Error).message}`, { cause })
  }
  return Buffer.concat(pieces)
}

/**
 * Asks until all of a small answer is here: the connection may break behind its headers, too.
 *
 * @param pause - Before another try.
 * @returns No body where the status is another than 200: that is the caller's to read or destroy.
 * @throws What `ask` and {@link readBody} throw.
 */
export async function askForBody(
  ask: () => Promise<Reply>,
  pause: (tries: number) => Promise<void>,
  limit: Bytes,
  what: string,
): Promise<{ readonly reply: Reply; readonly body: Buffer | undefined }> {
  for (let tries = 1; ; tries++) {
    const reply = await ask()
    if (reply.statusCode !== 200) return { reply, body: undefined }
    try {
      return { reply, body: await readBody(reply, limit, what) }
    } catch (error) {
      const isBroken = error instanceof OciError && error.cause !== undefined && isTransient(error.cause)
      if (!isBroken || tries === MAX_TRIES) throw error
    }
    await pause(tries)
  }
}

/** What went wrong, as the registry says it. */
export async function replyError(reply: Reply, what: string): Promise<OciError> {
  const status = `${reply.statusCode ?? 0} ${reply.statusMessage ?? ""}`.trim()
  let said = ""
  try {
    const body: unknown = parseJson((await readBody(reply, 64 * 1024, what)).toString("utf8"))
    const { errors } = body as {
      readonly errors?: readonly { readonly code?: string; readonly message?: string }[]
    }
    said = (errors ?? []).map(({ code, message }) => [code, message].filter(Boolean).join(": ")).join("; ")
  } catch {
    // The status has to do.
  }
  const code =
    reply.statusCode === 404
      ? "ERR_OCI_NOT_FOUND"
      : reply.statusCode === 401 || reply.statusCode === 403
        ? "ERR_OCI_CREDENTIALS"
        : "ERR_OCI_REGISTRY"
  return new OciError(code, `${what}: the registry answers ${status}${said === "" ? "" : ` (${said})`}`)
}
