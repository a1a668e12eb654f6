// keys.toml: the key of an image where neither an option nor a variable names one.
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { generateKey } from "openpgp"
import { listRecipients, open } from "../../lib/index.ts"
import { idOf, isRoot, sifcrypt, sifcryptOk, userId, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

describe("keys.toml", () => {
  const keys = testKeys()
  const home = newFolder("keys-toml", userId)
  const folder = path.join(home, ".config", "sifcrypt")
  const file = path.join(folder, "keys.toml")
  const image = path.join(home, "image.sif")
  const locked = path.join(home, "passphrase.sif")
  const passphrase = path.join(home, "passphrase")
  let recipient = ""

  before(async () => {
    const tree = makeRootTree()
    for (const made of [path.join(home, ".config"), folder]) {
      mkdirSync(made, { mode: 0o700 })
      chownSync(made, userId, userId)
    }
    writeFileSync(passphrase, "open sesame\n")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
    await sifcryptOk(["build", "--passphrase-file", passphrase, locked, tree])
    const [one] = await listRecipients(image)
    recipient = one?.fingerprint ?? ""
    assert.match(recipient, /^SHA256:/)
  })

  function write(text: string, mode = 0o600): void {
    rmSync(file, { force: true })
    writeFileSync(file, text, { mode })
    chmodSync(file, mode)
    chownSync(file, userId, userId)
  }
  // As an engine that hands on a home and a path.
  const ls = async (which = image, ...options: string[]): Promise<Result> =>
    await sifcrypt(["ls", ...options, which], { env: { HOME: home, XDG_CONFIG_HOME: "" } })
  const refused = async (why: RegExp): Promise<void> => {
    const { status, stderr } = await ls()
    assert.equal(status, 22)
    assert.match(stderr, why)
  }
  const digest = (of: string): string =>
    `sha256:${createHash("sha256").update(readFileSync(of)).digest("hex")}`

  it("A38: names an image by whom it is for, and by its digest", async () => {
    await refused(/no key was given/)
    write(`[[key]]\nrecipient = "${recipient}"\npem-path = "${keys.privateKey}"\n`)
    assert.equal((await ls()).status, 0)
    assert.equal((await ls(locked)).status, 22)
    write(
      `[[key]]\nimage = "${digest(locked)}"\npassphrase-file = "${passphrase}"\n
       [[key]]\nimage = "${digest(image)}"\nrecipient = "${recipient}"\nkey-command = "cat ${keys.privateKey}"\n`,
    )
    assert.equal((await ls(locked)).status, 0)
    assert.equal((await ls()).status, 0)
    write(
      `[[key]]\nimage = "sha256:${"0".repeat(64)}"\nrecipient = "${recipient}"\npem-path = "/nonexistent"\n`,
    )
    await refused(/no key was given/)
  })

  it("has its own home for ~, whatever passwd says", async () => {
    const own = path.join(home, "own.pem")
    copyFileSync(keys.privateKey, own)
    chownSync(own, userId, userId)
    write(`[[key]]\nrecipient = "${recipient}"\npem-path = "~/own.pem"\n`)
    const { status, stderr } = await ls()
    assert.equal(status, 0, stderr)
  })

  it("names an image by who signed it", async () => {
    const signed = path.join(home, "signed.sif")
    copyFileSync(image, signed)
    chownSync(signed, userId, userId)
    const { privateKey } = await generateKey({
      userIDs: [{ name: "Ada" }],
      type: "curve25519",
      format: "object",
    })
    const rings = path.join(home, "rings")
    mkdirSync(rings)
    writeFileSync(path.join(rings, "pgp-secret"), privateKey.write())
    await sifcryptOk(["sign", signed], { env: { APPTAINER_KEYSDIR: rings } })
    const signer = privateKey.getFingerprint()
    write(`[[key]]\nsigner = "${signer}"\npem-path = "${keys.privateKey}"\n`)
    assert.equal((await ls(signed)).status, 0)
    assert.equal((await ls()).status, 22)
  })

  it("has lines that are tried one after the other, until one opens the image", async () => {
    const line = (source: string): string => `[[key]]\nrecipient = "${recipient}"\n${source}\n`
    const ran = path.join(home, "ran")
    const absent = line('pem-path = "/nonexistent/key.pem"')
    write(absent + line(`pem-path = "${keys.privateKey}"`) + line(`key-command = "touch ${ran}"`))
    assert.equal((await ls()).status, 0)
    assert.equal(existsSync(ran), false, "what nobody needs is not started")
    write(absent + line(`pem-path = "${keys.otherPrivateKey}"`))
    await refused(/cannot read the key file \/nonexistent\/key\.pem/)
  })

  it("counts only where nothing else was given", async () => {
    write(`[[key]]\nrecipient = "${recipient}"\npem-path = "${keys.privateKey}"\n`)
    const given = await ls(image, "--pem-path", keys.otherPrivateKey)
    assert.match(given.stderr, /was not encrypted for this key/)
    const variable = await sifcrypt(["ls", image], {
      env: { HOME: home, XDG_CONFIG_HOME: "", SIFCRYPT_ENCRYPTION_PEM_PATH: keys.otherPrivateKey },
    })
    assert.match(variable.stderr, /was not encrypted for this key/)
    await assert.rejects(open(image), { code: "ERR_KEY_MISSING" })
  })

  it("is refused where others may write it, and where it says what is not known", async () => {
    const good = `[[key]]\nrecipient = "${recipient}"\npem-path = "${keys.privateKey}"\n`
    write(good, 0o640)
    await refused(/it has mode 640: it has to be yours alone/)
    write(good)
    chmodSync(folder, 0o777)
    await refused(/has mode 777/)
    chmodSync(folder, 0o700)
    const elsewhere = path.join(home, "elsewhere.toml")
    writeFileSync(elsewhere, good, { mode: 0o600 })
    chownSync(elsewhere, userId, userId)
    rmSync(file)
    symlinkSync(elsewhere, file)
    await refused(/it is a symbolic link/)
    write(good)
    if (isRoot) {
      // Another user's link to what is this one's, but was not written for that.
      const theirs = newFolder("keys-toml-theirs", idOf("nobody"))
      chmodSync(theirs, 0o755)
      symlinkSync(path.join(home, ".config"), path.join(theirs, ".config"))
      const led = await sifcrypt(["ls", image], { env: { HOME: theirs, XDG_CONFIG_HOME: "" } })
      assert.equal(led.status, 22)
      assert.match(led.stderr, /say where a link to it leads/)
    }
    for (const [text, why] of [
      ["[[key", /no valid TOML/],
      ["keys = 1\n", /a key that is not known: keys/],
      ["key = 1\n", /no list of tables/],
      ['[[key]]\npem-path = "/k"\n', /does not say for which image/],
      [`[[key]]\nrecipient = "${recipient}"\n`, /names one of pem-path/],
      [`[[key]]\nrecipient = "${recipient}"\npem-path = "k.pem"\n`, /neither an absolute path/],
      [`[[key]]\nrecipient = "SHA256:x"\npem-path = "/k"\n`, /no SHA-256 fingerprint/],
      [`[[key]]\nimage = "9f86"\npem-path = "/k"\n`, /no digest of a file/],
      [`[[key]]\nsigner = "9f86"\npem-path = "/k"\n`, /no fingerprint of 40 digits/],
      [`[[key]]\nrecipient = "${recipient}"\npem-path = "/k"\npassphrase-file = "/k"\n`, /names one of/],
      [`[[key]]\nrecipient = "${recipient}"\npem_path = "/k"\n`, /not known: pem_path/],
      [`[[key]]\nrecipient = 5\npem-path = "/k"\n`, /recipient is no string/],
      ["#".repeat((1 << 20) + 1), /more than 1048576 bytes/],
    ] as const) {
      write(text)
      await refused(why)
    }
    await assert.rejects(open(image, { unlock: [{ keysFile: file }] }), {
      code: "ERR_KEY_CONFIGURATION",
    })
  })
})
