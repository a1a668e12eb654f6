import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes } from "node:crypto"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { KeyError } from "../../../lib/errors.ts"
import {
  decodeCryptoMessage,
  decodeRecipient,
  encodeCryptoMessage,
  MAX_MESSAGE_SIZE,
} from "../../../lib/key/crypto-message.ts"
import { parsePrivateKey } from "../../../lib/key/key-file.ts"
import { unwrapSecret, wrapSecret } from "../../../lib/key/rsa-oaep.ts"
import { openSif } from "../../../lib/sif/open.ts"
import { newFolder } from "../../support/scratch.ts"
import { generator, vector } from "../../vectors/load.ts"
import { processorMs } from "../../support/processor-time.ts"

async function peerMessage(name: string): Promise<Buffer> {
  await using image = await openSif(vector(name))
  return Buffer.from(await image.data(image.object(4), MAX_MESSAGE_SIZE))
}

const peerKey = await parsePrivateKey(vector("peer/rsa_pri.pem"), "rsa_pri.pem")

/** PEM around any DER. */
function pem(der: Buffer, label = "MESSAGE"): Buffer {
  const lines = der.toString("base64").match(/.{1,64}/g) ?? []
  return Buffer.from(`-----BEGIN ${label}-----\n${lines.join("\n")}\n-----END ${label}-----\n`)
}

describe("decodeCryptoMessage", () => {
  it("finds the peers' secrets: 64 bytes for LUKS, 32 hexadecimal digits for gocryptfs", async () => {
    const luks = unwrapSecret(peerKey, decodeCryptoMessage(await peerMessage("peer/luks-rsa2048.sif")))
    assert.equal(luks?.length, 64)
    const gocryptfs = unwrapSecret(
      peerKey,
      decodeCryptoMessage(await peerMessage("peer/gocryptfs-rsa2048.sif")),
    )
    assert.match(gocryptfs?.toString("latin1") ?? "", /^[0-9a-f]{32}$/)
  })

  it("accepts what the peers accept: any label, CRLF, no last line end, text around, bytes after the octets", async () => {
    const message = (await peerMessage("peer/luks-rsa2048.sif")).toString("latin1")
    const wrapped = decodeCryptoMessage(Buffer.from(message))
    assert.equal(wrapped.length, 256)
    const octets = Buffer.concat([Buffer.from([0x04, 0x82, 0x01, 0x00]), wrapped])
    for (const variant of [
      message.replaceAll("MESSAGE", "ANYTHING"),
      message.replaceAll("\n", "\r\n"),
      message.trimEnd(),
      `some text\n${message}more text\n`,
      pem(Buffer.concat([octets, Buffer.from("trailing")])).toString("latin1"),
    ])
      assert.deepEqual(decodeCryptoMessage(Buffer.from(variant, "latin1")), wrapped)
  })

  for (const [what, message] of [
    ["nothing", Buffer.alloc(0)],
    ["text", Buffer.from("hello")],
    ["zeros", Buffer.alloc(400)],
    ["a block without an end", Buffer.from("-----BEGIN MESSAGE-----\nBAEB\n")],
    ["an empty block", pem(Buffer.alloc(0))],
    ["no DER", pem(Buffer.from("hello world"))],
    ["an empty octet string", pem(Buffer.from([0x04, 0x00]))],
    ["an octet string cut short", pem(Buffer.from([0x04, 0x82, 0x01, 0x00, 0x01]))],
    ["an octet string of absurd length", pem(Buffer.from("04847fffffff00", "hex"))],
    ["an octet string of indefinite length", pem(Buffer.from("0480040100", "hex"))],
    ["a constructed octet string", pem(Buffer.from("2403040100", "hex"))],
    ["an integer", pem(Buffer.from([0x02, 0x01, 0x05]))],
    ["a sequence", pem(Buffer.from([0x30, 0x03, 0x04, 0x01, 0x00]))],
    ["a bit string", pem(Buffer.from([0x03, 0x02, 0x00, 0x01]))],
    ["sequences nested a thousand deep", pem(Buffer.from("3080".repeat(1000), "hex"))],
    ["more than 64 KiB", Buffer.alloc(MAX_MESSAGE_SIZE + 1, 0x41)],
  ] as const)
    it(`A17: refuses ${what} with a code of its own`, () => {
      assert.throws(() => decodeCryptoMessage(message), {
        name: "KeyError",
        code: "ERR_KEY_MESSAGE",
        message: "the crypto message is malformed",
      })
    })

  it("is done soon with 64 KiB of nested sequences", () => {
    const der = Buffer.from("3080".repeat(23_000), "hex")
    const started = processorMs()
    assert.throws(() => decodeCryptoMessage(pem(der)), { code: "ERR_KEY_MESSAGE" })
    assert.ok(processorMs() - started < 2000)
  })

  for (const [what, text] of [
    ["line ends", `-----BEGIN A-----\n${"\n".repeat(65_000)}`],
    ["blank lines between text", `-----BEGIN A-----\n${"a\n\n".repeat(21_000)}`],
    ["headers", `-----BEGIN A-----\n${"a: b\n".repeat(13_000)}\nAAAA\n-----END A-----\n`],
    ["folded headers", `-----BEGIN A-----\nX: ${" \n ".repeat(21_000)}\n\nAAAA\n-----END A-----\n`],
    ["beginnings", "-----BEGIN A-----\n".repeat(3600)],
    ["whole blocks", "-----BEGIN A-----\nAAAA\n-----END A-----\n".repeat(1500)],
    ["spaces", " ".repeat(65_000)],
  ] as const)
    it(`is done soon with 64 KiB of ${what}`, () => {
      const started = processorMs()
      assert.throws(() => decodeCryptoMessage(Buffer.from(text)), { code: "ERR_KEY_MESSAGE" })
      assert.ok(processorMs() - started < 1000)
    })

  it("reads or refuses mutated messages, and does nothing else", async () => {
    const message = await peerMessage("peer/luks-rsa2048.sif")
    const random = generator(400)
    let refused = 0
    for (let round = 0; round < 2000; round++) {
      const mutated = Buffer.from(message)
      for (let count = 1 + random(3); count > 0; count--) mutated[random(mutated.length)] = random(256)
      try {
        assert.ok(decodeCryptoMessage(mutated).length > 0)
      } catch (error) {
        if (!(error instanceof KeyError)) throw error
        assert.equal(error.code, "ERR_KEY_MESSAGE")
        refused++
      }
    }
    assert.ok(refused > 200 && refused < 2000, `${refused} of 2000 refused`)
  })
})

