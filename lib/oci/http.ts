// One HTTP request, with redirects and retries as a registry's client needs them. Node's own client: it follows nothing
// and adds nothing by itself, so where a credential goes is decided here.
import { randomInt } from "node:crypto"
import { once } from "node:events"
import { readdirSync, readFileSync } from "node:fs"
import http from "node:http"
import https from "node:https"
import path from "node:path"
import { rootCertificates, type SecureContextOptions } from "node:tls"
import { setTimeout as sleep } from "node:timers/promises"
import { OciError } from "../errors.ts"
import type { Bytes } from "../units.ts"

const MAX_REDIRECTS = 5
const MAX_TRIES = 5
const IDLE_MS = 60_000
const LONGEST_WAIT_MS = 30_000

/** How requests are made. */
export interface HttpOptions {
  readonly signal?: AbortSignal | undefined
  /** Of the first pause before a failed request is tried again; the next ones are longer. Default 1000. */
  readonly retryDelayMs?: number | undefined
  /** Certificates besides the usual ones, for one host: `*.crt`, and `*.cert` with its `*.key` to show. */
  readonly certFolders?: readonly string[] | undefined
}

export interface Request {
  readonly method?: "GET" | "POST"
  readonly headers?: Readonly<Record<string, string>>
  /** Sent to the host of the URL alone, never along with a redirect to another. */
  readonly authorization?: string | undefined
  readonly body?: string
}

export type Reply = http.IncomingMessage

/** What distributions keep the machine's certificates in. */
const bundles = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
]

function readable(file: string): Buffer | undefined {
  try {
    return readFileSync(file)
  } catch {
    return undefined
  }
}

/** Node trusts a list of its own; the administrator's additions are in the system's. */
function trust(host: string, folders: readonly string[]): SecureContextOptions {
  const named = process.env["SSL_CERT_FILE"]
  const system = [...(named === undefined ? [] : [named]), ...bundles]
    .map(readable)
    .find((one) => one !== undefined)
  const ca: (string | Buffer)[] = [...rootCertificates, ...(system === undefined ? [] : [system])]
  const cert: Buffer[] = []
  const key: Buffer[] = []
  for (const folder of folders.flatMap((one) => [path.join(one, host), one])) {
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

function retryAfter(reply: Reply): number {
  const text = reply.headers["retry-after"]
  if (text === undefined) return 0
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000
  return Number.isFinite(seconds) ? Math.max(0, seconds * 1000) : 0
}

/** The client of one registry. */
export class HttpClient implements Disposable {
  readonly #options: HttpOptions
  readonly #http = new http.Agent({ keepAlive: true })
  readonly #https = new Map<string, https.Agent>()
  readonly #elsewhere = new WeakSet<Reply>()

  constructor(options: HttpOptions) {
    this.#options = options
  }

  #agent(url: URL): http.Agent {
    if (url.protocol === "http:") return this.#http
    let agent = this.#https.get(url.host)
    if (agent === undefined) {
      agent = new https.Agent({ keepAlive: true, ...trust(url.host, this.#options.certFolders ?? []) })
      this.#https.set(url.host, agent)
    }
    return agent
  }

  async #once(url: URL, request: Request): Promise<Reply> {
    const { method = "GET", headers = {}, authorization, body } = request
    const { signal } = this.#options
    signal?.throwIfAborted()
    const client = url.protocol === "http:" ? http : https
    const sent = client.request(url, {
      method,
      agent: this.#agent(url),
      timeout: IDLE_MS,
      headers: {
        "user-agent": "sifcrypt",
        ...headers,
        ...(authorization === undefined ? {} : { authorization }),
        ...(body === undefined ? {} : { "content-length": Buffer.byteLength(body) }),
      },
      ...(signal === undefined ? {} : { signal }),
    })
    sent.on("timeout", () => {
      sent.destroy(Object.assign(new Error("no answer in time"), { code: "ETIMEDOUT" }))
    })
    sent.end(body)
    const [reply] = (await once(sent, "response")) as [Reply]
    return reply
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
      const next = URL.canParse(location, url.href) ? new URL(location, url.href) : undefined
      if (next === undefined || !/^https?:$/.test(next.protocol))
        throw new OciError("ERR_OCI_REGISTRY", `${url.host}: a redirect to ${JSON.stringify(location)}`)
      if (redirects === MAX_REDIRECTS)
        throw new OciError("ERR_OCI_REGISTRY", `${start.host}: more than ${MAX_REDIRECTS} redirects`)
      if (url.protocol === "https:" && next.protocol === "http:")
        throw new OciError(
          "ERR_OCI_REGISTRY",
          `${url.host}: a redirect from https to ${next.protocol}//${next.host}`,
        )
      // Host, scheme and port: whoever is there is somebody else.
      if (next.origin !== url.origin) authorization = undefined
      // What is posted is a token.
      if (next.origin !== url.origin && request.body !== undefined)
        throw new OciError("ERR_OCI_REGISTRY", `${url.host}: asked for a token, it sends us to ${next.host}`)
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
        const status = reply.statusCode ?? 0
        if (tries === MAX_TRIES || !(status === 408 || status === 429 || status >= 500)) return reply
        wait = retryAfter(reply)
        reply.destroy()
      } catch (cause) {
        signal?.throwIfAborted()
        if (cause instanceof OciError) throw cause
        if (tries === MAX_TRIES || !isTransient(cause))
          throw new OciError(
            "ERR_OCI_REGISTRY",
            `${url.host}: ${(cause as Error).message || String((cause as NodeJS.ErrnoException).code)}`,
            {
              cause,
            },
          )
      }
      await this.pause(tries, wait)
    }
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
      ...(signal === undefined ? {} : { signal }),
    }).catch((error: unknown) => {
      signal?.throwIfAborted()
      throw error
    })
  }

  [Symbol.dispose](): void {
    this.#http.destroy()
    for (const agent of this.#https.values()) agent.destroy()
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

/** What went wrong, as the registry says it. */
export async function replyError(reply: Reply, what: string): Promise<OciError> {
  const status = `${reply.statusCode ?? 0} ${reply.statusMessage ?? ""}`.trim()
  let said = ""
  try {
    const body: unknown = JSON.parse((await readBody(reply, 64 * 1024, what)).toString("utf8"))
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
