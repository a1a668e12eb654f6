// gocryptfs images through the addon: what Apptainer made is read, and what is made here its programs read.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createDecipheriv, createHash, hkdfSync, privateDecrypt, scryptSync } from "node:crypto"
import {
  chmodSync,
  closeSync,
  existsSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import type { NativeBuild, NativeGocryptfsBuild, NativeRange, NativeTree } from "../../lib/native/binding.ts"
import { loadAddon } from "../../lib/native/load.ts"
import { isRoot } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { describeTree, makeRootTree } from "../support/trees.ts"
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

/** Runs a program; what it says on its output. */
function run(program: string, args: readonly string[], input = ""): string {
  return execFileSync(program, args, { input, encoding: "utf8", stdio: ["pipe", "pipe", "pipe"] })
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
    cipher: { type: "gocryptfs", key: contentKey, file },
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

  it("tells where a file lies that is stored as it is, in a fragment or in a block, and of no other", async () => {
    const outer = await addon.openTree({ fd, ...partition, cipher: undefined })
    const config = await outer.read("gocryptfs.conf", 0, 65536)
    const place = await outer.storedAt("gocryptfs.conf")
    assert.ok(place !== undefined)
    const stored = vector("peer/gocryptfs-rsa2048.sif").subarray(partition.offset + place)
    assert.deepEqual(stored.subarray(0, config.length), config)
    assert.equal(await outer.storedAt(file), undefined, "several blocks")
    outer.close()
    const inner = await addon.openTree(peerRange())
    assert.equal(await inner.storedAt("/.singularity.d/env/99-base.sh"), undefined, "compressed")
    await assert.rejects(inner.storedAt("/bin"), { code: "EISDIR" })
    inner.close()
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
    const cipher = { type: "gocryptfs", key: contentKey, file } as const
    const open = (change: object): Promise<NativeTree> =>
      addon.openTree({ ...peerRange(), cipher: { ...cipher, ...change } })
    await assert.rejects(open({ key: Buffer.alloc(32, 7) }), {
      code: "EIO",
      syscall: "gocryptfs_read",
      message: "gocryptfs_read: block 0 is not authentic",
    })
    await assert.rejects(open({ key: Buffer.alloc(31) }), {
      code: "EINVAL",
      syscall: "gocryptfs_open",
    })
    for (const name of ["gocryptfs.con", "", `../${file}`, "."])
      await assert.rejects(open({ file: name }), { code: "EBADMSG", syscall: "squashfs_open" }, name)
    // The configuration is no encrypted file.
    await assert.rejects(open({ file: "gocryptfs.conf" }), { code: "EBADMSG", syscall: "gocryptfs_open" })
  })

  describe("that it writes", () => {
    const password = "0123456789abcdef0123456789abcdef"
    const offset = 8192
    /** Later than every file, so that their times stay as they are. */
    const EPOCH = 4_000_000_000
    const source = makeRootTree()
    let cipher: NativeGocryptfsBuild
    let built: NativeRange
    const descriptors: number[] = []
    const build = async (name: string, from: NativeBuild["source"]): Promise<NativeRange> => {
      const target = openSync(path.join(folder, name), "w+")
      descriptors.push(target)
      const { size } = await addon.buildTree(
        {
          source: from,
          fd: target,
          offset,
          cipher,
          compression: "gzip",
          level: 6,
          blockSize: 131072,
          threads: 0,
          owner: { uid: 0, gid: 0 },
          sourceDateEpoch: EPOCH,
          exclude: [],
          trailer: undefined,
        },
        () => true,
      )
      return { fd: target, offset, size, cipher }
    }

    before(async () => {
      // gocryptfs itself draws the master key.
      const initial = newFolder("gocryptfs-init")
      run("gocryptfs", ["-init", "-quiet", "-plaintextnames", "-scryptn", "10", initial], `${password}\n`)
      const config = readFileSync(path.join(initial, "gocryptfs.conf"))
      const key = contentKeyOf(config, Buffer.from(password))
      cipher = { type: "gocryptfs", key, file: "squashfs-42", config }
      built = await build("built.sif", { directory: source, added: [] })
    })
    after(() => {
      descriptors.forEach((descriptor) => {
        closeSync(descriptor)
      })
    })

    it("are read here", async () => {
      assert.equal(built.size % 4096, 0)
      assert.equal(fstatSync(built.fd).size, offset + built.size)
      const tree = await addon.openTree(built)
      const busybox = readFileSync(path.join(source, "bin", "busybox"))
      assert.ok(busybox.equals(await tree.read("bin/busybox", 0, busybox.length + 1)))
      tree.close()
      const outer = await addon.openTree({ ...built, cipher: undefined })
      const found = await outer.list("/")
      assert.deepEqual(
        found.map(({ name, stat }) => [name.toString(), stat.mode.toString(8), stat.uid, stat.mtime]),
        [
          ["gocryptfs.conf", "400", 0, EPOCH],
          ["squashfs-42", "644", 0, EPOCH],
        ],
      )
      const root = await outer.stat("/", false)
      assert.equal(root.mode, 0o777)
      outer.close()
    })

    it("have the configuration at a multiple of 4096, where one write replaces it", () => {
      const found = Buffer.alloc(cipher.config.length)
      readSync(built.fd, found, 0, found.length, offset + 4096)
      assert.deepEqual(found, cipher.config)
    })

    it("hold nothing readable of what they were built from", async () => {
      const bytes = readFileSync(path.join(folder, "built.sif"))
      assert.equal(bytes.indexOf("hsqs", offset + 4), -1)
      assert.equal(bytes.indexOf("busybox"), -1)
      const again = await build("again.sif", { directory: source, added: [] })
      const other = readFileSync(path.join(folder, "again.sif"))
      assert.equal(again.size, built.size)
      const start = offset + 8192
      assert.notDeepEqual(other.subarray(start, start + 18), bytes.subarray(start, start + 18), "the file ID")
      assert.notDeepEqual(
        other.subarray(start + 18, start + 34),
        bytes.subarray(start + 18, start + 34),
        "an IV",
      )
    })

    it("A40: are what unsquashfs and gocryptfs read", () => {
      const image = path.join(folder, "built.sif")
      const outer = path.join(newFolder("outer"), "outer")
      run("unsquashfs", ["-quiet", "-no-progress", "-offset", String(offset), "-dest", outer, image])
      chmodSync(outer, 0o755)
      assert.deepEqual(readdirSync(outer).sort(), ["gocryptfs.conf", "squashfs-42"])
      const said = run("gocryptfs", ["-fsck", outer], `${password}\n`)
      assert.match(said, /no problems found/)
    })

    it("are mounted by the kernel's squashfs and by gocryptfs", function () {
      if (!isRoot || !existsSync("/dev/fuse")) skip(this, "needs root and /dev/fuse")
      const [outer, decrypted, inner] = ["outer", "decrypted", "inner"].map((name) => newFolder(name))
      assert.ok(outer !== undefined && decrypted !== undefined && inner !== undefined)
      const mounted: string[] = []
      try {
        const loop = `loop,ro,offset=${offset},sizelimit=${built.size}`
        run("mount", ["-t", "squashfs", "-o", loop, path.join(folder, "built.sif"), outer])
        mounted.push(outer)
        run("gocryptfs", ["-quiet", "-ro", outer, decrypted], `${password}\n`)
        mounted.push(decrypted)
        run("mount", ["-t", "squashfs", "-o", "loop,ro", path.join(decrypted, "squashfs-42"), inner])
        mounted.push(inner)
        assert.deepEqual(describeTree(inner, false), describeTree(source, false))
      } finally {
        // gocryptfs ends when its mount has gone, which may be a little later.
        for (const target of mounted.reverse()) run("umount", ["-l", target])
      }
    })

    it("take a squashfs from an image of any kind as it is", async () => {
      const fromPeer = await build("from-peer.sif", { squashfs: peerRange() })
      const [copy, original] = await Promise.all([addon.openTree(fromPeer), addon.openTree(peerRange())])
      assert.deepEqual(await copy.readPlain(0, copy.plainSize), await original.readPlain(0, copy.plainSize))
      copy.close()
      original.close()
    })

    it("are refused where their parts are not possible", async () => {
      const right = cipher
      const wrong: [Partial<NativeGocryptfsBuild>, string][] = [
        [{ config: Buffer.alloc(0) }, "EINVAL"],
        [{ config: Buffer.alloc(65537) }, "EINVAL"],
        [{ key: Buffer.alloc(16) }, "EINVAL"],
        ...["", "a/b", "..", "gocryptfs.conf", "n".repeat(256)].map(
          (name): [Partial<NativeGocryptfsBuild>, string] => [{ file: name }, "EINVAL"],
        ),
      ]
      for (const [change, code] of wrong) {
        cipher = { ...right, ...change }
        await assert.rejects(
          build("wrong.sif", { directory: source, added: [] }),
          { code },
          JSON.stringify(change.file),
        )
      }
      cipher = right
    })
  })
})
