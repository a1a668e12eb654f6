// A SIF from an address: with a digest or a signature and not without, whole or not at all, taken up where it broke.
import assert from "node:assert/strict"
import { createHash, generateKeyPairSync } from "node:crypto"
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, pull, sign, type PullOptions } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { Server, type Answer } from "../support/http-server.ts"
import { newFolder } from "../support/scratch.ts"

describe("pull of an address", () => {
  const folder = newFolder("web-file", userId)
  const image = path.join(folder, "image.sif")
  const publicPath = path.join(folder, "signer.pub")
  let bytes: Buffer
  let digest: string

  before(async () => {
    const tree = newFolder("web-file-tree")
    writeFileSync(
      path.join(tree, "noise"),
      Buffer.from(Array.from({ length: 3 << 20 }, (_, i) => (i * i) >> 7)),
    )
    await build({ output: image, source: tree })
    const { privateKey, publicKey } = generateKeyPairSync("ed25519")
    const keyPath = path.join(folder, "signer.pem")
    writeFileSync(keyPath, privateKey.export({ type: "pkcs8", format: "pem" }))
    writeFileSync(publicPath, publicKey.export({ type: "spki", format: "pem" }))
    await sign(image, { keyPath })
    bytes = readFileSync(image)
    digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`
  })

  /** Gives the file, or a part of it; `cut` says after how many bytes of an answer the connection breaks. */
  const giving =
    (cut: () => number = () => Infinity): Answer =>
    (request, response) => {
      const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0)
      const probe = request.headers.range === "bytes=0-0"
      const part = probe ? bytes.subarray(0, 1) : bytes.subarray(start)
      const partial = probe || request.headers.range !== undefined
      response.writeHead(partial ? 206 : 200, {
        "content-length": part.length,
        ...(partial ? { "content-range": `bytes ${start}-${start + part.length - 1}/${bytes.length}` } : {}),
      })
      const limit = probe ? Infinity : cut()
      if (limit >= part.length) response.end(part)
      else response.write(part.subarray(0, limit), () => response.socket?.end())
    }

  const pulled = (host: string, options: Partial<PullOptions> = {}): ReturnType<typeof pull> => {
    const { oci, ...rest } = options
    return pull({
      reference: `http://${host}/some/image.sif?token=secret`,
      output: path.join(newFolder("web-file-pulled"), "image.sif"),
      ...rest,
      oci: { environment: { HOME: folder }, cacheFolder: newFolder("web-cache"), retryDelayMs: 1, ...oci },
    })
  }

  it("is refused where nobody says what has to be there, before anything is asked", async () => {
    await using server = await Server.start(giving())
    await assert.rejects(pulled(server.host), {
      code: "ERR_OCI_REFERENCE",
      message: /a digest of the file or a signer is needed/,
    })
    await assert.rejects(pulled(`name:password@${server.host}`, { digest }), { code: "ERR_OCI_REFERENCE" })
    assert.deepEqual(server.heard, [])
  })

  it("brings what the digest or the signer says, and gives no name to anything else", async () => {
    await using server = await Server.start(giving())
    const verify = { keyPaths: [publicPath] }
    for (const asked of [
      { digest },
      { verify },
      { digest, verify },
      { digest, oci: { disableCache: true } },
    ]) {
      const found = await pulled(server.host, asked)
      assert.deepEqual([found.imageDigest, found.digest, found.title], [digest, undefined, "image.sif"])
      assert.deepEqual(readFileSync(found.output), bytes)
      assert.equal(statSync(found.output).mode & 0o711, 0o711)
    }
    const output = path.join(newFolder("web-file-refused"), "image.sif")
    const other = `sha256:${"0".repeat(64)}`
    for (const oci of [{}, { disableCache: true }])
      await assert.rejects(pulled(server.host, { output, digest: other, oci }), { code: "ERR_OCI_DIGEST" })
    await assert.rejects(pulled(server.host, { output, verify: { ...verify, require: ["0".repeat(64)] } }))
    await assert.rejects(pulled(server.host, { output, digest, oci: { maxLayerBytes: bytes.length - 1 } }), {
      code: "ERR_OCI_LIMIT",
    })
    assert.deepEqual(readdirSync(path.dirname(output)), [])
  })

  it("goes on where the connection broke, and where an earlier try was ended", async () => {
    let left = 2
    await using server = await Server.start(giving(() => (left-- > 0 ? bytes.length >> 4 : Infinity)))
    assert.equal((await pulled(server.host, { digest })).imageDigest, digest)
    assert.ok(server.heard.filter(({ range }) => /^bytes=[1-9]\d*-$/.test(range ?? "")).length >= 2)
    const cacheFolder = newFolder("web-cache")
    left = Infinity
    await assert.rejects(pulled(server.host, { digest, oci: { cacheFolder } }), { code: "ERR_OCI_REGISTRY" })
    left = 0
    server.heard.length = 0
    await pulled(server.host, { digest, oci: { cacheFolder } })
    const ranges = server.heard.map(({ range }) => range)
    assert.deepEqual(
      [ranges[0], /^bytes=[1-9]\d*-$/.test(ranges[1] ?? "")],
      ["bytes=0-0", true],
      ranges.join(),
    )
  })

  it("is nothing where the server does not keep to what it has said", async () => {
    const output = path.join(newFolder("web-file-liar"), "image.sif")
    for (const [answer, code] of [
      // It does not say how much it is.
      [
        (_, response) => void response.writeHead(200, { "transfer-encoding": "chunked" }).end("x"),
        "ERR_OCI_REGISTRY",
      ],
      // More, and less.
      [
        (_, response) => void response.writeHead(206, { "content-range": "bytes 0-0/3" }).end(bytes),
        "ERR_OCI_DIGEST",
      ],
      [(_, response) => void response.writeHead(404).end(), "ERR_OCI_NOT_FOUND"],
      [
        (_, response) => void response.writeHead(302, { location: "file:///etc/passwd" }).end(),
        "ERR_OCI_REGISTRY",
      ],
    ] as const satisfies readonly (readonly [Answer, string])[]) {
      await using server = await Server.start(answer)
      await assert.rejects(pulled(server.host, { output, digest }), (error: Error & { code?: string }) => {
        assert.equal(error.code, code, error.stack)
        assert.doesNotMatch(error.message, /token=secret/)
        return true
      })
    }
    assert.deepEqual(readdirSync(path.dirname(output)), [])
  })

  it("is a command, which calls the file as the address does", async () => {
    await using server = await Server.start(giving())
    const cwd = newFolder("web-file-cli", userId)
    const env = { SIFCRYPT_CACHEDIR: newFolder("web-cache", userId) }
    const address = `http://${server.host}/some/tool.sif?x=1`
    const refused = await sifcrypt(["pull", address], { cwd, env })
    assert.equal(refused.status, 20)
    assert.match(refused.stderr, /--digest sha256:\.\.\. says which file/)
    await sifcryptOk(["pull", "--digest", digest, address], { cwd, env })
    assert.deepEqual(readFileSync(path.join(cwd, "tool.sif")), bytes)
  })
})
