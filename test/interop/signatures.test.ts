// Images that a live Apptainer signed, verified here.
import assert from "node:assert/strict"
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import { copyFileSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { isRoot, sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
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
