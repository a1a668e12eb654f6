// Verification of images that others signed, and of what was done to them afterwards.
import assert from "node:assert/strict"
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
} from "node:crypto"
import { SifError, SignatureError } from "../../../lib/errors.ts"
import { openSif, readSif } from "../../../lib/sif/open.ts"
import { BufferReader } from "../../../lib/sif/source.ts"
import { signerName } from "../../../lib/signing/dsse.ts"
import { parseMetadata } from "../../../lib/signing/metadata.ts"
import {
  requireVerified,
  verifySif,
  type VerifyOptions,
  type VerifyReport,
} from "../../../lib/signing/verify.ts"
import { envelope, metadataOf } from "../../support/signing.ts"
import { generator, vector } from "../../vectors/load.ts"

const pgp: VerifyOptions = { keyrings: [vector("sif/pgp-private.asc")] }
const publicKey = (name: string): KeyObject => createPublicKey(vector(`sif/${name}-public.pem`))
const privateKey = (name: string): KeyObject => createPrivateKey(vector(`sif/${name}-private.pem`))
const signer = "12045C8C0B1004D058DE4BEDA20C27EE7FF7BA84"

async function verifyBytes(bytes: Buffer, options: VerifyOptions): Promise<VerifyReport> {
  await using image = await openSif(bytes)
  return await verifySif(image, options)
}

const slot = (id: number): number => 4096 + (id - 1) * 585

/** The signature object of an image with two others, replaced: at the end of the file, where there is room. */
function withSignature(name: string, data: Buffer): Buffer {
  const image = vector(`sif/${name}.sif`)
  const at = Number(image.readBigInt64LE(slot(3) + 17))
  const result = Buffer.concat([image.subarray(0, at), data])
  result.writeBigInt64LE(BigInt(data.length), slot(3) + 25)
  return result
}

function signatureText(name: string): string {
  const image = vector(`sif/${name}.sif`)
  const at = Number(image.readBigInt64LE(slot(3) + 17))
  return image.toString("latin1", at, at + Number(image.readBigInt64LE(slot(3) + 25)))
}

/** An empty object in slot 4, linked to group 1. */
function addObject(image: Buffer, group: number, type = 0x4007): void {
  image.copy(image, slot(4), slot(1), slot(2))
  image.writeInt32LE(type, slot(4))
  image.writeUInt32LE(4, slot(4) + 5)
  image.writeUInt32LE(group, slot(4) + 9)
  image.writeUInt32LE(type === 0x4005 ? 0xf0000001 : 0, slot(4) + 13)
  image.writeBigInt64LE(0n, slot(4) + 25)
}

/** The four bytes of object 1 go behind those of object 2, where the signature was, and the signature behind them. */
function moved(image: Buffer): Buffer {
  const at = Number(image.readBigInt64LE(slot(1) + 17))
  const result = Buffer.concat([image, image.subarray(at, at + 4)])
  result.writeBigInt64LE(BigInt(image.length), slot(1) + 17)
  return result
}

function swapped(image: Buffer): void {
  const first = Buffer.from(image.subarray(slot(1), slot(2)))
  image.copy(image, slot(1), slot(2), slot(3))
  first.copy(image, slot(2))
}

function regrouped(image: Buffer): void {
  for (const id of [1, 2]) image.writeUInt32LE(0xf0000009, slot(id) + 9)
  image.writeUInt32LE(0xf0000009, slot(3) + 13)
}

