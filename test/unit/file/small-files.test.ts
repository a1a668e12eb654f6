import assert from "node:assert/strict"
import { readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { writeTogether, type SmallFile } from "../../../lib/file/small-files.ts"
import { BuildError } from "../../../lib/errors.ts"
import { newFolder } from "../../support/scratch.ts"

const content = (folder: string): Record<string, string> =>
  Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(path.join(folder, name), "utf8")]))

describe("writeTogether", () => {
  let folder: string
  const file = (name: string, text = `new ${name}`, mode = 0o644): SmallFile => ({
    path: path.join(folder, name),
    bytes: Buffer.from(text),
    mode,
  })
  beforeEach(() => {
    folder = newFolder("small-files")
  })

  it("writes all of them, with their modes whatever the umask", async () => {
    const umask = process.umask(0o077)
    try {
      await writeTogether([file("a"), file("b", "b", 0o600)], false)
    } finally {
      process.umask(umask)
    }
    assert.deepEqual(content(folder), { a: "new a", b: "b" })
    assert.equal(statSync(path.join(folder, "a")).mode & 0o7777, 0o644)
    assert.equal(statSync(path.join(folder, "b")).mode & 0o7777, 0o600)
  })

  it("takes the first ones back when the last cannot have its name", async () => {
    // Nothing is there when it is looked at, and the first one is there when the third wants its name.
    await assert.rejects(
      writeTogether([file("a"), file("b"), file("a")], false),
      (error) => error instanceof BuildError && error.code === "ERR_BUILD_EXISTS",
    )
    assert.deepEqual(content(folder), {})
  })

  it("replaces none when one of them cannot even be begun", async () => {
    for (const name of ["a", "b"]) writeFileSync(path.join(folder, name), `old ${name}`)
    const late = { ...file("c"), path: path.join(folder, "missing", "c") }
    await assert.rejects(writeTogether([file("a"), file("b"), late], true), BuildError)
    assert.deepEqual(content(folder), { a: "old a", b: "old b" })
  })

  it("replaces all of them, and leaves no second names", async () => {
    for (const name of ["a", "b"]) writeFileSync(path.join(folder, name), `old ${name}`)
    await writeTogether([file("a"), file("b")], true)
    assert.deepEqual(content(folder), { a: "new a", b: "new b" })
  })

  it("replaces no link to a device or to what /proc shows, like /dev/stdout", async () => {
    for (const [name, target] of [
      ["null", "/dev/null"],
      ["out", "/proc/self/fd/1"],
    ] as const) {
      symlinkSync(target, path.join(folder, name))
      await assert.rejects(
        writeTogether([file(name)], true),
        (error) => error instanceof BuildError && /it is no regular file/.test(error.message),
      )
    }
  })
})
