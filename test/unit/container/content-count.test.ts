// How much there is in a tree, found out beside whoever reads it.
import assert from "node:assert/strict"
import { closeSync, constants, linkSync, mkdirSync, openSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { ContentCount } from "../../../lib/container/content-count.ts"
import { FolderTree } from "../../../lib/device/folder-tree.ts"
import { newFolder } from "../../support/scratch.ts"

describe("ContentCount", () => {
  const folder = newFolder("content")
  mkdirSync(path.join(folder, "one", "two"), { recursive: true })
  writeFileSync(path.join(folder, "one", "file"), Buffer.alloc(1000))
  linkSync(path.join(folder, "one", "file"), path.join(folder, "one", "two", "link"))
  writeFileSync(path.join(folder, "one", "two", "more"), Buffer.alloc(30))
  symlinkSync("one/file", path.join(folder, "symlink"))

  async function counted(
    paths: readonly string[],
    look?: (count: ContentCount) => void,
  ): Promise<number | undefined> {
    const fd = openSync(folder, constants.O_RDONLY)
    try {
      using tree = new FolderTree(fd, folder)
      await using count = new ContentCount(tree, paths)
      look?.(count)
      while (count.total === undefined && look === undefined) await new Promise(setImmediate)
      return count.total
    } finally {
      closeSync(fd)
    }
  }

  it("adds up files, each inode once for each path, and where a link leads", async () => {
    assert.equal(await counted(["/"]), 1030)
    assert.equal(await counted(["/one", "/one/two", "/symlink"]), 1030 + 1030 + 1000)
  })

  it("knows nothing of what cannot be read, of nothing, and before it has read", async () => {
    const before = (count: ContentCount): void => {
      assert.equal(count.total, undefined)
    }
    for (const paths of [["/missing"], [], ["/"]]) assert.equal(await counted(paths, before), undefined)
  })
})
