// A folder read as a root file system: whatever links it has, and while somebody changes it.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { closeSync, mkdirSync, openSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { FolderTree } from "../../../lib/device/folder-tree.ts"
import { newFolder } from "../../support/scratch.ts"

describe("a folder as a root file system", () => {
  const outside = newFolder("outside")
  const root = path.join(outside, "root")
  const fd = ((): number => {
    mkdirSync(path.join(root, "etc"), { recursive: true })
    return openSync(root, "r")
  })()
  const tree = new FolderTree(fd, "box")
  after(() => {
    closeSync(fd)
  })

  before(() => {
    writeFileSync(path.join(outside, "secret"), "secret")
    writeFileSync(path.join(root, "etc", "file"), "inside")
    for (const [name, target] of [
      ["absolute", "/etc/file"],
      ["up", "../../../../etc/file"],
      ["folder", "etc"],
      ["out", "../secret"],
      ["out-absolute", path.join(outside, "secret")],
      ["loop", "loop"],
      ["a", "b"],
      ["b", "/a"],
      ["proc", "/proc/self/root"],
    ] as const)
      symlinkSync(target, path.join(root, name))
    execFileSync("mkfifo", [path.join(root, "pipe")])
  })

  it("follows links as if it were the root, and never out of it", async () => {
    for (const name of ["/absolute", "up", "folder/file", "/folder/../etc/./file", "../../etc/file"])
      assert.equal((await tree.read(name, 0, 100)).toString(), "inside", name)
    for (const name of ["out", "out-absolute", "../secret", "proc/etc", "etc/file/none", "none"])
      assert.equal(await tree.find(name, true), undefined, name)
    for (const name of ["loop", "a", "loop/x"])
      await assert.rejects(tree.stat(name, true), { code: "ERR_TREE_TYPE" }, name)
  })

  it("shows links that are not followed, with where they lead", async () => {
    const { type, target } = await tree.stat("out", false)
    assert.deepEqual([type, target?.toString()], ["symlink", "../secret"])
    assert.equal((await tree.stat("folder", true)).type, "directory")
  })

  it("opens no pipe, which would wait", async () => {
    assert.equal((await tree.stat("pipe", true)).type, "fifo")
    await assert.rejects(tree.read("pipe", 0, 1), { code: "ERR_TREE_TYPE" })
    await assert.rejects(tree.read("etc", 0, 1), { code: "ERR_TREE_TYPE" })
    await assert.rejects(tree.list("absolute"), { code: "ERR_TREE_TYPE" })
  })

  it("lists by names' bytes, and walks every folder once, links not followed", async () => {
    const names = (await tree.list("/")).map(({ name }) => name.toString("latin1"))
    assert.deepEqual(names, names.toSorted())
    assert.ok(names.includes("pipe"))
    const folders: string[] = []
    for await (const { path: folder } of tree.walk("/")) folders.push(folder.toString())
    assert.equal(folders[0], "")
    assert.equal(folders.filter((folder) => folder === "etc").length, 1)
    assert.ok(!folders.some((folder) => folder.startsWith("folder") || folder.startsWith("proc")))
  })

  it("follows no link that took a folder's place during a walk", async () => {
    const seen: string[] = []
    mkdirSync(path.join(root, "swapped"))
    const walk = async (): Promise<void> => {
      for await (const { path: folder, entries } of tree.walk("/")) {
        if (folder.length === 0) {
          renameSync(path.join(root, "swapped"), path.join(outside, "was"))
          symlinkSync("/etc", path.join(root, "swapped"))
        }
        seen.push(...entries.map(({ name }) => path.join(folder.toString(), name.toString())))
      }
    }
    await assert.rejects(walk(), { code: "ERR_TREE_TYPE" })
    rmSync(path.join(root, "swapped"))
    assert.ok(seen.includes("etc/file"))
    assert.ok(!seen.includes("swapped/file"))
  })
})
