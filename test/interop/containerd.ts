// A containerd of the live peer's, with imgcrypt's client. Its programs run on this machine, with the libraries that they came with.
import { execFileSync, spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { waitFor } from "../support/processes.ts"
import { peerRoot } from "./peer.ts"

/** How a program of the peer is started outside of its folder. */
export function peerCommand(program: string): readonly [string, ...string[]] {
  const libraries = path.join(
    peerRoot,
    "usr/lib",
    process.arch === "arm64" ? "aarch64-linux-gnu" : "x86_64-linux-gnu",
  )
  const loader = process.arch === "arm64" ? "lib/ld-linux-aarch64.so.1" : "lib64/ld-linux-x86-64.so.2"
  return [path.join(peerRoot, loader), "--library-path", libraries, path.join(peerRoot, "usr/bin", program)]
}

/** With nothing but what decrypts layers: no plugin that looks at this machine. */
const unneeded = [
  "grpc.v1.cri",
  "cri.v1.images",
  "cri.v1.runtime",
  "internal.v1.opt",
  "internal.v1.restart",
  "nri.v1.nri",
]
const snapshotters = ["overlayfs", "devmapper", "btrfs", "zfs", "blockfile", "erofs"]

export class Containerd implements AsyncDisposable {
  readonly #process: ChildProcess
  readonly #socket: string
  readonly snapshots: string

  private constructor(server: ChildProcess, folder: string) {
    this.#process = server
    this.#socket = path.join(folder, "sock")
    this.snapshots = path.join(folder, "root/io.containerd.snapshotter.v1.native/snapshots")
  }

  /** @param decoder - What decrypts layers, with its arguments. */
  static async start(folder: string, decoder: string, args: readonly string[]): Promise<Containerd> {
    mkdirSync(folder, { recursive: true })
    const disabled = [...unneeded, ...snapshotters.map((name) => `snapshotter.v1.${name}`)].map(
      (name) => `io.containerd.${name}`,
    )
    // The client tells those with these names of keys.
    const processors = ["", "+gzip", "+zstd"].map(
      (form) => `
  [stream_processors."io.containerd.ocicrypt.decoder.v1.tar${form.replace("+", ".")}"]
    accepts = ["application/vnd.oci.image.layer.v1.tar${form}+encrypted"]
    returns = "application/vnd.oci.image.layer.v1.tar${form}"
    path = ${JSON.stringify(decoder)}
    args = ${JSON.stringify(args)}`,
    )
    const config = path.join(folder, "config.toml")
    writeFileSync(
      config,
      `version = 3
root = ${JSON.stringify(path.join(folder, "root"))}
state = ${JSON.stringify(path.join(folder, "state"))}
disabled_plugins = ${JSON.stringify(disabled)}
[grpc]
  address = ${JSON.stringify(path.join(folder, "sock"))}
[ttrpc]
  address = ${JSON.stringify(path.join(folder, "sock.ttrpc"))}
[stream_processors]${processors.join("")}
`,
    )
    const namespace = ["--mount", "--propagation", "private"]
    const server = spawn("unshare", [...namespace, ...peerCommand("containerd"), "-c", config], {
      stdio: "ignore",
    })
    const started = new Containerd(server, folder)
    await waitFor("containerd", () => existsSync(started.#socket) || server.exitCode !== null)
    return started
  }

  /** imgcrypt's `ctr-enc`; gives what it prints. */
  client(...args: readonly string[]): string {
    const [program, ...words] = [...peerCommand("ctr-imgcrypt"), "-a", this.#socket, ...args]
    return execFileSync(program, words, {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 20_000,
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode !== null) return
    this.#process.kill("SIGTERM")
    await once(this.#process, "exit")
  }
}
