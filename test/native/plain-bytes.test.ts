// What lies behind the squashfs of a partition: written by a build, copied with it, read as plain bytes.
import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import { closeSync, openSync, readFileSync } from "node:fs"
import path from "node:path"
import type { NativeBuild, NativeBuildCipher, NativeRange, NativeTree } from "../../lib/native/binding.ts"
import { loadAddon } from "../../lib/native/load.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

const PADDING = 4096
const padded = (size: number): number => Math.ceil(size / PADDING) * PADDING

const xts = (sectorSize: number, ivTweak: number): NativeBuildCipher => ({
  type: "xts",
  key: randomBytes(64),
  sectorSize,
  ivTweak,
})

const settings = {
  compression: "zstd",
  level: 1,
  blockSize: 131072,
  threads: 0,
  owner: { uid: 0, gid: 0 },
  sourceDateEpoch: 0,
  exclude: [],
} as const

describe("bytes behind the squashfs", () => {
  const folder = newFolder("plain-bytes")
  const directory = makeRootTree()
  const descriptors: number[] = []
  after(() => {
    descriptors.forEach(closeSync)
  })

  function newFile(name: string): number {
    const fd = openSync(path.join(folder, name), "w+")
    descriptors.push(fd)
    return fd
  }
  /** Builds into a file of its own, 8192 bytes from its start. */
  async function build(
    name: string,
    source: NativeBuild["source"],
    cipher?: NativeBuildCipher,
    trailer?: Uint8Array,
  ): Promise<NativeRange> {
    const fd = newFile(name)
    const options = { ...settings, source, fd, offset: 8192, cipher }
    const { size } = await loadAddon().buildTree(
      trailer === undefined ? options : { ...options, trailer },
      () => true,
    )
    return { fd, offset: 8192, size, cipher }
  }
  async function plain(tree: NativeTree): Promise<Buffer> {
    return await tree.readPlain(0, tree.plainSize)
  }

  for (const [name, cipher] of [
    ["no cipher", undefined],
    ["AES-XTS in sectors of 512 bytes", xts(512, 0)],
    ["AES-XTS in sectors of 4096 bytes with an iv_tweak", xts(4096, 8)],
  ] as const) {
    describe(`with ${name}`, () => {
      const file = name.replaceAll(" ", "-")

      it("a trailer follows the squashfs, both padded to 4096", async () => {
        const without = await build(`${file}-without`, { directory, added: [] }, cipher)
        for (const length of [0, 1, 4095, 4096, 100_001]) {
          const trailer = randomBytes(length)
          const range = await build(`${file}-${length}`, { directory, added: [] }, cipher, trailer)
          assert.equal(range.size, without.size + padded(length))
          const tree = await loadAddon().openTree(range)
          assert.equal(tree.squashfsSize, without.size)
          assert.equal(tree.plainSize, range.size)
          assert.deepEqual(await tree.readPlain(tree.squashfsSize, length), trailer)
          const rest = await tree.readPlain(tree.squashfsSize + length, PADDING)
          assert.deepEqual(rest, Buffer.alloc(padded(length) - length))
          assert.equal((await tree.read("data/hello", 0, 100)).toString(), "hello\n")
          tree.close()
        }
      })

      it("a copy leaves them out, takes exactly the length asked for, or gets others", async () => {
        const trailer = randomBytes(5000)
        const from = await build(`${file}-from`, { directory, added: [] }, cipher, trailer)
        const tree = await loadAddon().openTree(from)
        const whole = await plain(tree)
        const squashfs = whole.subarray(0, tree.squashfsSize)
        const copied = async (source: NativeBuild["source"], added?: Uint8Array): Promise<Buffer> => {
          const to = await build(`${file}-to`, source, xts(4096, 0), added)
          const copy = await loadAddon().openTree(to)
          assert.equal(copy.plainSize, to.size)
          const bytes = await plain(copy)
          copy.close()
          return bytes
        }
        assert.deepEqual(await copied({ squashfs: from }), squashfs)
        assert.deepEqual(await copied({ squashfs: from, length: from.size }), whole)
        const odd = tree.squashfsSize + 4999
        assert.deepEqual(
          await copied({ squashfs: from, length: odd }),
          Buffer.concat([whole.subarray(0, odd), Buffer.alloc(padded(odd) - odd)]),
        )
        assert.deepEqual(
          await copied({ squashfs: from }, Buffer.from("other")),
          Buffer.concat([squashfs, Buffer.from("other"), Buffer.alloc(PADDING - 5)]),
        )
        tree.close()
      })

      it("nothing of a trailer can be read in the file unless there is no cipher", async () => {
        const text = "words that are nowhere else ".repeat(10)
        await build(`${file}-text`, { directory, added: [] }, cipher, Buffer.from(text))
        const bytes = readFileSync(path.join(folder, `${file}-text`))
        assert.equal(bytes.includes(text), cipher === undefined)
        assert.equal(bytes.includes("nowhere"), cipher === undefined)
      })
    })
  }

  it("what a copy cannot have is an error: less than the squashfs, more than the range", async () => {
    const from = await build("source", { directory, added: [] }, undefined, Buffer.alloc(1))
    await assert.rejects(build("less", { squashfs: from, length: 4096 }), { code: "EINVAL" })
    await assert.rejects(build("more", { squashfs: from, length: from.size + 1 }), { code: "EOVERFLOW" })
    await assert.rejects(
      build("negative", { squashfs: from, length: -1 }),
      /length must be a non-negative safe integer/,
    )
  })

  it("readPlain ends with the range, reads at most 16 MiB, and nothing once the tree is closed", async () => {
    const big = await build("big", { directory, added: [] }, xts(4096, 0), Buffer.alloc(17 * 1024 * 1024))
    const tree = await loadAddon().openTree(big)
    assert.equal((await tree.readPlain(tree.plainSize, 1)).length, 0)
    assert.equal((await tree.readPlain(Number.MAX_SAFE_INTEGER, 1)).length, 0)
    assert.equal((await tree.readPlain(tree.plainSize - 3, 100)).length, 3)
    assert.equal((await tree.readPlain(1, 16 * 1024 * 1024)).length, 16 * 1024 * 1024)
    await assert.rejects(tree.readPlain(0, 16 * 1024 * 1024 + 1), { code: "EFBIG" })
    tree.close()
    await assert.rejects(tree.readPlain(0, 1), { code: "EBADF" })
  })
})
