// The user's key ring from the command's side, beside GnuPG.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { finish, isRoot, sifcrypt, sifcryptOk, startSifcrypt, userId, type Result } from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { typing } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

const password = "correct horse"

interface Listing {
  readonly path: string
  readonly kind: string
  readonly keys: readonly {
    readonly fingerprint: string
    readonly status: string
    readonly secret: string
    readonly userIds: readonly string[]
  }[]
}

/** A ring of its own in a folder. */
class Ring {
  readonly folder: string
  readonly env: Readonly<Record<string, string>>

  constructor() {
    this.folder = path.join(newFolder("ring", userId), "keys")
    this.env = { SIFCRYPT_KEYSDIR: this.folder }
  }
  run(args: readonly string[]): Promise<Result> {
    return sifcrypt(["key", ...args], { env: this.env })
  }
  async ok(args: readonly string[], input?: Uint8Array): Promise<Result> {
    return await sifcryptOk(["key", ...args], { env: this.env, ...(input === undefined ? {} : { input }) })
  }
  async newPair(...args: readonly string[]): Promise<string> {
    const name = ["--name", "Jane Doe", "--email", "jane@example.org", "--json"]
    const made = await this.ok(["newpair", ...name, "--type", "ed25519", "-P", "", ...args])
    return (JSON.parse(made.text) as { fingerprint: string }).fingerprint
  }
  async list(...args: readonly string[]): Promise<Listing["keys"]> {
    const [own] = JSON.parse((await this.ok(["list", "--json", ...args])).text) as Listing[]
    assert.ok(own !== undefined)
    return own.keys
  }
}

