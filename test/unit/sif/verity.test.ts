import assert from "node:assert/strict"
import { DataType, parseDescriptor, serializeDescriptor, type SifObject } from "../../../lib/sif/format.ts"
import {
  isVerity,
  parseVerityStatement,
  verityExtra,
  veritySize,
  type VerityStatement,
} from "../../../lib/sif/verity.ts"

const statement: VerityStatement = {
  relativeId: 3,
  partitionSize: 10 * 2 ** 30,
  salt: Buffer.alloc(32, 0x5a),
  root: Buffer.alloc(32, 0xa5),
}

describe("the statement about a hash tree", () => {
  it("has the layout of docs/format.md", () => {
    const extra = verityExtra(statement)
    assert.equal(extra.length, 384)
    assert.equal(
      extra.subarray(0, 64).toString("hex"),
      Buffer.from("SIFCRYPT-VERITY\0").toString("hex") +
        "01000000" + // version
        "03000000" + // partition
        "0000008002000000" + // its size
        "01000000" + // dm-verity's version
        "0010000000100000" + // blocks
        "20000000" + // salt
        "73686132353600000000000000000000", // sha256
    )
    assert.deepEqual(extra.subarray(64, 96), statement.salt)
    assert.deepEqual(extra.subarray(96, 128), statement.root)
    assert.ok(extra.subarray(128).every((byte) => byte === 0))
    assert.deepEqual(parseVerityStatement(extra), statement)
  })

  for (const [what, at, reason] of [
    ["another version", 16, /version 0/],
    ["another format of dm-verity", 32, /format, its block sizes or its salt's size/],
    ["another size of data blocks", 37, /format, its block sizes/],
    ["another size of hash blocks", 41, /format, its block sizes/],
    ["another size of salt", 44, /format, its block sizes/],
    ["another algorithm", 48, /algorithm is not sha256/],
    ["a longer name of an algorithm", 54, /algorithm is not sha256/],
    ["something behind the root", 128, /more than is known/],
    ["something at its end", 383, /more than is known/],
  ] as const)
    it(`is refused with ${what}`, () => {
      const extra = verityExtra(statement)
      extra[at] = (extra[at] ?? 0) ^ 1
      const parsed = parseVerityStatement(extra)
      assert.ok(typeof parsed === "string")
      assert.match(parsed, reason)
    })

  it("is told from other generic objects by its first bytes", () => {
    const object = (type: number, extra: Buffer): SifObject => {
      const record = serializeDescriptor({
        type,
        id: 1,
        group: 1,
        link: { to: "none" },
        offset: 0,
        size: 0,
        paddedSize: 0,
        time: 0,
        name: "sifcrypt-verity",
        extra,
      })
      return parseDescriptor(record, 0) as SifObject
    }
    assert.equal(isVerity(object(DataType.generic, verityExtra(statement))), true)
    assert.equal(isVerity(object(DataType.json, verityExtra(statement))), false)
    assert.equal(isVerity(object(DataType.generic, Buffer.alloc(384))), false)
  })
})

describe("veritySize", () => {
  for (const [blocks, tree] of [
    [2, 1],
    [128, 1],
    [129, 3],
    [16384, 129],
    [16385, 132],
    [2 ** 31, 2 ** 24 + 2 ** 17 + 2 ** 10 + 8 + 1],
  ] as const)
    it(`${blocks} blocks: ${tree}`, () => {
      assert.equal(veritySize(blocks * 4096), tree * 4096)
    })

  for (const size of [0, 4096, 4095, 8193, -8192, 2 ** 54, NaN])
    it(`${size} bytes: none`, () => {
      assert.equal(veritySize(size), undefined)
    })
})
