// Our encrypted partitions and cryptsetup's, each opened by the other.
import assert from "node:assert/strict"
import { createDecipheriv } from "node:crypto"
import { closeSync, openSync, readFileSync, readSync, statSync, truncateSync, writeFileSync } from "node:fs"
import path from "node:path"
import { unlockLuks } from "../../lib/device/luks.ts"
import { parseLuksHeader } from "../../lib/device/luks-header.ts"
import { open, sif, unmount, type OpenOptions } from "../../lib/index.ts"
import { partitionExtra } from "../../lib/sif/format.ts"
import { SifLayout } from "../../lib/sif/write.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import {
  assertSettles,
  buildImage,
  cheapImageForBoth,
  collect,
  describeRoot,
  imageForBoth,
  kernelState,
  loadModule,
  mountPoint,
  needsDeviceMapper,
  output,
  rootPartition,
  rootTree,
  type KernelState,
  unwrappedSecret,
  withLoop,
  withPassphrase,
} from "./guest.ts"

const SECTOR = 4096

describe("cryptsetup", function () {
  let state: KernelState
  let folder: string

  before(function () {
    needsDeviceMapper(this)
    folder = newFolder("cryptsetup")
    writeFileSync(path.join(folder, "passphrase"), passphrase)
    state = kernelState()
  })
  afterEach(async () => {
    await assertSettles(state)
  })

  /** The volume key and where the data lies, as this package finds them. */
  async function unlocked(
    image: string,
    secret: Buffer,
  ): Promise<{ readonly volumeKey: Buffer; readonly offset: number; readonly size: number }> {
    await using opened = await sif.openSif(image)
    const partition = opened.primary()
    const header = await parseLuksHeader(opened.reader, partition)
    const { volumeKey } = await unlockLuks({ fd: opened.fd, offset: partition.offset, header, secret })
    assert.equal(header.segment.sectorSize, SECTOR)
    return { volumeKey, offset: partition.offset + header.segment.offset, size: header.segment.size }
  }

  /** Decrypted by Node, sector by sector. */
  function decrypted(image: string, key: Buffer, offset: number, size: number): Buffer {
    const fd = openSync(image, "r")
    const plain = Buffer.alloc(size)
    try {
      readSync(fd, plain, 0, size, offset)
      for (let at = 0; at < size; at += SECTOR) {
        const tweak = Buffer.alloc(16)
        tweak.writeBigUInt64LE(BigInt(at / 512))
        const decipher = createDecipheriv("aes-256-xts", key, tweak)
        decipher.update(plain.subarray(at, at + SECTOR)).copy(plain, at)
      }
      return plain
    } finally {
      closeSync(fd)
    }
  }

  it("knows our partition for LUKS2, and says of it what we wrote", async () => {
    const image = await imageForBoth()
    await withLoop(image, await rootPartition(image), (device) => {
      output("cryptsetup", ["isLuks", "--type", "luks2", device])
      const dump = output("cryptsetup", ["luksDump", device])
      assert.match(dump, /cipher: aes-xts-plain64\n\s*sector: 4096 \[bytes\]/)
      assert.match(dump, /0: luks2\n\s*Key:\s+512 bits\n[^]*?PBKDF:\s+pbkdf2/)
      assert.match(
        dump,
        /1: luks2\n\s*Key:\s+512 bits\n[^]*?PBKDF:\s+argon2id\n\s*Time cost:\s*4\n\s*Memory:\s*262144/,
      )
    })
  })

  it("opens our partition with the unwrapped RSA secret, to the bytes that we decrypt", async () => {
    const image = await imageForBoth()
    const secret = await unwrappedSecret(image, testKeys().privateKey)
    const secretFile = path.join(folder, "secret")
    writeFileSync(secretFile, secret)
    const { volumeKey, offset, size } = await unlocked(image, secret)
    await withLoop(image, await rootPartition(image), (device) => {
      output("cryptsetup", ["open", "--readonly", "--key-file", secretFile, device, "theirs"])
      try {
        const theirs = readFileSync("/dev/mapper/theirs")
        assert.ok(theirs.equals(decrypted(image, volumeKey, offset, size)))
        assert.equal(theirs.toString("latin1", 0, 4), "hsqs")
      } finally {
        output("cryptsetup", ["close", "theirs"])
      }
    })
  })

  it("opens our partition with the passphrase, whose Argon2 it has to compute", async () => {
    const image = await imageForBoth()
    await withLoop(image, await rootPartition(image), (device) => {
      const key = ["--key-file", path.join(folder, "passphrase")]
      output("cryptsetup", ["open", "--test-passphrase", "--key-slot", "1", ...key, device])
    })
  })

  it("adds a keyslot to our partition that opens here", async () => {
    await using opened = await open(await cheapImageForBoth(), withPassphrase)
    const point = mountPoint()
    await using mount = await opened.mount(point, { engine: "kernel" })
    assert.equal(mount.info.engine, "kernel")
    assert.deepEqual(describeRoot(point), describeRoot(rootTree()))
  })

  /** An image around a partition that cryptsetup formats and fills. */
  async function makeImage(...format: readonly string[]): Promise<string> {
    const plain = await buildImage([])
    const { offset, size } = await rootPartition(plain)
    const squashfs = readFileSync(plain).subarray(offset, offset + size)
    const key = ["--key-file", path.join(folder, "passphrase")]
    const partition = path.join(newFolder("made"), "partition")
    writeFileSync(partition, "")
    truncateSync(partition, (1 << 20) + Math.ceil(size / SECTOR) * SECTOR)
    const kdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    const area = ["--luks2-metadata-size", "16k", "--offset", "2048"]
    output("cryptsetup", [
      ...["luksFormat", "--batch-mode", "--type", "luks2", ...kdf, ...area, ...key],
      ...format,
      partition,
    ])
    await withLoop(
      partition,
      { offset: 0, size: statSync(partition).size },
      (device) => {
        output("cryptsetup", ["open", ...key, device, "filled"])
        try {
          writeFileSync("/dev/mapper/filled", squashfs, { flag: "r+" })
        } finally {
          output("cryptsetup", ["close", "filled"])
        }
      },
      true,
    )
    const data = readFileSync(partition)
    const layout = new SifLayout(1_700_000_000)
    const start = layout.next(4096)
    const { encryptedSquashfs } = sif.FileSystem
    const extra = partitionExtra({
      fileSystem: encryptedSquashfs,
      type: sif.PartitionType.primarySystem,
      arch: "02",
    })
    layout.add({ type: sif.DataType.partition, extra }, data.length, 4096)
    const image = path.join(path.dirname(partition), "image.sif")
    const bytes = Buffer.alloc(start + data.length)
    layout.serialize("02").copy(bytes)
    data.copy(bytes, start)
    writeFileSync(image, bytes)
    return image
  }

  async function assertMounts(image: string, options: OpenOptions): Promise<void> {
    await using opened = await open(image, options)
    const point = mountPoint()
    await opened.mount(point, { engine: "kernel", detached: true })
    try {
      assert.deepEqual(describeRoot(point), describeRoot(rootTree()))
    } finally {
      await unmount(point)
    }
  }

  for (const [name, format] of [
    ["512-byte sectors and a key of 256 bits", ["--sector-size", "512", "--key-size", "256"]],
    ["sectors of 4096 bytes", ["--sector-size", "4096", "--key-size", "512"]],
  ] as const)
    it(`makes partitions that open here on both engines: ${name}`, async () => {
      const image = await makeImage("--cipher", "aes-xts-plain64", ...format)
      await assertMounts(image, withPassphrase)
      await using opened = await open(image, withPassphrase)
      assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
    })

  for (const [cipher, module] of [
    ["serpent-xts-plain64", "serpent_generic"],
    ["aes-cbc-essiv:sha256", "essiv"],
  ] as const)
    it(`S25: with ${cipher} makes partitions that open only with leave, and only in the kernel`, async function () {
      if (!loadModule(module)) skip(this, `the guest's kernel has no module ${module}`)
      const image = await makeImage("--cipher", cipher, "--key-size", "256")
      await assert.rejects(open(image, withPassphrase), {
        code: "ERR_LUKS_UNSUPPORTED",
        message: new RegExp(cipher),
      })
      const allowed: OpenOptions = { ...withPassphrase, allowCipher: cipher }
      await using opened = await open(image, allowed)
      for (const use of [
        () => opened.list("/"),
        () => opened.mount(mountPoint(), { engine: "userspace" }),
        () => opened.exec(["/bin/true"], { engine: "userspace" }),
      ])
        await assert.rejects(use, { code: "ERR_ENV_NO_KERNEL_SUPPORT", message: new RegExp(cipher) })
      await assertMounts(image, allowed)
      await using running = await opened.exec(["/bin/cat", "/data/hello"])
      assert.equal(running.engine, "kernel")
      assert.equal(await collect(running.stdout), "hello\n")
      assert.deepEqual(await running.exited, { exitCode: 0 })
    })
})
