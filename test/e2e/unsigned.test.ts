// "Encrypted but unsigned": told on a terminal, refused where that is asked for, silent in scripts.
import assert from "node:assert/strict"
import { copyFileSync, mkdirSync, readdirSync } from "node:fs"
import path from "node:path"
import { open, sif, SignatureError } from "../../lib/index.ts"
import { openSif } from "../../lib/sif/open.ts"
import { sifcrypt, sifcryptOk, userId, type CommandOptions } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"
import { vector } from "../vectors/load.ts"

const warning = /is encrypted but carries no signature/

describe("encrypted but unsigned", () => {
  const keys = testKeys()
  const folder = newFolder("unsigned", userId)
  const encrypted = path.join(folder, "encrypted.sif")
  const signed = path.join(folder, "signed.sif")
  const plain = path.join(folder, "plain.sif")
  const key = ["--pem-path", keys.privateKey]
  /** Its standard error, too, is the terminal's. */
  const terminal: CommandOptions = {
    wrapper: [
      "python3",
      "-c",
      "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
    ],
  }

  before(async () => {
    const tree = makeRootTree()
    await sifcryptOk(["build", "--pem-path", keys.publicKey, encrypted, tree])
    await sifcryptOk(["build", plain, tree])
    // Somebody's signature of something: whether it fits is for those who verify.
    copyFileSync(encrypted, signed)
    await using source = await openSif(vector("sif/one-group-signed-pgp.sif"))
    const { type, extra } = source.object(3)
    const data = await source.data(source.object(3), 1 << 16)
    await sif.addObject(signed, { type, extra, link: { to: "group", group: 1 } }, data)
  })

  /** Every command that opens an image, and what has to be there for it. */
  const commands: readonly (readonly [string, (image: string) => readonly string[]])[] = [
    ["ls", (image) => [image]],
    ["cat", (image) => [image, "/etc/motd"]],
    ["extract", (image) => [image, path.join(newFolder("unsigned-out", userId), "out")]],
    [
      "mount",
      (image) => {
        const target = path.join(newFolder("unsigned-mount", userId), "mnt")
        mkdirSync(target)
        return [image, target]
      },
    ],
    ["exec", (image) => [image, "true"]],
    ["run", (image) => [image]],
    ["shell", (image) => [image]],
  ]

  for (const [command, rest] of commands)
    it(`S28: ${command} --unsigned error refuses it before any key is used`, async () => {
      // The key file is not even looked for.
      const args = [command, "--unsigned", "error", "--pem-path", "/nonexistent", ...rest(encrypted)]
      const result = await sifcrypt(args)
      assert.equal(result.status, 26, result.stderr)
      assert.match(result.stderr, warning)
      assert.match(result.stderr, /hint: .*--unsigned/)
      assert.equal(result.text, "")
    })

  it("S28: extract --unsigned error makes nothing", async () => {
    const out = newFolder("unsigned-nothing", userId)
    const result = await sifcrypt(["extract", "--unsigned", "error", ...key, encrypted, path.join(out, "o")])
    assert.equal(result.status, 26)
    assert.deepEqual(readdirSync(out), [])
  })

  it("S28: --unsigned warn says so and goes on", async () => {
    const result = await sifcryptOk(["ls", "--unsigned", "warn", ...key, encrypted])
    assert.match(result.stderr, warning)
    assert.match(result.text, /etc/)
  })

  it("S28: is silent where standard error is no terminal", async () => {
    assert.equal((await sifcryptOk(["ls", ...key, encrypted])).stderr, "")
  })

  it("S28: is said on a terminal, unless it is allowed", async () => {
    const shown = await sifcrypt(["ls", ...key, encrypted], terminal)
    assert.equal(shown.status, 0)
    assert.equal(shown.text.match(/carries no signature/g)?.length, 1, shown.text)
    const silent = await sifcrypt(["ls", "--unsigned", "allow", ...key, encrypted], terminal)
    assert.equal(silent.status, 0)
    assert.doesNotMatch(silent.text, warning)
  })

  it("S28: SIFCRYPT_UNSIGNED stands for the option, which is stronger", async () => {
    const env = { SIFCRYPT_UNSIGNED: "error" }
    assert.equal((await sifcrypt(["ls", ...key, encrypted], { env })).status, 26)
    assert.equal((await sifcrypt(["ls", "--unsigned", "allow", ...key, encrypted], { env })).status, 0)
    for (const SIFCRYPT_UNSIGNED of ["sometimes", ""])
      assert.equal((await sifcrypt(["ls", ...key, encrypted], { env: { SIFCRYPT_UNSIGNED } })).status, 20)
    assert.equal((await sifcrypt(["ls", "--unsigned", "never", ...key, encrypted])).status, 20)
  })

  it("S28: is not asked of a plain image", async () => {
    const result = await sifcryptOk(["ls", "--unsigned", "error", plain])
    assert.equal(result.stderr, "")
  })

  it("S28: lets an image pass that carries a signature, and does not call it valid", async () => {
    const result = await sifcryptOk(["ls", "--unsigned", "error", ...key, signed])
    assert.equal(result.stderr, "")
    const { text } = await sifcryptOk(["info", signed])
    assert.match(text, /^Signatures: +1, not verified here$/m)
    assert.doesNotMatch(text, /\bvalid\b|but unsigned/)
  })

  it("S28: info says it, without a key", async () => {
    const { text } = await sifcryptOk(["info", encrypted])
    assert.match(text, /^Signatures: +none; encrypted but unsigned/m)
    assert.match((await sifcryptOk(["info", plain])).text, /^Signatures: +none$/m)
    const facts = JSON.parse((await sifcryptOk(["info", "--json", encrypted])).text) as Record<
      string,
      unknown
    >
    assert.equal(facts["unsigned"], true)
  })

  it("S28: is the library's to allow, to tell and to refuse", async () => {
    const credentials = [{ key: { file: keys.privateKey } }]
    const told: string[] = []
    const onNotice = (text: string): void => {
      told.push(text)
    }
    await (await open(encrypted, { unlock: credentials, onNotice })).close()
    assert.deepEqual(told, [])
    await (await open(encrypted, { unlock: credentials, onNotice, unsigned: "warn" })).close()
    assert.deepEqual(
      told.map((text) => warning.test(text)),
      [true],
    )
    await assert.rejects(open(encrypted, { unsigned: "error" }), (error: unknown) => {
      assert.ok(error instanceof SignatureError)
      assert.equal(error.code, "ERR_UNSIGNED")
      assert.equal(error.path, encrypted)
      return true
    })
  })
})
