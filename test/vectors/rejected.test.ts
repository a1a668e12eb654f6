// What no image may say: bytes of an accepted one, patched to break one rule each.
import assert from "node:assert/strict"
import { SifError, type ErrorCode } from "../../lib/errors.ts"
import { dump, headerJson, headerText, infoText, listJson, listText, openSif } from "../../lib/file/sif.ts"
import { readSif } from "../../lib/sif/open.ts"
import { BufferReader } from "../../lib/sif/source.ts"
import { generator, vector } from "./load.ts"

const base = "sif/one-group-signed-pgp.sif"
const table = 4096
const slotSize = 585
/** Objects 1 and 2 are partitions of 4 bytes at 32768 and 4096 bytes at 36864; 3 is a signature of 1048 bytes at 40960. */
const slot = (id: number, field = 0): number => table + (id - 1) * slotSize + field
const used = 4
const idField = 5
const group = 9
const link = 13
const offset = 17
const size = 25
const partitionType = 205
const totalSlots = 88
const tableOffset = 96
const tableSize = 104

const int64 =
  (at: number, value: bigint) =>
  (image: Buffer): void => {
    image.writeBigInt64LE(value, at)
  }
const uint32 =
  (at: number, value: number) =>
  (image: Buffer): void => {
    image.writeUInt32LE(value, at)
  }
const text =
  (at: number, value: string) =>
  (image: Buffer): void => {
    image.write(value, at, "latin1")
  }

interface Rejected {
  /** The rule that it breaks. */
  readonly rule: string
  readonly patch: (image: Buffer) => void
  readonly code: ErrorCode
  /** What the message must say besides. */
  readonly says: RegExp
}

