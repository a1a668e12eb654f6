// Hash trees beside veritysetup's: the same bytes, and each reads the other's.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import { closeSync, openSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { checkVerity, readStored, writeVerity } from "../../lib/device/verity.ts"
import type { NativeRange } from "../../lib/native/binding.ts"
import { veritySize } from "../../lib/sif/verity.ts"
import { newFolder } from "../support/scratch.ts"

const BEFORE = 8192

/** What a call of veritysetup says, with our parameters. */
function veritysetup(action: string, salt: Buffer, blocks: number, files: readonly string[]): string {
  const format = ["--no-superblock", "--format=1", "--hash=sha256", `--salt=${salt.toString("hex")}`]
  const sizes = ["--data-block-size=4096", "--hash-block-size=4096", `--data-blocks=${blocks}`]
  return execFileSync("veritysetup", [action, ...format, ...sizes, ...files], { encoding: "utf8" })
}

describe("writeVerity", () => {
  const folder = newFolder("verity")

  for (const blocks of [2, 128, 129, 1000, 16385])
    it(`writes what veritysetup writes for ${blocks} blocks`, async () => {
      const [data, tree, file] = ["data", "tree", "file"].map((name) => path.join(folder, name)) as [
        string,
        string,
        string,
      ]
      const bytes = randomBytes(blocks * 4096)
      const salt = randomBytes(32)
      writeFileSync(data, bytes)
      writeFileSync(tree, "")
      const said = veritysetup("format", salt, blocks, [data, tree])
      const theirRoot = /^Root hash:\s+([0-9a-f]{64})$/m.exec(said)?.[1] ?? ""
      // Ours stands in one file, behind something else.
      writeFileSync(file, Buffer.concat([Buffer.alloc(BEFORE, 1), bytes]))
      const fd = openSync(file, "r+")
      try {
        const place = { fd, offset: BEFORE, size: bytes.length, verityOffset: BEFORE + bytes.length }
        const seen: number[] = []
        const root = await writeVerity({ ...place, salt }, { onProgress: (done) => seen.push(done) })
        assert.equal(root.toString("hex"), theirRoot)
        const written = readFileSync(file)
        assert.deepEqual(written.subarray(BEFORE + bytes.length), readFileSync(tree))
        assert.deepEqual(written.subarray(BEFORE, BEFORE + bytes.length), bytes)
        assert.ok(written.subarray(0, BEFORE).every((byte) => byte === 1))
        const treeSize = veritySize(bytes.length) ?? 0
        assert.equal(written.length, BEFORE + bytes.length + treeSize)
        assert.deepEqual(
          seen,
          [...seen].sort((a, b) => a - b),
        )
        const verity = { offset: place.verityOffset, size: treeSize, salt, root }
        const range = { fd, offset: BEFORE, size: bytes.length, cipher: undefined, verity }
        assert.equal(await checkVerity(range), true)
        assert.equal(await checkVerity({ ...range, verity: { ...verity, root: randomBytes(32) } }), false)
        assert.deepEqual(await readStored(range, 100, 5000, "file"), bytes.subarray(100, 5100))
        writeFileSync(tree, written.subarray(BEFORE + bytes.length))
        veritysetup("verify", salt, blocks, [data, tree, root.toString("hex")])
      } finally {
        closeSync(fd)
      }
    })

  it("stops when it is told to", async () => {
    const file = path.join(folder, "stopped")
    writeFileSync(file, Buffer.alloc(8192))
    const fd = openSync(file, "r+")
    try {
      const place = { fd, offset: 0, size: 8192, verityOffset: 8192, salt: Buffer.alloc(32) }
      await assert.rejects(writeVerity(place, { signal: AbortSignal.abort(new Error("enough")) }), /enough/)
    } finally {
      closeSync(fd)
    }
  })

  it("refuses what has no tree, and parameters of other sizes", async () => {
    const file = path.join(folder, "small")
    writeFileSync(file, Buffer.alloc(3 * 4096))
    const fd = openSync(file, "r+")
    const salt = Buffer.alloc(32)
    const place = { fd, offset: 0, verityOffset: 8192, salt }
    try {
      for (const size of [0, 4096, 5000])
        await assert.rejects(writeVerity({ ...place, size }), /have no hash tree/)
      await assert.rejects(writeVerity({ ...place, size: 8192, salt: Buffer.alloc(31) }), /32 bytes/)
      const verity = { offset: 8192, size: 4096, salt, root: salt }
      const range = { fd, offset: 0, size: 8192, cipher: undefined, verity }
      const changed = (change: object): NativeRange => ({ ...range, verity: { ...verity, ...change } })
      await assert.rejects(checkVerity(changed({ root: Buffer.alloc(33) })), /root must be of 32 bytes/)
      await assert.rejects(checkVerity(changed({ size: 100 })), /has 100 bytes and not 4096/)
      await assert.rejects(readStored(range, 0, 4096, "file"), { code: "ERR_SIGNATURE_INVALID" })
      await assert.rejects(readStored(range, 0, 17 << 20, "file"), /too large to be read at once/)
    } finally {
      closeSync(fd)
    }
  })
})
