// Images that are small and ask for much: refused before memory runs out.
import assert from "node:assert/strict"
import { createPublicKey } from "node:crypto"
import {
  copyFileSync,
  linkSync,
  mkdirSync,
  statSync,
  symlinkSync,
  readFileSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { build, open, sif, TreeError } from "../../lib/index.ts"
import { encodeCryptoMessage } from "../../lib/key/crypto-message.ts"
import { fingerprint } from "../../lib/key/fingerprint.ts"
import { wrapSecret } from "../../lib/key/rsa-oaep.ts"
import { cryptoMessageExtra, DataType } from "../../lib/sif/format.ts"
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
})

describe("crypto messages for one key", () => {
  it("S29: cost few key derivations when they open nothing", async () => {
    const keys = testKeys()
    const key = createPublicKey(readFileSync(keys.publicKey))
    const image = path.join(newFolder("messages"), "image.sif")
    await build({
      output: image,
      source: newFolder("tree"),
      credentials: { pemPaths: [keys.publicKey] },
      anonymous: true,
    })
    const credentials = { pemPaths: [keys.privateKey] }
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
    await (await open(image, { credentials })).close()
    const more = `${image}.more`
    copyFileSync(image, more)
    await add(more, 1)
    await assert.rejects(open(more, { credentials }), {
      code: "ERR_LUKS_HEADER",
      message: /crypto message 6 opens no keyslot/,
    })
  })
})
