// Images that a live Apptainer signed, verified here, and images signed here that it verifies.
import assert from "node:assert/strict"
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import { copyFileSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { isRoot, sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { GnuPg } from "../support/gnupg.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { openssl } from "../support/openssl.ts"
import { makeRootTree } from "../support/trees.ts"
import { vector } from "../vectors/load.ts"
import { inPeer, SharedFolder } from "./peer.ts"

const pairs: readonly (readonly [
  string,
  () => { readonly publicKey: KeyObject; readonly privateKey: KeyObject },
])[] = [
  ["rsa", () => generateKeyPairSync("rsa", { modulusLength: 2048 })],
  ["P-256", () => generateKeyPairSync("ec", { namedCurve: "P-256" })],
  ["P-384", () => generateKeyPairSync("ec", { namedCurve: "P-384" })],
  ["P-521", () => generateKeyPairSync("ec", { namedCurve: "P-521" })],
  ["ed25519", () => generateKeyPairSync("ed25519")],
]

describe("signatures of a live Apptainer", function () {
  let shared: SharedFolder
  let folder: string
  const image = "image.sif"

  before(async function () {
    if (!isRoot) skip(this, "needs root, as the peer does")
    shared = new SharedFolder()
    folder = newFolder("signatures", userId)
    await sifcryptOk(["build", "--pem-path", testKeys().publicKey, path.join(folder, image), makeRootTree()])
  })

  after(() => {
    shared[Symbol.dispose]()
  })

  /** A copy of the image that the peer signs, and its name here. */
  function signed(name: string, sign: (inside: string) => void): string {
    const file = path.join(shared.path, name)
    copyFileSync(path.join(folder, image), file)
    sign(path.join(shared.inside, name))
    return file
  }

  async function refusesChanged(file: string, args: readonly string[]): Promise<void> {
    const bytes = readFileSync(file)
    // In the ciphertext, which lies before the crypto message and the signature.
    bytes[bytes.length - 20_000] = (bytes[bytes.length - 20_000] ?? 0) ^ 1
    const changed = path.join(shared.path, "changed.sif")
    writeFileSync(changed, bytes)
    const result = await sifcrypt(["verify", ...args, changed], { as: "self" })
    assert.equal(result.status, 26)
    assert.match(result.stderr, /its data was changed/)
  }

  for (const [name, generate] of pairs)
    it(`verify here: DSSE, ${name}`, async () => {
      const { publicKey, privateKey } = generate()
      writeFileSync(
        path.join(shared.path, `${name}.key`),
        privateKey.export({ type: "pkcs8", format: "pem" }),
      )
      const pem = path.join(shared.path, `${name}.pem`)
      writeFileSync(pem, publicKey.export({ type: "spki", format: "pem" }))
      const file = signed(`${name}.sif`, (inside) => {
        inPeer("apptainer", "sign", "--key", path.join(shared.inside, `${name}.key`), inside)
      })
      const result = await sifcryptOk(["verify", "--key", pem, file], { as: "self" })
      assert.match(result.text, /\(dsse\) of group 1: good/)
      await refusesChanged(file, ["--key", pem])
    })

  for (const [name, generate] of pairs)
    it(`A28: ours verify there: DSSE, ${name}`, async () => {
      const { publicKey, privateKey } = generate()
      const key = path.join(folder, `${name}.key`)
      writeFileSync(key, privateKey.export({ type: "pkcs8", format: "pem" }))
      writeFileSync(
        path.join(shared.path, `ours-${name}.pem`),
        publicKey.export({ type: "spki", format: "pem" }),
      )
      const file = path.join(shared.path, `ours-${name}.sif`)
      copyFileSync(path.join(folder, image), file)
      await sifcryptOk(["sign", "--key", key, file], { as: "self" })
      const inside = path.join(shared.inside, `ours-${name}`)
      assert.match(
        inPeer("apptainer", "verify", "--key", `${inside}.pem`, `${inside}.sif`),
        /^1 {3}\|1 {7}\|/m,
      )
      // Nothing is accepted there that was changed.
      const bytes = readFileSync(file)
      bytes[4096 + 80] = 0x41 // in the name of object 1
      writeFileSync(file, bytes)
      assert.throws(() => inPeer("apptainer", "verify", "--key", `${inside}.pem`, `${inside}.sif`))
    })

  describe("with a key ring for both", () => {
    const fingerprints: Record<string, string> = {}
    let env: Readonly<Record<string, string>>
    let peerEnv: readonly string[]
    const password = "correct horse"

    before(function () {
      this.timeout(120_000)
      env = { APPTAINER_KEYSDIR: path.join(shared.path, "both") }
      peerEnv = ["env", `APPTAINER_KEYSDIR=${path.join(shared.inside, "both")}`]
      using gpg = new GnuPg()
      for (const [name, kind] of [
        ["RSA", "rsa2048"],
        ["Ed25519", "ed25519"],
      ] as const)
        // prettier-ignore
        fingerprints[name] = gpg.generate(name, kind, "sign")
      // Its primary key only certifies.
      fingerprints["subkey"] = gpg.generate("subkey", "ed25519", "cert")
      gpg.run([
        ...["--pinentry-mode", "loopback", "--passphrase", ""],
        ...["--quick-add-key", fingerprints["subkey"], "ed25519", "sign", "never"],
      ])
      for (const fingerprint of Object.values(fingerprints)) {
        const file = path.join(shared.path, `${fingerprint}.asc`)
        const secret = ["--pinentry-mode", "loopback", "--passphrase", ""]
        writeFileSync(file, gpg.run([...secret, "--armor", "--export-secret-keys", fingerprint]))
        inPeer(...at(peerEnv), "apptainer", "key", "import", path.join(shared.inside, `${fingerprint}.asc`))
      }
      const newpair = ["key", "newpair", "--name", "Own", "--email", "own@example.org", "--comment", "x"]
      inPeer(
        ...at(peerEnv),
        "apptainer",
        ...newpair,
        "--password",
        password,
        "--push=false",
        "--bit-length",
        "2048",
      )
    })

    /** The program and what follows it. */
    function at(words: readonly string[]): [string, ...string[]] {
      const [program = "", ...rest] = words
      return [program, ...rest]
    }

    for (const name of ["RSA", "Ed25519", "subkey"])
      it(`A27: ours verify there: OpenPGP, ${name}`, async () => {
        const file = path.join(shared.path, `ours-pgp-${name}.sif`)
        copyFileSync(path.join(folder, image), file)
        await sifcryptOk(["sign", "-k", fingerprints[name] ?? "", file], { as: "self", env })
        const inside = path.join(shared.inside, `ours-pgp-${name}.sif`)
        const output = inPeer(...at(peerEnv), "apptainer", "verify", "--local", inside)
        assert.match(output, new RegExp(`Signing entity: ${name}`))
        assert.match(output, new RegExp(`Fingerprint: ${fingerprints[name] ?? ""}`))
        await sifcryptOk(["verify", file], { as: "self", env })
      })

    it("A27: ours verify there: the peer's own key, under a password", async () => {
      const file = path.join(shared.path, "ours-own.sif")
      copyFileSync(path.join(folder, image), file)
      const passwordFile = path.join(folder, "password")
      writeFileSync(passwordFile, `${password}\n`)
      // The fourth of the ring, as \`apptainer key list --secret\` counts.
      const args = ["sign", "-k", "3", "--key-passphrase-file", passwordFile, file]
      await sifcryptOk(args, { as: "self", env })
      const output = inPeer(
        ...at(peerEnv),
        ...["apptainer", "verify", "--local", path.join(shared.inside, "ours-own.sif")],
      )
      assert.match(output, /Signing entity: Own/)
    })

    for (const [index, name] of ["RSA", "Ed25519"].entries())
      it(`verify here: OpenPGP, ${name}`, async () => {
        const file = signed(`theirs-${name}.sif`, (inside) => {
          inPeer(...at(peerEnv), "apptainer", "sign", "--keyidx", String(index), inside)
        })
        const { text } = await sifcryptOk(["verify", file], { as: "self", env })
        assert.match(
          text,
          new RegExp(`\\(openpgp\\) of group 1: good, .*\n.*${name}\n.*${fingerprints[name] ?? ""}`),
        )
      })

    const ways: readonly (readonly [string, readonly string[], boolean, boolean, boolean])[] = [
      // What is signed; does the whole verify, group 1, object 3?
      ["groups", [], true, true, true],
      ["one group", ["-g", "1"], false, true, false],
      ["one object", ["-i", "3"], false, false, true],
    ]
    for (const [what, args, whole, group, object] of ways)
      for (const ours of [true, false])
        it(`${ours ? "ours verify there, and here" : "theirs verify here, and there"}: ${what}`, async () => {
          const bytes = vector("sif/two-groups-signed-legacy-group.sif")
          bytes.fill(0, 4096 + 3 * 585, 4096 + 4 * 585) // without its signature
          bytes.writeBigInt64LE(45n, 80)
          const name = `${what.replace(" ", "-")}-${ours ? "ours" : "theirs"}.sif`
          const file = path.join(shared.path, name)
          const inside = path.join(shared.inside, name)
          writeFileSync(file, bytes)
          if (ours)
            await sifcryptOk(["sign", "-k", fingerprints["RSA"] ?? "", ...args, file], { as: "self", env })
          else inPeer(...at(peerEnv), "apptainer", "sign", "--keyidx", "0", ...args, inside)
          for (const [selection, good] of [
            [[], whole],
            [["-g", "1"], group],
            [["-i", "3"], object],
          ] as const) {
            const here = await sifcrypt(["verify", ...selection, file], { as: "self", env })
            assert.equal(here.status, good ? 0 : 26, here.stderr)
            const there = (): string =>
              inPeer(...at(peerEnv), "apptainer", "verify", "--local", ...selection, inside)
            if (good) there()
            else assert.throws(there)
          }
        })

    it("what a killed signer leaves is the old image or the new one there, too", async () => {
      const old = path.join(shared.path, "killed.sif")
      copyFileSync(path.join(folder, image), old)
      await sifcryptOk(["sign", "-k", fingerprints["RSA"] ?? "", old], { as: "self", env })
      const before = readFileSync(old)
      await sifcryptOk(["sign", "-k", fingerprints["Ed25519"] ?? "", old], { as: "self", env })
      const after = readFileSync(old)
      const record = [...Array(48).keys()]
        .map((slot) => 4096 + slot * 585)
        .find((at) => before[at + 4] === 0 && after[at + 4] === 1)
      assert.ok(record !== undefined)
      const inside = path.join(shared.inside, "killed.sif")
      const verified = (): number =>
        inPeer(...at(peerEnv), "apptainer", "verify", "--local", inside).split("Signing entity").length - 1
      // Everything is written but the byte that makes an object of it.
      const unswitched = Buffer.from(after)
      unswitched[record + 4] = 0
      before.copy(unswitched, 0, 0, 128)
      writeFileSync(old, unswitched)
      assert.equal(verified(), 1)
      // That byte, too, but not the counts in the header.
      before.copy(after, 0, 0, 128)
      writeFileSync(old, after)
      assert.equal(verified(), 2)
      // And the peer signs what was left.
      inPeer(...at(peerEnv), "apptainer", "sign", "--keyidx", "0", inside)
      assert.equal(verified(), 3)
      await sifcryptOk(["verify", "--require", "all", old], { as: "self", env })
    })

    it("signatures of both kinds and by several signers: each verifies here with its key alone", async () => {
      const { publicKey, privateKey } = generateKeyPairSync("ed25519")
      const pem = path.join(folder, "mixed.pem")
      writeFileSync(pem, publicKey.export({ type: "spki", format: "pem" }))
      writeFileSync(path.join(folder, "mixed.key"), privateKey.export({ type: "pkcs8", format: "pem" }))
      const file = signed("mixed.sif", (inside) => {
        inPeer(...at(peerEnv), "apptainer", "sign", "--keyidx", "0", inside)
      })
      await sifcryptOk(["sign", "--key", path.join(folder, "mixed.key"), file], { as: "self" })
      await sifcryptOk(["verify", "--key", pem, file], { as: "self" })
      await sifcryptOk(["verify", file], { as: "self", env })
      await sifcryptOk(["verify", "--require", "all", "--key", pem, file], { as: "self", env })
      assert.equal((await sifcrypt(["verify", "--require", "all", file], { as: "self", env })).status, 26)
    })
  })

  it("A28: a certificate's key signs here and there, and its chain is followed here and there", async () => {
    const file = (name: string): string => path.join(shared.path, name)
    const inside = (name: string): string => path.join(shared.inside, name)
    const make = (name: string, issuer: string, extensions: string): void => {
      const key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        file(`${name}.key`),
      ]
      const by = issuer === name ? [] : ["-CA", file(`${issuer}.crt`), "-CAkey", file(`${issuer}.key`)]
      writeFileSync(file(`${name}.cnf`), `[req]\ndistinguished_name=d\n[d]\n[x]\n${extensions}`)
      const config = ["-config", file(`${name}.cnf`), "-extensions", "x", "-days", "30"]
      openssl(["req", "-x509", ...key, ...by, ...config, "-subj", `/CN=${name}`, "-out", file(`${name}.crt`)])
    }
    const authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n"
    make("root", "root", authority)
    make("middle", "root", authority)
    make("leaf", "middle", "keyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning\n")
    const chain = (of: (name: string) => string): string[] => [
      ...["--certificate", of("leaf.crt"), "--certificate-intermediates", of("middle.crt")],
      ...["--certificate-roots", of("root.crt")],
    ]
    const theirs = signed("certified-theirs.sif", (name) => {
      inPeer("apptainer", "sign", "--key", inside("leaf.key"), name)
    })
    const ours = file("certified-ours.sif")
    copyFileSync(path.join(folder, image), ours)
    await sifcryptOk(["sign", "--key", file("leaf.key"), ours], { as: "self" })
    for (const one of [theirs, ours]) {
      const { text } = await sifcryptOk(["verify", ...chain(file), one], { as: "self" })
      assert.match(text, /Signing entity: CN=leaf/)
      inPeer("apptainer", "verify", ...chain(inside), inside(path.basename(one)))
    }
  })

  it("verify here: OpenPGP, with the peer's own key ring", async function () {
    this.timeout(120_000)
    const rings = path.join(shared.inside, "rings")
    const environment = [`APPTAINER_KEYSDIR=${rings}`]
    const args = ["key", "newpair", "--name", "Test", "--email", "test@example.org", "--comment", "test"]
    inPeer(
      "env",
      ...environment,
      "apptainer",
      ...args,
      "--password",
      "",
      "--push=false",
      "--bit-length",
      "2048",
    )
    const file = signed("pgp.sif", (inside) => {
      inPeer("env", ...environment, "apptainer", "sign", inside)
    })
    const ring = path.join(shared.path, "rings", "pgp-public")
    const result = await sifcryptOk(["verify", "--keyring", ring, file], { as: "self" })
    assert.match(result.text, /\(openpgp\) of group 1: good, /)
    await refusesChanged(file, ["--keyring", ring])
    const env = { APPTAINER_KEYSDIR: path.join(shared.path, "rings") }
    const key = testKeys().privateKey
    const opened = await sifcryptOk(["cat", "--verify", "--pem-path", key, file, "/data/hello"], {
      as: "self",
      env,
    })
    assert.equal(opened.text, "hello\n")
  })
})
