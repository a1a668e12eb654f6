// A real key server on loopback: the CGI programs of onak behind a small HTTP server, with a data base in a scratch folder.
import { spawn } from "node:child_process"
import { copyFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs"
import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from "node:http"
import type { AddressInfo } from "node:net"
import path from "node:path"
import { newFolder } from "./scratch.ts"

const programs = "/usr/lib/cgi-bin/pks"

/** A server that runs. */
export interface TestServer extends AsyncDisposable {
  readonly url: string
  readonly port: number
  /** What was asked, in order: method and address. */
  readonly asked: string[]
}

async function listening(server: Server, asked: string[]): Promise<TestServer> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    asked,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

/** Any server on loopback. */
export async function startServer(answer: RequestListener): Promise<TestServer> {
  const asked: string[] = []
  const server = createServer((request, response) => {
    asked.push(`${request.method ?? ""} ${request.url ?? ""}`)
    answer(request, response)
  })
  return await listening(server, asked)
}

async function runProgram(
  program: string,
  configuration: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const { search } = new URL(request.url ?? "", "http://localhost")
  const body: Buffer[] = []
  for await (const chunk of request as AsyncIterable<Buffer>) body.push(chunk)
  const bytes = Buffer.concat(body)
  const child = spawn(program, {
    env: {
      XDG_CONFIG_HOME: configuration,
      REQUEST_METHOD: request.method ?? "GET",
      QUERY_STRING: search.slice(1),
      CONTENT_TYPE: request.headers["content-type"] ?? "",
      CONTENT_LENGTH: String(bytes.length),
    },
    stdio: ["pipe", "pipe", "ignore"],
  })
  child.stdin.on("error", () => undefined) // it need not read
  child.stdin.end(bytes)
  const output: Buffer[] = []
  for await (const chunk of child.stdout as AsyncIterable<Buffer>) output.push(chunk)
  const [head = "", ...rest] = Buffer.concat(output).toString("latin1").split("\n\n")
  response.setHeader("content-type", /^Content-Type: (.*)$/im.exec(head)?.[1] ?? "text/plain")
  response.end(Buffer.from(rest.join("\n\n"), "latin1"))
}

/** Is onak there? */
export function hasKeyServer(): boolean {
  return existsSync(path.join(programs, "lookup"))
}

/** Starts onak. Its programs are copied, since they are setuid where they lie. */
export async function startKeyServer(): Promise<TestServer> {
  const folder = newFolder("onak")
  const database = path.join(folder, "keys")
  mkdirSync(database)
  for (const name of ["lookup", "add"]) copyFileSync(path.join(programs, name), path.join(folder, name))
  writeFileSync(
    path.join(folder, "onak.ini"),
    `[main]
backend=local
backends_dir=/usr/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu/onak/backends
logfile=${path.join(folder, "log")}
loglevel=3
use_keyd=false
max_reply_keys=128
[verification]
check_sighash=true
[backend:local]
type=fs
location=${database}
`,
  )
  return await startServer((request, response) => {
    const name = /^(?:http:\/\/[^/]+)?\/pks\/(lookup|add)(?:\?|$)/.exec(request.url ?? "")?.[1]
    if (name === undefined) {
      response.writeHead(404).end()
      return
    }
    runProgram(path.join(folder, name), folder, request, response).catch((error: unknown) => {
      response.writeHead(500).end(String(error))
    })
  })
}
