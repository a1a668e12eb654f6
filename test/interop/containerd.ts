// A containerd of the live peer's, with imgcrypt's client. Its programs run on this machine, with the libraries that they came with.
import { execFileSync, spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdirSync, writeFileSync } from "node:fs"
import { connect, type IncomingHttpHeaders } from "node:http2"
import { connect as netConnect } from "node:net"
import path from "node:path"
import { fieldHead } from "../../lib/ocicrypt/protobuf.ts"
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
const unneeded = ["internal.v1.opt", "internal.v1.restart", "nri.v1.nri"]
const kubernetes = ["grpc.v1.cri", "cri.v1.images", "cri.v1.runtime"]
/** What asks in the name of Kubernetes is a configuration of its own. Keys are the node's. */
const kubernetesImages = (folder: string): string => `
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
  use_local_image_pull = true
  image_decryption = { key_model = "node" }
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [${JSON.stringify(folder)}]
  conf_dir = ${JSON.stringify(folder)}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "native"
`
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

  /**
   * @param decoder - What decrypts layers, with its arguments.
   * @param isNode - Is it one of Kubernetes, which asks it for images?
   */
  static async start(
    folder: string,
    decoder: string,
    args: readonly string[],
    isNode = false,
  ): Promise<Containerd> {
    mkdirSync(folder, { recursive: true })
    const others = isNode ? unneeded : [...unneeded, ...kubernetes]
    const disabled = [...others, ...snapshotters.map((name) => `snapshotter.v1.${name}`)].map(
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
${isNode ? kubernetesImages(folder) : ""}[stream_processors]${processors.join("")}
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

  /** imgcrypt's `ctr-enc`, for somebody who starts it. */
  command(...args: readonly string[]): readonly [program: string, args: readonly string[]] {
    const [program, ...words] = peerCommand("ctr-imgcrypt")
    return [program, [...words, "-a", this.#socket, ...args]]
  }

  /** The same; gives what it prints. */
  client(...args: readonly string[]): string {
    const [program, words] = this.command(...args)
    return execFileSync(program, words, {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 20_000,
    })
  }

  /**
   * Asks for an image as a kubelet does (Kubernetes' Container Runtime Interface, v1: PullImage), which also unpacks it.
   *
   * @returns What gRPC says of the outcome; 0 is success.
   */
  async pull(image: string): Promise<{ readonly status: string; readonly message: string }> {
    const field = (number: number, bytes: Buffer): Buffer =>
      Buffer.concat([fieldHead(number, bytes.length), bytes])
    const request = field(1, field(1, Buffer.from(image)))
    const head = Buffer.alloc(5)
    head.writeUInt32BE(request.length, 1)
    const session = connect("http://localhost", { createConnection: () => netConnect(this.#socket) })
    try {
      const stream = session.request({
        ":method": "POST",
        ":path": "/runtime.v1.ImageService/PullImage",
        te: "trailers",
        "content-type": "application/grpc",
      })
      let said: IncomingHttpHeaders = {}
      const hear = (headers: IncomingHttpHeaders): void => {
        said = { ...said, ...headers }
      }
      stream.on("response", hear).on("trailers", hear).resume()
      stream.end(Buffer.concat([head, request]))
      await once(stream, "close")
      const { "grpc-status": status = "none", "grpc-message": message = "" } = said
      return { status: String(status), message: decodeURIComponent(String(message)) }
    } finally {
      session.destroy()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode !== null) return
    this.#process.kill("SIGTERM")
    await once(this.#process, "exit")
  }
}
