// Layouts to measure with, and what processes put on a disk.
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"

const types = "application/vnd.oci.image"

interface Blob {
  readonly digest: string
  readonly size: number
}

class LayoutFolder {
  readonly #folder: string
  readonly #blobs: string

  constructor(folder: string) {
    this.#folder = folder
    this.#blobs = path.join(folder, "blobs", "sha256")
    mkdirSync(this.#blobs, { recursive: true })
  }
  add(bytes: Buffer | string): Blob {
    const hex = createHash("sha256").update(bytes).digest("hex")
    writeFileSync(path.join(this.#blobs, hex), bytes)
    return { digest: `sha256:${hex}`, size: Buffer.byteLength(bytes) }
  }
  link(file: string, digest: string): Blob {
    linkSync(file, path.join(this.#blobs, digest.slice("sha256:".length)))
    return { digest, size: statSync(file).size }
  }
  finish(layers: readonly Blob[], layerType: string, diffIds: readonly string[]): void {
    const os = { os: "linux", architecture: process.arch === "x64" ? "amd64" : process.arch }
    const rootfs = { type: "layers", diff_ids: diffIds }
    const config = this.add(JSON.stringify({ ...os, config: { Cmd: ["/bin/bash"] }, rootfs }))
    const mediaType = `${types}.manifest.v1+json`
    const manifest = this.add(
      JSON.stringify({
        ...{ schemaVersion: 2, mediaType },
        config: { mediaType: `${types}.config.v1+json`, ...config },
        layers: layers.map((layer) => ({ mediaType: layerType, ...layer })),
      }),
    )
    const annotations = { "org.opencontainers.image.ref.name": "latest" }
    writeFileSync(path.join(this.#folder, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}')
    writeFileSync(
      path.join(this.#folder, "index.json"),
      JSON.stringify({ schemaVersion: 2, manifests: [{ mediaType, ...manifest, annotations }] }),
    )
  }
}

/** A layout with the tree as its only layer. */
export function layoutOf(tree: string, folder: string): void {
  const layout = new LayoutFolder(folder)
  const tar = execFileSync("tar", ["-c", "--owner=0", "--group=0", "-C", tree, "."], { maxBuffer: 2 ** 31 })
  const diffId = `sha256:${createHash("sha256").update(tar).digest("hex")}`
  const layer = layout.add(execFileSync("gzip", ["-6"], { input: tar, maxBuffer: 2 ** 31 }))
  layout.finish([layer], `${types}.layer.v1.tar+gzip`, [diffId])
}

/** A layout whose only layer is a file, whatever is in that. */
export function layoutOfFile(file: string, digest: string, folder: string): void {
  const layout = new LayoutFolder(folder)
  layout.finish([layout.link(file, digest)], `${types}.layer.v1.tar`, [digest])
}

/** A layout with a layer of each of these. */
export function layoutOfLayers(contents: readonly Buffer[], folder: string): void {
  const layout = new LayoutFolder(folder)
  const layers = contents.map((bytes) => layout.add(bytes))
  layout.finish(
    layers,
    `${types}.layer.v1.tar`,
    layers.map(({ digest }) => digest),
  )
}

function readSafely(file: string): string {
  try {
    return readFileSync(file, "utf8")
  } catch {
    return ""
  }
}

function listSafely(name: string): string[] {
  try {
    return readdirSync(name, { recursive: true, encoding: "utf8" })
  } catch {
    return []
  }
}

/** Bytes on disk, by device and inode, of what a process has open to write, named or not, and of what lies in a folder. */
export function filesOnDisk(pid: number, folder: string): Map<string, number> {
  const files = new Map<string, number>()
  const count = (name: string): void => {
    try {
      const { dev, ino, blocks, mode } = statSync(name)
      if ((mode & 0o170000) === 0o100000) files.set(`${dev}:${ino}`, blocks * 512)
    } catch {
      // Gone, or not to be looked at.
    }
  }
  const isMemory = (fd: string): boolean => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith("/memfd:")
    } catch {
      return true
    }
  }
  for (const name of listSafely(folder)) count(path.join(folder, name))
  for (const fd of listSafely(`/proc/${pid}/fd`))
    // What it only reads (itself, libraries) is not its doing, and neither is where its messages go.
    if (
      Number(fd) > 2 &&
      /^flags:\s+\d*[12]$/m.test(readSafely(`/proc/${pid}/fdinfo/${fd}`)) &&
      !isMemory(fd)
    )
      count(`/proc/${pid}/fd/${fd}`)
  return files
}