const rejected: readonly Rejected[] = [
  {
    rule: "magic is SIF_MAGIC",
    patch: text(32, "SIF_MAGIK"),
    code: "ERR_SIF_MAGIC",
    says: /not a SIF image/,
  },
  { rule: "magic ends with NUL", patch: text(41, "1"), code: "ERR_SIF_MAGIC", says: /not a SIF image/ },
  { rule: "version is not 00", patch: text(42, "00"), code: "ERR_SIF_VERSION", says: /"00"/ },
  { rule: "version is not 02", patch: text(42, "02"), code: "ERR_SIF_VERSION", says: /"02"/ },
  { rule: "version ends with NUL", patch: text(44, "1"), code: "ERR_SIF_VERSION", says: /"011"/ },
  {
    rule: "total is not negative",
    patch: int64(totalSlots, -1n),
    code: "ERR_SIF_HEADER",
    says: /-1 descriptors/,
  },
  {
    rule: "total is not the least number",
    patch: int64(totalSlots, -(2n ** 63n)),
    code: "ERR_SIF_HEADER",
    says: /descriptors/,
  },
  {
    rule: "total is bounded",
    patch: int64(totalSlots, 65537n),
    code: "ERR_SIF_HEADER",
    says: /at most 65536/,
  },
  {
    rule: "total is not 2^60",
    patch: int64(totalSlots, 1n << 60n),
    code: "ERR_SIF_HEADER",
    says: /at most 65536/,
  },
  {
    rule: "total times 585 does not wrap around",
    patch: int64(totalSlots, (1n << 63n) / 585n + 1n),
    code: "ERR_SIF_HEADER",
    says: /at most 65536/,
  },
  {
    rule: "total fits the table's size",
    patch: int64(totalSlots, 49n),
    code: "ERR_SIF_HEADER",
    says: /28080 bytes does not hold 49/,
  },
  {
    rule: "table size is not negative",
    patch: int64(tableSize, -1n),
    code: "ERR_SIF_HEADER",
    says: /-1 bytes does not hold 48/,
  },
  {
    rule: "table size holds all descriptors",
    patch: int64(tableSize, 28079n),
    code: "ERR_SIF_HEADER",
    says: /28079 bytes/,
  },
  {
    rule: "the largest table lies in the file",
    patch: (image) => {
      int64(totalSlots, 65536n)(image)
      int64(tableSize, 2n ** 62n)(image)
    },
    code: "ERR_SIF_TRUNCATED",
    says: /ends at 38342656, the file has 42008 bytes/,
  },
  {
    rule: "table offset is not negative",
    patch: int64(tableOffset, -1n),
    code: "ERR_SIF_HEADER",
    says: /at -1/,
  },
  {
    rule: "table offset is not 0",
    patch: int64(tableOffset, 0n),
    code: "ERR_SIF_HEADER",
    says: /starts at 0/,
  },
  {
    rule: "the table starts after the header",
    patch: int64(tableOffset, 127n),
    code: "ERR_SIF_HEADER",
    says: /starts at 127/,
  },
  {
    rule: "the table lies in the file",
    patch: int64(tableOffset, 42008n - 28080n + 1n),
    code: "ERR_SIF_TRUNCATED",
    says: /ends at 42009, the file has 42008 bytes/,
  },
  {
    rule: "table offset is a number that a file can have",
    patch: int64(tableOffset, 2n ** 63n - 1n),
    code: "ERR_SIF_HEADER",
    says: /descriptor table starts/,
  },
  {
    rule: "an ID is not 0",
    patch: uint32(slot(2, idField), 0),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 2: ID 0/,
  },
  {
    rule: "an ID is used once",
    patch: uint32(slot(3, idField), 1),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 3: ID 1 is used twice/,
  },
  {
    rule: "an object's offset is not negative",
    patch: int64(slot(1, offset), -1n),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 1: 4 bytes at -1/,
  },
  {
    rule: "an object's size is not negative",
    patch: int64(slot(1, size), -4n),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 1: -4 bytes/,
  },
  {
    rule: "an object's offset is a number that a file can have",
    patch: int64(slot(1, offset), 2n ** 63n - 1n),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 1/,
  },
  {
    rule: "an object's size is a number that a file can have",
    patch: int64(slot(1, size), 2n ** 63n - 1n),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 1/,
  },
  {
    rule: "an object's end does not wrap around",
    patch: (image) => {
      int64(slot(1, offset), 2n ** 53n - 1n)(image)
      int64(slot(1, size), 2n ** 53n - 1n)(image)
    },
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 1/,
  },
  {
    rule: "A16: an object ends in the file",
    patch: int64(slot(3, size), 1049n),
    code: "ERR_SIF_TRUNCATED",
    says: /object 3 ends at 42009, the file has 42008 bytes/,
  },
  {
    rule: "A16: an object starts in the file",
    patch: int64(slot(3, offset), 2n ** 40n),
    code: "ERR_SIF_TRUNCATED",
    says: /object 3 ends at 1099511628824, the file has 42008 bytes/,
  },
  {
    rule: "an empty object lies in the file, too",
    patch: (image) => {
      int64(slot(3, offset), 42009n)(image)
      int64(slot(3, size), 0n)(image)
    },
    code: "ERR_SIF_TRUNCATED",
    says: /object 3/,
  },
  {
    rule: "an object does not overlap the header",
    patch: int64(slot(1, offset), 127n),
    code: "ERR_SIF_OVERLAP",
    says: /object 1 overlaps the header/,
  },
  {
    rule: "an object does not overlap the table's start",
    patch: int64(slot(1, offset), 4093n),
    code: "ERR_SIF_OVERLAP",
    says: /object 1 overlaps the descriptor table/,
  },
  {
    rule: "an object does not overlap the table's end",
    patch: int64(slot(1, offset), 32175n),
    code: "ERR_SIF_OVERLAP",
    says: /object 1 overlaps the descriptor table/,
  },
  {
    rule: "an object does not lie in the table",
    patch: int64(slot(1, offset), 8192n),
    code: "ERR_SIF_OVERLAP",
    says: /object 1 overlaps the descriptor table/,
  },
  {
    rule: "an object does not hold the table",
    patch: (image) => {
      int64(slot(1, offset), 128n)(image)
      int64(slot(1, size), 36000n)(image)
    },
    code: "ERR_SIF_OVERLAP",
    says: /object 1 overlaps the descriptor table/,
  },
  {
    rule: "objects do not overlap in one byte",
    patch: int64(slot(2, size), 4097n),
    code: "ERR_SIF_OVERLAP",
    says: /object 3 overlaps object 2/,
  },
  {
    rule: "objects do not lie in each other",
    patch: int64(slot(1, offset), 36866n),
    code: "ERR_SIF_OVERLAP",
    says: /object 1 overlaps object 2/,
  },
  {
    rule: "objects do not share their place",
    patch: int64(slot(1, offset), 36864n),
    code: "ERR_SIF_OVERLAP",
    says: /overlaps object/,
  },
  {
    rule: "a group has its mask",
    patch: uint32(slot(1, group), 1),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 1: group or link/,
  },
  {
    rule: "a group has all of its mask",
    patch: uint32(slot(1, group), 0x10000001),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 1: group or link/,
  },
  {
    rule: "a link has no half of a mask",
    patch: uint32(slot(3, link), 0x70000001),
    code: "ERR_SIF_DESCRIPTOR",
    says: /descriptor 3: group or link/,
  },
  {
    rule: "one partition is the primary one",
    patch: uint32(slot(1, partitionType), 2),
    code: "ERR_SIF_AMBIGUOUS",
    says: /2 primary system partitions/,
  },
]

