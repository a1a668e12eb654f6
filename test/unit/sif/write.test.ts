import assert from "node:assert/strict"
import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import {
  cryptoMessageExtra,
  DataType,
  DESCRIPTOR_SIZE,
  FileSystem,
  HEADER_SIZE,
  partitionExtra,
  PartitionType,
} from "../../../lib/sif/format.ts"
import { openSif } from "../../../lib/sif/open.ts"
import { addObject, deleteObject } from "../../../lib/file/image-change.ts"
import { DATA_OFFSET, PARTITION_ALIGNMENT, SifLayout } from "../../../lib/sif/write.ts"
import { vector } from "../../vectors/load.ts"

const nilId = "00000000-0000-0000-0000-000000000000"
const table = 4096

/** The plan of a peer's image, made by ours with the peer's time and ID. */
async function replan(name: string): Promise<{ ours: Buffer; theirs: Buffer }> {
  const bytes = vector(name)
  await using image = await openSif(bytes)
  const layout = new SifLayout(image.header.created, image.header.id)
  for (const object of image.objects) {
    const alignment = object.type === DataType.partition ? PARTITION_ALIGNMENT : 1
    assert.equal(layout.next(alignment), object.offset)
    assert.equal(layout.add(object, object.size, alignment), object.id)
  }
  assert.equal(layout.size, bytes.length)
  return { ours: layout.serialize(image.header.arch), theirs: bytes.subarray(0, DATA_OFFSET) }
}

describe("SifLayout", () => {
  for (const name of ["plain", "luks-rsa2048", "gocryptfs-rsa2048"])
    it(`writes header and table of the peer's ${name}.sif to the same bytes`, async () => {
      const { ours, theirs } = await replan(`peer/${name}.sif`)
      assert.ok(ours.equals(theirs))
    })

  it("reads back what it wrote", async () => {
    const layout = new SifLayout(1_700_000_000)
    layout.add({ type: DataType.definition, name: "a.def" }, 5)
    const facts = {
      fileSystem: FileSystem.encryptedSquashfs,
      type: PartitionType.primarySystem,
      arch: "02",
    } as const
    const partition = layout.add(
      { type: DataType.partition, extra: partitionExtra(facts) },
      8192,
      PARTITION_ALIGNMENT,
    )
    layout.add(
      {
        type: DataType.cryptoMessage,
        link: { to: "object", id: partition },
        extra: cryptoMessageExtra(),
        group: 7,
      },
      400,
    )
    const bytes = Buffer.concat([layout.serialize("02"), Buffer.alloc(layout.size - DATA_OFFSET, 0xaa)])
    await using image = await openSif(bytes)
    assert.deepEqual(
      image.objects.map(({ id, group, link, offset, size, paddedSize, name, created, uid, gid }) => ({
        id,
        group,
        link,
        offset,
        size,
        paddedSize,
        name,
        created,
        uid,
        gid,
      })),
      [
        { id: 1, group: 1, link: { to: "none" }, offset: 32176, size: 5, paddedSize: 5, name: "a.def" },
        { id: 2, group: 1, link: { to: "none" }, offset: 32768, size: 8192, paddedSize: 8779, name: "" },
        {
          id: 3,
          group: 7,
          link: { to: "object", id: 2 },
          offset: 40960,
          size: 400,
          paddedSize: 400,
          name: "",
        },
      ].map((object) => ({ ...object, created: 1_700_000_000, uid: 0, gid: 0 })),
    )
    assert.deepEqual(image.primary().partition, facts)
    assert.equal(image.header.launchScript, "#!/usr/bin/env run-singularity\n")
    assert.equal(image.header.free, 45)
    assert.equal(image.header.dataSize, layout.size - DATA_OFFSET)
  })

  it("S5: takes a new ID from the system's random source each time, a version 4 UUID", () => {
    const ids = new Set<string>()
    for (let count = 0; count < 64; count++) {
      const id = new SifLayout(0).serialize("00").subarray(48, 64)
      assert.equal((id[6] ?? 0) >>> 4, 4)
      assert.equal((id[8] ?? 0) >>> 6, 2)
      ids.add(id.toString("hex"))
    }
    assert.equal(ids.size, 64)
  })

  it("S5: writes the same bytes twice with a given time and the nil ID", () => {
    const make = (): Buffer => {
      const layout = new SifLayout(-62135596800, nilId)
      layout.add({ type: DataType.definition }, 36)
      return layout.serialize("00")
    }
    assert.deepEqual(make(), make())
    assert.ok(make().subarray(48, 64).equals(Buffer.alloc(16)))
    assert.equal(make().toString("hex", 64, 72), "00096e88f1ffffff")
  })

  it("holds 48 objects and no more", () => {
    const layout = new SifLayout(0)
    for (let count = 0; count < 48; count++) layout.add({ type: DataType.generic }, 1)
    assert.throws(() => layout.add({ type: DataType.generic }, 1), {
      name: "SifError",
      code: "ERR_SIF_FULL",
      message: /at most 48 objects/,
    })
  })

  it("refuses a name that the descriptor cannot hold", () => {
    const layout = new SifLayout(0)
    layout.add({ type: DataType.generic, name: "ä".repeat(64) }, 1)
    assert.throws(() => layout.add({ type: DataType.generic, name: "ä".repeat(65) }, 1), {
      name: "RangeError",
      message: /at most 128 bytes/,
    })
  })
})

