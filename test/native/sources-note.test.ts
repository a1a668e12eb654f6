// What native files say of the sources that they were made of, read without loading them.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { readNativeFile } from "../../lib/native/sources-note.ts"
import { packageRoot } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"

describe("the note of a native file", () => {
  const release = path.join(packageRoot, "build", "Release")
  const digest = execFileSync(path.join(packageRoot, "scripts", "native-digest.sh"), {
    encoding: "utf8",
  }).trim()

  for (const name of ["sifcrypt.node", "sifcrypt-starter", "sifcrypt-init", "sifcrypt-shell"])
    it(`names the sources of ${name}`, () => {
      const { sources, architecture, isCut } = readNativeFile(path.join(release, name))
      assert.deepEqual([sources, architecture, isCut], [digest, process.arch, false])
    })

  it("is what the JavaScript was built beside", () => {
    const built = readFileSync(path.join(packageRoot, "dist", "native", "native-digest.js"), "utf8")
    assert.ok(built.includes(`"${digest}"`), built)
    for (const name of ["command.js", "run.js"])
      assert.ok(readFileSync(path.join(packageRoot, "dist", "cli", name), "latin1").includes(digest), name)
  })

  it("stands beside whose machine code it is, and tells of an end that is missing", () => {
    const file = path.join(newFolder("notes"), "file")
    const whole = readFileSync(path.join(release, "sifcrypt.node"))
    writeFileSync(file, whole.subarray(0, whole.length / 2))
    assert.deepEqual(readNativeFile(file), { sources: digest, architecture: process.arch, isCut: true })
    const other = Buffer.from(whole)
    other.writeUInt16LE(process.arch === "x64" ? 183 : 62, 18)
    writeFileSync(file, other)
    const { architecture, isCut } = readNativeFile(file)
    assert.deepEqual([architecture, isCut], [process.arch === "x64" ? "arm64" : "x64", false])
  })

  it("is missing from what is none of ours, or damaged, which is no failure", () => {
    const file = path.join(newFolder("notes"), "file")
    const starter = readFileSync(path.join(release, "sifcrypt-starter")).subarray(0, 8192)
    const changed = (change: (bytes: Buffer) => void): Buffer => {
      const bytes = Buffer.from(starter)
      change(bytes)
      return bytes
    }
    for (const bytes of [
      Buffer.alloc(0),
      Buffer.from("#!/bin/sh\n"),
      starter.subarray(0, 63),
      starter.subarray(0, 100),
      // Headers far away, no end of them, notes behind the end of the file.
      changed((bytes) => bytes.writeBigUInt64LE(2n ** 63n, 32)),
      changed((bytes) => {
        bytes.writeUInt16LE(0xffff, 56)
        bytes.fill(0, 64)
      }),
      changed((bytes) => {
        for (let at = 64; at < 64 + bytes.readUInt16LE(56) * 56; at += 56)
          bytes.writeBigUInt64LE(2n ** 62n, at + 8)
      }),
    ]) {
      writeFileSync(file, bytes)
      assert.equal(readNativeFile(file).sources, undefined)
    }
    assert.equal(readNativeFile(process.execPath).sources, undefined)
  })
})