describe("verify", () => {
  it("accepts an OpenPGP signature and says who made it and when", async () => {
    const report = await verifyBytes(vector("sif/one-group-signed-pgp.sif"), pgp)
    assert.equal(report.verified, true)
    assert.deepEqual(report.signers, [signer])
    const [signature] = report.signatures
    assert.equal(signature?.kind, "openpgp")
    assert.deepEqual(signature.objects, [1, 2])
    assert.equal(signature.time?.toISOString(), "2020-06-30T00:01:56.000Z")
  })

  for (const name of ["rsa", "ed25519"])
    it(`accepts a DSSE signature by one of two signers (${name})`, async () => {
      const report = await verifyBytes(vector("sif/one-group-signed-dsse.sif"), { keys: [publicKey(name)] })
      assert.equal(report.verified, true)
      assert.match(report.signers[0] ?? "", /^SHA256:[A-Za-z0-9+/]{43}$/)
    })

  for (const curve of ["P-256", "P-384", "P-521"])
    it(`accepts a DSSE signature by ECDSA ${curve}`, async () => {
      const pair = generateKeyPairSync("ec", { namedCurve: curve })
      const data = envelope(metadataOf(vector("sif/one-group-signed-dsse.sif"), [1, 2]), pair.privateKey)
      const report = await verifyBytes(withSignature("one-group-signed-dsse", data), {
        keys: [pair.publicKey],
      })
      assert.equal(report.verified, true)
    })

  it("does not count signatures by keys that were not given", async () => {
    const options = { keys: [publicKey("ecdsa")] }
    const report = await verifyBytes(vector("sif/one-group-signed-dsse.sif"), options)
    assert.equal(report.verified, false)
    assert.equal(report.signatures[0]?.status, "unknown-signer")
    assert.throws(
      () => {
        requireVerified(report)
      },
      { code: "ERR_SIGNATURE_SIGNER" },
    )
  })

  it("requires the signers that it is told to", async () => {
    const image = vector("sif/one-group-signed-pgp.sif")
    assert.equal((await verifyBytes(image, { ...pgp, require: [signer] })).verified, true)
    const report = await verifyBytes(image, { ...pgp, require: [signer, "A".repeat(40)] })
    assert.equal(report.verified, false)
    assert.match(report.failures[0]?.reason ?? "", /no good signature by A{40}/)
  })

  it("wants a signer that is known where the list of those that it is told to is empty", async () => {
    const image = vector("sif/one-group-signed-dsse.sif")
    assert.equal((await verifyBytes(image, { keys: [publicKey("ecdsa")], require: [] })).verified, false)
    assert.equal((await verifyBytes(image, { keys: [publicKey("ed25519")], require: [] })).verified, true)
  })

  it("S40: takes whole fingerprints only", async () => {
    const short = { ...pgp, require: [signer.slice(-16)] }
    assert.equal((await verifyBytes(vector("sif/one-group-signed-pgp.sif"), short)).verified, false)
  })

  for (const name of ["two-groups-signed-legacy-all", "two-groups-signed-legacy-group"])
    it(`does not count signatures that protect data only: ${name}`, async () => {
      const report = await verifyBytes(vector(`sif/${name}.sif`), pgp)
      assert.equal(report.verified, false)
      assert.throws(
        () => {
          requireVerified(report)
        },
        { code: "ERR_SIGNATURE_MISSING" },
      )
    })

  it("refuses a key that signs no images", async () => {
    const { publicKey: key } = generateKeyPairSync("x25519")
    await assert.rejects(verifyBytes(vector("sif/one-group-signed-dsse.sif"), { keys: [key] }), {
      code: "ERR_SIGNATURE_KEYRING",
    })
  })

  // What may change after signing, and what may not (Apptainer's verdicts, except for the header's architecture).
  const changes: readonly (readonly [string, boolean, (image: Buffer) => unknown])[] = [
    ["nothing", true, () => undefined],
    ["the header's times", true, (image) => image.writeBigInt64LE(1n, 64)],
    ["the header's free slots", true, (image) => image.writeBigInt64LE(7n, 80)],
    [
      "the header's free slots, which are as many as there are",
      true,
      (image) => image.writeBigInt64LE(48n, 80),
    ],
    ["the place of an object's data", true, moved],
    ["the order of descriptors", true, swapped],
    [
      "all IDs of the group alike",
      true,
      (image) => {
        ;[1, 2].forEach((id) => image.writeUInt32LE(id + 6, slot(id) + 5))
      },
    ],
    ["one ID of the group", false, (image) => image.writeUInt32LE(8, slot(2) + 5)],
    ["the group, and the signature's link to it", true, regrouped],
    [
      "a byte between objects",
      true,
      (image) => image.writeUInt8(1, Number(image.readBigInt64LE(slot(2) + 17)) - 1),
    ],
    ["a descriptor's owner", false, (image) => image.writeBigInt64LE(7n, slot(2) + 57)],
    ["a descriptor's size", false, (image) => image.writeBigInt64LE(3n, slot(1) + 25)],
    [
      "the last byte of data",
      false,
      (image) => image.writeUInt8(1, Number(image.readBigInt64LE(slot(2) + 17)) + 4095),
    ],
    [
      "an object in no group, added",
      false,
      (image) => {
        addObject(image, 0xf0000000)
      },
    ],
    [
      "a signature by nobody, added",
      true,
      (image) => {
        addObject(image, 0xf0000000, 0x4005)
      },
    ],
    [
      "an object of type signature in the group, added",
      false,
      (image) => {
        addObject(image, 0xf0000001, 0x4005)
      },
    ],
    ["the signature's hash type", true, (image) => image.writeInt32LE(3, slot(3) + 201)],
    ["the signature's link", false, (image) => image.writeUInt32LE(0xf0000002, slot(3) + 13)],
    ["the header's architecture", false, (image) => image.write("02", 45)],
    ["the launch script", false, (image) => image.write("#!/bin/evil\n", 0)],
    ["the image's ID", false, (image) => image.writeUInt8(1, 48)],
    ["a descriptor's time of change", true, (image) => image.writeBigInt64LE(5n, slot(2) + 49)],
    ["a descriptor's padded size", true, (image) => image.writeBigInt64LE(5n, slot(2) + 33)],
    ["a descriptor's name", false, (image) => image.write("x", slot(2) + 73)],
    ["a descriptor's time of creation", false, (image) => image.writeBigInt64LE(5n, slot(2) + 41)],
    ["a descriptor's link", false, (image) => image.writeUInt32LE(1, slot(2) + 13)],
    ["a descriptor's type of partition", false, (image) => image.writeInt32LE(3, slot(1) + 205)],
    ["a byte of data", false, (image) => image.writeUInt8(1, Number(image.readBigInt64LE(slot(1) + 17)))],
    ["the group of an object", false, (image) => image.writeUInt32LE(0xf0000002, slot(2) + 9)],
    ["an object's membership in any group", false, (image) => image.writeUInt32LE(0xf0000000, slot(2) + 9)],
    ["an object, deleted", false, (image) => image.fill(0, slot(2), slot(3))],
    ["the lowest object, deleted", false, (image) => image.fill(0, slot(1), slot(2))],
    [
      "an object that was added to the group",
      false,
      (image) => {
        addObject(image, 0xf0000001)
      },
    ],
    ["the signer that the descriptor names", false, (image) => image.writeUInt8(1, slot(3) + 205)],
  ]
  for (const [what, stays, change] of changes)
    it(`S1, S2: ${stays ? "still accepts" : "refuses"} an image after a change of ${what}`, async () => {
      const original = vector("sif/one-group-signed-pgp.sif")
      const changed = change(original)
      const report = await verifyBytes(Buffer.isBuffer(changed) ? changed : original, pgp)
      assert.equal(report.verified, stays, JSON.stringify(report.failures))
      assert.equal(report.failures.length === 0, stays)
    })

  it("S1: notices each single changed byte of what is signed", async function () {
    this.timeout(60_000)
    const original = vector("sif/one-group-signed-dsse.sif")
    const options = { keys: [publicKey("ed25519")] }
    // Header: launch script, magic, version, ID. Descriptors: all but group, place, padded size and time of change, and the ID,
    // of which only the difference to the lowest counts.
    const header = [...Array(45).keys(), ...Array.from({ length: 16 }, (_, index) => 48 + index)]
    const unsigned = [[5, 13], [17, 25], [33, 41], [49, 57]] // prettier-ignore
    const inRecord = Array.from({ length: 585 }, (_, index) => index).filter(
      (at) => !unsigned.some(([from = 0, to = 0]) => at >= from && at < to),
    )
    const places = [...header, ...[1, 2].flatMap((id) => inRecord.map((at) => slot(id) + at))]
    const next = generator(11)
    for (const at of places) {
      const image = Buffer.from(original)
      image[at] = (image[at] ?? 0) ^ (1 << next(8))
      // The byte "used" is signed as 1 whatever it is.
      if ([slot(1) + 4, slot(2) + 4].includes(at) && image[at] !== 0) continue
      try {
        const report = await verifyBytes(image, options)
        assert.equal(report.verified, false, `byte ${at}`)
      } catch (error) {
        assert.ok(
          error instanceof SifError || error instanceof SignatureError,
          `byte ${at}: ${String(error)}`,
        )
      }
    }
  })

  it("verifies the whole of a group, not a part of it, and single objects where asked to", async () => {
    const key = privateKey("ed25519")
    const data = envelope(metadataOf(vector("sif/one-group-signed-dsse.sif"), [1]), key)
    const image = withSignature("one-group-signed-dsse", data)
    const keys = [publicKey("ed25519")]
    const whole = await verifyBytes(image, { keys })
    assert.equal(whole.verified, false)
    assert.match(whole.failures[0]?.reason ?? "", /no signature covers all of it/)
    assert.equal((await verifyBytes(image, { keys, objects: [1] })).verified, true)
    assert.equal((await verifyBytes(image, { keys, objects: [2] })).verified, false)
  })
})

