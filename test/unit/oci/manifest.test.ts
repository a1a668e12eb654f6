import assert from "node:assert/strict"
import {
  checkLayerTypes,
  parseConfig,
  parseDocument,
  parsePlatformName,
  platformFits,
  platformOf,
} from "../../../lib/oci/manifest.ts"

const digest = `sha256:${"ab".repeat(32)}`
const manifestType = "application/vnd.oci.image.manifest.v1+json"
const indexType = "application/vnd.oci.image.index.v1+json"
const layerType = "application/vnd.oci.image.layer.v1.tar+gzip"
const configType = "application/vnd.oci.image.config.v1+json"

const config = { mediaType: configType, digest, size: 2 }
const layer = { mediaType: layerType, digest, size: 3 }
const manifest = { schemaVersion: 2, mediaType: manifestType, config, layers: [layer] }
const index = {
  schemaVersion: 2,
  mediaType: indexType,
  manifests: [{ mediaType: manifestType, digest, size: 4, platform: { os: "linux", architecture: "arm64" } }],
}
const bytesOf = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
const parse = (value: unknown, type?: string): ReturnType<typeof parseDocument> =>
  parseDocument(bytesOf(value), type, "it")

describe("parseDocument", () => {
  it("reads a manifest and an index", () => {
    const found = parse(manifest, manifestType)
    assert.equal(found.kind, "manifest")
    assert.deepEqual([found.config.size, found.layers[0]?.size], [2, 3])
    const several = parse(index)
    assert.equal(several.kind, "index")
    assert.equal(several.manifests[0]?.platform?.architecture, "arm64")
  })

  for (const [what, code, value, type] of [
    ["both in one", "ERR_OCI_FORMAT", { ...manifest, manifests: [] }],
    ["neither", "ERR_OCI_FORMAT", { schemaVersion: 2 }],
    [
      "a manifest that is announced as an index",
      "ERR_OCI_FORMAT",
      { ...manifest, mediaType: undefined },
      indexType,
    ],
    ["an index that calls itself a manifest", "ERR_OCI_FORMAT", { ...index, mediaType: manifestType }],
    ["another type than was announced", "ERR_OCI_FORMAT", manifest, indexType],
    ["a type that is no text", "ERR_OCI_FORMAT", { ...manifest, mediaType: 7 }],
    ["a type that nobody knows", "ERR_OCI_UNSUPPORTED", { ...manifest, mediaType: "text/plain" }],
    ["no version", "ERR_OCI_FORMAT", { ...manifest, schemaVersion: undefined }],
    ["schema 1", "ERR_OCI_UNSUPPORTED", { schemaVersion: 1, fsLayers: [] }],
    ["a list", "ERR_OCI_FORMAT", []],
    ["layers that are no list", "ERR_OCI_FORMAT", { ...manifest, layers: {} }],
    ["a layer that is none", "ERR_OCI_FORMAT", { ...manifest, layers: [null] }],
    ["no configuration", "ERR_OCI_FORMAT", { ...manifest, config: undefined }],
    ["a negative size", "ERR_OCI_FORMAT", { ...manifest, layers: [{ ...layer, size: -1 }] }],
    [
      "a size beyond what numbers hold",
      "ERR_OCI_FORMAT",
      { ...manifest, layers: [{ ...layer, size: 2 ** 53 }] },
    ],
    ["a size that is text", "ERR_OCI_FORMAT", { ...manifest, layers: [{ ...layer, size: "3" }] }],
    [
      "a digest that is a path",
      "ERR_OCI_FORMAT",
      { ...manifest, layers: [{ ...layer, digest: "sha256:../x" }] },
    ],
    [
      "annotations that are no texts",
      "ERR_OCI_FORMAT",
      { ...manifest, layers: [{ ...layer, annotations: { a: 1 } }] },
    ],
  ] as const)
    it(`S15: refuses ${what}`, () => {
      assert.throws(() => parse(value, type), { code })
    })

  it("S35: has a code for what is no JSON, or nested without end", () => {
    for (const text of ["", "{", "\0", "[".repeat(200_000)])
      assert.throws(() => parseDocument(Buffer.from(text), undefined, "it"), { code: "ERR_OCI_FORMAT" })
  })
})

