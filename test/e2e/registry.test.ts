import assert from "node:assert/strict"
import { execFileSync, spawn } from "node:child_process"
import { createHash } from "node:crypto"
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
import type http from "node:http"
import path from "node:path"
import { TLSSocket } from "node:tls"
import { build, cleanCache, listCache, type BuildOptions } from "../../lib/index.ts"
import { cli, sifcrypt, sifcryptOk } from "../support/cli.ts"
import { certificate, relaying, Server, type Answer } from "../support/http-server.ts"
import { imageTree } from "../support/image-tree.ts"
import { Layout } from "../support/layout.ts"
import { basic, htpasswd, Registry, secret, startTokens } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { typing } from "../support/terminal.ts"
import { vectorPath } from "../vectors/load.ts"

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
      const wrong = { username: "user", password: Buffer.from("wrong") }
      for (const oci of [{}, { credentials: wrong }, { environment: { ...none, DOCKER_USERNAME: "user" } }])
        await refused(built(source, oci), "ERR_OCI_CREDENTIALS", /401/)
      const file = path.join(folder, "auth.json")
      execFileSync(
        "skopeo",
        ["login", "--authfile", file, "--tls-verify=false", "-u", "user", "-p", "secret", registry.host],
        { stdio: "ignore" },
      )
      const home = (config: unknown): string => {
        const made = newFolder("docker-home")
        mkdirSync(path.join(made, ".docker"))
        writeFileSync(path.join(made, ".docker", "config.json"), JSON.stringify(config))
        return made
      }
      const auth = Buffer.from("user:secret").toString("base64")
      const helped = home({ credHelpers: { [registry.host]: "sifcrypt-test" } })
      const helper = path.join(helped, "docker-credential-sifcrypt-test")
      writeFileSync(
        helper,
        `#!/bin/sh\n[ "$1" = get ] && [ -z "$SIFCRYPT_ENCRYPTION_PASSPHRASE$DOCKER_PASSWORD" ] && read server; [ "$server" = "${registry.host}" ] && echo '{"ServerURL":"x","Username":"user","Secret":"secret"}'\n`,
      )
      chmodSync(helper, 0o755)
      const searchPath = `${helped}:${process.env["PATH"] ?? ""}`
      const ways: readonly NonNullable<BuildOptions["oci"]>[] = [
        { credentials: secret },
        { authFile: file },
        { disableCache: true, authFile: file },
        { disableCache: true, authFile: file, tmpFolder: path.join(folder, "spills") },
        ...[
          { REGISTRY_AUTH_FILE: file },
          ...["", "SIFCRYPT_", "APPTAINER_", "SINGULARITY_"].map((prefix) => ({
            [`${prefix}DOCKER_USERNAME`]: "user",
            [`${prefix}DOCKER_PASSWORD`]: "secret",
          })),
          { HOME: home({ auths: { [`${registry.host}/group`]: { auth } } }) },
          { HOME: helped, PATH: searchPath, SIFCRYPT_ENCRYPTION_PASSPHRASE: "x", DOCKER_PASSWORD: "y" },
        ].map((environment) => ({ environment: { ...none, ...environment } })),
      ]
      for (const oci of ways) await isWhole(await built(source, oci))
      assert.deepEqual(readdirSync(path.join(folder, "spills")), [])
      // Typed on a terminal.
      const image = path.join(folder, `${++count}.sif`)
      const line = `'${cli}' build --arch amd64 --docker-login --disable-cache '${image}' '${source}'`
      const typist = spawn("script", ["-qec", line, "/dev/null"], { stdio: ["pipe", "pipe", "inherit"] })
      let seen = ""
      const answers = ["Username: ", "user\n", "Password: ", "secret\n"]
      typist.stdout.on("data", (piece: Buffer) => {
        seen += piece.toString()
        if (answers.length > 0 && seen.endsWith(answers[0]!)) typist.stdin.write(answers.splice(0, 2)[1]!)
      })
      assert.deepEqual(await once(typist, "close"), [0, null], seen)
      assert.match(seen, /Username: user\r\n.*Password: /s)
      assert.doesNotMatch(seen, /secret/)
      await isWhole(image)
      assert.deepEqual(await listCache(cacheFolder), [], "A37: nothing private in the cache")
      assert.deepEqual(existsSync(cacheFolder) ? readdirSync(cacheFolder) : [], [], "nothing else either")
    })

    it("are not asked where the end is typed instead of a name", async () => {
      const image = path.join(newFolder("untyped", 2345), "image.sif")
      const args = ["build", "--docker-login", image, "docker://127.0.0.1:9/image"]
      const { status, text: shown } = await sifcrypt(args, typing("\u0004"))
      assert.equal(status, 22, shown)
      assert.match(shown, /--docker-login asks on a terminal/)
    })

    it("with tokens let in nobody or somebody, and give them what each may have", async () => {
      await using tokens = await startTokens()
      const { asked, tokenFor } = tokens
      await using registry = await Registry.start({
        token: tokens.registry,
      })
      for (const name of ["public:1", "private:1"])
        await registry.push(`oci:${vectorPath("oci/layout")}`, name, "--dest-creds", "user:secret")
      asked.length = 0
      await isWhole(await built(`docker://${registry.host}/public:1`))
      assert.deepEqual(asked, [undefined], "one token, for nobody, for all that is fetched")
      assert.equal((await listCache(cacheFolder)).length, 4)
      await cleanCache({ folder: cacheFolder })
      await refused(built(`docker://${registry.host}/private:1`), "ERR_OCI_CREDENTIALS", /401/)
      // What stands for a name and its password: to be exchanged, posted, and to be shown as it is.
      const home = newFolder("tokens")
      const authFile = path.join(home, "auth.json")
      const pull = tokenFor("registry", ["repository:private:pull"], true)
      asked.length = 0
      for (const [entry, shown] of [
        [{ auth: Buffer.from("user:secret").toString("base64") }, [undefined, basic]],
        [{ identitytoken: "identity" }, [undefined, "identity"]],
        [{ registrytoken: pull }, [undefined]],
      ] as const) {
        writeFileSync(authFile, JSON.stringify({ auths: { [registry.host]: entry } }))
        await isWhole(await built(`docker://${registry.host}/private:1`, { authFile }))
        assert.deepEqual(asked.splice(0), shown)
      }
      assert.deepEqual(await listCache(cacheFolder), [])
    })

    it("with TLS are trusted by a certificate of --cert-dir and by no other", async () => {
      const pair = certificate()
      await using registry = await Registry.start({ tls: pair })
      await registry.push(`oci:${vectorPath("oci/layout")}`, "image:1")
      const trusted = newFolder("trusted")
      writeFileSync(path.join(trusted, "ca.crt"), readFileSync(pair.certificate))
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

    it("are reached through the proxy that the environment names, and not where NO_PROXY forbids", async () => {
      const pair = certificate()
      await using secure = await Registry.start({ tls: pair })
      await using plain = await Registry.start()
      for (const registry of [secure, plain])
        await registry.push(`oci:${vectorPath("oci/layout")}`, "image:1")
      await using proxy = await Server.start(relaying(plain.host))
      const targets: string[] = []
      proxy.tunnelTo(Number(secure.host.split(":")[1]), targets)
      const certFolder = newFolder("proxied")
      writeFileSync(path.join(certFolder, "ca.crt"), readFileSync(pair.certificate))
      const source = "docker://registry.example.test/image:1"
      const address = `http://user:secret@${proxy.host}`
      for (const name of ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
        await isWhole(
          await built(source, { certFolder, disableCache: true, environment: { ...none, [name]: address } }),
        )
      const otherwise = "docker://Registry.Example.test:443/image:1"
      const environment = { ...none, HTTPS_PROXY: address }
      await isWhole(await built(otherwise, { certFolder, disableCache: true, environment }))
      assert.deepEqual([...new Set(targets)], [`registry.example.test:443 ${basic}`])
      // A connection is used again: the first, and one for each blob that is fetched beside another.
      assert.ok(targets.length <= 4 * 3, `${targets.length} tunnels`)
      await isWhole(await built(source, { noHttps: true, environment: { ...none, HTTP_PROXY: address } }))
      assert.ok(proxy.heard.length > 4)
      assert.ok(proxy.heard.every(({ url }) => url.startsWith("http://registry.example.test/v2/image/")))
      const forbidden = { ...none, https_proxy: address, no_proxy: "other, .example.test" }
      await refused(
        built(source, { environment: forbidden }),
        "ERR_OCI_REGISTRY",
        /its name cannot be resolved|there is no such host/,
      )
    })

    it("are refused by a name that is no address", async () => {
      await refused(built("docker://registry.example.test:99999/image"), "ERR_OCI_REFERENCE", /is no host/)
    })

    it("A37: are asked once for a blob by builds at the same time; list and clean show and remove it", async () => {
      await using registry = await Registry.start()
      await registry.push(`oci:${vectorPath("oci/layout")}`, "image:1")
      await using server = await Server.start(relaying(registry.host))
      const env = { SIFCRYPT_CACHEDIR: newFolder("shared-cache", 2345) }
      const out = newFolder("parallel", 2345)
      await Promise.all(
        [1, 2, 3, 4].map((i) =>
          sifcryptOk(
            ["build", "--arch", "amd64", path.join(out, `${i}.sif`), `docker://${server.host}/image:1`],
            { env },
          ),
        ),
      )
      const blobs = server.heard.map(({ url }) => url).filter((url) => url.includes("/blobs/"))
      assert.deepEqual(blobs, [...new Set(blobs)])
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

    it("are asked for all of a blob where they refuse a range of it", async () => {
      const { digest } = layout.manifest.layers[0]!
      await using server = await Server.start(
        serving((request, response) => {
          if (!request.url!.endsWith(digest)) return false
          const asked = server.heard.filter(({ url }) => url.endsWith(digest)).length
          const bytes = layout.blob(digest)
          if (request.headers.range !== undefined) {
            response.statusCode = 416
            response.end()
          } else if (asked === 1) {
            response.setHeader("content-length", bytes.length)
            response.write(bytes.subarray(0, 100), () => response.destroy())
          } else response.end(bytes)
          return true
        }),
      )
      for (const disableCache of [true, false]) {
        server.heard.length = 0
        await isWhole(await built(`docker://${server.host}/image:1`, { disableCache }))
        const ranges = server.heard.filter(({ url }) => url.endsWith(digest)).map(({ range }) => range)
        assert.deepEqual(ranges, [undefined, "bytes=100-", undefined])
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

    it("are asked again when they are busy, not before they say, and without end never", async () => {
      let refusals = 2
      const times: number[] = []
      await using server = await Server.start(
        serving((request, response) => {
          if (!request.url!.includes("/manifests/")) return false
          times.push(performance.now())
          if (refusals-- <= 0) return false
          response.statusCode = times.length === 1 ? 429 : 503
          if (times.length === 1) response.setHeader("retry-after", "1")
          response.end()
          return true
        }),
      )
      await isWhole(await built(`docker://${server.host}/image:1`))
      assert.ok(times[1]! - times[0]! >= 990, `${times[1]! - times[0]!} ms`)
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
      await isWhole(await built(`docker://${server.host}/image:1`, { credentials: secret }))
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
      await refused(
        built(`docker://${server.host}/image:1`, { credentials: secret }),
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

    it("S14: certificates of --cert-dir are for the registry alone; no redirect leads from TLS to none", async () => {
      const pair = certificate()
      const tls = { key: readFileSync(pair.key), cert: readFileSync(pair.certificate) }
      const shown: (readonly [place: string, certificate: boolean])[] = []
      const hear = (place: string, { socket }: http.IncomingMessage): void => {
        assert.ok(socket instanceof TLSSocket)
        shown.push([place, Object.keys(socket.getPeerCertificate()).length > 0])
      }
      const asking = { ...tls, requestCert: true, rejectUnauthorized: false }
      await using tokens = await Server.start((request, response) => {
        hear("tokens", request)
        response.end('{"token":"x"}')
      }, asking)
      await using server = await Server.start(
        serving((request, response) => {
          hear("registry", request)
          if (request.headers.authorization === "Bearer x" && !request.url!.includes("/blobs/")) return false
          response.statusCode = request.headers.authorization === "Bearer x" ? 307 : 401
          response.setHeader("www-authenticate", `Bearer realm="https://${tokens.host}/token"`)
          response.setHeader("location", `http://${tokens.host}/elsewhere`)
          response.end()
          return true
        }),
        asking,
      )
      const certFolder = newFolder("own")
      for (const [name, bytes] of [
        ["ca.crt", tls.cert],
        ["own.cert", tls.cert],
        ["own.key", tls.key],
      ] as const)
        writeFileSync(path.join(certFolder, name), bytes)
      const source = `docker://${server.host}/image:1`
      await refused(built(source, { certFolder }), "ERR_OCI_REGISTRY", /self.signed/)
      mkdirSync(path.join(certFolder, tokens.host))
      writeFileSync(path.join(certFolder, tokens.host, "ca.crt"), tls.cert)
      await refused(built(source, { certFolder }), "ERR_OCI_REGISTRY", /redirect from https to http/)
      assert.deepEqual(
        shown.filter(([place, own]) => own !== (place === "registry")),
        [],
      )
      assert.ok(shown.some(([place]) => place === "tokens"))
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

    it("are asked for no more than so many things, whatever they say that it takes", async () => {
      let named = 0
      let most = 0
      await using server = await Server.start((request, response) => {
        const url = new URL(request.url ?? "", "http://x")
        if (url.pathname === "/token") {
          most = Math.max(most, url.searchParams.getAll("scope").length)
          response.end('{"token":"whatever"}')
          return
        }
        const scopes = Array.from({ length: 40 }, () => `repository:other${++named}:pull`)
        const realm = `http://${server.host}/token`
        response.setHeader(
          "www-authenticate",
          `Bearer realm="${realm}",service="x",scope="${scopes.join(" ")}"`,
        )
        response.statusCode = 401
        response.end("{}")
      })
      await refused(built(`docker://${server.host}/image:1`), "ERR_OCI_CREDENTIALS", /401/)
      assert.ok(named > 100, `${named} were named`)
      assert.equal(most, 100)
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
      await refused(
        built(`docker://${server.host}/image:1`, { credentials: secret }),
        "ERR_OCI_CREDENTIALS",
        /401/,
      )
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
      await isWhole(await built(`docker://${server.host}/image:1`, { credentials: secret }))
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
