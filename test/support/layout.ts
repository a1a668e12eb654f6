// Layouts under construction: images that are right, to be made wrong in one place.
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import path from "node:path"
import { vectorPath } from "../vectors/load.ts"
import { newFolder } from "./scratch.ts"

export interface JsonDescriptor {
  mediaType: string
  digest: string
  size: number
  platform?: { os: string; architecture: string; variant?: string }
  annotations?: Record<string, string>
}
export interface JsonManifest {
  schemaVersion: number
  mediaType?: string
  config: JsonDescriptor
  layers: JsonDescriptor[]
  manifests?: unknown
}
export interface JsonConfig {
  architecture: string
  os: string
  config: { Env?: string[]; Entrypoint?: string[]; Cmd?: string[]; Labels?: Record<string, string> }
  rootfs: { type: string; diff_ids: string[] }
}

/** A copy of a layout among the vectors; every change keeps digests right unless it is about digests. */
export class Layout {
  readonly folder: string
  config: JsonConfig
  manifest: JsonManifest
  readonly #name: string

  constructor(name = "layout", vector = "oci/layout") {
    this.folder = newFolder(name)
    cpSync(vectorPath(vector), this.folder, { recursive: true })
    const index = JSON.parse(readFileSync(path.join(this.folder, "index.json"), "utf8")) as {
      manifests: JsonDescriptor[]
    }
    this.#name = index.manifests[0]!.annotations?.["org.opencontainers.image.ref.name"] ?? "latest"
    this.manifest = JSON.parse(this.blob(index.manifests[0]!.digest).toString()) as JsonManifest
    this.config = JSON.parse(this.blob(this.manifest.config.digest).toString()) as JsonConfig
  }
  blobPath(digest: string): string {
    return path.join(this.folder, "blobs", ...digest.split(":"))
  }
  blob(digest: string): Buffer {
    return readFileSync(this.blobPath(digest))
  }
  add(bytes: Buffer | string, mediaType: string): JsonDescriptor {
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`
    mkdirSync(path.dirname(this.blobPath(digest)), { recursive: true })
    writeFileSync(this.blobPath(digest), bytes)
    return { mediaType, digest, size: Buffer.byteLength(bytes) }
  }
  /** Writes configuration, manifest and index; returns the manifest's descriptor. */
  write(index?: unknown): JsonDescriptor {
    this.manifest.config = {
      ...this.manifest.config,
      ...this.add(JSON.stringify(this.config), this.manifest.config.mediaType),
    }
    const type = this.manifest.mediaType ?? "application/vnd.oci.image.manifest.v1+json"
    const descriptor = this.add(JSON.stringify(this.manifest), type)
    const named = { ...descriptor, annotations: { "org.opencontainers.image.ref.name": this.#name } }
    this.writeIndex(index ?? { schemaVersion: 2, manifests: [named] })
    return descriptor
  }
  writeIndex(index: unknown): void {
    writeFileSync(path.join(this.folder, "index.json"), JSON.stringify(index))
  }
  remove(): void {
    rmSync(this.folder, { recursive: true })
  }
}

/** An OCI layout of an image of one layer, everything in it one user's: for this machine, or by architectures. */
export function makeLayout(
  folder: string,
  tree: string | Readonly<Record<string, string>>,
  config: object,
  owner: number = 0,
): void {
  mkdirSync(path.join(folder, "blobs", "sha256"), { recursive: true })
  const blob = (bytes: Buffer): { readonly digest: string; readonly size: number } => {
    const hash = createHash("sha256").update(bytes).digest("hex")
    writeFileSync(path.join(folder, "blobs", "sha256", hash), bytes)
    return { digest: `sha256:${hash}`, size: bytes.length }
  }
  const json = (value: object): Buffer => Buffer.from(JSON.stringify(value))
  const kind = (name: string): string => `application/vnd.oci.image.${name}`
  const own = process.arch === "x64" ? "amd64" : process.arch
  const trees = typeof tree === "string" ? { [own]: tree } : tree
  const manifests = Object.entries(trees).map(([architecture, root]) => {
    const tar = execFileSync("tar", [`--owner=${owner}`, `--group=${owner}`, "-C", root, "-c", "."], {
      maxBuffer: 1 << 28,
    })
    const layer = { mediaType: kind("layer.v1.tar"), ...blob(tar) }
    const platform = { architecture, os: "linux" }
    const rootfs = { type: "layers", diff_ids: [layer.digest] }
    const image = { mediaType: kind("config.v1+json"), ...blob(json({ ...platform, config, rootfs })) }
    const manifest = { schemaVersion: 2, mediaType: kind("manifest.v1+json"), config: image, layers: [layer] }
    return { mediaType: kind("manifest.v1+json"), ...blob(json(manifest)), platform }
  })
  const of = (images: readonly object[]): Buffer => json({ schemaVersion: 2, manifests: images })
  const all = { mediaType: kind("index.v1+json"), ...blob(of(manifests)) }
  writeFileSync(path.join(folder, "index.json"), of(manifests.length === 1 ? manifests : [all]))
  writeFileSync(path.join(folder, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}')
}
