import assert from "node:assert/strict"
import { createPrivateKey, X509Certificate, type KeyObject } from "node:crypto"
import { readFileSync } from "node:fs"
import path from "node:path"
import { KeyError, type ErrorCode } from "../../lib/errors.ts"
import { parsePrivateKey } from "../../lib/key/key-file.ts"
import { derive, isPkcs12, parsePkcs12, Purpose } from "../../lib/key/pkcs12.ts"
import { deriveByTheBook } from "../support/pkcs12-derivation.ts"
import { vectorPath } from "../vectors/load.ts"
import { openssl } from "../support/openssl.ts"
import { newFolder } from "../support/scratch.ts"

const password = "pässword €😀"

interface Pair {
  readonly keyFile: string
  readonly certificateFile: string
  readonly key: KeyObject
  readonly certificate: Buffer
}

function makePair(name: string): Pair {
  const folder = newFolder(`pkcs12-${name}`)
  const keyFile = path.join(folder, "key.pem")
  const certificateFile = path.join(folder, "certificate.pem")
  const made = `req -x509 -newkey rsa:2048 -nodes -subj /CN=${name} -days 2`
  openssl([...made.split(" "), "-keyout", keyFile, "-out", certificateFile])
  return {
    keyFile,
    certificateFile,
    key: createPrivateKey(readFileSync(keyFile)),
    certificate: new X509Certificate(readFileSync(certificateFile)).raw,
  }
}

let pair: Pair
let other: Pair
before(() => {
  pair = makePair("one")
  other = makePair("another")
})

/** What `openssl pkcs12 -export` makes of the pair. */
function exported(options: string, secret = password): Buffer {
  const args = ["pkcs12", "-export", "-inkey", pair.keyFile, "-in", pair.certificateFile]
  return openssl([...args, "-passout", `pass:${secret}`, ...options.split(" ").filter((word) => word !== "")])
}

const bytes = (text: string): Buffer => Buffer.from(text)

async function assertRefused(
  action: () => Promise<unknown>,
  code: ErrorCode,
  message: RegExp,
): Promise<void> {
  await assert.rejects(action, (error) => {
    assert.ok(error instanceof KeyError, String(error))
    assert.equal(error.code, code, error.message)
    assert.match(error.message, message)
    return true
  })
}

