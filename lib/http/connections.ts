// Sends requests over HTTP, through a proxy where the environment names one. Node's own client: it follows nothing and adds
// nothing by itself, so who gets what is decided where a request is made.
import { once } from "node:events"
import { readFileSync } from "node:fs"
import http from "node:http"
import https from "node:https"
import { isIP, Socket } from "node:net"
import type { Duplex } from "node:stream"
import { pipeline } from "node:stream/promises"
import {
  rootCertificates,
  connect as tlsConnect,
  type ConnectionOptions,
  type SecureContextOptions,
} from "node:tls"
import { callerEnvironment } from "../caller-environment.ts"
import type { Bytes } from "../units.ts"
import { hostOf, portOf, proxyFor, proxyHeaders, type Environment } from "./proxy.ts"

/** What is sent. */
export interface Request {
  readonly method?: "GET" | "HEAD" | "POST" | "PATCH" | "PUT" | "DELETE"
  readonly headers?: Readonly<Record<string, string>>
  /** What comes piece by piece has its Content-Length in the headers. */
  readonly body?: string | Buffer | AsyncIterable<Buffer> | undefined
  /** Ends it, at any time. */
  readonly signal?: AbortSignal | undefined
  /** Of silence; twice as long of less than 100 bytes a second is silence, too. Default: none. */
  readonly idleMs?: number
}

export interface ConnectionsOptions {
  /** For the variables that name proxies. */
  readonly environment: Environment
  /** Use a connection again. */
  readonly keepAlive: boolean
  /** Certificates for a host; default: Node's. */
  readonly trust?: ((host: string) => SecureContextOptions) | undefined
}

/** Bytes in a millisecond; no line is so slow. */
const DRIP = 0.1

/** For a proxy to answer. */
const TUNNEL_MS = 60_000

/** With the certificates that Node takes from a variable, where that was set aside before it could. */
function withExtra(trusted: SecureContextOptions): SecureContextOptions {
  const extra = callerEnvironment()["NODE_EXTRA_CA_CERTS"]
  if (extra === undefined || extra === "" || process.env["NODE_EXTRA_CA_CERTS"] !== undefined) return trusted
  try {
    return { ...trusted, ca: [trusted.ca ?? [...rootCertificates], readFileSync(extra)].flat() }
  } catch {
    return trusted // Node goes without, too.
  }
}

/** Speaks TLS to a host through a connection that the proxy makes. A class of the module would load node:https in every command. */
function tunnelAgent(options: https.AgentOptions, open: () => Promise<Socket>): https.Agent {
  class TunnelAgent extends https.Agent {
    // Node waits for the callback where nothing is returned.
    override createConnection(
      connection: http.RequestOptions,
      done?: (error: Error | null, stream: Duplex) => void,
    ): undefined {
      open().then(
        (socket) => done?.(null, tlsConnect({ ...(connection as ConnectionOptions), socket })),
        (error: unknown) => done?.(error as Error, new Socket()),
      )
      return undefined
    }
  }
  return new TunnelAgent(options)
}

function isStream(body: Request["body"]): body is AsyncIterable<Buffer> {
  return typeof body === "object" && Symbol.asyncIterator in body
}

/** Ends a request that is silent for `idleMs`, or says next to nothing for twice as long: who drips would keep us for ever. */
function limitSilence(request: http.ClientRequest, idleMs: number): void {
  const give = (what: string): void => {
    request.destroy(Object.assign(new Error(what), { code: "ETIMEDOUT" }))
  }
  request.setTimeout(idleMs, () => {
    give("no answer in time")
  })
  let before: Bytes = 0
  const timer = setInterval(() => {
    const { socket } = request
    if (socket === null) return
    const now: Bytes = socket.bytesRead + socket.bytesWritten
    if (now - before < 2 * idleMs * DRIP) give("it comes too slowly")
    before = now
  }, 2 * idleMs)
  timer.unref()
  request.once("close", () => {
    clearInterval(timer)
  })
}

function end(request: http.ClientRequest, { body, idleMs }: Request): void {
  if (idleMs !== undefined) limitSilence(request, idleMs)
  // A failure of the body is one of the request.
  if (isStream(body)) pipeline(body, request).catch(() => undefined)
  else request.end(body)
}

