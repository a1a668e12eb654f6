// gocryptfs images through the addon: what Apptainer made is read, and what is made here its programs read.
import assert from "node:assert/strict"
import { createDecipheriv, createHash, hkdfSync, privateDecrypt, scryptSync } from "node:crypto"
import { closeSync, openSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import type { NativeRange, NativeTree } from "../../lib/native/binding.ts"
import { loadAddon } from "../../lib/native/load.ts"
import { newFolder } from "../support/scratch.ts"
import { vector, vectorPath } from "../vectors/load.ts"

const addon = loadAddon()

/** From the expected listing of the vector. */
const partition = { offset: 36864, size: 1056768 }
const message = { offset: 1093632, size: 400 }

/** As gocryptfs derives it, step by step and with nothing of ours. */
function contentKeyOf(config: Buffer, password: Buffer): Buffer {
  const { EncryptedKey, ScryptObject } = JSON.parse(config.toString()) as {
    EncryptedKey: string
    ScryptObject: { Salt: string; N: number; R: number; P: number }
  }
  const { N, R, P, Salt } = ScryptObject
  const hkdf = (key: Uint8Array): Buffer =>
    Buffer.from(hkdfSync("sha256", key, Buffer.alloc(0), "AES-GCM file content encryption", 32))
  const stretched = scryptSync(password, Buffer.from(Salt, "base64"), 32, { N, r: R, p: P, maxmem: 1 << 30 })
  const wrapped = Buffer.from(EncryptedKey, "base64")
  const decipher = createDecipheriv("aes-256-gcm", hkdf(stretched), wrapped.subarray(0, 16))
  decipher.setAAD(Buffer.alloc(8)).setAuthTag(wrapped.subarray(-16))
  return hkdf(Buffer.concat([decipher.update(wrapped.subarray(16, -16)), decipher.final()]))
}

/** The secret in a crypto message, by Node's RSA. */
function secretOf(pem: Buffer, privateKey: Buffer): Buffer {
  const der = Buffer.from(pem.toString().replaceAll(/-----[^-]+-----|\s/g, ""), "base64")
  return privateDecrypt({ key: privateKey, oaepHash: "sha256" }, der.subarray(-256))
}

/** The content key of the vector and the name of its encrypted file. */
async function unlockVector(fd: number): Promise<{ contentKey: Buffer; file: string; outer: NativeTree }> {
  const outer = await addon.openTree({ fd, ...partition, cipher: undefined })
  const names = (await outer.list("/")).map(({ name }) => name.toString())
  const file = names.find((name) => name.startsWith("squashfs-"))
  assert.ok(file !== undefined)
  const password = secretOf(
    vector("peer/gocryptfs-rsa2048.sif").subarray(message.offset, message.offset + message.size),
    readFileSync(vectorPath("peer/rsa_pri.pem")),
  )
  return { contentKey: contentKeyOf(await outer.read("gocryptfs.conf", 0, 65536), password), file, outer }
}

describe("gocryptfs images in the addon", () => {
  const folder = newFolder("gocryptfs")
  const image = path.join(folder, "peer.sif")
  let fd = -1
  let contentKey: Buffer = Buffer.alloc(0)
  let file = ""
  const peerRange = (): NativeRange => ({
    fd,
    ...partition,
    cipher: { type: "gocryptfs", contentKey, file },
  })

  before(async () => {
    writeFileSync(image, vector("peer/gocryptfs-rsa2048.sif"))
    fd = openSync(image, "r")
    const unlocked = await unlockVector(fd)
    ;({ contentKey, file } = unlocked)
    unlocked.outer.close()
  })
  after(() => {
    closeSync(fd)
  })

  it("A40: reads an image that Apptainer made for an ordinary user", async () => {
    const tree = await addon.openTree(peerRange())
    const lines = readFileSync(vectorPath("peer/manifest.txt"), "utf8").trimEnd().split("\n")
    for (const line of lines) {
      const fields = line.split(" ")
      const name = fields.at(-1) ?? ""
      const stat = await tree.stat(name, false)
      if (fields[0] === "L") {
        assert.equal(stat.target?.toString(), fields[1], name)
        continue
      }
      const content = await tree.read(name, 0, stat.size)
      assert.equal(createHash("sha256").update(content).digest("hex"), fields[1], name)
      assert.equal(stat.mode.toString(8), fields[2], name)
      assert.equal(String(content.length), fields[3], name)
    }
    assert.ok(lines.length > 0)
    tree.close()
  })

  it("refuses another key, another file and a key of the wrong length", async () => {
    const cipher = { type: "gocryptfs", contentKey, file } as const
    const open = (change: object): Promise<NativeTree> =>
      addon.openTree({ ...peerRange(), cipher: { ...cipher, ...change } })
    await assert.rejects(open({ contentKey: Buffer.alloc(32, 7) }), {
      code: "EIO",
      syscall: "gocryptfs_read",
      message: "gocryptfs_read: block 0 is not authentic",
    })
    await assert.rejects(open({ contentKey: Buffer.alloc(31) }), { code: "EINVAL", syscall: "gocryptfs_open" })
    for (const name of ["gocryptfs.con", "", `../${file}`, "."])
      await assert.rejects(open({ file: name }), { code: "EBADMSG", syscall: "squashfs_open" }, name)
    // The configuration is no encrypted file.
    await assert.rejects(open({ file: "gocryptfs.conf" }), { code: "EBADMSG", syscall: "gocryptfs_open" })
  })
})
