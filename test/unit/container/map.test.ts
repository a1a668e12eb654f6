// Maps of images: they leave nothing out, and what an image says does not get out of its place.
import assert from "node:assert/strict"
import { readFileSync, truncateSync, writeFileSync } from "node:fs"
import path from "node:path"
import { gunzipSync } from "node:zlib"
import { ImageMap, mapImage, type MapPart } from "../../../lib/container/map.ts"
import { gathered, widths } from "../../../lib/container/map-picture.ts"
import { SifError, TreeError } from "../../../lib/errors.ts"
import { newFolder } from "../../support/scratch.ts"

const vectors = path.join(import.meta.dirname, "../../vectors")
const TABLE = 4096
const DESCRIPTOR = 585

describe("mapImage", () => {
  const folder = newFolder("map")
  const peer = (name: string): Buffer =>
    gunzipSync(readFileSync(path.join(vectors, "peer", `${name}.sif.gz`)))
  let made = 0
  const fileOf = (bytes: Buffer): string => {
    const file = path.join(folder, `${++made}.sif`)
    writeFileSync(file, bytes)
    return file
  }

  function assertGapless(parts: readonly MapPart[], start: number, end: number): void {
    let at = start
    for (const part of parts) {
      assert.equal(part.offset, at, part.name)
      assert.ok(part.size > 0, part.name)
      at += part.size
      if (part.parts.length > 0) assertGapless(part.parts, part.offset, at)
    }
    assert.equal(at, end)
  }
  const namesOf = (parts: readonly MapPart[]): string[] => parts.map(({ kind, name }) => `${kind}: ${name}`)

  it("shows what LUKS2 is made of, and leaves no byte out", async () => {
    const map = await mapImage(fileOf(peer("luks-rsa2048")))
    assertGapless(map.parts, 0, map.size)
    assert.deepEqual(namesOf(map.parts), [
      "structure: SIF header",
      "unused: padding",
      "structure: descriptors",
      "readable: Def.FILE",
      "readable: JSON.Generic",
      "unused: padding",
      "encrypted: FS",
      "key: Cryptographic Message",
    ])
    const partition = map.parts.find(({ id }) => id === 3)
    assert.deepEqual(namesOf(partition?.parts ?? []), [
      "structure: LUKS2 metadata",
      "structure: LUKS2 metadata, second copy",
      "key: keyslot 0",
      "unused: room for keyslots",
      "encrypted: payload",
    ])
    assert.equal(
      partition?.parts[4]?.offset,
      partition?.offset === undefined ? 0 : partition.offset + (16 << 20),
    )
  })

  it("shows the tables of a squashfs, in a SIF and as a file behind a launch line", async () => {
    const bytes = peer("plain")
    const map = await mapImage(fileOf(bytes))
    assertGapless(map.parts, 0, map.size)
    const partition = map.parts.find(({ id }) => id === 3) ?? assert.fail()
    const tables = namesOf(partition.parts)
    assert.deepEqual(tables, [
      "structure: squashfs superblock",
      "readable: data",
      "structure: inodes",
      "structure: directories",
      "structure: fragment table",
      "structure: export table",
      "structure: owners",
      "unused: padding",
    ])
    const squashfs = bytes.subarray(partition.offset, partition.offset + partition.size)
    const launched = await mapImage(
      fileOf(Buffer.concat([Buffer.from("#!/usr/bin/env run-singularity\n"), squashfs])),
    )
    assertGapless(launched.parts, 0, launched.size)
    assert.equal(launched.parts[0]?.name, "launch line")
    assert.deepEqual(namesOf(launched.parts).slice(1, -1), tables.slice(0, -1))
  })

  it("shows a partition whose inside is malformed as one piece, with the reason", async () => {
    for (const [name, at, why] of [
      ["luks-rsa2048", 4096, /^the LUKS2 header is malformed: /],
      ["plain", 41, /^malformed squashfs: it claims /],
      ["plain", 70, /^malformed squashfs: its inodes lie at /],
      ["plain", 54, /^malformed squashfs: its owners lie at /],
    ] as const) {
      const bytes = peer(name)
      bytes.fill(0x7f, 36864 + at, 36864 + at + 2)
      if (name === "luks-rsa2048") bytes.fill(0, 36864 + 16384, 36864 + 16392)
      const map = await mapImage(fileOf(bytes))
      assertGapless(map.parts, 0, map.size)
      const partition = map.parts.find(({ id }) => id === 3)
      assert.match(partition?.problem ?? "", why)
      assert.deepEqual(partition?.parts, [])
      assert.match(map.text(), /not readable: /)
    }
  })

  it("refuses a folder, what is no image, and a squashfs file that is none", async () => {
    await assert.rejects(mapImage(folder), (error: SifError) => error.code === "ERR_SIF_MAGIC")
    await assert.rejects(mapImage(fileOf(Buffer.from("text"))), SifError)
    await assert.rejects(mapImage(fileOf(Buffer.from("hsqs"))), TreeError)
  })

  it("says how much takes place on the disk", async () => {
    const file = fileOf(Buffer.from(peer("plain").subarray(0, 2048)))
    const bytes = peer("plain")
    bytes.writeBigUInt64LE(BigInt(1 << 30), 120)
    writeFileSync(file, bytes)
    truncateSync(file, 1 << 30)
    const map = await mapImage(file)
    assert.ok(map.stored <= 4 << 20, String(map.stored))
    assert.match(map.text(), /1\.0 GiB, .* of it on the disk/)
    assert.equal(map.parts.at(-1)?.name, "unused")
  })

  /** An image with so many objects that are like the one in a slot, and text of somebody's. */
  function crowded(objects: number, name: string, slot = 0): Buffer {
    const image = peer("plain")
    const at = TABLE + slot * DESCRIPTOR
    const record = Buffer.from(image.subarray(at, at + DESCRIPTOR))
    // Of partitions one only may be the primary one: these are none.
    if (slot === 2) record.writeInt32LE(1, 201 + 4)
    const table = Buffer.alloc(objects * DESCRIPTOR)
    const dataAt = TABLE + table.length
    for (let i = 0; i < objects; i++) {
      record.writeInt32LE(i + 1, 5)
      record.writeBigInt64LE(BigInt(dataAt + i), 17)
      record.writeBigInt64LE(1n, 25)
      record.fill(0, 73, 73 + 128)
      record.write(name, 73)
      record.copy(table, i * DESCRIPTOR)
    }
    const head = Buffer.from(image.subarray(0, TABLE))
    head.writeBigInt64LE(0n, 80)
    head.writeBigInt64LE(BigInt(objects), 88)
    head.writeBigInt64LE(BigInt(table.length), 104)
    head.writeBigInt64LE(BigInt(dataAt), 112)
    head.writeBigInt64LE(BigInt(objects), 120)
    return Buffer.concat([head, table, Buffer.alloc(objects, 1)])
  }

  it("draws an image of very many objects as a picture of few parts", async () => {
    const map = await mapImage(fileOf(crowded(20_000, "x")))
    assertGapless(map.parts, 0, map.size)
    assert.ok(map.parts.length > 20_000)
    const svg = map.svg()
    assert.ok(svg.length < 50_000, String(svg.length))
    assert.match(svg, /\d+ parts/)
  })

  it("looks into a bounded number of partitions", async () => {
    const map = await mapImage(fileOf(crowded(100, "x", 2)))
    assertGapless(map.parts, 0, map.size)
    const looked = map.parts.filter(({ problem }) => problem !== undefined)
    assert.equal(looked.length, 32)
    assert.equal(map.parts.filter(({ name }) => name === "FS").length, 100)
  })

  it("lets no text of an image steer the terminal or get out of its place in a picture", async () => {
    const map = await mapImage(fileOf(crowded(3, '\u001b[2J</text><script>"&\u202e')))
    for (const text of [map.text({ columns: 80 }), map.text(), map.svg()]) {
      for (const steering of ["\u001b", "\u202e"]) assert.ok(!text.includes(steering))
      assert.match(text, /\\x1b\[2J/)
    }
    assert.doesNotMatch(map.svg(), /<script|"&[^agql]/)
    assert.match(map.svg(), /&lt;\/text&gt;&lt;script&gt;&quot;&amp;/)
  })

  it("fits the terminal, and shows colours only where they are asked for", async () => {
    const map = await mapImage(fileOf(peer("luks-rsa2048")))
    for (const columns of [40, 63, 64, 80, 200]) {
      const lines = map.text({ columns }).split("\n")
      // The sentence of what letters mean is as long as it is.
      const long = lines.slice(2, -2).filter((line) => line.length >= columns)
      assert.deepEqual(long, [], String(columns))
      assert.equal(lines[2]?.length, columns - 1)
    }
    assert.doesNotMatch(map.text({ columns: 80 }), /[^\n -~…]/)
    assert.ok(map.text({ columns: 80, colors: true }).includes("\u001b[35m██"))
    assert.doesNotMatch(map.text(), /^\[/m)
  })

  it("checks its options", async () => {
    const map = await mapImage(fileOf(peer("plain")))
    assert.ok(map instanceof ImageMap)
    assert.throws(() => map.text({ columns: 3 }), /options\.columns/)
    assert.throws(() => map.text({ width: 80 } as never), /"width"/)
    await assert.rejects(map.save(""), /output is empty/)
    await assert.rejects(map.save("x", { force: 1 } as never), /options\.force/)
  })
})

describe("widths", () => {
  it("fill the room, and none is too narrow to be seen", () => {
    const sizes = [1, 128, 28_080, 17 * 2 ** 20, 2 ** 40]
    const wide = widths(sizes, 900, 18)
    assert.ok(Math.abs(wide.reduce((sum, one) => sum + one, 0) - 900) < 1e-6)
    assert.ok(wide.every((one) => one >= 18))
    assert.deepEqual(
      wide.toSorted((a, b) => a - b),
      wide,
    )
  })

  it("stay equal where nothing has a size", () => {
    assert.deepEqual(widths([0, 0], 100, 10), [10, 10])
  })
})

describe("gathered", () => {
  it("keeps what is large, in its place, and puts what is small together", () => {
    const parts = Array.from({ length: 1000 }, (_, i): MapPart => {
      const size = i === 500 ? 1_000_000 : 1
      return { kind: "readable", name: `part ${i}`, detail: "", offset: i, size, parts: [] }
    })
    const few = gathered(parts, 20)
    assert.ok(few.length <= 20)
    assert.equal(few.filter(({ name }) => name === "part 500").length, 1)
    assert.equal(
      few.reduce((sum, { size }) => sum + size, 0),
      1_000_999,
    )
    assert.equal(gathered(parts.slice(0, 20), 20).length, 20)
  })
})
