// Debian's docker-registry on loopback, and images that skopeo pushes there.
import { execFile, spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import { writeFileSync } from "node:fs"
import { connect, createServer } from "node:net"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { promisify } from "node:util"
import { newFolder } from "./scratch.ts"

/** A port that nobody listens at. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const address = server.address()
  server.close()
  await once(server, "close")
  if (address === null || typeof address === "string") throw new Error("no port")
  return address.port
}

export interface RegistryOptions {
  /** htpasswd's line, bcrypt. */
  readonly htpasswd?: string
  readonly tls?: { readonly certificate: string; readonly key: string }
  readonly token?: { readonly realm: string; readonly certificate: string }
  readonly port?: number
}

/** A registry that runs until it is disposed. */
export class Registry implements AsyncDisposable {
  readonly host: string
  readonly folder: string
  readonly #process: ChildProcess

  private constructor(host: string, folder: string, process: ChildProcess) {
    this.host = host
    this.folder = folder
    this.#process = process
  }

  static async start(options: RegistryOptions = {}): Promise<Registry> {
    const folder = newFolder("registry")
    const port = options.port ?? (await freePort())
    const host = `127.0.0.1:${port}`
    const { htpasswd, tls, token } = options
    if (htpasswd !== undefined) writeFileSync(path.join(folder, "htpasswd"), `${htpasswd}\n`)
    const config = {
      version: "0.1",
      log: { level: "error", accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: path.join(folder, "data") } },
      http: { addr: host, ...(tls === undefined ? {} : { tls }) },
      ...(htpasswd === undefined
        ? {}
        : { auth: { htpasswd: { realm: "test", path: path.join(folder, "htpasswd") } } }),
      ...(token === undefined
        ? {}
        : {
            auth: {
              token: {
                realm: token.realm,
                service: "registry",
                issuer: "test",
                rootcertbundle: token.certificate,
              },
            },
          }),
    }
    const file = path.join(folder, "config.yml")
    // YAML takes JSON.
    writeFileSync(file, JSON.stringify(config))
    const process = spawn("docker-registry", ["serve", file], { stdio: "ignore" })
    for (let tries = 0; ; tries++) {
      const socket = connect(port, "127.0.0.1")
      try {
        await once(socket, "connect")
        break
      } catch (cause) {
        if (tries === 100 || process.exitCode !== null)
          throw new Error("the registry does not start", { cause })
        await sleep(50)
      } finally {
        socket.destroy()
      }
    }
    return new Registry(host, folder, process)
  }

  /** Copies an image there by skopeo. */
  async push(source: string, name: string, ...flags: readonly string[]): Promise<void> {
    const common = ["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"]
    await promisify(execFile)("skopeo", [...common, ...flags, source, `docker://${this.host}/${name}`])
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode !== null) return
    this.#process.kill()
    await once(this.#process, "exit")
  }
}
