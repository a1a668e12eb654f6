// The power goes while a command writes: what a disk may hold then, at each moment, is the old image or the new one.
import assert from "node:assert/strict"
import { createHash, createPublicKey, generateKeyPairSync } from "node:crypto"
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, listRecipients, open, sif, verify } from "../../lib/index.ts"
import { fingerprint } from "../../lib/key/fingerprint.ts"
import { isRoot, sifcryptOk } from "../support/cli.ts"
import { callsOf, failing, type Call } from "../support/faults.ts"
import { testKeys } from "../support/keys.ts"
import { statesOf } from "../support/power.ts"
import { makeLayout } from "../support/layout.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"

describe("a power cut", function () {
  this.timeout(120_000)
  const keys = testKeys()
  const unlock = [{ key: { file: keys.privateKey } }]
  const signer = generateKeyPairSync("ed25519")
  const folder = newFolder("power-cut")
  const at = (...names: readonly string[]): string => path.join(folder, ...names)
  const tree = at("tree")

  before(async function () {
    if (!isRoot) skip(this, "needs root, to see what others write")
    if (process.arch !== "x64") skip(this, "knows the system calls of x86-64 only")
    // Little, as each state of the disk is opened.
    mkdirSync(path.join(tree, "data"), { recursive: true })
    writeFileSync(path.join(tree, "data", "hello"), "hello\n")
    writeFileSync(at("signer.pem"), signer.privateKey.export({ type: "pkcs8", format: "pem" }))
    for (const [name, ...files] of [
      ["one.sif", keys.publicKey],
      ["image.sif", keys.publicKey, keys.otherPublicKey],
    ] as const)
      await build({ output: at(name), source: tree, recipients: files.map((file) => ({ key: { file } })) })
  })

  let count = 0
  async function traced(
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
  ): Promise<Call[]> {
    const report = at(`${++count}.report`)
    const wrapper = failing(report, folder, "data")
    await sifcryptOk(args, { as: "self", cwd: folder, wrapper, env })
    return callsOf(report)
  }

  /** Does each state of an image hold, and were there both? */
  async function eachIsOldOrNew(
    calls: readonly Call[],
    image: string,
    before: Buffer | undefined,
    isNew: (image: string) => Promise<boolean>,
  ): Promise<void> {
    const seen = { old: 0, new: 0 }
    const states = statesOf(calls, image, before)
    const end = readFileSync(image)
    assert.ok(
      states.some(({ content }) => content?.equals(end)),
      "the trace has all that was written",
    )
    for (const { before: call, content } of states) {
      const state = at("state.sif")
      const what = `before ${call.number}, ${call.name} ${call.object.slice(0, 100)}`
      if (content === undefined) {
        assert.equal(before, undefined, what)
        seen.old++
        continue
      }
      writeFileSync(state, content)
      try {
        await using opened = await open(state, { unlock, unsigned: "allow" })
        assert.equal((await opened.readFile("/data/hello")).toString(), "hello\n")
        seen[(await isNew(state)) ? "new" : "old"]++
      } catch (cause) {
        throw new Error(what, { cause })
      }
    }
    assert.ok(seen.old > 0 && seen.new > 0, JSON.stringify(seen))
  }

  for (const [name, flags, old] of [
    ["a new image", [], undefined],
    ["a new image in the place of another", ["-F"], "image.sif"],
    ["a new image of gocryptfs", ["--format", "gocryptfs"], undefined],
  ] as const)
    it(`leaves ${name} whole, or what was there`, async () => {
      const before = old === undefined ? undefined : readFileSync(at(old))
      const target = at(`made-${flags.join("")}.sif`)
      if (before !== undefined) writeFileSync(target, before)
      const calls = await traced(["build", ...flags, "--pem-path", keys.publicKey, target, tree])
      const digest = before && createHash("sha256").update(before).digest("hex")
      await eachIsOldOrNew(calls, target, before, async (state) =>
        Promise.resolve(createHash("sha256").update(readFileSync(state)).digest("hex") !== digest),
      )
    })

  it("leaves a signature, and a hash tree, or none", async () => {
    const image = at("to-sign.sif")
    copyFileSync(at("image.sif"), image)
    const before = readFileSync(image)
    const calls = await traced(["sign", "--tree", "--key", at("signer.pem"), image])
    await eachIsOldOrNew(calls, image, before, async (state) => {
      {
        await using opened = await sif.openSif(state)
        if (!opened.objects.some(({ type }) => type === sif.DataType.signature)) return false
      }
      const { verified } = await verify(state, { keys: [createPublicKey(signer.privateKey)] })
      assert.ok(verified)
      return true
    })
  })

  const other = fingerprint(createPublicKey(readFileSync(keys.otherPublicKey)))
  for (const [command, flags, whom] of [
    ["add", ["--recipient", keys.otherPublicKey], []],
    ["remove", [], [other]],
    ["rotate", ["--keep", keys.otherPublicKey], []],
  ] as const)
    it(`leaves an image that opens for who stays: recipient ${command}`, async () => {
      const image = at(`recipient-${command}.sif`)
      copyFileSync(at(command === "add" ? "one.sif" : "image.sif"), image)
      const before = readFileSync(image)
      const stale = new Set((await listRecipients(image)).map(({ keyslot }) => keyslot))
      const args = ["recipient", command, "--pem-path", keys.privateKey, ...flags, image, ...whom]
      const calls = await traced(args)
      await eachIsOldOrNew(calls, image, before, async (state) =>
        (await listRecipients(state)).some(({ keyslot }) => !stale.has(keyslot)),
      )
    })

  it("leaves a copy in the cache that is whole, or none", async () => {
    const cache = at("cache")
    mkdirSync(cache, { mode: 0o700 })
    makeLayout(at("layout"), tree, {})
    const env = { SIFCRYPT_CACHEDIR: cache }
    const calls = await traced(["ls", "-R", `oci:${at("layout")}`], env)
    const images = readdirSync(cache, { recursive: true, encoding: "utf8" }).filter((name) =>
      /\/[0-9a-f]{64}$/.test(name),
    )
    assert.equal(images.length, 1)
    await eachIsOldOrNew(calls, path.join(cache, images[0] ?? ""), undefined, () => Promise.resolve(true))
  })
})
