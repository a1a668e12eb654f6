import assert from "node:assert/strict"
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import { encodeIntegers } from "../../../lib/key/der.ts"
import { MIN_MODULUS_BITS, parsePrivateKey, parsePublicKey } from "../../../lib/key/key-file.ts"
import { modulusBits } from "../../../lib/key/rsa-oaep.ts"
import { vector } from "../../vectors/load.ts"
import { processorMs } from "../../support/processor-time.ts"

const strong = generateKeyPairSync("rsa", { modulusLength: 2048 })
const weak = generateKeyPairSync("rsa", { modulusLength: 1024 })
const elliptic = generateKeyPairSync("ec", { namedCurve: "P-256" })
const edwards = generateKeyPairSync("ed25519")
const signing = generateKeyPairSync("rsa-pss", { modulusLength: 2048 })

const pem = (key: KeyObject, type: "pkcs1" | "spki" | "pkcs8" | "sec1"): Buffer =>
  Buffer.from(key.export({ type, format: "pem" } as never))
const der = (key: KeyObject, type: "pkcs1" | "spki" | "pkcs8" | "sec1"): Buffer =>
  key.export({ type, format: "der" } as never) as unknown as Buffer
const jwk = (key: KeyObject): Buffer => Buffer.from(JSON.stringify(key.export({ format: "jwk" })))
const locked = (type: "pkcs1" | "pkcs8"): Buffer =>
  Buffer.from(
    strong.privateKey.export({ type, format: "pem", cipher: "aes-256-cbc", passphrase: "x" } as never),
  )
const crlf = (file: Buffer): Buffer => Buffer.from(file.toString().replaceAll("\n", "\r\n"))
const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
const fields = strong.privateKey.export({ format: "jwk" })

type Parse = typeof parsePublicKey

async function assertRefused(parse: Parse, file: Buffer, code: string, says: string): Promise<void> {
  await assert.rejects(parse(file, "key.pem"), (error: Error & { code?: string }) => {
    assert.equal(error.name, "KeyError", String(error))
    assert.equal(error.code, code, error.message)
    assert.ok(error.message.startsWith("key.pem: ") && error.message.includes(says), error.message)
    return true
  })
}

/** A public key of any numbers, which nobody generates. */
const numbers = (modulus: Buffer, exponent: readonly number[]): Buffer =>
  encodeIntegers([modulus, Buffer.from(exponent)])
const modulus = Buffer.from(fields.n ?? "", "base64url")
const evenModulus = Buffer.from(modulus)
evenModulus[255] = 2