describe("changing an image in place", () => {
  let folder: string
  beforeEach(() => {
    folder = mkdtempSync(path.join(tmpdir(), "sifcrypt-unit-"))
  })
  afterEach(() => {
    rmSync(folder, { recursive: true })
  })

  function copyOf(name: string, patch: (bytes: Buffer) => void = () => undefined): string {
    const file = path.join(folder, "image.sif")
    const bytes = vector(name)
    patch(bytes)
    writeFileSync(file, bytes)
    return file
  }

  describe("addObject", () => {
    it("appends the data, fills the lowest free descriptor and updates the header", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif")
      const before = readFileSync(file)
      const data = Buffer.from("{}")
      const id = await addObject(file, { type: DataType.json, name: "x.json" }, data, { time: 1_700_000_000 })
      assert.equal(id, 4)
      const after = readFileSync(file)
      assert.ok(after.subarray(before.length).equals(data))
      const expected = Buffer.from(before)
      expected.writeBigInt64LE(1_700_000_000n, 72)
      expected.writeBigInt64LE(44n, 80)
      expected.writeBigInt64LE(BigInt(before.length + 2 - 32176), 120)
      const at = table + 3 * DESCRIPTOR_SIZE
      after.copy(expected, at, at, at + DESCRIPTOR_SIZE)
      assert.ok(after.subarray(0, before.length).equals(expected), "nothing else changes")
      await using image = await openSif(file)
      const object = image.object(4)
      assert.equal(object.slot, 3)
      assert.equal(object.group, 0)
      assert.deepEqual(object.link, { to: "none" })
      assert.equal(object.offset, before.length)
      assert.equal(object.paddedSize, 2)
      assert.equal(object.modified, 1_700_000_000)
      assert.deepEqual(await image.data(object, 2), data)
    })

    it("aligns a partition and makes its architecture the image's", async () => {
      const file = copyOf("sif/one-object-oci-blob.sif")
      const extra = partitionExtra({ fileSystem: 1, type: PartitionType.primarySystem, arch: "04" })
      await addObject(file, { type: DataType.partition, extra, group: 1 }, Buffer.alloc(100, 1))
      await using image = await openSif(file)
      assert.equal(image.primary().offset, 36864)
      assert.equal(image.primary().paddedSize, 36864 - 33023 + 100)
      assert.equal(image.header.arch, "04")
      assert.equal(
        readFileSync(file)
          .subarray(33023, 36864)
          .every((byte) => byte === 0),
        true,
      )
    })

    it("refuses a second primary partition and leaves the file as it was", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif")
      const before = readFileSync(file)
      const extra = partitionExtra({ fileSystem: 1, type: PartitionType.primarySystem, arch: "02" })
      await assert.rejects(addObject(file, { type: DataType.partition, extra }, Buffer.alloc(1)), {
        name: "SifError",
        code: "ERR_SIF_AMBIGUOUS",
        message: /image\.sif: there is a primary system partition already/,
      })
      assert.ok(readFileSync(file).equals(before))
    })

    it("refuses when no descriptor is free, and leaves the file as it was", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif", (bytes) => bytes.writeBigInt64LE(3n, 88))
      const before = readFileSync(file)
      await assert.rejects(addObject(file, { type: DataType.generic }, Buffer.alloc(1)), {
        code: "ERR_SIF_FULL",
        message: /all 3 descriptors are used/,
      })
      assert.ok(readFileSync(file).equals(before))
    })

    it("refuses an ID or a name that does not fit, before it writes", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif", (bytes) =>
        bytes.writeUInt32LE(4, table + 2 * DESCRIPTOR_SIZE + 5),
      )
      const before = readFileSync(file)
      await assert.rejects(addObject(file, { type: DataType.generic }, Buffer.alloc(9)), {
        code: "ERR_SIF_DESCRIPTOR",
        message: /the ID 4 of the free descriptor is taken/,
      })
      await deleteObject(file, 4)
      const shorter = readFileSync(file)
      await assert.rejects(
        addObject(file, { type: DataType.generic, name: "x".repeat(129) }, Buffer.alloc(9)),
        { name: "RangeError" },
      )
      assert.ok(readFileSync(file).equals(shorter))
      assert.ok(shorter.length < before.length)
    })

    it("S6: keeps a launch script and times that it cannot understand, and makes no absurd file", async () => {
      for (const dataOffset of [0n, -(2n ** 63n), 2n ** 40n, 2n ** 63n - 1n]) {
        const file = copyOf("sif/one-group-signed-pgp.sif", (bytes) => {
          bytes.fill(0xff, 0, 32)
          bytes.writeBigInt64LE(2n ** 63n - 1n, 64)
          bytes.writeBigInt64LE(dataOffset, 112)
        })
        const before = readFileSync(file)
        const id = await addObject(file, { type: DataType.generic }, Buffer.alloc(10, 1))
        assert.equal(statSync(file).size, before.length + 10)
        assert.ok(readFileSync(file).subarray(0, 72).equals(before.subarray(0, 72)))
        await deleteObject(file, id)
        assert.equal(statSync(file).size, before.length)
        assert.equal(readFileSync(file).readBigInt64LE(112), dataOffset)
      }
    })

    it("names the file that is no image", async () => {
      const file = path.join(folder, "text")
      writeFileSync(file, "hello")
      await assert.rejects(addObject(file, { type: DataType.generic }, Buffer.alloc(1)), {
        code: "ERR_SIF_MAGIC",
        message: `${file}: not a SIF image: only 5 bytes`,
        path: file,
      })
    })
  })

  describe("deleteObject", () => {
    it("zeroes the descriptor, cuts the file and updates the header", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif")
      await deleteObject(file, 3, { time: 1_700_000_000 })
      const bytes = readFileSync(file)
      assert.equal(bytes.length, 40960)
      const at = table + 2 * DESCRIPTOR_SIZE
      assert.ok(bytes.subarray(at, at + DESCRIPTOR_SIZE).equals(Buffer.alloc(DESCRIPTOR_SIZE)))
      await using image = await openSif(file)
      assert.deepEqual(
        image.objects.map(({ id }) => id),
        [1, 2],
      )
      assert.equal(image.header.free, 46)
      assert.equal(image.header.dataSize, 40960 - 32176)
      assert.equal(image.header.modified, 1_700_000_000)
      assert.equal(image.header.arch, "01")
    })

    it("overwrites the data of an object in the middle, and only that", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif")
      const before = readFileSync(file)
      await deleteObject(file, 2, { breakSignatures: true })
      const after = readFileSync(file)
      assert.equal(after.length, before.length)
      assert.ok(after.subarray(36864, 40960).equals(Buffer.alloc(4096)))
      assert.ok(after.subarray(32176, 36864).equals(before.subarray(32176, 36864)))
      assert.ok(after.subarray(40960).equals(before.subarray(40960)))
      assert.ok(!before.subarray(36864, 40960).equals(Buffer.alloc(4096)))
      await using image = await openSif(file)
      assert.equal(image.header.arch, "00")
      assert.throws(() => image.primary(), {
        code: "ERR_SIF_NO_OBJECT",
        message: /no primary system partition/,
      })
    })

    it("overwrites what is larger than one piece", async () => {
      const file = copyOf("peer/gocryptfs-rsa2048.sif")
      await deleteObject(file, 3)
      assert.ok(
        readFileSync(file)
          .subarray(36864, 1093632)
          .every((byte) => byte === 0),
      )
    })

    it("frees the ID for the next object, and leaves the table when the last object goes", async () => {
      const file = copyOf("sif/one-object-crypt-message.sif")
      await deleteObject(file, 1)
      assert.equal(statSync(file).size, DATA_OFFSET)
      assert.equal(await addObject(file, { type: DataType.generic }, Buffer.from("abc")), 1)
      await using image = await openSif(file)
      assert.equal(image.object(1).offset, DATA_OFFSET)
    })

    it("refuses an object that is not there", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif")
      await assert.rejects(deleteObject(file, 4), { code: "ERR_SIF_NO_OBJECT", message: /no object 4/ })
    })

    it("A16: refuses a truncated image and leaves it as it is", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif")
      truncateSync(file, 42000)
      await assert.rejects(deleteObject(file, 1), {
        code: "ERR_SIF_TRUNCATED",
        message: /object 3 ends at 42008, the file has 42000 bytes/,
      })
      assert.equal(statSync(file).size, 42000)
    })
  })

  describe("openSif", () => {
    it("refuses a folder and a file that is not there", async () => {
      await assert.rejects(openSif(folder), {
        code: "ERR_SIF_MAGIC",
        message: `${folder}: not a SIF image: a folder`,
      })
      await assert.rejects(openSif(path.join(folder, "missing")), { code: "ENOENT" })
      await assert.rejects(openSif("/dev/null"), { code: "ERR_SIF_MAGIC", message: /not a regular file/ })
    })

    it("A16: notices a file that is cut while it is open", async () => {
      const file = copyOf("sif/one-group-signed-pgp.sif")
      await using image = await openSif(file)
      truncateSync(file, 41000)
      await assert.rejects(image.data(image.object(3), 4096), {
        code: "ERR_SIF_TRUNCATED",
        message: /object 3 ends at 42008/,
      })
    })

    it("refuses to read more than the limit into memory", async () => {
      await using image = await openSif(copyOf("sif/one-group-signed-pgp.sif"))
      await assert.rejects(image.data(image.object(2), 4095), {
        code: "ERR_SIF_TOO_LARGE",
        message: /object 2 has 4096 bytes, more than the 4095/,
      })
    })

    it("gives no descriptor of an image in memory", async () => {
      await using image = await openSif(new Uint8Array(vector("sif/empty-launch-script.sif")))
      assert.throws(() => image.fd, { name: "TypeError" })
      assert.equal(image.header.launchScript, "#!/usr/bin/env run-script\n")
      assert.ok(HEADER_SIZE < image.reader.size)
    })
  })
})
