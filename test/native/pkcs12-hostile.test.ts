// PKCS#12 files that were made to do harm, by changing what is in a good one and giving it a MAC again.
import assert from "node:assert/strict"
import { createHmac, generateKeyPairSync, randomBytes } from "node:crypto"
import { KeyError, type ErrorCode } from "../../lib/errors.ts"
import { elements, encodeAsn1, explicit, make, octets, parseAsn1, type Asn1Node } from "../../lib/key/asn1.ts"
import { selfSigned } from "../../lib/key/certificate.ts"
import { oid, parsePkcs12, Password, Purpose } from "../../lib/key/pkcs12.ts"
import { deriveByTheBook } from "../support/pkcs12-derivation.ts"
import { writePkcs12 } from "../../lib/key/pkcs12-writer.ts"

const password = Buffer.from("pässword")
const newKey = (): ReturnType<typeof generateKeyPairSync>["privateKey"] =>
  generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey
const certificateOf = (key: ReturnType<typeof newKey>): Buffer =>
  selfSigned({ key: key, commonName: "x", notBefore: new Date(), days: 1 })

const key = newKey() as never
const other = newKey() as never
const certificate = certificateOf(key)
const otherCertificate = certificateOf(other)
const SHA256 = "2.16.840.1.101.3.4.2.1"

const wrapped = (kind: string, content: Asn1Node): Asn1Node =>
  make.sequence(make.objectId(kind), make.explicit(0, content))
const data = (content: Asn1Node | Buffer): Asn1Node =>
  wrapped(oid.data, make.octets(Buffer.isBuffer(content) ? content : encodeAsn1(content)))

const keyBag = (of: never): Asn1Node =>
  wrapped(
    oid.keyBag,
    parseAsn1((of as { export: (o: unknown) => Buffer }).export({ type: "pkcs8", format: "der" })),
  )
const certificateBag = (der: Buffer): Asn1Node =>
  wrapped(oid.certBag, make.sequence(make.objectId(oid.x509Certificate), make.explicit(0, make.octets(der))))

interface MacChanges {
  readonly algorithm?: string
  readonly iterations?: Asn1Node
  readonly value?: Buffer
  readonly rounds?: number
}

/** A file around an AuthenticatedSafe with a MAC that holds, but for the changes. */
function withMac(safe: Asn1Node | Buffer, changes: MacChanges = {}): Buffer {
  const content = Buffer.isBuffer(safe) ? safe : encodeAsn1(safe)
  const salt = randomBytes(8)
  using secret = new Password(password)
  const macKey = deriveByTheBook("sha256", secret.wide, salt, Purpose.mac, changes.rounds ?? 2, 32)
  const value = changes.value ?? createHmac("sha256", macKey).update(content).digest()
  const algorithm = make.sequence(make.objectId(changes.algorithm ?? SHA256), make.null())
  const mac = make.sequence(
    make.sequence(algorithm, make.octets(value)),
    make.octets(salt),
    changes.iterations ?? make.integer(changes.rounds ?? 2),
  )
  return encodeAsn1(make.sequence(make.integer(3), data(content), mac))
}

/** One with these bags, in the clear. */
const ofBags = (...bags: Asn1Node[]): Asn1Node => make.sequence(data(make.sequence(...bags)))

async function assertRefused(file: Buffer, code: ErrorCode, message = /./): Promise<void> {
  await assert.rejects(parsePkcs12(file, password, "a.pfx"), (error) => {
    assert.ok(error instanceof KeyError, String(error))
    assert.equal(error.code, code, error.message)
    assert.match(error.message, /^a\.pfx: /)
    assert.match(error.message, message)
    return true
  })
}

/** Encrypted data that asks for these parameters. */
function sealedSafe(algorithm: Asn1Node): Asn1Node {
  const info = make.sequence(make.objectId(oid.data), algorithm, make.implicit(0, Buffer.alloc(16)))
  return make.sequence(wrapped(oid.encryptedData, make.sequence(make.integer(0), info)))
}

function pbes2(iterations: number): Asn1Node {
  const derivation = make.sequence(make.octets(randomBytes(8)), make.integer(iterations))
  const cipher = make.sequence(make.objectId("2.16.840.1.101.3.4.1.42"), make.octets(Buffer.alloc(16)))
  const parameters = make.sequence(make.sequence(make.objectId(oid.pbkdf2), derivation), cipher)
  return make.sequence(make.objectId(oid.pbes2), parameters)
}