const neither = [
  ["nothing", Buffer.alloc(0), "ERR_KEY_FORMAT", "found nothing"],
  ["text", Buffer.from("hello"), "ERR_KEY_FORMAT", "found no key of a known form"],
  ["binary", Buffer.alloc(4096, 0xff), "ERR_KEY_FORMAT", "found no key of a known form"],
  ["digits", Buffer.from("0123456789"), "ERR_KEY_FORMAT", "found no key of a known form"],
  ["more than 1 MiB", Buffer.alloc((1 << 20) + 1), "ERR_KEY_FORMAT", "more than 1048576 bytes"],
  ["JSON without a key", json({ hello: 1 }), "ERR_KEY_FORMAT", "found JSON without a key"],
  [
    "JSON that is no object",
    Buffer.from("{"),
    "ERR_KEY_DAMAGED",
    "the JSON of a JWK is damaged or cut short",
  ],
  ["a PGP key", vector("sif/pgp-private.asc"), "ERR_KEY_FORMAT", "found PEM PGP PRIVATE KEY BLOCK"],
  ["a PuTTY key", Buffer.from("PuTTY-User-Key-File-3: ssh-rsa\n"), "ERR_KEY_FORMAT", "found a PuTTY key"],
  [
    "an SSH2 public key",
    Buffer.from("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n"),
    "ERR_KEY_FORMAT",
    "found an SSH2 public key",
  ],
  [
    "parameters only",
    Buffer.from("-----BEGIN DH PARAMETERS-----\nMAYCAQUCAQU=\n-----END DH PARAMETERS-----\n"),
    "ERR_KEY_FORMAT",
    "found PEM DH PARAMETERS",
  ],
  [
    "a certificate of zeros",
    Buffer.from("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    "ERR_KEY_DAMAGED",
    "the PEM CERTIFICATE is damaged or cut short",
  ],
  [
    "an OpenSSH key of zeros",
    Buffer.from("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"),
    "ERR_KEY_DAMAGED",
    "an OpenSSH private key is damaged or cut short",
  ],
  ["an OpenSSH line of zeros", Buffer.from("ssh-rsa AAAA me\n"), "ERR_KEY_DAMAGED", "OpenSSH public key"],
  ["an OpenSSH line of nothing", Buffer.from("ssh-rsa\n"), "ERR_KEY_DAMAGED", "OpenSSH public key"],
  [
    "an OpenSSH line of another kind",
    Buffer.from("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== me\n"),
    "ERR_KEY_TYPE",
    "an RSA key is needed, found an OpenSSH public key of type ssh-ed25519",
  ],
  [
    "an elliptic key",
    pem(elliptic.publicKey, "spki"),
    "ERR_KEY_TYPE",
    "an RSA key is needed, found an EC key",
  ],
  ["an elliptic private key", pem(elliptic.privateKey, "pkcs8"), "ERR_KEY_TYPE", "found an EC key"],
  ["an elliptic key of its own label", pem(elliptic.privateKey, "sec1"), "ERR_KEY_TYPE", "found an EC key"],
  ["an elliptic key in DER", der(elliptic.privateKey, "sec1"), "ERR_KEY_TYPE", "found an EC key"],
  ["an elliptic JWK", jwk(elliptic.privateKey), "ERR_KEY_TYPE", "found a JWK of type EC"],
  ["a symmetric JWK", json({ kty: "oct", k: "AAAA" }), "ERR_KEY_TYPE", "found a JWK of type oct"],
  ["an Ed25519 key", vector("sif/ed25519-public.pem"), "ERR_KEY_TYPE", "found an Ed25519 key"],
  ["an Ed25519 private key", pem(edwards.privateKey, "pkcs8"), "ERR_KEY_TYPE", "found an Ed25519 key"],
  ["an RSA-PSS key", pem(signing.publicKey, "spki"), "ERR_KEY_TYPE", "an RSA-PSS key, which can only sign"],
  ["an RSA-PSS private key", der(signing.privateKey, "pkcs8"), "ERR_KEY_TYPE", "which can only sign"],
  [
    "a key of an algorithm nobody knows",
    Buffer.from("300c300706052a0304050603010000", "hex"),
    "ERR_KEY_TYPE",
    "an SPKI public key of algorithm 1.2.3.4.5",
  ],
  [
    "a key with a modulus of 16392 bits",
    numbers(Buffer.alloc(2049, 0xff), [1, 0, 1]),
    "ERR_KEY_UNSUPPORTED",
    "an RSA key of 16392 bits (at most 16384), which is not supported",
  ],
  [
    "a JWK with three primes",
    json({ ...fields, oth: [] }),
    "ERR_KEY_UNSUPPORTED",
    "a JWK with more than two primes",
  ],
  ["a JWK without its modulus", json({ ...fields, n: 1 }), "ERR_KEY_DAMAGED", "n of a JWK"],
  [
    "an EC key under RFC 1421",
    Buffer.from(
      elliptic.privateKey.export({ type: "sec1", format: "pem", cipher: "aes-128-cbc", passphrase: "x" }),
    ),
    "ERR_KEY_TYPE",
    "found an encrypted EC PRIVATE KEY",
  ],
  [
    "a damaged key",
    Buffer.from(pem(strong.privateKey, "pkcs8").toString().replace("MII", "AAA")),
    "ERR_KEY_DAMAGED",
    "the PEM PRIVATE KEY is damaged or cut short",
  ],
  [
    "a key cut short",
    Buffer.from("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n"),
    "ERR_KEY_DAMAGED",
    "the PEM RSA PRIVATE KEY is damaged or cut short",
  ],
  [
    "a block without an end",
    Buffer.from("-----BEGIN PRIVATE KEY-----\nAAAA\n"),
    "ERR_KEY_DAMAGED",
    "the PEM PRIVATE KEY is damaged or cut short",
  ],
  [
    "a protected PKCS#1 key",
    locked("pkcs1"),
    "ERR_KEY_LOCKED",
    "found an encrypted RSA PRIVATE KEY; its password is needed and none was given",
  ],
  ["a protected PKCS#8 key", locked("pkcs8"), "ERR_KEY_LOCKED", "found an encrypted PKCS#8 private key"],
] as const

describe("parsePublicKey", () => {
  for (const [what, file] of [
    ["PKCS#1", pem(strong.publicKey, "pkcs1")],
    ["SPKI", pem(strong.publicKey, "spki")],
    ["PKCS#1 in DER", der(strong.publicKey, "pkcs1")],
    ["SPKI in DER", der(strong.publicKey, "spki")],
    ["the public half of PKCS#1", pem(strong.privateKey, "pkcs1")],
    ["the public half of PKCS#8", pem(strong.privateKey, "pkcs8")],
    ["the public half of PKCS#8 in DER", der(strong.privateKey, "pkcs8")],
    ["a JWK", jwk(strong.publicKey)],
    ["the public half of a JWK", jwk(strong.privateKey)],
    ["a JWK behind a byte order mark", Buffer.concat([Buffer.from("\uFEFF \n"), jwk(strong.publicKey)])],
    [
      "a JWK set with one RSA key",
      json({
        keys: [elliptic.publicKey.export({ format: "jwk" }), strong.publicKey.export({ format: "jwk" })],
      }),
    ],
    [
      "a key with text before and after",
      Buffer.from(`a key\n${pem(strong.publicKey, "spki").toString()}\nend`),
    ],
    ["a key with CRLF", crlf(pem(strong.publicKey, "spki"))],
    [
      "a key after a block of another kind",
      Buffer.concat([pem(elliptic.privateKey, "sec1"), pem(strong.publicKey, "pkcs1")]),
    ],
    ["an open key beside a protected one", Buffer.concat([locked("pkcs8"), pem(strong.publicKey, "spki")])],
    [
      "a key after a damaged one",
      Buffer.concat([Buffer.from("-----BEGIN PUBLIC KEY-----\n"), pem(strong.publicKey, "spki")]),
    ],
  ] as const)
    it(`A4: reads ${what}`, async () => {
      const key = await parsePublicKey(file, "key.pem")
      assert.equal(key.type, "public")
      assert.ok(key.equals(strong.publicKey))
    })

  it("reads the peer's key", async () => {
    assert.equal(modulusBits(await parsePublicKey(vector("peer/rsa_pub.pem"), "rsa_pub.pem")), 2048)
    assert.equal(modulusBits(await parsePublicKey(vector("sif/rsa-public.pem"), "rsa-public.pem")), 4096)
  })

  it("A17: refuses a key that is too weak with a code of its own", async () => {
    await assert.rejects(parsePublicKey(pem(weak.publicKey, "pkcs1"), "weak.pem"), {
      name: "KeyError",
      code: "ERR_KEY_WEAK",
      message: `weak.pem: an RSA key of 1024 bits is too weak, at least ${MIN_MODULUS_BITS} are needed`,
    })
  })

  for (const [what, file, code, says] of [
    ["an exponent of one", numbers(modulus, [1]), "ERR_KEY_WEAK", "the exponent 1 hides nothing"],
    ["an even exponent", numbers(modulus, [4]), "ERR_KEY_DAMAGED", "the RSA key is damaged"],
    ["an even modulus", numbers(evenModulus, [1, 0, 1]), "ERR_KEY_DAMAGED", "the RSA key is damaged"],
    [
      "an absurd exponent",
      numbers(modulus, [1, 0, 0, 0, 0, 1]),
      "ERR_KEY_UNSUPPORTED",
      "exponent 1099511627777",
    ],
  ] as const)
    it(`A17: refuses a key with ${what}`, async () => {
      await assertRefused(parsePublicKey, file, code, says)
    })

  for (const [what, file, code, says] of neither)
    it(`A4, S35: refuses ${what} and says what it is`, async () => {
      await assertRefused(parsePublicKey, file, code, says)
    })
})

describe("parsePrivateKey", () => {
  for (const [what, file, password] of [
    ["PKCS#1", pem(strong.privateKey, "pkcs1")],
    ["PKCS#8", pem(strong.privateKey, "pkcs8")],
    ["PKCS#1 in DER", der(strong.privateKey, "pkcs1")],
    ["PKCS#8 in DER", der(strong.privateKey, "pkcs8")],
    ["DER with bytes behind it", Buffer.concat([der(strong.privateKey, "pkcs8"), Buffer.from("\n")])],
    ["a JWK", jwk(strong.privateKey)],
    [
      "a private key after a public one",
      Buffer.concat([pem(strong.publicKey, "spki"), pem(strong.privateKey, "pkcs8")]),
    ],
    ["an open key after a protected one", Buffer.concat([locked("pkcs8"), pem(strong.privateKey, "pkcs1")])],
    [
      "a key after one of another kind",
      Buffer.concat([pem(edwards.privateKey, "pkcs8"), pem(strong.privateKey, "pkcs8")]),
    ],
    [
      "a label that says another form",
      Buffer.from(pem(strong.privateKey, "pkcs1").toString().replaceAll("RSA PRIVATE", "PRIVATE")),
    ],
    ["a protected PKCS#1 key", locked("pkcs1"), "x"],
    ["a protected PKCS#1 key with CRLF", crlf(locked("pkcs1")), "x"],
    ["a protected PKCS#8 key", locked("pkcs8"), "x"],
  ] as const)
    it(`A4: reads ${what}`, async () => {
      const key = await parsePrivateKey(
        file,
        "key.pem",
        password === undefined ? undefined : Buffer.from(password),
      )
      assert.equal(key.type, "private")
      assert.ok(key.equals(strong.privateKey))
    })

  it("reads the peer's key, and a weak one: what exists still opens", async () => {
    assert.equal(modulusBits(await parsePrivateKey(vector("peer/rsa_pri.pem"), "rsa_pri.pem")), 2048)
    assert.equal(modulusBits(await parsePrivateKey(pem(weak.privateKey, "pkcs1"), "weak.pem")), 1024)
  })

  for (const [what, file, code, says] of [
    ...neither,
    [
      "a public key",
      pem(strong.publicKey, "pkcs1"),
      "ERR_KEY_PUBLIC",
      "a private key is needed, found a PKCS#1 public key",
    ],
    [
      "both kinds of public key",
      Buffer.concat([pem(strong.publicKey, "pkcs1"), pem(strong.publicKey, "spki")]),
      "ERR_KEY_PUBLIC",
      "found a PKCS#1 public key, an SPKI public key",
    ],
    [
      "a public JWK",
      jwk(strong.publicKey),
      "ERR_KEY_PUBLIC",
      "a private key is needed, found a JWK with a public key",
    ],
  ] as const)
    it(`A4, S35: refuses ${what} and says what it is`, async () => {
      await assertRefused(parsePrivateKey, file, code, says)
    })

  for (const type of ["pkcs1", "pkcs8"] as const)
    it(`A5: tells a wrong password of ${type} by a code of its own, whatever comes out of it`, async () => {
      const file = locked(type)
      // One wrong password in 256 gives good padding, and then no key.
      for (let number = 0; number < (type === "pkcs1" ? 1000 : 100); number++)
        await assert.rejects(parsePrivateKey(file, "key.pem", Buffer.from(`wrong ${number}`)), {
          code: "ERR_KEY_PASSPHRASE",
        })
    })

  it("S35: does not pay for a derivation that takes minutes", async () => {
    const encrypted = Buffer.from(
      strong.privateKey.export({ type: "pkcs8", format: "der", cipher: "aes-256-cbc", passphrase: "x" }),
    )
    const at = encrypted.indexOf(Buffer.from("02020800", "hex"))
    assert.ok(at > 0)
    // 2048 iterations become 2^31-1: the number grows by two bytes, and so does all around it.
    const costly = Buffer.concat([
      encrypted.subarray(0, at),
      Buffer.from("02047fffffff", "hex"),
      encrypted.subarray(at + 4),
    ])
    costly.writeUInt16BE(costly.length - 4, 2)
    for (let parent = 4; parent < at;) {
      const long = costly[parent + 1] === 0x82
      const start = parent + (long ? 4 : 2)
      if (costly[parent] === 0x30 && start < at) {
        const length = costly[parent + 1] ?? 0
        if (start + length >= at) {
          costly[parent + 1] = length + 2
          parent = start
          continue
        }
      }
      parent = start + (costly[parent + 1] ?? 0)
    }
    const started = processorMs()
    await assert.rejects(parsePrivateKey(costly, "key.pem", Buffer.from("x")), {
      code: "ERR_KEY_UNSUPPORTED",
      message: /2147483647 iterations \(at most 20000000 in a file\)/,
    })
    assert.ok(processorMs() - started < 1000)
  })

  it("shows no part of a key in a message", async () => {
    for (const broken of [
      Buffer.from(pem(strong.privateKey, "pkcs8").toString().replace("MII", "AAA")),
      Buffer.from(jwk(strong.privateKey).toString().slice(0, -1)),
    ]) {
      const secret = broken.toString().includes("PRIVATE")
        ? (broken.toString().split("\n")[3] ?? "")
        : (fields.d ?? "")
      await assert.rejects(
        parsePrivateKey(broken, "key.pem"),
        (error: Error) =>
          !error.message.includes(secret.slice(0, 12)) && !String(error.cause).includes(secret.slice(0, 12)),
      )
    }
  })

  it("leaves the bytes of the file as they are", async () => {
    for (const file of [pem(strong.privateKey, "pkcs8"), der(strong.privateKey, "pkcs1")]) {
      const before = Buffer.from(file)
      await parsePrivateKey(file, "key.pem")
      assert.deepEqual(file, before)
    }
  })
})

describe("a hostile key file", () => {
  const texts: readonly (readonly [string, string])[] = [
    ["beginnings of blocks", "-----BEGIN A-----\n".repeat(58_000)],
    ["beginnings of keys", "-----BEGIN PRIVATE KEY-----\n".repeat(37_000)],
    ["beginnings", "-----BEGIN ".repeat(95_000)],
    ["dashes", "-".repeat(1 << 20)],
    ["words", "a ".repeat(1 << 19)],
    ["lines", "ssh-rsa AAAA\n".repeat(80_000)],
    ["whole blocks", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".repeat(18_000)],
    ["braces", "{".repeat(1 << 20)],
    ["lists", `{"keys":${"[".repeat(500_000)}${"]".repeat(500_000)}}`],
    ["JWKs", `{"keys":[${'{"kty":"RSA"},'.repeat(70_000)}{}]}`],
    ["DER", "0\x82".repeat(1 << 19)],
  ]
  for (const [what, text] of texts)
    it(`S35: of ${what} is refused soon`, async () => {
      for (const parse of [parsePublicKey, parsePrivateKey]) {
        const started = processorMs()
        await assert.rejects(parse(Buffer.from(text, "latin1"), "evil.pem"), /^KeyError/)
        assert.ok(processorMs() - started < 2000, `${Math.round(processorMs() - started)} ms`)
      }
    })

  it("S35: of a key cut off anywhere or changed anywhere gives a code or a key, and nothing else", async () => {
    const files = [
      pem(strong.privateKey, "pkcs1"),
      der(strong.privateKey, "pkcs8"),
      der(strong.publicKey, "spki"),
      jwk(strong.privateKey),
    ]
    for (const file of files)
      for (let at = 0; at < file.length; at += 7) {
        const changed = Buffer.from(file)
        changed[at] = (changed[at] ?? 0) ^ 0x21
        for (const evil of [file.subarray(0, at), changed])
          for (const parse of [parsePublicKey, parsePrivateKey])
            try {
              assert.ok(["public", "private"].includes((await parse(evil, "evil")).type))
            } catch (error) {
              assert.match(String(error), /^KeyError/, `at ${at}`)
            }
      }
  })
})