/** Connections to hosts, kept while it is open. */
export class Connections implements Disposable {
  readonly #options: ConnectionsOptions
  readonly #http: http.Agent
  readonly #https = new Map<string, http.Agent>()
  /** Requests to proxies that are not answered yet. */
  readonly #asked = new Set<http.ClientRequest>()

  constructor(options: ConnectionsOptions) {
    this.#options = options
    this.#http = new http.Agent({ keepAlive: options.keepAlive })
  }

  /** Whom to believe that he is the host; no variable of the environment makes that nobody's concern. */
  #trust(host: string): SecureContextOptions & { readonly rejectUnauthorized: true } {
    return { ...withExtra(this.#options.trust?.(host) ?? {}), rejectUnauthorized: true }
  }

  #agent(url: URL, proxy?: URL): http.Agent {
    if (url.protocol === "http:") return this.#http
    let agent = this.#https.get(url.host)
    if (agent === undefined) {
      const options: https.AgentOptions = { keepAlive: this.#options.keepAlive, ...this.#trust(url.host) }
      agent =
        proxy === undefined ? new https.Agent(options) : tunnelAgent(options, () => this.#tunnel(url, proxy))
      this.#https.set(url.host, agent)
    }
    return agent
  }

  #start(url: URL, options: http.RequestOptions): http.ClientRequest {
    const host = hostOf(url)
    const place = { ...options, host, port: portOf(url) }
    if (url.protocol === "http:") return http.request(place)
    // Node would take it from the header, which may be about another one.
    return https.request({ ...place, servername: isIP(host) === 0 ? host : "" })
  }

  /** A connection through the proxy to the host itself. */
  async #tunnel(url: URL, proxy: URL): Promise<Socket> {
    const target = `${url.hostname}:${portOf(url)}`
    const request = this.#start(proxy, {
      method: "CONNECT",
      path: target,
      headers: { host: target, ...proxyHeaders(proxy) },
      agent: false,
      ...(proxy.protocol === "https:" ? this.#trust(proxy.host) : {}),
    })
    end(request, { idleMs: TUNNEL_MS })
    this.#asked.add(request)
    const [response, socket] = (await once(request, "connect").finally(() =>
      this.#asked.delete(request),
    )) as [http.IncomingMessage, Duplex]
    // Whoever speaks TLS through it is told that it broke.
    socket.on("error", () => undefined)
    if (response.statusCode === 200 && socket instanceof Socket) return socket
    socket.destroy()
    throw new Error(`the proxy ${proxy.host} answers with status ${response.statusCode ?? 0}`)
  }

  /** Sends once, and gives what answers, whatever it says. The body is the caller's to read or destroy. */
  async request(url: URL, request: Request): Promise<http.IncomingMessage> {
    const { method = "GET", headers = {}, body, signal } = request
    signal?.throwIfAborted()
    const proxy = proxyFor(url, this.#options.environment)
    const forwarded = proxy !== undefined && url.protocol === "http:"
    const sent = this.#start(forwarded ? proxy : url, {
      method,
      path: forwarded ? `${url.origin}${url.pathname}${url.search}` : `${url.pathname}${url.search}`,
      agent: forwarded ? this.#agent(proxy) : this.#agent(url, proxy),
      headers: {
        host: url.host,
        "user-agent": "sifcrypt",
        ...headers,
        ...(body === undefined || isStream(body) ? {} : { "content-length": Buffer.byteLength(body) }),
        ...(forwarded ? proxyHeaders(proxy) : {}),
      },
      signal,
    })
    end(sent, request)
    // A request is told of a signal only when it has a connection, and then once more.
    sent.on("error", () => undefined)
    const [reply] = (await once(sent, "response", { signal })) as [http.IncomingMessage]
    // Who answers before the end wants no more of it.
    reply.once("end", () => {
      if (!sent.writableEnded) sent.destroy()
    })
    return reply
  }

  [Symbol.dispose](): void {
    for (const request of this.#asked) request.destroy()
    this.#http.destroy()
    for (const agent of this.#https.values()) agent.destroy()
  }
}