const tolerated: readonly Omit<Rejected, "code" | "says">[] = [
  { rule: "a wrong count of free descriptors", patch: int64(80, 48n) },
  { rule: "a negative count of free descriptors", patch: int64(80, -7n) },
  { rule: "a data offset of 0", patch: int64(112, 0n) },
  { rule: "a senseless data offset", patch: int64(112, 2n ** 63n - 1n) },
  { rule: "a data size of 0", patch: int64(120, 0n) },
  { rule: "a negative data size", patch: int64(120, -(2n ** 63n)) },
  { rule: "a table that is said to be larger than needed", patch: int64(tableSize, 2n ** 62n) },
  { rule: "fewer descriptors than there are", patch: int64(totalSlots, 2n) },
  { rule: "no descriptor", patch: int64(totalSlots, 0n) },
  { rule: "an unknown architecture", patch: text(45, "99") },
  { rule: "an unknown data type", patch: uint32(slot(3), 0x4fff) },
  { rule: "an unknown file system", patch: uint32(slot(1, 201), 77) },
  { rule: "an unknown partition type", patch: uint32(slot(1, partitionType), 77) },
  { rule: "a link to an object that is not there", patch: uint32(slot(3, link), 40) },
  { rule: "a link to a group that is not there", patch: uint32(slot(3, link), 0xf0000009) },
  { rule: "a used flag of 2", patch: (image) => void (image[slot(1, used)] = 2) },
  { rule: "a time before 1970", patch: int64(slot(1, 41), -1n) },
  { rule: "a time that no calendar has", patch: int64(slot(1, 41), 2n ** 63n - 1n) },
  { rule: "a name without NUL", patch: (image) => void image.fill(0x61, slot(1, 73), slot(1, 201)) },
  { rule: "a name of odd bytes", patch: (image) => void image.fill(0x9b, slot(1, 73), slot(1, 201)) },
  { rule: "an object at an odd offset", patch: int64(slot(1, offset), 32769n) },
  { rule: "a wrong padded size", patch: int64(slot(1, 33), -1n) },
  { rule: "an ID that is not the slot's", patch: uint32(slot(3, idField), 4_000_000_000) },
]

/** Opens, and calls everything that reads the table: success, or an error of ours; anything else fails the test. */
async function tryAll(bytes: Buffer, lenient: boolean): Promise<SifError | undefined> {
  try {
    await using image = await openSif(bytes, { lenient })
    listText(image)
    headerText(image)
    JSON.stringify([listJson(image), headerJson(image)])
    for (const { id } of image.objects) {
      infoText(image, id)
      for await (const piece of dump(image, id)) assert.ok(piece.length <= bytes.length)
    }
    return undefined
  } catch (error) {
    if (error instanceof SifError) return error
    throw error
  }
}

describe("rejected headers", () => {
  for (const { rule, patch, code, says } of rejected)
    it(`S6: refuses what breaks the rule: ${rule}`, async () => {
      const image = vector(base)
      patch(image)
      await assert.rejects(openSif(image), (error: unknown) => {
        assert.ok(error instanceof SifError)
        assert.equal(error.code, code)
        assert.match(error.message, says)
        assert.match(error.message, /^image: /)
        assert.equal(error.path, "image")
        return true
      })
      await tryAll(image, true)
    })
})

describe("readSif", () => {
  it("S6: never asks for more bytes than the image has, whatever the header says", async () => {
    for (const { rule, patch } of [...rejected, ...tolerated]) {
      const image = vector(base)
      patch(image)
      const source = new BufferReader(image)
      const reader = {
        size: image.length,
        read: (position: number, length: number): Promise<Buffer> => {
          assert.ok(
            position >= 0 && length >= 0 && position + length <= image.length,
            `${rule}: ${length} bytes`,
          )
          return source.read(position, length)
        },
        [Symbol.asyncDispose]: () => Promise.resolve(),
      }
      await readSif(reader, "image").catch((error: unknown) => {
        if (!(error instanceof SifError)) throw error
      })
    }
  })
})

