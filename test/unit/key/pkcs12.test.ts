import assert from "node:assert/strict"
import { createPrivateKey, X509Certificate, type KeyObject } from "node:crypto"
import { readFileSync } from "node:fs"
import path from "node:path"
import { KeyError, type ErrorCode } from "../../../lib/errors.ts"
import { isPkcs12, parsePkcs12 } from "../../../lib/key/pkcs12.ts"
import { openssl } from "../../support/openssl.ts"
import { newFolder } from "../../support/scratch.ts"

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
  openssl(
    `req -x509 -newkey rsa:2048 -nodes -subj /CN=${name} -days 2 -keyout ${keyFile} -out ${certificateFile}`.split(
      " ",
    ),
  )
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

function assertRefused(action: () => unknown, code: ErrorCode, message: RegExp): void {
  assert.throws(action, (error) => {
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
    it(`reads ${what}`, () => {
      const found = parsePkcs12(exported(options), bytes(password))
      assert.ok(found.key.equals(pair.key))
      assert.deepEqual(found.certificates, [pair.certificate])
    })

  it("S34: puts the key's own certificate first, those of others behind it", () => {
    const args = ["-certfile", other.certificateFile].join(" ")
    const found = parsePkcs12(exported(args), bytes(password))
    assert.deepEqual(found.certificates, [pair.certificate, other.certificate])
  })

  for (const options of ["", "-legacy"])
    it(`opens one with an empty password unasked (openssl ${options})`, () => {
      assert.ok(parsePkcs12(exported(options, ""), undefined).key.equals(pair.key))
      assert.ok(parsePkcs12(exported(options, ""), Buffer.alloc(0)).key.equals(pair.key))
    })

  it("tells a missing password from a wrong one", () => {
    const file = exported("")
    assertRefused(
      () => parsePkcs12(file, undefined, "a.pfx"),
      "ERR_KEY_LOCKED",
      /^a\.pfx: .* takes a password$/,
    )
    assertRefused(
      () => parsePkcs12(file, bytes("wrong"), "a.pfx"),
      "ERR_KEY_PASSPHRASE",
      /^a\.pfx: the password/,
    )
    assertRefused(() => parsePkcs12(file, Buffer.alloc(0)), "ERR_KEY_PASSPHRASE", /does not open/)
  })

  it("leaves the caller's password alone", () => {
    const mine = bytes(password)
    parsePkcs12(exported(""), mine)
    assert.equal(mine.toString(), password)
  })

  it("takes a password that is no UTF-8 byte for byte", () => {
    const secret = Buffer.of(0xe4, 0x62)
    const made = openssl(
      ["pkcs12", "-export", "-inkey", pair.keyFile, "-in", pair.certificateFile, "-passout", "stdin"],
      secret,
    )
    assert.ok(parsePkcs12(made, secret).key.equals(pair.key))
  })

  it("S34: refuses one without a MAC", () => {
    assertRefused(() => parsePkcs12(exported("-nomac"), bytes(password)), "ERR_KEY_UNSUPPORTED", /no MAC/)
  })

  it("refuses RC4 by name", () => {
    const file = exported("-legacy -keypbe PBE-SHA1-RC4-128")
    assertRefused(() => parsePkcs12(file, bytes(password)), "ERR_KEY_UNSUPPORTED", /RC4 in PKCS#12/)
  })

  it("refuses one without a key", () => {
    const file = openssl(["pkcs12", "-export", "-nokeys", "-in", pair.certificateFile, "-passout", "pass:x"])
    assertRefused(() => parsePkcs12(file, bytes("x")), "ERR_KEY_FORMAT", /no private key/)
  })

  it("S34: refuses one without a certificate of its key", () => {
    const file = openssl(["pkcs12", "-export", "-nocerts", "-inkey", pair.keyFile, "-passout", "pass:x"])
    assertRefused(() => parsePkcs12(file, bytes("x")), "ERR_KEY_DAMAGED", /no certificate of its private key/)
  })
})

describe("isPkcs12", () => {
  it("knows PKCS#12 from certificates, keys and text", () => {
    assert.ok(isPkcs12(exported("")))
    assert.ok(!isPkcs12(pair.certificate))
    assert.ok(!isPkcs12(pair.key.export({ type: "pkcs8", format: "der" })))
    assert.ok(!isPkcs12(pair.key.export({ type: "pkcs1", format: "der" })))
    assert.ok(!isPkcs12(readFileSync(pair.keyFile)))
    assert.ok(!isPkcs12(Buffer.alloc(0)))
  })
})
