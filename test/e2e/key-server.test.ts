// Key servers: a real one (onak) on loopback, a proxy before it, and servers that misbehave.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { copyFileSync, readFileSync, writeFileSync } from "node:fs"
import { request as httpRequest } from "node:http"
import { connect, createServer, type AddressInfo } from "node:net"
import path from "node:path"
import { createServer as createTlsServer } from "node:https"
import { ContainerError, keyring, open, verify } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { hasKeyServer, startKeyServer, startServer, type TestServer } from "../support/key-server.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

const unknown = "A".repeat(40)

function ringFolder(): string {
  return path.join(newFolder("ring", userId), "keys")
}

async function newPair(folder: string, name = "Ann"): Promise<string> {
  const args = ["-N", name, "-E", "ann@example.org", "--type", "ed25519", "-P", "", "--json", "-d", folder]
  return (JSON.parse((await sifcryptOk(["key", "newpair", ...args])).text) as { fingerprint: string })
    .fingerprint
}

async function throwsKeyServer(what: Promise<unknown>, message: RegExp): Promise<void> {
  await assert.rejects(what, (error: unknown) => {
    assert.ok(error instanceof ContainerError)
    assert.equal(error.code, "ERR_KEYSERVER")
    assert.match(error.message, message)
    return true
  })
}

