// Key pairs and certificates by the command, as an ordinary user, and what OpenSSL says of them.
import assert from "node:assert/strict"
import { createPrivateKey, createPublicKey } from "node:crypto"
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { isRoot, sifcrypt, userId, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { openssl } from "../support/openssl.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { typing } from "../support/terminal.ts"

const password = "a pässword for files"

function file(folder: string, name: string, content: string | Buffer): string {
  const written = path.join(folder, name)
  writeFileSync(written, content)
  return written
}

function assertDone(result: Result): void {
  assert.equal(result.status, 0, result.stderr)
}

function assertFailed(result: Result, status: number, message: RegExp): void {
  assert.equal(result.status, status, result.stderr)
  assert.match(result.stderr, message)
}

describe("sifcrypt cert create", () => {
  const folder = newFolder("cert", userId)
  const prefix = path.join(folder, "alice")
  const passwordFile = file(newFolder("cert-password"), "password", `${password}\n`)
  const create = (...args: string[]): Promise<Result> =>
    sifcrypt(["cert", "create", "--bits", "2048", "--password-file", passwordFile, ...args])

  before(async () => {
    assertDone(await create("--file-prefix", prefix))
  })

  it("writes two public keys and a PFX that belong together, whatever the umask", () => {
    const spki = readFileSync(`${prefix}-public.pem`, "utf8")
    const pkcs1 = readFileSync(`${prefix}-public-pkcs1.pem`, "utf8")
    assert.match(spki, /^-----BEGIN PUBLIC KEY-----/)
    assert.match(pkcs1, /^-----BEGIN RSA PUBLIC KEY-----/)
    const key = openssl(["pkcs12", "-in", `${prefix}.pfx`, "-passin", `pass:${password}`, "-nodes"])
    const own = createPublicKey(createPrivateKey(key))
    assert.ok(own.equals(createPublicKey(spki)))
    assert.ok(own.equals(createPublicKey(pkcs1)))
    assert.equal(statSync(`${prefix}.pfx`).mode & 0o7777, 0o600)
    assert.equal(statSync(`${prefix}-public.pem`).mode & 0o7777, 0o644)
    assert.deepEqual(readdirSync(folder).sort(), ["alice-public-pkcs1.pem", "alice-public.pem", "alice.pfx"])
  })

  it("S33: certifies the key with what OpenSSL verifies", () => {
    const args = ["pkcs12", "-in", `${prefix}.pfx`, "-passin", `pass:${password}`, "-nokeys"]
    const certificate = file(newFolder("verify"), "certificate.pem", openssl(args))
    assert.match(openssl(["verify", "-CAfile", certificate, certificate]).toString(), /: OK$/m)
    assert.match(openssl(["x509", "-in", certificate, "-noout", "-subject"]).toString(), /CN = alice$/m)
  })

  it("makes pairs with which OpenSSL encrypts and decrypts", () => {
    const message = Buffer.from("sixty-four random bytes")
    const oaep = ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256"]
    const sealed = openssl(
      ["pkeyutl", "-encrypt", "-pubin", "-inkey", `${prefix}-public.pem`, ...oaep],
      message,
    )
    const key = openssl([
      "pkcs12",
      "-in",
      `${prefix}.pfx`,
      "-passin",
      `pass:${password}`,
      "-nodes",
      "-nocerts",
    ])
    const inkey = file(newFolder("pkeyutl"), "key.pem", key)
    assert.deepEqual(openssl(["pkeyutl", "-decrypt", "-inkey", inkey, ...oaep], sealed), message)
  })

  it("overwrites nothing that exists, and leaves nothing half-made", async () => {
    const before = readFileSync(`${prefix}.pfx`)
    assertFailed(await create("--file-prefix", prefix), 23, /exists/)
    assert.deepEqual(readFileSync(`${prefix}.pfx`), before)
    const other = path.join(folder, "bob")
    mkdirSync(`${other}-public-pkcs1.pem`)
    assertFailed(await create("--file-prefix", other, "-F"), 25, /it is a folder/)
    assert.deepEqual(
      readdirSync(folder).filter((name) => name.includes("bob")),
      ["bob-public-pkcs1.pem"],
    )
  })

  it("puts back what it has replaced when the last one cannot be", async function () {
    if (!isRoot) skip(this, "making a file of another user takes root")
    // Where everybody may write, nobody replaces another's file.
    const shared = newFolder("shared")
    chmodSync(shared, 0o1777)
    const at = path.join(shared, "eve")
    assertDone(await create("--file-prefix", at))
    rmSync(`${at}-public-pkcs1.pem`)
    writeFileSync(`${at}-public-pkcs1.pem`, "another's")
    const before = [`${at}.pfx`, `${at}-public.pem`].map((name) => readFileSync(name))
    assertFailed(await create("--file-prefix", at, "-F"), 25, /cannot replace .*eve-public-pkcs1\.pem/)
    assert.deepEqual(
      [`${at}.pfx`, `${at}-public.pem`].map((name) => readFileSync(name)),
      before,
    )
    assert.deepEqual(readdirSync(shared).sort(), ["eve-public-pkcs1.pem", "eve-public.pem", "eve.pfx"])
  })

  it("replaces all of them with -F, and prints what it made as JSON", async () => {
    const before = readFileSync(`${prefix}.pfx`)
    const result = await create(
      "--file-prefix",
      prefix,
      "-F",
      "--json",
      "--subject",
      "Älice",
      "--days",
      "30",
      "--legacy",
    )
    assertDone(result)
    const made = JSON.parse(result.text)
    assert.deepEqual(
      [made.pfx, made.publicKey, made.publicKeyPkcs1],
      [`${prefix}.pfx`, `${prefix}-public.pem`, `${prefix}-public-pkcs1.pem`],
    )
    assert.equal(made.certificate.subject, "CN=Älice")
    assert.notDeepEqual(readFileSync(`${prefix}.pfx`), before)
    openssl(["pkcs12", "-in", `${prefix}.pfx`, "-passin", `pass:${password}`, "-nodes"])
    assert.equal(readdirSync(folder).filter((name) => name.startsWith(".")).length, 0)
  })

  it("wants a password, and a name that fits", async () => {
    const empty = file(newFolder("empty"), "password", "\n")
    const at = path.join(folder, "nobody")
    const run = (...args: string[]): Promise<Result> =>
      sifcrypt(["cert", "create", "--bits", "2048", "--file-prefix", at, ...args])
    assertFailed(await run("--password-file", empty), 22, /the password is empty/)
    assertFailed(await run("--subject", "x".repeat(65)), 20, /1 to 64 characters/)
    assertFailed(await run("--days", "0"), 20, /1 to 36500/)
    assertFailed(await run("--bits", "1024"), 20, /2048 to 8192/)
    assert.ok(!readdirSync(folder).some((name) => name.startsWith("nobody")))
  })

  it("asks twice on a terminal, shows nothing of it, and refuses two that differ", async () => {
    const at = path.join(folder, "typed")
    const run = (answers: string): Promise<Result> =>
      sifcrypt(["cert", "create", "--bits", "2048", "--file-prefix", at], typing(answers))
    const differ = await run("secret one,secret two")
    assert.equal(differ.status, 22, differ.text)
    assert.match(differ.text, /Enter new password for [^]*Enter it again: [^]*the two passwords differ/)
    assert.ok(!readdirSync(folder).some((name) => name.startsWith("typed")))
    const same = await run("secret one,secret one")
    assert.equal(same.status, 0, same.text)
    assert.doesNotMatch(same.text, /secret/)
    const shown = await sifcrypt(["cert", "info", `${at}.pfx`], typing("secret one"))
    assert.equal(shown.status, 0, shown.text)
    assert.match(shown.text, /Enter password for [^]*CN=typed/)
  })

  it("A4: opens with the PFX what was built with the public key", async () => {
    const work = newFolder("work", userId)
    const tree = newFolder("tree")
    writeFileSync(path.join(tree, "file"), "content\n")
    const image = path.join(work, "image.sif")
    const keyFile = `${prefix}.pfx`
    assertDone(await sifcrypt(["build", "--pem-path", `${prefix}-public.pem`, image, tree]))
    const open = (secret: string): Promise<Result> =>
      sifcrypt(["cat", "--pem-path", keyFile, "--key-passphrase-file", secret, image, "/file"])
    const opened = await open(passwordFile)
    assertDone(opened)
    assert.equal(opened.text, "content\n")
    assertFailed(await open(testKeys().wrongPassphraseFile), 22, /password/)
  })
})

describe("sifcrypt cert info", () => {
  const folder = newFolder("cert-info")
  const pem = path.join(folder, "certificate.pem")
  const der = path.join(folder, "certificate.der")
  const pfx = path.join(folder, "certificate.pfx")
  const secret = file(folder, "password", password)
  before(() => {
    const key = path.join(folder, "key.pem")
    const subject = ["-subj", "/O=Example/CN=carol", "-days", "3"]
    openssl(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", pem, ...subject])
    openssl(["x509", "-in", pem, "-outform", "DER", "-out", der])
    openssl(["pkcs12", "-export", "-in", pem, "-inkey", key, "-passout", `pass:${password}`, "-out", pfx])
  })
  const printed = (hash: string): string =>
    openssl(["x509", "-in", pem, "-noout", "-fingerprint", `-${hash}`])
      .toString()
      .trim()
      .replace(/^.*=/, "")

  it("S30: prints the thumbprints that OpenSSL prints, for PEM, DER and PFX", async () => {
    const texts: string[] = []
    for (const name of [pem, der, pfx]) {
      const result = await sifcrypt(["cert", "info", "--password-file", secret, name], { as: "self" })
      assertDone(result)
      texts.push(result.text)
    }
    const [text = ""] = texts
    assert.deepEqual(texts, [text, text, text])
    assert.ok(text.includes(`SHA-1:    ${printed("sha1")}\n`), text)
    assert.ok(text.includes(`SHA-256:  ${printed("sha256")}\n`))
    assert.match(text, /^Subject: {2}O=Example, CN=carol$/m)
    assert.match(text, /^Key: {6}rsa, 2048 bits$/m)
  })

  it("S30: finds one by its thumbprint, and knows no other", async () => {
    const find = (thumbprint: string): Promise<Result> =>
      sifcrypt(["cert", "info", "--json", "--thumbprint", thumbprint, pem])
    const found = await find(printed("sha1"))
    assertDone(found)
    assert.equal(JSON.parse(found.text)[0].sha256, printed("sha256"))
    assertFailed(await find("00".repeat(32)), 22, /no certificate has the thumbprint/)
    assertFailed(await find("0123"), 20, /64 hexadecimal digits/)
  })

  it("says what is missing or wrong", async () => {
    const wrong = testKeys().wrongPassphraseFile
    const run = (...args: string[]): Promise<Result> => sifcrypt(["cert", "info", ...args], { as: "self" })
    assertFailed(await run("--password-file", wrong, pfx), 22, /the password does not open/)
    assertFailed(await run(testKeys().publicKey), 22, /there is no certificate in it/)
    assertFailed(await run(path.join(folder, "nothing")), 22, /there is no such file/)
  })
})

describe("sifcrypt cert convert", () => {
  const folder = newFolder("convert", userId)
  const key = path.join(folder, "key.pem")
  const certificate = path.join(folder, "certificate.pem")
  const secret = file(newFolder("convert-password"), "password", `${password}\n`)
  const at = (name: string): string => path.join(folder, name)
  const convert = (input: string, output: string, ...args: string[]): Promise<Result> =>
    sifcrypt(["cert", "convert", input, at(output), ...args], { as: "self" })
  const keyText = (): string => readFileSync(key, "utf8")
  const isSame = (pem: string | Buffer): boolean => createPrivateKey(pem).equals(createPrivateKey(keyText()))

  before(() => {
    const options = ["-subj", "/CN=dora", "-keyout", key, "-out", certificate]
    openssl(["req", "-x509", "-newkey", "rsa:2048", "-nodes", ...options])
  })

  it("writes PKCS#1 in the clear only when told to", async () => {
    assertFailed(
      await convert(key, "refused.pem", "--to", "pkcs1"),
      22,
      /PKCS#1 keeps a private key in the clear/,
    )
    const result = await convert(key, "pkcs1.pem", "--to", "pkcs1", "--plain")
    assertDone(result)
    assert.match(result.stderr, /private key that nothing protects/)
    const text = readFileSync(at("pkcs1.pem"), "utf8")
    assert.match(text, /^-----BEGIN RSA PRIVATE KEY-----/)
    assert.ok(isSame(text))
    assert.equal(statSync(at("pkcs1.pem")).mode & 0o7777, 0o600)
    assert.ok(!readdirSync(folder).includes("refused.pem"))
  })

  it("goes from PEM to PFX and back, under passwords", async () => {
    assertDone(
      await convert(key, "a.pfx", "--to", "pfx", "--certificate", certificate, "--new-password-file", secret),
    )
    assert.ok(isSame(openssl(["pkcs12", "-in", at("a.pfx"), "-passin", `pass:${password}`, "-nodes"])))
    const back = ["--to", "pem", "--password-file", secret]
    assertDone(await convert(at("a.pfx"), "a.pem", ...back, "--new-password-file", secret))
    const text = readFileSync(at("a.pem"), "utf8")
    assert.match(text, /^-----BEGIN ENCRYPTED PRIVATE KEY-----[^]*-----BEGIN CERTIFICATE-----/)
    assert.ok(isSame(openssl(["pkey", "-in", at("a.pem"), "-passin", `pass:${password}`])))
    assert.ok(text.endsWith(readFileSync(certificate, "utf8").replace(/^[^]*?(?=-----BEGIN)/, "")))
    assertDone(await convert(at("a.pfx"), "plain.pem", ...back, "--plain"))
    assert.ok(isSame(readFileSync(at("plain.pem"))))
    assertDone(await convert(at("plain.pem"), "again.pfx", "--to", "pfx", "--new-password-file", secret))
  })

  it("turns public keys of one form into another", async () => {
    const spki = openssl(["pkey", "-in", key, "-pubout"]).toString()
    assertDone(await convert(file(folder, "spki.pem", spki), "pkcs1.pub", "--to", "pkcs1"))
    assert.match(readFileSync(at("pkcs1.pub"), "utf8"), /^-----BEGIN RSA PUBLIC KEY-----/)
    assertDone(await convert(at("pkcs1.pub"), "spki.pub", "--to", "pkcs8"))
    assert.equal(readFileSync(at("spki.pub"), "utf8"), spki)
    assertFailed(await convert(at("spki.pub"), "no.pfx", "--to", "pfx"), 22, /a private key is needed/)
  })

  it("writes a private key neither over a file nor to a terminal, and no PFX without a certificate", async () => {
    assertFailed(await convert(key, "certificate.pem", "--to", "pkcs8", "--plain"), 23, /exists/)
    const readable = file(folder, "readable.pem", readFileSync(key))
    chmodSync(readable, 0o644)
    for (const device of ["/dev/tty", "/dev/stdout", "/dev/null"])
      // As one who may not replace what is in /dev, should we ever try.
      assertFailed(
        await sifcrypt(["cert", "convert", readable, device, "--to", "pkcs8", "--plain", "-F"]),
        25,
        /it is no regular file/,
      )
    assertFailed(
      await convert(key, "no.pfx", "--to", "pfx", "--new-password-file", secret),
      22,
      /a certificate of the private key is needed/,
    )
  })

  it("asks nobody where nobody is: a private key needs a password or --plain", async () => {
    const result = await sifcrypt(["cert", "convert", key, at("none.pem"), "--to", "pkcs8"], {
      as: "self",
      wrapper: ["setsid", "-w"],
    })
    assertFailed(result, 22, /a password is needed for the private key/)
  })
})
