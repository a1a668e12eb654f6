// `--format gocryptfs`: images that Apptainer's ordinary users can run, made and opened by everybody.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { existsSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build } from "../../lib/index.ts"
import { runProgram, sifcrypt, sifcryptOk, userId, type As } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { mountsIn } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { describeTree, makeRootTree } from "../support/trees.ts"

describe("an image in the format gocryptfs", () => {
  const keys = testKeys()
  const tree = makeRootTree()
  const folder = newFolder("gocryptfs", userId)
  const rsa = path.join(folder, "rsa.sif")
  const secret = path.join(folder, "passphrase.sif")
  const ways = [
    [rsa, ["--pem-path", keys.privateKey]],
    [rsa, ["--pem-path", keys.otherPrivateKey]],
    [secret, ["--passphrase-file", keys.passphraseFile]],
  ] as const
  const named = (image: string, flags: readonly string[]): string =>
    `${path.basename(image)} with ${path.basename(flags[1] ?? "")}`

  before(async () => {
    const two = ["--pem-path", keys.publicKey, "--pem-path", keys.otherPublicKey]
    await sifcryptOk(["build", "--format", "gocryptfs", ...two, rsa, tree])
    await sifcryptOk([
      "build",
      "--format",
      "gocryptfs",
      "--passphrase-file",
      keys.passphraseFile,
      secret,
      tree,
    ])
  })

  for (const [image, flags] of ways)
    it(`A40: holds the tree for each of its recipients: ${named(image, flags)}`, async () => {
      const target = path.join(newFolder("gocryptfs-out", userId), "tree")
      await sifcryptOk(["extract", ...flags, image, target])
      assert.deepEqual(describeTree(target, false), describeTree(tree, false))
    })

  for (const as of ["nobody", "self"] as const satisfies readonly As[])
    for (const [image, flags] of [ways[0], ways[2]])
      it(`A40: is mounted and run by ${as === "self" ? "root" : "an ordinary user"}: ${named(image, flags)}`, async () => {
        const target = newFolder("gocryptfs-mount", as === "nobody" ? 65534 : undefined)
        const { text } = await sifcryptOk(["mount", "--json", ...flags, image, target], { as })
        assert.equal((JSON.parse(text) as { engine: string }).engine, "userspace")
        try {
          const seen = await runProgram(["cat", path.join(target, "data", "hello")], { as })
          assert.equal(seen.text, "hello\n")
        } finally {
          await sifcryptOk(["unmount", target], { as })
        }
        assert.deepEqual(mountsIn(target), [])
        const ran = await sifcrypt(["exec", ...flags, image, "sh", "-c", "cat /data/hello; exit 7"], { as })
        assert.equal(ran.status, 7, ran.stderr)
        assert.equal(ran.text, "hello\n")
      })

  it("is no image for the kernel engine, which is said before anything is tried", async () => {
    for (const command of [
      ["mount", rsa, folder],
      ["exec", rsa, "true"],
    ]) {
      const [name = "", ...rest] = command
      const flags = ["--engine", "kernel", "--pem-path", keys.privateKey]
      const { status, stderr } = await sifcrypt([name, ...flags, ...rest], { as: "self" })
      assert.equal(status, 24)
      assert.match(stderr, /encrypted with gocryptfs, which no kernel reads/)
    }
  })

  it("passes gocryptfs's own check, which sees our configuration", async () => {
    const outer = path.join(folder, "outer.sqfs")
    const { text } = await sifcryptOk(["sif", "list", "--json", secret])
    const [partition] = JSON.parse(text) as { readonly id: number }[]
    writeFileSync(outer, (await sifcryptOk(["sif", "dump", String(partition?.id), secret])).stdout)
    const inside = path.join(newFolder("gocryptfs-inside"), "inside")
    execFileSync("unsquashfs", ["-quiet", "-no-progress", "-dest", inside, outer], { stdio: "ignore" })
    const password = path.join(folder, "password")
    writeFileSync(password, passphrase)
    const check = await runProgram(["gocryptfs", "-fsck", "-passfile", password, inside], { as: "self" })
    assert.equal(check.status, 0, check.text + check.stderr)
    assert.match(check.text + check.stderr, /no problems found/)
    const info = await runProgram(["gocryptfs", "-info", inside], { as: "self" })
    assert.match(info.text, /^Creator: +sifcrypt$/m)
    assert.match(info.text, /^FeatureFlags: +HKDF GCMIV128 PlaintextNames$/m)
    assert.match(info.text, /N=65536 R=8 P=1/)
  })

  it("costs next to nothing to open with an RSA key, and what gocryptfs takes with a passphrase", async () => {
    assert.match((await sifcryptOk(["info", rsa])).text, /^Password: +scrypt, 1 MiB, N 1024, R 8, P 1$/m)
    assert.match((await sifcryptOk(["info", secret])).text, /^Password: +scrypt, 64 MiB, N 65536, R 8, P 1$/m)
    const { status, stderr } = await sifcrypt(["ls", "--max-kdf-memory", "32", ...ways[2][1], secret])
    assert.equal(status, 21)
    assert.match(stderr, /65536 KiB of memory .* the limit is 32768 KiB[^]*hint: .*--max-kdf-memory/)
  })

  it("A17: tells a wrong key, a wrong passphrase and none apart", async () => {
    const wrong = await sifcrypt(["ls", "--passphrase-file", keys.wrongPassphraseFile, secret])
    assert.equal(wrong.status, 22)
    assert.match(wrong.stderr, /passphrase\.sif: wrong passphrase \(.*wrong-passphrase\)/)
    const none = await sifcrypt(["ls", secret])
    assert.equal(none.status, 22)
    assert.match(none.stderr, /is encrypted \(with a passphrase\) and no key was given/)
    const key = await sifcrypt(["ls", "--pem-path", keys.privateKey, secret])
    assert.equal(key.status, 22)
    assert.match(key.stderr, /opens with a passphrase only/)
  })

  for (const [what, flags, says] of [
    [
      "a passphrase beside an RSA key",
      ["--pem-path", keys.publicKey, "--passphrase-file", keys.passphraseFile],
      /one password: RSA keys and a passphrase/,
    ],
    [
      "two passphrases",
      ["--passphrase", "--passphrase-file", keys.passphraseFile],
      /one password: two passphrases/,
    ],
    ["a passphrase with a line end inside", ["--passphrase-file", "LINES"], /up to its first line end/],
    ["a passphrase of more than 2048 bytes", ["--passphrase-file", "LONG"], /at most 2048 bytes/],
  ] as const)
    it(`is refused for ${what}, and nothing is written`, async () => {
      const lines = path.join(folder, "lines")
      const long = path.join(folder, "long")
      writeFileSync(lines, "one\ntwo\n")
      writeFileSync(long, "x".repeat(2049))
      const output = path.join(folder, "refused.sif")
      const args = flags.map((flag) => (flag === "LINES" ? lines : flag === "LONG" ? long : flag))
      const made = await sifcrypt(["build", "--format", "gocryptfs", ...args, output, tree], {
        input: "typed\n",
      })
      assert.equal(made.status, 22, made.stderr)
      assert.match(made.stderr, says)
      assert.match(made.stderr, /hint: --format luks/)
      assert.equal(existsSync(output), false)
    })

  it("takes no function of LUKS2 to stretch a passphrase", async () => {
    const output = path.join(folder, "refused.sif")
    const flags = ["--format", "gocryptfs", "--passphrase-file", keys.passphraseFile]
    for (const option of [
      ["--pbkdf", "pbkdf2"],
      ["--pbkdf-memory", "64"],
    ]) {
      const made = await sifcrypt(["build", ...flags, ...option, output, tree])
      assert.equal(made.status, 20, made.stderr)
      assert.match(made.stderr, /stretches a passphrase with scrypt/)
    }
    await assert.rejects(
      build({ output, source: tree, format: "gocryptfs", passphraseKdf: { type: "pbkdf2" } }),
      RangeError,
    )
    assert.equal((await sifcrypt(["build", "--format", "zip", output, tree])).status, 20)
  })

  it("is never plain by mistake: naming the format asks for encryption", async () => {
    const output = path.join(folder, "plain.sif")
    const made = await sifcrypt(["build", "--format", "gocryptfs", output, tree])
    assert.equal(made.status, 22)
    assert.match(made.stderr, /an encrypted image was asked for and no key was given/)
    const env = { APPTAINER_ENCRYPTION_PASSPHRASE: passphrase }
    await sifcryptOk(["build", "--format", "gocryptfs", output, tree], { env })
    assert.match((await sifcryptOk(["info", output])).text, /^Root: +gocryptfs, /m)
  })

  it("is a source, and an output, of every conversion", async () => {
    const place = newFolder("gocryptfs-converted", userId)
    const at = (name: string): string => path.join(place, name)
    const open = ["--pem-path", keys.privateKey]
    await sifcryptOk(["decrypt", ...open, rsa, at("plain.sif")])
    await sifcryptOk([
      "encrypt",
      "--format",
      "gocryptfs",
      "--pem-path",
      keys.publicKey,
      at("plain.sif"),
      at("again.sif"),
    ])
    await sifcryptOk(["reencrypt", "--format", "luks", ...open, at("again.sif"), at("luks.sif")])
    await sifcryptOk(["reencrypt", "--format", "gocryptfs", ...open, at("luks.sif"), at("back.sif")])
    for (const [name, flags, kind] of [
      ["plain.sif", [], "squashfs"],
      ["again.sif", open, "gocryptfs"],
      ["luks.sif", open, "luks"],
      ["back.sif", open, "gocryptfs"],
    ] as const) {
      assert.match((await sifcryptOk(["info", at(name)])).text, new RegExp(`^Root: +${kind}, `, "m"))
      assert.equal((await sifcryptOk(["cat", ...flags, at(name), "/data/hello"])).text, "hello\n")
    }
  })
})