/** Counts what is read of an image. */
class CountingReader extends BufferReader {
  bytes = 0
  override read(position: number, length: number): Promise<Buffer> {
    this.bytes += length
    return super.read(position, length)
  }
}

describe("verification of several signatures", () => {
  const ed25519 = privateKey("ed25519")
  const rsa = privateKey("rsa")
  const name = (key: KeyObject): string => signerName(key) ?? ""
  const good = metadataOf(vector("sif/one-group-signed-dsse.sif"), [1, 2])

  /** The image with a signature object for each of these. */
  function withSignatures(...data: readonly Buffer[]): Buffer {
    const image = vector("sif/one-group-signed-dsse.sif")
    const parts = [image.subarray(0, Number(image.readBigInt64LE(slot(3) + 17)))]
    for (const [index, one] of data.entries()) {
      const at = slot(3 + index)
      image.copy(image, at, slot(3), slot(4))
      image.writeUInt32LE(3 + index, at + 5)
      image.writeBigInt64LE(BigInt(Buffer.concat(parts).length), at + 17)
      image.writeBigInt64LE(BigInt(one.length), at + 25)
      parts.push(one)
    }
    image.copy(parts[0] ?? image, 0, 0, 32176)
    return Buffer.concat(parts)
  }

  it("reads each object once, whatever the number of signatures and of their digests", async () => {
    const original = vector("sif/one-group-signed-dsse.sif")
    let id = 0
    const sha512 = good.replaceAll(/"objectDigest":"sha256:[0-9a-f]{64}"/g, () => {
      const at = slot(++id)
      const offset = Number(original.readBigInt64LE(at + 17))
      const data = original.subarray(offset, offset + Number(original.readBigInt64LE(at + 25)))
      return `"objectDigest":"sha512:${createHash("sha512").update(data).digest("hex")}"`
    })
    const counts: number[] = []
    for (const image of [
      withSignatures(envelope(good, ed25519)),
      withSignatures(envelope(good, ed25519), envelope(good, rsa), envelope(sha512, ed25519)),
    ]) {
      const reader = new CountingReader(image)
      await using sif = await readSif(reader, "image")
      reader.bytes = 0
      const report = await verifySif(sif, { keys: [publicKey("ed25519"), publicKey("rsa")] })
      assert.equal(report.verified, true)
      const signatures = sif.objects.filter(({ type }) => type === 0x4005)
      counts.push(reader.bytes - signatures.reduce((sum, { size }) => sum + size, 0))
    }
    assert.deepEqual(counts, [4100, 4100])
  })

  it("hashes nothing when nobody is known", async () => {
    const reader = new CountingReader(withSignatures(envelope(good, ed25519)))
    await using sif = await readSif(reader, "image")
    reader.bytes = 0
    const report = await verifySif(sif, { keys: [publicKey("ecdsa")] })
    assert.equal(report.verified, false)
    assert.ok(reader.bytes < 4096)
  })

  const broken = envelope(
    good.replace(/"objectDigest":"sha256:./, (text) => text.slice(0, -1) + "f"),
    rsa,
  )
  const cases: readonly (readonly [string, Buffer, VerifyOptions, boolean])[] = [
    ["one unknown signer does not hide a good one", withSignatures(envelope(good, rsa), envelope(good, ed25519)), { keys: [publicKey("ed25519")] }, true],
    ["all: an unknown signer is one too many", withSignatures(envelope(good, rsa), envelope(good, ed25519)), { keys: [publicKey("ed25519")], require: "all" }, false],
    ["all: two known ones", withSignatures(envelope(good, rsa), envelope(good, ed25519)), { keys: [publicKey("ed25519"), publicKey("rsa")], require: "all" }, true],
    ["a broken signature of one known signer does not hide a good one of another", withSignatures(broken, envelope(good, ed25519)), { keys: [publicKey("ed25519"), publicKey("rsa")] }, true],
    ["all: a broken one is one too many", withSignatures(broken, envelope(good, ed25519)), { keys: [publicKey("ed25519"), publicKey("rsa")], require: "all" }, false],
    ["A25: a signer who is required and whose signature is broken", withSignatures(broken, envelope(good, ed25519)), { keys: [publicKey("ed25519"), publicKey("rsa")], require: [name(rsa)] }, false],
    ["A25: a signer who is required, beside unknown and broken ones", withSignatures(envelope(good, privateKey("ecdsa")), broken, envelope(good, ed25519)), { keys: [publicKey("ed25519"), publicKey("rsa")], require: [name(ed25519)] }, true],
    ["A25: both signers of one envelope", vector("sif/one-group-signed-dsse.sif"), { keys: [publicKey("ed25519"), publicKey("rsa")], require: [name(rsa), name(ed25519)] }, true],
    ["A25: a signer who is required and whose key was not given", withSignatures(envelope(good, rsa), envelope(good, ed25519)), { keys: [publicKey("ed25519")], require: [name(rsa)] }, false],
    ["both kinds, with a key of one", withSignatures(Buffer.from(signatureText("one-group-signed-pgp")), envelope(good, ed25519)), { keys: [publicKey("ed25519")] }, true],
    ["something of no known form does not hide a good one", withSignatures(Buffer.from("nonsense"), envelope(good, ed25519)), { keys: [publicKey("ed25519")] }, true],
    ["a damaged message does not hide a good one", withSignatures(Buffer.from(`x${signatureText("one-group-signed-pgp")}`.slice(1, 200)), envelope(good, ed25519)), { ...pgp, keys: [publicKey("ed25519")] }, true],
  ] // prettier-ignore
  for (const [what, image, options, accepted] of cases)
    it(`${what}: ${accepted ? "verified" : "refused"}`, async () => {
      const report = await verifyBytes(image, options)
      assert.equal(report.verified, accepted, JSON.stringify(report.failures))
      assert.equal(report.failures.length === 0, accepted)
    })

  it("A24: says which objects nobody covers", async () => {
    const part = envelope(metadataOf(vector("sif/one-group-signed-dsse.sif"), [1]), ed25519)
    const keys = [publicKey("ed25519")]
    assert.deepEqual((await verifyBytes(withSignatures(part), { keys })).uncovered, [2])
    assert.deepEqual((await verifyBytes(withSignatures(envelope(good, ed25519)), { keys })).uncovered, [])
    const loose = withSignatures(envelope(good, ed25519))
    addObject(loose, 0xf0000000)
    assert.deepEqual((await verifyBytes(loose, { keys })).uncovered, [4])
    const others = { keys, require: [name(rsa)] }
    assert.deepEqual((await verifyBytes(withSignatures(envelope(good, ed25519)), others)).uncovered, [1, 2])
  })

  it("single objects are covered by different signers", async () => {
    const image = vector("sif/one-group-signed-dsse.sif")
    const parts = withSignatures(
      envelope(metadataOf(image, [1]), ed25519),
      envelope(metadataOf(image, [1, 2]).replace(/\{"relativeId":0[^}]*\},/, ""), rsa),
    )
    const keys = [publicKey("ed25519"), publicKey("rsa")]
    assert.equal((await verifyBytes(parts, { keys, objects: [1, 2] })).verified, true)
    assert.equal((await verifyBytes(parts, { keys })).verified, false)
    assert.equal((await verifyBytes(parts, { keys: keys.slice(0, 1), objects: [1, 2] })).verified, false)
  })

  it("refuses RSA keys that are too weak", async () => {
    const { publicKey: weak } = generateKeyPairSync("rsa", { modulusLength: 1024 })
    await assert.rejects(verifyBytes(vector("sif/one-group-signed-dsse.sif"), { keys: [weak] }), {
      code: "ERR_SIGNATURE_KEYRING",
      message: /1024 bits is too weak/,
    })
  })
})

