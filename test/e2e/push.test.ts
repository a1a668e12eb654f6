// A SIF to a registry and back: what the peers find there, several architectures under one name, and what goes wrong on the way.
import assert from "node:assert/strict"
import { createHash, createPublicKey, generateKeyPairSync } from "node:crypto"
import { copyFileSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  build,
  listCache,
  pull,
  push,
  sign,
  verify,
  type PullOptions,
  type PushOptions,
} from "../../lib/index.ts"
import { sifcrypt, userId } from "../support/cli.ts"
import { relaying, Server } from "../support/http-server.ts"
import { htpasswd, Registry, secret } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"

const manifestType = "application/vnd.oci.image.manifest.v1+json"
const indexType = "application/vnd.oci.image.index.v1+json"
const home = newFolder("push-home")
const environment = { HOME: home }

function sha256(bytes: Buffer | string): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`
}

function filesIn(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => path.join(parentPath, name))
}

interface Found {
  readonly type: string | null
  readonly bytes: Buffer
  readonly json: {
    mediaType?: string
    manifests?: { digest: string; platform?: { architecture: string }; annotations?: unknown }[]
  }
}

async function manifest(host: string, name: string): Promise<Found> {
  const [repository, reference] = name.split(/[:@](?!.*[:@]sha)/)
  const reply = await fetch(`http://${host}/v2/${repository}/manifests/${reference ?? "latest"}`, {
    headers: { accept: `${manifestType}, ${indexType}` },
  })
  assert.equal(reply.status, 200)
  const bytes = Buffer.from(await reply.arrayBuffer())
  return {
    type: reply.headers.get("content-type"),
    bytes,
    json: JSON.parse(bytes.toString()) as Found["json"],
  }
}

