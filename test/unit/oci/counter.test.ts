// What the native side deciphers of an encrypted layer, from wherever it is read.
import assert from "node:assert/strict"
import { createCipheriv, createHash } from "node:crypto"
import { open, writeFile } from "node:fs/promises"
import path from "node:path"
import { loadAddon } from "../../../lib/native/load.ts"
import { newFolder } from "../../support/scratch.ts"

describe("a blob under AES-256-CTR", () => {
  const key = createHash("sha256").update("key").digest()
  const plain = Buffer.concat(
    Array.from({ length: 64 }, (_, i) => createHash("sha256").update(Buffer.of(i)).digest()),
  )

  // The last one overflows: the counter is one number of 128 bits.
  for (const iv of [Buffer.alloc(16), Buffer.alloc(16, 0xa5), Buffer.alloc(16, 0xff)])
    it(`reads from any byte to any other, the counter beginning at ${iv.toString("hex")}`, async () => {
      const file = path.join(newFolder("counter"), "blob")
      const before = Buffer.from("before")
      await writeFile(file, Buffer.concat([before, createCipheriv("aes-256-ctr", key, iv).update(plain)]))
      await using handle = await open(file)
      const blob = { fd: handle.fd, offset: before.length, size: plain.length, counter: { key, iv } }
      for (let offset = 0; offset < plain.length; offset += 13)
        for (const size of [0, 1, 15, 16, 17, plain.length - offset]) {
          if (offset + size > plain.length) continue
          const found = await loadAddon().readBlob(blob, { offset, size })
          assert.ok(found.equals(plain.subarray(offset, offset + size)), `${size} bytes from ${offset} on`)
        }
      await assert.rejects(loadAddon().readBlob(blob, { offset: 1, size: plain.length }), {
        code: "EOVERFLOW",
      })
    })

  it("takes keys and counters of their size, and no others", () => {
    const blob = { fd: 0, offset: 0, size: 0 }
    const read = (counter: { key: Buffer; iv: Buffer }): unknown =>
      loadAddon().readBlob({ ...blob, counter }, { offset: 0, size: 0 })
    assert.throws(() => read({ key: Buffer.alloc(16), iv: Buffer.alloc(16) }))
    assert.throws(() => read({ key, iv: Buffer.alloc(12) }))
  })
})
