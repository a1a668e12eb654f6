// Thousands of changes of signed images. What verification may still accept is decided here, by the format's description and
// without the code under test: it never accepts anything else, and never ends in anything but a report or an error with a code.
import assert from "node:assert/strict"
import { createHash, createPublicKey } from "node:crypto"
import { ContainerError } from "../../../lib/errors.ts"
import { openSif } from "../../../lib/sif/open.ts"
import { verifySif, type VerifyOptions } from "../../../lib/signing/verify.ts"
import { generator, vector } from "../../vectors/load.ts"

const HEADER = 128
const TABLE = 4096
const RECORD = 585
const SIGNATURE = 0x4005

const at64 = (bytes: Buffer, at: number): number => Number(bytes.readBigInt64LE(at))

/** All that signing protects, as one text: header, and what is in each group, with IDs that count from the lowest. */
function essence(image: Buffer): string {
  const [total, table] = [at64(image, 88), at64(image, 96)]
  const records = Array.from({ length: total }, (_, slot) =>
    image.subarray(table + slot * RECORD, table + (slot + 1) * RECORD),
  ).filter((record) => record[4] !== 0)
  const objects = records.filter((record) => record.readInt32LE(0) !== SIGNATURE)
  const lowest = Math.min(...objects.map((record) => record.readUInt32LE(5)))
  const lines = objects.map((record) => {
    const data = image.subarray(at64(record, 17), at64(record, 17) + at64(record, 25))
    const parts = [
      record.subarray(0, 4),
      Buffer.from(String(record.readUInt32LE(5) - lowest)),
      record.subarray(13, 17),
      record.subarray(25, 33),
      record.subarray(41, 49),
      record.subarray(57),
      data,
    ]
    const hash = createHash("sha256")
    for (const part of parts) hash.update(part).update("|")
    return hash.digest("hex")
  })
  const groups = new Set(objects.map((record) => record.readUInt32LE(9)))
  return [
    image.subarray(0, 48).toString("hex"), // with the architecture, which must be the partition's
    image.subarray(48, 64).toString("hex"),
    groups.size,
    ...lines.sort(),
  ].join("\n")
}

async function accepts(image: Buffer, options: VerifyOptions): Promise<boolean> {
  try {
    await using sif = await openSif(image)
    return (await verifySif(sif, options)).verified
  } catch (error) {
    assert.ok(error instanceof ContainerError, String(error))
    return false
  }
}

describe("mutations of signed images", function () {
  this.timeout(120_000)

  const images: readonly (readonly [string, VerifyOptions, number])[] = [
    ["one-group-signed-dsse", { keys: [createPublicKey(vector("sif/ed25519-public.pem"))] }, 4000],
    ["one-group-signed-pgp", { keyrings: [vector("sif/pgp-private.asc")] }, 200],
  ]
  for (const [name, options, rounds] of images)
    it(`S1, S2: never pass where something signed was changed: ${name}`, async () => {
      const original = vector(`sif/${name}.sif`)
      const wanted = essence(original)
      const next = generator(rounds)
      const objects = [1, 2].map((id) => TABLE + (id - 1) * RECORD)
      const dataOf = (record: number): [number, number] => [
        at64(original, record + 17),
        at64(original, record + 25),
      ]
      const pick = (): number => {
        switch (next(4)) {
          case 0:
            return next(HEADER)
          case 1:
            return TABLE + next(4 * RECORD)
          case 2: {
            const [from, size] = dataOf(objects[next(2)] ?? 0)
            return from + next(size)
          }
          default:
            return 32176 + next(original.length - 32176)
        }
      }
      const seen = { accepted: 0, refused: 0 }
      const check = async (image: Buffer, places: readonly number[]): Promise<void> => {
        if (!(await accepts(image, options))) {
          seen.refused++
          return
        }
        seen.accepted++
        assert.equal(essence(image), wanted, `changed at ${places.join(", ")}`)
      }
      // Each byte of the header and of the descriptors in use, where that is quick.
      if (rounds > 1000)
        for (const place of [...Array(HEADER).keys(), ...Array(3 * RECORD).keys()].map((at, index) =>
          index < HEADER ? at : TABLE + at,
        )) {
          const image = Buffer.from(original)
          image[place] = (image[place] ?? 0) ^ (1 << next(8))
          await check(image, [place])
        }
      for (let round = 0; round < rounds; round++) {
        const image = Buffer.from(original)
        const places = Array.from({ length: 1 + next(3) }, pick)
        for (const place of places)
          image[place] = next(4) === 0 ? next(256) : (image[place] ?? 0) ^ (1 << next(8))
        await check(image, places)
      }
      assert.ok(seen.accepted > rounds / 50 && seen.refused > rounds / 2, JSON.stringify(seen))
    })
})
