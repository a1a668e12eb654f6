// Copies that are not byte for byte: what is chosen of an index, and layers that become something else.
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { buffer } from "node:stream/consumers"
import { copyImage, type LayerMap } from "../../lib/oci/copy.ts"
import { digestOf } from "../../lib/oci/digest.ts"
import { LayoutSink } from "../../lib/oci/layout-sink.ts"
import { findImage } from "../../lib/oci/layout.ts"
import { parsePlatformName } from "../../lib/oci/manifest.ts"
import { Layout, type JsonDescriptor, type JsonManifest } from "../support/layout.ts"
import { newFolder } from "../support/scratch.ts"

const indexType = "application/vnd.oci.image.index.v1+json"

interface Images {
  readonly layout: Layout
  readonly index: JsonDescriptor
  readonly amd: JsonDescriptor
  readonly arm: JsonDescriptor
}

/** For two platforms, with what buildkit adds. */
function images(): Images {
  const layout = new Layout()
  const amd = layout.write()
  layout.config.architecture = "arm64"
  const arm = layout.write()
  layout.manifest.layers = []
  const attestation = layout.write()
  const manifests = [
    { ...arm, platform: { os: "linux", architecture: "arm64", variant: "v8" } },
    { ...amd, platform: { os: "linux", architecture: "amd64" }, annotations: { "example.note": "kept" } },
    { ...attestation, platform: { os: "unknown", architecture: "unknown" } },
  ]
  const bytes = JSON.stringify({ schemaVersion: 2, mediaType: indexType, "x-unknown": [1], manifests })
  const index = layout.add(bytes, indexType)
  layout.writeIndex({ schemaVersion: 2, manifests: [index] })
  return { layout, index, amd, arm }
}

async function copied(
  from: Layout,
  options: { readonly platforms?: readonly string[]; readonly mapLayer?: LayerMap },
): Promise<{
  readonly digest: string
  readonly json: (digest: string) => unknown
  readonly blobs: string[]
}> {
  const folder = newFolder("copied")
  const found = await findImage({ transport: "oci", path: from.folder, selection: {} }, 1 << 30)
  await using store = found.store
  assert.ok("descriptor" in found)
  const { mapLayer, platforms } = options
  const { digest } = await copyImage(
    { store, descriptor: found.descriptor },
    await LayoutSink.open(folder),
    "copy",
    { mapLayer, platforms: platforms?.map(parsePlatformName) },
  )
  const json = (one: string): unknown =>
    JSON.parse(readFileSync(path.join(folder, "blobs", ...one.split(":")), "utf8"))
  return { digest: digest.text, json, blobs: readdirSync(path.join(folder, "blobs", "sha256")) }
}

const turned = (bytes: Buffer): Buffer => Buffer.from(bytes.map((byte) => byte ^ 0xff))

/** Turns every bit of the layers that `isMeant`. */
function turning(
  isMeant: (index: number, platform: string | undefined) => boolean,
  seen: string[] = [],
): LayerMap {
  return async (layer, { store, index, platform }) => {
    seen.push(`${platform?.architecture ?? "?"} ${index}`)
    if (!isMeant(index, platform?.architecture)) return undefined
    const bytes = turned(await buffer(store.stream(layer)))
    return {
      descriptor: {
        ...layer,
        mediaType: `${layer.mediaType}+turned`,
        digest: digestOf(bytes),
        size: bytes.length,
        annotations: { ...layer.annotations, "example.turned": "yes" },
      },
      open: () => [bytes],
    }
  }
}

