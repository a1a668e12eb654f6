// Where keys and passphrases come from, which one wins, and what is said when none of them fits.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs"
import path from "node:path"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { typing } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

const kinds = ["PEM_PATH", "PEM_DATA", "PASSPHRASE"] as const
const families = ["SIFCRYPT", "APPTAINER", "SINGULARITY"] as const

describe("credentials", () => {
  const keys = testKeys()
  const folder = newFolder("credentials", userId)
  const rsaImage = path.join(folder, "rsa.sif")
  const passphraseImage = path.join(folder, "passphrase.sif")
  const plainImage = path.join(folder, "plain.sif")
  const tree = newFolder("credentials-tree")
  const files = newFolder("key-files")
  const cheap = ["--pbkdf", "pbkdf2:1000"]

  function keyFile(name: string, content: string | Buffer): string {
    const file = path.join(files, name)
    writeFileSync(file, content)
    return file
  }

  before(async () => {
    writeFileSync(path.join(tree, "file"), "content")
    await Promise.all([
      sifcryptOk(["build", "--pem-path", keys.publicKey, rsaImage, tree]),
      sifcryptOk(["build", ...cheap, "--passphrase-file", keys.passphraseFile, passphraseImage, tree]),
      sifcryptOk(["build", plainImage, tree]),
    ])
  })

  async function assertOpens(image: string, env: Readonly<Record<string, string>>): Promise<void> {
    assert.equal((await sifcryptOk(["cat", image, "file"], { env })).text, "content")
  }

  describe("from the environment", () => {
    for (const family of families) {
      it(`open an image: ${family}_ENCRYPTION_…`, async () => {
        await assertOpens(rsaImage, { [`${family}_ENCRYPTION_PEM_PATH`]: keys.privateKey })
        await assertOpens(rsaImage, {
          [`${family}_ENCRYPTION_PEM_DATA`]: readFileSync(keys.privateKey, "utf8"),
        })
        await assertOpens(passphraseImage, { [`${family}_ENCRYPTION_PASSPHRASE`]: passphrase })
      })

      it(`encrypt with -e: ${family}_ENCRYPTION_…`, async () => {
        for (const [kind, value] of [
          ["PEM_PATH", keys.publicKey],
          ["PEM_DATA", readFileSync(keys.publicKey, "utf8")],
        ] as const) {
          const image = path.join(newFolder("from-environment", userId), "image.sif")
          await sifcryptOk(["build", "-e", image, tree], { env: { [`${family}_ENCRYPTION_${kind}`]: value } })
          await assertOpens(image, { SIFCRYPT_ENCRYPTION_PEM_PATH: keys.privateKey })
        }
      })
    }

    it("A7: encrypt for the kind that comes first: PEM_PATH, PEM_DATA, PASSPHRASE", async () => {
      const values = {
        PEM_PATH: keys.publicKey,
        PEM_DATA: readFileSync(keys.otherPublicKey, "utf8"),
        PASSPHRASE: passphrase,
      }
      const all = Object.fromEntries(kinds.map((kind) => [`SINGULARITY_ENCRYPTION_${kind}`, values[kind]]))
      const first = path.join(newFolder("first", userId), "image.sif")
      await sifcryptOk(["build", "-e", first, tree], { env: all })
      await assertOpens(first, { SIFCRYPT_ENCRYPTION_PEM_PATH: keys.privateKey })
      const second = path.join(newFolder("second", userId), "image.sif")
      delete all["SINGULARITY_ENCRYPTION_PEM_PATH"]
      await sifcryptOk(["build", "-e", second, tree], { env: all })
      await assertOpens(second, { SIFCRYPT_ENCRYPTION_PEM_PATH: keys.otherPrivateKey })
    })

    it("encrypt for the family that comes first: ours, Apptainer's, Singularity's", async () => {
      const image = path.join(newFolder("family", userId), "image.sif")
      await sifcryptOk(["build", "-e", image, tree], {
        env: {
          SINGULARITY_ENCRYPTION_PEM_PATH: keys.otherPublicKey,
          APPTAINER_ENCRYPTION_PEM_PATH: keys.publicKey,
        },
      })
      await assertOpens(image, { SIFCRYPT_ENCRYPTION_PEM_PATH: keys.privateKey })
    })

    it("A7: are decided by the first that is set, as with the peers", async () => {
      const env = {
        APPTAINER_ENCRYPTION_PEM_PATH: keys.otherPrivateKey,
        APPTAINER_ENCRYPTION_PASSPHRASE: passphrase,
      }
      const result = await sifcrypt(["cat", passphraseImage, "file"], { env })
      assert.equal(result.status, 22)
      assert.ok(result.stderr.includes("no RSA recipient"), result.stderr)
      await assertOpens(passphraseImage, {
        APPTAINER_ENCRYPTION_PASSPHRASE: passphrase,
        SINGULARITY_ENCRYPTION_PEM_PATH: keys.otherPrivateKey,
      })
    })

    it("do not count beside an option", async () => {
      const result = await sifcrypt(["cat", "--pem-path", keys.otherPrivateKey, rsaImage, "file"], {
        env: { APPTAINER_ENCRYPTION_PEM_PATH: keys.privateKey },
      })
      assert.equal(result.status, 22)
      const image = path.join(newFolder("option", userId), "image.sif")
      await sifcryptOk(["build", "-e", "--pem-path", keys.publicKey, image, tree], {
        env: { APPTAINER_ENCRYPTION_PEM_PATH: keys.otherPublicKey },
      })
      await assertOpens(image, { SIFCRYPT_ENCRYPTION_PEM_PATH: keys.privateKey })
    })

    it("alone do not encrypt, and a line says so", async () => {
      const image = path.join(newFolder("without-e", userId), "image.sif")
      const result = await sifcryptOk(["build", image, tree], {
        env: { APPTAINER_ENCRYPTION_PASSPHRASE: passphrase },
      })
      assert.match(result.stderr, /APPTAINER_ENCRYPTION_PASSPHRASE is set, but encryption was not asked for/)
      assert.ok(!result.stderr.includes(passphrase))
      await assertOpens(image, {})
    })

    for (const kind of kinds)
      it(`A17: count as missing when empty: ${kind}`, async () => {
        const name = `APPTAINER_ENCRYPTION_${kind}`
        const target = newFolder("empty", userId)
        for (const args of [
          ["cat", rsaImage, "file"],
          ["build", "-e", path.join(target, "image.sif"), tree],
        ]) {
          const result = await sifcrypt(args, { env: { [name]: "" } })
          assert.equal(result.status, 22)
          assert.ok(result.stderr.includes(`${name} is set but empty`), result.stderr)
        }
        assert.deepEqual(readdirSync(target), [])
      })

    it("are ignored for a plain image", async () => {
      await assertOpens(plainImage, { APPTAINER_ENCRYPTION_PEM_PATH: "/nonexistent" })
    })
  })

  describe("from a passphrase file", () => {
    it("open the image whatever line end the file has", async () => {
      for (const end of ["", "\r\n"]) {
        const file = keyFile("passphrase", passphrase + end)
        const result = await sifcryptOk(["cat", "--passphrase-file", file, passphraseImage, "file"])
        assert.equal(result.text, "content")
      }
    })

    it("A17: count as missing when the file is empty", async () => {
      for (const content of ["", "\n"]) {
        const file = keyFile("nothing", content)
        const result = await sifcrypt(["cat", "--passphrase-file", file, passphraseImage, "file"])
        assert.equal(result.status, 22)
        assert.match(result.stderr, /nothing: the passphrase is empty/)
      }
    })
  })

  describe("from standard input, without a terminal", () => {
    const noTerminal = { wrapper: ["setsid", "--wait"] }

    it("are one line; the rest is left for the payload", async () => {
      const image = path.join(newFolder("stdin", userId), "image.sif")
      const root = makeRootTree()
      const input = "a passphrase\nfor the payload\nand more"
      await sifcryptOk(["build", ...cheap, "--passphrase", image, root], { ...noTerminal, input })
      const result = await sifcryptOk(["exec", "--engine", "userspace", "--passphrase", image, "cat"], {
        ...noTerminal,
        input,
      })
      assert.equal(result.text, "for the payload\nand more")
    })

    it("A17: count as missing when the line is empty", async () => {
      const result = await sifcrypt(["cat", "--passphrase", passphraseImage, "file"], {
        ...noTerminal,
        input: "\n",
      })
      assert.equal(result.status, 22)
      assert.match(result.stderr, /the passphrase is empty/)
    })
  })

  describe("from a terminal", () => {
    it("are asked for twice to build, without echo, and mismatches are refused", async () => {
      const target = newFolder("terminal", userId)
      const image = path.join(target, "image.sif")
      const result = await sifcrypt(["build", "--passphrase", image, tree], typing("one phrase,another"))
      assert.equal(result.status, 22, result.text)
      assert.match(
        result.text,
        /Enter encryption passphrase: [^]*Enter it again: [^]*the two passphrases differ[^]*typed twice is the same/,
      )
      assert.doesNotMatch(result.text, /one phrase|another/)
      assert.deepEqual(readdirSync(target), [])
    })

    it("are asked for when an image needs one and none was given", async () => {
      const result = await sifcrypt(["cat", passphraseImage, "file"], typing(passphrase))
      assert.equal(result.status, 0, result.text)
      assert.match(result.text, /no key was given[^]*Enter encryption passphrase: [^]*content/)
      assert.ok(!result.text.includes(passphrase))
    })
  })

  describe("A17: that do not fit", () => {
    const text = keyFile("text.pem", "this is no key\n")
    const cut = keyFile("cut.pem", readFileSync(keys.privateKey, "utf8").slice(0, 400))
    const ec = generateKeyPairSync("ec", { namedCurve: "P-256" })
    const ecPrivate = keyFile("ec.pem", ec.privateKey.export({ type: "pkcs8", format: "pem" }))
    const ecPublic = keyFile("ec.pub.pem", ec.publicKey.export({ type: "spki", format: "pem" }))
    const weak = generateKeyPairSync("rsa", { modulusLength: 1024 })
    const weakPublic = keyFile("weak.pem", weak.publicKey.export({ type: "pkcs1", format: "pem" }))
    const locked = keyFile(
      "locked.pem",
      generateKeyPairSync("rsa", {
        modulusLength: 2048,
        publicKeyEncoding: { type: "spki", format: "pem" },
        privateKeyEncoding: { type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "x" },
      }).privateKey,
    )
    const missing = path.join(files, "missing.pem")
    const huge = keyFile("huge.pem", Buffer.alloc(4 << 20, "A"))

    const opening: readonly (readonly [string, readonly string[], () => string, RegExp])[] = [
      ["no key", [], () => rsaImage, /rsa\.sif is encrypted \(for 1 RSA recipient\) and no key was given/],
      ["no passphrase", [], () => passphraseImage, /is encrypted \(with a passphrase\) and no key was given/],
      [
        "another key",
        ["--pem-path", keys.otherPrivateKey],
        () => rsaImage,
        /was not encrypted for this key .*other\.pem.* 1 RSA recipient/,
      ],
      [
        "a wrong passphrase",
        ["--passphrase-file", keys.wrongPassphraseFile],
        () => passphraseImage,
        /wrong passphrase \(.*wrong-passphrase\)/,
      ],
      [
        "a key for a passphrase image",
        ["--pem-path", keys.privateKey],
        () => passphraseImage,
        /no RSA recipient: it opens with a passphrase only/,
      ],
      [
        "a public key",
        ["--pem-path", keys.publicKey],
        () => rsaImage,
        /key\.pub\.pem: a private key is needed, found a PKCS#1 public key/,
      ],
      [
        "a file that is missing",
        ["--pem-path", missing],
        () => rsaImage,
        /missing\.pem: there is no such file/,
      ],
      ["a file without a key", ["--pem-path", text], () => rsaImage, /text\.pem/],
      ["a key that was cut short", ["--pem-path", cut], () => rsaImage, /cut\.pem/],
      ["an elliptic curve key", ["--pem-path", ecPrivate], () => rsaImage, /ec\.pem.*RSA/],
      [
        "a key with a password",
        ["--pem-path", locked],
        () => rsaImage,
        /locked\.pem: found an encrypted PKCS#8 private key; its password is needed/,
      ],
      ["a file that is too large", ["--pem-path", huge], () => rsaImage, /huge\.pem: more than/],
      ["a folder", ["--pem-path", files], () => rsaImage, /key-files/],
    ]
    for (const [what, options, image, message] of opening)
      it(`are told apart when opening: ${what}`, async () => {
        const result = await sifcrypt(["cat", ...options, image(), "file"])
        assert.equal(result.status, 22, result.stderr)
        assert.match(result.stderr, message)
        assert.equal(result.text, "")
        assert.doesNotMatch(result.stderr, /\bat \w+.*\.js:\d+/, "no stack trace")
      })

    const building: readonly (readonly [string, readonly string[], RegExp])[] = [
      ["nothing", [], /an encrypted image was asked for and no key was given/],
      ["a file that is missing", ["--pem-path", missing], /missing\.pem: there is no such file/],
      ["a file without a key", ["--pem-path", text], /text\.pem/],
      ["an elliptic curve key", ["--pem-path", ecPublic], /ec\.pub\.pem.*RSA/],
      ["a weak key", ["--pem-path", weakPublic], /weak\.pem.*1024/],
      ["one good key and a bad one", ["--pem-path", keys.publicKey, "--pem-path", text], /text\.pem/],
      ["an empty passphrase file", ["--passphrase-file", keyFile("empty", "")], /the passphrase is empty/],
    ]
    for (const [what, options, message] of building)
      it(`stop a build before it starts: ${what}`, async () => {
        const target = newFolder("no-build", userId)
        // A source that cannot be read is not even looked at.
        for (const source of [tree, path.join(target, "missing")]) {
          const result = await sifcrypt(["build", "-e", ...options, path.join(target, "image.sif"), source])
          assert.equal(result.status, 22, result.stderr)
          assert.match(result.stderr, message)
        }
        assert.deepEqual(readdirSync(target), [])
      })

    it("keep the image that -F would have replaced", async () => {
      const target = newFolder("kept", userId)
      const image = path.join(target, "image.sif")
      writeFileSync(image, "precious")
      const result = await sifcrypt(["build", "-e", "-F", image, tree])
      assert.equal(result.status, 22)
      assert.equal(readFileSync(image, "utf8"), "precious")
    })

    it("are not blamed for a damaged LUKS header", async () => {
      const damaged = path.join(newFolder("damaged", userId), "image.sif")
      const bytes = readFileSync(rsaImage)
      const header = bytes.indexOf("LUKS\xba\xbe", 0, "latin1")
      assert.ok(header > 0)
      bytes.fill(0x55, header + 4096, header + 4200)
      const second = bytes.indexOf("SKUL\xba\xbe", 0, "latin1")
      assert.ok(second > 0)
      bytes.fill(0x55, second + 4096, second + 4200)
      writeFileSync(damaged, bytes)
      const result = await sifcrypt(["cat", "--pem-path", keys.privateKey, damaged, "file"])
      assert.equal(result.status, 21, result.stderr)
      assert.match(result.stderr, /LUKS2? header|header/)
    })

    it("are not blamed for a keyslot that was replaced", async () => {
      const damaged = path.join(newFolder("keyslot", userId), "image.sif")
      const bytes = readFileSync(rsaImage)
      const header = bytes.indexOf("LUKS\xba\xbe", 0, "latin1")
      // The keyslots area follows the two copies of the metadata.
      bytes.fill(0x55, header + 32 * 1024, header + 300 * 1024)
      writeFileSync(damaged, bytes)
      const result = await sifcrypt(["cat", "--pem-path", keys.privateKey, damaged, "file"])
      assert.equal(result.status, 21, result.stderr)
      assert.match(result.stderr, /opens no keyslot/)
    })

    it("say so where a passphrase is the name of a file", async () => {
      const image = path.join(newFolder("file-name", userId), "image.sif")
      const result = await sifcryptOk(["build", "-e", image, tree], {
        env: { APPTAINER_ENCRYPTION_PASSPHRASE: keys.publicKey },
      })
      assert.match(result.stderr, /APPTAINER_ENCRYPTION_PASSPHRASE holds the name of a file/)
    })
  })

  it("A17: an image cut off inside its crypto message is no key's fault", async () => {
    const cut = path.join(newFolder("cut", userId), "image.sif")
    writeFileSync(cut, readFileSync(rsaImage))
    truncateSync(cut, readFileSync(rsaImage).length - 10)
    const result = await sifcrypt(["cat", "--pem-path", keys.privateKey, cut, "file"])
    assert.equal(result.status, 21)
    assert.match(result.stderr, /hint: the download or copy was cut short/)
    assert.ok(existsSync(cut))
  })
})
