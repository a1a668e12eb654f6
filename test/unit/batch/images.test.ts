import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { existsSync, statSync, writeFileSync } from "node:fs"
import { open } from "node:fs/promises"
import path from "node:path"
import { findImage, NodeCache } from "../../../lib/batch/images.ts"
import { loadAddon } from "../../../lib/native/load.ts"
import { newFolder } from "../../support/scratch.ts"

describe("images of batch jobs", () => {
  const bytes = Buffer.from("an image")
  const digest = createHash("sha256").update(bytes).digest("hex")
  const image = { name: "image", digest }

  it("are files: a pipe that nobody writes to is not waited for", async () => {
    const folder = newFolder("images")
    const pipe = path.join(folder, "pipe")
    execFileSync("mkfifo", [pipe])
    const cache = (): Promise<NodeCache> => NodeCache.open(folder, 0)
    for (const [name, message] of [
      [pipe, `${pipe}: it is no file`],
      [folder, `${folder}: it is no file`],
      [path.join(folder, "none"), `${folder}/none: there is no such file`],
    ] as const)
      await assert.rejects(findImage(name, cache, {}, undefined, undefined), {
        code: "ERR_BATCH_IMAGE",
        message,
      })
  })

  it("stay while somebody fetches them or has them open, and their locks with them", async () => {
    const cache = await NodeCache.open(newFolder("cache"), 1 << 20)
    const fetched = await cache.use(image, async (target) => {
      await target.write(bytes)
    })
    const file = path.join(cache.folder, digest)
    assert.deepEqual(await cache.shrink(0), [], "it is open")
    await fetched.close()
    {
      await using lock = await open(`${file}.lock`, "r+")
      assert.equal(await loadAddon().lockFile(lock.fd), true)
      assert.deepEqual(await cache.shrink(0), [], "it is locked")
      assert.equal(existsSync(`${file}.lock`), true)
    }
    assert.deepEqual(await cache.shrink(0), [{ digest, size: bytes.length }])
    assert.deepEqual([file, `${file}.lock`, `${file}.used`].filter(existsSync), [])
  })

  it("are locked by the file that is there, not by one that was taken away", async () => {
    const cache = await NodeCache.open(newFolder("cache"), 1 << 20)
    const lock = path.join(cache.folder, `${digest}.lock`)
    writeFileSync(lock, "", { mode: 0o600 })
    // Whoever opened it before it was taken away has a lock that keeps nobody out.
    await using former = await open(lock, "r+")
    assert.equal(await loadAddon().lockFile(former.fd), true)
    execFileSync("rm", [lock])
    let fetches = 0
    const files = await Promise.all(
      [0, 1, 2].map(() =>
        cache.use(image, async (target) => {
          fetches++
          assert.notEqual(statSync(lock).ino, (await former.stat()).ino)
          await target.write(bytes)
        }),
      ),
    )
    for (const one of files) await one.close()
    assert.equal(fetches, 1)
  })
})
