// What a proxy may do to a request: never answer, break, be spoken to in TLS.
import assert from "node:assert/strict"
import { once } from "node:events"
import { readFileSync } from "node:fs"
import { createServer as createTlsServer } from "node:https"
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net"
import path from "node:path"
import { buffer } from "node:stream/consumers"
import { Connections } from "../../../lib/http/connections.ts"
import { fetchOnce } from "../../../lib/http/fetch-once.ts"
import { openssl } from "../../support/openssl.ts"
import { newFolder } from "../../support/scratch.ts"

async function portOf(server: Server): Promise<number> {
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  return (server.address() as AddressInfo).port
}

function certificate(name: string): { readonly key: Buffer; readonly cert: Buffer } {
  const folder = newFolder("certificate")
  const [key, cert] = [path.join(folder, "key.pem"), path.join(folder, "certificate.pem")]
  openssl([
    ...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"],
    ...["-keyout", key, "-out", cert, "-subj", "/CN=test", "-addext", `subjectAltName=DNS:${name}`],
  ])
  return { key: readFileSync(key), cert: readFileSync(cert) }
}

describe("Connections with a limit of silence", () => {
  /** Answers with `total` bytes, `size` of them at a time; 100 in a second are too few. */
  async function asked(size: number, total: number): Promise<number> {
    const server = createServer((socket) => {
      // Who reads nothing is told of no end.
      socket.resume().on("error", () => undefined)
      socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${total}\r\n\r\n`)
      let left = total
      const timer = setInterval(() => {
        if (left === 0) socket.end()
        const piece = Buffer.alloc(Math.min(size, left))
        left -= piece.length
        if (piece.length > 0) socket.write(piece)
      }, 20)
      socket.once("close", () => {
        clearInterval(timer)
      })
    })
    const url = new URL(`http://127.0.0.1:${await portOf(server)}/`)
    using connections = new Connections({ environment: {}, keepAlive: false })
    try {
      return (await buffer(await connections.request(url, { idleMs: 500 }))).length
    } finally {
      server.close()
    }
  }

  it("give up who drips, though he is never silent", async () => {
    await assert.rejects(asked(1, 1 << 20), { code: "ECONNRESET" })
  })

  it("wait for who is slow", async () => {
    assert.equal(await asked(100, 12_000), 12_000)
  })
})

describe("Connections, through a proxy", () => {
  it("are given up when the signal says so, though it has not answered yet", async () => {
    const closed: Promise<unknown>[] = []
    const proxy = createServer((socket) => closed.push(once(socket.resume(), "close")))
    const environment = { HTTPS_PROXY: `http://127.0.0.1:${await portOf(proxy)}` }
    const signal = AbortSignal.timeout(200)
    const url = new URL("https://registry.example.test/")
    await assert.rejects(fetchOnce({ url, method: "GET", limit: 1, signal, env: environment }))
    assert.ok(signal.aborted)
    assert.equal(closed.length, 1)
    await closed[0]
    proxy.close()
  })

  it("that breaks are an error of the answer and of nothing else", async () => {
    const tls = certificate("registry.example.test")
    const server = createTlsServer(tls, (_, response) => {
      response.setHeader("content-length", 100_000)
      response.write("the beginning")
    })
    const port = await portOf(server)
    const sockets: Socket[] = []
    const proxy = createServer((socket) => {
      sockets.push(socket)
      socket.once("data", () => {
        const onward = connect(port, "127.0.0.1")
        for (const one of [socket, onward]) one.on("error", () => undefined)
        socket.write("HTTP/1.1 200 OK\r\n\r\n")
        socket.pipe(onward).pipe(socket)
      })
    })
    const environment = { HTTPS_PROXY: `http://127.0.0.1:${await portOf(proxy)}` }
    using connections = new Connections({ environment, keepAlive: true, trust: () => ({ ca: tls.cert }) })
    const reply = await connections.request(new URL("https://registry.example.test/"), {})
    sockets[0]?.resetAndDestroy()
    await assert.rejects(buffer(reply), { code: "ECONNRESET" })
    // What nobody waits for would be thrown meanwhile.
    await new Promise((resolve) => setTimeout(resolve, 100))
    server.closeAllConnections()
    for (const one of [server, proxy]) one.close()
  })

  it("hold its certificate against its own name, not against the host's", async () => {
    const tls = certificate("localhost")
    const asked: (string | undefined)[] = []
    const proxy = createTlsServer(tls, ({ url }, response) => {
      asked.push(url)
      response.end("answer")
    })
    const environment = { HTTP_PROXY: `https://localhost:${await portOf(proxy)}` }
    using connections = new Connections({ environment, keepAlive: false, trust: () => ({ ca: tls.cert }) })
    const reply = await connections.request(new URL("http://registry.example.test/v2/"), {})
    assert.equal(String(await buffer(reply)), "answer")
    assert.deepEqual(asked, ["http://registry.example.test/v2/"])
    proxy.close()
  })
})
