// SIGKILL of a signer at random moments: the image is the old one or has all of the new signatures. SIFCRYPT_KILLS sets how often.
import assert from "node:assert/strict"
import { createPublicKey } from "node:crypto"
import { copyFileSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { sif, sign, verify } from "../../lib/index.ts"
import { finish, sifcryptOk, startSifcrypt } from "../support/cli.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { repeat, times } from "../support/soak.ts"
import { vector, vectorPath } from "../vectors/load.ts"

const random = seeded()

const kills = times("SIFCRYPT_KILLS", 100, 25)
const width = 3

describe("a signer, killed", () => {
  const folder = newFolder("sign-kill")
  const original = path.join(folder, "original.sif")
  const args = (image: string): string[] => ["sign", "--key", vectorPath("sif/ed25519-private.pem"), image]
  const keys = [createPublicKey(vector("sif/ed25519-public.pem"))]
  let longest = 0

  before(async () => {
    // Two groups, whose signatures appear together, and an older signature by somebody else.
    const bytes = vector("sif/two-groups-signed-legacy-group.sif")
    bytes.fill(0, 4096 + 3 * 585, 4096 + 4 * 585)
    writeFileSync(original, bytes)
    await sign(original, { keyPath: vectorPath("sif/rsa-private.pem") })
    // As many at once as below.
    await repeat(width, width, async (_, place) => {
      const image = path.join(folder, `image-${place}.sif`)
      copyFileSync(original, image)
      const started = performance.now()
      await sifcryptOk(args(image), { as: "self" })
      longest = Math.max(longest, performance.now() - started)
    })
  })

  it(`leaves the old image or the new one, ${kills} times`, async function () {
    this.timeout(kills * 5000)
    const before = readFileSync(original)
    const seen = { old: 0, new: 0 }
    await repeat(kills, width, async (i, place) => {
      const image = path.join(folder, `image-${place}.sif`)
      copyFileSync(original, image)
      const child = startSifcrypt(args(image), { as: "self" })
      const end = finish(child)
      // Most of it is the start of the program, before anything is written; but it may be faster than it was at first.
      const part = random(1000) / 1000
      await sleep(longest * (i % 2 === 0 ? part : 0.4 + 0.7 * part))
      child.kill("SIGKILL")
      await end
      const after = readFileSync(image)
      // What was there is as it was, to the byte: identity, descriptors in use, data.
      assert.deepEqual(after.subarray(0, 72), before.subarray(0, 72))
      assert.deepEqual(after.subarray(4096, 4096 + 5 * 585), before.subarray(4096, 4096 + 5 * 585))
      await using opened = await sif.openSif(image)
      for (const { offset, size } of opened.objects.slice(0, 5))
        assert.deepEqual(after.subarray(offset, offset + size), before.subarray(offset, offset + size))
      const added = opened.objects.length - 5
      assert.ok(added === 0 || added === 2, `${added} of two signatures`)
      const theirs = await verify(image, { keyPaths: [vectorPath("sif/rsa-public.pem")] })
      assert.equal(theirs.verified, true)
      assert.equal((await verify(image, { keys })).verified, added === 2)
      seen[added === 2 ? "new" : "old"]++
      // The next signer clears up what was left.
      await sign(image, { keyPath: vectorPath("sif/ed25519-private.pem") })
      assert.equal((await verify(image, { keys })).verified, true)
    })
    assert.ok(seen.old > 0, "not always killed too late")
  })
})
