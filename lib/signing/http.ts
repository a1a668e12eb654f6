// One request over HTTP, bounded in time and size, through a proxy where the environment names one. Redirects are not followed:
// whoever is asked answers.
import {
  request as plainRequest,
  type ClientRequest,
  type IncomingMessage,
  type RequestOptions,
} from "node:http"
import { request as tlsRequest } from "node:https"
import { isIP, Socket } from "node:net"
import type { Duplex } from "node:stream"
import { connect as tlsConnect } from "node:tls"
import type { Bytes } from "../units.ts"

/** What is asked. */
export interface HttpRequest {
  readonly url: URL
  readonly method: "GET" | "POST"
  readonly body?: Buffer
  readonly headers?: Readonly<Record<string, string>>
  /** More of an answer is an error. */
  readonly limit: Bytes
  /** Ends it, at any time. */
  readonly signal: AbortSignal
  /** For `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in capitals or not. */
  readonly env: Readonly<Record<string, string | undefined>>
}

/** What is answered. */
export interface HttpResponse {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer
}

function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, "")
}

/** Is it this machine? */
export function isLoopback(url: URL): boolean {
  const host = hostOf(url)
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."))
}

function portOf(url: URL): number {
  return url.port !== "" ? Number(url.port) : url.protocol === "https:" ? 443 : 80
}

function excluded(url: URL, list: string): boolean {
  const host = hostOf(url).toLowerCase()
  return list
    .toLowerCase()
    .split(/[\s,]+/)
    .filter((entry) => entry !== "")
    .some((entry) => {
      if (entry === "*") return true
      const [, name = "", port] = /^(.*?)(?::(\d+))?$/.exec(entry) ?? []
      if (port !== undefined && isIP(entry) === 0 && Number(port) !== portOf(url)) return false
      const bare = (isIP(entry) === 6 ? entry : name).replace(/^\*?\./, "")
      return host === bare || host.endsWith(`.${bare}`)
    })
}

/** The proxy for an address, as curl chooses it; this machine is always asked directly. */
export function proxyFor(url: URL, env: HttpRequest["env"]): URL | undefined {
  const value = (name: string): string | undefined => {
    const found = env[name.toLowerCase()] ?? env[name]
    return found === "" ? undefined : found
  }
  if (isLoopback(url) || excluded(url, value("NO_PROXY") ?? "")) return undefined
  const proxy = value(url.protocol === "https:" ? "HTTPS_PROXY" : "HTTP_PROXY") ?? value("ALL_PROXY")
  if (proxy === undefined) return undefined
  const parsed = new URL(/^[a-z][a-z0-9]*:\/\//i.test(proxy) ? proxy : `http://${proxy}`)
  if (parsed.protocol !== "http:" && parsed.protocol !== "https:")
    throw new Error(`the proxy ${parsed.protocol}//${parsed.host} is of a kind that is not supported`)
  return parsed
}

function proxyHeaders(proxy: URL): Record<string, string> {
  if (proxy.username === "") return {}
  const user = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`
  return { "proxy-authorization": `Basic ${Buffer.from(user).toString("base64")}` }
}

function send(url: URL, options: RequestOptions): ClientRequest {
  return url.protocol === "https:" ? tlsRequest(options) : plainRequest(options)
}

function answer(request: ClientRequest, body?: Buffer): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    request.once("response", resolve)
    request.once("error", reject)
    request.end(body)
  })
}

/** A connection through the proxy to the host itself, which is then spoken to in TLS. */
function tunnel(url: URL, proxy: URL, signal: AbortSignal): Promise<Socket> {
  const target = `${url.hostname}:${portOf(url)}`
  const request = send(proxy, {
    host: hostOf(proxy),
    port: portOf(proxy),
    method: "CONNECT",
    path: target,
    headers: { host: target, ...proxyHeaders(proxy) },
    agent: false,
    signal,
  })
  return new Promise((resolve, reject) => {
    request.once("connect", (response: IncomingMessage, socket: Duplex) => {
      if (response.statusCode === 200 && socket instanceof Socket) {
        resolve(socket)
        return
      }
      socket.destroy()
      reject(new Error(`the proxy ${proxy.host} answers with status ${response.statusCode ?? 0}`))
    })
    request.once("error", reject)
    request.end()
  })
}

async function readBody(response: IncomingMessage, limit: Bytes): Promise<Buffer> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > limit) throw new Error(`the answer has more than ${limit} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

/** Asks once. Throws whatever keeps it from being answered. */
export async function fetchOnce(asked: HttpRequest): Promise<HttpResponse> {
  const { url, method, body, limit, signal, env } = asked
  const proxy = proxyFor(url, env)
  const common = {
    method,
    agent: false as const,
    signal,
    headers: {
      host: url.host,
      "user-agent": "sifcrypt",
      accept: "*/*",
      ...(body === undefined ? {} : { "content-length": String(body.length) }),
      ...asked.headers,
    },
  }
  const place = `${url.pathname}${url.search}`
  let request: ClientRequest
  if (proxy === undefined)
    request = send(url, { ...common, host: hostOf(url), port: portOf(url), path: place })
  else if (url.protocol === "https:") {
    const socket = await tunnel(url, proxy, signal)
    const host = hostOf(url)
    // With an agent of any kind it would connect by itself.
    request = tlsRequest({
      ...common,
      agent: undefined,
      host,
      path: place,
      createConnection: () =>
        tlsConnect({
          socket,
          host,
          ALPNProtocols: ["http/1.1"],
          ...(isIP(host) === 0 ? { servername: host } : {}),
        }),
    })
  } else
    request = send(proxy, {
      ...common,
      host: hostOf(proxy),
      port: portOf(proxy),
      path: url.href,
      headers: { ...common.headers, ...proxyHeaders(proxy) },
    })
  const response = await answer(request, body)
  try {
    return {
      status: response.statusCode ?? 0,
      headers: response.headers,
      body: await readBody(response, limit),
    }
  } finally {
    response.destroy()
  }
}
