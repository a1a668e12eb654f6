import assert from "node:assert/strict"
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { Rootfs } from "../../../lib/definition/rootfs.ts"
import { keptScript, scriptCommand } from "../../../lib/definition/stages.ts"
import { newFolder } from "../../support/scratch.ts"

describe("Rootfs", () => {
  let place: string
  let root: Rootfs

  beforeEach(() => {
    place = newFolder("rootfs")
    mkdirSync(path.join(place, "root", "etc"), { recursive: true })
    writeFileSync(path.join(place, "outside"), "untouched")
    root = new Rootfs(path.join(place, "root"))
  })

  it("resolves links as they are inside, and never out of it", async () => {
    symlinkSync("/etc", path.join(root.folder, "absolute"))
    symlinkSync("../../../..", path.join(root.folder, "etc", "up"))
    symlinkSync("loop", path.join(root.folder, "loop"))
    assert.equal(await root.resolve("/absolute/x"), path.join(root.folder, "etc/x"))
    assert.equal(await root.resolve("etc/up/../../y"), path.join(root.folder, "y"))
    assert.equal(await root.resolve("/absolute", false), path.join(root.folder, "absolute"))
    await assert.rejects(root.resolve("/loop/x"), /too many symbolic links/)
  })

  it("replaces a link by a file instead of writing through it", async () => {
    symlinkSync(path.join(place, "outside"), path.join(root.folder, "etc", "file"))
    await root.write("/etc/file", "inside", 0o640)
    assert.equal(readFileSync(path.join(place, "outside"), "utf8"), "untouched")
    assert.equal(readFileSync(path.join(root.folder, "etc", "file"), "utf8"), "inside")
    assert.equal(statSync(path.join(root.folder, "etc", "file")).mode & 0o7777, 0o640)
  })

  it("makes the folders that are missing, behind links of the image as well", async () => {
    symlinkSync(place, path.join(root.folder, "link"))
    await root.write("/link/made/file", "x", 0o644)
    assert.ok(!existsSync(path.join(place, "made")))
    assert.ok(existsSync(path.join(root.folder, place, "made/file")))
  })

  it("keeps what is to be kept", async () => {
    await root.add({ path: "etc/a", type: "file", mode: 0o644, content: "first" })
    await root.add({ path: "etc/a", type: "file", mode: 0o644, content: "second", keep: true })
    assert.equal(await root.read("/etc/a"), "first")
    await root.add({ path: "l", type: "symlink", mode: 0o777, target: "etc/a" })
    assert.equal(await root.read("/l"), "first")
    assert.equal(await root.read("/none"), undefined)
  })
})

describe("scriptCommand", () => {
  it("gives the section's arguments to the shell, and what follows -c its own command", () => {
    assert.deepEqual(scriptCommand("", "/s"), ["/bin/sh", "-ex", "/s"])
    assert.deepEqual(scriptCommand("-u -o pipefail", "/s"), ["/bin/sh", "-ex", "-u", "-o", "pipefail", "/s"])
    assert.deepEqual(scriptCommand("-c /bin/bash -e", "/s"), ["/bin/sh", "-ex", "-c", "/bin/bash -e /s"])
  })
})

describe("keptScript", () => {
  it("has a first line: its own or a shell's, with the section's arguments", () => {
    assert.equal(keptScript({ text: "echo\n", args: "", line: 1 }), "#!/bin/sh\n\necho\n\n")
    assert.equal(
      keptScript({ text: "#!/bin/bash\necho\n", args: "-e", line: 1 }),
      "#!/bin/bash -e\n\necho\n\n",
    )
    assert.equal(keptScript({ text: "#!/bin/bash", args: "", line: 1 }), "#!/bin/bash\n\n\n")
  })
})
