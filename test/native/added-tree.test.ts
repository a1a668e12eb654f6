import assert from "node:assert/strict"
import { mkdirSync, openSync, closeSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { metadataFiles } from "../../lib/source/metadata-files.ts"
import type { NativeAddedEntry, NativeTree } from "../../lib/native/binding.ts"
import { loadAddon } from "../../lib/native/load.ts"
import { newFolder } from "../support/scratch.ts"

/** Builds a folder with entries added, and opens what was built. */
async function withAdded<T>(
  directory: string,
  added: readonly NativeAddedEntry[],
  use: (tree: NativeTree) => Promise<T>,
): Promise<T> {
  const fd = openSync(path.join(newFolder("added"), "image"), "w+")
  try {
    const { size } = await loadAddon().buildTree(
      {
        source: { directory, added },
        fd,
        offset: 0,
        cipher: undefined,
        compression: "zstd",
        level: 1,
        blockSize: 131072,
        threads: 0,
        owner: undefined,
        sourceDateEpoch: -1,
        exclude: [],
      },
      () => true,
    )
    const tree = await loadAddon().openTree({ fd, offset: 0, size, cipher: undefined })
    try {
      return await use(tree)
    } finally {
      tree.close()
    }
  } finally {
    closeSync(fd)
  }
}

function file(name: string, content: string, keep = false): NativeAddedEntry {
  return { path: name, type: "file", mode: 0o640, mtime: 7, content: Buffer.from(content), keep }
}
function folder(name: string, keep = false): NativeAddedEntry {
  return { path: name, type: "directory", mode: 0o700, mtime: 7, keep }
}
const text = async (tree: NativeTree, name: string): Promise<string> =>
  (await tree.read(name, 0, 1 << 20)).toString()
const names = async (tree: NativeTree, name: string): Promise<string[]> =>
  (await tree.list(name)).map((entry) => entry.name.toString())

describe("entries added to a tree", () => {
  const source = newFolder("added-source")
  before(() => {
    for (const name of ["d", "d/sub", "gone", "gone/deep"]) mkdirSync(path.join(source, name))
    for (const name of ["b", "d/b", "gone/deep/f", "link-target"])
      writeFileSync(path.join(source, name), "old")
    symlinkSync("link-target", path.join(source, "link"))
  })

  it("stand where the order of names wants them, and are root's", async () => {
    await withAdded(
      source,
      [file("a", "A"), file("c", "C"), file("zz", "Z"), folder("d"), file("d/a", "DA")],
      async (tree) => {
        assert.deepEqual(await names(tree, "/"), ["a", "b", "c", "d", "gone", "link", "link-target", "zz"])
        assert.deepEqual(await names(tree, "/d"), ["a", "b", "sub"])
        assert.equal(await text(tree, "/d/a"), "DA")
        const { mode, uid, gid, mtime } = await tree.stat("/a", false)
        assert.deepEqual({ mode, uid, gid, mtime }, { mode: 0o640, uid: 0, gid: 0, mtime: 7 })
      },
    )
  })

  it("replace what the tree has, a folder with all in it, unless it is to be kept", async () => {
    const added = [file("b", "new"), file("gone", "a file now"), file("link", "no link"), file("d/b", "x")]
    await withAdded(source, [folder("d"), ...added], async (tree) => {
      assert.equal(await text(tree, "/b"), "new")
      assert.equal(await text(tree, "/gone"), "a file now")
      assert.equal((await tree.stat("/link", false)).type, "file")
    })
    const kept = [
      file("b", "new", true),
      file("gone", "x", true),
      folder("link", true),
      file("link/inside", "x", true),
    ]
    await withAdded(source, kept, async (tree) => {
      assert.equal(await text(tree, "/b"), "old")
      assert.deepEqual(await names(tree, "/gone"), ["deep"])
      assert.equal((await tree.stat("/link", false)).type, "symlink")
    })
  })

  it("add to a folder that the tree has, which keeps its mode; a folder replaces anything else", async () => {
    await withAdded(source, [folder("d"), folder("link"), file("link/inside", "in")], async (tree) => {
      assert.equal((await tree.stat("/d", false)).mode, 0o755)
      assert.deepEqual(await names(tree, "/d"), ["b", "sub"])
      assert.equal(await text(tree, "/link/inside"), "in")
    })
  })

  it("are refused without their folder, and twice", async () => {
    await assert.rejects(
      withAdded(source, [file("x/y", "")], async () => undefined),
      { code: "EINVAL" },
    )
    await assert.rejects(
      withAdded(source, [file("x", ""), file("x", "")], async () => undefined),
      { code: "EEXIST" },
    )
  })

  it("make an image of any tree: what a runtime calls, and where it mounts", async () => {
    const files = metadataFiles({ definition: "Bootstrap: scratch\n", labels: { b: "2", a: "1" } })
    const added = files.map((entry) => ({
      ...entry,
      mtime: 1,
      keep: entry.keep === true,
      ...(entry.type === "file" ? { content: Buffer.from(entry.content) } : {}),
    })) as NativeAddedEntry[]
    await withAdded(source, added, async (tree) => {
      for (const script of [
        "actions/exec",
        "actions/run",
        "actions/shell",
        "actions/start",
        "actions/test",
        "runscript",
      ])
        assert.equal((await tree.stat(`/.singularity.d/${script}`, false)).mode, 0o755, script)
      assert.deepEqual(JSON.parse(await text(tree, "/.singularity.d/labels.json")), { a: "1", b: "2" })
      for (const place of ["dev", "proc", "sys", "tmp", "var/tmp", "root", "home", "etc"])
        assert.equal((await tree.stat(`/${place}`, false)).type, "directory", place)
      assert.equal((await tree.stat("/singularity", true)).type, "file")
      assert.equal((await tree.stat("/environment", true)).type, "file")
    })
  })
})