/** Sequences within sequences. */
function nested(depth: number): Buffer {
  const starts: Buffer[] = []
  let size = 0
  for (let level = 0; level < depth; level++) {
    const length =
      size < 0x80 ? Buffer.of(size) : Buffer.of(0x83, size >> 16, (size >> 8) & 0xff, size & 0xff)
    starts.push(Buffer.concat([Buffer.of(0x30), length]))
    size += length.length + 1
  }
  return Buffer.concat(starts.reverse())
}

describe("a hostile PKCS#12 file", () => {
  it("is not what these tests start from", async () => {
    const found = await parsePkcs12(withMac(ofBags(keyBag(key), certificateBag(certificate))), password)
    assert.deepEqual(found.certificates, [certificate])
  })

  it("S34: has the certificate of another key", async () => {
    await assertRefused(
      withMac(ofBags(keyBag(key), certificateBag(otherCertificate))),
      "ERR_KEY_DAMAGED",
      /certificates, and none of them is of its private key/,
    )
    const both = ofBags(certificateBag(otherCertificate), keyBag(key), certificateBag(certificate))
    assert.deepEqual((await parsePkcs12(withMac(both), password)).certificates, [
      certificate,
      otherCertificate,
    ])
  })

  it("S34: has a MAC that does not hold, is cut, or is of nothing", async () => {
    const safe = ofBags(keyBag(key), certificateBag(certificate))
    for (const value of [Buffer.alloc(32), Buffer.alloc(0), Buffer.alloc(20)])
      await assertRefused(withMac(safe, { value }), "ERR_KEY_PASSPHRASE")
    const [version, content] = elements(parseAsn1(withMac(safe)))
    await assertRefused(encodeAsn1(make.sequence(version, content)), "ERR_KEY_UNSUPPORTED", /no MAC/)
    await assertRefused(encodeAsn1(make.sequence(version, content, make.null())), "ERR_KEY_DAMAGED")
  })

  it("S34: has nothing where something has to be, or something of another type", async () => {
    // CVE-2024-0727, CVE-2026-22795: content is optional in the grammar.
    const empty = make.sequence(make.objectId(oid.data))
    const [version, , mac] = elements(parseAsn1(withMac(ofBags(keyBag(key)))))
    await assertRefused(encodeAsn1(make.sequence(version, empty, mac)), "ERR_KEY_DAMAGED")
    await assertRefused(withMac(make.sequence(empty)), "ERR_KEY_DAMAGED")
    await assertRefused(
      withMac(make.sequence(make.sequence(make.objectId(oid.encryptedData)))),
      "ERR_KEY_DAMAGED",
    )
    await assertRefused(withMac(ofBags(make.sequence(make.objectId(oid.keyBag)))), "ERR_KEY_DAMAGED")
    // CVE-2025-69419, -69421.
    for (const wrong of [make.null(), make.integer(1), make.octets(Buffer.alloc(8)), make.sequence()]) {
      await assertRefused(withMac(ofBags(wrapped(oid.keyBag, wrong))), "ERR_KEY_DAMAGED")
      await assertRefused(withMac(make.sequence(wrapped(oid.data, wrong))), "ERR_KEY_DAMAGED")
      await assertRefused(withMac(make.sequence(wrapped(oid.encryptedData, wrong))), "ERR_KEY_DAMAGED")
      const algorithm = make.sequence(make.objectId(oid.pbes2), wrong)
      await assertRefused(withMac(sealedSafe(algorithm)), "ERR_KEY_DAMAGED")
    }
  })

  it("S34: is vouched for by what is not supported, which is named", async () => {
    const safe = ofBags(keyBag(key), certificateBag(certificate))
    await assertRefused(withMac(safe, { algorithm: oid.pbmac1 }), "ERR_KEY_UNSUPPORTED", /PBMAC1/)
    await assertRefused(withMac(safe, { algorithm: "1.2.840.113549.2.5" }), "ERR_KEY_UNSUPPORTED", /MD5/)
    const signed = make.sequence(make.integer(3), wrapped(oid.signedData, make.sequence()))
    await assertRefused(encodeAsn1(signed), "ERR_KEY_UNSUPPORTED", /a signature in place of a MAC/)
  })

  it("S35: asks for iterations that take for ever, and is refused before", async () => {
    const safe = ofBags(keyBag(key), certificateBag(certificate))
    for (const iterations of [make.integer(2_000_000_000), make.bigInteger(Buffer.alloc(40, 0x7f))])
      await assertRefused(withMac(safe, { iterations }), "ERR_KEY_UNSUPPORTED", /iterations/)
    for (const iterations of [make.integer(0), make.bigInteger(Buffer.of(0x80))])
      await assertRefused(withMac(safe, { iterations }), "ERR_KEY_DAMAGED")
    await assertRefused(
      withMac(sealedSafe(pbes2(2_000_000_000))),
      "ERR_KEY_UNSUPPORTED",
      /2000000000 iterations/,
    )
    const own = make.sequence(make.octets(randomBytes(8)), make.integer(2_000_000_000))
    const algorithm = make.sequence(make.objectId("1.2.840.113549.1.12.1.3"), own)
    await assertRefused(withMac(sealedSafe(algorithm)), "ERR_KEY_UNSUPPORTED", /2000000000 iterations/)
  })

  it("S35: asks for iterations here and there, which count together", async () => {
    const file = withMac(sealedSafe(pbes2(19_999_999)), { rounds: 2 })
    await assertRefused(file, "ERR_KEY_UNSUPPORTED", /19999999 iterations/)
  })

  it("S35: is nested deeply, outside and inside", async () => {
    for (const depth of [33, 1000, 100_000]) {
      await assertRefused(nested(depth), "ERR_KEY_DAMAGED")
      await assertRefused(withMac(nested(depth)), "ERR_KEY_DAMAGED")
      await assertRefused(withMac(make.sequence(data(nested(depth)))), "ERR_KEY_DAMAGED")
    }
    await assertRefused(Buffer.alloc(100_000, Buffer.of(0x30, 0x80)), "ERR_KEY_DAMAGED")
  })

  it("S35: has object identifiers of endless arcs, which are no others cut short", async () => {
    const id = parseAsn1(Buffer.concat([Buffer.of(0x06, 20), Buffer.alloc(19, 0xff), Buffer.of(0x7f)]))
    const safe = ofBags(make.sequence(id, make.explicit(0, make.null())))
    await assertRefused(withMac(safe), "ERR_KEY_DAMAGED")
    // 2^32 more in the last arc: of old, node-forge took it for a key bag.
    const arcs = Buffer.from("060f2a864886f70d010c0a019080808001", "hex")
    const wide = ofBags(make.sequence(parseAsn1(arcs), make.explicit(0, make.null())))
    await assertRefused(withMac(wide), "ERR_KEY_FORMAT", /no private key/)
  })

  it("S35: is too large", async () => {
    await assertRefused(Buffer.alloc((1 << 20) + 1, 0x30), "ERR_KEY_FORMAT", /more than 1048576 bytes/)
    await assertRefused(Buffer.alloc(1 << 20, Buffer.of(0x30, 0)), "ERR_KEY_DAMAGED")
  })

  it("holds several keys, or none", async () => {
    const bags = [keyBag(key), keyBag(other), certificateBag(certificate)]
    await assertRefused(withMac(ofBags(...bags)), "ERR_KEY_UNSUPPORTED", /holds 2 private keys/)
    await assertRefused(withMac(ofBags(certificateBag(certificate))), "ERR_KEY_FORMAT", /no private key/)
    await assertRefused(withMac(make.sequence()), "ERR_KEY_FORMAT", /no private key/)
  })

  it("S35: was cut anywhere", async () => {
    const whole = withMac(ofBags(keyBag(key), certificateBag(certificate)))
    for (let size = 0; size < whole.length; size += size < 64 ? 1 : 37)
      await assertRefused(whole.subarray(0, size), "ERR_KEY_DAMAGED")
    await assertRefused(Buffer.concat([whole, Buffer.of(0)]), "ERR_KEY_DAMAGED")
  })

  it("S35: had any byte changed: an error with a code, or the same key", async () => {
    const whole = withMac(ofBags(keyBag(key), certificateBag(certificate)))
    for (let at = 0; at < whole.length; at += at < 120 ? 1 : 13)
      for (const flip of [0x01, 0x80, 0xff]) {
        const changed = Buffer.from(whole)
        changed[at] = (changed[at] ?? 0) ^ flip
        try {
          assert.ok((await parsePkcs12(changed, password)).key.equals(key))
        } catch (error) {
          assert.ok(error instanceof KeyError, `byte ${at}: ${String(error)}`)
        }
      }
  })

  it("S35: holds, behind a good MAC, bytes that were changed", async () => {
    const bytes = await writePkcs12({
      key,
      certificates: [certificate],
      friendlyName: "x",
      password,
      legacy: false,
    })
    const [, info] = elements(parseAsn1(bytes))
    const content = octets(explicit(elements(info)[1], 0))
    for (let at = 0; at < 60; at += 4) {
      const changed = Buffer.from(content)
      changed[at] = (changed[at] ?? 0) ^ 0x55
      try {
        assert.ok((await parsePkcs12(withMac(changed), password)).key.equals(key))
      } catch (error) {
        assert.ok(error instanceof KeyError, `byte ${at}: ${String(error)}`)
      }
    }
  })
})