describe("push and pull", () => {
  const folder = newFolder("push")
  const image = path.join(folder, "tiny image.sif")
  let registry: Registry
  const name = (rest: string): string => `oras://${registry.host}/${rest}`

  const pushed = (rest: string, options: Partial<PushOptions> = {}): ReturnType<typeof push> =>
    push({
      image,
      reference: name(rest),
      unsigned: "allow",
      registry: { environment, retryDelayMs: 1 },
      ...options,
    })
  const pulled = (rest: string, options: Partial<PullOptions> = {}): ReturnType<typeof pull> =>
    pull({
      reference: name(rest),
      output: path.join(newFolder("pulled"), "image.sif"),
      oci: { environment, retryDelayMs: 1 },
      ...options,
    })
  const refused = (work: Promise<unknown>, code: string, message: RegExp): Promise<void> =>
    assert.rejects(work, (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.stack)
      assert.match(error.message, message)
      return true
    })

  before(async () => {
    registry = await Registry.start()
    const tree = path.join(folder, "tree")
    mkdirSync(tree)
    writeFileSync(path.join(tree, "file"), "content\n")
    await build({ output: image, source: tree, sourceDateEpoch: 1_700_000_000 })
  })
  after(() => registry[Symbol.asyncDispose]())

  it("write the manifest that Apptainer writes, to the byte", async () => {
    const { digest, size, imageDigest, architecture } = await pushed("form:1")
    const { bytes, type } = await manifest(registry.host, "form:1")
    assert.equal(
      bytes.toString(),
      `{"schemaVersion":2,"mediaType":"${manifestType}","config":{"mediaType":"application/vnd.sylabs.sif.config.v1+json",` +
        `"size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},` +
        `"layers":[{"mediaType":"application/vnd.sylabs.sif.layer.v1.sif","size":${statSync(image).size},` +
        `"digest":"${sha256(readFileSync(image))}","annotations":{"org.opencontainers.image.title":"tiny image.sif"}}],` +
        `"annotations":{"org.opencontainers.image.created":"2023-11-14T22:13:20Z"}}`,
    )
    assert.equal(type, manifestType)
    assert.equal(digest, sha256(bytes))
    assert.equal(size, statSync(image).size)
    assert.equal(imageDigest, sha256(readFileSync(image)))
    assert.equal(architecture, "amd64")
  })

  it("A36: bring back every byte, by tag and by digest, executable", async () => {
    const { digest } = await pushed("round/trip:v1")
    for (const rest of ["round/trip:v1", `round/trip@${digest}`]) {
      const found = await pulled(rest)
      assert.equal(found.digest, digest)
      assert.equal(found.title, "tiny image.sif")
      assert.deepEqual(readFileSync(found.output), readFileSync(image))
      assert.equal(statSync(found.output).mode & 0o711, 0o711)
    }
  })

  it("do not send twice what is there", async () => {
    await pushed("twice:1")
    const asked: string[] = []
    const onward = relaying(registry.host)
    await using relay = await Server.start((request, response) => {
      asked.push(`${request.method ?? ""} ${request.url ?? ""}`)
      onward(request, response)
    })
    await pushed("", { reference: `oras://${relay.host}/twice:2` })
    assert.deepEqual(
      asked.filter((one) => /^(POST|PATCH)/.test(one)),
      [],
    )
    assert.equal(asked.at(-1), "PUT /v2/twice/manifests/2")
  })

  it("keep one name for several architectures, and each other's entries as they are", async () => {
    const arm = path.join(newFolder("arm"), "arm.sif")
    copyFileSync(image, arm)
    const bytes = readFileSync(arm)
    // The header's architecture and the partition's.
    for (let at = bytes.indexOf("02\0", 0, "latin1"), n = 0; n < 2 && at >= 0; n++) {
      bytes.write("04\0", at, "latin1")
      at = bytes.indexOf("02\0", at, "latin1")
    }
    writeFileSync(arm, bytes)
    const first = await pushed("many:1", { index: true, annotations: { note: "x" } })
    assert.equal(first.indexDigest, sha256((await manifest(registry.host, "many:1")).bytes))
    // What somebody else has put there.
    const { json } = await manifest(registry.host, "many:1")
    const own = json.manifests![0]!
    const foreign = {
      ...own,
      platform: { os: "linux", architecture: "s390x", "os.features": ["a"] },
      extra: 1,
    }
    await fetch(`http://${registry.host}/v2/many/manifests/1`, {
      method: "PUT",
      headers: { "content-type": indexType },
      body: JSON.stringify({ ...json, annotations: { kept: "yes" }, manifests: [own, foreign] }),
    })
    // Without being told.
    const second = await pushed("many:1", { image: arm })
    assert.equal(second.architecture, "arm64")
    assert.notEqual(second.indexDigest, undefined)
    const { json: after } = await manifest(registry.host, "many:1")
    assert.deepEqual(
      after.manifests!.map(({ platform }) => platform!.architecture),
      ["amd64", "s390x", "arm64"],
    )
    assert.deepEqual(after.manifests![1], foreign)
    assert.deepEqual((after as { annotations?: unknown }).annotations, { kept: "yes" })
    assert.equal((await pulled("many:1", { architecture: "arm64" })).imageDigest, sha256(readFileSync(arm)))
    assert.equal((await pulled("many:1", { architecture: "amd64" })).imageDigest, sha256(readFileSync(image)))
    await refused(
      pulled("many:1", { architecture: "riscv64" }),
      "ERR_OCI_NOT_FOUND",
      /no image for linux\/riscv64, but for linux\/amd64, linux\/s390x, linux\/arm64$/,
    )
  })

  it("take what is no SIF for what it is", async () => {
    const blob = Buffer.from("{}")
    const put = async (rest: string, layers: unknown[]): Promise<void> => {
      const start = await fetch(`http://${registry.host}/v2/other/blobs/uploads/`, { method: "POST" })
      const place = `${start.headers.get("location") ?? ""}&digest=${sha256(blob)}`
      assert.equal((await fetch(place, { method: "PUT", body: blob })).status, 201)
      const config = {
        mediaType: "application/vnd.oci.image.config.v1+json",
        size: 2,
        digest: sha256(blob),
      }
      const reply = await fetch(`http://${registry.host}/v2/other/manifests/${rest}`, {
        method: "PUT",
        headers: { "content-type": manifestType },
        body: JSON.stringify({ schemaVersion: 2, mediaType: manifestType, config, layers }),
      })
      assert.equal(reply.status, 201)
    }
    const layer = (mediaType: string): unknown => ({ mediaType, size: 2, digest: sha256(blob) })
    const sif = "application/vnd.sylabs.sif.layer.v1.sif"
    await put("tar", [layer("application/vnd.oci.image.layer.v1.tar")])
    await put("two", [layer(sif), layer(sif)])
    await put("none", [])
    await put("liar", [layer(sif)])
    await refused(
      pulled("other:tar"),
      "ERR_OCI_UNSUPPORTED",
      /: no SIF, but application\/vnd\.oci\.image\.layer\.v1\.tar$/,
    )
    await refused(pulled("other:two"), "ERR_OCI_UNSUPPORTED", /: no SIF, but 2 layers$/)
    await refused(pulled("other:none"), "ERR_OCI_UNSUPPORTED", /: no SIF, but application\S+ without layers$/)
    const output = path.join(newFolder("liar"), "image.sif")
    await refused(pulled("other:liar", { output }), "ERR_SIF_MAGIC", /other:liar: not a SIF/)
    assert.deepEqual(readdirSync(path.dirname(output)), [])
    // The spelling of old Singularity.
    const bytes = readFileSync(image)
    await pushed("other:real")
    await put("old", [
      { mediaType: "appliciation/vnd.sylabs.sif.layer.tar", size: bytes.length, digest: sha256(bytes) },
    ])
    assert.equal((await pulled("other:old")).imageDigest, sha256(bytes))
  })

  it("give no name to what is not signed as it has to be", async () => {
    const keyPath = path.join(folder, "signer.pem")
    writeFileSync(keyPath, generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "pem" }))
    const signed = path.join(folder, "signed.sif")
    copyFileSync(image, signed)
    await sign(signed, { keyPath })
    await pushed("signed:yes", { image: signed, unsigned: "error" })
    await pushed("signed:no")
    const output = path.join(newFolder("signed"), "image.sif")
    const publicPath = path.join(folder, "signer.pub")
    writeFileSync(publicPath, createPublicKey(readFileSync(keyPath)).export({ type: "spki", format: "pem" }))
    const check = { keyPaths: [publicPath] }
    await refused(
      pulled("signed:no", { output, verify: check }),
      "ERR_SIGNATURE_MISSING",
      /signed:no is not verified/,
    )
    assert.deepEqual(readdirSync(path.dirname(output)), [])
    await pulled("signed:yes", { output, verify: check })
    assert.equal((await verify(output, check)).verified, true)
    await refused(pushed("signed:no", { unsigned: "error" }), "ERR_UNSIGNED", /carries no signature/)
  })

  it("take up a broken fetch where it broke, and fetch nothing that another has fetched", async () => {
    const large = path.join(folder, "large.sif")
    const tree = path.join(folder, "large")
    mkdirSync(tree)
    writeFileSync(
      path.join(tree, "noise"),
      Buffer.from(Array.from({ length: 3 << 20 }, (_, i) => (i * i) >> 7)),
    )
    await build({ output: large, source: tree })
    await pushed("large:1", { image: large })
    const size = statSync(large).size
    let sent = 0
    let broken = false
    const onward = relaying(registry.host)
    await using relay = await Server.start((request, response) => {
      if ((request.url ?? "").includes("/blobs/")) {
        const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1]
        sent += size - Number(range ?? 0)
        if (!broken) {
          broken = true
          response.writeHead(200, { "content-length": size })
          response.write(readFileSync(large).subarray(0, size >> 1), () => response.socket?.end())
          return
        }
      }
      onward(request, response)
    })
    const reference = `oras://${relay.host}/large:1`
    const cacheFolder = newFolder("pull-cache")
    const found = await pulled("", { reference, oci: { environment, retryDelayMs: 1, cacheFolder } })
    assert.deepEqual(readFileSync(found.output), readFileSync(large))
    assert.ok(sent < 2 * size, `${sent} bytes were asked for, of ${size}`)
    sent = 0
    await pulled("", { reference, oci: { environment, retryDelayMs: 1, cacheFolder } })
    assert.equal(sent, 0)
  })

  it("keep nothing of what takes a password to get", async () => {
    await using closed = await Registry.start({ htpasswd })
    const cacheFolder = newFolder("closed-cache")
    const reference = `oras://${closed.host}/closed:1`
    await refused(pushed("", { reference }), "ERR_OCI_CREDENTIALS", new RegExp(`${closed.host}/closed:1`))
    await pushed("", { reference, registry: { environment, credentials: secret } })
    const found = await pulled("", { reference, oci: { environment, credentials: secret, cacheFolder } })
    assert.deepEqual(readFileSync(found.output), readFileSync(image))
    assert.deepEqual(filesIn(cacheFolder), [])
  })

  it("take up a fetch that was ended of what takes a password, from a file that nobody else can read", async () => {
    await using closed = await Registry.start({ htpasswd })
    await pushed("", {
      reference: `oras://${closed.host}/closed:1`,
      registry: { environment, credentials: secret },
    })
    const size = statSync(image).size
    const ranges: (string | undefined)[] = []
    let whole = false
    const onward = relaying(closed.host)
    await using relay = await Server.start((request, response) => {
      const isBlob = request.method === "GET" && (request.url ?? "").includes("/blobs/")
      if (isBlob && request.headers.authorization !== undefined) ranges.push(request.headers.range)
      if (!isBlob || request.headers.authorization === undefined || whole) {
        onward(request, response)
        return
      }
      const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0)
      const part = readFileSync(image).subarray(start)
      const range = { "content-range": `bytes ${start}-${size - 1}/${size}` }
      response.writeHead(start === 0 ? 200 : 206, {
        "content-length": part.length,
        ...(start === 0 ? {} : range),
      })
      response.write(part.subarray(0, size >> 4), () => response.socket?.end())
    })
    const cacheFolder = newFolder("closed-cache")
    const reference = `oras://${relay.host}/closed:1`
    const oci = { environment, credentials: secret, cacheFolder, retryDelayMs: 1 }
    await refused(pulled("", { reference, oci }), "ERR_OCI_REGISTRY", /broke/)
    const [partial = "", ...others] = filesIn(cacheFolder)
    assert.deepEqual([path.extname(partial), others], [".partial", []])
    assert.equal(statSync(partial).mode & 0o777, 0o600)
    assert.ok((await listCache(cacheFolder)).some(({ isPartial }) => isPartial))
    const have = statSync(partial).size
    assert.ok(have > 0)
    whole = true
    ranges.length = 0
    const found = await pulled("", { reference, oci })
    assert.deepEqual(readFileSync(found.output), readFileSync(image))
    assert.deepEqual(ranges, [`bytes=${have}-`])
    assert.deepEqual(filesIn(cacheFolder), [])
    // Where others could read it, there is none.
    writeFileSync(partial, "", { mode: 0o644 })
    await pulled("", { reference, oci })
    assert.equal(readFileSync(partial, "utf8"), "")
  })

  it("replace nothing unless they are told to, and refuse a digest as a name", async () => {
    const { digest } = await pushed("force:1")
    const output = path.join(newFolder("force"), "image.sif")
    writeFileSync(output, "mine")
    await refused(pulled("force:1", { output }), "ERR_BUILD_EXISTS", /exists/)
    await pulled("force:1", { output, force: true })
    assert.deepEqual(readFileSync(output), readFileSync(image))
    await refused(pushed(`force@${digest}`), "ERR_OCI_REFERENCE", /pushed by a tag/)
    for (const wrong of ["docker://a/b", "oras://", "oras://host", "oras://host/UPPER", "/image"])
      await refused(pushed("", { reference: wrong }), "ERR_OCI_REFERENCE", /./)
  })

  it("are a command: digest on standard output and in a file, a word about a missing signature", async () => {
    const file = path.join(newFolder("digest", userId), "digest")
    const run = await sifcrypt(
      ["push", "--digestfile", file, "--description", "tiny", image, name("cli:1")],
      {
        env: environment,
      },
    )
    assert.equal(run.status, 0, run.stderr)
    const { bytes } = await manifest(registry.host, "cli:1")
    assert.equal(run.text, `${sha256(bytes)}\n`)
    assert.equal(readFileSync(file, "utf8"), run.text)
    assert.match(bytes.toString(), /"org\.opencontainers\.image\.description":"tiny"/)
    assert.match(run.stderr, /carries no signature/)
    const quiet = await sifcrypt(["push", "-U", "--json", image, name("cli:1")], { env: environment })
    assert.doesNotMatch(quiet.stderr, /signature/)
    assert.equal((JSON.parse(quiet.text) as { architecture: string }).architecture, "amd64")
  })

  it("are a command that fetches, by the peers' name for the file or another, and asks for signatures", async () => {
    await pushed("tools/cli:2")
    const cwd = newFolder("pull-cli", userId)
    const run = (...args: readonly string[]): ReturnType<typeof sifcrypt> =>
      sifcrypt(["pull", ...args], { cwd, env: { SIFCRYPT_CACHEDIR: newFolder("pull-cache", userId) } })
    const plain = await run("--json", name("tools/cli:2"))
    assert.equal(plain.status, 0, plain.stderr)
    assert.equal((JSON.parse(plain.text) as { imageDigest: string }).imageDigest, sha256(readFileSync(image)))
    assert.deepEqual(readFileSync(path.join(cwd, "cli_2.sif")), readFileSync(image))
    const again = await run(name("tools/cli:2"))
    assert.equal(again.status, 23, again.stderr)
    const unsigned = await run("--verify", "other.sif", name("tools/cli:2"))
    assert.equal(unsigned.status, 26, unsigned.stderr)
    const folder = await run("--sandbox", "folder", name("tools/cli:2"))
    assert.equal(folder.status, 20, folder.stderr)
    assert.deepEqual(readdirSync(cwd), ["cli_2.sif"])
  })
})
