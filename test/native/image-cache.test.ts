// Images that were built and are kept: whose folders they lie in, and what builds that were killed leave.
import assert from "node:assert/strict"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  openSync,
  closeSync,
  readdirSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { cleanCache, listCache } from "../../lib/oci/cache.ts"
import { ImageCache } from "../../lib/oci/image-cache.ts"
import { loadAddon } from "../../lib/native/load.ts"
import { newFolder } from "../support/scratch.ts"

describe("the cache of images", () => {
  it("is none where others could put another folder in its place", async () => {
    const shared = path.join(newFolder("cache"), "shared")
    const within = path.join(shared, "mine", "cache")
    mkdirSync(within, { recursive: true, mode: 0o700 })
    const link = path.join(newFolder("cache"), "link")
    symlinkSync(within, link)
    for (const [mode, isTaken] of [
      [0o755, true],
      [0o1777, true],
      [0o777, false],
      [0o775, false],
    ] as const) {
      chmodSync(shared, mode)
      for (const folder of [within, link]) {
        const cache = await ImageCache.open(folder)
        assert.equal(cache !== undefined, isTaken, `${mode.toString(8)} ${folder}`)
        // A link could lead elsewhere later.
        assert.ok(cache?.folder.startsWith(within) !== false)
      }
    }
  })

  it("counts and cleans what builds left that were killed, and nothing of one that goes on", async () => {
    const folder = newFolder("cache")
    const cache = await ImageCache.open(folder)
    const place = path.join(cache?.folder ?? "", "sha256")
    const [killed, running, whole] = ["a", "b", "c"].map((digit) => digit.repeat(64))
    const suffix = "0123456789abcdef01234567"
    for (const name of [
      `.${killed}-arm64.encrypted.${suffix}`,
      `${killed}-arm64.encrypted.lock`,
      `.${running}.${suffix}`,
      `${whole}`,
      `${whole}.lock`,
    ])
      writeFileSync(path.join(place, name), "five!")
    const listed = (await listCache(folder)).map(({ digest, size, isPartial }) => [digest, size, isPartial])
    assert.deepEqual(listed, [
      [`sha256:${killed}`, 5, true],
      [`sha256:${running}`, 5, true],
      [`sha256:${whole}`, 5, false],
    ])
    const lock = openSync(path.join(place, `${running}.lock`), "w+")
    try {
      assert.ok(await loadAddon().lockFile(lock))
      const removed = await cleanCache({ folder, kinds: ["image"] })
      assert.deepEqual(removed.map(({ digest }) => digest).sort(), [`sha256:${killed}`, `sha256:${whole}`])
      assert.deepEqual(readdirSync(place).sort(), [`.${running}.${suffix}`, `${running}.lock`])
    } finally {
      closeSync(lock)
    }
    await cleanCache({ folder, kinds: ["image"] })
    assert.deepEqual(readdirSync(place), [])
    assert.ok(existsSync(place))
  })
})
