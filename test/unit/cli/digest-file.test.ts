import assert from "node:assert/strict"
import { lstatSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { writeDigestFile } from "../../../lib/cli/digest-file.ts"
import { newFolder } from "../../support/scratch.ts"

describe("writeDigestFile", () => {
  it("replaces a file as a whole, and where a link leads", () => {
    const folder = newFolder("digest-file")
    const [file, link] = [path.join(folder, "digest"), path.join(folder, "link")]
    writeFileSync(file, "something longer than a digest\n".repeat(10))
    symlinkSync("digest", link)
    const { ino } = statSync(file)
    writeDigestFile(file, "sha256:1")
    assert.equal(readFileSync(file, "utf8"), "sha256:1\n")
    assert.notEqual(statSync(file).ino, ino, "whoever reads the one before goes on reading it")
    writeDigestFile(link, "sha256:2")
    assert.ok(lstatSync(link).isSymbolicLink())
    assert.equal(readFileSync(file, "utf8"), "sha256:2\n")
    assert.deepEqual(readdirSync(folder).sort(), ["digest", "link"])
  })

  it("writes to what is no file, and leaves nothing where it cannot write", () => {
    writeDigestFile("/dev/null", "sha256:1")
    assert.ok(lstatSync("/dev/null").isCharacterDevice())
    const folder = newFolder("digest-file")
    assert.throws(() => {
      writeDigestFile(folder, "sha256:1")
    }, /EISDIR/)
    assert.throws(() => {
      writeDigestFile(path.join(folder, "absent", "digest"), "sha256:1")
    }, /ENOENT/)
    assert.deepEqual(readdirSync(folder), [])
  })
})