describe("signatures from before Singularity 3.6", () => {
  const all = "two-groups-signed-legacy-all"
  const group = "two-groups-signed-legacy-group"
  // Apptainer's verdicts.
  const cases: readonly (readonly [string, string, VerifyOptions, boolean, readonly number[]])[] = [
    ["of the primary partition", all, { ...pgp, legacy: "primary" }, true, [2]],
    ["of every object, of which one has none", all, { ...pgp, legacy: "all" }, false, [1, 2]],
    ["of a group do not count for an object", group, { ...pgp, legacy: "primary" }, false, [1, 2]],
    ["of a group", group, { ...pgp, legacy: "primary", groups: [1] }, true, [1, 2]],
    ["of another group", group, { ...pgp, legacy: "primary", groups: [2] }, false, []],
    ["of objects do not count for a group", all, { ...pgp, legacy: "primary", groups: [1] }, false, [1, 2]],
    ["of one object", all, { ...pgp, legacy: "primary", objects: [1] }, true, [1]],
    ["where there are current ones only", "one-group-signed-pgp", { ...pgp, legacy: "primary" }, false, [2]],
    ["by nobody who is known", all, { legacy: "primary" }, false, []],
  ] // prettier-ignore
  for (const [what, name, options, accepted, covered] of cases)
    it(`${what}: ${accepted ? "verified, and called insecure" : "refused"}`, async () => {
      const report = await verifyBytes(vector(`sif/${name}.sif`), options)
      assert.equal(report.verified, accepted, JSON.stringify(report.failures))
      assert.equal(report.insecure, true)
      const seen = new Set(report.signatures.flatMap(({ objects }) => objects))
      assert.deepEqual([...seen].sort(), covered)
    })

  it("do not hold for changed data", async () => {
    const image = vector(`sif/${all}.sif`)
    const at = Number(image.readBigInt64LE(slot(2) + 17))
    image.writeUInt8((image[at + 1] ?? 0) ^ 1, at + 1)
    const report = await verifyBytes(image, { ...pgp, legacy: "primary" })
    assert.equal(report.verified, false)
    assert.match(report.failures[0]?.reason ?? "", /data was changed/)
  })

  for (const hash of [0, 4, 5, 99])
    it(`S4: of the hash type ${hash} are refused`, async () => {
      const image = vector(`sif/${all}.sif`)
      for (const id of [4, 5]) image.writeInt32LE(hash, slot(id) + 201)
      assert.equal((await verifyBytes(image, { ...pgp, legacy: "primary" })).verified, false)
    })
})