describe("encodeCryptoMessage", () => {
  for (const name of ["peer/luks-rsa2048.sif", "peer/gocryptfs-rsa2048.sif"])
    it(`writes the message of ${name} again to the same bytes`, async () => {
      const message = await peerMessage(name)
      assert.deepEqual(encodeCryptoMessage(decodeCryptoMessage(message)), message)
    })

  it("reads back any length", () => {
    for (const length of [1, 127, 128, 255, 256, 512, 1024, 4096]) {
      const bytes = randomBytes(length)
      assert.deepEqual(decodeCryptoMessage(encodeCryptoMessage(bytes)), bytes)
    }
  })
})

describe("the recipient's public key behind a message", () => {
  const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 })
  const message = encodeCryptoMessage(wrapSecret(publicKey, Buffer.alloc(64, 7)), publicKey)

  it("is read back, and is in nobody's way who wants the secret", () => {
    assert.equal(decodeRecipient(message)?.equals(publicKey), true)
    assert.deepEqual(unwrapSecret(privateKey, decodeCryptoMessage(message)), Buffer.alloc(64, 7))
  })

  it("is missing in an anonymous message and in the peers'", async () => {
    assert.equal(decodeRecipient(encodeCryptoMessage(Buffer.alloc(256, 1))), undefined)
    assert.equal(decodeRecipient(await peerMessage("peer/luks-rsa2048.sif")), undefined)
    assert.equal(decodeRecipient(Buffer.from(publicKey.export({ type: "spki", format: "pem" }))), undefined)
  })

  it("S35: is an RSA key of reasonable size, or an error", () => {
    const wrapped = encodeCryptoMessage(Buffer.alloc(256, 1))
    const behind = (pem: string): Buffer => Buffer.concat([wrapped, Buffer.from(pem)])
    const ec = generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey
    const huge = createPublicKey({
      key: {
        kty: "RSA",
        n: Buffer.alloc(4096, 0xff).toString("base64url"),
        e: "AQAB",
      },
      format: "jwk",
    })
    const slow = createPublicKey({
      key: {
        kty: "RSA",
        n: Buffer.alloc(256, 0xff).toString("base64url"),
        e: Buffer.alloc(200, 0xff).toString("base64url"),
      },
      format: "jwk",
    })
    const text = (key: typeof ec): string => key.export({ type: "spki", format: "pem" }).toString()
    const cut = text(publicKey)
    for (const evil of [
      text(ec),
      text(huge),
      text(slow),
      cut.replace("MIIB", "MIIC"),
      cut.slice(0, -30),
      "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
    ])
      assert.throws(() => decodeRecipient(behind(evil)), {
        name: "KeyError",
        code: "ERR_KEY_MESSAGE",
        message: /public key in the crypto message/,
      })
    assert.throws(() => decodeRecipient(Buffer.alloc(MAX_MESSAGE_SIZE + 1)), { code: "ERR_KEY_MESSAGE" })
  })

  it("leaves the wrapped secret to `openssl pkeyutl`", () => {
    const key = privateKey.export({ type: "pkcs8", format: "pem" })
    const folder = newFolder("pkeyutl")
    const file = path.join(folder, "key.pem")
    writeFileSync(file, key)
    const options = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"]
    const plain = execFileSync(
      "openssl",
      ["pkeyutl", "-decrypt", "-inkey", file, ...options.flatMap((option) => ["-pkeyopt", option])],
      { input: decodeCryptoMessage(message) },
    )
    assert.deepEqual(plain, Buffer.alloc(64, 7))
  })
})

