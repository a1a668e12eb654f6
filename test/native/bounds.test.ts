// Images that are small and ask for much: refused before memory runs out.
import assert from "node:assert/strict"
import { linkSync, mkdirSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, open, TreeError } from "../../lib/index.ts"
import { newFolder } from "../support/scratch.ts"

function tooMuch(pattern: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof TreeError)
    assert.equal(error.code, "ERR_TREE_FORMAT")
    assert.match(error.message, pattern)
    return true
  }
}

describe("a listing", () => {
  it("is refused by the addon when it is out of proportion to the image", async function () {
    this.timeout(30_000)
    const tree = newFolder("bomb")
    const folder = path.join(tree, "folder")
    mkdirSync(folder)
    // One inode of 4 KiB, and each of its names lists as all of that.
    symlinkSync("x".repeat(4095), path.join(folder, "link"))
    for (let i = 1; i < 20_000; i++) linkSync(path.join(folder, "link"), path.join(folder, String(i)))
    const output = path.join(newFolder("bomb-image"), "image.sif")
    await build({ output, source: tree })
    assert.ok(statSync(output).size < 512 * 1024)
    await using image = await open(output)
    await assert.rejects(image.list("/folder"), tooMuch(/too many entries/))
    assert.equal((await image.list("/")).length, 1)
    assert.equal((await image.stat("/folder/link")).target?.length, 4095)
  })

  it("is refused when the folders together have more entries than are wanted", async () => {
    const tree = newFolder("folders")
    for (const name of ["a", "b", "c"]) {
      mkdirSync(path.join(tree, name))
      for (let i = 0; i < 10; i++) writeFileSync(path.join(tree, name, String(i)), "")
    }
    const output = path.join(newFolder("folders-image"), "image.sif")
    await build({ output, source: tree })
    await using image = await open(output)
    assert.equal((await image.list("/", { recursive: true, maxEntries: 33 })).length, 33)
    await assert.rejects(
      image.list("/", { recursive: true, maxEntries: 32 }),
      tooMuch(/more than 32 entries, which is too much to list at once/),
    )
  })
})
