// A SIF at a registry where an image is named: run, read, built from; what is kept of it, and where.
import assert from "node:assert/strict"
import { copyFileSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import { generateKeyPairSync } from "node:crypto"
import path from "node:path"
import { build, open, push, sign, type OpenImageOptions } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { htpasswd, Registry, secret } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

describe("a SIF at a registry, by its name", () => {
  const keys = testKeys()
  const folder = newFolder("remote-sif", userId)
  const plain = path.join(folder, "plain.sif")
  const encrypted = path.join(folder, "encrypted.sif")
  const environment = { HOME: folder }
  const unlock = [{ key: { file: keys.privateKey } }]
  let registry: Registry
  let closed: Registry

  const pushed = (image: string, reference: string): ReturnType<typeof push> =>
    push({
      ...{ image, reference, unsigned: "allow" },
      registry: { environment, ...(reference.includes(closed.host) ? { credentials: secret } : {}) },
    })
  const images = (cache: string): string[] => {
    const place = path.join(cache, "images-1", "sha256")
    return existsSync(place) ? readdirSync(place).sort() : []
  }
  async function hello(name: string, cacheFolder: string, options: OpenImageOptions = {}): Promise<string> {
    const oci = { environment, cacheFolder, retryDelayMs: 1, ...options.oci }
    await using image = await open(name, { purpose: "read", ...options, oci })
    return (await image.readFile("/data/hello")).toString()
  }

  before(async () => {
    ;[registry, closed] = await Promise.all([Registry.start(), Registry.start({ htpasswd })])
    const source = makeRootTree()
    await build({ output: plain, source })
    await build({ output: encrypted, source, recipients: [{ key: { file: keys.publicKey } }] })
    await pushed(plain, `oras://${registry.host}/plain:1`)
    await pushed(encrypted, `oras://${registry.host}/encrypted:1`)
    await pushed(plain, `oras://${closed.host}/plain:1`)
    await pushed(encrypted, `oras://${closed.host}/encrypted:1`)
  })
  after(async () => {
    await Promise.all([registry, closed].map((one) => one[Symbol.asyncDispose]()))
  })

  it("is fetched once, and found again by its digest without the registry", async () => {
    const cache = newFolder("remote-cache")
    const name = `oras://${registry.host}/plain`
    assert.equal(await hello(`${name}:1`, cache), "hello\n")
    const [image = ""] = images(cache)
    assert.match(image, /^[0-9a-f]{64}$/)
    const file = path.join(cache, "images-1", "sha256", image)
    // The blob that pull fetches is the same file.
    assert.equal(statSync(file).nlink, 2)
    assert.deepEqual(readFileSync(file), readFileSync(plain))
    const gone = name.replace(registry.host, "127.0.0.1:1")
    assert.equal(await hello(`${gone}@sha256:${image}`, cache), "hello\n")
    await assert.rejects(hello(`${gone}:1`, cache), { code: "ERR_OCI_REGISTRY" })
    assert.equal(await hello(`${name}:1`, cache), "hello\n")
    assert.deepEqual(images(cache), [image])
  })

  it("opens with its key, and with no other", async () => {
    const cache = newFolder("remote-cache")
    const name = `oras://${registry.host}/encrypted:1`
    await assert.rejects(hello(name, cache), { code: "ERR_KEY_MISSING" })
    assert.equal(await hello(name, cache, { unlock }), "hello\n")
    await assert.rejects(hello(name, cache, { unlock: [{ key: { file: keys.otherPrivateKey } }] }), {
      code: "ERR_KEY_MISMATCH",
    })
    assert.equal(images(cache).length, 1)
  })

  it("that took a credential is kept if it is encrypted, and plain on no disk", async () => {
    const cache = newFolder("remote-cache")
    const oci = { credentials: secret }
    const notices: string[] = []
    const onNotice = (text: string): void => void notices.push(text)
    assert.equal(await hello(`oras://${closed.host}/plain:1`, cache, { oci, onNotice }), "hello\n")
    assert.match(notices.join("\n"), /took a credential to get and is not encrypted: it is not kept/)
    assert.deepEqual([images(cache), existsSync(path.join(cache, "blobs"))], [[], false])
    assert.equal(await hello(`oras://${closed.host}/encrypted:1`, cache, { oci, unlock }), "hello\n")
    const [image = ""] = images(cache)
    assert.match(image, /^[0-9a-f]{64}\.encrypted$/)
    const file = path.join(cache, "images-1", "sha256", image)
    assert.deepEqual([statSync(file).mode & 0o777, readFileSync(file)], [0o600, readFileSync(encrypted)])
    const pinned = `oras://${closed.host}/encrypted@sha256:${image.slice(0, 64)}`
    assert.equal(await hello(pinned, cache, { unlock }), "hello\n")
  })

  it("is kept nowhere without a cache", async () => {
    const cache = path.join(newFolder("remote-cache"), "none")
    const tmpFolder = newFolder("remote-tmp")
    const name = `oras://${registry.host}/plain:1`
    assert.equal(await hello(name, cache, { oci: { disableCache: true, tmpFolder } }), "hello\n")
    assert.deepEqual([existsSync(cache), readdirSync(tmpFolder)], [false, []])
  })

  it("is verified as a file is", async () => {
    const keyPath = path.join(folder, "signer.pem")
    const { privateKey, publicKey } = generateKeyPairSync("ed25519")
    writeFileSync(keyPath, privateKey.export({ type: "pkcs8", format: "pem" }))
    const publicPath = path.join(folder, "signer.pub")
    writeFileSync(publicPath, publicKey.export({ type: "spki", format: "pem" }))
    const signed = path.join(folder, "signed.sif")
    copyFileSync(plain, signed)
    await sign(signed, { keyPath })
    await pushed(signed, `oras://${registry.host}/signed:1`)
    const cache = newFolder("remote-cache")
    const verify = { keyPaths: [publicPath] }
    assert.equal(await hello(`oras://${registry.host}/signed:1`, cache, { verify }), "hello\n")
    await assert.rejects(hello(`oras://${registry.host}/plain:1`, cache, { verify }), {
      code: "ERR_SIGNATURE_MISSING",
    })
    const output = path.join(newFolder("remote-built"), "image.sif")
    const oci = { environment, cacheFolder: cache }
    await build({ output, source: `oras://${registry.host}/signed:1`, verify, oci })
    await assert.rejects(
      build({ output, force: true, source: `oras://${registry.host}/plain:1`, verify, oci }),
      { code: "ERR_SIGNATURE_MISSING" },
    )
  })

  it("is what an image is built from, opened with the key of the source", async () => {
    const oci = { environment, cacheFolder: newFolder("remote-cache"), credentials: secret }
    for (const [host, name] of [
      [registry.host, "encrypted:1"],
      [closed.host, "encrypted:1"],
      [closed.host, "plain:1"],
    ] as const) {
      const output = path.join(newFolder("remote-built"), "image.sif")
      await build({ output, source: `oras://${host}/${name}`, unlock, oci })
      assert.equal(await hello(output, folder), "hello\n")
    }
  })

  it("runs, is listed, mounted and built on by the command", async () => {
    const cache = newFolder("remote-cache", userId)
    const env = { SIFCRYPT_CACHEDIR: cache }
    const name = `oras://${registry.host}/encrypted:1`
    const key = ["--pem-path", keys.privateKey]
    const run = await sifcryptOk(["exec", ...key, name, "cat", "/data/hello"], { env })
    assert.equal(run.text, "hello\n")
    assert.match((await sifcryptOk(["ls", ...key, name], { env })).text, /^data$/m)
    assert.match(
      (await sifcryptOk(["inspect", `oras://${registry.host}/plain:1`], { env })).stderr,
      /comes from/,
    )
    const work = newFolder("remote-definition", userId)
    const definition = path.join(work, "image.def")
    writeFileSync(
      definition,
      `Bootstrap: oras\nFrom: ${registry.host}/encrypted:1\n\n%post\n  cat /data/hello > /made\n`,
    )
    const output = path.join(work, "built.sif")
    await sifcryptOk(["build", "--source-pem-path", keys.privateKey, output, definition], { env })
    assert.equal((await sifcryptOk(["cat", output, "/made"], { env })).text, "hello\n")
    const library = await sifcrypt(["exec", "library://a/b:1", "true"], { env })
    assert.equal(library.status, 20)
    assert.match(library.stderr, /library: is not read here; instead: oras:\/\/HOST\/REPOSITORY/)
  })
})
