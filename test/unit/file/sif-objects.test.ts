// Objects of images that are made, added and changed by hand.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { sif, sign, verify } from "../../../lib/index.ts"
import { newFolder } from "../../support/scratch.ts"

const { DataType, FileSystem, PartitionType } = sif

describe("an image by hand", () => {
  const folder = newFolder("objects")
  const at = (name: string): string => path.join(folder, name)
  const data = at("data")
  const partition = (type: number, arch = "02"): sif.NewFileObject => ({
    type: DataType.partition,
    group: 1,
    partition: { fileSystem: FileSystem.squashfs, type, arch },
  })
  const typesOf = async (file: string): Promise<(number | undefined)[]> => {
    await using image = await sif.openSif(file)
    return image.objects.map((object) => object.partition?.type)
  }

  before(() => {
    writeFileSync(data, Buffer.alloc(3 << 20, "data"))
  })

  let count = 0
  async function make(slots: readonly sif.NewFileObject[]): Promise<string> {
    const file = at(`${++count}.sif`)
    await sif.createSif(file)
    for (const object of slots) await sif.addFile(file, object, data)
    return file
  }

  it("is empty first, and is not made where a file is", async () => {
    const file = await make([])
    await using image = await sif.openSif(file)
    assert.deepEqual([image.objects, image.header.arch, image.header.free], [[], "00", 48])
    await assert.rejects(sif.createSif(file), { code: "ERR_BUILD_EXISTS" })
  })

  it("gets files as objects, partitions at multiples of 4096, others as they are wanted", async () => {
    const file = await make([{ type: DataType.generic, name: "x" }, partition(PartitionType.primarySystem)])
    const id = await sif.addFile(file, { type: DataType.json }, data, { alignment: 512 })
    await using image = await sif.openSif(file)
    const [first, second, third] = image.objects
    assert.equal(id, 3)
    assert.deepEqual([first?.name, first?.group, first?.offset, image.header.arch], ["x", 0, 32176, "02"])
    assert.equal((second?.offset ?? 1) % 4096, 0)
    assert.equal((third?.offset ?? 1) % 512, 0)
    for (const object of image.objects)
      assert.ok(
        readFileSync(file).subarray(object.offset).subarray(0, object.size).equals(readFileSync(data)),
      )
    await assert.rejects(sif.addFile(file, partition(PartitionType.primarySystem), data), {
      code: "ERR_SIF_AMBIGUOUS",
    })
    await assert.rejects(sif.addFile(file, { type: DataType.generic }, folder), { code: "ERR_SIF_NO_OBJECT" })
  })

  it("gets another primary partition, whose architecture is the image's", async () => {
    const { primarySystem, system, data: dataType } = PartitionType
    // The last two lie in another page of the table than the first.
    const more = [system, dataType, ...Array.from({ length: 8 }, () => dataType), system]
    const file = await make([partition(primarySystem), ...more.map((type) => partition(type, "04"))])
    await sif.setPrimary(file, 2)
    assert.deepEqual((await typesOf(file)).slice(0, 3), [system, primarySystem, dataType])
    await sif.setPrimary(file, 12)
    const types = await typesOf(file)
    assert.deepEqual([types[1], types[11]], [system, primarySystem])
    await using image = await sif.openSif(file)
    assert.equal(image.header.arch, "04")
    for (const id of [3, 99]) await assert.rejects(sif.setPrimary(file, id), { code: "ERR_SIF_NO_OBJECT" })
  })

  it("keeps what a signature speaks of, unless that is not wanted", async () => {
    const { primarySystem, system } = PartitionType
    const file = await make([partition(primarySystem), partition(system), { type: DataType.generic }])
    const { privateKey, publicKey } = generateKeyPairSync("ed25519")
    await sign(file, { key: privateKey }, { groups: [1] })
    const before = readFileSync(file)
    const refused = { code: "ERR_SIF_SIGNED", message: `${file}: the signature 4 would not hold any more` }
    await assert.rejects(sif.setPrimary(file, 2), refused)
    await assert.rejects(sif.deleteObject(file, 1), refused)
    await assert.rejects(sif.addFile(file, partition(system), data), refused)
    await assert.rejects(sif.addObject(file, { type: DataType.json, group: 1 }, Buffer.alloc(1)), refused)
    assert.ok(before.equals(readFileSync(file)))
    const isVerified = async (): Promise<boolean> =>
      (await verify(file, { keys: [publicKey], groups: [1] }).catch(() => undefined))?.verified === true
    // Nothing speaks of these.
    await sif.deleteObject(file, 3)
    await sif.addFile(file, { type: DataType.generic }, data)
    assert.equal(await isVerified(), true)
    await sif.setPrimary(file, 2, { breakSignatures: true })
    assert.equal(await isVerified(), false)
    await sif.deleteObject(file, 4)
  })
})
