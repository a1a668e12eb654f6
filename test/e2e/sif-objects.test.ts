// `sifcrypt sif new`, `add`, `del` and `setprim`, with the peers' options.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { sif } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

describe("objects of an image by hand", () => {
  const folder = newFolder("sif-objects", userId)
  const at = (name: string): string => path.join(folder, name)
  const run = async (...words: readonly string[]): Promise<void> => {
    await sifcryptOk(["sif", ...words])
  }

  before(async () => {
    writeFileSync(at("text"), "text\n")
    await sifcryptOk(["build", at("built.sif"), makeRootTree()])
    await using built = await sif.openSif(at("built.sif"))
    const { offset, size } = built.primary()
    writeFileSync(at("rootfs.squashfs"), readFileSync(at("built.sif")).subarray(offset, offset + size))
  })

  it("make an image that runs", async () => {
    const file = at("made.sif")
    const arch = { x64: "2", arm64: "4" }[process.arch as string] ?? "2"
    await run("new", file)
    await run("add", "--datatype", "1", "--groupid", "1", "--filename", "a.def", file, at("text"))
    const kind = ["--datatype", "4", "--parttype", "1", "--partfs", "1", "--partarch", arch]
    await run("add", ...kind, "--groupid", "1", file, at("rootfs.squashfs"))
    await run("add", "--datatype", "9", "--sbomformat", "spdx-json", "--link", "2", file, at("text"))
    const entity = "433FE984155206BD962725E20E8713472A879943"
    await run("add", "--datatype", "5", "--signhash", "1", "--signentity", entity, file, at("text"))
    await run("setprim", "2", file)
    assert.equal((await sifcryptOk(["exec", file, "cat", "/data/hello"])).text, "hello\n")
    await using image = await sif.openSif(file)
    const shown = sif.listJson(image).map(({ id, type, group, name }) => ({ id, type, group, name }))
    assert.equal(shown.length, 4, JSON.stringify(shown))
    assert.match(sif.infoText(image, 3), /spdx-json/)
    assert.match(sif.infoText(image, 4), new RegExp(`SHA-256[^]*${entity}`))
    await run("del", "1", file)
    await using without = await sif.openSif(file)
    assert.deepEqual(
      without.objects.map(({ id }) => id),
      [2, 3, 4],
    )
  })

  it("say what an option of a kind is missing, and touch nothing", async () => {
    const file = at("empty.sif")
    await run("new", file)
    const before = readFileSync(file)
    for (const words of [
      ["add", file, at("text")],
      ["add", "--datatype", "12", file, at("text")],
      ["add", "--datatype", "4", "--parttype", "1", file, at("text")],
      ["add", "--datatype", "5", file, at("text")],
      ["add", "--datatype", "5", "--signhash", "1", "--signentity", "x", file, at("text")],
      ["add", "--datatype", "9", file, at("text")],
      ["add", "--datatype", "7", "--partfs", "1", file, at("text")],
      ["add", "--datatype", "9", "--sbomformat", "spdx-json", "--signhash", "1", file, at("text")],
      [
        "add",
        "--datatype",
        "5",
        "--signhash",
        "1",
        "--signentity",
        "a".repeat(40),
        "--sbomformat",
        "spdx-json",
        file,
        at("text"),
      ],
    ])
      assert.equal((await sifcrypt(["sif", ...words])).status, 20, words.join(" "))
    assert.ok(before.equals(readFileSync(file)))
    assert.equal((await sifcrypt(["sif", "new", file])).status, 23)
  })

  it("break no signature unless that is asked for, and tell of what is not signed", async () => {
    const file = at("signed.sif")
    const keys = testKeys()
    execFileSync("cp", ["-p", at("built.sif"), file])
    await sifcryptOk(["sign", "--key", keys.privateKey, file])
    for (const words of [
      ["del", "1", file],
      ["add", "--datatype", "7", "--groupid", "1", file, at("text")],
    ]) {
      const refused = await sifcrypt(["sif", ...words])
      assert.match(refused.stderr, /would not hold any more\n.*hint: .* --break-signatures/)
      assert.equal(refused.status, 23)
    }
    const added = await sifcryptOk(["sif", "add", "--datatype", "7", file, at("text")])
    assert.match(added.stderr, /no signature speaks of the new object/)
    await run("del", "--break-signatures", "1", file)
  })

  it("make one overlay in an image, if two are asked for at once, and none that is sparse", async () => {
    const file = at("twice.sif")
    execFileSync("cp", ["-p", at("built.sif"), file])
    const sparse = await sifcrypt(["overlay", "create", "--sparse", file])
    assert.match(sparse.stderr, /--sparse: an overlay inside of an image has its room from the start/)
    assert.equal(sparse.status, 255)
    const both = await Promise.all([1, 2].map(() => sifcrypt(["overlay", "create", file])))
    assert.equal(
      both.filter(({ status }) => status === 0).length,
      1,
      both.map(({ stderr }) => stderr).join(""),
    )
    const { text } = await sifcryptOk(["sif", "list", file])
    assert.equal(text.match(/Overlay/g)?.length, 1, text)
  })

  it("make an overlay in an image, once, which its payloads write to", async () => {
    const file = at("overlay.sif")
    execFileSync("cp", ["-p", at("built.sif"), file])
    await sifcryptOk(["overlay", "create", file])
    await sifcryptOk(["exec", "--engine", "userspace", "--writable", file, "sh", "-c", "echo kept > /kept"])
    const args = ["exec", "--engine", "userspace", file, "cat", "/kept", "/data/hello"]
    assert.equal((await sifcryptOk(args)).text, "kept\nhello\n")
    const again = await sifcrypt(["overlay", "create", file])
    assert.match(again.stderr, /it has an overlay already, object 2\n$/)
    assert.equal((await sifcryptOk(args)).text, "kept\nhello\n")
  })

  it("make none in an encrypted or signed image", async () => {
    const keys = testKeys()
    const encrypted = at("encrypted.sif")
    const signed = at("signed-2.sif")
    await sifcryptOk(["encrypt", "--pem-path", keys.publicKey, at("built.sif"), encrypted])
    execFileSync("cp", ["-p", at("built.sif"), signed])
    await sifcryptOk(["sign", "--key", keys.privateKey, signed])
    for (const [file, why] of [
      [encrypted, /in the clear there, and the image is encrypted/],
      [signed, /would not hold any more/],
    ] as const) {
      const before = readFileSync(file)
      const refused = await sifcrypt(["overlay", "create", file])
      assert.match(refused.stderr, why)
      assert.notEqual(refused.status, 0)
      assert.ok(before.equals(readFileSync(file)))
    }
  })
})
