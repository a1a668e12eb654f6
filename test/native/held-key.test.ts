// A key that a process holds for others with the same secret: it opens for them, and says nothing to anybody else.
import assert from "node:assert/strict"
import { createPrivateKey } from "node:crypto"
import { readFileSync } from "node:fs"
import path from "node:path"
import { build, sif } from "../../lib/index.ts"
import type { Lock } from "../../lib/encryption/encryption-format.ts"
import { luks } from "../../lib/encryption/luks-format.ts"
import { decodeCryptoMessage } from "../../lib/key/crypto-message.ts"
import { unwrapSecret } from "../../lib/key/rsa-oaep.ts"
import { messageMark } from "../../lib/sif/format.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

describe("a key that is held for others", () => {
  const keys = testKeys()
  const folder = newFolder("held")

  /** What opens an image: of its first recipient. */
  async function opening(name: string): Promise<{ lock: Lock; secret: Buffer; mark: string | undefined }> {
    const file = path.join(folder, name)
    await build({ output: file, source: makeRootTree(), recipients: [{ key: { file: keys.publicKey } }] })
    const image = await sif.openSif(file)
    const lock = await luks.readLock(image, image.primary(), {})
    const message = image.objects.find(({ type }) => type === sif.DataType.cryptoMessage)
    assert.ok(message)
    const wrapped = decodeCryptoMessage(await image.data(message, 4096))
    const secret = unwrapSecret(createPrivateKey(readFileSync(keys.privateKey)), wrapped)
    assert.ok(secret)
    return { lock, secret, mark: messageMark(message.extra) }
  }

  it("opens with the secret that opened, for the same header, and with nothing else", async () => {
    const { lock, secret, mark } = await opening("one.sif")
    const first = await lock.open(secret, mark)
    assert.ok(first?.held)
    const { id, sealed } = first.held
    assert.ok(!Buffer.from(sealed).includes(first.dataKey.bytes.subarray(0, 16)))
    const asked: string[] = []
    const find = (name: string): Uint8Array | undefined => {
      asked.push(name)
      return sealed
    }
    const second = lock.openHeld?.(secret, mark, find)
    assert.ok(second)
    assert.deepEqual(second.dataKey.bytes, first.dataKey.bytes)
    assert.deepEqual(asked, [id])
    assert.equal(second.held?.id, id)
    // Another secret, no mark, other bytes, none.
    const other = Buffer.from(secret)
    other.writeUInt8(other.readUInt8(0) ^ 1, 0)
    assert.equal(lock.openHeld?.(other, mark, find), undefined)
    assert.notEqual(asked[1], id)
    assert.equal(lock.openHeld?.(secret, undefined, find), undefined)
    for (const at of [0, 12, sealed.length - 1]) {
      const changed = Buffer.from(sealed)
      changed.writeUInt8(changed.readUInt8(at) ^ 1, at)
      assert.equal(
        lock.openHeld?.(secret, mark, () => changed),
        undefined,
      )
    }
    for (const size of [0, 1, sealed.length - 1])
      assert.equal(
        lock.openHeld?.(secret, mark, () => sealed.subarray(0, size)),
        undefined,
      )
    assert.equal(
      lock.openHeld?.(secret, mark, () => undefined),
      undefined,
    )
    // Of another image with the same recipient.
    const { lock: elsewhere, secret: theirs, mark: named } = await opening("two.sif")
    assert.equal(elsewhere.openHeld?.(theirs, named, find), undefined)
    assert.equal(elsewhere.openHeld?.(secret, named, find), undefined)
    for (const opened of [first, second]) opened.dataKey.wipe()
  })

  it("is none where a passphrase opened, which could be tried", async () => {
    const { lock, secret } = await opening("three.sif")
    const opened = await lock.open(secret)
    assert.ok(opened)
    assert.equal(opened.held, undefined)
    opened.dataKey.wipe()
  })
})
