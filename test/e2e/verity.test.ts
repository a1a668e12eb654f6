// Images whose root file system is verified block by block when it is read: `sign --tree`, and `--verify` on what is signed so.
import assert from "node:assert/strict"
import { generateKeyPairSync, randomBytes } from "node:crypto"
import {
  closeSync,
  copyFileSync,
  ftruncateSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import path from "node:path"
import { build, open, sif, sign, verify, type ContainerError } from "../../lib/index.ts"
import { readStored } from "../../lib/device/verity.ts"
import { readVerity } from "../../lib/signing/verity.ts"
import { packageRoot, runProgram, sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { mountsIn } from "../support/processes.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { describeTree, makeRootTree } from "../support/trees.ts"
import {
  bySigner,
  flipBit,
  flipBlocks,
  placesOf,
  signAsItIs,
  signWithTree,
  testSigner,
} from "../support/verity.ts"

const random = seeded()

const keys = testKeys()
const credentials = [{ key: { file: keys.privateKey } }]
const folder = newFolder("verity", userId)
const rootTree = makeRootTree()
// What does not compress, so that there are blocks to change.
writeFileSync(path.join(rootTree, "data", "random"), randomBytes(6 << 20))
const images = {
  luks: path.join(folder, "luks.sif"),
  gocryptfs: path.join(folder, "gocryptfs.sif"),
  plain: path.join(folder, "plain.sif"),
}
type Kind = keyof typeof images
const kinds = Object.keys(images) as Kind[]
const keyFlags = ["--pem-path", keys.privateKey]
const verifyFlags = (): string[] => ["--verify", "--signer-key", testSigner().file]

function copyOf(image: string, name: string): string {
  const file = path.join(folder, name)
  copyFileSync(image, file)
  return file
}

const TABLE = 4096
const RECORD = 585
/** In a descriptor: link, offset, size, extra area. */
const [LINK, OFFSET, SIZE, EXTRA] = [13, 17, 25, 201]

/** Writes into the descriptor of an object. */
function patchRecord(file: string, id: number, at: number, bytes: Uint8Array): void {
  const fd = openSync(file, "r+")
  try {
    writeSync(fd, bytes, 0, bytes.length, TABLE + (id - 1) * RECORD + at)
  } finally {
    closeSync(fd)
  }
}

function int64(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigInt64LE(BigInt(value))
  return bytes
}

/** Makes the last object of an image, its root file system, longer, by a hole. */
async function makeLarge(file: string, size: number): Promise<void> {
  await using opened = await sif.openSif(file)
  const { id, offset } = opened.primary()
  const fd = openSync(file, "r+")
  try {
    ftruncateSync(fd, offset + size)
  } finally {
    closeSync(fd)
  }
  patchRecord(file, id, SIZE, int64(size))
}

const packageDocs = path.join(packageRoot, "docs")
const invalid = (message: RegExp) => ({ code: "ERR_SIGNATURE_INVALID", message })

describe("an image with a signed hash tree", () => {
  before(async () => {
    await build({ output: images.luks, source: rootTree, recipients: [{ key: { file: keys.publicKey } }] })
    await build({
      output: images.gocryptfs,
      source: rootTree,
      format: "gocryptfs",
      recipients: [{ key: { file: keys.publicKey } }],
    })
    await build({ output: images.plain, source: rootTree })
    for (const image of Object.values(images)) await signWithTree(image)
  })

  for (const kind of kinds) {
    it(`is verified, opened and read: ${kind}`, async () => {
      const report = await verify(images[kind], bySigner())
      assert.deepEqual([report.verified, report.failures], [true, []])
      const { tree } = await placesOf(images[kind])
      assert.equal(tree.offset % 4096, 0)
      assert.equal(tree.name, "sifcrypt-verity")
      assert.ok(report.signatures[0]?.objects.includes(tree.id))
      const target = path.join(newFolder("verity-out", userId), "tree")
      await sifcryptOk(["extract", ...verifyFlags(), ...keyFlags, images[kind], target])
      assert.deepEqual(describeTree(target, false), describeTree(rootTree, false))
    })

    it(`reports each of 1,000 bits that were turned over, and nothing else: ${kind}`, async () => {
      const image = copyOf(images[kind], `flipped-${kind}.sif`)
      const { partition } = await placesOf(image)
      const flipped = flipBlocks(image, partition, 1000)
      await using opened = await sif.openSif(image)
      const { tree } = await placesOf(image)
      const verity = readVerity(opened, partition, tree)
      assert.ok(typeof verity !== "string")
      const { offset, size } = partition
      const range = { fd: opened.fd, offset, size, cipher: undefined, verity }
      const found = new Set<number>()
      for (let block = 0; block < partition.size / 4096; block++) {
        await readStored(range, block * 4096, 4096, image).catch((error: unknown) => {
          assert.equal((error as ContainerError).code, "ERR_SIGNATURE_INVALID")
          assert.match(
            (error as Error).message,
            new RegExp(`block ${block} was changed since it was signed$`),
          )
          found.add(block)
        })
      }
      assert.deepEqual([...found].sort(), [...flipped].sort())
      const report = await verify(image, bySigner())
      assert.ok(
        report.failures.some(
          ({ object, reason }) => object === partition.id && /data was changed/.test(reason),
        ),
      )
    })

    it(`is refused, or its files cannot be read, with a bit turned over anywhere that is read: ${kind}`, async () => {
      const image = copyOf(images[kind], `file-${kind}.sif`)
      const { partition } = await placesOf(image)
      let refused = 0
      for (let i = 0; i < 25; i++) {
        const at = partition.offset + random(partition.size)
        flipBit(image, at, i % 8)
        try {
          await using opened = await open(image, { unlock: credentials, verify: bySigner() })
          for (const { path: inside, type } of await opened.list("/", { recursive: true }))
            if (type === "file") await opened.readFile(inside)
        } catch (error) {
          assert.equal((error as ContainerError).code, "ERR_SIGNATURE_INVALID", String(error))
          assert.match((error as Error).message, /block \d+ was changed/)
          refused++
        } finally {
          flipBit(image, at, i % 8)
        }
      }
      // What nobody reads, unused keyslots and padding, hides the rest.
      assert.ok(refused > 0, String(refused))
    })
  }

  it("checks header and keyslots before any key is used, and with the right error", async () => {
    const image = copyOf(images.luks, "header.sif")
    const { partition } = await placesOf(image)
    // The metadata's text, its second copy, and the first keyslot's area.
    for (const at of [4096 + 10, 16384 + 4096 + 10, 32768 + 10]) {
      flipBit(image, partition.offset + at)
      await assert.rejects(
        open(image, { unlock: credentials, verify: bySigner() }),
        invalid(new RegExp(`block ${Math.floor(at / 4096)} was changed`)),
        String(at),
      )
      flipBit(image, partition.offset + at)
    }
    await (await open(image, { unlock: credentials, verify: bySigner() })).close()
  })

  it("gives EIO where it is mounted, and says once which block", async () => {
    const image = copyOf(images.plain, "mounted.sif")
    const { partition } = await placesOf(image)
    const middle = Math.floor(partition.size / 4096 / 2)
    flipBit(image, partition.offset + middle * 4096 + 99)
    const command = ["cat /data/random /data/random >/dev/null; cat /data/hello"]
    const args = ["exec", "--engine", "userspace", ...verifyFlags(), image, "sh", "-c", ...command]
    const ran = await sifcrypt(args, { as: "user" })
    assert.equal(ran.text, "hello\n", ran.stderr)
    assert.match(ran.stderr, /cat: read error: I\/O error|Input\/output error/)
    const told = ran.stderr.split("\n").filter((line) => line.startsWith("sifcrypt: block"))
    assert.deepEqual(told, [`sifcrypt: block ${middle} was changed since it was signed`])
  })

  for (const as of ["nobody", "self"] as const)
    it(`is mounted and run as any other by ${as === "self" ? "root" : "an ordinary user"}`, async () => {
      const target = newFolder("verity-mount", as === "nobody" ? 65534 : undefined)
      const flags = ["--engine", "userspace", ...verifyFlags(), ...keyFlags]
      await sifcryptOk(["mount", ...flags, images.luks, target], { as })
      try {
        const seen = await runProgram(["cat", path.join(target, "data", "random")], { as })
        assert.deepEqual(seen.stdout, readFileSync(path.join(rootTree, "data", "random")))
      } finally {
        await sifcryptOk(["unmount", target], { as })
      }
      assert.deepEqual(mountsIn(target), [])
      const ran = await sifcrypt(["exec", ...flags, images.luks, "cat", "/data/hello"], { as })
      assert.deepEqual([ran.status, ran.text], [0, "hello\n"], ran.stderr)
    })

  it("is signed by the command, by several signers, with one tree", async () => {
    const image = copyOf(images.plain, "cosigned.sif")
    const before = (await placesOf(image)).tree
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" })
    const file = path.join(folder, "second.pem")
    writeFileSync(file, privateKey.export({ type: "pkcs8", format: "pem" }), { mode: 0o644 })
    const signed = await sifcryptOk(["sign", "--tree", "--key", file, image], { as: "self" })
    assert.match(signed.text, /of group 1: objects 1, 2\n/)
    assert.deepEqual((await placesOf(image)).tree.record, before.record)
    for (const key of [testSigner().publicKey, publicKey])
      await (await open(image, { verify: { keys: [key], require: "any" } })).close()
  })

  it("gets a new tree where the old one is of something else", async () => {
    const image = copyOf(images.plain, "resigned.sif")
    const { partition, tree } = await placesOf(image)
    flipBit(image, partition.offset + partition.size - 1)
    await signWithTree(image)
    const places = await placesOf(image)
    assert.notDeepEqual(places.tree.extra, tree.extra)
    await using opened = await sif.openSif(image)
    assert.equal(opened.objects.filter(({ name }) => name === "sifcrypt-verity").length, 1)
    assert.equal((await verify(image, { ...bySigner(), require: "any" })).verified, true)
  })

  it("is hashed as a whole where a signature does not cover the tree", async () => {
    const image = path.join(folder, "whole.sif")
    await build({ output: image, source: rootTree })
    await signAsItIs(image)
    const { offset, size } = await (async () => {
      await using opened = await sif.openSif(image)
      return opened.primary()
    })()
    await (await open(image, { verify: bySigner() })).close()
    flipBit(image, offset + size - 1)
    await assert.rejects(open(image, { verify: bySigner() }), invalid(/its data was changed/))
    // One with a tree, of which a signature of single objects says nothing.
    const single = copyOf(images.plain, "single.sif")
    const { partition } = await placesOf(single)
    flipBit(single, partition.offset + partition.size - 1)
    await assert.rejects(
      open(single, { verify: { ...bySigner(), objects: [partition.id] } }),
      invalid(/its data was changed/),
    )
  })

  it("cannot be made for what is signed in part, and loses its tree when it is converted", async () => {
    await assert.rejects(
      sign(copyOf(images.plain, "part.sif"), { key: testSigner().privateKey }, { tree: true, objects: [1] }),
      { code: "ERR_SIGNATURE_TREE", message: /not signed as a whole/ },
    )
    const plain = path.join(folder, "decrypted.sif")
    await sifcryptOk(["decrypt", ...verifyFlags(), ...keyFlags, images.luks, plain])
    await using opened = await sif.openSif(plain)
    assert.ok(opened.objects.every(({ name }) => name !== "sifcrypt-verity"))
  })

  it("opens without reading what it does not need: an image of 2 GiB", async function () {
    this.timeout(120_000)
    const image = path.join(folder, "large.sif")
    await build({ output: image, source: path.join(packageDocs) })
    await makeLarge(image, 2 ** 31 + 2 ** 20)
    await signWithTree(image)
    const pem = testSigner().file
    const script = `
      import { open } from ${JSON.stringify(path.join(packageRoot, "dist", "index.js"))}
      import { readFileSync } from "node:fs"
      const io = () => Number(/^rchar: (\\d+)$/m.exec(readFileSync("/proc/self/io", "utf8"))[1])
      const before = io()
      const image = await open(process.argv[1], { verify: { keyPaths: [process.argv[2]] } })
      const text = await image.readFile("/format.md")
      const read = io() - before
      // Not maxRSS, which knows the program that was there before this one.
      const peak = Number(/^VmHWM:\\s*(\\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024
      console.log(JSON.stringify({ read, size: text.length, peak }))
      await image.close()`
    const ran = await runProgram([process.execPath, "--input-type=module", "--eval", script, image, pem], {
      as: "self",
    })
    const { read, size, peak } = JSON.parse(ran.text) as { read: number; size: number; peak: number }
    assert.equal(size, statSync(path.join(packageDocs, "format.md")).size)
    // The modules of the program, which it also reads, are larger than what it reads of the image.
    assert.ok(read < 8 << 20, `${read} bytes were read`)
    assert.ok(peak < 160 << 20, `${peak} bytes of memory`)
  })
})

describe("a hash tree that is wrong", () => {
  let base: string
  let partitionSize: number
  let treeSize: number
  let number = 0

  before(async () => {
    base = path.join(folder, "base.sif")
    await build({ output: base, source: rootTree })
    await signWithTree(base)
    const { partition, tree } = await placesOf(base)
    partitionSize = partition.size
    treeSize = tree.size
    assert.ok(treeSize > 2 * 4096)
  })

  const fresh = (): string => copyOf(base, `wrong-${++number}.sif`)

  /** A copy whose signer has signed what `change` makes of it. */
  async function signedAfter(change: (file: string) => void | Promise<void>): Promise<string> {
    const file = fresh()
    await sif.deleteObject(file, 3)
    await change(file)
    await signAsItIs(file)
    return file
  }

  async function assertRefused(file: string, message: RegExp): Promise<void> {
    await assert.rejects(open(file, { verify: bySigner() }), invalid(message))
    const report = await verify(file, bySigner())
    assert.equal(report.verified, false)
    const listed = await sifcrypt(["ls", ...verifyFlags(), file], { as: "self" })
    assert.equal(listed.status, 26, listed.stderr)
    assert.match(listed.stderr, message)
  }

  const extra =
    (at: number, bytes: readonly number[]) =>
    (file: string): void => {
      patchRecord(file, 2, EXTRA + at, Buffer.from(bytes))
    }

  for (const [what, change, message] of [
    ["a version that is not known", extra(16, [2]), /version 2, which is not known/],
    ["the other format of dm-verity", extra(32, [0]), /its format, its block sizes or its salt's size/],
    ["blocks of another size", extra(37, [0x20]), /its format, its block sizes/],
    ["a salt of another size", extra(44, [16]), /its salt's size/],
    ["another algorithm", extra(48, [0x53]), /its algorithm is not sha256/],
    ["more in its statement", extra(300, [1]), /more than is known/],
    ["another salt", extra(64, [1, 2, 3, 4]), /not the hash tree that was signed/],
    ["another root", extra(96, [1, 2, 3, 4]), /not the hash tree that was signed/],
    ["the number of another partition", extra(20, [7]), /hash tree of another partition/],
    [
      "the size of another partition",
      extra(25, [0xff]),
      /it is the hash tree of \d+ bytes, the partition has \d+/,
    ],
  ] as const)
    it(`has ${what}`, async () => {
      await assertRefused(await signedAfter(change), message)
    })

  it("is too short, by a block, by a level or by a byte, or too long", async () => {
    for (const size of [treeSize - 4096, 4096, treeSize - 1, treeSize + 4096, 0]) {
      const file = await signedAfter(async (changed) => {
        const { tree } = await placesOf(changed)
        const { size: length } = statSync(changed)
        if (tree.offset + size > length) truncateSync(changed, tree.offset + size)
        patchRecord(changed, 2, SIZE, int64(size))
      })
      await assertRefused(
        file,
        new RegExp(`it has ${size} bytes, the hash tree of the partition has ${treeSize}`),
      )
    }
  })

  it("is one of two", async () => {
    const file = await signedAfter(async (changed) => {
      const { partition, tree } = await placesOf(changed)
      const data = await (async () => {
        await using opened = await sif.openSif(changed)
        return await opened.data(tree, treeSize)
      })()
      const object = {
        type: tree.type,
        group: 1,
        link: { to: "object", id: partition.id } as const,
        extra: tree.extra,
      }
      await sif.addObject(changed, object, data)
    })
    await assertRefused(file, /partition 1 has two hash trees/)
  })

  it("is of other data of the same size, which shows when that is read", async () => {
    const other = path.join(folder, "other.sif")
    copyFileSync(base, other)
    const { partition, tree } = await placesOf(other)
    for (let at = 0; at < partition.size; at += 4096) if (at >= 4096) flipBit(other, partition.offset + at, 1)
    await signWithTree(other)
    const theirs = await placesOf(other)
    const bytes = readFileSync(other).subarray(theirs.tree.offset, theirs.tree.offset + treeSize)
    const file = await signedAfter((changed) => {
      patchRecord(changed, 2, EXTRA, theirs.tree.extra)
      const fd = openSync(changed, "r+")
      writeSync(fd, bytes, 0, bytes.length, tree.offset)
      closeSync(fd)
    })
    const report = await verify(file, bySigner())
    assert.deepEqual(report.failures, [{ object: 2, reason: "it is not the hash tree of partition 1" }])
    await assert.rejects(
      async () => {
        await using opened = await open(file, { verify: bySigner() })
        await opened.readFile("/data/random")
      },
      invalid(/block \d+ was changed/),
    )
  })

  it("is linked to nothing that is there, and the file system is hashed", async () => {
    const file = await signedAfter((changed) => {
      patchRecord(changed, 2, LINK, Buffer.from([9, 0, 0, 0]))
    })
    await (await open(file, { verify: bySigner() })).close()
    const report = await verify(file, bySigner())
    assert.deepEqual(report.failures, [{ object: 2, reason: "it is the hash tree of no object" }])
    flipBit(file, 40_000)
    await assert.rejects(open(file, { verify: bySigner() }), invalid(/its data was changed/))
  })

  it("was changed after it was signed: statement, first block, last block", async () => {
    for (const at of [16, 20, 24, 64, 96, 300]) {
      const file = fresh()
      flipBit(file, TABLE + RECORD + EXTRA + at)
      await assertRefused(file, /object 2: .*its descriptor was changed/)
    }
    const first = fresh()
    const { tree } = await placesOf(first)
    flipBit(first, tree.offset + 5)
    await assertRefused(first, /not the hash tree that was signed/)
    const last = fresh()
    flipBit(last, tree.offset + treeSize - 4096 + 3)
    assert.equal((await verify(last, bySigner())).verified, false)
    const read = async (): Promise<void> => {
      await using opened = await open(last, { verify: bySigner() })
      for (const { path: inside, type } of await opened.list("/", { recursive: true }))
        if (type === "file") await opened.readFile(inside)
    }
    await assert.rejects(read, invalid(/the hash tree was changed/))
  })

  it("was taken away, replaced, or moved over the partition", async () => {
    const gone = fresh()
    await sif.deleteObject(gone, 2, { breakSignatures: true })
    await assert.rejects(open(gone, { verify: bySigner() }), invalid(/it was signed and is not there/))
    const foreign = path.join(folder, "foreign.sif")
    await build({ output: foreign, source: rootTree })
    await signWithTree(foreign)
    const theirs = await placesOf(foreign)
    assert.equal(theirs.tree.size, treeSize)
    const replaced = fresh()
    const { partition, tree } = await placesOf(replaced)
    const bytes = readFileSync(foreign).subarray(theirs.tree.offset, theirs.tree.offset + treeSize)
    const fd = openSync(replaced, "r+")
    writeSync(fd, bytes, 0, bytes.length, tree.offset)
    closeSync(fd)
    await assertRefused(replaced, /not the hash tree that was signed/)
    const over = fresh()
    patchRecord(over, 2, OFFSET, int64(partition.offset + 4096))
    await assert.rejects(open(over, { verify: bySigner() }), { code: "ERR_SIF_OVERLAP" })
    const cut = fresh()
    truncateSync(cut, tree.offset + 100)
    await assert.rejects(open(cut, { verify: bySigner() }), { code: "ERR_SIF_TRUNCATED" })
    assert.ok(partitionSize > 0)
  })
})
