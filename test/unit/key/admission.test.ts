// What no key is, and what node:crypto would take for one: nothing of it may get there, from wherever it comes.
import assert from "node:assert/strict"
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { info } from "../../../lib/encryption/certificate-files.ts"
import { Credentials, resolveOpeners, resolveRecipients } from "../../../lib/encryption/credentials.ts"
import { KeyError } from "../../../lib/errors.ts"
import { admitKey, admitPrivateKey, admitPublicKey } from "../../../lib/key/admission.ts"
import { decodeRecipient, encodeCryptoMessage } from "../../../lib/key/crypto-message.ts"
import { parsePrivateKey, parsePublicKey, parseSigningKey } from "../../../lib/key/key-file.ts"
import { checkSigner } from "../../../lib/signing/dsse.ts"
import { readSignerKey } from "../../../lib/signing/keys.ts"
import { bits, integer, nothing, octets, oid, sequence, tagged, tlv } from "../../support/der.ts"
import { newFolder } from "../../support/scratch.ts"
import { generator, vector } from "../../vectors/load.ts"

const EC = "1.2.840.10045.2.1"
const RSA = "1.2.840.113549.1.1.1"
const P256 = "1.2.840.10045.3.1.7"
const curveIds = { "P-256": P256, "P-384": "1.3.132.0.34", "P-521": "1.3.132.0.35" } as const

const spki = (algorithm: Buffer, key: Buffer): Buffer => sequence(algorithm, bits(key))
const ec = (point: Buffer, parameters: Buffer = oid(P256)): Buffer =>
  spki(sequence(oid(EC), parameters), point)
const rsa = (modulus: bigint, exponent: bigint): Buffer =>
  spki(sequence(oid(RSA), nothing), sequence(integer(modulus), integer(exponent)))
const pem = (label: string, der: Buffer): Buffer =>
  Buffer.from(`-----BEGIN ${label}-----\n${der.toString("base64")}\n-----END ${label}-----\n`)

/** A point of a curve, uncompressed, and its scalar. */
function pointOf(curve: keyof typeof curveIds): {
  readonly x: Buffer
  readonly y: Buffer
  readonly d: Buffer
} {
  const jwk = generateKeyPairSync("ec", { namedCurve: curve }).privateKey.export({ format: "jwk" })
  const [x, y, d] = [jwk.x, jwk.y, jwk.d].map((text) => Buffer.from(text ?? "", "base64url"))
  return { x: x!, y: y!, d: d! }
}

const { x, y, d } = pointOf("P-256")
const point = Buffer.concat([Buffer.of(4), x, y])
const modulus = (1n << 2047n) | 1n
const changed = Buffer.from(point)
changed[64]! ^= 1

/** y² = x³ - 3x + b has no solution for half of all x. */
function withoutPoint(): Buffer {
  for (let byte = 0; ; byte++) {
    const candidate = Buffer.concat([Buffer.of(2, byte), Buffer.alloc(31, 7)])
    try {
      admitPublicKey(ec(candidate), "spki", "x")
    } catch {
      return candidate
    }
  }
}

