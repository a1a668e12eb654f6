// What is decided before any keyslot is tried: nothing here needs the addon.
import assert from "node:assert/strict"
import { generateKeyPairSync, publicEncrypt, randomBytes } from "node:crypto"
import { KeyError } from "../../../lib/errors.ts"
import { partitionKind } from "../../../lib/encryption/partition.ts"
import { findCryptoMessages, unlockPartition } from "../../../lib/encryption/unlock.ts"
import { Credentials, type CredentialSource } from "../../../lib/encryption/credentials.ts"
import { openSif, type SifImage } from "../../../lib/sif/open.ts"
import { vector } from "../../vectors/load.ts"

const luks = "peer/luks-rsa2048.sif"
const table = 4096
const slotSize = 585
const messageSlot = table + 3 * slotSize
const partitionAt = 36864
const messageAt = 17858560

const otherKey = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({
  type: "pkcs8",
  format: "pem",
})

async function unlock(bytes: Buffer, sources: readonly CredentialSource[]): Promise<unknown> {
  await using image = await openSif(bytes)
  return await unlockPartition(image, image.primary(), new Credentials(sources), {})
}

function patched(patch: (image: Buffer) => void): Buffer {
  const image = vector(luks)
  patch(image)
  return image
}

const theirs = [{ key: { bytes: vector("peer/rsa_pri.pem") } }]
const another = [{ key: { bytes: Buffer.from(otherKey) } }]

describe("findCryptoMessages", () => {
  const found = async (patch: (image: Buffer) => void): Promise<number[]> => {
    await using image: SifImage = await openSif(patched(patch))
    return findCryptoMessages(image, image.primary()).map(({ id }) => id)
  }

  it("finds the message that is linked to the partition", async () => {
    assert.deepEqual(await found(() => undefined), [4])
  })

  for (const [what, patch] of [
    ["linked to nothing", (image: Buffer) => image.writeUInt32LE(0, messageSlot + 13)],
    ["linked to another object", (image: Buffer) => image.writeUInt32LE(2, messageSlot + 13)],
    [
      "linked to the group of that number",
      (image: Buffer) => image.writeUInt32LE(0xf0000003, messageSlot + 13),
    ],
    ["of the OpenPGP format", (image: Buffer) => image.writeInt32LE(1, messageSlot + 201)],
    ["of an unknown kind", (image: Buffer) => image.writeInt32LE(0x300, messageSlot + 205)],
    ["without format and kind", (image: Buffer) => image.fill(0, messageSlot + 201, messageSlot + 209)],
    ["that is another type of object", (image: Buffer) => image.writeInt32LE(0x4007, messageSlot)],
  ] as const)
    it(`finds no message ${what}`, async () => {
      assert.deepEqual(await found(patch), [])
    })

  it("finds a message in any group", async () => {
    assert.deepEqual(await found((image) => image.writeUInt32LE(0xf0000009, messageSlot + 9)), [4])
  })
})

