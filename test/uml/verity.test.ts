// Signed hash trees with the kernel engine: dm-verity, below dm-crypt where the image is encrypted.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import {
  closeSync,
  copyFileSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { build, open, unmount, type OpenOptions } from "../../lib/index.ts"
import { testKeys } from "../support/keys.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { describeTree, makeRootTree } from "../support/trees.ts"
import { bySigner, flipBit, flipBlocks, placesOf, signWithTree } from "../support/verity.ts"
import {
  assertSettles,
  kernelState,
  loadModule,
  mountFacts,
  mountPoint,
  needsDeviceMapper,
  output,
  type KernelState,
} from "./guest.ts"

const random = seeded()

const kills = Number(process.env["SIFCRYPT_KILLS"] ?? 3)
/** A mount takes about so long here. */
const mountMs = 600

/** The mapping below a mount that has this target, as MAJOR:MINOR. */
function mappingBelow(folder: string, target: string): string {
  const { dev } = statSync(folder)
  let device = `${Math.floor(dev / 256)}:${dev % 256}`
  for (;;) {
    const table = output("dmsetup", [
      "table",
      "--major",
      device.split(":")[0] ?? "",
      "--minor",
      device.split(":")[1] ?? "",
    ])
    if (table.split(" ")[2] === target) return device
    const [slave = ""] = readdirSync(`/sys/dev/block/${device}/slaves`)
    device = readFileSync(`/sys/class/block/${slave}/dev`, "utf8").trim()
  }
}

describe("hash trees with the kernel engine", function () {
  this.timeout(300_000)
  let state: KernelState
  let tree: string
  const images: Record<"luks" | "plain", string> = { luks: "", plain: "" }
  const options: () => OpenOptions = () => ({
    unlock: [{ key: { file: testKeys().privateKey } }],
    verify: bySigner(),
  })

  before(async function () {
    needsDeviceMapper(this)
    assert.ok(loadModule("dm-verity"), "the guest's kernel has dm-verity")
    tree = makeRootTree()
    writeFileSync(path.join(tree, "data", "random"), randomBytes(6 << 20))
    const folder = newFolder("verity")
    for (const kind of ["luks", "plain"] as const) {
      images[kind] = path.join(folder, `${kind}.sif`)
      const options = kind === "luks" ? { recipients: [{ key: { file: testKeys().publicKey } }] } : {}
      await build({ output: images[kind], source: tree, ...options })
      await signWithTree(images[kind])
    }
  })
  beforeEach(() => {
    state = kernelState()
  })

  function copyOf(kind: "luks" | "plain"): string {
    const file = path.join(newFolder("copy"), `${kind}.sif`)
    copyFileSync(images[kind], file)
    return file
  }

  async function mountOf(image: string): Promise<string> {
    const folder = mountPoint()
    await using opened = await open(image, options())
    const mount = await opened.mount(folder, { engine: "kernel", detached: true })
    assert.equal(mount.info.engine, "kernel")
    return folder
  }

  for (const kind of ["luks", "plain"] as const) {
    it(`shows the tree through dm-verity, and leaves nothing: ${kind}`, async () => {
      const folder = await mountOf(images[kind])
      try {
        assert.equal(mountFacts(folder)?.type, "squashfs")
        assert.match(mappingBelow(folder, "verity"), /^\d+:\d+$/)
        assert.deepEqual(describeTree(folder), describeTree(tree))
      } finally {
        await unmount(folder)
      }
      await assertSettles(state)
    })

    it(`reports each of 1,000 bits that were turned over, and nothing else: ${kind}`, async () => {
      const image = copyOf(kind)
      const { partition } = await placesOf(image)
      const folder = await mountOf(image)
      try {
        const [major = "", minor = ""] = mappingBelow(folder, "verity").split(":")
        const node = path.join(newFolder("node"), "verity")
        execFileSync("mknod", [node, "b", major, minor])
        const flipped = flipBlocks(image, partition, 1000)
        const found = new Set<number>()
        const fd = openSync(node, "r")
        try {
          const block = Buffer.alloc(4096)
          for (let index = 0; index < partition.size / 4096; index++)
            try {
              assert.equal(readSync(fd, block, 0, 4096, index * 4096), 4096)
            } catch (error) {
              assert.equal((error as NodeJS.ErrnoException).code, "EIO")
              found.add(index)
            }
        } finally {
          closeSync(fd)
        }
        assert.deepEqual(
          [...found].sort((a, b) => a - b),
          [...flipped].sort((a, b) => a - b),
        )
        assert.match(output("dmesg", []), /device-mapper: verity: .*data block \d+ is corrupted/)
      } finally {
        await unmount(folder)
      }
      await assertSettles(state)
    })

    it(`gives EIO for a file whose block was changed, and refuses a changed superblock: ${kind}`, async () => {
      const image = copyOf(kind)
      const { partition } = await placesOf(image)
      const start = kind === "luks" ? 4 << 20 : 0
      const middle = partition.offset + start + Math.floor((partition.size - start) / 2)
      flipBit(image, middle)
      const folder = await mountOf(image)
      try {
        assert.throws(() => readFileSync(path.join(folder, "data", "random")), { code: "EIO" })
        assert.equal(readFileSync(path.join(folder, "data", "hello"), "utf8"), "hello\n")
      } finally {
        await unmount(folder)
      }
      flipBit(image, middle)
      flipBit(image, partition.offset + start + 8)
      await assert.rejects(mountOf(image), /mount|block \d+ was changed/)
      await assertSettles(state)
    })
  }

  it(`killed while it mounts, ${kills} times: nothing is left that was not reported`, async () => {
    await using opened = await open(images.luks, options())
    for (let i = 0; i < kills; i++) {
      const point = mountPoint()
      const ended = opened.mount(point, { engine: "kernel", detached: true }).then(
        () => true,
        () => false,
      )
      await sleep(random(mountMs))
      for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name)))
        try {
          // The starter and not its watchdogs, which are its children and look like it.
          const ours = readFileSync(`/proc/${pid}/status`, "utf8").includes(`\nPPid:\t${process.pid}\n`)
          if (ours && readFileSync(`/proc/${pid}/cmdline`, "utf8").startsWith("sifcrypt-starter\0mount"))
            process.kill(Number(pid), "SIGKILL")
        } catch {
          // It has ended meanwhile.
        }
      if ((await ended) && mountFacts(point) !== undefined) await unmount(point)
      await assertSettles(state)
    }
  })

  it("leaves it to user space where the kernel has no dm-verity", async () => {
    execFileSync("rmmod", ["dm_verity"])
    try {
      const folder = mountPoint()
      await using opened = await open(images.luks, options())
      await assert.rejects(opened.mount(folder, { engine: "kernel" }), {
        code: "ERR_ENV_NO_KERNEL_SUPPORT",
        message: /no dm-verity/,
      })
      {
        await using mount = await opened.mount(folder, { engine: "auto" })
        assert.equal(mount.info.engine, "userspace")
        assert.equal(readFileSync(path.join(folder, "data", "hello"), "utf8"), "hello\n")
      }
    } finally {
      assert.ok(loadModule("dm-verity"))
    }
    await assertSettles(state)
  })
})
