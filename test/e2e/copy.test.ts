import assert from "node:assert/strict"
import { execFileSync, spawn, type ChildProcess } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { once } from "node:events"
import { existsSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs"
import type http from "node:http"
import path from "node:path"
import { buffer, text } from "node:stream/consumers"
import { gunzipSync } from "node:zlib"
import { build } from "../../lib/index.ts"
import { parseReference, type ImageReference } from "../../lib/oci/reference.ts"
import { copyOciImage } from "../../lib/registry/transports.ts"
import { relaying, Server, type Answer } from "../support/http-server.ts"
import { imageTree } from "../support/image-tree.ts"
import { Layout, type JsonDescriptor } from "../support/layout.ts"
import { htpasswd, Registry, secret, startTokens } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"

const manifestType = "application/vnd.oci.image.manifest.v1+json"
const indexType = "application/vnd.oci.image.index.v1+json"
const refName = "org.opencontainers.image.ref.name"

type Options = NonNullable<Parameters<typeof copyOciImage>[2]>
const quiet = { environment: { HOME: newFolder("nobody") }, retryDelayMs: 1 }

function reference(name: string): ImageReference {
  const found = parseReference(name)
  assert.ok(found !== undefined)
  return found
}

async function copy(from: string, to: string, options: Options = {}): Promise<void> {
  const source = { ...quiet, disableCache: true, ...options.source }
  await copyOciImage(reference(from), reference(to), {
    all: true,
    ...options,
    source,
    target: { ...quiet, ...options.target },
  })
}

function refused(work: Promise<unknown>, code: string, message: RegExp): Promise<void> {
  return assert.rejects(work, (error: Error & { code?: string }) => {
    assert.equal(error.code, code, error.stack)
    assert.match(error.message, message)
    return true
  })
}

function sha256(bytes: Buffer | string): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`
}

function skopeo(...args: readonly string[]): string {
  return execFileSync("skopeo", ["--insecure-policy", ...args], { encoding: "utf8" })
}

/** An index of two images that share their layers. */
function manyPlatforms(): { readonly layout: Layout; readonly digest: string } {
  const layout = new Layout()
  const amd = layout.write()
  layout.config.architecture = "arm64"
  const arm = layout.write()
  const manifests = [
    { ...arm, platform: { os: "linux", architecture: "arm64" } },
    { ...amd, platform: { os: "linux", architecture: "amd64" } },
  ]
  const index = layout.add(JSON.stringify({ schemaVersion: 2, mediaType: indexType, manifests }), indexType)
  layout.writeIndex({ schemaVersion: 2, manifests: [{ ...index, annotations: { [refName]: "many" } }] })
  return { layout, digest: index.digest }
}

/** An image of one layer, whatever is in it. */
function imageOf(content: Buffer): { readonly source: string; readonly layer: JsonDescriptor } {
  const layout = new Layout()
  const layer = layout.add(content, layout.manifest.layers[0]!.mediaType)
  layout.manifest.layers = [layer]
  layout.write()
  return { source: `oci:${layout.folder}`, layer }
}

function blobNames(folder: string): string[] {
  const place = path.join(folder, "blobs", "sha256")
  return existsSync(place) ? readdirSync(place) : []
}

/** Every file of a layout is what it is called, and nothing else lies there. `began`: something of an image was taken. */
function assertWhole(folder: string, began = true): void {
  for (const name of blobNames(folder))
    assert.equal(sha256(readFileSync(path.join(folder, "blobs", "sha256", name))), `sha256:${name}`)
  const others = readdirSync(folder).filter((name) => name !== "index.json" && (began || name !== "blobs"))
  assert.deepEqual(others.sort(), began ? ["blobs", "oci-layout"] : ["oci-layout"])
}

interface IndexJson {
  readonly manifests: readonly JsonDescriptor[]
}
function indexOf(folder: string): IndexJson {
  return JSON.parse(readFileSync(path.join(folder, "index.json"), "utf8")) as IndexJson
}

async function isWhole(source: string, oci = {}): Promise<void> {
  const output = path.join(newFolder("built"), "image.sif")
  await build({ output, source, architecture: "amd64", oci: { ...quiet, disableCache: true, ...oci } })
  assert.equal((await imageTree(output)).get("usr/bin/tool")?.mode, 0o4755)
}

/** What of an upload a server is told, and how much of it came. */
interface Session {
  readonly pieces: Buffer[]
  size: number
  /** Only who knows it may go on. */
  state: string
}

/**
 * The writing half of a registry. `first` may answer instead, or do something to the connection; what it did not answer is
 * answered here.
 */
class Taker implements AsyncDisposable {
  readonly blobs = new Map<string, Buffer>()
  readonly manifests = new Map<string, Buffer>()
  /** Bytes of all PATCHes together, as they came. */
  taken = 0
  server!: Server
  readonly #sessions = new Map<string, Session>()

  static async start(
    first: (taker: Taker, request: http.IncomingMessage, response: http.ServerResponse) => boolean = () =>
      false,
  ): Promise<Taker> {
    const taker = new Taker()
    taker.server = await Server.start((request, response) => {
      if (!first(taker, request, response)) void taker.answer(request, response)
    })
    return taker
  }
  get host(): string {
    return this.server.host
  }
  get name(): string {
    return `docker://${this.host}/image:1`
  }
  /** Methods with what they were about. */
  get heard(): string[] {
    return this.server.heard.map(({ method, url }) => {
      const what = /\/(uploads|blobs|manifests)\/?[^/]*$/.exec(url)?.[1] ?? url
      return `${method} ${what}`
    })
  }
  session(url: string): Session | undefined {
    const [, id = "", state] = /\/uploads\/(\w+)\?state=(\w+)/.exec(url) ?? []
    const session = this.#sessions.get(id)
    return session?.state === state ? session : undefined
  }
  /** Says where to go on, which no request before this one knows. */
  place(session: Session, response: http.ServerResponse): void {
    const [id] = [...this.#sessions].find(([, one]) => one === session)!
    session.state = randomBytes(8).toString("hex")
    response.setHeader("location", `/v2/image/blobs/uploads/${id}?state=${session.state}`)
    response.setHeader("range", `0-${Math.max(0, session.size - 1)}`)
  }
  async take(session: Session, request: http.IncomingMessage): Promise<void> {
    for await (const piece of request as AsyncIterable<Buffer>) {
      session.pieces.push(piece)
      session.size += piece.length
      this.taken += piece.length
    }
  }
  async answer(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const { method, url = "" } = request
    const { pathname, searchParams } = new URL(url, "http://x")
    const last = decodeURIComponent(pathname.split("/").at(-1)!)
    const end = (status: number): void => {
      response.statusCode = status
      response.end()
    }
    if (pathname === "/v2/") end(200)
    else if (pathname.includes("/manifests/")) {
      this.manifests.set(last, await buffer(request))
      end(201)
    } else if (!pathname.includes("/uploads/")) {
      const blob = this.blobs.get(last)
      if (blob !== undefined) response.setHeader("content-length", blob.length)
      end(blob === undefined ? 404 : 200)
    } else if (method === "POST") {
      const session: Session = { pieces: [], size: 0, state: "" }
      this.#sessions.set(randomBytes(8).toString("hex"), session)
      this.place(session, response)
      end(202)
    } else {
      const session = this.session(url)
      if (session === undefined) end(404)
      else if (method === "GET") {
        this.place(session, response)
        end(204)
      } else if (method === "PATCH") {
        await this.take(session, request)
        this.place(session, response)
        end(202)
      } else end(this.commit(session, searchParams.get("digest")!))
    }
  }
  commit(session: Session, digest: string): number {
    const bytes = Buffer.concat(session.pieces)
    if (sha256(bytes) !== digest) return 400
    this.blobs.set(digest, bytes)
    session.state = ""
    return 201
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]()
  }
}

