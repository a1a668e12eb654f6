// Images that are small and ask for much: refused before memory runs out.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createPublicKey } from "node:crypto"
import {
  copyFileSync,
  linkSync,
  mkdirSync,
  statSync,
  symlinkSync,
  truncateSync,
  readFileSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { build, open, sif, TreeError } from "../../lib/index.ts"
import { encodeCryptoMessage } from "../../lib/key/crypto-message.ts"
import { fingerprint } from "../../lib/key/fingerprint.ts"
import { wrapSecret } from "../../lib/key/rsa-oaep.ts"
import { cryptoMessageExtra, DataType } from "../../lib/sif/format.ts"
import { sifcrypt, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
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

  it("refuses what extracting refuses: a folder in itself, listed by no command", async () => {
    const tree = newFolder("loop")
    mkdirSync(path.join(tree, "folder"))
    writeFileSync(path.join(tree, "folder", "loop-here"), "")
    const squashfs = path.join(newFolder("loop-image", userId), "image.squashfs")
    execFileSync("mksquashfs", [tree, squashfs, "-noI", "-quiet", "-no-progress"])
    const bytes = readFileSync(squashfs)
    // The entry gets the place of the root's inode, which is in the same block.
    bytes.copy(bytes, bytes.indexOf("loop-here") - 8, 32, 34)
    writeFileSync(squashfs, bytes)
    const image = `${squashfs}.sif`
    await build({ output: image, source: squashfs })
    await using opened = await open(image)
    await assert.rejects(opened.list("/", { recursive: true }), tooMuch(/an inode is in the image twice/))
    await assert.rejects(opened.extract(newFolder("loop-out")), tooMuch(/an inode is in the image twice/))
    for (const flags of [["-R"], ["-lR"], ["-R", "--json"]])
      assert.equal((await sifcrypt(["ls", ...flags, image])).status, 21)
  })

  it("is written as it is found, as JSON that is what one string would be, for a terminal", async () => {
    const tree = newFolder("json")
    for (const name of ["a", "b\u2028c", "d\ne"]) writeFileSync(path.join(tree, name), "")
    const image = path.join(newFolder("json-image"), "image.sif")
    await build({ output: image, source: tree })
    await using opened = await open(image)
    const { text } = await sifcrypt(["ls", "-R", "--json", image])
    const whole = JSON.stringify(await opened.list("/", { recursive: true }), null, 2)
    assert.equal(text, `${whole.replaceAll("\u2028", "\\u2028")}\n`)
    assert.deepEqual(JSON.parse(text), JSON.parse(whole))
  })

  it("and reading a whole file are bounded: a file may be as large as its image likes", async () => {
    const tree = newFolder("holes")
    writeFileSync(path.join(tree, "holes"), "")
    truncateSync(path.join(tree, "holes"), 2 ** 29)
    const image = path.join(newFolder("holes-image"), "image.sif")
    await build({ output: image, source: tree })
    assert.ok(statSync(image).size < 1 << 20)
    await using opened = await open(image)
    const tooLarge = { code: "ERR_SIF_TOO_LARGE", message: /holes has 536870912 bytes/ }
    await assert.rejects(opened.readFile("/holes"), tooLarge)
    await assert.rejects(opened.readFile("/holes", { maxSize: 100 }), tooLarge)
  })
})

describe("crypto messages for one key", () => {
  it("S29: cost few key derivations when they open nothing", async () => {
    const keys = testKeys()
    const key = createPublicKey(readFileSync(keys.publicKey))
    const image = path.join(newFolder("messages"), "image.sif")
    await build({
      output: image,
      source: newFolder("tree"),
      recipients: [{ key: { file: keys.publicKey } }],
      anonymous: true,
    })
    const credentials = [{ key: { file: keys.privateKey } }]
    // Named for the key, they come before the one that opens.
    const add = async (file: string, count: number): Promise<void> => {
      for (let i = 0; i < count; i++) {
        const data = encodeCryptoMessage(wrapSecret(key, Buffer.alloc(64, i)))
        const link = { to: "object", id: 1 } as const
        const extra = cryptoMessageExtra()
        await sif.addObject(file, { type: DataType.cryptoMessage, name: fingerprint(key), link, extra }, data)
      }
    }
    await add(image, 3)
    await (await open(image, { unlock: credentials })).close()
    const more = `${image}.more`
    copyFileSync(image, more)
    await add(more, 1)
    await assert.rejects(open(more, { unlock: credentials }), {
      code: "ERR_LUKS_HEADER",
      message: /crypto message 6 opens no keyslot/,
    })
  })
})
