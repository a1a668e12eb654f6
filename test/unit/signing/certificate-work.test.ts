// Certificates of strangers that are good DER and much work, and names that no constraint can be held against.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { certifiedKey, type SignerCertificate } from "../../../lib/signing/certificate.ts"
import {
  certificate,
  distinguishedName,
  general,
  pemOf,
  type CertificateSpec,
} from "../../support/certificates.ts"
import { oid, sequence, set, text } from "../../support/der.ts"

const authorityKey = generateKeyPairSync("ed25519")
const signerKey = generateKeyPairSync("ed25519")

/** All have one name and one key, so that each issued each. */
const authority = (spec: Partial<CertificateSpec> = {}): Buffer =>
  certificate({
    subject: "CN=Mesh",
    issuer: "CN=Mesh",
    key: authorityKey.publicKey,
    signer: authorityKey.privateKey,
    ca: true,
    ...spec,
  })
const signer = (spec: Partial<CertificateSpec> = {}): Buffer =>
  certificate({
    subject: "CN=Signer",
    issuer: "CN=Mesh",
    key: signerKey.publicKey,
    signer: authorityKey.privateKey,
    ...spec,
  })

/** Microseconds of the processor for what is refused in the end. */
async function work(given: SignerCertificate): Promise<number> {
  const before = process.cpuUsage()
  await assert.rejects(certifiedKey(given), { code: "ERR_SIGNATURE_CERTIFICATE", message: /too many ways/ })
  const { user, system } = process.cpuUsage(before)
  return user + system
}

describe("a search among certificates of strangers", () => {
  it("counts what a path costs, not paths: each maps thousands of policies", async () => {
    const mappings = Array.from({ length: 4000 }, (_, at) => [`1.2.3.${at}`, `1.2.4.${at}`] as const)
    const spent = await work({
      certificate: pemOf(signer()),
      intermediates: pemOf(...Array.from({ length: 20 }, () => authority({ mappings }))),
      roots: pemOf(authority({ pathLength: 0, requireExplicitPolicy: 0 })),
    })
    assert.ok(spent < 6_000_000, `${spent} microseconds of the processor`)
  })

  it("does not compare with names that are nobody's issuer", async () => {
    const part = (value: string): Buffer => set(sequence(oid("2.5.4.3"), text(0x13, value)))
    const start = Buffer.concat(Array.from({ length: 100 }, () => part("x")))
    const long = (last: number): Buffer => sequence(start, part(`${last}`))
    const selfIssued = (last: number): Buffer => authority({ subject: long(last), issuer: long(last) })
    const others = Array.from({ length: 400 }, (_, at) => selfIssued(at + 1))
    const spent = await work({
      certificate: pemOf(signer({ issuer: long(0) })),
      intermediates: pemOf(...Array.from({ length: 15 }, () => selfIssued(0)), ...others),
      roots: pemOf(authority({ subject: "CN=Root", issuer: "CN=Root" })),
    })
    assert.ok(spent < 6_000_000, `${spent} microseconds of the processor`)
  })

  it("gives way between certificates, so that somebody can end it", async () => {
    const part = set(sequence(oid("1.2"), text(0x0c, "")))
    const large = authority({ subject: sequence(...Array.from({ length: 10_000 }, () => part)) })
    const controller = new AbortController()
    const looking = certifiedKey(
      { certificate: pemOf(signer(), ...Array.from({ length: 30 }, () => large)), roots: pemOf(authority()) },
      controller.signal,
    )
    setImmediate(() => {
      controller.abort(new Error("ended"))
    })
    await assert.rejects(looking, /^Error: ended$/)
  })

  const TELETEX = 0x14
  const MAIL = "1.2.840.113549.1.9.1"
  const strange: Readonly<Record<string, readonly [Partial<CertificateSpec>, Partial<CertificateSpec>]>> = {
    "an address of mail whose characters are not known": [
      { excluded: [general.mail("example.org")] },
      { subject: sequence(set(sequence(oid(MAIL), text(TELETEX, "root@example.org")))) },
    ],
    "an address of five bytes": [
      { excluded: [general.ip([10, 0, 0, 0, 255, 0, 0, 0])] },
      { subject: distinguishedName("CN=x"), alternativeNames: [general.ip([10, 0, 0, 1, 0])] },
    ],
  }
  for (const [what, [constraints, names]] of Object.entries(strange))
    it(`takes ${what} for one that is excluded`, async () => {
      const given = (above: Partial<CertificateSpec>): SignerCertificate => ({
        certificate: pemOf(signer(names), authority(above)),
        roots: pemOf(authority(above)),
      })
      await certifiedKey(given({}))
      await assert.rejects(certifiedKey(given(constraints)), {
        code: "ERR_SIGNATURE_CERTIFICATE",
        message: /may not certify/,
      })
    })
})