describe("tolerated headers", () => {
  for (const { rule, patch } of tolerated)
    it(`opens an image with ${rule}`, async () => {
      const image = vector(base)
      patch(image)
      assert.equal(await tryAll(image, false), undefined)
    })

  it("opens an image with bytes after its end", async () => {
    assert.equal(await tryAll(Buffer.concat([vector(base), Buffer.alloc(1000, 7)]), false), undefined)
  })
})

describe("lenient listing", () => {
  it("lists objects that lie nowhere", async () => {
    const bytes = vector(base)
    int64(slot(1, offset), -1n)(bytes)
    int64(slot(2, size), 2n ** 62n)(bytes)
    await using image = await openSif(bytes, { lenient: true })
    assert.match(listText(image), /^1 {4}\|1 {7}\|NONE {4}\|-1-3 {22}\|FS \(Raw\/System\/386\)$/m)
    assert.equal(image.objects.length, 3)
  })

  it("refuses to dump an object that does not lie in the file", async () => {
    for (const [at, value] of [
      [slot(3, size), 2n ** 62n],
      [slot(3, size), 1049n],
      [slot(3, size), -1n],
      [slot(3, offset), -1n],
      [slot(3, offset), 2n ** 62n],
    ] as const) {
      const bytes = vector(base)
      int64(at, value)(bytes)
      await using image = await openSif(bytes, { lenient: true })
      await assert.rejects(dump(image, 3).next(), { name: "SifError", code: "ERR_SIF_TRUNCATED" })
      await assert.rejects(image.data(image.object(3), 2 ** 70), {
        name: "SifError",
        code: "ERR_SIF_TRUNCATED",
      })
    }
  })

  it("refuses to choose between objects with one ID", async () => {
    const bytes = vector(base)
    uint32(slot(3, idField), 1)(bytes)
    await using image = await openSif(bytes, { lenient: true })
    assert.throws(() => image.object(1), {
      code: "ERR_SIF_AMBIGUOUS",
      message: /several objects have the ID 1/,
    })
    assert.throws(() => image.object(9), { code: "ERR_SIF_NO_OBJECT", message: /no object 9/ })
  })

  it("does not accept a header that cannot be read", async () => {
    const bytes = vector(base)
    int64(totalSlots, -1n)(bytes)
    await assert.rejects(openSif(bytes, { lenient: true }), { code: "ERR_SIF_HEADER" })
  })
})

describe("truncated images", () => {
  it("A16, S6: refuses an image that is cut at any byte, with the sizes where it has a header", async () => {
    const image = vector("sif/one-object-crypt-message.sif")
    for (let length = 0; length < image.length; length++) {
      const error = await tryAll(image.subarray(0, length), false)
      assert.ok(error !== undefined, `opens with ${length} bytes`)
      assert.equal(error.code, length < 42 ? "ERR_SIF_MAGIC" : "ERR_SIF_TRUNCATED", `${length} bytes`)
      assert.match(error.message, new RegExp(`\\b${length}\\b`))
    }
    assert.equal(await tryAll(image, false), undefined)
  })

  it("A16: refuses a peer's image that is cut in its partition", async () => {
    const image = vector("peer/luks-rsa2048.sif")
    for (const length of [32176, 36864, 36864 + 16384, 17858559, 17858560, 17858959]) {
      const error = await tryAll(image.subarray(0, length), false)
      assert.equal(error?.code, "ERR_SIF_TRUNCATED")
      assert.match(
        error.message,
        new RegExp(`truncated: object \\d ends at \\d+, the file has ${length} bytes`),
      )
    }
  })
})

describe("mutated images", () => {
  for (const name of ["sif/one-group-signed-pgp.sif", "sif/two-groups-signed-legacy-all.sif"])
    it(`S6: opens or refuses ${name} with mutated header and descriptors, and does nothing else`, async () => {
      const original = vector(name)
      const random = generator(name.length)
      const extremes = [0n, 1n, -1n, 127n, 4096n, 65536n, 2n ** 31n, 2n ** 53n, 2n ** 63n - 1n, -(2n ** 63n)]
      let refused = 0
      for (let round = 0; round < 3000; round++) {
        const image = Buffer.from(original)
        for (let count = 1 + random(4); count > 0; count--) {
          // the header without its magic and version, or one of the first six descriptors
          const at = random(2) === 0 ? 45 + random(83) : table + random(6 * slotSize)
          if (random(3) === 0) image.writeBigInt64LE(extremes[random(extremes.length)] ?? 0n, at)
          else image[at] = random(256)
        }
        if ((await tryAll(image, false)) !== undefined) refused++
        await tryAll(image, true)
      }
      assert.ok(refused > 300 && refused < 2900, `${refused} of 3000 refused`)
    })
})
