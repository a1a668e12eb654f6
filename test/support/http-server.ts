// HTTP servers of the test's own on loopback, which remember what they heard; with certificates for TLS.
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import http from "node:http"
import https from "node:https"
import { connect, type AddressInfo, type Socket } from "node:net"
import path from "node:path"
import { newFolder } from "./scratch.ts"

/** A request. */
export interface Heard {
  readonly method: string
  readonly url: string
  readonly authorization: string | undefined
  readonly range: string | undefined
  readonly contentRange: string | undefined
}
export type Answer = (request: http.IncomingMessage, response: http.ServerResponse) => void

export interface Pair {
  readonly key: string
  readonly certificate: string
}
let pair: Pair | undefined

/** For TLS on this machine, in PEM files. */
export function certificate(): Pair {
  if (pair !== undefined) return pair
  const folder = newFolder("certificate")
  const [key, file] = [path.join(folder, "key.pem"), path.join(folder, "certificate.pem")]
  execFileSync(
    "openssl",
    [
      ...["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", file, "-subj", "/CN=test"],
      ...["-addext", "subjectAltName=IP:127.0.0.1,DNS:registry.example.test", "-days", "2"],
    ],
    { stdio: "ignore" },
  )
  return (pair = { key, certificate: file })
}

/** A server of the test's own, for what a good registry never does. */
export class Server implements AsyncDisposable {
  readonly heard: Heard[] = []
  readonly #server: http.Server

  private constructor(answer: Answer, tls?: https.ServerOptions) {
    const listener: Answer = (request, response) => {
      const { method = "", url = "", headers } = request
      const { authorization, range, "content-range": contentRange } = headers
      this.heard.push({ method, url, authorization, range, contentRange })
      answer(request, response)
    }
    this.#server = tls === undefined ? http.createServer(listener) : https.createServer(tls, listener)
  }
  static async start(answer: Answer, tls?: https.ServerOptions): Promise<Server> {
    const server = new Server(answer, tls)
    server.#server.listen(0, "127.0.0.1")
    await once(server.#server, "listening")
    return server
  }
  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }
  /** Makes a proxy for TLS of it: whatever is asked for, it leads to `port`. */
  tunnelTo(port: number, targets: string[]): void {
    this.#server.on("connect", (request: http.IncomingMessage, socket: Socket) => {
      targets.push(`${request.url ?? ""} ${request.headers["proxy-authorization"] ?? ""}`)
      const onward = connect(port, "127.0.0.1", () => {
        socket.write("HTTP/1.1 200 OK\r\n\r\n")
        socket.pipe(onward).pipe(socket)
      })
      for (const end of [socket, onward]) end.on("error", () => undefined)
    })
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, "close")
  }
}

/** Hands requests on to a registry, so that they are heard. */
export function relaying(host: string): Answer {
  return (request, response) => {
    const { pathname, search } = new URL(request.url ?? "", "http://x")
    const { method = "GET", headers } = request
    const onward = http.request(`http://${host}${pathname}${search}`, { method, headers }, (answer) => {
      response.writeHead(answer.statusCode ?? 500, answer.headers)
      answer.pipe(response)
    })
    // Who breaks off is broken off with.
    onward.on("error", () => response.destroy())
    request.once("close", () => {
      if (!request.complete) onward.destroy()
    })
    request.pipe(onward)
  }
}
