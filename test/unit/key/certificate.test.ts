import assert from "node:assert/strict"
import { createPublicKey, generateKeyPairSync, X509Certificate } from "node:crypto"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { KeyError } from "../../../lib/errors.ts"
import {
  byThumbprint,
  certificateFacts,
  checkCommonName,
  MAX_COMMON_NAME,
  selfSigned,
} from "../../../lib/key/certificate.ts"
import { openssl } from "../../support/openssl.ts"
import { newFolder } from "../../support/scratch.ts"

const { privateKey: key } = generateKeyPairSync("rsa", { modulusLength: 2048 })
const notBefore = new Date("2026-01-02T03:04:05.678Z")
const make = (commonName = "tést 😀", days = 365, from = notBefore): Buffer =>
  selfSigned({ key, commonName, notBefore: from, days })

/** What OpenSSL says of it. */
function told(der: Buffer, ...options: string[]): string {
  return openssl(["x509", "-inform", "DER", "-noout", "-nameopt", "utf8", ...options], der)
    .toString()
    .trim()
}

describe("selfSigned", () => {
  const der = make()

  it("S33: is signed by node:crypto with what OpenSSL accepts", () => {
    const file = path.join(newFolder("verify"), "certificate.pem")
    writeFileSync(file, new X509Certificate(make("now", 2, new Date())).toString())
    assert.match(openssl(["verify", "-x509_strict", "-CAfile", file, file]).toString(), /: OK$/m)
    assert.ok(new X509Certificate(der).verify(createPublicKey(key)))
    assert.match(told(der, "-text"), /Signature Algorithm: sha256WithRSAEncryption/)
  })

  it("carries the key, the name and the dates", () => {
    assert.ok(new X509Certificate(der).checkPrivateKey(key))
    assert.equal(told(der, "-subject"), "subject=CN=tést 😀")
    assert.equal(told(der, "-issuer"), "issuer=CN=tést 😀")
    assert.equal(told(der, "-dates"), "notBefore=Jan  2 03:04:05 2026 GMT\nnotAfter=Jan  2 03:04:05 2027 GMT")
  })

  it("is for encrypting keys, and no authority", () => {
    const text = told(der, "-text")
    assert.match(text, /Version: 3 /)
    assert.match(text, /Basic Constraints: critical\s+CA:FALSE/)
    assert.match(text, /Key Usage: critical\s+Key Encipherment\n/)
    assert.match(text, /Extended Key Usage: *\n\s+1\.3\.6\.1\.4\.1\.311\.80\.1\n/)
    assert.match(text, /Subject Key Identifier: *\n\s+([0-9A-F]{2}:){19}[0-9A-F]{2}\n/)
  })

  it("has a random serial number of 16 bytes, never negative", () => {
    const serials = Array.from({ length: 20 }, () => new X509Certificate(make()).serialNumber)
    for (const serial of serials) assert.match(serial, /^[4-7][0-9A-F]{31}$/)
    assert.equal(new Set(serials).size, serials.length)
  })

  it("writes years from 2050 on as X.509 wants them", () => {
    assert.match(told(make("x", 10_000), "-enddate"), /^notAfter=May 20 03:04:05 2053 GMT$/)
    const from = new Date("2049-12-31T00:00:00Z")
    assert.match(told(make("x", 1, from), "-dates"), /Dec 31 00:00:00 2049 GMT\n.*Jan {2}1 00:00:00 2050 GMT/)
  })

  it("refuses names that X.509 or a terminal would not take", () => {
    for (const name of ["", "a\nb", "\u001b[31m", "x\u0000y", "x".repeat(MAX_COMMON_NAME + 1), "\ud800"])
      assert.throws(() => make(name), RangeError)
    checkCommonName("😀".repeat(MAX_COMMON_NAME))
    assert.equal(told(make('a=b, c+d "e"'), "-subject", "-nameopt", "utf8"), 'subject=CN=a=b, c+d "e"')
  })
})

describe("certificateFacts", () => {
  const der = make()

  it("S30: has the thumbprints that OpenSSL prints", () => {
    const facts = certificateFacts(der, "x")
    assert.equal(told(der, "-fingerprint", "-sha1").replace(/^.*=/, ""), facts.sha1)
    assert.equal(told(der, "-fingerprint", "-sha256").replace(/^.*=/, ""), facts.sha256)
  })

  it("has subject, issuer, dates and size", () => {
    const {
      subject,
      issuer,
      notBefore: from,
      notAfter: to,
      keyType,
      modulusBits,
    } = certificateFacts(der, "x")
    assert.deepEqual([subject, issuer, keyType, modulusBits], ["CN=tést 😀", "CN=tést 😀", "rsa", 2048])
    assert.equal(from.toISOString(), "2026-01-02T03:04:05.000Z")
    assert.equal(to.toISOString(), "2027-01-02T03:04:05.000Z")
  })

  it("refuses what is damaged", () => {
    for (const bytes of [der.subarray(0, -1), Buffer.alloc(0), Buffer.alloc(100, 0x30)])
      assert.throws(
        () => certificateFacts(bytes, "c.pem"),
        (error) =>
          error instanceof KeyError && error.code === "ERR_KEY_DAMAGED" && /^c\.pem: /.test(error.message),
      )
  })
})

describe("byThumbprint", () => {
  const one = certificateFacts(make("one"), "x")
  const two = certificateFacts(make("two"), "x")

  it("S30: finds by SHA-256, and by SHA-1 as a name, in any notation", () => {
    for (const thumbprint of [two.sha256, two.sha1, two.sha256.replaceAll(":", "").toLowerCase()])
      assert.equal(byThumbprint([one, two], thumbprint), two)
    assert.equal(byThumbprint([one, one], one.sha1), one)
  })

  it("S30: calls a SHA-1 that several certificates have an error", () => {
    assert.throws(
      () => byThumbprint([one, { ...two, sha1: one.sha1 }], one.sha1),
      (error) => error instanceof KeyError && /2 different certificates/.test(error.message),
    )
    assert.equal(byThumbprint([one, { ...two, sha1: one.sha1 }], one.sha256), one)
  })

  it("S30: knows neither other certificates nor other lengths", () => {
    assert.throws(
      () => byThumbprint([one], two.sha256),
      (error) => error instanceof KeyError && error.code === "ERR_KEY_MISMATCH",
    )
    for (const thumbprint of ["", one.sha256.slice(0, -1), one.sha1.slice(0, 23), "x".repeat(40)])
      assert.throws(() => byThumbprint([one], thumbprint), RangeError)
  })
})