describe("the signed metadata", () => {
  const key = privateKey("ed25519")
  const keys = [publicKey("ed25519")]
  const good = metadataOf(vector("sif/one-group-signed-dsse.sif"), [1, 2])
  const digest = (text: string): string => /sha256:[0-9a-f]{64}/.exec(text)?.[0] ?? ""

  const cases: readonly (readonly [string, boolean, string])[] = [
    ["as signers write it", true, good],
    ["with space and another order", true, JSON.stringify(Object.fromEntries(Object.entries(JSON.parse(good) as object).reverse()), null, 2)], // prettier-ignore
    ["with digits in upper case", true, good.replaceAll(/[0-9a-f]{64}/g, (hex) => hex.toUpperCase())],
    ["with members nobody knows", true, good.replace('{"version"', '{"x":[1],"version"')],
    ["S4: with SHA-1", false, good.replace(digest(good), `sha1:${"a".repeat(40)}`)],
    ["S4: with MD5", false, good.replace(digest(good), `md5:${"a".repeat(32)}`)],
    ["S4: with an algorithm nobody knows", false, good.replace("sha256:", "sha257:")],
    ["S4: with a name from a prototype", false, good.replace(digest(good), `constructor:${"a".repeat(64)}`)],
    ["without a version", false, good.replace('"version":1,', "")],
    ["of version 2", false, good.replace('"version":1', '"version":2')],
    ["with an object twice", false, good.replace('"relativeId":1', '"relativeId":0')],
    ["with the version twice", false, good.replace('"version":1', '"version":1,"version":1')],
    ["without objects", false, good.replace(/"objects":\[.*\]/, '"objects":[]')],
    ["that is no JSON", false, `${good}x`],
  ]
  for (const [what, accepted, text] of cases)
    it(`${what}: ${accepted ? "accepted" : "refused"}`, async () => {
      const image = withSignature("one-group-signed-dsse", envelope(text, key))
      const report = await verifyBytes(image, { keys })
      assert.equal(report.verified, accepted, JSON.stringify(report))
      if (!accepted) assert.equal(report.signatures[0]?.status, "invalid")
    })

  it("has a code for signed text that is malformed", () => {
    assert.throws(() => parseMetadata(Buffer.from(`${good}x`)), { code: "ERR_SIGNATURE_FORMAT" })
  })

  it("a key that is named and did not sign: refused, not unknown", async () => {
    const name = (await verifyBytes(vector("sif/one-group-signed-dsse.sif"), { keys })).signers[0]
    const data = envelope(good, generateKeyPairSync("ed25519").privateKey, name)
    const report = await verifyBytes(withSignature("one-group-signed-dsse", data), { keys })
    assert.equal(report.signatures[0]?.status, "invalid")
  })
})

