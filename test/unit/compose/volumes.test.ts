import assert from "node:assert/strict"
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { openVolume, removeVolumes, volumeFolder } from "../../../lib/compose/volumes.ts"
import { newFolder } from "../../support/scratch.ts"

describe("volumes", () => {
  const before = process.env["XDG_DATA_HOME"]
  const outside = newFolder("outside")

  beforeEach(() => {
    process.env["XDG_DATA_HOME"] = newFolder("volumes")
    writeFileSync(path.join(outside, "kept"), "kept")
  })
  afterEach(() => {
    assert.equal(readFileSync(path.join(outside, "kept"), "utf8"), "kept")
    if (before === undefined) delete process.env["XDG_DATA_HOME"]
    else process.env["XDG_DATA_HOME"] = before
  })

  const removed = async (project: string): Promise<string[]> => {
    const names: string[] = []
    for await (const name of removeVolumes(project, new Map())) names.push(name)
    return names.sort()
  }

  it("go with their project and with all that is in them, but not with what links there lead to", async () => {
    const one = openVolume({ name: "one", external: false }, "shop")
    openVolume({ name: "other", external: false }, "another")
    symlinkSync(outside, path.join(one, "link"))
    mkdirSync(path.join(one, "folder"))
    symlinkSync(path.join(outside, "kept"), path.join(one, "folder", "link"))
    assert.deepEqual(await removed("shop"), ["one"])
    assert.deepEqual(readdirSync(volumeFolder()), ["other"])
  })

  it("go although paths in them are longer than any path may be", async () => {
    const here = process.cwd()
    const name = "n".repeat(200)
    try {
      process.chdir(openVolume({ name: "deep", external: false }, "shop"))
      for (let depth = 0; depth < 30; depth++) {
        mkdirSync(name)
        process.chdir(name)
      }
    } finally {
      process.chdir(here)
    }
    assert.deepEqual(await removed("shop"), ["deep"])
    assert.deepEqual(readdirSync(volumeFolder()), [])
  })

  it("stay where an instance has them, and all others go before that is an error", async () => {
    for (const name of ["a", "b", "c"]) openVolume({ name, external: false }, "shop")
    const gone: string[] = []
    await assert.rejects(
      async () => {
        const users = new Map(["", "b", "elsewhere"].map((name) => [name, "other-web-1"]))
        for await (const name of removeVolumes("shop", users)) gone.push(name)
      },
      {
        code: "ERR_COMPOSE_PROJECT",
        message: /the volume b stays: the instance other-web-1 has it, and is to be removed first/,
      },
    )
    assert.deepEqual([gone.sort(), readdirSync(volumeFolder())], [["a", "c"], ["b"]])
    assert.deepEqual(await removed("shop"), ["b"])
  })

  it("are not what a link leads to, be it in the place of one", async () => {
    const data = openVolume({ name: "moved", external: false }, "shop")
    const place = path.join(newFolder("place"), "moved")
    renameSync(path.dirname(data), place)
    symlinkSync(place, path.dirname(data))
    assert.deepEqual(await removed("shop"), [])
    assert.ok(existsSync(path.join(place, "data")))
    openVolume({ name: "linked", external: false }, "shop")
    const linked = path.join(volumeFolder(), "linked", "data")
    renameSync(linked, path.join(outside, "data"))
    symlinkSync(path.join(outside, "data"), linked)
    assert.deepEqual(await removed("shop"), ["linked"])
    assert.ok(existsSync(path.join(outside, "data")))
  })
})
