// Layers that other programs have encrypted, and what was changed in them.
import assert from "node:assert/strict"
import { createHash, createPrivateKey, randomBytes } from "node:crypto"
import { closeSync, openSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { macOf, type Annotations } from "../../../lib/ocicrypt/annotations.ts"
import { checkLayer, LayerCipher, type CheckedLayer } from "../../../lib/ocicrypt/layer-cipher.ts"
import { jweRecipients } from "../../../lib/ocicrypt/jwe.ts"
import { LayerKey, readLayerKey, writeLayerKey } from "../../../lib/ocicrypt/layer-key.ts"
import { LayerKeys } from "../../../lib/ocicrypt/layer-keys.ts"
import { readPgpKeys } from "../../../lib/ocicrypt/pgp.ts"
import { newFolder } from "../../support/scratch.ts"
import { vectorPath } from "../../vectors/load.ts"

interface Vector {
  readonly name: string
  readonly keys: readonly string[]
  readonly plaintext: string
  readonly annotations: Annotations
  readonly ciphertext: string
}

const vectors = JSON.parse(readFileSync(vectorPath("ocicrypt/layers.json"), "utf8")) as Vector[]
const PUBOPTS = "org.opencontainers.image.enc.pubopts"
const JWE = "org.opencontainers.image.enc.keys.jwe"

async function keysOf(name: string): Promise<LayerKeys> {
  const file = readFileSync(vectorPath(`ocicrypt/keys/${name}`))
  const pgpKeys = await readPgpKeys(file, name)
  return new LayerKeys({
    keys: pgpKeys === undefined ? [createPrivateKey(file)] : [],
    pgpKeys: pgpKeys ?? [],
  })
}

const folder = newFolder("layers")

/** What is found in a file with these bytes. */
async function checked(bytes: Buffer, ...how: Tail<Parameters<typeof checkLayer>>): Promise<CheckedLayer> {
  const file = path.join(folder, "ciphertext")
  writeFileSync(file, bytes)
  const fd = openSync(file, "r")
  try {
    return await checkLayer({ fd, offset: 0, size: bytes.length }, ...how)
  } finally {
    closeSync(fd)
  }
}
type Tail<T extends readonly unknown[]> = T extends readonly [unknown, ...infer Rest] ? Rest : never

function vectorNamed(name: string): Vector {
  const found = vectors.find((one) => one.name === name)
  assert.ok(found !== undefined)
  return found
}

describe("encrypted layers of other programs", () => {
  for (const { name, keys, plaintext, annotations, ciphertext } of vectors)
    for (const key of keys)
      it(`${name} opens with ${key}, to what was encrypted`, async () => {
        const layerKey = await (await keysOf(key)).unwrap(annotations, "it")
        const bytes = Buffer.from(ciphertext, "base64")
        const found = await checked(bytes, layerKey, macOf(annotations, "it"))
        assert.deepEqual(
          [found.isAuthentic, `sha256:${found.plainDigest.toString("hex")}`],
          [true, plaintext],
        )
      })

  it("no other key opens any of them, and which one was tried is not told", async () => {
    for (const { name, keys, annotations } of vectors)
      for (const other of ["rsa2.pem", "ec1.pem", "p7b.key.pem", "pgp1.sec.gpg"]) {
        if (keys.includes(other)) continue
        await assert.rejects(
          (await keysOf(other)).unwrap(annotations, "it"),
          { code: "ERR_KEY_MISMATCH", message: /^it: none of the keys opens it: its key is wrapped by / },
          `${name} with ${other}`,
        )
      }
  })

  it("are said to need a key where none was given", async () => {
    const none = new LayerKeys({})
    await assert.rejects(none.unwrap(vectorNamed("mixed").annotations, "it"), {
      code: "ERR_KEY_MISSING",
      message: "it is encrypted and no key was given: its key is wrapped by jwe, pgp, pkcs7",
    })
  })

  it("are not authentic when any byte is another one, or is missing", async () => {
    const { annotations, ciphertext, keys } = vectorNamed("jwe-rsa")
    const layerKey = await (await keysOf(keys[0] ?? "")).unwrap(annotations, "it")
    const mac = macOf(annotations, "it")
    const good = Buffer.from(ciphertext, "base64")
    for (let at = 0; at < good.length; at += 37) {
      const bad = Buffer.from(good)
      bad[at] = (bad[at] ?? 0) ^ 1
      assert.equal((await checked(bad, layerKey, mac)).isAuthentic, false, `byte ${at}`)
      const short = good.subarray(0, at)
      assert.equal((await checked(short, layerKey, mac)).isAuthentic, false, `${at} bytes`)
    }
  })

  it("are compared with their digests and MACs at any length, up to where the counter carries", async () => {
    // The last counters before all of it is 0 again.
    const key = new LayerKey(randomBytes(32), Buffer.alloc(16, 0xff), undefined)
    for (const size of [0, 1, 15, 17, 16_385, (1 << 20) - 1, 1 << 20, (5 << 20) + 7]) {
      const plaintext = randomBytes(size)
      const cipher = new LayerCipher(key)
      const ciphertext = cipher.encrypt(plaintext)
      const mac = cipher.mac()
      for (const algorithm of ["sha256", "sha512"]) {
        const digest = createHash(algorithm).update(ciphertext).digest()
        const found = await checked(ciphertext, key, mac, { digest })
        assert.deepEqual([found.isAuthentic, found.matches], [true, true], `${size} bytes`)
        assert.deepEqual(found.plainDigest, createHash("sha256").update(plaintext).digest())
        digest[0] = (digest[0] ?? 0) ^ 1
        const other = await checked(ciphertext, key, Buffer.alloc(32), { digest })
        assert.deepEqual([other.isAuthentic, other.matches], [false, false])
      }
    }
  })

  it("are not read on when the signal says so", async () => {
    const stop = new AbortController()
    const key = new LayerKey(randomBytes(32), randomBytes(16), undefined)
    const work = checked(Buffer.alloc(64 << 20), key, Buffer.alloc(32), { signal: stop.signal })
    stop.abort(new Error("enough"))
    await assert.rejects(work, /enough/)
    await assert.rejects(checked(Buffer.alloc(1), key, Buffer.alloc(32), { signal: stop.signal }), /enough/)
  })

  it("say where the counter begins only to those who have the key", () => {
    const { annotations } = vectorNamed("jwe-rsa")
    const options = JSON.parse(Buffer.from(annotations[PUBOPTS] ?? "", "base64").toString()) as object
    const with_ = (change: object): Annotations => ({
      ...annotations,
      [PUBOPTS]: Buffer.from(JSON.stringify({ ...options, ...change })).toString("base64"),
    })
    const cases: [object, string, RegExp][] = [
      [{ cipheroptions: { nonce: "AAAAAAAAAAAAAAAAAAAAAA==" } }, "ERR_OCI_FORMAT", /initial counter/],
      [{ cipher: "AES_128_ECB" }, "ERR_OCI_UNSUPPORTED", /AES_128_ECB/],
      [{ cipher: undefined }, "ERR_OCI_FORMAT", /no cipher/],
      [{ hmac: undefined }, "ERR_OCI_FORMAT", /no MAC/],
      [{ hmac: "" }, "ERR_OCI_FORMAT", /MAC is no base64/],
      [{ hmac: "AAAA" }, "ERR_OCI_FORMAT", /no MAC of 32 bytes/],
    ]
    for (const [change, code, message] of cases)
      assert.throws(() => macOf(with_(change), "it"), { code, message }, JSON.stringify(change))
    assert.throws(() => macOf({}, "it"), { code: "ERR_OCI_FORMAT" })
  })

  it("take algorithms that suit the key, and no others", async () => {
    const { annotations, keys } = vectorNamed("jwe-rsa")
    const message = JSON.parse(Buffer.from(annotations[JWE] ?? "", "base64").toString()) as object
    for (const alg of ["dir", "RSA1_5", "A256KW", "PBES2-HS256+A128KW", "none"]) {
      const header = Buffer.from(JSON.stringify({ alg, enc: "A256GCM", p2c: 1e9, p2s: "AAAA" }))
      const bad = JSON.stringify({ ...message, protected: header.toString("base64url") })
      const changed = { ...annotations, [JWE]: Buffer.from(bad).toString("base64") }
      await assert.rejects((await keysOf(keys[0] ?? "")).unwrap(changed, "it"), { code: "ERR_KEY_MISMATCH" })
    }
  })

  it("open whatever else is wrapped in a way that nobody can read", async () => {
    const { annotations, keys } = vectorNamed("pkcs7")
    const broken = Buffer.from("broken").toString("base64")
    const schemes = ["jwe", "pkcs11", "pkcs7"].map((scheme) => `org.opencontainers.image.enc.keys.${scheme}`)
    const all: Record<string, string> = { ...annotations }
    for (const scheme of schemes) all[scheme] = [broken, ...(all[scheme]?.split(",") ?? [])].join(",")
    const opener = await keysOf(keys[0] ?? "")
    using key = await opener.unwrap(all, "it")
    assert.ok(key.key.length > 0)
    const nothing = Object.fromEntries(schemes.map((scheme) => [scheme, broken]))
    await assert.rejects(opener.unwrap(nothing, "it"), { code: "ERR_OCI_FORMAT" })
  })

  it("say for whom they are in a few words, whatever is written there", () => {
    const recipients = Array.from({ length: 256 }, () => ({}))
    const base64 = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url")
    const names = (message: unknown): string[] =>
      jweRecipients(Buffer.from(typeof message === "string" ? message : JSON.stringify(message)), "it")
    assert.deepEqual(names(`${base64(null)}.a.b.c.d`), ["[jwe]"])
    for (const header of [null, "kid", 5, [], { kid: 5 }, "x".repeat(700_000)])
      assert.deepEqual(new Set(names({ header, protected: base64(header), recipients })), new Set(["[jwe]"]))
    const long = { kid: "k".repeat(700_000) }
    for (const message of [
      { header: long, recipients },
      { protected: base64(long), recipients },
    ])
      assert.equal(names(message).join("").length, 256 * (128 + "kid ".length))
    assert.deepEqual(names({ header: { kid: "all" }, recipients: [{ header: { kid: "own" } }, null] }), [
      "kid own",
      "kid all",
    ])
  })

  it("cost a bounded number of tries of private keys, however many are wrapped", async () => {
    const keys = await keysOf("rsa2.pem")
    const recipients = Array.from({ length: 257 }, () => ({
      header: { alg: "RSA-OAEP" },
      encrypted_key: "AA",
    }))
    const message = JSON.stringify({ protected: "e30", recipients, iv: "AA", ciphertext: "AA", tag: "AA" })
    const text = Buffer.from(message).toString("base64")
    await assert.rejects(keys.unwrap({ [JWE]: text }, "it"), { code: "ERR_OCI_LIMIT" })
    await assert.rejects(keys.unwrap({ [JWE]: Array.from({ length: 65 }, () => "AAAA").join(",") }, "it"), {
      code: "ERR_OCI_LIMIT",
    })
    const small = Buffer.from(JSON.stringify({ recipients: recipients.slice(1) })).toString("base64")
    const tries = async (): Promise<void> => {
      for (let layer = 0; layer < 200; layer++)
        await keys.unwrap({ [JWE]: small }, "it").catch((error: unknown) => {
          if ((error as { code?: string }).code !== "ERR_KEY_MISMATCH") throw error
        })
    }
    await assert.rejects(tries(), { code: "ERR_OCI_WORK" })
  })
})

describe("the key of a layer", () => {
  const key = (): Buffer => createHash("sha256").update("a key").digest()

  it("is read as it was written, and what was unwrapped is gone then", () => {
    const iv = Buffer.alloc(16, 7)
    const written = writeLayerKey(new LayerKey(key(), iv, "sha256:ab"))
    assert.equal(
      written.toString(),
      `{"symkey":"${key().toString("base64")}","digest":"sha256:ab","cipheroptions":{"nonce":"${iv.toString("base64")}"}}`,
    )
    const read = readLayerKey(written, "it")
    assert.deepEqual([read.key.equals(key()), read.iv.equals(iv), read.digest], [true, true, "sha256:ab"])
    assert.ok(written.every((byte) => byte === 0))
    read[Symbol.dispose]()
    assert.ok(read.key.every((byte) => byte === 0))
  })

  it("stands once in what was wrapped, whatever else stands there", () => {
    const nonce = Buffer.alloc(16).toString("base64")
    const good = key().toString("base64")
    const rest = `"cipheroptions":{"nonce":"${nonce}"}`
    for (const text of [
      `{"a":"\\"symkey","b":{"symkey":1},"symkey" : "${good}", ${rest}}`,
      `{${rest},"digest":null,"x":["symkey"],"symkey":"${good}"}`,
    ])
      assert.deepEqual(readLayerKey(Buffer.from(text), "it").key, key())
    for (const text of [
      "",
      "{}",
      `{${rest}}`,
      `{"symkey":"${good}","symkey":"${good}",${rest}}`,
      `{"symkey":"${good.slice(4)}",${rest}}`,
      `{"symkey":"${good.slice(0, -1)}!",${rest}}`,
      `{"symkey":7,${rest}}`,
      `{"symkey":"${good}"}`,
      `{"symkey":"${good}","cipheroptions":{"nonce":"AAAA"}}`,
      `{"symkey":"${good}",${rest},"digest":7}`,
      `{"symkey":"${good}",${rest}`,
      `"symkey`,
      `{"symkey":"`,
    ])
      assert.throws(() => readLayerKey(Buffer.from(text), "it"), { code: "ERR_OCI_FORMAT" }, text)
  })
})
