// Which signatures count for an encrypted root. None is verified, so nothing here says that one is good.
import assert from "node:assert/strict"
import { checkUnsigned, isUnsigned } from "../../../lib/container/signature.ts"
import { SignatureError } from "../../../lib/errors.ts"
import { FileSystem } from "../../../lib/sif/format.ts"
import { openSif } from "../../../lib/sif/open.ts"
import { vector } from "../../vectors/load.ts"

const slot = (id: number): number => 4096 + (id - 1) * 585
const groupAt = 9
const linkAt = 13
const fileSystemAt = 201

/** An image of others whose root, object 2, is called encrypted; its content is not looked at. */
function encrypted(name: string, patch: (image: Buffer) => void = () => undefined): Buffer {
  const image = vector(`sif/${name}.sif`)
  image.writeInt32LE(FileSystem.encryptedSquashfs, slot(2) + fileSystemAt)
  patch(image)
  return image
}

async function unsigned(bytes: Buffer): Promise<boolean> {
  await using image = await openSif(bytes)
  return await isUnsigned(image, image.primary())
}

describe("isUnsigned", () => {
  for (const kind of ["pgp", "dsse"])
    it(`S28: counts a signature of the root's group (${kind})`, async () => {
      assert.equal(await unsigned(encrypted(`one-group-signed-${kind}`)), false)
    })

  it("S28: does not care about a plain image", async () => {
    assert.equal(await unsigned(vector("sif/one-group-signed-pgp.sif")), false)
    assert.equal(await unsigned(vector("peer/plain.sif")), false)
  })

  for (const name of ["peer/luks-rsa2048.sif", "peer/gocryptfs-rsa2048.sif"])
    it(`S28: says so of an encrypted image without any: ${name}`, async () => {
      assert.equal(await unsigned(vector(name)), true)
    })

  for (const name of ["two-groups-signed-legacy-all", "two-groups-signed-legacy-group"])
    it(`S28: does not count signatures from before Singularity 3.6: ${name}`, async () => {
      assert.equal(await unsigned(encrypted(name)), true)
    })

  for (const [what, patch] of [
    ["of another group", (image: Buffer) => image.writeUInt32LE(0xf0000002, slot(3) + linkAt)],
    ["of an object", (image: Buffer) => image.writeUInt32LE(2, slot(3) + linkAt)],
    ["of nothing", (image: Buffer) => image.writeUInt32LE(0, slot(3) + linkAt)],
    ["without content", (image: Buffer) => image.writeBigInt64LE(0n, slot(3) + 25)],
    ["that is another type of object", (image: Buffer) => image.writeInt32LE(0x4007, slot(3))],
  ] as const)
    it(`S28: does not count a signature ${what}`, async () => {
      assert.equal(await unsigned(encrypted("one-group-signed-pgp", patch)), true)
    })

  it("S28: does not count any for a root that is in no group", async () => {
    const image = encrypted("one-group-signed-pgp", (bytes) => {
      bytes.writeUInt32LE(0xf0000000, slot(2) + groupAt)
      bytes.writeUInt32LE(0xf0000000, slot(3) + linkAt)
    })
    assert.equal(await unsigned(image), true)
  })
})

describe("checkUnsigned", () => {
  it("S28: tells, refuses or keeps silent, as it is told to", async () => {
    await using image = await openSif(vector("peer/luks-rsa2048.sif"))
    const primary = image.primary()
    assert.equal(await checkUnsigned(image, primary, "allow"), undefined)
    assert.match(
      (await checkUnsigned(image, primary, "warn")) ?? "",
      /^image is encrypted but carries no signature/,
    )
    await assert.rejects(checkUnsigned(image, primary, "error"), (error: unknown) => {
      assert.ok(error instanceof SignatureError)
      assert.equal(error.code, "ERR_UNSIGNED")
      assert.match(error.message, /^image is encrypted but carries no signature/)
      return true
    })
  })

  it("S28: says nothing of an image that carries one, and not that it is valid", async () => {
    await using image = await openSif(encrypted("one-group-signed-pgp"))
    for (const policy of ["allow", "warn", "error"] as const)
      assert.equal(await checkUnsigned(image, image.primary(), policy), undefined)
  })
})