describe("unlockPartition", () => {
  it("A17: says that no key was given, and what kind is needed", async () => {
    await assert.rejects(unlock(vector(luks), []), {
      name: "KeyError",
      code: "ERR_KEY_MISSING",
      message: "image is encrypted (for 1 RSA recipient) and no key was given",
    })
    const bytes = patched((image) => image.writeUInt32LE(0, messageSlot + 13))
    await assert.rejects(unlock(bytes, []), {
      code: "ERR_KEY_MISSING",
      message: "image is encrypted (with a passphrase) and no key was given",
    })
  })

  it("A17: says that the key is not the one", async () => {
    await assert.rejects(unlock(vector(luks), another), {
      name: "KeyError",
      code: "ERR_KEY_MISMATCH",
      message: "image was not encrypted for this key (key 1); it has 1 RSA recipient",
    })
  })

  it("A17: says that no RSA key opens the image, only a passphrase", async () => {
    const bytes = patched((image) => image.writeUInt32LE(0, messageSlot + 13))
    await assert.rejects(unlock(bytes, theirs), {
      code: "ERR_KEY_MISMATCH",
      message: "image has no RSA recipient: it opens with a passphrase only",
    })
  })

  it("A17: says that the crypto message is damaged", async () => {
    for (const patch of [
      (image: Buffer) => image.fill(0x2e, messageAt, messageAt + 400),
      (image: Buffer) => image.fill(0x21, messageAt + 28, messageAt + 90),
    ])
      await assert.rejects(unlock(patched(patch), theirs), {
        name: "KeyError",
        code: "ERR_KEY_MESSAGE",
        message: /crypto message/,
      })
  })

  it("A17: says that the header is damaged before it reads any key", async () => {
    const bytes = patched((image) => image.fill(0, partitionAt, partitionAt + 32768))
    await assert.rejects(unlock(bytes, [{ key: { file: "/nowhere/key.pem" } }]), {
      name: "LuksError",
      code: "ERR_LUKS_HEADER",
      message: /no LUKS magic/,
    })
  })

  it("A17: says that the key itself cannot be read", async () => {
    await assert.rejects(unlock(vector(luks), [{ key: { file: "/nowhere/key.pem" } }]), {
      code: "ERR_KEY_MISSING",
      message: /\/nowhere\/key\.pem/,
    })
    await assert.rejects(unlock(vector(luks), [{ key: { bytes: vector("peer/rsa_pub.pem") } }]), {
      code: "ERR_KEY_PUBLIC",
    })
  })

  it("A17: has another code for each of these", () => {
    const codes = [
      "ERR_KEY_MISSING",
      "ERR_KEY_MISMATCH",
      "ERR_KEY_FORMAT",
      "ERR_KEY_WEAK",
      "ERR_KEY_MESSAGE",
    ] as const
    assert.equal(new Set(codes.map((code) => new KeyError(code, "").code)).size, codes.length)
  })

  it("S6: reads no crypto message of more than 64 KiB", async () => {
    const bytes = Buffer.concat([vector(luks), Buffer.alloc(65536, 0x41)])
    bytes.writeBigInt64LE(65537n, messageSlot + 25)
    await assert.rejects(unlock(bytes, theirs), {
      code: "ERR_SIF_TOO_LARGE",
      message: /object 4 has 65537 bytes/,
    })
  })

  it("does not take what any key can read for a secret: a message of random bytes is for nobody", async () => {
    const bytes = patched((image) => {
      const lines = Buffer.concat([Buffer.from([4, 0x82, 1, 0]), Buffer.alloc(1), randomBytes(255)])
        .toString("base64")
        .replace(/.{64}/g, "$&\n")
      image.write(`-----BEGIN MESSAGE-----\n${lines}\n-----END MESSAGE-----\n`, messageAt, "latin1")
    })
    await assert.rejects(unlock(bytes, theirs), { code: "ERR_KEY_MISMATCH" })
    // as does one that is wrapped with a padding that the format does not use
    const key = vector("peer/rsa_pub.pem").toString()
    const wrapped = publicEncrypt({ key, padding: 1 }, Buffer.alloc(64, 1))
    const other = patched((image) => {
      const text = Buffer.concat([Buffer.from([4, 0x82, 1, 0]), wrapped])
        .toString("base64")
        .replace(/.{64}/g, "$&\n")
      image.write(`-----BEGIN MESSAGE-----\n${text}\n-----END MESSAGE-----\n`, messageAt, "latin1")
    })
    await assert.rejects(unlock(other, theirs), { code: "ERR_KEY_MISMATCH" })
  })
})

describe("partitionKind", () => {
  for (const [code, expected] of [
    [1, "squashfs"],
    [2, "other"],
    [3, "other"],
    [4, "other"],
    [5, "luks"],
    [6, "gocryptfs"],
    [0, "other"],
    [-1, "other"],
    [99, "other"],
  ] as const)
    it(`S7: calls a file system of type ${code} ${expected}`, async () => {
      await using image = await openSif(
        patched((bytes) => bytes.writeInt32LE(code, table + 2 * slotSize + 201)),
      )
      assert.equal(partitionKind(image.primary()), expected)
    })
})
