// Encryption formats are asked what they do, and by nobody which one they are.
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { encryptionOf, formats, partitionKind } from "../../../lib/encryption/partition.ts"
import { FileSystem, PartitionType, type SifPartition } from "../../../lib/sif/format.ts"

const lib = path.resolve(import.meta.dirname, "../../../lib")

function partition(fileSystem: number, type: number): SifPartition {
  return { partition: { fileSystem, type, arch: "02" } } as SifPartition
}

describe("encryption formats", () => {
  for (const [name, format] of Object.entries(formats))
    it(`know their own partitions, and nothing else's: ${name}`, () => {
      const root = partition(format.fileSystem, PartitionType.primarySystem)
      assert.equal(encryptionOf(root), format)
      assert.equal(partitionKind(root), name)
      const knowing = Object.values(formats).filter((one) => one.isIn(root))
      assert.deepEqual(knowing, [format])
    })

  it("an encrypted overlay is LUKS2, a raw partition of another type is nothing", () => {
    assert.equal(encryptionOf(partition(FileSystem.raw, PartitionType.overlay)), formats.luks)
    assert.equal(encryptionOf(partition(FileSystem.raw, PartitionType.primarySystem)), undefined)
    assert.equal(encryptionOf(partition(FileSystem.squashfs, PartitionType.primarySystem)), undefined)
  })

  it("are compared with no name: what differs is theirs to say (the command says of its own flags)", () => {
    const names = Object.keys(formats).join("|")
    const asked = new RegExp(`[!=]== "(?:${names})"`)
    const asking = readdirSync(lib, { recursive: true, encoding: "utf8" })
      .filter((file) => file.endsWith(".ts") && !file.startsWith("cli/"))
      .filter((file) => asked.test(readFileSync(path.join(lib, file), "utf8")))
    assert.deepEqual(asking, [])
  })
})
