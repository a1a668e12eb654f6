// What goes wrong at the edges: slow readers, foreign mounts, devices as outputs, signals and programs that end.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import { lstatSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { idOf, isRoot, packageRoot, runProgram, sifcrypt, sifcryptOk, startSifcrypt } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

const isMounted = (target: string): boolean =>
  readFileSync("/proc/self/mountinfo", "utf8").includes(` ${target} `)

describe("at the edges", () => {
  let image: string
  let keys: ReturnType<typeof testKeys>

  before(async () => {
    keys = testKeys()
    image = path.join(newFolder("edges", idOf("nobody")), "image.sif")
    const both = ["--pem-path", keys.publicKey, "--passphrase-file", keys.passphraseFile]
    await sifcryptOk(["build", ...both, image, makeRootTree()], { as: "nobody" })
  })

  it("gives a slow reader all of a long listing", async () => {
    const tree = newFolder("many-files")
    const count = 3000
    for (let i = 0; i < count; i++) writeFileSync(path.join(tree, `file-with-quite-a-long-name-${i}`), "")
    const listed = path.join(newFolder("long-listing", idOf("user")), "image.sif")
    await sifcryptOk(["build", listed, tree])
    const child = startSifcrypt(["ls", "--json", listed])
    const pieces: Buffer[] = []
    await sleep(1500) // the pipe is full by now, and the command would like to end
    child.stdout?.on("data", (piece: Buffer) => pieces.push(piece))
    const [status] = (await once(child, "close")) as [number | null]
    assert.equal(status, 0)
    assert.equal((JSON.parse(Buffer.concat(pieces).toString("utf8")) as unknown[]).length, count)
  })

  it("ends a program normally after its mount was disposed of", async () => {
    const folder = newFolder("disposed", idOf("nobody"))
    const script = `
      import { open } from ${JSON.stringify(path.join(packageRoot, "dist", "index.js"))}
      const image = await open(${JSON.stringify(image)}, { unlock: [{ key: { file: ${JSON.stringify(keys.privateKey)} } }] })
      const mount = await image.mount(${JSON.stringify(folder)}, { engine: "userspace" })
      await mount.unmount()
      await image.close()
      console.log("after")`
    const argv = [process.execPath, "--input-type=module", "-e", script]
    const result = await runProgram(argv, { as: "nobody" })
    assert.equal(result.text, "after\n", result.stderr)
    assert.equal(result.status, 0)
    assert.equal(isMounted(folder), false)
  })

  it("leaves what somebody else mounted on top of an image alone", async function () {
    if (!isRoot) return skip(this, "mounting a tmpfs needs root")
    const folder = newFolder("covered")
    const open = ["--pem-path", keys.privateKey, "--engine", "userspace"]
    await sifcryptOk(["mount", ...open, image, folder], { as: "self" })
    try {
      execFileSync("mount", ["-t", "tmpfs", "covering", folder])
      try {
        const result = await sifcrypt(["unmount", folder], { as: "self" })
        assert.equal(result.status, 25)
        assert.match(result.stderr, /is no mount of sifcrypt/)
        assert.match(execFileSync("findmnt", ["-n", "-o", "SOURCE", folder]).toString(), /covering/)
      } finally {
        execFileSync("umount", [folder])
      }
    } finally {
      await sifcryptOk(["unmount", folder], { as: "self" })
    }
  })

  it("does not replace a device by an image", async function () {
    if (!isRoot) return skip(this, "making a device node needs root")
    const device = path.join(newFolder("device"), "null")
    execFileSync("mknod", [device, "c", "1", "3"])
    const result = await sifcrypt(["build", "-F", device, makeRootTree()], { as: "self" })
    assert.equal(result.status, 25)
    assert.match(result.stderr, /is no regular file/)
    assert.equal(lstatSync(device).isCharacterDevice(), true)
  })

  it("takes a mount back when it is told to end while the key is derived", async () => {
    const folder = newFolder("interrupted", idOf("nobody"))
    const args = ["mount", "--passphrase-file", keys.passphraseFile, "--engine", "userspace", image, folder]
    const child = startSifcrypt(args, { as: "nobody" })
    await sleep(250)
    child.kill("SIGTERM")
    const [status, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null]
    // On a slow machine it may not have come to its handlers yet.
    assert.ok(status === 143 || signal === "SIGTERM", `status ${String(status)}`)
    assert.equal(isMounted(folder), false)
  })

  it("keeps the passphrase from a program that is found through PATH", async () => {
    const shims = newFolder("shims", idOf("nobody"))
    const log = path.join(newFolder("shim-log", idOf("nobody")), "environment")
    writeFileSync(path.join(shims, "fusermount3"), `#!/bin/sh\nenv >>${log}\nexit 1\n`, { mode: 0o755 })
    const folder = newFolder("path", idOf("nobody"))
    const env = {
      PATH: `${shims}:${process.env["PATH"] ?? ""}`,
      SIFCRYPT_ENCRYPTION_PASSPHRASE: readFileSync(keys.passphraseFile, "utf8").trim(),
    }
    await sifcryptOk(["mount", "--engine", "userspace", image, folder], { as: "nobody", env })
    await sifcryptOk(["unmount", folder], { as: "nobody", env })
    assert.throws(() => readFileSync(log), { code: "ENOENT" })
  })

  it("lists and enters folders and links whose names are not UTF-8", async () => {
    const tree = newFolder("odd-names")
    const odd = Buffer.concat([Buffer.from(tree), Buffer.from("/caf\xe9", "latin1")])
    mkdirSync(odd)
    writeFileSync(Buffer.concat([odd, Buffer.from("/inside")]), "")
    const listed = path.join(newFolder("odd-image", idOf("user")), "image.sif")
    await sifcryptOk(["build", listed, tree])
    const { text } = await sifcryptOk(["ls", "-R", listed])
    assert.match(text, /\/inside\n/)
  })
})
