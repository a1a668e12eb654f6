// Images whose layers other programs have encrypted, each with every key that opens it; and evil ones, of which nothing plain leaves.
import assert from "node:assert/strict"
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { Readable, Writable } from "node:stream"
import { build, oci, type CredentialSource } from "../../lib/index.ts"
import { decoderPayload } from "../support/layer-payload.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"

interface Expected {
  readonly keys: readonly string[]
  /** Of each image: digests of its layers as they were; null of one that is plain. */
  readonly layers: readonly (readonly (string | null)[])[]
}
interface Json {
  readonly digest: string
  readonly mediaType: string
  readonly annotations: Readonly<Record<string, string>>
  readonly manifests?: readonly Json[]
  readonly layers?: readonly Json[]
}

const expected = JSON.parse(readFileSync(vectorPath("ocicrypt/images.json"), "utf8")) as Readonly<
  Record<string, Expected>
>
const keyFile = (name: string): string => vectorPath(`ocicrypt/keys/${name}`)
const folder = newFolder("encrypted-vectors")

function blob(layout: string, digest: string): Buffer {
  return readFileSync(path.join(layout, "blobs", ...digest.split(":")))
}
/** The layers of each image that a name leads to. */
function layersOf(layout: string, name: string): (readonly Json[])[] {
  const { manifests = [] } = JSON.parse(readFileSync(path.join(layout, "index.json"), "utf8")) as Json
  const waiting = manifests.filter(
    ({ annotations }) => annotations["org.opencontainers.image.ref.name"] === name,
  )
  const found: (readonly Json[])[] = []
  for (let next; (next = waiting.shift()) !== undefined;) {
    const document = JSON.parse(blob(layout, next.digest).toString()) as Json
    if (document.layers !== undefined) found.push(document.layers)
    waiting.push(...(document.manifests ?? []))
  }
  return found
}

describe("images that other programs have encrypted", () => {
  const configuration = path.join(folder, "keyprovider.conf")
  const toy = path.join(import.meta.dirname, "../support/toy-key-provider.mjs")
  const cmd = { path: process.execPath, args: [toy, path.join(folder, "transcript")] }
  writeFileSync(configuration, JSON.stringify({ "key-providers": { toy: { cmd } } }), { mode: 0o600 })
  const credential = (key: string): CredentialSource =>
    key.startsWith("provider:")
      ? { provider: key.slice("provider:".length), configuration }
      : { key: { file: keyFile(key) } }
  const source = (name: string): string => `oci:${vectorPath("ocicrypt/images")}:${name}`

  for (const [name, { keys, layers }] of Object.entries(expected))
    it(`${name} opens with ${keys.join(", ")}`, async () => {
      const wanted = layers.map((image) => image.filter((one) => one !== null))
      const isPartial = layers.some((image) => image.includes(null))
      for (const key of keys) {
        const target = path.join(folder, name, String(keys.indexOf(key)))
        const options = { source: source(name), target: `oci:${target}:it`, unlock: [credential(key)] }
        if (isPartial) await assert.rejects(oci.decrypt(options), { code: "ERR_OCI_PARTIAL" })
        await oci.decrypt({ ...options, oci: { allowPartial: isPartial } })
        const before = layersOf(vectorPath("ocicrypt/images"), name)
        const made = layersOf(target, "it").map((image, i) =>
          image.flatMap(({ digest }, j) => (digest === before[i]?.[j]?.digest ? [] : [digest])),
        )
        assert.deepEqual(made, wanted, key)
      }
    })
})

describe("evil images with encrypted layers", () => {
  const evil = vectorPath("ocicrypt/bad")
  const codes: Readonly<Record<string, string>> = {
    "bad-hmac": "ERR_OCI_MAC",
    "jwe-alg-confusion": "ERR_KEY_MISMATCH",
    "no-hmac": "ERR_OCI_FORMAT",
    "no-pubopts": "ERR_OCI_FORMAT",
    "plaintext-substituted": "ERR_OCI_PARTIAL",
    "public-nonce": "ERR_OCI_FORMAT",
    "swapped-layers": "ERR_OCI_DIGEST",
    "tampered-tail": "ERR_OCI_MAC",
    truncated: "ERR_OCI_MAC",
    "unknown-cipher": "ERR_OCI_UNSUPPORTED",
  }
  const unlock = [{ key: { file: keyFile("rsa1.pem") } }]

  it("are all that there are", () => {
    const { manifests = [] } = JSON.parse(readFileSync(path.join(evil, "index.json"), "utf8")) as Json
    const names = manifests.map(({ annotations }) => annotations["org.opencontainers.image.ref.name"])
    assert.deepEqual(names, Object.keys(codes).sort())
  })

  for (const [name, code] of Object.entries(codes))
    it(`${name} is refused, and nothing of it is written`, async () => {
      const source = `oci:${evil}:${name}`
      const target = path.join(folder, `bad-${name}`)
      await assert.rejects(oci.decrypt({ source, target: `oci:${target}:it`, unlock }), { code })
      const left = existsSync(target) ? readdirSync(target, { recursive: true }).map(String) : []
      assert.deepEqual(
        left.filter((file) => /[0-9a-f]{64}/.test(file)),
        [],
      )
      const output = path.join(folder, `bad-${name}.sif`)
      // It has one layer of those that its configuration names.
      const earlier = name === "tampered-tail" ? "ERR_OCI_FORMAT" : code
      await assert.rejects(build({ source, output, unlock, architecture: "amd64" }), { code: earlier })
      assert.equal(existsSync(output), false)
      // Of a layer by itself nobody can say which place it has.
      if (code === "ERR_OCI_PARTIAL" || code === "ERR_OCI_DIGEST") return
      const [layers = []] = layersOf(evil, name)
      let refused = 0
      for (const layer of layers) {
        let written = 0
        const sink = new Writable({
          write(chunk: Buffer, _, done): void {
            written += chunk.length
            done()
          },
        })
        const input = Readable.from([blob(evil, layer.digest)])
        const payload = { bytes: decoderPayload(layer, [readFileSync(keyFile("rsa1.pem"))]) }
        const failure = await oci.decodeLayer({ payload, input, output: sink }).then(
          ({ size }) => {
            assert.equal(written, size)
            return undefined
          },
          (error: unknown) => error as { code?: string },
        )
        if (failure === undefined) continue
        refused++
        assert.deepEqual([failure.code, written], [code, 0])
      }
      assert.ok(refused > 0)
    })
})