describe("checkLayerTypes", () => {
  const check = (changes: object): void => {
    const found = parse({ ...manifest, ...changes })
    assert.equal(found.kind, "manifest")
    checkLayerTypes(found, "it")
  }

  it("takes layers that can be read", () => {
    for (const mediaType of [layerType, "application/vnd.docker.image.rootfs.diff.tar.gzip"])
      check({ layers: [{ ...layer, mediaType }] })
  })

  it("refuses what is no image, has no layers, or layers of which nobody knows what they are", () => {
    for (const changes of [
      { config: { ...config, mediaType: "application/vnd.sylabs.sif.config.v1+json" } },
      { layers: [] },
      { layers: [layer, { ...layer, mediaType: "application/octet-stream" }] },
    ])
      assert.throws(
        () => {
          check(changes)
        },
        { code: "ERR_OCI_UNSUPPORTED" },
      )
  })
})

describe("parseConfig", () => {
  it("reads what is used, and takes null for nothing", () => {
    const found = parseConfig(
      bytesOf({
        architecture: "arm",
        variant: "v7",
        rootfs: { diff_ids: [digest] },
        config: { Env: ["A=b"], Cmd: null, Labels: null },
      }),
      "it",
    )
    assert.deepEqual(found.platform, { os: "linux", architecture: "arm", variant: "v7" })
    assert.deepEqual([found.env, found.cmd, found.labels, found.diffIds.length], [["A=b"], [], {}, 1])
  })

  for (const [what, value] of [
    ["no layers' digests", {}],
    ["a digest that is none", { rootfs: { diff_ids: ["x"] } }],
    ["an environment that is a text", { rootfs: { diff_ids: [] }, config: { Env: "A=b" } }],
    ["labels that are numbers", { rootfs: { diff_ids: [] }, config: { Labels: { a: 1 } } }],
    ["a config that is a list", { rootfs: { diff_ids: [] }, config: [] }],
  ] as const)
    it(`refuses ${what}`, () => {
      assert.throws(() => parseConfig(bytesOf(value), "it"), { code: "ERR_OCI_FORMAT" })
    })
})

describe("platforms", () => {
  it("are read as others write them", () => {
    for (const [name, os, architecture, variant] of [
      ["linux/amd64", "linux", "amd64", undefined],
      ["linux/arm/v6", "linux", "arm", "v6"],
      ["arm/v6", "linux", "arm", "v6"],
      ["x86_64", "linux", "amd64", undefined],
      ["windows/amd64", "windows", "amd64", undefined],
    ] as const)
      assert.deepEqual(parsePlatformName(name), { os, architecture, variant }, name)
    for (const name of ["", "/", "linux/", "a/b/c/d", "linux amd64"])
      assert.throws(() => parsePlatformName(name), { code: "ERR_OCI_REFERENCE" }, name)
  })

  it("go by the names that people, Node and Go have for them", () => {
    for (const [asked, os, architecture, variant] of [
      ["x64", "linux", "amd64", undefined],
      ["aarch64", "linux", "arm64", undefined],
      ["arm32v6", "linux", "arm", "v6"],
      ["arm/v5", "linux", "arm", "v5"],
      ["riscv64", "linux", "riscv64", undefined],
    ] as const)
      assert.deepEqual(platformOf(asked), { os, architecture, variant }, asked)
  })

  it("fit where what they run on does", () => {
    const found = (architecture: string, variant?: string): boolean =>
      platformFits({ os: "linux", architecture, variant }, platformOf("arm64v8"))
    assert.deepEqual(
      [found("arm64"), found("arm64", "v8"), found("arm64", "v9"), found("amd64")],
      [true, true, false, false],
    )
    assert.equal(
      platformFits({ os: "windows", architecture: "amd64", variant: undefined }, platformOf("x64")),
      false,
    )
  })
})