describe("a key server", () => {
  let server: TestServer
  const sender = ringFolder()
  let fingerprint: string

  before(async function () {
    if (!hasKeyServer()) skip(this, "onak is missing (Debian's package)")
    server = await startKeyServer()
    fingerprint = await newPair(sender)
    const result = await sifcryptOk(["key", "push", "-u", server.url, "-d", sender, fingerprint])
    assert.match(result.stderr, new RegExp(`published ${fingerprint}`))
  })

  after(async () => {
    await (server as TestServer | undefined)?.[Symbol.asyncDispose]()
  })

  it("finds by name, address and fingerprint what was pushed", async () => {
    for (const text of ["Ann", "ann@example.org", fingerprint, `0x${fingerprint}`]) {
      const found = JSON.parse(
        (await sifcryptOk(["key", "search", "--json", "-u", server.url, text])).text,
      ) as {
        id: string
        userIds: string[]
      }[]
      assert.deepEqual(
        found.map(({ id, userIds }) => [id, userIds]),
        [[fingerprint, ["Ann <ann@example.org>"]]],
      )
    }
    const shown = await sifcryptOk(["key", "search", "-l", "-u", server.url, "Ann"])
    assert.match(
      shown.text,
      new RegExp(`^${fingerprint}\\n {4}Algorithm: +Ed25519.*\\n {4}Creation time: .*\\n {4}User: +Ann`),
    )
    const none = await sifcrypt(["key", "search", "-u", server.url, "Nobody"])
    assert.equal(none.status, 26)
    assert.match(none.stderr, /has no key for Nobody/)
  })

  it("gives a key by its fingerprint, which then verifies", async () => {
    const receiver = ringFolder()
    const image = path.join(newFolder("image", userId), "image.sif")
    await sifcryptOk(["build", image, makeRootTree()])
    await sifcryptOk(["sign", "-k", fingerprint, image], { env: { SIFCRYPT_KEYSDIR: sender } })
    const env = { SIFCRYPT_KEYSDIR: receiver }
    assert.equal((await sifcrypt(["verify", image], { env })).status, 26)
    const pulled = await sifcryptOk(["key", "pull", "-u", server.url, fingerprint], { env })
    assert.match(pulled.text, /: added\n/)
    await sifcryptOk(["verify", image], { env })
    const [ring] = await readListing(receiver)
    assert.deepEqual(ring, [fingerprint])
    const missing = await sifcrypt(["key", "pull", "-u", server.url, unknown], { env })
    assert.equal(missing.status, 26)
    assert.match(missing.stderr, /has no key A{40}/)
  })

  async function readListing(folder: string): Promise<string[][]> {
    const text = (await sifcryptOk(["key", "list", "--json", "-d", folder])).text
    return (JSON.parse(text) as { keys: { fingerprint: string }[] }[]).map(({ keys }) =>
      keys.map((key) => key.fingerprint),
    )
  }

  it("newpair --push publishes the public half only", async () => {
    const folder = ringFolder()
    const before = server.asked.length
    const args = ["-N", "Pia", "-E", "pia@example.org", "--type", "ed25519", "-P", "", "-d", folder]
    await sifcryptOk(["key", "newpair", ...args, "--push", "-u", server.url])
    assert.deepEqual(server.asked.slice(before), ["POST /pks/add"])
    const found = await sifcryptOk(["key", "search", "-u", server.url, "Pia"])
    assert.match(found.text, /Pia <pia@example\.org>/)
  })

  it("A26: is asked only when --keyserver says so; then for signers who are unknown, and for revocations", async () => {
    const receiver = ringFolder()
    const env = { SIFCRYPT_KEYSDIR: receiver }
    const owner = newFolder("gnupg")
    execFileSync("chmod", ["700", owner])
    const gpg = (...args: readonly string[]): Buffer =>
      execFileSync("gpg", ["--homedir", owner, "--batch", "--quiet", ...args], {
        stdio: ["ignore", "pipe", "ignore"],
      })
    gpg("--passphrase", "", "--quick-gen-key", "Rex <rex@example.org>", "ed25519", "sign", "1y")
    const signer = /^fpr:+([0-9A-F]{40}):/m.exec(gpg("--list-keys", "--with-colons").toString())?.[1] ?? ""
    const folder = newFolder("image", userId)
    const image = path.join(folder, "image.sif")
    await sifcryptOk(["build", image, makeRootTree()])
    const secret = path.join(folder, "secret")
    writeFileSync(secret, gpg("--pinentry-mode", "loopback", "--passphrase", "", "--export-secret-keys"))
    await sifcryptOk(["sign", "--secret-keyring", secret, image])
    const publish = (): Promise<unknown> => {
      const file = path.join(folder, "public")
      writeFileSync(file, gpg("--armor", "--export"))
      return keyring
        .importKeys(readFileSync(file), file, { folder: path.join(folder, "own"), env: {} })
        .then(() =>
          keyring.push(signer, { url: server.url, env: {} }, { folder: path.join(folder, "own"), env: {} }),
        )
    }
    await publish()

    const before = server.asked.length
    assert.equal((await sifcrypt(["verify", image], { env })).status, 26)
    assert.equal((await sifcrypt(["exec", "--verify", image, "echo"], { env })).status, 26)
    assert.equal(server.asked.length, before)
    const asked = await sifcryptOk(["verify", "--keyserver", server.url, image], { env })
    assert.match(asked.text, new RegExp(`\\[REMOTE\\] +Fingerprint: ${signer}`))
    assert.ok(server.asked.length > before)
    await sifcryptOk(["exec", `--verify=${signer}`, "--keyserver", server.url, image, "echo"], { env })
    await sifcryptOk(["key", "pull", "-u", server.url, signer], { env })
    await sifcryptOk(["verify", image], { env })

    // Known here, and revoked there.
    const kept = readFileSync(path.join(owner, "openpgp-revocs.d", `${signer}.rev`), "utf8")
    writeFileSync(path.join(folder, "revocation"), kept.slice(kept.indexOf(":-----BEGIN") + 1))
    gpg("--import", path.join(folder, "revocation"))
    await publish()
    await sifcryptOk(["verify", image], { env })
    const refused = await sifcrypt(["verify", "--keyserver", server.url, image], { env })
    assert.equal(refused.status, 26)
    assert.match(refused.text, /revoked/)
    const pulled = await sifcryptOk(["key", "pull", "-u", server.url, signer], { env })
    assert.match(pulled.text, /brought up to date/)
    assert.match(pulled.text, /Status: +revoked/)
    const known = await sifcrypt(["verify", image], { env })
    assert.equal(known.status, 26)
    assert.match(known.text, /revoked/)
    execFileSync("gpgconf", ["--homedir", owner, "--kill", "all"])
  })

  it("A26: is reached through the proxy that the environment names, and not where NO_PROXY forbids", async () => {
    const folder = ringFolder()
    const heard: string[] = []
    await using proxy = await startServer((request, response) => {
      heard.push(`${request.url ?? ""} ${request.headers["proxy-authorization"] ?? ""}`)
      const { pathname, search } = new URL(request.url ?? "")
      const onward = httpRequest({ port: server.port, path: `${pathname}${search}` }, (answer) => {
        response.writeHead(answer.statusCode ?? 500)
        answer.pipe(response)
      })
      request.pipe(onward)
    })
    const url = "http://keys.example.test"
    const args = ["key", "pull", "-d", folder, "--allow-http", "-u", url, fingerprint]
    const env = { http_proxy: `http://me:secret@127.0.0.1:${proxy.port}` }
    await sifcryptOk(args, { env })
    assert.equal(heard.length, 1)
    assert.match(heard[0] ?? "", /^http:\/\/keys\.example\.test\/pks\/lookup\?.* Basic bWU6c2VjcmV0$/)
    const direct = await sifcrypt(args, { env: { ...env, NO_PROXY: "example.test" } })
    assert.equal(direct.status, 25)
    assert.match(
      direct.stderr,
      /key server http:\/\/keys\.example\.test: (?:there is no such host|its name cannot be resolved)/,
    )
    // This machine is never asked through a proxy.
    await sifcryptOk(["key", "search", "-u", server.url, "Ann"], { env })
    assert.equal(heard.length, 1)
  })

  it("A26: TLS goes through a proxy as a tunnel, and its certificate is checked", async () => {
    const folder = newFolder("tls")
    const [key, certificate] = [path.join(folder, "key.pem"), path.join(folder, "certificate.pem")]
    const subject = ["-subj", "/CN=keys.example.test", "-addext", "subjectAltName=DNS:keys.example.test"]
    const options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-x509", "-days", "2"]
    execFileSync("openssl", ["req", ...options, ...subject, "-keyout", key, "-out", certificate], {
      stdio: "ignore",
    })
    const secure = createTlsServer(
      { key: readFileSync(key), cert: readFileSync(certificate) },
      (request, response) => {
        httpRequest({ port: server.port, path: request.url }, (answer) => answer.pipe(response)).end()
      },
    )
    const targets: string[] = []
    const proxy = createServer((socket) => {
      socket.once("data", (head) => {
        targets.push(head.toString("latin1").split("\r\n")[0] ?? "")
        const onward = connect((secure.address() as AddressInfo).port, "127.0.0.1", () => {
          socket.write("HTTP/1.1 200 OK\r\n\r\n")
          socket.pipe(onward).pipe(socket)
        })
        for (const end of [socket, onward]) end.on("error", () => undefined)
      })
    })
    for (const one of [secure, proxy])
      await new Promise<void>((resolve) => one.listen(0, "127.0.0.1", resolve))
    try {
      const args = ["key", "search", "-u", "hkps://keys.example.test", "Ann"]
      const env = { HTTPS_PROXY: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}` }
      const distrusted = await sifcrypt(args, { env })
      assert.equal(distrusted.status, 25)
      assert.match(distrusted.stderr, /self-signed certificate/)
      for (const [name, value] of [
        ["NODE_TLS_REJECT_UNAUTHORIZED", "0"],
        ["NODE_EXTRA_CA_CERTS", "/no/such/file"],
      ] as const)
        assert.deepEqual(await sifcrypt(args, { env: { ...env, [name]: value } }), distrusted)
      const trusted = await sifcryptOk(args, { env: { ...env, NODE_EXTRA_CA_CERTS: certificate } })
      assert.match(trusted.text, /Ann <ann@example\.org>/)
      assert.deepEqual([...new Set(targets)], ["CONNECT keys.example.test:443 HTTP/1.1"])
    } finally {
      secure.closeAllConnections()
      for (const one of [secure, proxy]) one.close()
    }
  })

  it("another key than was asked for is refused", async () => {
    const key = await sifcryptOk(["key", "export", "-a", "-d", sender, "-"])
    await using liar = await startServer((_, response) => response.end(key.stdout))
    const folder = ringFolder()
    const result = await sifcrypt(["key", "pull", "-d", folder, "-u", liar.url, unknown])
    assert.equal(result.status, 25)
    assert.match(result.stderr, /answers with another key than A{40}/)
    assert.deepEqual(await readListing(folder), [[]])
  })
})

describe("a key server that misbehaves", () => {
  const ask = (url: string, options: object = {}): Promise<unknown> =>
    keyring.search("somebody", { url, env: {}, ...options })

  it("A26: one that never answers is given up after the time that is stated", async () => {
    await using silent = await startServer(() => undefined)
    await throwsKeyServer(ask(silent.url, { timeoutMs: 100 }), /no answer within 0\.1 s/)
    await using slow = await startServer((_, response) => {
      response.write("info:1:0\n")
    })
    await throwsKeyServer(ask(slow.url, { timeoutMs: 100 }), /no answer within 0\.1 s/)
  })

  it("the caller's signal ends it, with the signal's reason", async () => {
    const reason = new Error("enough")
    const controller = new AbortController()
    await using silent = await startServer(() => {
      controller.abort(reason)
    })
    await assert.rejects(ask(silent.url, { signal: controller.signal }), reason)
  })

  it("one without TLS is asked on this machine only, unless that is allowed", async () => {
    for (const url of [
      "http://keys.example.test",
      "hkp://192.0.2.1",
      "http://localhost.example.test",
      "http://127.0.0.1.example.test",
    ])
      await throwsKeyServer(ask(url), /without TLS/)
    for (const url of ["ftp://x", "https://", "https://me:secret@keys.example.test"])
      await assert.rejects(ask(url), (error: unknown) => {
        assert.doesNotMatch(String(error), /secret/)
        return error instanceof ContainerError && error.code === "ERR_KEYSERVER"
      })
  })

  it("a redirect is not followed", async () => {
    await using elsewhere = await startServer((_, response) => response.end("info:1:0\n"))
    await using redirecting = await startServer((_, response) =>
      response.writeHead(302, { location: elsewhere.url }).end(),
    )
    await throwsKeyServer(ask(redirecting.url), /sends us elsewhere/)
    assert.deepEqual(elsewhere.asked, [])
  })

  it("an endless answer is cut", async () => {
    await using endless = await startServer((_, response) => {
      const chunk = Buffer.alloc(1 << 20, "uid:x\n")
      const more = (): void => {
        while (!response.destroyed && response.write(chunk));
      }
      response.on("drain", more)
      more()
    })
    await throwsKeyServer(ask(endless.url), /more than \d+ bytes/)
  })

  it("of a key with very many user IDs the first hundred are shown", async () => {
    const many = "uid:x\n".repeat(1_000_000)
    await using flooding = await startServer((_, response) =>
      response.end(`info:1:1\npub:DEADBEEF:1:2048:::\n${many}`),
    )
    const [key] = (await ask(flooding.url)) as keyring.FoundKey[]
    assert.equal(key?.userIds.length, 100)
  })

  it("nobody there, a status of failure, and a short key ID are told apart", async () => {
    await throwsKeyServer(ask("http://127.0.0.1:9"), /the connection is refused/)
    await using failing = await startServer((_, response) => response.writeHead(503).end("too busy\nlater"))
    await throwsKeyServer(ask(failing.url), /status 503: too busy/)
    await using short = await startServer((_, response) =>
      response.end("info:1:1\npub:DEADBEEF:1:2048:1577836800::r\nuid:A%20%3Ca@b%3E:::\nuid:100%:::\n"),
    )
    assert.deepEqual(await ask(short.url), [
      {
        id: "DEADBEEF",
        algorithm: "RSA",
        bits: 2048,
        created: new Date("2020-01-01T00:00:00Z"),
        expires: undefined,
        status: "revoked",
        userIds: ["A <a@b>", "100%"],
      },
    ])
  })

  it("A26: a server that fails while it was to be asked is an error, and nothing is verified", async () => {
    const image = path.join(newFolder("image", userId), "image.sif")
    copyFileSync(path.join(import.meta.dirname, "..", "vectors", "sif", "one-group-signed-pgp.sif"), image)
    const options = { keyServer: { url: "http://127.0.0.1:9", env: {} } }
    await throwsKeyServer(verify(image, options), /refused/)
    await throwsKeyServer(open(image, { verify: options, purpose: "read" }), /refused/)
  })
})
