// What was changed in an image encrypted with gocryptfs is an error: every block of it, its length, and what lies around it.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import {
  closeSync,
  cpSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import path from "node:path"
import { Credentials } from "../../lib/encryption/credentials.ts"
import { plainRange, type Unlocked } from "../../lib/encryption/encryption-format.ts"
import { unlockPartition } from "../../lib/encryption/unlock.ts"
import { readGocryptfsLayer } from "../../lib/device/gocryptfs.ts"
import { Tree } from "../../lib/device/tree.ts"
import { ContainerError, type ErrorCode } from "../../lib/errors.ts"
import type { NativeRange } from "../../lib/native/binding.ts"
import { openSif } from "../../lib/sif/open.ts"
import { newFolder } from "../support/scratch.ts"
import { vector, vectorPath } from "./load.ts"

// The format: a header of 18 bytes, then blocks of IV, 4096 bytes and tag.
const headerSize = 18
const blockSize = 4128

const manifest = readFileSync(vectorPath("peer/manifest.txt"), "utf8")
  .trimEnd()
  .split("\n")
  .filter((line) => line.startsWith("F"))
  .map((line) => line.split(" "))
  .map(([, hash, , size, name]) => ({ hash, size: Number(size), name: name ?? "" }))

describe("an image encrypted with gocryptfs", () => {
  const folder = newFolder("gocryptfs-vectors")
  const image = path.join(folder, "image.sif")
  /** What is in the outer squashfs: configuration and encrypted file. */
  const outer = path.join(folder, "outer")
  let unlocked: Unlocked
  /** Its name in there. */
  let inner: string
  let range: NativeRange
  /** Of the encrypted file, and where its bytes lie in the image: pieces of one run each. */
  let ciphertext: Buffer
  let pieces: { readonly from: number; readonly length: number; readonly at: number }[]
  let blocks: number
  let fd = -1

  before(async () => {
    writeFileSync(image, vector("peer/gocryptfs-rsa2048.sif"))
    await using sif = await openSif(image)
    const credentials = new Credentials([{ key: { file: vectorPath("peer/rsa_pri.pem") } }])
    unlocked = await unlockPartition(sif, sif.primary(), credentials, {})
    const { cipher } = unlocked
    assert.ok(cipher.type === "gocryptfs")
    inner = cipher.file
    fd = openSync(image, "r+")
    range = { ...plainRange(sif, sif.primary(), unlocked), fd }
    using tree = await Tree.open({ ...range, cipher: undefined }, image)
    const { size } = await tree.stat(`/${inner}`, false)
    const read: Buffer[] = []
    for (let at = 0; at < size; at += 1 << 20) read.push(await tree.read(`/${inner}`, at, 1 << 20))
    ciphertext = Buffer.concat(read)
    mkdirSync(outer)
    writeFileSync(path.join(outer, inner), ciphertext)
    writeFileSync(path.join(outer, "gocryptfs.conf"), await tree.read("/gocryptfs.conf", 0, 65536))
    blocks = Math.ceil((ciphertext.length - headerSize) / blockSize)
    // Apptainer stores it as it is: whole blocks of squashfs in a row, the rest in a fragment.
    const file = vector("peer/gocryptfs-rsa2048.sif")
    const whole = ciphertext.length - (ciphertext.length % (128 * 1024))
    pieces = [
      { from: 0, length: whole, at: file.indexOf(ciphertext.subarray(0, 4096)) },
      { from: whole, length: ciphertext.length - whole, at: file.indexOf(ciphertext.subarray(whole)) },
    ]
    for (const { from, length, at } of pieces)
      assert.ok(file.subarray(at, at + length).equals(ciphertext.subarray(from, from + length)))
  })
  after(() => {
    closeSync(fd)
    unlocked.dataKey.wipe()
  })

  /** Where a byte of the encrypted file lies in the image. */
  function place(offset: number): number {
    const piece = pieces.find(({ from, length }) => offset >= from && offset < from + length)
    assert.ok(piece !== undefined)
    return piece.at + offset - piece.from
  }

  /** Reads everything: the code of the error, or undefined when every byte was right; wrong bytes fail the test. */
  async function readAll(from: NativeRange): Promise<ErrorCode | undefined> {
    try {
      using tree = await Tree.open(from, image)
      for (const { name, hash, size } of manifest) {
        const content = await tree.read(name, 0, size)
        assert.equal(createHash("sha256").update(content).digest("hex"), hash, name)
      }
      return undefined
    } catch (error) {
      if (error instanceof ContainerError) return error.code
      throw error
    }
  }

  /** Writes bytes of the encrypted file into the image for as long as `use` runs. */
  async function changed<T>(offset: number, bytes: Buffer, use: () => Promise<T>): Promise<T> {
    const put = (content: Buffer): void => {
      for (let i = 0; i < content.length; ) {
        const start = place(offset + i)
        let n = 1
        while (i + n < content.length && place(offset + i + n) === start + n) n++
        writeSync(fd, content, i, n, start)
        i += n
      }
    }
    put(bytes)
    try {
      return await use()
    } finally {
      put(ciphertext.subarray(offset, offset + bytes.length))
    }
  }

  it("A40: is read as its manifest says", async () => {
    assert.equal(await readAll(range), undefined)
  })

  for (const [what, change] of [
    ["in which one bit was changed", (block: Buffer, n: number) => (block[(n * 37) % block.length]! ^= 1 << n % 8)],
    ["that is a hole", (block: Buffer) => block.fill(0)],
  ] as const)
    it(`A40, S6: gives no wrong byte when a block is one ${what}: every block once`, async function () {
      this.timeout(120_000)
      let errors = 0
      for (let n = 0; n < blocks; n++) {
        const start = headerSize + n * blockSize
        const block = Buffer.from(ciphertext.subarray(start, start + blockSize))
        change(block, n)
        const code = await changed(start, block, () => readAll(range))
        assert.ok(code === undefined || code === "ERR_TREE_FORMAT", `block ${n}: ${String(code)}`)
        if (code !== undefined) errors++
      }
      // Only what pads the inner squashfs is never looked at.
      assert.ok(errors >= blocks - 2, `${errors} errors in ${blocks} blocks`)
    })

  it("A40, S6: refuses blocks that were swapped, repeated or taken from another file", async () => {
    const at = (n: number): number => headerSize + n * blockSize
    const block = (n: number): Buffer => ciphertext.subarray(at(n), at(n) + blockSize)
    assert.equal(
      await changed(at(7), Buffer.concat([block(8), block(7)]), () => readAll(range)),
      "ERR_TREE_FORMAT",
    )
    assert.equal(await changed(at(7), block(6), () => readAll(range)), "ERR_TREE_FORMAT")
    assert.equal(await changed(at(7), randomBytes(blockSize), () => readAll(range)), "ERR_TREE_FORMAT")
  })

  it("S6: refuses every changed byte of the file's header", async () => {
    for (let i = 0; i < headerSize; i++) {
      const byte = Buffer.from([ciphertext[i]! ^ 1])
      assert.equal(await changed(i, byte, () => readAll(range)), "ERR_TREE_FORMAT", `byte ${i}`)
    }
    assert.equal(await changed(2, Buffer.alloc(16), () => readAll(range)), "ERR_TREE_FORMAT")
  })

  /** A new outer squashfs of a changed folder. */
  function repacked(change: (folder: string) => void): NativeRange & Disposable {
    const place = newFolder("outer")
    cpSync(outer, place, { recursive: true })
    change(place)
    const squashfs = `${place}.sqfs`
    execFileSync("mksquashfs", [place, squashfs, "-quiet", "-no-progress", "-noappend", "-noD", "-noF"], {
      stdio: "ignore",
    })
    const own = openSync(squashfs, "r")
    return {
      fd: own,
      offset: 0,
      size: statSync(squashfs).size,
      cipher: range.cipher,
      [Symbol.dispose]: () => {
        closeSync(own)
      },
    }
  }

  it("S6: refuses an encrypted file that is cut anywhere in what its squashfs uses", async () => {
    const lengths = [1, 17, 18, 19, 18 + 32, 18 + 33, headerSize + blockSize - 1, headerSize + blockSize]
      .concat([64, 128, 200, blocks - 2].map((n) => headerSize + n * blockSize))
      .concat([64, 200].map((n) => headerSize + n * blockSize + 7))
    for (const length of lengths) {
      using cut = repacked((place) => {
        truncateSync(path.join(place, inner), length)
      })
      assert.equal(await readAll(cut), "ERR_TREE_FORMAT", `${length} bytes`)
    }
  })

  it("S6: refuses an encrypted file with holes", async () => {
    using sparse = repacked((place) => {
      const file = openSync(path.join(place, inner), "r+")
      writeSync(file, Buffer.alloc(256 * 1024), 0, 256 * 1024, 128 * 1024)
      closeSync(file)
    })
    assert.equal(await readAll(sparse), "ERR_TREE_FORMAT")
  })

  const config = (place: string): string => path.join(place, "gocryptfs.conf")
  const encrypted = (place: string): string => path.join(place, inner)
  const edit = (place: string, from: string | RegExp, to: string): void => {
    writeFileSync(config(place), readFileSync(config(place), "utf8").replace(from, to))
  }
  for (const [what, change, code, says] of [
    ["no configuration", (place) => { rmSync(config(place)) }, "ERR_GOCRYPTFS_CONFIG", /has no gocryptfs\.conf/],
    [
      "a configuration that is a link",
      (place) => {
        rmSync(config(place))
        symlinkSync(inner, config(place))
      },
      "ERR_GOCRYPTFS_CONFIG",
      /gocryptfs\.conf is no file but a symlink/,
    ],
    [
      "a configuration of more than 64 KiB",
      (place) => { truncateSync(config(place), 65537) },
      "ERR_GOCRYPTFS_CONFIG",
      /gocryptfs\.conf has 65537 bytes/,
    ],
    ["an empty configuration", (place) => { truncateSync(config(place), 0) }, "ERR_GOCRYPTFS_CONFIG", /malformed/],
    ["no encrypted file", (place) => { rmSync(encrypted(place)) }, "ERR_GOCRYPTFS_CONFIG", /has no file squashfs-/],
    [
      "an empty encrypted file",
      (place) => { truncateSync(encrypted(place), 0) },
      "ERR_GOCRYPTFS_CONFIG",
      /squashfs-\d+ is empty/,
    ],
    [
      "two encrypted files",
      (place) => { linkSync(encrypted(place), path.join(place, "squashfs-2")) },
      "ERR_GOCRYPTFS_CONFIG",
      /several files squashfs-/,
    ],
    [
      "an encrypted file that is a link",
      (place) => {
        rmSync(encrypted(place))
        symlinkSync("/etc/passwd", encrypted(place))
      },
      "ERR_GOCRYPTFS_CONFIG",
      /is no file but a symlink/,
    ],
    [
      "an encrypted file that is a folder",
      (place) => {
        rmSync(encrypted(place))
        mkdirSync(encrypted(place))
      },
      "ERR_GOCRYPTFS_CONFIG",
      /is no file but a directory/,
    ],
    [
      "an encrypted file with an odd name",
      (place) => {
        rmSync(encrypted(place))
        writeFileSync(path.join(place, "squashfs-1\n2"), "x")
      },
      "ERR_GOCRYPTFS_CONFIG",
      /name is malformed/,
    ],
    [
      "another content cipher",
      (place) => { edit(place, '"HKDF"', '"HKDF", "XChaCha20Poly1305"') },
      "ERR_GOCRYPTFS_UNSUPPORTED",
      /"XChaCha20Poly1305"/,
    ],
    ["a costly scrypt", (place) => { edit(place, "65536", "2147483648") }, "ERR_GOCRYPTFS_COST", /KiB of memory/],
  ] as readonly (readonly [string, (place: string) => void, ErrorCode, RegExp])[])
    it(`S6: refuses an outer squashfs with ${what}`, async () => {
      using made = repacked(change)
      const { fd: own, offset, size } = made
      await assert.rejects(
        readGocryptfsLayer({ fd: own, offset, size, cipher: undefined }, "image.sif", {}),
        (error: unknown) => {
          assert.ok(error instanceof ContainerError, String(error))
          assert.equal(error.code, code)
          assert.match(error.message, says)
          return true
        },
      )
    })

  it("S6: reads, or refuses, whatever byte of the outer squashfs was changed", async () => {
    const end = range.offset + range.size
    const byte = Buffer.alloc(1)
    // The superblock, and the tables behind the data.
    const places = [...Array.from({ length: 96 }, (_, i) => range.offset + i)].concat(
      Array.from({ length: 300 }, (_, i) => end - 4096 + i * 13),
    )
    for (const at of places) {
      readSync(fd, byte, 0, 1, at)
      writeSync(fd, Buffer.from([byte[0]! ^ 0x41]), 0, 1, at)
      try {
        const code = await readAll(range)
        assert.ok(code === undefined || /^ERR_TREE_(FORMAT|UNSUPPORTED|NOT_FOUND)$/.test(code), `${at}: ${String(code)}`)
      } finally {
        writeSync(fd, byte, 0, 1, at)
      }
    }
  })
})