const evil: readonly (readonly [string, Buffer, string])[] = [
  ["EC key at the point at infinity", ec(Buffer.of(0)), "ERR_KEY_DAMAGED"],
  ["EC key that is not on its curve", ec(changed), "ERR_KEY_DAMAGED"],
  ["compressed EC key that is no point", ec(withoutPoint()), "ERR_KEY_DAMAGED"],
  ["EC key with a coordinate above the prime", ec(Buffer.concat([Buffer.of(4), Buffer.alloc(64, 0xff)])), "ERR_KEY_DAMAGED"],
  ["EC key in the hybrid form", ec(Buffer.concat([Buffer.of(6 + (y.at(-1)! & 1)), x, y])), "ERR_KEY_DAMAGED"],
  ["empty EC key", ec(Buffer.alloc(0)), "ERR_KEY_DAMAGED"],
  ["EC key without parameters", spki(sequence(oid(EC)), point), "ERR_KEY_DAMAGED"],
  ["EC key with parameters of its own", createPublicKey(generateKeyPairSync("ec", { namedCurve: "P-256", paramEncoding: "explicit" }).privateKey).export({ type: "spki", format: "der" }), "ERR_KEY_UNSUPPORTED"],
  ...["secp224r1", "prime192v1", "secp112r1", "secp256k1", "brainpoolP256r1"].map(
    (namedCurve) =>
      [`EC key on ${namedCurve}`, generateKeyPairSync("ec", { namedCurve }).publicKey.export({ type: "spki", format: "der" }), "ERR_KEY_UNSUPPORTED"] as const,
  ),
  ["DSA key", generateKeyPairSync("dsa", { modulusLength: 1024, divisorLength: 160 }).publicKey.export({ type: "spki", format: "der" }), "ERR_KEY_TYPE"],
  ["key of a kind that nobody knows", spki(sequence(oid("1.2.3.4")), Buffer.of(1)), "ERR_KEY_TYPE"],
  ["RSA key with the exponent 1", rsa(modulus, 1n), "ERR_KEY_WEAK"],
  ["RSA key with the exponent 0", rsa(modulus, 0n), "ERR_KEY_DAMAGED"],
  ["RSA key with a huge exponent", rsa(modulus, (1n << 2046n) | 1n), "ERR_KEY_UNSUPPORTED"],
  ["RSA key with a huge modulus", rsa((1n << 16384n) | 1n, 65537n), "ERR_KEY_UNSUPPORTED"],
  ["RSA key with an even modulus", rsa(1n << 2047n, 65537n), "ERR_KEY_DAMAGED"],
  ["RSA key with the modulus 0", rsa(0n, 65537n), "ERR_KEY_DAMAGED"],
  ["RSA key with a negative modulus", spki(sequence(oid(RSA), nothing), sequence(tlv(2, Buffer.of(0x81)), integer(3))), "ERR_KEY_DAMAGED"],
  ["RSA key with something behind its numbers", spki(sequence(oid(RSA), nothing), sequence(integer(modulus), integer(3), integer(3))), "ERR_KEY_DAMAGED"],
  ["RSA key with parameters", spki(sequence(oid(RSA), oid(P256)), sequence(integer(modulus), integer(65537))), "ERR_KEY_DAMAGED"],
  ["Ed25519 key of 31 bytes", spki(sequence(oid("1.3.101.112")), Buffer.alloc(31, 1)), "ERR_KEY_DAMAGED"],
  ["X25519 key of 33 bytes", spki(sequence(oid("1.3.101.110")), Buffer.alloc(33, 1)), "ERR_KEY_DAMAGED"],
  ["key with BER lengths", sequence(tlv(0x30, Buffer.concat([oid(EC), oid(P256)]), { minimal: false }), bits(point)), "ERR_KEY_DAMAGED"],
  ["key with bytes behind the DER", Buffer.concat([ec(point), Buffer.of(0)]), "ERR_KEY_DAMAGED"],
] // prettier-ignore

describe("admitPublicKey", () => {
  for (const [what, der, code] of evil)
    it(`refuses: ${what}`, () => {
      assert.throws(() => admitPublicKey(der, "spki", "the file"), { name: "KeyError", code })
    })

  for (const [name, id] of Object.entries(curveIds))
    it(`takes in a key on ${name}, also compressed`, () => {
      const own = pointOf(name as keyof typeof curveIds)
      const whole = Buffer.concat([Buffer.of(4), own.x, own.y])
      const short = Buffer.concat([Buffer.of(2 + (own.y.at(-1)! & 1)), own.x])
      const keys = [whole, short].map((form) => admitPublicKey(ec(form, oid(id)), "spki", "the file"))
      assert.ok(keys[0]!.equals(keys[1]!))
      assert.equal(keys[1]!.export({ format: "jwk" }).y, own.y.toString("base64url"))
    })

  for (const type of ["ed25519", "ed448", "x25519", "x448"] as const)
    it(`takes in a key of ${type}`, () => {
      const { publicKey, privateKey } = generateKeyPairSync(type as "ed25519")
      admitPublicKey(publicKey.export({ type: "spki", format: "der" }), "spki", "the file")
      admitPrivateKey(privateKey.export({ type: "pkcs8", format: "der" }), "pkcs8", "the file", "the key")
    })

  it("refuses a changed key, or takes in one whose details can be asked for: 2000 mutations", () => {
    const rsaKey = generateKeyPairSync("rsa", { modulusLength: 2048 }).publicKey.export({
      type: "spki",
      format: "der",
    })
    const seed = Number(process.env["SIFCRYPT_SEED"] ?? Date.now() % 1_000_000) // in the message of what fails
    const next = generator(seed)
    for (let count = 0; count < 2000; count++) {
      const bytes = Buffer.from([ec(point), ec(Buffer.concat([Buffer.of(2), x])), rsaKey][count % 3]!)
      for (let times = next(3) + 1; times > 0; times--) bytes[next(bytes.length)] = next(256)
      try {
        const key = admitPublicKey(bytes, "spki", "the file")
        key.export({ format: "jwk" })
        assert.ok(key.asymmetricKeyDetails)
      } catch (error) {
        if (!(error instanceof KeyError))
          throw new Error(`seed ${seed}, ${bytes.toString("hex")}`, { cause: error })
      }
    }
  })
})