describe("parsePkcs12", () => {
  for (const [what, options] of [
    ["what OpenSSL 3 writes", ""],
    ["what OpenSSL 1 wrote, with RC2-40 and 3DES", "-legacy"],
    ["3DES with SHA-1, as old Windows", "-keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1"],
    [
      "AES-256 with SHA-256, as new Windows",
      "-keypbe AES-256-CBC -certpbe AES-256-CBC -macalg sha256 -iter 2000",
    ],
    ["AES-256 with 10000 iterations, as Java", "-keypbe AES-256-CBC -macalg sha256 -iter 10000"],
    ["AES-128, AES-192 and SHA-512", "-keypbe AES-128-CBC -certpbe AES-192-CBC -macalg sha512"],
    ["PBES2 with 3DES and SHA-1", "-keypbe DES-EDE3-CBC -certpbe DES-EDE3-CBC"],
    ["two-key 3DES and RC2-128", "-legacy -keypbe PBE-SHA1-2DES -certpbe PBE-SHA1-RC2-128"],
    ["a key under RC2", "-legacy -keypbe PBE-SHA1-RC2-128"],
    ["certificates in the clear", "-certpbe NONE"],
    ["a key in the clear behind a MAC", "-keypbe NONE -certpbe NONE"],
    ["a MAC without iterations", "-nomaciter"],
    ["attributes", "-name friend -CSP Microsoft"],
  ] as const)
    it(`reads ${what}`, async () => {
      const found = await parsePkcs12(exported(options), bytes(password))
      assert.ok(found.key.equals(pair.key))
      assert.deepEqual(found.certificates, [pair.certificate])
    })

  it("S34: puts the key's own certificate first, those of others behind it", async () => {
    const args = ["-certfile", other.certificateFile].join(" ")
    const found = await parsePkcs12(exported(args), bytes(password))
    assert.deepEqual(found.certificates, [pair.certificate, other.certificate])
  })

  for (const options of ["", "-legacy"])
    it(`opens one with an empty password unasked (openssl ${options})`, async () => {
      assert.ok((await parsePkcs12(exported(options, ""), undefined)).key.equals(pair.key))
      assert.ok((await parsePkcs12(exported(options, ""), Buffer.alloc(0))).key.equals(pair.key))
    })

  it("tells a missing password from a wrong one", async () => {
    const file = exported("")
    await assertRefused(
      () => parsePkcs12(file, undefined, "a.pfx"),
      "ERR_KEY_LOCKED",
      /^a\.pfx: .* takes a password$/,
    )
    await assertRefused(
      () => parsePkcs12(file, bytes("wrong"), "a.pfx"),
      "ERR_KEY_PASSPHRASE",
      /^a\.pfx: the password/,
    )
    await assertRefused(() => parsePkcs12(file, Buffer.alloc(0)), "ERR_KEY_PASSPHRASE", /does not open/)
  })

  it("leaves the caller's password alone", async () => {
    const mine = bytes(password)
    await parsePkcs12(exported(""), mine)
    assert.equal(mine.toString(), password)
  })

  it("takes a password that is no UTF-8 byte for byte", async () => {
    const secret = Buffer.of(0xe4, 0x62)
    const made = openssl(
      ["pkcs12", "-export", "-inkey", pair.keyFile, "-in", pair.certificateFile, "-passout", "stdin"],
      secret,
    )
    assert.ok((await parsePkcs12(made, secret)).key.equals(pair.key))
  })

  it("S34: refuses one without a MAC", async () => {
    await assertRefused(
      () => parsePkcs12(exported("-nomac"), bytes(password)),
      "ERR_KEY_UNSUPPORTED",
      /no MAC/,
    )
  })

  it("refuses RC4 by name", async () => {
    const file = exported("-legacy -keypbe PBE-SHA1-RC4-128")
    await assertRefused(() => parsePkcs12(file, bytes(password)), "ERR_KEY_UNSUPPORTED", /RC4 in PKCS#12/)
  })

  it("refuses one without a key", async () => {
    const file = openssl(["pkcs12", "-export", "-nokeys", "-in", pair.certificateFile, "-passout", "pass:x"])
    await assertRefused(() => parsePkcs12(file, bytes("x")), "ERR_KEY_FORMAT", /no private key/)
  })

  it("reads a key that stands alone, as programs for keys write it", async () => {
    const file = openssl(["pkcs12", "-export", "-nocerts", "-inkey", pair.keyFile, "-passout", "pass:x"])
    const found = await parsePkcs12(file, bytes("x"))
    assert.ok(found.key.equals(pair.key))
    assert.deepEqual(found.certificates, [])
    assert.ok((await parsePrivateKey(file, "a.p12", bytes("x"))).equals(pair.key))
  })

  for (const name of ["nss-aes", "nss-3des"])
    it(`reads what Firefox writes, 600000 rounds of each, and does not block meanwhile (${name})`, async () => {
      const read = parsePkcs12(readFileSync(vectorPath(`pkcs12/${name}.p12`)), bytes("secret"))
      let turns = 0
      let done = false
      const count = (): void => {
        turns++
        if (!done) setImmediate(count)
      }
      count()
      const { key, certificates } = await read.finally(() => (done = true))
      const certificate = new X509Certificate(readFileSync(vectorPath("pkcs12/certificate.pem")))
      assert.ok(certificate.checkPrivateKey(key))
      assert.deepEqual(certificates, [certificate.raw])
      assert.ok(turns > 1000, String(turns))
    })
})

describe("derive", () => {
  it("is what RFC 7292 says, for each hash, purpose and size, with a password and without", async () => {
    for (const hash of ["sha1", "sha224", "sha256", "sha384", "sha512"])
      for (const purpose of Object.values(Purpose))
        for (const [wide, salt, rounds, size] of [
          [Buffer.from("0061006200000000", "hex"), Buffer.alloc(8, 3), 1, 20],
          [Buffer.alloc(0), Buffer.alloc(20, 9), 3, 24],
          [Buffer.alloc(300, 7), Buffer.alloc(129, 1), 2, 64],
          [Buffer.alloc(2), Buffer.alloc(0), 2, 8],
        ] as const)
          assert.deepEqual(
            await derive(hash, wide, salt, purpose, rounds, size),
            deriveByTheBook(hash, wide, salt, purpose, rounds, size),
          )
  })
})

describe("isPkcs12", () => {
  it("knows PKCS#12 from certificates, keys and text", async () => {
    assert.ok(isPkcs12(exported("")))
    assert.ok(!isPkcs12(pair.certificate))
    assert.ok(!isPkcs12(pair.key.export({ type: "pkcs8", format: "der" })))
    assert.ok(!isPkcs12(pair.key.export({ type: "pkcs1", format: "der" })))
    assert.ok(!isPkcs12(readFileSync(pair.keyFile)))
    assert.ok(!isPkcs12(Buffer.alloc(0)))
  })
})
