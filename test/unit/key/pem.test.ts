import assert from "node:assert/strict"
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import { MIN_MODULUS_BITS, modulusBits, parsePrivateKey, parsePublicKey } from "../../../lib/key/pem.ts"
import { vector } from "../../vectors/load.ts"

const strong = generateKeyPairSync("rsa", { modulusLength: 2048 })
const weak = generateKeyPairSync("rsa", { modulusLength: 1024 })
const elliptic = generateKeyPairSync("ec", { namedCurve: "P-256" })
const edwards = generateKeyPairSync("ed25519")

const pem = (key: KeyObject, type: "pkcs1" | "spki" | "pkcs8" | "sec1"): Buffer =>
  Buffer.from(key.export({ type, format: "pem" } as never))
const locked = (type: "pkcs1" | "pkcs8"): Buffer =>
  Buffer.from(
    strong.privateKey.export({ type, format: "pem", cipher: "aes-256-cbc", passphrase: "x" } as never),
  )

const sameKey = (a: KeyObject, b: KeyObject): boolean => a.equals(b)

describe("parsePublicKey", () => {
  for (const [what, file] of [
    ["PKCS#1", pem(strong.publicKey, "pkcs1")],
    ["SPKI", pem(strong.publicKey, "spki")],
    ["the public half of PKCS#1", pem(strong.privateKey, "pkcs1")],
    ["the public half of PKCS#8", pem(strong.privateKey, "pkcs8")],
    [
      "a key with text before and after",
      Buffer.from(`a key\n${pem(strong.publicKey, "spki").toString()}\nend`),
    ],
    ["a key with CRLF", Buffer.from(pem(strong.publicKey, "spki").toString().replaceAll("\n", "\r\n"))],
    [
      "a key after a block of another kind",
      Buffer.concat([pem(elliptic.privateKey, "sec1"), pem(strong.publicKey, "pkcs1")]),
    ],
  ] as const)
    it(`reads ${what}`, () => {
      const key = parsePublicKey(file, "key.pem")
      assert.equal(key.type, "public")
      assert.ok(sameKey(key, strong.publicKey))
    })

  it("reads the peer's key", () => {
    assert.equal(modulusBits(parsePublicKey(vector("peer/rsa_pub.pem"), "rsa_pub.pem")), 2048)
    assert.equal(modulusBits(parsePublicKey(vector("sif/rsa-public.pem"), "rsa-public.pem")), 4096)
  })

  it("A17: refuses a key that is too weak with a code of its own", () => {
    assert.throws(() => parsePublicKey(pem(weak.publicKey, "pkcs1"), "weak.pem"), {
      name: "KeyError",
      code: "ERR_KEY_WEAK",
      message: `weak.pem: an RSA key of 1024 bits is too weak, at least ${MIN_MODULUS_BITS} are needed`,
    })
  })

  for (const [what, file, says] of [
    ["nothing", Buffer.alloc(0), "a PEM public key is needed, found no PEM block"],
    ["text", Buffer.from("hello"), "a PEM public key is needed, found no PEM block"],
    ["binary", Buffer.alloc(4096, 0xff), "found no PEM block"],
    ["a block without an end", Buffer.from("-----BEGIN PUBLIC KEY-----\nAAAA\n"), "found no PEM block"],
    [
      "a certificate",
      Buffer.from("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
      "found PEM CERTIFICATE",
    ],
    [
      "an OpenSSH key",
      Buffer.from("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"),
      "found PEM OPENSSH PRIVATE KEY",
    ],
    ["an elliptic key", pem(elliptic.publicKey, "spki"), "an RSA key is needed, this is ec"],
    ["an Ed25519 key", vector("sif/ed25519-public.pem"), "an RSA key is needed, this is ed25519"],
    ["an Ed25519 private key", pem(edwards.privateKey, "pkcs8"), "an RSA key is needed, this is ed25519"],
    ["a protected PKCS#1 key", locked("pkcs1"), "protected by a password"],
    [
      "a damaged key",
      Buffer.from(pem(strong.publicKey, "spki").toString().replace("MII", "AAA")),
      "the PUBLIC KEY is damaged",
    ],
    [
      "a truncated key",
      Buffer.from("-----BEGIN RSA PUBLIC KEY-----\nMIIB\n-----END RSA PUBLIC KEY-----\n"),
      "the RSA PUBLIC KEY is damaged",
    ],
  ] as const)
    it(`A17: refuses ${what} and says what it is`, () => {
      assert.throws(
        () => parsePublicKey(file, "key.pem"),
        (error: Error & { code?: string }) => {
          assert.equal(error.name, "KeyError")
          assert.equal(error.code, "ERR_KEY_FORMAT")
          assert.ok(error.message.startsWith("key.pem: ") && error.message.includes(says), error.message)
          return true
        },
      )
    })
})

describe("parsePrivateKey", () => {
  for (const [what, file] of [
    ["PKCS#1", pem(strong.privateKey, "pkcs1")],
    ["PKCS#8", pem(strong.privateKey, "pkcs8")],
    [
      "a private key after a public one",
      Buffer.concat([pem(strong.publicKey, "spki"), pem(strong.privateKey, "pkcs8")]),
    ],
    ["an open key after a protected one", Buffer.concat([locked("pkcs8"), pem(strong.privateKey, "pkcs1")])],
  ] as const)
    it(`reads ${what}`, () => {
      const key = parsePrivateKey(file, "key.pem")
      assert.equal(key.type, "private")
      assert.ok(sameKey(key, strong.privateKey))
    })

  it("reads the peer's key, and a weak one: what exists still opens", () => {
    assert.equal(modulusBits(parsePrivateKey(vector("peer/rsa_pri.pem"), "rsa_pri.pem")), 2048)
    assert.equal(modulusBits(parsePrivateKey(pem(weak.privateKey, "pkcs1"), "weak.pem")), 1024)
  })

  for (const [what, file, says] of [
    ["nothing", Buffer.alloc(0), "a PEM private key is needed, found no PEM block"],
    ["a public key", pem(strong.publicKey, "pkcs1"), "a PEM private key is needed, found PEM RSA PUBLIC KEY"],
    [
      "both kinds of public key",
      Buffer.concat([pem(strong.publicKey, "pkcs1"), pem(strong.publicKey, "spki")]),
      "found PEM RSA PUBLIC KEY, PUBLIC KEY",
    ],
    ["a protected PKCS#1 key", locked("pkcs1"), "protected by a password, which is not supported"],
    ["a protected PKCS#8 key", locked("pkcs8"), "protected by a password, which is not supported"],
    ["an elliptic key", pem(elliptic.privateKey, "pkcs8"), "an RSA key is needed, this is ec"],
    ["an elliptic key of its own label", pem(elliptic.privateKey, "sec1"), "found PEM EC PRIVATE KEY"],
    ["an Ed25519 key", vector("sif/ed25519-private.pem"), "an RSA key is needed, this is ed25519"],
    ["a PGP key", vector("sif/pgp-private.asc"), "found PEM PGP PRIVATE KEY BLOCK"],
    [
      "a damaged key",
      Buffer.from(pem(strong.privateKey, "pkcs8").toString().replace("MII", "AAA")),
      "the PRIVATE KEY is damaged",
    ],
    [
      "a key cut short",
      Buffer.from("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n"),
      "the RSA PRIVATE KEY is damaged",
    ],
  ] as const)
    it(`A17: refuses ${what} and says what it is`, () => {
      assert.throws(
        () => parsePrivateKey(file, "key.pem"),
        (error: Error & { code?: string }) => {
          assert.equal(error.name, "KeyError")
          assert.equal(error.code, "ERR_KEY_FORMAT")
          assert.ok(error.message.startsWith("key.pem: ") && error.message.includes(says), error.message)
          return true
        },
      )
    })

  it("shows no part of a key in a message", () => {
    const text = pem(strong.privateKey, "pkcs8").toString().replace("MII", "AAA")
    const secret = text.split("\n")[3] ?? ""
    assert.throws(
      () => parsePrivateKey(Buffer.from(text), "key.pem"),
      (error: Error) => !error.message.includes(secret) && !String(error.cause).includes(secret),
    )
  })
})

describe("a hostile PEM file", () => {
  it("is refused soon", () => {
    for (const text of [
      "-----BEGIN A-----\n".repeat(58_000),
      "-----BEGIN ".repeat(95_000),
      "-".repeat(1 << 20),
    ])
      for (const parse of [parsePublicKey, parsePrivateKey]) {
        const started = performance.now()
        assert.throws(() => parse(Buffer.from(text), "evil.pem"), { code: "ERR_KEY_FORMAT" })
        assert.ok(performance.now() - started < 1000, `${Math.round(performance.now() - started)} ms`)
      }
  })
})
