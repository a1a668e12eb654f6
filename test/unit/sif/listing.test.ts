import assert from "node:assert/strict"
import { headerText, infoJson, infoText, listJson, listText } from "../../../lib/sif/listing.ts"
import { openSif, type SifImage } from "../../../lib/sif/open.ts"
import { vector } from "../../vectors/load.ts"

const slot = (id: number): number => 4096 + (id - 1) * 585

async function changed(change: (bytes: Buffer) => void): Promise<SifImage> {
  const bytes = vector("sif/two-groups-signed-legacy-all.sif")
  change(bytes)
  return await openSif(bytes)
}

describe("listings", () => {
  it("show control characters of a name, a launch script and a digest escaped", async () => {
    await using image = await changed((bytes) => {
      bytes.write("\u001b[2J\u009bx\n", slot(1) + 73)
      bytes.write("\u001b]0;x\u0007", 0)
      bytes.writeInt32LE(0x400b, slot(3))
      bytes.write("sha256:\u001b[2J\0", slot(3) + 201)
    })
    for (const text of [listText(image), headerText(image), infoText(image, 1), infoText(image, 3)])
      assert.doesNotMatch(text, /[^\P{Cc}\n]/u)
    assert.match(infoText(image, 1), /^ *Name: +\\x1b\[2J\\x9bx\\x0a$/m)
    assert.match(headerText(image), /^Launch Script: +\\x1b\]0;x\\x07/m)
    assert.equal(infoJson(image, 3).digest, "sha256:\\x1b[2J")
  })

  it("show times of any year, and what no calendar has", async () => {
    for (const [seconds, shown] of [
      [0n, "1970-01-01 00:00:00 +0000 UTC"],
      [-1n, "1969-12-31 23:59:59 +0000 UTC"],
      [253402300800n, "10000-01-01 00:00:00 +0000 UTC"],
      [8640000000000n, "275760-09-13 00:00:00 +0000 UTC"],
      [8640000000001n, "8640000000001 s since 1970"],
    ] as const) {
      await using image = await changed((bytes) => {
        bytes.writeBigInt64LE(seconds, 64)
        bytes.writeBigInt64LE(seconds, slot(1) + 41)
      })
      assert.ok(headerText(image).includes(` ${shown}\n`), shown)
      assert.ok(infoText(image, 1).includes(` ${shown}\n`), shown)
    }
  })

  it("leave a time that JSON cannot say out of it", async () => {
    await using image = await changed((bytes) => bytes.writeBigInt64LE(2n ** 63n - 1n, slot(1) + 41))
    assert.equal(listJson(image)[0]?.created, undefined)
    assert.equal(listJson(image)[0]?.modified, "2020-05-22T19:30:59.000Z")
  })

  it("call what nobody defined unknown", async () => {
    await using image = await changed((bytes) => {
      bytes.writeInt32LE(0x7001, slot(1))
      bytes.writeInt32LE(77, slot(2) + 201)
      bytes.writeInt32LE(9, slot(3) + 205)
      bytes.write("zz", slot(3) + 209)
      bytes.writeInt32LE(-1, slot(4) + 201)
    })
    const types = listText(image)
      .trimEnd()
      .split("\n")
      .slice(3)
      .map((line) => line.split("|")[4])
    assert.deepEqual(types, [
      "Unknown",
      "FS (Unknown/*System/386)",
      "FS (Ext3/Unknown/unknown)",
      "Signature (Unknown)",
      "Signature (SHA-384)",
    ])
  })

  it("refuse an object that is not there", async () => {
    await using image = await changed(() => undefined)
    assert.throws(() => infoText(image, 6), { name: "SifError", code: "ERR_SIF_NO_OBJECT" })
    assert.throws(() => infoJson(image, 0), { name: "SifError", code: "ERR_SIF_NO_OBJECT" })
  })
})