const plain = new Layout()
const root = plain.write()
const layerCount = new Set(plain.manifest.layers.map(({ digest }) => digest)).size + 1

describe("copying images", () => {
  describe("to Debian's registry", () => {
    it("keeps every digest, also of an index; skopeo and build read it", async () => {
      await using registry = await Registry.start()
      const { layout, digest } = manyPlatforms()
      const progress: (readonly [number, number])[] = []
      const onProgress = (bytes: number, total: number): void => void progress.push([bytes, total])
      await copy(`oci:${layout.folder}`, `docker://${registry.host}/group/many:1`, { onProgress })
      const raw = skopeo("inspect", "--raw", "--tls-verify=false", `docker://${registry.host}/group/many:1`)
      assert.equal(sha256(raw), digest)
      const folder = newFolder("pulled")
      const source = `docker://${registry.host}/group/many:1`
      skopeo(
        "copy",
        "-q",
        "--all",
        "--preserve-digests",
        "--src-tls-verify=false",
        source,
        `oci:${folder}:many`,
      )
      const known = new Set(blobNames(layout.folder))
      assert.ok(blobNames(folder).every((name) => known.has(name)))
      await isWhole(source)
      assert.ok(
        progress.every(([bytes], i) => i === 0 || bytes > progress[i - 1]![0]),
        "only forward",
      )
      assert.equal(progress.at(-1)![0], progress.at(-1)![1])
      // By its digest alone, and not by another one.
      await copy(`oci:${layout.folder}`, `docker://${registry.host}/other@${digest}`)
      await isWhole(`docker://${registry.host}/other@${digest}`)
      const wrong = `docker://${registry.host}/other@sha256:${"0".repeat(64)}`
      await refused(copy(`oci:${layout.folder}`, wrong), "ERR_OCI_DIGEST", /cannot become/)
    })

    it("sends nothing that is there or in another of its repositories", async () => {
      await using registry = await Registry.start()
      await using server = await Server.start(relaying(registry.host))
      const sent = (): string[] =>
        server.heard
          .splice(0)
          .map(({ method }) => method)
          .filter((method) => method === "PATCH")
      await copy(`oci:${plain.folder}`, `docker://${server.host}/one:1`)
      assert.equal(sent().length, layerCount)
      await copy(`oci:${plain.folder}`, `docker://${server.host}/one:2`)
      assert.deepEqual(sent(), [], "it is there")
      await copy(`docker://${server.host}/one:1`, `docker://${server.host}/two:1`)
      assert.deepEqual(
        server.heard.filter(({ method, url }) => method === "GET" && url.includes("/blobs/")),
        [],
      )
      assert.deepEqual(sent(), [], "it is mounted")
      await isWhole(`docker://${server.host}/two:1`)
    })

    it("sends chunks of a size in order", async () => {
      await using registry = await Registry.start()
      await using server = await Server.start(relaying(registry.host))
      const { source, layer } = imageOf(randomBytes(100_000))
      await copy(source, `docker://${server.host}/chunks:1`, { target: { chunkSize: 30_000 } })
      const ranges = server.heard
        .filter(({ method }) => method === "PATCH")
        .map(({ contentRange }) => contentRange)
      for (const range of ["0-29999", "30000-59999", "60000-89999", "90000-99999"])
        assert.ok(ranges.includes(range), ranges.join())
      const back = newFolder("back")
      await copy(`docker://${server.host}/chunks:1`, `oci:${back}`)
      assert.ok(blobNames(back).includes(layer.digest.slice(7)))
      assertWhole(back)
    })

    it("gets all of a blob whose connection broke, though it has lost count", async () => {
      await using registry = await Registry.start()
      const { source, layer } = imageOf(randomBytes(3 << 20))
      let broken = 0
      await using server = await Server.start((request, response) => {
        if (
          request.method === "PATCH" &&
          Number(request.headers["content-length"]) === layer.size &&
          broken++ === 0
        ) {
          const { socket } = request
          let come = 0
          request.on("data", (piece: Buffer) => {
            if ((come += piece.length) > 1 << 20) socket.destroy()
          })
        }
        relaying(registry.host)(request, response)
      })
      await copy(source, `docker://${server.host}/broken:1`)
      assert.ok(broken > 1)
      const back = newFolder("back")
      await copy(`docker://${registry.host}/broken:1`, `oci:${back}`)
      assertWhole(back)
      assert.ok(blobNames(back).includes(layer.digest.slice(7)))
    })

    it("lets in whom a password names, by Basic authentication and by tokens, to write and to mount", async () => {
      await using tokens = await startTokens()
      for (const options of [{ htpasswd }, { token: tokens.registry }]) {
        await using registry = await Registry.start(options)
        const target = { credentials: secret }
        const name = `docker://${registry.host}/group/private`
        await refused(copy(`oci:${plain.folder}`, `${name}:1`), "ERR_OCI_CREDENTIALS", /401/)
        await copy(`oci:${plain.folder}`, `${name}:1`, { target })
        await isWhole(`${name}:1`, target)
        await using server = await Server.start(relaying(registry.host))
        await copy(`docker://${server.host}/group/private:1`, `docker://${server.host}/public:1`, {
          source: target,
          target,
        })
        const methods = server.heard.map(({ method }) => method)
        assert.ok(methods.includes("POST") && !methods.includes("PATCH"), "mounted")
      }
    })
  })

  describe("to a layout", () => {
    it("adds to what is there, and takes a name away from nobody but its bearer", async () => {
      const folder = path.join(newFolder("layouts"), "new", "layout")
      const other = manyPlatforms()
      await copy(`oci:${plain.folder}`, `oci:${folder}:one`)
      // What is not known here stays.
      const index = { ...indexOf(folder), annotations: { kept: "yes" } }
      writeFileSync(path.join(folder, "index.json"), JSON.stringify(index))
      await copy(`oci:${other.layout.folder}`, `oci:${folder}:two`)
      await copy(`oci:${plain.folder}`, `oci:${folder}`)
      await copy(`oci:${other.layout.folder}`, `oci:${folder}:one`)
      assertWhole(folder)
      const after = indexOf(folder)
      assert.deepEqual(
        after.manifests.map(({ digest, annotations }) => [digest, annotations?.[refName]]),
        [
          [other.digest, "two"],
          [root.digest, undefined],
          [other.digest, "one"],
        ],
      )
      assert.deepEqual((after as { annotations?: unknown }).annotations, { kept: "yes" })
      for (const name of ["one", "two"])
        assert.equal(sha256(skopeo("inspect", "--raw", `oci:${folder}:${name}`)), other.digest)
      await isWhole(`oci:${folder}:two`)
      await isWhole(`oci:${folder}@${root.digest}`)
      await refused(copy(`oci:${plain.folder}`, `oci:${folder}:@0`), "ERR_OCI_REFERENCE", /place/)
    })

    it("comes from archives, compressed or not", async () => {
      const folder = newFolder("from-archives")
      const compressed = vectorPath("oci/oci-archive.tar.gz")
      const archive = path.join(newFolder("archive"), "image.tar")
      writeFileSync(archive, gunzipSync(readFileSync(compressed)))
      for (const file of [compressed, archive]) {
        await copy(`oci-archive:${file}`, `oci:${folder}:${path.basename(file)}`)
        await isWhole(`oci:${folder}:${path.basename(file)}`)
      }
      assertWhole(folder)
    })

    it("replaces a blob that is damaged, and refuses a folder that is something else", async () => {
      const folder = newFolder("damaged")
      await copy(`oci:${plain.folder}`, `oci:${folder}:1`)
      const blob = path.join(folder, "blobs", "sha256", plain.manifest.layers[0]!.digest.slice(7))
      const bytes = readFileSync(blob)
      bytes[9]! ^= 1
      writeFileSync(blob, bytes)
      await copy(`oci:${plain.folder}`, `oci:${folder}:1`)
      assertWhole(folder)
      const other = newFolder("something")
      writeFileSync(path.join(other, "file"), "")
      await refused(
        copy(`oci:${plain.folder}`, `oci:${other}:1`),
        "ERR_OCI_FORMAT",
        /neither a layout nor empty/,
      )
      assert.deepEqual(readdirSync(other), ["file"])
      const file = path.join(other, "file", "layout")
      await refused(copy(`oci:${plain.folder}`, `oci:${file}`), "ERR_BUILD_OUTPUT", /cannot write/)
    })

    /** Another process that copies. */
    function start(from: string, ...to: readonly string[]): ChildProcess {
      const program = `
        import { parseReference } from "./lib/oci/reference.ts"
        import { copyOciImage } from "./lib/registry/transports.ts"
        const [from, ...to] = process.argv.slice(1)
        await Promise.all(to.map((name) => copyOciImage(parseReference(from), parseReference(name), { all: true, source: { disableCache: true } })))
        console.log(process.resourceUsage().maxRSS)`
      const args = ["--import", "tsx", "--input-type", "module", "--eval", program, from, ...to]
      return spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] })
    }

    it("of several processes at once gets all of them", async () => {
      const folder = newFolder("shared")
      const names = Array.from({ length: 12 }, (_, i) => `oci:${folder}:${i}`)
      const processes = [0, 1, 2].map((i) => start(`oci:${plain.folder}`, ...names.slice(i * 4, i * 4 + 4)))
      const ends = await Promise.all(processes.map((process) => once(process, "exit")))
      for (const end of ends) assert.deepEqual(end, [0, null])
      assertWhole(folder)
      assert.deepEqual(
        indexOf(folder)
          .manifests.map(({ annotations }) => Number(annotations![refName]))
          .sort((a, b) => a - b),
        names.map((_, i) => i),
      )
    })

    it("is whole when whoever writes is killed, and is taken up by the next", async () => {
      const folder = newFolder("killed")
      const slow = plain.manifest.layers[0]!.digest
      let stalled: (() => void) | undefined
      let mayStall = true
      const reached = new Promise<void>((resolve) => (stalled = resolve))
      await using server = await Server.start((request, response) => {
        const url = request.url!
        const digest = url.split("/").at(-1)!
        if (url.includes("/manifests/")) {
          response.setHeader("content-type", manifestType)
          response.end(plain.blob(root.digest))
        } else if (!url.includes("/blobs/")) response.end("{}")
        else if (mayStall && digest === slow) response.write(plain.blob(digest).subarray(0, 100), stalled)
        else response.end(plain.blob(digest))
      })
      const process = start(`docker://${server.host}/image:1`, `oci:${folder}:1`)
      await reached
      process.kill("SIGKILL")
      await once(process, "exit")
      assert.ok(!existsSync(path.join(folder, "index.json")))
      assert.ok(!blobNames(folder).includes(slow.slice(7)))
      mayStall = false
      await copy(`docker://${server.host}/image:1`, `oci:${folder}:1`)
      assertWhole(folder)
      await isWhole(`oci:${folder}:1`)
    })

    it("of a large blob takes no memory for all of it", async () => {
      const size = 384 << 20
      const layout = new Layout()
      const hash = createHash("sha256")
      const zeros = Buffer.alloc(1 << 20)
      for (let at = 0; at < size; at += zeros.length) hash.update(zeros)
      const digest = `sha256:${hash.digest("hex")}`
      writeFileSync(layout.blobPath(digest), "")
      truncateSync(layout.blobPath(digest), size)
      layout.manifest.layers = [{ mediaType: layout.manifest.layers[0]!.mediaType, digest, size }]
      layout.write()
      const folder = newFolder("large")
      const process = start(`oci:${layout.folder}`, `oci:${folder}:1`)
      const kilobytes = Number(await text(process.stdout!))
      assert.equal(statSync(path.join(folder, "blobs", "sha256", digest.slice(7))).size, size)
      assert.ok(kilobytes < 300 << 10, `${kilobytes} KiB`)
      layout.remove()
      rmSync(folder, { recursive: true })
    })
  })

  describe("to a registry where something goes wrong", () => {
    const content = randomBytes(3 << 20)
    const { source, layer } = imageOf(content)
    const isLayer = (taker: Taker, url: string): boolean => (taker.session(url)?.size ?? 0) > 1000

    /** Breaks the connection once, where `when` says. */
    function breaking(
      when: (
        taker: Taker,
        request: http.IncomingMessage,
        response: http.ServerResponse,
      ) => boolean | Promise<boolean>,
    ): Parameters<typeof Taker.start>[0] {
      let broken = false
      return (taker, request, response) => {
        // A request that is not read to its end loses it.
        const { socket } = request
        void (async () => {
          if (!broken && (await when(taker, request, response))) {
            broken = true
            socket.destroy()
          } else await taker.answer(request, response)
        })()
        return true
      }
    }
    function assertThere(taker: Taker): void {
      assert.deepEqual(taker.blobs.get(layer.digest), content)
      assert.ok(taker.manifests.has("1"))
    }

    it("a connection that breaks before anything came is no harm", async () => {
      const phases: readonly ((request: http.IncomingMessage) => boolean)[] = [
        ({ method, url }) => method === "HEAD" && url!.endsWith(layer.digest),
        ({ method }) => method === "POST",
        ({ method }) => method === "PATCH",
        ({ method, url }) => method === "PUT" && url!.includes(encodeURIComponent(layer.digest)),
        ({ method, url }) => method === "PUT" && url!.includes("/manifests/"),
      ]
      for (const phase of phases) {
        await using taker = await Taker.start(breaking((_, request) => phase(request)))
        await copy(source, taker.name)
        assertThere(taker)
      }
    })

    it("a blob that broke off is taken up where it did, and no byte is sent twice", async () => {
      await using taker = await Taker.start(
        breaking(async (taker, request) => {
          const session = taker.session(request.url!)
          if (
            request.method !== "PATCH" ||
            session === undefined ||
            Number(request.headers["content-length"]) < 1000
          )
            return false
          for await (const piece of request as AsyncIterable<Buffer>) {
            session.pieces.push(piece)
            session.size += piece.length
            taker.taken += piece.length
            if (session.size > 1 << 20) break
          }
          return true
        }),
      )
      const progress: number[] = []
      await copy(source, taker.name, { onProgress: (bytes) => progress.push(bytes) })
      assertThere(taker)
      const all = [...taker.blobs.values()].reduce((sum, { length }) => sum + length, 0)
      assert.equal(taker.taken, all)
      assert.ok(progress.every((bytes, i) => i === 0 || bytes > progress[i - 1]!))
    })

    it("a chunk that comes out of its place is asked about, and none is sent twice", async () => {
      for (const range of ["0-", "part"]) {
        let refusals = 0
        await using taker = await Taker.start((taker, request, response) => {
          const session = taker.session(request.url!)
          if (request.method !== "PATCH" || session === undefined || session.size === 0) return false
          void (async () => {
            if (refusals++ === 0) {
              request.resume()
              response.statusCode = 416
              response.end()
              return
            }
            const start = session.size
            await taker.take(session, request)
            taker.place(session, response)
            if (range === "part") response.setHeader("range", `${start}-${session.size - 1}`)
            response.statusCode = 202
            response.end()
          })()
          return true
        })
        await copy(source, taker.name, { target: { chunkSize: 1 << 20 } })
        assertThere(taker)
        assert.equal(refusals, 3)
        assert.equal(taker.heard.filter((one) => one === "GET uploads").length, 1)
        const all = [...taker.blobs.values()].reduce((sum, { length }) => sum + length, 0)
        assert.equal(taker.taken, all)
      }
    })

    it("a connection that breaks every MiB is no end, and one that gets no further is", async () => {
      const large = imageOf(randomBytes(8 << 20))
      for (const step of [(1 << 20) + 1, 1000]) {
        let breaks = 0
        await using taker = await Taker.start((taker, request) => {
          const session = taker.session(request.url!)
          if (request.method !== "PATCH" || session === undefined) return false
          if (Number(request.headers["content-length"]) <= step) return false
          const { socket } = request
          void (async () => {
            let left = step
            for await (const piece of request as AsyncIterable<Buffer>) {
              const taken = piece.subarray(0, left)
              session.pieces.push(taken)
              session.size += taken.length
              taker.taken += taken.length
              left -= taken.length
              if (left === 0) break
            }
            breaks++
            socket.destroy()
          })()
          return true
        })
        const copied = copy(large.source, taker.name)
        if (step === 1000) {
          await refused(copied, "ERR_OCI_REGISTRY", /broke off 5 times/)
          assert.equal(breaks, 5)
          continue
        }
        await copied
        assert.equal(breaks, 7)
        const all = [...taker.blobs.values()].reduce((sum, { length }) => sum + length, 0)
        assert.equal(taker.taken, all)
        assert.ok(taker.manifests.has("1"))
      }
    })

    it("a blob is not sent again where only the answer was lost", async () => {
      for (const method of ["PATCH", "PUT"]) {
        await using taker = await Taker.start(
          breaking(async (taker, request) => {
            const session = taker.session(request.url!)
            if (request.method !== method || session === undefined) return false
            if (method === "PATCH") await taker.take(session, request)
            else taker.commit(session, new URL(request.url!, "http://x").searchParams.get("digest")!)
            return true
          }),
        )
        await copy(source, taker.name)
        assertThere(taker)
        const all = [...taker.blobs.values()].reduce((sum, { length }) => sum + length, 0)
        assert.equal(taker.taken, all, method)
      }
    })

    it("a blob is sent anew to who forgot what came, and not without end", async () => {
      let forgotten = 0
      let most = 1
      const answer: Parameters<typeof Taker.start>[0] = (taker, request, response) => {
        if (request.method !== "PUT" || !isLayer(taker, request.url!) || forgotten === most) return false
        forgotten++
        taker.session(request.url!)!.state = ""
        response.statusCode = 404
        response.end()
        return true
      }
      await using taker = await Taker.start(answer)
      await copy(source, taker.name)
      assertThere(taker)
      forgotten = 0
      most = Infinity
      await using never = await Taker.start(answer)
      await refused(copy(source, never.name), "ERR_OCI_REGISTRY", /broke off 5 times/)
      assert.equal(forgotten, 5)
      assert.ok(!never.manifests.has("1"))
    })

    it("who is busy is asked again when it says, whatever it was asked", async () => {
      for (const method of ["POST", "PATCH", "PUT"]) {
        const times: number[] = []
        await using taker = await Taker.start((_, request, response) => {
          if (request.method !== method) return false
          times.push(performance.now())
          if (times.length > 1) return false
          response.statusCode = 429
          response.setHeader("retry-after", "1")
          request.resume()
          response.end()
          return true
        })
        await copy(source, taker.name)
        assertThere(taker)
        // Another blob may be on its way meanwhile.
        assert.ok(times.at(-1)! - times[0]! >= 990, `${method}: ${times.join()}`)
      }
    })

    it("what the registry says to have is compared with what was sent", async () => {
      /** Says that it has `delta` more than it has. */
      const saying = (delta: number): Parameters<typeof Taker.start>[0] => {
        let said = false
        return (taker, request, response) => {
          const session = taker.session(request.url!)
          if (request.method !== "PATCH" || session === undefined || said) return false
          if (Number(request.headers["content-length"]) < 1000) return false
          said = true
          void (async () => {
            await taker.take(session, request)
            if (delta < 0) {
              session.pieces.splice(0, Infinity, Buffer.concat(session.pieces).subarray(0, delta))
              session.size += delta
            }
            taker.place(session, response)
            response.setHeader("range", `0-${session.size - 1 + Math.max(0, delta)}`)
            response.statusCode = 202
            response.end()
          })()
          return true
        }
      }
      await using less = await Taker.start(saying(-500))
      await copy(source, less.name)
      assertThere(less)
      await using more = await Taker.start(saying(1))
      await refused(copy(source, more.name), "ERR_OCI_REGISTRY", /bytes were sent, and the registry has/)
      assert.deepEqual([...more.manifests], [])
    })

    it("another digest than was meant is an error, for a blob and for a manifest", async () => {
      for (const kind of ["/blobs/", "/manifests/"]) {
        await using taker = await Taker.start((_, request, response) => {
          if (request.method === "PUT" && request.url!.includes(kind))
            response.setHeader("docker-content-digest", `sha256:${"0".repeat(64)}`)
          return false
        })
        await refused(copy(source, taker.name), "ERR_OCI_DIGEST", /is sha256:0000.* there/)
      }
    })

    it("other bytes than the digest says are never all sent, and never become a blob", async () => {
      const bad = new Layout()
      const { digest, size, mediaType } = bad.add(Buffer.concat([content, Buffer.alloc(1)]), layer.mediaType)
      const bytes = bad.blob(digest)
      bytes[0]! ^= 1
      writeFileSync(bad.blobPath(digest), bytes)
      bad.manifest.layers = [{ mediaType, digest, size }]
      bad.write()
      await using taker = await Taker.start()
      await refused(copy(`oci:${bad.folder}`, taker.name), "ERR_OCI_DIGEST", /content is not what/)
      const [config = Buffer.alloc(0)] = taker.blobs.values()
      assert.ok(taker.taken - config.length < size)
      assert.ok(!taker.blobs.has(digest))
      const folder = newFolder("bad")
      await refused(copy(`oci:${bad.folder}`, `oci:${folder}`), "ERR_OCI_DIGEST", /content is not what/)
      // It may fail before its configuration, which comes beside it, was taken.
      assertWhole(folder, false)
      assert.ok(!existsSync(path.join(folder, "index.json")))
    })

    it("who we are is told to nobody else: not where blobs are to be sent, not along a redirect", async () => {
      await using elsewhere = await Taker.start()
      const asking: Answer = (request, response) => {
        response.statusCode = 401
        response.setHeader("www-authenticate", 'Basic realm="x"')
        request.resume()
        response.end()
      }
      await using taker = await Taker.start((_, request, response) => {
        if (request.headers.authorization === undefined) asking(request, response)
        else if (request.method === "POST") {
          // Theirs, for whom to send it to.
          const { host } = elsewhere
          void fetch(`http://${host}/v2/image/blobs/uploads/`, { method: "POST" }).then(({ headers }) => {
            response.setHeader("location", `http://${host}${headers.get("location")!}`)
            response.statusCode = 202
            response.end()
          })
        } else return false
        return true
      })
      await copy(source, taker.name, { target: { credentials: secret } })
      assert.deepEqual(elsewhere.blobs.get(layer.digest), content)
      assert.deepEqual(
        [...new Set(elsewhere.server.heard.map(({ authorization }) => authorization))],
        [undefined],
      )
      // Whoever is there asks in vain.
      await using thief = await Server.start(asking)
      for (const method of ["POST", "PUT"]) {
        await using server = await Taker.start((_, request, response) => {
          if (request.headers.authorization === undefined) asking(request, response)
          else if (request.method === method) {
            response.statusCode = 307
            response.setHeader("location", `http://${thief.host}/thief`)
            response.end()
          } else return false
          return true
        })
        await refused(
          copy(source, server.name, { target: { credentials: secret } }),
          "ERR_OCI_REGISTRY",
          /sends us to/,
        )
      }
      assert.deepEqual(thief.heard, [])
    })

    it("blobs are sent where the registry's storage does not say whether it has them", async () => {
      await using storage = await Server.start((_, response) => {
        response.statusCode = 403
        response.end()
      })
      await using taker = await Taker.start((_, request, response) => {
        if (request.method !== "HEAD") return false
        response.statusCode = 307
        response.setHeader("location", `http://${storage.host}/blob`)
        response.end()
        return true
      })
      await copy(source, taker.name)
      assertThere(taker)
      assert.ok(storage.heard.length > 0)
    })

    it("a blob that the registry has with another size is sent, and one with another digest is an error", async () => {
      for (const [header, value] of [
        ["content-length", "5"],
        ["docker-content-digest", `sha256:${"0".repeat(64)}`],
      ] as const) {
        await using taker = await Taker.start((_, request, response) => {
          if (request.method !== "HEAD") return false
          response.setHeader(header, value)
          response.end()
          return true
        })
        const copied = copy(source, taker.name)
        if (header === "content-length") {
          await copied
          assertThere(taker)
        } else await refused(copied, "ERR_OCI_DIGEST", /is sha256:0000.* there/)
      }
    })

    it("chunks of nothing are refused", async () => {
      for (const chunkSize of [0, -1, NaN])
        await assert.rejects(
          copy(source, "docker://127.0.0.1:9/image", { target: { chunkSize } }),
          RangeError,
        )
    })

    it("nothing goes on when the signal says so", async () => {
      for (const method of ["PATCH", "PUT"]) {
        const stop = new AbortController()
        await using taker = await Taker.start((_, request) => {
          if (request.method !== method) return false
          stop.abort(new Error("enough"))
          return true
        })
        await assert.rejects(copy(source, taker.name, { signal: stop.signal }), /enough/)
        assert.deepEqual([...taker.manifests], [])
      }
    })

    it("hostile images are bounded: too many manifests, indexes without end, one digest with two sizes, wrong data", async () => {
      const folder = newFolder("bounded")
      const many = new Layout()
      const images = Array.from({ length: 1001 }, (_, i) =>
        many.add(JSON.stringify({ ...many.manifest, annotations: { i: String(i) } }), manifestType),
      )
      const index = many.add(JSON.stringify({ schemaVersion: 2, manifests: images }), indexType)
      many.writeIndex({ schemaVersion: 2, manifests: [index] })
      await refused(copy(`oci:${many.folder}`, `oci:${folder}`), "ERR_OCI_LIMIT", /more than 1000 manifests/)
      const deep = new Layout()
      let top = deep.write()
      for (let i = 0; i < 5; i++)
        top = deep.add(JSON.stringify({ schemaVersion: 2, manifests: [top] }), indexType)
      deep.writeIndex({ schemaVersion: 2, manifests: [top] })
      await refused(copy(`oci:${deep.folder}`, `oci:${folder}`), "ERR_OCI_FORMAT", /indexes in indexes/)
      const sizes = new Layout()
      sizes.manifest.layers.push({ ...sizes.manifest.layers[0]!, size: 1 })
      sizes.write()
      await refused(copy(`oci:${sizes.folder}`, `oci:${folder}`), "ERR_OCI_DIGEST", /two sizes/)
      // All blobs together, and before anything is fetched.
      const most = plain.manifest.layers.reduce((sum, { size }) => sum + size, plain.manifest.config.size)
      const tooMuch = copy(`oci:${plain.folder}`, `oci:${folder}`, { source: { maxLayerBytes: most - 1 } })
      await refused(tooMuch, "ERR_OCI_LIMIT", /bytes of blobs/)
      assert.deepEqual(blobNames(folder), [])
      await copy(`oci:${plain.folder}`, `oci:${newFolder("enough")}`, { source: { maxLayerBytes: most } })
      // What is embedded is looked at like everything else.
      for (const data of ["", "e30=", "e30ge30="]) {
        const embedded = new Layout()
        embedded.manifest.layers = [{ ...embedded.add("{} ", manifestType), data } as JsonDescriptor]
        embedded.write()
        await refused(copy(`oci:${embedded.folder}`, `oci:${folder}`), "ERR_OCI_DIGEST", /bytes/)
      }
      assert.ok(!existsSync(path.join(folder, "index.json")))
    })
  })
})