/** GnuPG with a home of its own. */
class Gpg {
  readonly #home: string
  constructor() {
    this.#home = newFolder("gnupg")
    chmodSync(this.#home, 0o700)
  }
  run(args: readonly string[], input?: Uint8Array): Buffer {
    return execFileSync("gpg", ["--homedir", this.#home, "--batch", "--quiet", "--no-tty", ...args], {
      ...(input === undefined ? {} : { input }),
      stdio: ["pipe", "pipe", "ignore"],
    })
  }
  make(user: string, expires: string): string {
    this.run([
      "--pinentry-mode",
      "loopback",
      "--passphrase",
      password,
      "--quick-gen-key",
      user,
      "ed25519",
      "sign",
      expires,
    ])
    const colons = this.run(["--list-keys", "--with-colons", user]).toString()
    return /^fpr:+([0-9A-F]{40}):/m.exec(colons)?.[1] ?? ""
  }
  secret(fingerprint: string): Buffer {
    return this.run([
      "--pinentry-mode",
      "loopback",
      "--passphrase",
      password,
      "--armor",
      "--export-secret-keys",
      fingerprint,
    ])
  }
  /** Imports the revocation that it keeps ready for each of its keys. */
  revoke(fingerprint: string): void {
    const kept = readFileSync(path.join(this.#home, "openpgp-revocs.d", `${fingerprint}.rev`), "utf8")
    this.run(["--import"], Buffer.from(kept.slice(kept.indexOf(":-----BEGIN") + 1)))
  }
  stop(): void {
    execFileSync("gpgconf", ["--homedir", this.#home, "--kill", "all"])
  }
}

describe("sifcrypt key", () => {
  const gpg = new Gpg()
  after(() => {
    gpg.stop()
  })

  it("newpair makes a pair that list shows, in a folder and files that are the user's alone", async () => {
    const ring = new Ring()
    const fingerprint = await ring.newPair("-C", "work", "--days", "7")
    for (const [args, secret] of [
      [[], "none"],
      [["-s"], "plain"],
    ] as const) {
      const [key, ...others] = await ring.list(...args)
      assert.deepEqual(others, [])
      assert.equal(key?.fingerprint, fingerprint)
      assert.deepEqual(key.userIds, ["Jane Doe (work) <jane@example.org>"])
      assert.equal(key.secret, secret)
    }
    assert.equal(statSync(ring.folder).mode & 0o7777, 0o700)
    for (const name of ["pgp-public", "pgp-secret"])
      assert.equal(statSync(path.join(ring.folder, name)).mode & 0o7777, 0o600)
    assert.deepEqual(readdirSync(ring.folder).sort(), ["pgp-public", "pgp-secret"])
    const shown = (await ring.ok(["list"])).text
    assert.match(
      shown,
      /^0\) {2}User: {14}Jane Doe \(work\) <jane@example\.org>\n {4}Creation time: .* UTC\n {4}Fingerprint: +[0-9A-F]{40}\n {4}Algorithm: +Ed25519\n {4}Expires: /m,
    )
  })

  it("newpair makes an RSA key under a password from a file", async () => {
    const ring = new Ring()
    const file = path.join(newFolder("password", userId), "password")
    writeFileSync(file, `${password}\n`)
    await ring.ok(["newpair", "-N", "A", "-E", "a@example.org", "-b", "2048", "--password-file", file])
    const [key] = await ring.list("-s")
    assert.equal(key?.secret, "protected")
    // GnuPG opens it with that password.
    const exported = await ring.ok(["export", "-s", "-a", "-"])
    const other = new Gpg()
    other.run(["--pinentry-mode", "loopback", "--passphrase", password, "--import"], exported.stdout)
    const signed = other.run(
      ["--pinentry-mode", "loopback", "--passphrase", password, "--clearsign"],
      Buffer.from("x"),
    )
    assert.match(signed.toString(), /BEGIN PGP SIGNED MESSAGE/)
    other.stop()
  })

  it("newpair asks on the terminal, twice for the password", async () => {
    const ring = new Ring()
    const args = ["key", "newpair", "-N", "A", "-E", "a@example.org", "--type", "ed25519"]
    await sifcryptOk(args, { env: ring.env, ...typing("one,one") })
    assert.equal((await ring.list("-s"))[0]?.secret, "protected")
    const differ = await sifcrypt(args, { env: ring.env, ...typing("one,two") })
    assert.equal(differ.status, 22)
    assert.equal((await ring.list("-s")).length, 1)
  })

  it("A27: a password is never an argument, and is not repeated", async () => {
    const ring = new Ring()
    const result = await ring.run(["newpair", "-N", "A", "-E", "a@example.org", "-P", "hunter2"])
    assert.equal(result.status, 20)
    assert.match(result.stderr, /--password-file/)
    assert.doesNotMatch(result.stderr + result.text, /hunter2/)
    assert.equal(existsSync(ring.folder), false)
  })

  for (const [what, args] of [
    ["a name with brackets", ["-N", "A <b>", "-E", "a@example.org"]],
    ["an address without @", ["-N", "A", "-E", "example.org"]],
    ["1024 bits", ["-N", "A", "-E", "a@example.org", "-b", "1024"]],
  ] as const)
    it(`newpair refuses ${what}`, async () => {
      assert.equal((await new Ring().run(["newpair", "-P", "", ...args])).status, 20)
    })

  it("imports from GnuPG and exports to it, public and private", async () => {
    const ring = new Ring()
    const fingerprint = gpg.make("Gerd <gerd@example.org>", "1y")
    const imported = await ring.ok(["import", "-"], gpg.secret(fingerprint))
    assert.match(imported.text, new RegExp(`^${fingerprint} Gerd <gerd@example.org>: private key, added`))
    assert.equal((await ring.list("-s"))[0]?.secret, "protected")
    assert.match(
      (await ring.ok(["import", "-"], gpg.run(["--export", fingerprint]))).text,
      /was there already/,
    )
    const own = await ring.newPair()
    for (const armor of [["-a"], []]) {
      const file = path.join(newFolder("export", userId), "key")
      await ring.ok(["export", ...armor, "-k", own, file])
      assert.equal(readFileSync(file, "latin1").startsWith("-----BEGIN PGP PUBLIC"), armor.length > 0)
      gpg.run(["--import", file])
      assert.match(gpg.run(["--list-keys", "--with-colons", own]).toString(), /jane@example\.org/)
      assert.equal((await ring.run(["export", "-k", own, file])).status, 23)
    }
    const file = path.join(newFolder("export", userId), "key")
    await ring.ok(["export", "-s", "-k", own, file])
    assert.equal(statSync(file).mode & 0o7777, 0o600)
    gpg.run(["--import", file])
    assert.match(gpg.run(["--list-secret-keys", "--with-colons", own]).toString(), /^sec:/m)
  })

  it("A26: shows what is expired and what is revoked, also when that comes later", async () => {
    const ring = new Ring()
    const old = new Gpg()
    const fake = ["--faked-system-time", "20200101T000000"]
    old.run([
      ...fake,
      "--pinentry-mode",
      "loopback",
      "--passphrase",
      "",
      "--quick-gen-key",
      "Old <old@example.org>",
      "ed25519",
      "sign",
      "1y",
    ])
    await ring.ok(["import", "-"], old.run(["--export"]))
    assert.equal((await ring.list())[0]?.status, "expired")
    assert.match((await ring.ok(["list"])).text, / Expires: +2020-12-31 .*\n {4}Status: +expired/)
    old.stop()

    const fingerprint = gpg.make("Rita <rita@example.org>", "1y")
    await ring.ok(["import", "-"], gpg.run(["--export", fingerprint]))
    assert.equal((await ring.list())[1]?.status, "good")
    gpg.revoke(fingerprint)
    assert.match(
      (await ring.ok(["import", "-"], gpg.run(["--export", fingerprint]))).text,
      /brought up to date/,
    )
    assert.equal((await ring.list())[1]?.status, "revoked")
  })

  it("S40: only full fingerprints name a key", async () => {
    const ring = new Ring()
    const fingerprint = await ring.newPair()
    for (const [length, status] of [
      [8, 26],
      [16, 26],
    ] as const) {
      const short = fingerprint.slice(-length)
      for (const args of [
        ["remove", short],
        ["export", "-k", short, "-"],
        ["push", "-u", "http://127.0.0.1:9", short],
        ["pull", "-u", "http://127.0.0.1:9", short],
      ]) {
        const result = await ring.run(args)
        assert.equal(result.status, status, args.join(" "))
        assert.match(result.stderr, /short key ID, which can be forged/)
      }
      const image = path.join(newFolder("image", userId), "image.sif")
      const demanded = await sifcrypt(["exec", `--verify=${short}`, image, "echo"], { env: ring.env })
      assert.equal(demanded.status, 20)
      assert.match(demanded.stderr, /no whole fingerprint/)
    }
    const spaced = (fingerprint.match(/.{4}/g) ?? []).join(" ").toLowerCase()
    await ring.ok(["remove", "-b", spaced])
    assert.deepEqual(await ring.list(), [])
    assert.deepEqual(await ring.list("-s"), [])
  })

  it("S10: a ring that somebody else may read or write is refused wherever it is used", async function () {
    const ring = new Ring()
    const fingerprint = await ring.newPair()
    const image = path.join(newFolder("image", userId), "image.sif")
    await sifcryptOk(["build", image, makeRootTree()])
    await sifcryptOk(["sign", "-k", fingerprint, image], { env: ring.env })
    await sifcryptOk(["verify", image], { env: ring.env })
    const refused = async (what: string): Promise<void> => {
      for (const args of [
        ["key", "list"],
        ["key", "list", "-s"],
        ["key", "export", "-k", fingerprint, "-"],
        ["key", "remove", fingerprint],
        ["sign", "-k", fingerprint, image],
        ["verify", image],
        ["exec", "--verify", image, "echo"],
      ]) {
        const result = await sifcrypt(args, { env: ring.env })
        assert.equal(result.status, 26, `${what}: ${args.join(" ")}: ${result.stderr}`)
        assert.match(result.stderr, /is not to be trusted/)
      }
    }
    for (const [file, wrong, right] of [
      ["", 0o750, 0o700],
      ["pgp-public", 0o620, 0o600],
      ["pgp-secret", 0o604, 0o600],
    ] as const) {
      chmodSync(path.join(ring.folder, file), wrong)
      await refused(`${file} ${wrong.toString(8)}`)
      chmodSync(path.join(ring.folder, file), right)
    }
    if (!isRoot) skip(this, "needs root, to give the ring to another user")
    chownSync(path.join(ring.folder, "pgp-public"), 0, 0)
    await refused("another owner")
    chownSync(path.join(ring.folder, "pgp-public"), userId, userId)
    await sifcryptOk(["verify", image], { env: ring.env })
  })

  it("S10: a link in the place of a ring is refused", async () => {
    const ring = new Ring()
    const other = new Ring()
    await other.newPair()
    mkdirSync(ring.folder, { mode: 0o700 })
    symlinkSync(path.join(other.folder, "pgp-public"), path.join(ring.folder, "pgp-public"))
    if (isRoot) chownSync(ring.folder, userId, userId)
    assert.equal((await ring.run(["list"])).status, 26)
  })

  it("signs and verifies with imported keys, and is refused what is of nobody known", async () => {
    const ring = new Ring()
    const fingerprint = gpg.make("Sam <sam@example.org>", "1y")
    await ring.ok(["import", "-"], gpg.secret(fingerprint))
    const folder = newFolder("signed", userId)
    const image = path.join(folder, "image.sif")
    const secret = path.join(folder, "password")
    writeFileSync(secret, password)
    await sifcryptOk(["build", image, makeRootTree()])
    await sifcryptOk(["sign", "-k", fingerprint, "--key-passphrase-file", secret, image], { env: ring.env })
    assert.match((await sifcryptOk(["verify", image], { env: ring.env })).text, new RegExp(fingerprint))
    assert.equal((await sifcrypt(["verify", image], { env: new Ring().env })).status, 26)
  })

  it("rings of Apptainer and Singularity are read and used where they are, and never written", async () => {
    const own = new Ring()
    const places = { APPTAINER_KEYSDIR: new Ring(), SINGULARITY_SYPGPDIR: new Ring() }
    const env: Record<string, string> = { ...own.env }
    const fingerprints: string[] = []
    for (const [name, peer] of Object.entries(places)) {
      fingerprints.push(await peer.newPair())
      env[name] = peer.folder
    }
    const before = Object.values(places).map(({ folder }) => readFileSync(path.join(folder, "pgp-public")))
    const listings = JSON.parse((await sifcryptOk(["key", "list", "--json"], { env })).text) as Listing[]
    assert.deepEqual(
      listings.map(({ kind, keys }) => [kind, ...keys.map((key) => key.fingerprint)]),
      [["own"], ...fingerprints.map((one) => ["peer", one])],
    )
    const image = path.join(newFolder("image", userId), "image.sif")
    await sifcryptOk(["build", image, makeRootTree()])
    for (const fingerprint of fingerprints) await sifcryptOk(["sign", "-k", fingerprint, image], { env })
    await sifcryptOk(["verify", "--require", fingerprints.join(","), image], { env })
    assert.equal((await sifcrypt(["key", "remove", fingerprints[0] ?? ""], { env })).status, 26)
    assert.deepEqual(
      Object.values(places).map(({ folder }) => readFileSync(path.join(folder, "pgp-public"))),
      before,
    )
    chmodSync(path.join(places.APPTAINER_KEYSDIR.folder, "pgp-public"), 0o666)
    const writable = await sifcrypt(["verify", image], { env })
    assert.equal(writable.status, 26)
    assert.match(writable.stderr, /others may write it/)
  })

  it("puts imported private keys under a new password", async () => {
    const ring = new Ring()
    const fingerprint = gpg.make("New <new@example.org>", "1y")
    const folder = newFolder("passwords", userId)
    const file = (name: string, text: string | Buffer): string => {
      writeFileSync(path.join(folder, name), text)
      return path.join(folder, name)
    }
    const [old, wrong, next] = [file("old", password), file("wrong", "wrong"), file("next", "next")]
    const key = file("key.asc", gpg.secret(fingerprint))
    const bad = await ring.run(["import", "--password-file", wrong, "--new-password-file", next, key])
    assert.equal(bad.status, 26, bad.stderr)
    await ring.ok(["import", "--password-file", old, "--new-password-file", next, key])
    const image = path.join(folder, "image.sif")
    await sifcryptOk(["build", image, makeRootTree()])
    const sign = (with_: string): Promise<Result> =>
      sifcrypt(["sign", "--key-passphrase-file", with_, image], { env: ring.env })
    assert.notEqual((await sign(old)).status, 0)
    const good = await sign(next)
    assert.equal(good.status, 0, good.stderr)
  })

  it("keeps what it cannot read, and every key when several write at once", async () => {
    const ring = new Ring()
    await ring.newPair()
    // A public key of version 4 and an algorithm that nobody knows.
    const body = Buffer.from([4, 0, 0, 0, 1, 99, 0, 8, 0xff])
    const unknown = Buffer.concat([Buffer.from([0xc6, body.length]), body])
    const file = path.join(ring.folder, "pgp-public")
    writeFileSync(file, Buffer.concat([unknown, readFileSync(file)]))
    await Promise.all([1, 2, 3, 4].map(() => ring.newPair()))
    assert.equal((await ring.list()).length, 5)
    assert.equal((await ring.list("-s")).length, 5)
    assert.ok(readFileSync(file).includes(unknown))
    assert.match((await ring.ok(["list"])).text, /1 more of a kind that is not known here/)
  })

  it("a writer that is killed leaves the ring as it was before or after", async () => {
    const ring = new Ring()
    await ring.newPair()
    const file = path.join(newFolder("keys", userId), "keys")
    writeFileSync(file, gpg.run(["--export"]))
    for (let delay = 1; delay <= 12; delay++) {
      const child = startSifcrypt(["key", "import", file], { env: ring.env })
      setTimeout(() => child.kill("SIGKILL"), delay * 40)
      await finish(child)
      assert.ok((await ring.list()).length >= 1)
    }
    await ring.ok(["import", file])
    assert.deepEqual(readdirSync(ring.folder).sort(), ["pgp-public", "pgp-secret"])
  })

  for (const [what, bytes] of [
    ["no keys", Buffer.from("hello\n")],
    ["nothing", Buffer.alloc(0)],
    ["a length past its end", Buffer.from([0xc6, 0xff, 0xff, 0xff, 0xff, 0xff, 4])],
    ["a partial length", Buffer.from([0xc6, 0xe1, 4, 0])],
    ["a user ID before any key", Buffer.from([0xcd, 1, 0x41])],
    [
      "armor that is no base64",
      Buffer.from("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!!\n-----END PGP PUBLIC KEY BLOCK-----\n"),
    ],
  ] as const)
    it(`import refuses a file with ${what}`, async () => {
      const ring = new Ring()
      const result = await ring
        .ok(["list"])
        .then(() => sifcrypt(["key", "import", "-"], { env: ring.env, input: bytes }))
      assert.equal(result.status, 26, result.stderr)
      assert.match(result.stderr, /holds no OpenPGP keys/)
      assert.equal(existsSync(ring.folder), false)
    })
})
