// Codes that no other test names, each provoked the way in which a program meets it.
import assert from "node:assert/strict"
import { chmodSync, closeSync, copyFileSync, openSync, writeFileSync, writeSync } from "node:fs"
import { open as openFile } from "node:fs/promises"
import path from "node:path"
import { claim } from "../../lib/container/instance-state.ts"
import { lockFolder, lockOpenFile } from "../../lib/native/lock.ts"
import type { ErrorCode } from "../../lib/errors.ts"
import {
  build,
  createOverlay,
  keyring,
  open,
  readMetadata,
  sif,
  type CredentialSource,
} from "../../lib/index.ts"
import { planCgroup } from "../../lib/runtime/resources.ts"
import { findProgram } from "../../lib/runtime/program.ts"
import { ringIn } from "../../lib/signing/rings.ts"
import { Told } from "../../lib/runtime/starter-protocol.ts"
import { userId } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

const phrase = (text: string): CredentialSource => ({ passphrase: { bytes: Buffer.from(text) } })

describe("a code that a program can switch on", function () {
  this.timeout(60_000)
  const folder = newFolder("codes")
  const inFolder = (name: string): string => path.join(folder, name)
  const plain = inFolder("plain.sif")
  let tree = ""

  const rejects = async (code: ErrorCode, act: () => Promise<unknown>): Promise<void> => {
    await assert.rejects(async () => await act(), { code })
  }

  /** A definition file on the tree, which ends with `rest`. */
  function definition(
    name: string,
    rest: string,
    header: string = `Bootstrap: localimage\nFrom: ${tree}`,
  ): string {
    const file = inFolder(name)
    writeFileSync(file, `${header}\n${rest}`)
    return file
  }

  before(async () => {
    tree = makeRootTree()
    await build({ output: plain, source: tree })
  })

  it("tells of metadata that is no JSON", async () => {
    const copy = inFolder("metadata.sif")
    copyFileSync(plain, copy)
    const object = { type: sif.DataType.json, name: "inspect-metadata.json", group: 1 }
    await sif.addObject(copy, object, Buffer.from("{ labels"))
    await rejects("ERR_SIF_METADATA", async () => await readMetadata(copy, { parts: ["labels"] }))
  })

  it("tells of what gocryptfs cannot do, and of a wrong passphrase for it", async () => {
    const output = inFolder("gocryptfs.sif")
    const options = { output, source: tree, format: "gocryptfs" } as const
    await rejects("ERR_GOCRYPTFS_RECIPIENTS", async () => {
      await build({ ...options, recipients: [phrase("one"), phrase("another")] })
    })
    await build({ ...options, recipients: [phrase("one")] })
    await rejects("ERR_GOCRYPTFS_PASSPHRASE", async () => await open(output, { unlock: [phrase("another")] }))
  })

  it("tells of a path that is not what was asked for", async () => {
    await using image = await open(plain)
    await rejects("ERR_TREE_TYPE", async () => await image.readFile("/data"))
    await rejects("ERR_TREE_TYPE", async () => await image.list("/data/hello/below"))
    const target = newFolder("target")
    writeFileSync(path.join(target, "data"), "where a folder belongs")
    await rejects("ERR_EXTRACT", async () => await image.extract(target))
  })

  it("tells of a squashfs that is compressed as nobody here can", async () => {
    const copy = inFolder("lzma.sif")
    copyFileSync(plain, copy)
    await using table = await sif.openSif(copy)
    const root = table.objects.find(({ type }) => type === sif.DataType.partition)
    const file = openSync(copy, "r+")
    writeSync(file, Buffer.from([2, 0]), 0, 2, (root?.offset ?? 0) + 20) // s_compression: LZMA
    closeSync(file)
    await rejects("ERR_TREE_UNSUPPORTED", async () => {
      await using image = await open(copy)
      await image.list()
    })
  })

  it("tells of a definition file's agent that is not offered, and of a script that fails", async () => {
    const output = inFolder("defined.sif")
    const agent = definition("agent.def", "", "Bootstrap: zypper\nMirrorURL: http://127.0.0.1/")
    await rejects("ERR_BUILD_AGENT", async () => await build({ output, source: agent }))
    const script = definition("script.def", "%post\n  exit 3\n", `Bootstrap: localimage\nFrom: ${plain}`)
    await rejects("ERR_BUILD_SCRIPT", async () => await build({ output, source: script }))
  })

  it("tells of an overlay that another container uses", async () => {
    const overlay = inFolder("overlay.img")
    await createOverlay({ output: overlay })
    await using image = await open(plain)
    await using file = await openFile(overlay, "r+")
    await using held = await lockOpenFile(file.fd, true)
    assert.ok(held)
    await rejects("ERR_RUN_OVERLAY_BUSY", async () => {
      await image.exec(["true"], { engine: "userspace", overlay: [overlay] })
    })
  })

  describe("of the key ring", () => {
    const newRing = async (name: string): Promise<string> => {
      const ring = path.resolve(folder, name)
      await keyring.newPair({
        folder: ring,
        name: "Ann",
        email: "ann@example.org",
        type: "ed25519",
        plain: true,
      })
      return ring
    }
    const stranger = "ab".repeat(20)

    it("tells of keys that it does not have", async () => {
      const ring = await newRing("ring")
      await rejects("ERR_KEYRING_NO_KEY", async () => {
        await keyring.remove(stranger, { folder: ring })
      })
    })

    it("tells of one that others may read", async () => {
      const ring = await newRing("open-ring")
      chmodSync(ringIn(ring).secretFile, 0o644)
      await rejects("ERR_KEYRING_INSECURE", async () => await keyring.list({ folder: ring, secret: true }))
    })

    it("tells of one that cannot be written, and of one that somebody else writes", async () => {
      await rejects("ERR_KEYRING_WRITE", async () => await newRing("/sys/sifcrypt-ring"))
      const ring = await newRing("held-ring")
      await using held = await lockFolder(ring)
      assert.ok(held)
      await rejects("ERR_KEYRING_BUSY", async () => {
        await keyring.remove(stranger, { folder: ring })
      })
    })
  })

  describe("of instances", () => {
    it("tells of a name that is none, and of one that is taken", async () => {
      await using image = await open(plain)
      await rejects("ERR_INSTANCE_NAME", async () => await image.startInstance("../name"))
      const release = await claim("taken")
      try {
        await rejects("ERR_INSTANCE_EXISTS", async () => await image.startInstance("taken"))
      } finally {
        release()
      }
    })
  })

  describe("of this machine", () => {
    it("tells of a program that is not installed", () => {
      assert.throws(() => findProgram("sifcrypt-no-such-program", "nobody needs it"), {
        code: "ERR_ENV_NO_PROGRAM",
      })
    })

    it("tells of limits that this user cannot set", () => {
      assert.throws(() => planCgroup(userId, "x"), { code: "ERR_ENV_NO_CGROUP" })
    })
  })
})