describe("clear-signed messages", () => {
  const text = signatureText("one-group-signed-pgp")
  const line = text.split("\n").find((part) => part.startsWith("{")) ?? ""

  const shapes: readonly (readonly [string, boolean, string])[] = [
    ["as signers write them", true, text],
    ["with CRLF", true, text.replaceAll("\n", "\r\n")],
    ["with blanks behind the text", true, text.replace(line, `${line}  \t`)],
    ["with a line end at the end", true, `${text}\n`],
    ["with text before them", false, `{}\n${text}`],
    ["with text behind them", false, `${text}\n{}`],
    ["with another message behind them", false, `${text}\n${text}`],
    [
      "with a header that is not Hash",
      false,
      text.replace("Hash: SHA256", "Hash: SHA256\nNotDashEscaped: yes"),
    ],
    ["with text among the headers", false, text.replace("Hash: SHA256\n", `Hash: SHA256\n${line}\n`)],
    ["with no headers and an early text", false, text.replace("Hash: SHA256\n", `${line}\n`)],
    ["with a form feed", false, text.replace(line, `${line}\f`)],
    ["with escaped lines", false, text.replace(line, `- -x\n${line}`)],
    ["with a second signature block", false, text.replace("-----END PGP SIGNATURE-----", "-----END PGP SIGNATURE-----\n-----BEGIN PGP SIGNATURE-----\n-----END PGP SIGNATURE-----")], // prettier-ignore
    ["with other text than was signed", false, text.replace(line, line.replace("relativeId", "relativeid"))],
    ["with bytes that are no text", false, text.replace(line, `${line}\u00a0`)],
  ]
  for (const [what, accepted, message] of shapes)
    it(`S38: ${accepted ? "accepts" : "refuses"} them ${what}`, async () => {
      const image = withSignature("one-group-signed-pgp", Buffer.from(message, "latin1"))
      const report = await verifyBytes(image, pgp)
      assert.equal(report.verified, accepted, JSON.stringify(report.failures))
    })

  it("S37: neither verifies nor crashes with any byte of them changed", async function () {
    this.timeout(60_000)
    const next = generator(7)
    let valid = 0
    for (let round = 0; round < 300; round++) {
      const bytes = Buffer.from(text, "latin1")
      const at = next(bytes.length)
      const changed = bytes[at] ?? 0
      bytes[at] = changed ^ (1 << next(8))
      const report = await verifyBytes(withSignature("one-group-signed-pgp", bytes), pgp)
      // Of the armor, what is not signed may change (a hash that is named in a header); the text never.
      const inText = at >= text.indexOf(line) && at < text.indexOf(line) + line.length
      if (report.verified) valid++
      if (inText) assert.equal(report.verified, false, `byte ${at}`)
    }
    assert.ok(valid < 30, `${valid} of 300 were accepted`)
  })
})
