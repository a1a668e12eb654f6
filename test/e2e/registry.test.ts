import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash, createPrivateKey, sign, X509Certificate } from "node:crypto"
import { once } from "node:events"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs"
import http from "node:http"
import type { AddressInfo } from "node:net"
import path from "node:path"
import { build, cleanCache, listCache, type BuildOptions } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk } from "../support/cli.ts"
import { imageTree } from "../support/image-tree.ts"
import { Layout } from "../support/layout.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"

/** Of user:secret, by Python's crypt: nothing that is installed here writes bcrypt. */
const htpasswd = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"

interface Heard {
  readonly method: string
  readonly url: string
  readonly authorization: string | undefined
  readonly range: string | undefined
}
type Answer = (request: http.IncomingMessage, response: http.ServerResponse) => void

/** A registry of the test's own, for what a good one never does. */
class Server implements AsyncDisposable {
  readonly heard: Heard[] = []
  readonly #server: http.Server

  private constructor(answer: Answer) {
    this.#server = http.createServer((request, response) => {
      const { method = "", url = "", headers } = request
      this.heard.push({ method, url, authorization: headers.authorization, range: headers.range })
      answer(request, response)
    })
  }
  static async start(answer: Answer): Promise<Server> {
    const server = new Server(answer)
    server.#server.listen(0, "127.0.0.1")
    await once(server.#server, "listening")
    return server
  }
  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, "close")
  }
}

const layout = new Layout()
const root = layout.write()
const manifestType = root.mediaType

/** Serves the layout's manifest and blobs; `first` may answer instead. */
function serving(
  first: (request: http.IncomingMessage, response: http.ServerResponse) => boolean = () => false,
): Answer {
  return (request, response) => {
    if (first(request, response)) return
    const url = request.url ?? ""
    if (url.includes("/manifests/")) {
      response.setHeader("content-type", manifestType)
      response.end(layout.blob(root.digest))
    } else if (url.includes("/blobs/")) {
      response.end(layout.blob(url.split("/").at(-1)!))
    } else response.end("{}")
  }
}

