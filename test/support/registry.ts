// Debian's docker-registry on loopback, and images that skopeo pushes there.
import { execFile, spawn, type ChildProcess } from "node:child_process"
import { createPrivateKey, sign, X509Certificate } from "node:crypto"
import { once } from "node:events"
import { readFileSync, writeFileSync } from "node:fs"
import { connect, createServer } from "node:net"
import path from "node:path"
import { text } from "node:stream/consumers"
import { setTimeout as sleep } from "node:timers/promises"
import { promisify } from "node:util"
import { certificate, Server } from "./http-server.ts"
import { newFolder } from "./scratch.ts"

/** Of user:secret, by Python's crypt: nothing that is installed here writes bcrypt. */
export const htpasswd = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
export const basic: string = `Basic ${Buffer.from("user:secret").toString("base64")}`
export const secret: { readonly username: string; readonly password: Buffer } = {
  username: "user",
  password: Buffer.from("secret"),
}

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

/** Gives tokens: to user:secret and to who shows `identity` for whatever they want, to nobody for `public`. */
export interface Tokens extends AsyncDisposable {
  /** For a registry that takes them. */
  readonly registry: NonNullable<RegistryOptions["token"]>
  /** What was shown, for each token. */
  readonly asked: (string | undefined)[]
  readonly tokenFor: (service: string | null, scopes: readonly string[], known: boolean) => string
}

export async function startTokens(): Promise<Tokens> {
  const { key, certificate: file } = certificate()
  const x5c = [new X509Certificate(readFileSync(file)).raw.toString("base64")]
  const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url")
  const tokenFor: Tokens["tokenFor"] = (service, scopes, known) => {
    const access = scopes.map((scope) => {
      const [type, name, actions = ""] = scope.split(":")
      const public_ = name === "public" ? actions.split(",").filter((action) => action === "pull") : []
      return { type, name, actions: known ? actions.split(",") : public_ }
    })
    const now = Math.floor(Date.now() / 1000)
    const claims = { iss: "test", aud: service, sub: "", exp: now + 300, nbf: now - 10, iat: now }
    const body = `${encode({ typ: "JWT", alg: "RS256", x5c })}.${encode({ ...claims, jti: String(now), access })}`
    return `${body}.${sign("sha256", Buffer.from(body), createPrivateKey(readFileSync(key))).toString("base64url")}`
  }
  const asked: (string | undefined)[] = []
  const server = await Server.start((request, response) => {
    void text(request).then((body) => {
      const form = new URLSearchParams(body)
      const query = request.method === "POST" ? form : new URL(request.url ?? "", "http://x").searchParams
      const shown = form.get("refresh_token") ?? request.headers.authorization
      asked.push(shown)
      if (shown !== undefined && shown !== basic && shown !== "identity") {
        response.statusCode = 401
        response.end("{}")
        return
      }
      const scopes = query.getAll("scope").flatMap((scope) => scope.split(" "))
      const token = tokenFor(query.get("service"), scopes, shown !== undefined)
      response.end(JSON.stringify(request.method === "POST" ? { access_token: token } : { token }))
    })
  })
  return {
    registry: { realm: `http://${server.host}/token`, certificate: file },
    asked,
    tokenFor,
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  }
}
