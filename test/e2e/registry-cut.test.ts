// Connections to a registry that break once, wherever in what is said: in a line, in headers, at their end, in a body, in its last
// byte. Push and pull are through in spite of it.
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { once } from "node:events"
import { readFileSync, writeFileSync } from "node:fs"
import { connect, createServer, type AddressInfo, type Socket } from "node:net"
import path from "node:path"
import { build, pull, push } from "../../lib/index.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"

type Direction = "to the registry" | "from the registry"

/** Between a client and a registry; breaks a connection after so many bytes of all connections in one direction. */
class Wire implements AsyncDisposable {
  readonly said: Record<Direction, Buffer[]> = { "to the registry": [], "from the registry": [] }
  #cut: { direction: Direction; after: number; reset: boolean } | undefined
  readonly #sockets = new Set<Socket>()
  readonly #server

  private constructor(port: number) {
    this.#server = createServer({ noDelay: true }, (client) => {
      const registry = connect({ port, host: "127.0.0.1", noDelay: true })
      for (const socket of [client, registry]) {
        this.#sockets.add(socket)
        socket.on("error", () => undefined)
        socket.once("close", () => {
          client.destroy()
          registry.destroy()
        })
      }
      const pass = (from: Socket, to: Socket, direction: Direction): void => {
        from.on("data", (bytes) => {
          const cut = this.#cut?.direction === direction ? this.#cut : undefined
          this.said[direction].push(bytes)
          if (cut === undefined || bytes.length < cut.after) {
            if (cut !== undefined) cut.after -= bytes.length
            to.write(bytes)
            return
          }
          this.#cut = undefined
          to.write(bytes.subarray(0, cut.after), () => {
            if (cut.reset) client.resetAndDestroy()
            else client.end()
            registry.destroy()
          })
        })
        from.on("end", () => to.end())
      }
      pass(client, registry, "to the registry")
      pass(registry, client, "from the registry")
    })
  }
  static async to(host: string): Promise<Wire> {
    const wire = new Wire(Number(host.split(":")[1]))
    wire.#server.listen(0, "127.0.0.1")
    await once(wire.#server, "listening")
    return wire
  }
  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }
  /** Starts anew. */
  cut(direction: Direction, after: number, reset: boolean): void {
    this.forget()
    this.#cut = { direction, after, reset }
  }
  forget(): void {
    this.#cut = undefined
    for (const direction of Object.keys(this.said) as Direction[]) this.said[direction].length = 0
  }
  get isCut(): boolean {
    return this.#cut === undefined
  }
  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    this.#server.close()
    await once(this.#server, "close")
  }
}

/** One place of each class: in the first line, in a header, before and after the empty line, in the body, before its last byte. */
function places(said: readonly Buffer[]): number[] {
  const all = Buffer.concat(said)
  const text = all.toString("latin1")
  const starts = [
    ...text.matchAll(/(?:(?:GET|HEAD|POST|PATCH|PUT) \/v2\/\S* HTTP\/1\.1|HTTP\/1\.1 \d{3} [^\r]*)\r\n/g),
  ]
  return starts.flatMap(({ index, 0: line }, i) => {
    const end = starts[i + 1]?.index ?? all.length
    const body = text.indexOf("\r\n\r\n", index) + 4
    const inside = [
      index + 1,
      index + line.length - 3,
      index + line.length + 5,
      body - 2,
      body,
      (body + end) >> 1,
      end - 1,
    ]
    return inside.filter((place) => place > index && place < end)
  })
}

describe("a connection to a registry that breaks", function () {
  this.timeout(120_000)
  const folder = newFolder("cut")
  const image = path.join(folder, "image.sif")
  let registry: Registry
  let wire: Wire
  let count = 0

  before(async () => {
    registry = await Registry.start()
    wire = await Wire.to(registry.host)
    const tree = newFolder("cut-tree")
    writeFileSync(path.join(tree, "noise"), createHash("shake256", { outputLength: 200_000 }).digest())
    await build({ output: image, source: tree })
    await push({
      ...{ image, reference: `oras://${registry.host}/image:1`, unsigned: "allow" },
      registry: { environment: { HOME: folder } },
    })
  })
  after(async () => {
    await wire[Symbol.asyncDispose]()
    await registry[Symbol.asyncDispose]()
  })

  const options = { environment: { HOME: folder }, noHttps: true, retryDelayMs: 1 }
  async function pulls(): Promise<void> {
    const output = path.join(folder, `pulled-${++count}.sif`)
    const reference = `oras://${wire.host}/image:1`
    await pull({ reference, output, oci: { ...options, disableCache: true } })
    assert.deepEqual(readFileSync(output), readFileSync(image))
  }
  async function pushes(): Promise<void> {
    const name = `pushed-${++count}:1`
    await push({ image, reference: `oras://${wire.host}/${name}`, unsigned: "allow", registry: options })
    const output = path.join(folder, `pulled-${count}.sif`)
    const reference = `oras://${registry.host}/${name}`
    await pull({ reference, output, oci: { ...options, disableCache: true } })
    assert.deepEqual(readFileSync(output), readFileSync(image))
  }

  for (const [what, work] of [
    ["pull", pulls],
    ["push", pushes],
  ] as const)
    for (const direction of ["to the registry", "from the registry"] as const)
      it(`anywhere in what ${what} says ${direction} is no harm`, async () => {
        wire.forget()
        await work()
        const all = places(wire.said[direction])
        assert.ok(all.length >= 10, `${all.length} places`)
        const failures: string[] = []
        let broken = 0
        for (const [i, place] of all.entries()) {
          wire.cut(direction, place, i % 2 === 0)
          await work().catch((error: unknown) => {
            failures.push(
              `after ${place} bytes, ${i % 2 === 0 ? "reset" : "ended"}: ${(error as Error).message}`,
            )
          })
          // What the registry calls an upload is not always as long.
          const size = wire.said[direction].reduce((sum, { length }) => sum + length, 0)
          assert.ok(
            wire.isCut || size <= place,
            `the connection did not break after ${place} bytes of ${size}`,
          )
          if (wire.isCut) broken++
        }
        assert.deepEqual(failures, [])
        assert.ok(broken >= all.length - 2, `${broken} of ${all.length} places`)
      })
})