describe("registries", () => {
  const folder = newFolder("registries")
  let count = 0
  let cacheFolder = ""
  beforeEach(() => {
    cacheFolder = path.join(folder, `cache-${++count}`)
  })

  const none = { HOME: path.join(folder, "nobody") }
  async function built(
    source: string,
    oci: BuildOptions["oci"] = {},
    more: Partial<BuildOptions> = {},
  ): Promise<string> {
    const output = path.join(folder, `${++count}.sif`)
    await build({
      output,
      source,
      architecture: "amd64",
      oci: { environment: none, cacheFolder, retryDelayMs: 1, ...oci },
      ...more,
    })
    return output
  }
  async function isWhole(image: string): Promise<void> {
    const tree = await imageTree(image)
    assert.equal(tree.get("usr/bin/tool")?.mode, 0o4755)
    assert.equal(tree.get("opt/opaque/new")?.type, "file")
  }
  const refused = (promise: Promise<string>, code: string, message: RegExp): Promise<void> =>
    assert.rejects(promise, (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })

  describe("of Debian, with images pushed by skopeo", () => {
    it("give an image by tag and by digest; S13: one line says where it comes from", async () => {
      await using registry = await Registry.start()
      await registry.push(`oci:${vectorPath("oci/layout")}`, "group/image:1")
      const notices: string[] = []
      const onNotice = (text: string): void => {
        notices.push(text)
      }
      await isWhole(await built(`docker://${registry.host}/group/image:1`, {}, { onNotice }))
      assert.deepEqual(notices, [`${registry.host}/group/image:1 comes from http://${registry.host}`])
      const digest = execFileSync(
        "skopeo",
        [
          "inspect",
          "--tls-verify=false",
          "--format",
          "{{.Digest}}",
          `docker://${registry.host}/group/image:1`,
        ],
        { encoding: "utf8" },
      ).trim()
      await isWhole(await built(`docker://${registry.host}/group/image@${digest}`))
      await refused(
        built(`docker://${registry.host}/group/image:2`),
        "ERR_OCI_NOT_FOUND",
        /404.*MANIFEST_UNKNOWN/,
      )
    })

    it("give Docker's own manifests, zstd layers and indexes of several platforms", async () => {
      await using registry = await Registry.start()
      await registry.push(`oci:${vectorPath("oci/layout")}`, "docker:1", "--format", "v2s2")
      await isWhole(await built(`docker://${registry.host}/docker:1`))
      await registry.push(
        `oci:${vectorPath("oci/layout")}`,
        "zstd:1",
        "--dest-compress-format",
        "zstd",
        "--dest-compress",
      )
      await isWhole(await built(`docker://${registry.host}/zstd:1`))
      const many = new Layout()
      const amd = many.write()
      many.config.architecture = "arm64"
      const arm = many.write()
      many.writeIndex({
        schemaVersion: 2,
        manifests: [
          {
            ...many.add(
              JSON.stringify({
                schemaVersion: 2,
                mediaType: "application/vnd.oci.image.index.v1+json",
                manifests: [
                  { ...arm, platform: { os: "linux", architecture: "arm64" } },
                  { ...amd, platform: { os: "linux", architecture: "amd64" } },
                ],
              }),
              "application/vnd.oci.image.index.v1+json",
            ),
            annotations: { "org.opencontainers.image.ref.name": "many" },
          },
        ],
      })
      await registry.push(`oci:${many.folder}:many`, "many:1", "--all")
      await isWhole(await built(`docker://${registry.host}/many:1`))
      const arm64 = await sifcryptOk([
        "sif",
        "list",
        await built(`docker://${registry.host}/many:1`, {}, { architecture: "arm64" }),
      ])
      assert.match(arm64.text, /System\/arm64/)
    })

    it("with Basic authentication let in whom a file, a variable or a helper names; what took a password is not kept", async () => {
      await using registry = await Registry.start({ htpasswd })
      await registry.push(`oci:${vectorPath("oci/layout")}`, "group/private:1", "--dest-creds", "user:secret")
      const source = `docker://${registry.host}/group/private:1`
      await refused(built(source), "ERR_OCI_CREDENTIALS", /401/)
      await isWhole(
        await built(source, { credentials: { username: "user", password: Buffer.from("secret") } }),
      )
      await refused(
        built(source, { credentials: { username: "user", password: Buffer.from("wrong") } }),
        "ERR_OCI_CREDENTIALS",
        /401/,
      )
      const file = path.join(folder, "auth.json")
      execFileSync(
        "skopeo",
        ["login", "--authfile", file, "--tls-verify=false", "-u", "user", "-p", "secret", registry.host],
        { stdio: "ignore" },
      )
      await isWhole(await built(source, { authFile: file }))
      await isWhole(await built(source, { environment: { ...none, REGISTRY_AUTH_FILE: file } }))
      await isWhole(
        await built(source, { environment: { ...none, DOCKER_USERNAME: "user", DOCKER_PASSWORD: "secret" } }),
      )
      const home = newFolder("docker-home")
      mkdirSync(path.join(home, ".docker"))
      const config = path.join(home, ".docker", "config.json")
      writeFileSync(
        config,
        JSON.stringify({
          auths: { [`${registry.host}/group`]: { auth: Buffer.from("user:secret").toString("base64") } },
        }),
      )
      await isWhole(await built(source, { environment: { HOME: home } }))
      writeFileSync(config, JSON.stringify({ credHelpers: { [registry.host]: "sifcrypt-test" } }))
      writeFileSync(
        path.join(home, "docker-credential-sifcrypt-test"),
        `#!/bin/sh\n[ "$1" = get ] && [ -z "$SIFCRYPT_ENCRYPTION_PASSPHRASE" ] && read server; [ "$server" = "${registry.host}" ] && echo '{"ServerURL":"x","Username":"user","Secret":"secret"}'\n`,
      )
      chmodSync(path.join(home, "docker-credential-sifcrypt-test"), 0o755)
      await isWhole(
        await built(source, {
          environment: {
            HOME: home,
            PATH: `${home}:${process.env["PATH"] ?? ""}`,
            SIFCRYPT_ENCRYPTION_PASSPHRASE: "not the helper's",
          },
        }),
      )
      assert.deepEqual(await listCache(cacheFolder), [], "A37: nothing private in the cache")
      assert.deepEqual(existsSync(cacheFolder) ? readdirSync(cacheFolder) : [], [], "nothing else either")
    })

    it("with tokens let in nobody or somebody, and give them what each may have", async () => {
      const keys = newFolder("token")
      const [key, certificate] = ["key.pem", "certificate.pem"].map((name) => path.join(keys, name)) as [
        string,
        string,
      ]
      execFileSync(
        "openssl",
        [
          "req",
          "-x509",
          "-newkey",
          "rsa:2048",
          "-nodes",
          "-keyout",
          key,
          "-out",
          certificate,
          "-subj",
          "/CN=test",
          "-days",
          "2",
        ],
        { stdio: "ignore" },
      )
      const x5c = [new X509Certificate(readFileSync(certificate)).raw.toString("base64")]
      const asked: (string | undefined)[] = []
      await using tokens = await Server.start((request, response) => {
        const url = new URL(request.url ?? "", "http://x")
        asked.push(request.headers.authorization)
        const known =
          request.headers.authorization === `Basic ${Buffer.from("user:secret").toString("base64")}`
        if (request.headers.authorization !== undefined && !known) {
          response.statusCode = 401
          response.end("{}")
          return
        }
        const access = url.searchParams.getAll("scope").map((scope) => {
          const [type, name, actions = ""] = scope.split(":")
          const allowed = known || name === "public"
          return { type, name, actions: allowed ? actions.split(",") : [] }
        })
        const now = Math.floor(Date.now() / 1000)
        const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url")
        const body = `${encode({ typ: "JWT", alg: "RS256", x5c })}.${encode({ iss: "test", aud: url.searchParams.get("service"), sub: "", exp: now + 300, nbf: now - 10, iat: now, jti: String(now), access })}`
        const signature = sign("sha256", Buffer.from(body), createPrivateKey(readFileSync(key))).toString(
          "base64url",
        )
        response.end(JSON.stringify({ token: `${body}.${signature}` }))
      })
      await using registry = await Registry.start({
        token: { realm: `http://${tokens.host}/token`, certificate },
      })
      for (const name of ["public:1", "private:1"])
        await registry.push(`oci:${vectorPath("oci/layout")}`, name, "--dest-creds", "user:secret")
      asked.length = 0
      await isWhole(await built(`docker://${registry.host}/public:1`))
      assert.deepEqual(asked, [undefined], "one token, for nobody, for all that is fetched")
      assert.equal((await listCache(cacheFolder)).length, 4)
      await cleanCache({ folder: cacheFolder })
      await refused(built(`docker://${registry.host}/private:1`), "ERR_OCI_CREDENTIALS", /401/)
      const credentials = { username: "user", password: Buffer.from("secret") }
      await isWhole(await built(`docker://${registry.host}/private:1`, { credentials }))
      assert.deepEqual(await listCache(cacheFolder), [])
    })

    it("with TLS are trusted by a certificate of --cert-dir and by no other", async () => {
      const keys = newFolder("tls")
      const [key, certificate] = ["server.key", "ca.crt"].map((name) => path.join(keys, name)) as [
        string,
        string,
      ]
      execFileSync(
        "openssl",
        [
          "req",
          "-x509",
          "-newkey",
          "rsa:2048",
          "-nodes",
          "-keyout",
          key,
          "-out",
          certificate,
          "-subj",
          "/CN=test",
          "-addext",
          "subjectAltName=IP:127.0.0.1",
          "-days",
          "2",
        ],
        { stdio: "ignore" },
      )
      await using registry = await Registry.start({ tls: { certificate, key } })
      await registry.push(`oci:${vectorPath("oci/layout")}`, "image:1")
      const trusted = newFolder("trusted")
      writeFileSync(path.join(trusted, "ca.crt"), readFileSync(certificate))
      const source = `docker://${registry.host}/image:1`
      await refused(built(source), "ERR_OCI_REGISTRY", /self.signed/)
      await isWhole(await built(source, { certFolder: trusted }))
      const env = { SIFCRYPT_CACHEDIR: newFolder("tls-cache", 2345) }
      const image = path.join(newFolder("tls-out", 2345), "image.sif")
      const { stderr } = await sifcryptOk(
        ["build", "--arch", "amd64", "--cert-dir", trusted, image, source],
        { env },
      )
      assert.match(stderr, new RegExp(`comes from https://${registry.host}`))
      const plain = await sifcrypt(["build", "-F", "--no-https", image, source], { env })
      assert.equal(plain.status, 25, plain.stderr)
    })

    it("A37: are asked once for a blob by builds at the same time; list and clean show and remove it", async () => {
      await using registry = await Registry.start()
      await registry.push(`oci:${vectorPath("oci/layout")}`, "image:1")
      const env = { SIFCRYPT_CACHEDIR: newFolder("shared-cache", 2345) }
      const out = newFolder("parallel", 2345)
      await Promise.all(
        [1, 2, 3, 4].map((i) =>
          sifcryptOk(
            ["build", "--arch", "amd64", path.join(out, `${i}.sif`), `docker://${registry.host}/image:1`],
            { env },
          ),
        ),
      )
      for (const i of [1, 2, 3, 4]) await isWhole(path.join(out, `${i}.sif`))
      const listed = JSON.parse((await sifcryptOk(["cache", "list", "--json"], { env })).text) as {
        digest: string
        isPartial: boolean
      }[]
      assert.equal(listed.length, 4)
      assert.ok(listed.every(({ isPartial }) => !isPartial))
      for (const { digest } of listed) {
        const [, hex = ""] = digest.split(":")
        const file = path.join(env.SIFCRYPT_CACHEDIR, "blobs", "sha256", hex)
        assert.equal(createHash("sha256").update(readFileSync(file)).digest("hex"), hex)
        assert.equal(statSync(file).mode & 0o777, 0o600)
      }
      assert.match((await sifcryptOk(["cache", "clean", "--days", "1"], { env })).stderr, /removed 0 blobs/)
      assert.match(
        (await sifcryptOk(["cache", "clean", "--dry-run"], { env })).stderr,
        /would remove 4 blobs/,
      )
      await sifcryptOk(["cache", "clean"], { env })
      assert.match((await sifcryptOk(["cache", "list"], { env })).text, /^0 blobs/)
    })
  })

  describe("that behave badly", () => {
    it("A37: a connection that breaks is taken up where it broke; what an earlier build left is used", async () => {
      const { digest } = layout.manifest.layers[0]!
      let broken = 0
      await using server = await Server.start(
        serving((request, response) => {
          if (!request.url!.endsWith(digest)) return false
          const bytes = layout.blob(digest)
          const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "bytes=0-")?.[1])
          if (from > 0) {
            response.statusCode = 206
            response.setHeader("content-range", `bytes ${from}-${bytes.length - 1}/${bytes.length}`)
          }
          response.setHeader("content-length", bytes.length - from)
          if (++broken <= 2) {
            response.write(bytes.subarray(from, from + 100), () => response.destroy())
            return true
          }
          response.end(bytes.subarray(from))
          return true
        }),
      )
      await isWhole(await built(`docker://${server.host}/image:1`))
      assert.deepEqual(
        server.heard.filter(({ url }) => url.endsWith(digest)).map(({ range }) => range),
        [undefined, "bytes=100-", "bytes=200-"],
      )
      // A build that was killed has left a part, and another a wrong one.
      for (const left of [layout.blob(digest).subarray(0, 50), Buffer.alloc(50)]) {
        await cleanCache({ folder: cacheFolder })
        mkdirSync(path.join(cacheFolder, "blobs", "sha256"), { recursive: true })
        writeFileSync(path.join(cacheFolder, "blobs", "sha256", `${digest.split(":")[1]!}.partial`), left)
        server.heard.length = 0
        await isWhole(await built(`docker://${server.host}/image:1`))
        assert.equal(server.heard.find(({ url }) => url.endsWith(digest))?.range, "bytes=50-")
        assert.ok((await listCache(cacheFolder)).every(({ isPartial }) => !isPartial))
      }
    })

    it("A37: a blob in the cache that is damaged is fetched again", async () => {
      await using server = await Server.start(serving())
      await isWhole(await built(`docker://${server.host}/image:1`))
      const { digest } = layout.manifest.layers[1]!
      const file = path.join(cacheFolder, "blobs", "sha256", digest.split(":")[1]!)
      const bytes = readFileSync(file)
      bytes[9]! ^= 1
      writeFileSync(file, bytes)
      await isWhole(await built(`docker://${server.host}/image:1`))
    })

    it("are asked again when they are busy, and without end never", async () => {
      let refusals = 2
      await using server = await Server.start(
        serving((request, response) => {
          if (!request.url!.includes("/manifests/") || refusals-- <= 0) return false
          response.statusCode = 503
          response.end()
          return true
        }),
      )
      await isWhole(await built(`docker://${server.host}/image:1`))
      refusals = 1000
      server.heard.length = 0
      await refused(built(`docker://${server.host}/image:1`), "ERR_OCI_REGISTRY", /503/)
      assert.equal(server.heard.filter(({ url }) => url.includes("/manifests/")).length, 5)
    })

    it("S14: a redirect to another port gets no credentials, and its answer is checked all the same", async () => {
      await using storage = await Server.start((request, response) => {
        response.end(layout.blob(request.url!.split("/").at(-1)!))
      })
      await using server = await Server.start(
        serving((request, response) => {
          if (request.headers.authorization === undefined) {
            response.statusCode = 401
            response.setHeader("www-authenticate", 'Basic realm="x"')
            response.end()
            return true
          }
          if (!request.url!.includes("/blobs/")) return false
          response.statusCode = 307
          response.setHeader(
            "location",
            `http://${storage.host}/elsewhere/${request.url!.split("/").at(-1)!}`,
          )
          response.end()
          return true
        }),
      )
      const credentials = { username: "user", password: Buffer.from("secret") }
      await isWhole(await built(`docker://${server.host}/image:1`, { credentials }))
      assert.ok(server.heard.some(({ authorization }) => authorization?.startsWith("Basic ") === true))
      assert.ok(storage.heard.length >= 4)
      assert.deepEqual([...new Set(storage.heard.map(({ authorization }) => authorization))], [undefined])
    })

    it("S14: a password goes to no other host without TLS, whatever the registry says", async () => {
      await using thief = await Server.start((_, response) => {
        response.end('{"token":"x"}')
      })
      const elsewhere = thief.host.replace("127.0.0.1", "localhost")
      await using server = await Server.start((_, response) => {
        response.statusCode = 401
        response.setHeader("www-authenticate", `Bearer realm="http://${elsewhere}/token",service="x"`)
        response.end()
      })
      const credentials = { username: "user", password: Buffer.from("secret") }
      await refused(
        built(`docker://${server.host}/image:1`, { credentials }),
        "ERR_OCI_CREDENTIALS",
        /without TLS/,
      )
      assert.deepEqual([...new Set(thief.heard.map(({ authorization }) => authorization))], [undefined])
    })

    it("S14: a token that was posted goes with no redirect to somebody else", async () => {
      await using thief = await Server.start((_, response) => {
        response.end('{"token":"x"}')
      })
      await using server = await Server.start((request, response) => {
        if (request.method === "POST") {
          response.statusCode = 307
          response.setHeader("location", `http://${thief.host}/token`)
        } else {
          response.statusCode = 401
          response.setHeader("www-authenticate", `Bearer realm="http://${request.headers.host!}/token"`)
        }
        response.end()
      })
      const authFile = path.join(newFolder("identity"), "auth.json")
      writeFileSync(authFile, JSON.stringify({ auths: { [server.host]: { identitytoken: "secret" } } }))
      await refused(built(`docker://${server.host}/image:1`, { authFile }), "ERR_OCI_REGISTRY", /sends us to/)
      assert.deepEqual(thief.heard, [])
    })

    it("are not shown a token again that they refuse", async () => {
      await using server = await Server.start((_, response) => {
        response.statusCode = server.heard.length > 50 ? 404 : 401
        response.setHeader("www-authenticate", 'Basic realm="x"')
        response.end()
      })
      const authFile = path.join(newFolder("token-refused"), "auth.json")
      writeFileSync(authFile, JSON.stringify({ auths: { [server.host]: { registrytoken: "secret" } } }))
      await refused(built(`docker://${server.host}/image:1`, { authFile }), "ERR_OCI_CREDENTIALS", /401/)
      assert.equal(server.heard.filter(({ authorization }) => authorization === "Bearer secret").length, 1)
    })

    it("S14: whoever a redirect leads to is not asked where passwords go", async () => {
      await using thief = await Server.start((request, response) => {
        response.statusCode = 401
        response.setHeader("www-authenticate", `Bearer realm="http://${request.headers.host!}/token"`)
        response.end('{"token":"x"}')
      })
      await using server = await Server.start(
        serving((request, response) => {
          if (!request.url!.includes("/blobs/")) return false
          response.statusCode = 307
          response.setHeader("location", `http://${thief.host}/elsewhere`)
          response.end()
          return true
        }),
      )
      const credentials = { username: "user", password: Buffer.from("secret") }
      await refused(built(`docker://${server.host}/image:1`, { credentials }), "ERR_OCI_CREDENTIALS", /401/)
      assert.deepEqual([...new Set(thief.heard.map(({ authorization }) => authorization))], [undefined])
      assert.ok(thief.heard.every(({ url }) => url === "/elsewhere"))
    })

    it("A37: a layer that takes a password is not kept, though its manifest took none", async () => {
      const digests = layout.manifest.layers.map(({ digest }) => digest)
      await using server = await Server.start(
        serving((request, response) => {
          if (!digests.some((digest) => request.url!.endsWith(digest))) return false
          if (request.headers.authorization !== undefined) return false
          response.statusCode = 401
          response.setHeader("www-authenticate", 'Basic realm="x"')
          response.end()
          return true
        }),
      )
      const credentials = { username: "user", password: Buffer.from("secret") }
      await isWhole(await built(`docker://${server.host}/image:1`, { credentials }))
      const kept = (await listCache(cacheFolder)).filter(({ size }) => size > 0)
      assert.deepEqual(
        kept.filter(({ digest }) => digests.includes(digest)),
        [],
      )
    })

    it("A37: what somebody is fetching stays where the cache is cleaned", async () => {
      const { digest } = layout.manifest.layers[0]!
      let removed: readonly unknown[] | undefined
      await using server = await Server.start((request, response) => {
        if (request.url!.endsWith(digest))
          void cleanCache({ folder: cacheFolder }).then((list) => {
            removed ??= list.filter((blob) => blob.isPartial)
            serving()(request, response)
          })
        else serving()(request, response)
      })
      await isWhole(await built(`docker://${server.host}/image:1`))
      assert.deepEqual(removed, [])
    })

    it("are not asked for layers that are too large", async () => {
      await using server = await Server.start(serving())
      const most = layout.manifest.layers.reduce((sum, { size }) => sum + size, 0) - 1
      await refused(
        built(`docker://${server.host}/image:1`, { maxLayerBytes: most }),
        "ERR_OCI_LIMIT",
        /layers have/,
      )
      const asked = server.heard.filter(({ url }) => url.includes("/blobs/"))
      assert.equal(asked.length, 1, "the configuration")
    })

    it("end in an error where redirects do not", async () => {
      await using server = await Server.start((request, response) => {
        response.statusCode = 307
        response.setHeader("location", request.url!)
        response.end()
      })
      await refused(built(`docker://${server.host}/image:1`), "ERR_OCI_REGISTRY", /redirects/)
    })

    it("S15: a Content-Type that disagrees with the document is refused", async () => {
      for (const [type, code] of [
        ["application/vnd.oci.image.index.v1+json", "ERR_OCI_FORMAT"],
        ["application/vnd.docker.distribution.manifest.v2+json", "ERR_OCI_FORMAT"],
        ["text/html", "ERR_OCI_"],
      ] as const) {
        await using server = await Server.start(
          serving((request, response) => {
            if (!request.url!.includes("/manifests/")) return false
            response.setHeader("content-type", type)
            response.end(layout.blob(root.digest))
            return true
          }),
        )
        await assert.rejects(
          built(`docker://${server.host}/image:1`),
          (error: Error & { code?: string }) => error.code?.startsWith(code) === true,
        )
      }
    })

    it("S16: other bytes than the digest says are refused, for manifests and blobs, and not kept", async () => {
      const { digest } = layout.manifest.layers[2]!
      await using server = await Server.start(
        serving((request, response) => {
          if (!request.url!.endsWith(digest)) return false
          const bytes = layout.blob(digest)
          bytes[30]! ^= 1
          response.end(bytes)
          return true
        }),
      )
      await refused(built(`docker://${server.host}/image:1`), "ERR_OCI_DIGEST", /content is not what/)
      assert.ok((await listCache(cacheFolder)).every((blob) => blob.digest !== digest || blob.isPartial))
      await refused(
        built(`docker://${server.host}/image@sha256:${"0".repeat(64)}`),
        "ERR_OCI_DIGEST",
        /manifest/,
      )
      await using long = await Server.start(
        serving((request, response) => {
          if (!request.url!.endsWith(digest)) return false
          response.end(Buffer.concat([layout.blob(digest), Buffer.alloc(1)]))
          return true
        }),
      )
      await refused(built(`docker://${long.host}/image:1`), "ERR_OCI_DIGEST", /more than the/)
    })

    it("that cannot be reached are named", async () => {
      const server = await Server.start(serving())
      const { host } = server
      await server[Symbol.asyncDispose]()
      await refused(
        built(`docker://${host}/image:1`),
        "ERR_OCI_REGISTRY",
        new RegExp(host.replaceAll(".", "\\.")),
      )
    })
  })

  after(() => {
    rmSync(folder, { recursive: true, force: true })
  })
})
