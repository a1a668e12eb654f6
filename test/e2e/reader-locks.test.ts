// Whoever may read a file can lock it: nothing that its owner does waits for him.
import assert from "node:assert/strict"
import { type ChildProcess } from "node:child_process"
import { chmodSync, chownSync, mkdirSync, readFileSync } from "node:fs"
import { open } from "node:fs/promises"
import path from "node:path"
import { sif } from "../../lib/index.ts"
import { loadAddon } from "../../lib/native/load.ts"
import { finish, isRoot, sifcrypt, sifcryptOk, startProgram, startSifcrypt, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

// With nothing but read permission: F_OFD_SETLK (37) of F_RDLCK (0) up to any end, or flock(2).
const lockers = {
  "a shared flock": "fcntl.flock(file, fcntl.LOCK_SH)",
  "an exclusive flock": "fcntl.flock(file, fcntl.LOCK_EX)",
  "a lock for reading": "fcntl.fcntl(file, 37, struct.pack('hhqqi4x', 0, 0, 0, 0, 0))",
}

/** Somebody who is not the owner holds a lock until his input ends. */
async function lockAsReader(file: string, lock: string): Promise<() => Promise<void>> {
  const script = `import fcntl, os, struct, sys
file = os.open(sys.argv[1], os.O_RDONLY)
${lock}
print("locked", flush=True)
sys.stdin.read()`
  const child: ChildProcess = startProgram(["/usr/bin/python3", "-c", script, file], { as: "nobody" })
  const end = finish(child, { holdInput: true })
  const locked = new Promise((resolve) => child.stdout?.once("data", resolve))
  assert.equal(await Promise.race([locked.then(() => "locked"), end.then(({ stderr }) => stderr)]), "locked")
  return async () => {
    child.stdin?.end()
    assert.equal((await end).status, 0)
  }
}

describe("a reader's lock", function () {
  this.timeout(120_000)
  const folder = newFolder("reader-locks", userId)
  const image = path.join(folder, "image.sif")
  const keys = testKeys()

  before(async function () {
    if (!isRoot) skip(this, "needs two users")
    await sifcryptOk(["build", image, makeRootTree()])
    const overlay = path.join(folder, "overlay.img")
    await sifcryptOk(["overlay", "create", overlay])
    const extra = Buffer.alloc(48)
    extra.writeInt32LE(sif.FileSystem.ext3, 0)
    extra.writeInt32LE(sif.PartitionType.overlay, 4)
    await sif.addObject(image, { type: sif.DataType.partition, extra, group: 1 }, readFileSync(overlay))
    chownSync(image, userId, userId)
    chmodSync(image, 0o644)
  })

  for (const [name, lock] of Object.entries(lockers)) {
    it(`keeps nobody from writing the overlay inside an image, nor from changing the image: ${name}`, async () => {
      const release = await lockAsReader(image, lock)
      const result = await sifcrypt(
        [
          "exec",
          "--engine",
          "userspace",
          "--writable",
          image,
          "sh",
          "-c",
          "echo x > /data/written; cat /data/written",
        ],
        {},
      )
      assert.equal(`${result.stderr}${result.text}`, "x\n")
      await sifcryptOk(["sign", "--key", keys.privateKey, image])
      await release()
    })

    it(`keeps nobody from writing over a folder: ${name}`, async () => {
      const upper = newFolder("upper", userId)
      // As another program would have made them.
      for (const inner of ["upper", "work"]) mkdirSync(path.join(upper, inner), { mode: 0o755 })
      for (const inner of ["upper", "work"]) chownSync(path.join(upper, inner), userId, userId)
      const release = await lockAsReader(upper, lock)
      const run = [
        "exec",
        "--engine",
        "userspace",
        "--overlay",
        upper,
        image,
        "sh",
        "-c",
        "echo x > /data/x; echo done",
      ]
      assert.equal((await sifcryptOk(run)).text, "done\n")
      await release()
      // What is locked is nobody else's to open.
      await assert.rejects(lockAsReader(path.join(upper, "work"), lock), /PermissionError/)
    })
  }

  it("is one, and that of somebody who can write is another: his is waited for, and told of", async () => {
    await using writer = await open(image, "r+")
    assert.equal(await loadAddon().lockRange({ fd: writer.fd, start: 0, length: 0, exclusive: true }), "none")
    const { stderr } = await sifcrypt(["exec", "--engine", "userspace", "--writable", image, "true"], {})
    assert.match(stderr, /another container uses it/)
  })

  it("does not make two containers of one user write the same overlay", async () => {
    const release = await lockAsReader(image, lockers["a lock for reading"])
    const flags = ["exec", "--engine", "userspace", "--writable", image, "sh", "-c"]
    const child = startSifcrypt([...flags, "echo; read x"])
    const ready = new Promise((resolve) => child.stdout?.once("data", resolve))
    const end = finish(child, { holdInput: true })
    await ready
    assert.match((await sifcrypt([...flags, "true"], {})).stderr, /another container uses it/)
    child.stdin?.end("\n")
    assert.equal((await end).status, 0)
    await release()
  })
})
