// The kernel engine's mounts: loop device, dm-crypt, the kernel's squashfs.
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { lstatSync, readFileSync, readlinkSync, statfsSync } from "node:fs"
import path from "node:path"
import { listMounts, open, unmount, type OpenOptions } from "../../lib/index.ts"
import { packageRoot, runProgram } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { describeTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"
import {
  assertSettles,
  buildImage,
  describeRoot,
  imageForBoth,
  kernelState,
  mountFacts,
  mountPoint,
  needsDeviceMapper,
  output,
  peerKey,
  rootTree,
  type KernelState,
  unpackVector,
  withKey,
  withPassphrase,
} from "./guest.ts"

/** Compares what is below `root` with the lines of a manifest. */
function assertManifest(root: string): void {
  const lines = readFileSync(vectorPath("peer/manifest.txt"), "utf8").trimEnd().split("\n")
  assert.ok(lines.length > 5)
  const found = lines.map((line) => {
    const [kind] = line.split(" ")
    const name = line.split(" ").at(-1) ?? ""
    const file = path.join(root, name)
    if (kind === "L") return `L ${readlinkSync(file)} ${name}`
    const { mode, size } = lstatSync(file)
    const digest = createHash("sha256").update(readFileSync(file)).digest("hex")
    return `F ${digest} ${(mode & 0o7777).toString(8)} ${size} ${name}`
  })
  assert.deepEqual(found, lines)
}

describe("mount with the kernel engine", function () {
  let state: KernelState

  before(function () {
    needsDeviceMapper(this)
  })
  beforeEach(() => {
    state = kernelState()
  })

  async function mounted(
    image: string,
    options: OpenOptions,
    use: (folder: string) => void | Promise<void>,
  ): Promise<void> {
    const folder = mountPoint()
    {
      await using opened = await open(image, options)
      const mount = await opened.mount(folder, { engine: "kernel", detached: true })
      assert.equal(mount.info.engine, "kernel")
    }
    try {
      await use(folder)
    } finally {
      await unmount(folder)
    }
    await assertSettles(state)
  }

  for (const [name, options] of [
    ["luks-rsa2048.sif", { unlock: [{ key: { file: peerKey } }] }],
    ["plain.sif", {}],
  ] as const) {
    it(`shows the peer's ${name} as its manifest says, and as user space reads it`, async () => {
      const image = unpackVector(`peer/${name}`)
      const extracted = path.join(newFolder("extracted"), "tree")
      {
        await using opened = await open(image, options)
        await opened.extract(extracted)
      }
      await mounted(image, options, (folder) => {
        assertManifest(folder)
        assert.deepEqual(describeTree(folder), describeTree(extracted))
      })
    })
  }

  it("S7: mounts squashfs read-only, nosuid and nodev, and lists the mount", async () => {
    const image = await buildImage(["rsa"])
    await mounted(image, withKey, async (folder) => {
      const facts = mountFacts(folder)
      assert.equal(facts?.type, "squashfs")
      for (const flag of ["ro", "nosuid", "nodev"]) assert.ok(facts.flags.includes(flag), flag)
      assert.equal(statfsSync(folder).type, 0x73717368)
      assert.deepEqual(await listMounts(), [{ image, target: folder, engine: "kernel", pid: undefined }])
    })
    assert.deepEqual(await listMounts(), [])
  })

  it("opens one image for its RSA key and for its passphrase", async () => {
    const image = await imageForBoth()
    for (const options of [withKey, withPassphrase])
      await mounted(image, options, (folder) => {
        assert.deepEqual(describeRoot(folder), describeRoot(rootTree()))
      })
  })

  for (const name of ["gzip", "lz4", "xz"] as const)
    it(`reads what was compressed with ${name}`, async () => {
      const image = await buildImage(["rsa"], { compression: { name } })
      await mounted(image, withKey, (folder) => {
        assert.deepEqual(describeRoot(folder), describeRoot(rootTree()))
      })
    })

  it("takes a mount that is not detached away with its process, even a killed one", async () => {
    const image = await buildImage([])
    const point = mountPoint()
    const program = `
      import { readFileSync } from "node:fs"
      import { open } from ${JSON.stringify(path.join(packageRoot, "dist", "index.js"))}
      const [image, folder] = process.argv.slice(1)
      const opened = await open(image)
      await opened.mount(folder, { engine: "kernel" })
      console.log(readFileSync(folder + "/data/hello", "utf8").trim())
      process.kill(process.pid, "SIGKILL")`
    const { signal, text, stderr } = await runProgram(
      [process.execPath, "--input-type=module", "--eval", program, image, point],
      { as: "self" },
    )
    assert.equal(signal, "SIGKILL", stderr)
    assert.equal(text, "hello\n")
    await assertSettles(state)
  })

  it("follows a mount that somebody else unmounts", async () => {
    const point = mountPoint()
    await using opened = await open(await buildImage([]))
    await opened.mount(point, { engine: "kernel" })
    output("umount", [point])
    await assertSettles(state)
  })
})
