// A header chooses how long deriving its key takes. Whoever waits is told before, as long as it can still be stopped.
import assert from "node:assert/strict"
import { chownSync } from "node:fs"
import { open as openFile } from "node:fs/promises"
import path from "node:path"
import {
  encodeLuksCopy,
  parseLuksHeader,
  UNLIMITED,
  type LuksKdf,
  type LuksKeyslot,
} from "../../lib/device/luks-header.ts"
import { derivationTime } from "../../lib/device/luks.ts"
import { build, ContainerError, open, readMetadata, sif } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { typing } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

const keyslot = (kdf: LuksKdf, id = 0): LuksKeyslot => ({ id, kdf, cost: "", mark: "" })
const argon = { type: "argon2id", memory: 64 * 1024, parallel: 2 } as const
const pbkdf2 = { type: "pbkdf2", memory: 0, parallel: 0 } as const

describe("derivationTime", function () {
  this.timeout(60_000)

  it("is not measured for what we make ourselves", async () => {
    assert.equal(await derivationTime([keyslot({ ...argon, memory: 1024 * 1024, iterations: 4 })]), undefined)
    assert.equal(await derivationTime([keyslot({ ...pbkdf2, iterations: 2_000_000 })]), undefined)
  })

  it("counts all keyslots, Argon2 and PBKDF2", async () => {
    const slow = keyslot({ ...argon, iterations: 1_000_000 })
    const other = keyslot({ ...pbkdf2, iterations: 4_000_000_000 })
    const alone = (await derivationTime([slow])) ?? assert.fail()
    const otherAlone = (await derivationTime([other])) ?? assert.fail()
    const both = (await derivationTime([slow, other, slow])) ?? assert.fail()
    assert.ok(alone > 0 && otherAlone > 0)
    // Whatever else the machine does meanwhile.
    assert.ok(both > (alone + otherAlone) / 20, `${alone}, ${otherAlone}, ${both}`)
  })

  it("measures with little memory, and where each pass is short", async () => {
    assert.ok(((await derivationTime([keyslot({ ...argon, memory: 32, iterations: 10_000_000 })])) ?? 0) > 0)
  })
})

describe("a key derivation that takes long", function () {
  this.timeout(60_000)
  const keys = testKeys()
  const folder = newFolder("derivation", userId)
  const image = path.join(folder, "slow.sif")
  const passphrase = ["--passphrase-file", keys.passphraseFile]

  /** Its first keyslot opens at once; the others say that they take long, and somebody's passphrase may be that of any. */
  before(async () => {
    await build({
      output: image,
      source: makeRootTree(),
      recipients: [
        { passphrase: { file: keys.passphraseFile } },
        { passphrase: { bytes: Buffer.from("another one") } },
      ],
      passphraseKdf: { type: "argon2id", iterations: 4, memory: 1024 },
    })
    await using opened = await sif.openSif(image)
    const { offset, size } = opened.primary()
    const { stored, uuid } = await parseLuksHeader(opened.reader, { offset, size }, { limits: UNLIMITED })
    const keyslots = structuredClone(stored.document.keyslots) as Record<string, { kdf: object }>
    const second = keyslots["1"] ?? assert.fail()
    second.kdf = { ...second.kdf, memory: 64 * 1024, time: 500 }
    const copy =
      encodeLuksCopy(
        "primary",
        { headerSize: stored.headerSize, sequence: stored.sequence + 1n, uuid },
        { ...stored.document, keyslots },
      ) ?? assert.fail()
    await using file = await openFile(image, "r+")
    await file.write(copy, 0, copy.length, offset)
    chownSync(image, userId, userId)
  })

  it("is told to a program once, before it is done, and can be stopped there", async () => {
    for (const read of [open, readMetadata]) {
      const controller = new AbortController()
      const reason = new Error("too long")
      const heard: number[] = []
      const unlock = [{ passphrase: { bytes: Buffer.from("a wrong one") } }]
      await assert.rejects(
        read(image, {
          unlock,
          signal: controller.signal,
          onDerivation: (estimate) => {
            heard.push(estimate)
            controller.abort(reason)
          },
        }),
        reason,
      )
      assert.equal(heard.length, 1)
      assert.ok((heard[0] ?? 0) > 0)
    }
  })

  it("is refused where a program allows less, which the error tells it", async () => {
    const unlock = [{ passphrase: { file: keys.passphraseFile } }]
    await assert.rejects(open(image, { unlock, kdfLimits: { work: 4 * 1024 * 1024 } }), (error) => {
      assert.ok(error instanceof ContainerError)
      assert.equal(error.code, "ERR_LUKS_COST")
      assert.ok((error.kdfLimits?.work ?? 0) > 64 * 1024 * 500)
      return true
    })
  })

  it("is bounded and told where the image is what another one is made of", async () => {
    const output = path.join(folder, "made.sif")
    const source = ["--source-passphrase-file", keys.passphraseFile]
    const refused = await sifcrypt(["build", "--max-kdf-memory", "32", ...source, output, image])
    assert.equal(refused.status, 21, refused.stderr)
    assert.match(refused.stderr, /hint: .* --max-kdf-memory 64 opens it/)
    await sifcryptOk(["build", "--max-kdf-memory", "64", ...source, output, image])
    let told = 0
    const unlock = [{ passphrase: { file: keys.passphraseFile } }]
    await build({ output, source: image, unlock, force: true, onDerivation: () => told++ })
    assert.equal(told, 1)
  })

  it("is bounded and told where the image is bound into a container", async () => {
    const plain = path.join(folder, "plain.sif")
    await build({ output: plain, source: makeRootTree() })
    const bind = ["--bind", `${image}:/mnt:image-src=/data`, ...passphrase]
    const command = [...bind, plain, "cat", "/mnt/hello"]
    const refused = await sifcrypt(["exec", "--max-kdf-memory", "32", ...command])
    assert.equal(refused.status, 21, refused.stderr)
    assert.match(refused.stderr, /hint: .* --max-kdf-memory 64 opens it/)
    const { text } = await sifcryptOk(["exec", "--max-kdf-memory", "64", ...command])
    assert.equal(text, "hello\n")
  })

  it("is told on a terminal, and to nobody else", async () => {
    const shown = await sifcryptOk(["cat", ...passphrase, image, "/data/hello"], typing(""))
    assert.match(shown.text, /^sifcrypt: deriving the key may take about \d+ (s|min) on this machine\r?$/m)
    const piped = await sifcrypt(["cat", ...passphrase, image, "/data/hello"])
    assert.deepEqual([piped.status, piped.text, piped.stderr], [0, "hello\n", ""])
  })
})
