import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { parseDigest } from "../../../lib/oci/digest.ts"
import { parseDocument, type ImageManifest } from "../../../lib/oci/manifest.ts"
import { artifactManifest, artifactOf, indexWith } from "../../../lib/oci/sif-artifact.ts"
import type { Document } from "../../../lib/oci/sink.ts"

const digestOf = (bytes: Buffer | string): string =>
  `sha256:${createHash("sha256").update(bytes).digest("hex")}`
const manifestType = "application/vnd.oci.image.manifest.v1+json"
const indexType = "application/vnd.oci.image.index.v1+json"
const sif = "application/vnd.sylabs.sif.layer.v1.sif"

const artifact = {
  digest: parseDigest("sha256:a0096c43213807fe4ae7a8c93498374eb775d21e50ffbfdfc961fedb6a7f7b37", "it"),
  size: 45056,
  title: "t.sif",
  annotations: {},
}

function manifestOf(value: unknown): ImageManifest {
  const document = parseDocument(Buffer.from(JSON.stringify(value)), undefined, "it")
  assert.ok(document.kind === "manifest")
  return document
}

describe("artifactManifest", () => {
  it("is what Apptainer 1.4.5 writes", () => {
    const { bytes, descriptor } = artifactManifest(artifact)
    assert.equal(
      bytes.toString(),
      '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":' +
        '"application/vnd.sylabs.sif.config.v1+json","size":2,"digest":' +
        '"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[{"mediaType":' +
        '"application/vnd.sylabs.sif.layer.v1.sif","size":45056,"digest":' +
        '"sha256:a0096c43213807fe4ae7a8c93498374eb775d21e50ffbfdfc961fedb6a7f7b37","annotations":' +
        '{"org.opencontainers.image.title":"t.sif"}}]}',
    )
    assert.equal(descriptor.digest.text, digestOf(bytes))
    assert.equal(descriptor.size, bytes.length)
  })
})

describe("artifactOf", () => {
  const layer = { mediaType: sif, size: 45056, digest: artifact.digest.text }
  const config = { mediaType: "application/vnd.unknown.config.v1+json", size: 0, digest: digestOf("") }
  const docker = "application/vnd.docker.distribution.manifest.v2+json"

  for (const [writer, value] of [
    ["Apptainer 1.2 and oras", { schemaVersion: 2, config, layers: [layer] }],
    ["Apptainer 1.3.0", { schemaVersion: 2, mediaType: docker, config, layers: [layer] }],
    [
      "Singularity 3.6",
      {
        schemaVersion: 2,
        config,
        layers: [{ ...layer, mediaType: "appliciation/vnd.sylabs.sif.layer.tar" }],
      },
    ],
    [
      "oras with an artifact type",
      {
        schemaVersion: 2,
        mediaType: manifestType,
        artifactType: "application/vnd.sylabs.sif.config.v1+json",
        config: { ...config, mediaType: "application/vnd.oci.empty.v1+json", data: "e30=" },
        layers: [layer],
      },
    ],
  ] as const)
    it(`finds the image where ${writer} wrote the manifest`, () => {
      const found = artifactOf(manifestOf(value), "it")
      assert.deepEqual([found.digest.text, found.size], [artifact.digest.text, 45056])
    })

  for (const [what, layers, message] of [
    ["of two layers", [layer, layer], /no SIF, but 2 layers/],
    ["of none", [], /without layers/],
    [
      "of another kind",
      [{ ...layer, mediaType: "application/octet-stream" }],
      /but application\/octet-stream/,
    ],
  ] as const)
    it(`refuses a manifest ${what}`, () => {
      assert.throws(() => artifactOf(manifestOf({ schemaVersion: 2, config, layers }), "it"), {
        code: "ERR_OCI_UNSUPPORTED",
        message,
      })
    })
})

describe("indexWith", () => {
  const manifest = artifactManifest(artifact)
  const json = ({ bytes }: Document): { manifests: Record<string, unknown>[] } =>
    JSON.parse(bytes.toString()) as { manifests: Record<string, unknown>[] }

  it("begins an index", () => {
    const index = indexWith(undefined, manifest, "arm64", "it")
    assert.deepEqual(json(index), {
      schemaVersion: 2,
      mediaType: indexType,
      manifests: [
        {
          mediaType: manifestType,
          size: manifest.descriptor.size,
          digest: manifest.descriptor.digest.text,
          platform: { architecture: "arm64", os: "linux" },
        },
      ],
    })
  })

  it("takes one architecture's place, and leaves the others and what it does not know as they are", () => {
    const entry = (architecture: string, digest: string, more = {}): Record<string, unknown> => ({
      ...{ mediaType: manifestType, digest, size: 1 },
      platform: { os: "linux", architecture },
      ...more,
    })
    const other = entry("s390x", digestOf("a"), { artifactType: "x/y", annotations: { a: "b" } })
    const bytes = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        manifests: [entry("amd64", digestOf("b")), other, entry("amd64", manifest.descriptor.digest.text)],
        annotations: { kept: "yes" },
      }),
    )
    const digest = parseDigest(digestOf(bytes), "it")
    const before = {
      mediaType: indexType,
      digest,
      size: bytes.length,
      annotations: {},
      platform: undefined,
      data: undefined,
    }
    const after = json(indexWith({ bytes, descriptor: before }, manifest, "amd64", "it"))
    assert.equal(after.manifests.length, 2)
    assert.deepEqual(after.manifests[0], other)
    assert.equal(after.manifests[1]!["digest"], manifest.descriptor.digest.text)
    assert.deepEqual((after as unknown as { annotations: unknown }).annotations, { kept: "yes" })
  })

  it("refuses to add to what is no index", () => {
    assert.throws(() => indexWith(manifest, manifest, "amd64", "it"), { code: "ERR_OCI_FORMAT" })
  })
})