// What the kernel refuses to root cannot be had from it at will: these are the starter's own words.
describe("a failure of sifcrypt-starter", () => {
  const EINVAL = 22
  for (const [step, errnoNumber, code] of [
    ["loop_attach", EINVAL, "ERR_LOOP_ATTACH"],
    ["loop_attach", 16, "ERR_LOOP_BUSY"],
    ["crypt_activate", 17, "ERR_DM_EXISTS"],
    ["crypt_activate", EINVAL, "ERR_DM_ACTIVATE"],
    ["verity_activate", EINVAL, "ERR_DM_ACTIVATE"],
    ["crypt_activate", 79, "ERR_ENV_NO_LIBRARY"],
    ["loop_attach", 1, "ERR_ENV_NO_PRIVILEGE"],
    ["fuse", 2, "ERR_ENV_NO_KERNEL_SUPPORT"],
    ["fuse", EINVAL, "ERR_MOUNT"],
    ["overlay", 16, "ERR_RUN_OVERLAY_BUSY"],
    ["overlay", 2, "ERR_ENV_NO_PROGRAM"],
    ["bind", EINVAL, "ERR_RUN_BIND"],
    ["server", 95, "ERR_TREE_UNSUPPORTED"],
    ["server", 74, "ERR_TREE_FORMAT"],
    ["what nobody knows", EINVAL, "ERR_RUN"],
  ] as const)
    it(`is ${code}: ${step}, errno ${errnoNumber}`, () => {
      const told = new Told({ engine: "kernel", image: "x.sif" })
      told.add(`${JSON.stringify({ event: "error", step, errnoNumber, message: "why" })}\n`)
      assert.equal(told.failure?.code, code)
      assert.match(told.failure.message, /why/)
    })
})