describe("wrapSecret and unwrapSecret", () => {
  const weak = generateKeyPairSync("rsa", { modulusLength: 1024 })
  const other = generateKeyPairSync("rsa", { modulusLength: 1024 })

  it("wraps in one chunk with 2048 bits", () => {
    const secret = randomBytes(64)
    const wrapped = wrapSecret(createPublicKey(vector("peer/rsa_pub.pem").toString()), secret)
    assert.equal(wrapped.length, 256)
    assert.deepEqual(unwrapSecret(peerKey, wrapped), secret)
  })

  it("splits 64 bytes into 62 and 2 with 1024 bits", () => {
    const secret = randomBytes(64)
    const wrapped = wrapSecret(weak.publicKey, secret)
    assert.equal(wrapped.length, 256)
    assert.deepEqual(unwrapSecret(weak.privateKey, wrapped), secret)
    assert.deepEqual(unwrapSecret(weak.privateKey, wrapped.subarray(0, 128)), secret.subarray(0, 62))
    assert.deepEqual(unwrapSecret(weak.privateKey, wrapped.subarray(128)), secret.subarray(62))
  })

  it("keeps any bytes: NUL, line ends and all", () => {
    for (const secret of [
      Buffer.alloc(64),
      Buffer.alloc(64, 0x0a),
      Buffer.alloc(62, 0xff),
      Buffer.alloc(125, 1),
    ])
      assert.deepEqual(unwrapSecret(weak.privateKey, wrapSecret(weak.publicKey, secret)), secret)
  })

  it("wraps the same secret to other bytes each time", () => {
    const secret = randomBytes(64)
    assert.ok(!wrapSecret(weak.publicKey, secret).equals(wrapSecret(weak.publicKey, secret)))
  })

  it("gives undefined, and no error, for another key's message", () => {
    const wrapped = wrapSecret(weak.publicKey, randomBytes(64))
    assert.equal(unwrapSecret(other.privateKey, wrapped), undefined)
    assert.equal(unwrapSecret(peerKey, wrapped), undefined)
  })

  it("gives undefined when a chunk is damaged, exchanged, cut or missing", () => {
    const wrapped = wrapSecret(weak.publicKey, randomBytes(64))
    const damaged = Buffer.from(wrapped)
    damaged[200] = (damaged[200] ?? 0) ^ 1
    const foreign = Buffer.concat([wrapped.subarray(0, 128), wrapSecret(other.publicKey, Buffer.alloc(2))])
    for (const evil of [damaged, foreign, wrapped.subarray(0, 255), wrapped.subarray(1), Buffer.alloc(0)])
      assert.equal(unwrapSecret(weak.privateKey, evil), undefined)
  })

  it("gives undefined for PKCS#1 v1.5 padding and for OAEP with SHA-1", async () => {
    const { publicEncrypt, constants } = await import("node:crypto")
    const secret = randomBytes(32)
    for (const padding of [
      { padding: constants.RSA_PKCS1_PADDING },
      { padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: "sha1" },
    ])
      assert.equal(
        unwrapSecret(weak.privateKey, publicEncrypt({ key: weak.publicKey, ...padding }, secret)),
        undefined,
      )
  })

  it("works with a modulus that is no whole number of bytes", () => {
    const odd = generateKeyPairSync("rsa", { modulusLength: 1028 })
    const secret = randomBytes(64)
    const wrapped = wrapSecret(
      createPublicKey(odd.publicKey.export({ type: "pkcs1", format: "pem" })),
      secret,
    )
    assert.equal(wrapped.length, 129 * 2)
    const key = createPrivateKey(odd.privateKey.export({ type: "pkcs1", format: "pem" }))
    assert.deepEqual(unwrapSecret(key, wrapped), secret)
  })
})
