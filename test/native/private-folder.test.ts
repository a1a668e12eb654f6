// Whether somebody else can say what is at a place.
import assert from "node:assert/strict"
import { chmodSync, lchownSync, mkdirSync, symlinkSync } from "node:fs"
import path from "node:path"
import { isHeld } from "../../lib/native/private-folder.ts"
import { idOf, isRoot } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"

describe("a place", () => {
  const base = newFolder("held")
  const own = path.join(base, "own")
  const at = (...names: string[]): string => path.join(base, ...names)
  const link = (target: string, name: string, owner?: number): string => {
    symlinkSync(target, at(name))
    if (owner !== undefined) lchownSync(at(name), owner, owner)
    return at(name)
  }

  before(() => {
    mkdirSync(path.join(own, "below"), { recursive: true })
    mkdirSync(at("shared", "below"), { recursive: true })
    chmodSync(at("shared"), 0o777)
  })

  it("is held by its user, there or not yet, under the name of a link too", async () => {
    assert.equal(await isHeld(own), true)
    assert.equal(await isHeld(path.join(own, "none")), true)
    assert.equal(await isHeld(path.join(link(own, "link"), "below")), true)
    await assert.rejects(isHeld(at("none", "below")), { code: "ENOENT" })
  })

  it("is not held in a folder that others write, wherever the way to it leads", async () => {
    assert.equal(await isHeld(at("shared", "below")), false)
    assert.equal(await isHeld(at("shared", "none")), false)
    assert.equal(await isHeld(link(at("shared", "below"), "into-shared")), false)
    symlinkSync(own, at("shared", "out"))
    assert.equal(await isHeld(at("shared", "out", "below")), false)
    // Two dots are the kernel's to follow: behind a link they lead elsewhere than the text says.
    mkdirSync(at("below"))
    assert.equal(await isHeld(`${link(at("shared", "below"), "dots")}/../below`), false)
    chmodSync(at("shared"), 0o1777)
    assert.equal(await isHeld(at("shared", "below")), true, "sticky: what is there is its owner's")
  })

  it("is not held where a link of another user's leads", async function () {
    if (!isRoot) skip(this, "only root can make another user's link")
    assert.equal(await isHeld(path.join(link(own, "theirs", idOf("nobody")), "below")), false)
  })
})
