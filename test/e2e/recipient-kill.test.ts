// SIGKILL of a change of recipients at random moments: the image opens with the old recipients or with the new ones.
// SIFCRYPT_KILLS sets how often.
import assert from "node:assert/strict"
import { createPublicKey } from "node:crypto"
import { copyFileSync, readFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import {
  listRecipients,
  open,
  rotateRecipients,
  type CredentialSource,
  type Recipient,
} from "../../lib/index.ts"
import { fingerprint } from "../../lib/key/fingerprint.ts"
import { finish, sifcryptOk, startSifcrypt, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { repeat, times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"

const random = seeded()

const kills = times("SIFCRYPT_KILLS", 100, 25)
const width = 3
const keys = testKeys()
const bob = fingerprint(createPublicKey(readFileSync(keys.otherPublicKey)))

async function opens(image: string, credential: CredentialSource): Promise<boolean> {
  try {
    await using opened = await open(image, { unlock: [credential] })
    return (await opened.readFile("/data/hello")).toString() === "hello\n"
  } catch (error) {
    const { code } = error as { code?: string }
    assert.match(
      code ?? "",
      /^ERR_(?:KEY_MISMATCH|LUKS_HEADER|LUKS_PASSPHRASE|GOCRYPTFS_CONFIG)$/,
      String(error),
    )
    return false
  }
}

describe("a change of recipients, killed", () => {
  const folder = newFolder("recipient-kill", userId)
  const original = (format: string): string => path.join(folder, `${format}.sif`)
  let longest = 0

  before(async () => {
    const recipients = ["--pem-path", keys.publicKey, "--pem-path", keys.otherPublicKey]
    for (const format of ["luks", "gocryptfs"])
      await sifcryptOk(["build", "--format", format, ...recipients, original(format), makeRootTree()])
    // As many at once as below.
    await repeat(width, width, async (_, place) => {
      const image = path.join(folder, `image-${place}.sif`)
      copyFileSync(original("luks"), image)
      const started = performance.now()
      await sifcryptOk(["recipient", "rotate", "--pem-path", keys.privateKey, "--keep", bob, image], {
        as: "self",
      })
      longest = Math.max(longest, performance.now() - started)
    })
  })

  for (const [format, ...args] of [
    ["luks", "rotate", "--keep", bob],
    ["luks", "remove", bob],
    ["gocryptfs", "remove", bob],
  ] as const)
    it(`A6: ${args[0]} leaves a ${format} image that opens, ${kills} times`, async function () {
      this.timeout(kills * 10_000)
      const seen = { old: 0, new: 0 }
      await repeat(kills, width, async (i, place) => {
        const image = path.join(folder, `image-${place}.sif`)
        copyFileSync(original(format), image)
        const [command, ...whom] = args
        const child = startSifcrypt(["recipient", command, "--pem-path", keys.privateKey, image, ...whom], {
          as: "self",
        })
        const end = finish(child)
        // Most of it is the start of the program, before anything is written; but it may be faster than it was at first.
        const part = random(1000) / 1000
        await sleep(longest * (i % 2 === 0 ? part : 0.3 + 0.7 * part))
        child.kill("SIGKILL")
        await end
        const recipients: Recipient[] = await listRecipients(image)
        const current = recipients.filter(({ stale }) => !stale).map(({ fingerprint: name }) => name)
        assert.ok(await opens(image, { key: { file: keys.privateKey } }), "who stays gets in")
        const listed = current.includes(bob)
        assert.equal(await opens(image, { key: { file: keys.otherPrivateKey } }), listed)
        if (command === "rotate") assert.ok(listed)
        seen[listed ? "old" : "new"]++
        // The next change clears up.
        await rotateRecipients(image, {
          unlock: [{ key: { file: keys.privateKey } }],
          keep: listed ? [bob] : [],
        })
        const after = await listRecipients(image)
        assert.ok(after.every(({ stale }) => !stale))
        assert.deepEqual(
          after.map(({ fingerprint: name }) => name),
          current,
        )
      })
      if (args[0] === "remove") assert.ok(seen.old > 0, "not always killed too late")
    })
})
