// What lies behind the squashfs: written and read back, and refused where it is malformed.
import assert from "node:assert/strict"
import {
  encodeTrailer,
  readFooter,
  readSealed,
  type ObjectToSeal,
  type Plaintext,
} from "../../../lib/encryption/sealed.ts"
import { DataType, type SifObject } from "../../../lib/sif/format.ts"
import { openSif } from "../../../lib/sif/open.ts"
import { BufferReader } from "../../../lib/sif/source.ts"
import { vector } from "../../vectors/load.ts"

const BLOCK = 4096
type KeptObjectToSeal = Extract<ObjectToSeal, { readonly object: unknown }>

async function objectsOfPlain(): Promise<KeptObjectToSeal[]> {
  await using image = await openSif(vector("peer/plain.sif"))
  const objects = image.objects.filter(({ type }) => type !== DataType.partition)
  return await Promise.all(
    objects.map(async (object) => ({
      object,
      data: Buffer.from(await image.data(object, 1 << 20)),
      place: { slot: object.slot, id: object.id, link: object.link },
    })),
  )
}

/** A squashfs of two blocks, of which the partition has `length` bytes, and the trailer behind it. */
function plaintextOf(
  length: number,
  trailer: Buffer,
): { readonly bytes: Buffer; readonly plaintext: Plaintext } {
  const bytes = Buffer.concat([Buffer.alloc(Math.ceil(length / BLOCK) * BLOCK, 0xaa), trailer])
  return { bytes, plaintext: { reader: new BufferReader(bytes), squashfsSize: 2 * BLOCK } }
}

describe("sealed metadata", () => {
  it("comes back with name, type, ID, slot, link, times and content", async () => {
    const objects = await objectsOfPlain()
    const { plaintext } = plaintextOf(8000, encodeTrailer(8000, objects, 0))
    const footer = await readFooter(plaintext, "image")
    assert.equal(footer?.length, 8000)
    const sealed = await readSealed(plaintext, footer, "image")
    assert.ok(sealed !== undefined)
    assert.equal(sealed.objects.length, objects.length)
    for (const [i, { object, data }] of objects.entries()) {
      const found: SifObject | undefined = sealed.objects[i]
      assert.ok(found !== undefined)
      const where = { offset: 0, paddedSize: 0, record: Buffer.alloc(0) }
      assert.deepEqual({ ...found, ...where }, { ...object, ...where })
      assert.deepEqual(await sealed.data(found, 1 << 20), data)
    }
  })

  it("says how long a partition was where there is nothing to seal", async () => {
    const { plaintext } = plaintextOf(4097, encodeTrailer(4097, [], 0))
    const footer = await readFooter(plaintext, "image")
    assert.deepEqual(footer, { length: 4097, sealed: undefined })
    assert.equal(await readSealed(plaintext, footer, "image"), undefined)
  })

  it("is not looked for inside the squashfs", async () => {
    const { bytes } = plaintextOf(8192, encodeTrailer(8192, [], 0))
    const plaintext = { reader: new BufferReader(bytes), squashfsSize: bytes.length }
    assert.equal(await readFooter(plaintext, "image"), undefined)
  })

  it("is not found where the peers wrote nothing", async () => {
    const { plaintext } = plaintextOf(8192, Buffer.alloc(BLOCK))
    assert.equal(await readFooter(plaintext, "image"), undefined)
  })

  for (const [what, at, value] of [
    ["a later version", 16, 2n],
    ["bytes that are no zeros", 48, 1n],
    ["a partition that ends inside the squashfs", 24, 4096n],
    ["a partition that reaches into the footer", 24, 1n << 40n],
    ["a length that no number holds", 24, (1n << 64n) - 1n],
    ["objects that start inside the partition", 32, 4096n],
    ["objects off the grid", 32, 8193n],
    ["objects behind the end", 32, 1n << 50n],
    ["objects at the end of the number range", 32, (1n << 64n) - 4096n],
    ["objects that reach into the footer", 40, 60000000n],
    ["more objects than are read", 40, 1n << 40n],
    ["no objects, somewhere", 40, 0n],
  ] as const)
    it(`S6: refuses ${what}`, async () => {
      const trailer = encodeTrailer(8192, await objectsOfPlain(), 0)
      trailer.writeBigUInt64LE(value, trailer.length - BLOCK + at)
      const { plaintext } = plaintextOf(8192, trailer)
      await assert.rejects(readFooter(plaintext, "image"), {
        name: "SifError",
        code: "ERR_SIF_SEALED",
        message: /^image: what is sealed in the partition is malformed: /,
      })
    })

  it("S6: refuses objects that are no SIF, and those that are no metadata", async () => {
    const trailer = encodeTrailer(8192, await objectsOfPlain(), 0)
    const refused = { code: "ERR_SIF_SEALED", message: /malformed/ }
    for (const [at, byte] of [
      [32, 0], // the magic number
      [BLOCK + 1, 0], // the first object's type
    ] as const) {
      const changed = Buffer.from(trailer)
      changed[at] = byte
      const { plaintext } = plaintextOf(8192, changed)
      await assert.rejects(readSealed(plaintext, await readFooter(plaintext, "image"), "image"), refused)
    }
  })

  it("refuses more than can be read back", async () => {
    const [first] = await objectsOfPlain()
    assert.ok(first !== undefined)
    assert.throws(() => encodeTrailer(0, [{ ...first, data: Buffer.alloc((64 << 20) + 1) }], 0), {
      code: "ERR_SIF_TOO_LARGE",
    })
  })
})