describe("a copy of what was chosen", () => {
  it("of one platform is its manifest, byte for byte, and nothing of the others", async () => {
    const { layout, amd, arm } = images()
    const one = await copied(layout, { platforms: ["linux/amd64"] })
    assert.equal(one.digest, amd.digest)
    assert.ok(!one.blobs.includes(arm.digest.slice(7)))
    assert.equal((await copied(layout, { platforms: ["arm64"] })).digest, arm.digest)
  })

  it("of several is the index with only these, and all else that it says", async () => {
    const { layout, index, amd, arm } = images()
    const { digest, json } = await copied(layout, { platforms: ["linux/amd64", "linux/arm64"] })
    assert.notEqual(digest, index.digest)
    const made = json(digest) as { manifests: JsonDescriptor[]; "x-unknown": unknown }
    assert.deepEqual(made["x-unknown"], [1])
    assert.deepEqual(
      made.manifests.map((one) => one.digest),
      [arm.digest, amd.digest],
    )
    assert.deepEqual(made.manifests[1]!.annotations, { "example.note": "kept" })
  })

  it("for a platform that there is not is an error, also among others, and of an image that is no index", async () => {
    const { layout } = images()
    const wrong = { code: "ERR_OCI_NOT_FOUND", message: /there is no image for linux\/s390x/ }
    await assert.rejects(copied(layout, { platforms: ["linux/s390x"] }), wrong)
    await assert.rejects(copied(layout, { platforms: ["linux/amd64", "linux/s390x"] }), wrong)
    const single = new Layout()
    single.write()
    await assert.rejects(copied(single, { platforms: ["linux/s390x"] }), {
      code: "ERR_OCI_NOT_FOUND",
      message: /it is for linux\/amd64, not for linux\/s390x/,
    })
  })
})

describe("a copy whose layers become something else", () => {
  it("has them in the manifest, the manifest in the index, and everything else as it was", async () => {
    const { layout, index, amd, arm } = images()
    const seen: string[] = []
    const { digest, json, blobs } = await copied(layout, {
      mapLayer: turning((i, architecture) => i === 0 && architecture === "amd64", seen),
    })
    assert.notEqual(digest, index.digest)
    const made = json(digest) as { manifests: JsonDescriptor[]; "x-unknown": unknown }
    assert.deepEqual(made["x-unknown"], [1])
    const [armNow, amdNow] = made.manifests
    assert.equal(armNow!.digest, arm.digest)
    assert.notEqual(amdNow!.digest, amd.digest)
    assert.deepEqual(amdNow!.annotations, { "example.note": "kept" })
    const before = JSON.parse(layout.blob(amd.digest).toString()) as JsonManifest
    const now = json(amdNow!.digest) as JsonManifest
    const [layer] = now.layers
    const bytes = turned(layout.blob(before.layers[0]!.digest))
    const sha256 = createHash("sha256").update(bytes).digest("hex")
    assert.deepEqual(layer, {
      ...before.layers[0]!,
      mediaType: `${before.layers[0]!.mediaType}+turned`,
      digest: `sha256:${sha256}`,
      size: bytes.length,
      annotations: { "example.turned": "yes" },
    })
    assert.ok(blobs.includes(sha256))
    assert.deepEqual({ ...now, layers: [] }, { ...before, layers: [] })
    assert.deepEqual(now.layers.slice(1), before.layers.slice(1))
    assert.equal(seen.length, 2 * before.layers.length)
  })

  it("knows the platform of an image without an index, by its configuration", async () => {
    const single = new Layout()
    single.write()
    const seen: string[] = []
    const { digest } = await copied(single, { mapLayer: turning(() => false, seen) })
    assert.ok(seen.every((one) => one.startsWith("amd64 ")) && seen.length > 0)
    // Nothing was to change.
    const index = JSON.parse(readFileSync(path.join(single.folder, "index.json"), "utf8")) as {
      manifests: JsonDescriptor[]
    }
    assert.equal(digest, index.manifests[0]!.digest)
  })

  it("writes nothing of a layer that is not what the map says", async () => {
    const single = new Layout()
    single.write()
    const lying: LayerMap = (layer) =>
      Promise.resolve({ descriptor: layer, open: () => [Buffer.alloc(layer.size)] })
    await assert.rejects(copied(single, { mapLayer: lying }), { code: "ERR_OCI_DIGEST" })
  })
})