describe("admitPrivateKey", () => {
  const pkcs8 = (parameters: Buffer, key: Buffer): Buffer =>
    sequence(integer(0), sequence(oid(EC), parameters), octets(key))
  const sec1 = (scalar: Buffer, half?: Buffer, named?: Buffer): Buffer =>
    sequence(
      integer(1),
      octets(scalar),
      ...(named ? [tagged(0, named)] : []),
      ...(half ? [tagged(1, bits(half))] : []),
    )
  const order = Buffer.from("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", "hex")
  const bad: readonly (readonly [string, "pkcs8" | "sec1", Buffer])[] = [
    ["whose public half is the point at infinity", "pkcs8", pkcs8(oid(P256), sec1(d, Buffer.of(0)))],
    ["whose public half is on no curve", "pkcs8", pkcs8(oid(P256), sec1(d, changed))],
    ["whose scalar is 0", "pkcs8", pkcs8(oid(P256), sec1(Buffer.alloc(32)))],
    ["whose scalar is the order", "sec1", sec1(order, undefined, oid(P256))],
    ["whose scalar is too long", "sec1", sec1(Buffer.alloc(67, 1), undefined, oid(P256))],
    ["that names two curves", "pkcs8", pkcs8(oid(P256), sec1(d, point, oid("1.3.132.0.34")))],
    ["that names no curve", "sec1", sec1(d, point)],
  ]
  for (const [what, type, der] of bad)
    it(`refuses an EC key ${what}`, () => {
      assert.throws(() => admitPrivateKey(der, type, "the file", "the key"), {
        name: "KeyError",
        code: "ERR_KEY_DAMAGED",
      })
    })

  it("refuses parameters of the key's own, in either form", () => {
    const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256", paramEncoding: "explicit" })
    for (const type of ["pkcs8", "sec1"] as const)
      assert.throws(
        () => admitPrivateKey(privateKey.export({ type, format: "der" }), type, "the file", "the key"),
        {
          code: "ERR_KEY_UNSUPPORTED",
        },
      )
  })

  it("takes in an EC key without its public half", () => {
    const key = admitPrivateKey(pkcs8(oid(P256), sec1(d)), "pkcs8", "the file", "the key")
    assert.equal(createPublicKey(key).export({ format: "jwk" }).x, x.toString("base64url"))
  })
})

describe("a key that node:crypto cannot bear", () => {
  const infinity = ec(Buffer.of(0))
  const object = (): KeyObject => createPublicKey({ key: infinity, format: "der", type: "spki" })
  const refused = { code: /^ERR_(KEY_DAMAGED|KEY_MESSAGE|SIGNATURE_KEYRING)$/ }

  it("is refused in a key file, in each form that it can have there", async () => {
    for (const file of [infinity, pem("PUBLIC KEY", infinity)])
      for (const parse of [parsePublicKey, parsePrivateKey, parseSigningKey])
        await assert.rejects(parse(file, "key.pem"), (error: KeyError) =>
          /^ERR_KEY_(DAMAGED|PUBLIC)$/.test(error.code),
        )
  })

  it("is refused as a recipient's key in an image", () => {
    const message = Buffer.concat([encodeCryptoMessage(Buffer.alloc(256, 1)), pem("PUBLIC KEY", infinity)])
    assert.throws(() => decodeRecipient(message), refused)
  })

  it("is refused as a signer's key, and in a certificate", async () => {
    const folder = newFolder("admission")
    const file = path.join(folder, "key.pem")
    writeFileSync(file, pem("PUBLIC KEY", infinity))
    await assert.rejects(readSignerKey(file), refused)
    const certificate = path.join(folder, "certificate.pem")
    writeFileSync(certificate, vector("certificates/ec-infinity.pem"))
    await assert.rejects(readSignerKey(certificate), refused)
    await assert.rejects(info(certificate), refused)
    await assert.rejects(parsePublicKey(vector("certificates/ec-infinity.pem"), "certificate.pem"), refused)
  })

  it("is refused as a key object", async () => {
    assert.throws(() => admitKey(object(), "the key"), refused)
    assert.throws(() => checkSigner(object(), "the key"), refused)
    await assert.rejects(
      resolveRecipients(new Credentials([{ key: object() }]), () => undefined),
      refused,
    )
    const scalarless = createPrivateKey({
      key: sequence(
        integer(0),
        sequence(oid(EC), oid(P256)),
        octets(sequence(integer(1), octets(Buffer.alloc(32)))),
      ),
      format: "der",
      type: "pkcs8",
    })
    await assert.rejects(resolveOpeners(new Credentials([{ key: scalarless }])), refused)
    assert.throws(() => checkSigner(scalarless, "the key"), refused)
  })
})
