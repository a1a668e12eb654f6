// Signatures from the command's side: verify, and images that are opened only if they are signed.
import assert from "node:assert/strict"
import { generateKeyPairSync, type KeyObject } from "node:crypto"
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import path from "node:path"
import { open, sif } from "../../lib/index.ts"
import { sifcrypt, sifcryptOk, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { openssl } from "../support/openssl.ts"
import { newFolder } from "../support/scratch.ts"
import { addSignature, envelope, metadataOf, signDsse } from "../support/signing.ts"
import { makeRootTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"

const pgpImage = vectorPath("sif/one-group-signed-pgp.sif")
const dsseImage = vectorPath("sif/one-group-signed-dsse.sif")
const keyring = vectorPath("sif/pgp-private.asc")
const fingerprint = "12045C8C0B1004D058DE4BEDA20C27EE7FF7BA84"

describe("sifcrypt verify", () => {
  it("says who signed which objects", async () => {
    const result = await sifcryptOk(["verify", "--keyring", keyring, pgpImage])
    assert.match(result.text, /Signature 3 \(openpgp\) of group 1: good, 2020-06-30T/)
    assert.match(result.text, new RegExp(`Fingerprint: ${fingerprint}`))
    assert.match(
      result.text,
      /^ID {2}\|GROUP {3}\|LINK {4}\|TYPE\n-+\n1 {3}\|1 {7}\|NONE {4}\|FS\n2 {3}\|1 {7}\|NONE {4}\|FS$/m,
    )
    assert.match(result.text, new RegExp(`Verified: .* is signed by ${fingerprint}`))
  })

  it("prints its report as JSON", async () => {
    const args = ["verify", "--json", "--key", vectorPath("sif/rsa-public.pem"), dsseImage]
    const report = JSON.parse((await sifcryptOk(args)).text) as Record<string, unknown>
    assert.equal(report["verified"], true)
    assert.equal((report["signers"] as unknown[]).length, 1)
  })

  it("ends with 26 and the reason where nobody is known", async () => {
    const result = await sifcrypt(["verify", "--key", vectorPath("sif/ecdsa-public.pem"), dsseImage])
    assert.equal(result.status, 26)
    assert.match(result.stderr, /not verified: group 1: no signature by a key that was given/)
    assert.doesNotMatch(result.text, /Verified/)
  })

  it("reads Apptainer's key ring where it lies", async () => {
    const folder = newFolder("rings", userId)
    copyFileSync(keyring, path.join(folder, "pgp-public"))
    await sifcryptOk(["verify", pgpImage], { env: { APPTAINER_KEYSDIR: folder } })
  })

  const legacy = vectorPath("sif/two-groups-signed-legacy-all.sif")
  const current = (name: string): string => vectorPath(`sif/${name}.sif`)
  const pem = (name: string): string => vectorPath(`sif/${name}-public.pem`)
  // Apptainer's verdicts on these very images; where both kinds of key are the question, ours.
  const verdicts: readonly (readonly [string, string, readonly string[], number, RegExp])[] = [
    ["OpenPGP with its key", current("one-group-signed-pgp"), ["--keyring", keyring], 0, /^2 /m],
    ["OpenPGP in the old way", current("one-group-signed-pgp"), ["--keyring", keyring, "--legacy-insecure"], 26, /object 2: no signature/],
    ["OpenPGP with a PEM key only", current("one-group-signed-pgp"), ["--key", pem("rsa")], 26, /no signature by a key that was given/],
    ["DSSE with the first signer's key", current("one-group-signed-dsse"), ["--key", pem("ed25519")], 0, /^2 /m],
    ["DSSE with the second signer's key", current("one-group-signed-dsse"), ["--key", pem("rsa")], 0, /^2 /m],
    ["DSSE with another key", current("one-group-signed-dsse"), ["--key", pem("ecdsa")], 26, /no signature by a key that was given/],
    ["DSSE with an OpenPGP key only", current("one-group-signed-dsse"), ["--keyring", keyring], 26, /no signature by a key that was given/],
    ["S1: old signatures", legacy, ["--keyring", keyring], 26, /group 1: no signature/],
    ["old signatures, in the old way", legacy, ["--keyring", keyring, "--legacy-insecure"], 0, /^2 .*\nVerified/m],
    ["S2: old signatures, in the old way, of all", legacy, ["--keyring", keyring, "--legacy-insecure", "-a"], 26, /object 3: no signature/],
    ["old group signatures, in the old way", current("two-groups-signed-legacy-group"), ["--keyring", keyring, "--legacy-insecure"], 26, /object 2: no signature/],
    ["old group signatures, of the group", current("two-groups-signed-legacy-group"), ["--keyring", keyring, "--legacy-insecure", "-g", "1"], 0, /^1 .*\n2 .*\nVerified/m],
    ["S2: no objects", current("empty-launch-script"), ["--keyring", keyring], 26, /nothing in the image can be signed/],
  ] // prettier-ignore
  for (const [what, image, args, status, message] of verdicts)
    it(`${status === 0 ? "accepts" : "refuses"} ${what}`, async () => {
      const result = await sifcrypt(["verify", "-l", ...args, image])
      assert.equal(result.status, status, result.stderr)
      assert.match(status === 0 ? result.text : result.stderr, message)
      assert.equal(result.stderr.includes("insecure: old signatures"), args.includes("--legacy-insecure"))
    })

  it("A28: says why a certificate is not good", async () => {
    const self = newFolder("certificate")
    const [key, certificate] = [path.join(self, "key"), path.join(self, "certificate")]
    openssl([
      "req",
      "-x509",
      "-newkey",
      "ed25519",
      "-nodes",
      "-keyout",
      key,
      "-subj",
      "/CN=me",
      "-out",
      certificate,
    ])
    const result = await sifcrypt([
      "verify",
      "--certificate",
      certificate,
      "--certificate-roots",
      certificate,
      dsseImage,
    ])
    assert.equal(result.status, 26)
    assert.match(result.stderr, /the certificate of CN=me is not good: it is not for signing code/)
    const alone = await sifcrypt(["verify", "--certificate-roots", certificate, dsseImage])
    assert.equal(alone.status, 20)
  })

  for (const [what, args, message] of [
    ["a private key", ["--key", vectorPath("sif/rsa-private.pem")], /it is a private key/],
    ["no key at all", ["--key", pgpImage], /a public key in PEM form is needed/],
    ["a file that is not there", ["--key", "/nonexistent"], /there is no such file/],
    ["no key ring", ["--keyring", dsseImage], /holds no OpenPGP keys/],
    ["a group that is not there", ["--keyring", keyring, "-g", "7"], /there is no group 7/],
  ] as const)
    it(`refuses ${what}`, async () => {
      const result = await sifcrypt(["verify", ...args, pgpImage])
      assert.equal(result.status, 26, result.stderr)
      assert.match(result.stderr, message)
    })
})

describe("images that must be signed", () => {
  const keys = testKeys()
  const folder = newFolder("signed", userId)
  const unsigned = path.join(folder, "unsigned.sif")
  const signed = path.join(folder, "signed.sif")
  const signer = generateKeyPairSync("ed25519")
  const stranger = generateKeyPairSync("ed25519")
  const pem = (name: string, key: KeyObject): string => {
    const file = path.join(folder, name)
    writeFileSync(file, key.export({ type: "spki", format: "pem" }))
    return file
  }
  const signerFile = pem("signer.pem", signer.publicKey)
  const strangerFile = pem("stranger.pem", stranger.publicKey)
  const open26 = async (args: readonly string[], message: RegExp): Promise<void> => {
    const result = await sifcrypt(args)
    assert.equal(result.status, 26, result.stderr)
    assert.match(result.stderr, message)
    assert.equal(result.text, "")
  }

  before(async () => {
    const tree = makeRootTree()
    await sifcryptOk(["build", "--pem-path", keys.publicKey, unsigned, tree])
    copyFileSync(unsigned, signed)
    await signDsse(signed, signer.privateKey, [1, 2])
  })

  it("S28: open when the signer's key is given", async () => {
    for (const [command, ...rest] of [
      ["cat", "/data/hello"],
      ["exec", "cat", "/data/hello"],
    ]) {
      const args = [command ?? "", "--verify", "--signer-key", signerFile, "--pem-path", keys.privateKey]
      assert.equal((await sifcryptOk([...args, signed, ...rest])).text, "hello\n")
    }
  })

  it("S28: are refused without a signature, before any key is used", async () => {
    const args = ["exec", "--verify", "--signer-key", signerFile, "--pem-path", "/nonexistent"]
    await open26([...args, unsigned, "true"], /is not verified: group 1: no signature/)
  })

  it("S28: are refused when somebody else signed them", async () => {
    const args = ["cat", "--verify", "--signer-key", strangerFile, "--pem-path", keys.privateKey]
    await open26([...args, signed, "/data/hello"], /no signature by a key that was given/)
  })

  it("A25, S28: --require-signer names whom, by fingerprint", async () => {
    const report = JSON.parse((await sifcryptOk(["verify", "--json", "--key", signerFile, signed])).text) as {
      signers: string[]
    }
    const args = ["cat", "--signer-key", signerFile, "--pem-path", keys.privateKey]
    const name = report.signers[0] ?? ""
    const right = await sifcryptOk([...args, "--require-signer", name, signed, "/data/hello"])
    assert.equal(right.text, "hello\n")
    const other = name.replace(/.$/, (last) => (last === "A" ? "E" : "A"))
    const wrong = [...args, "--require-signer", other, signed, "/data/hello"]
    await open26(wrong, /no good signature by SHA256:/)
  })

  it("S28: a changed byte of ciphertext is found before anything is mounted", async () => {
    const changed = path.join(folder, "changed.sif")
    copyFileSync(signed, changed)
    await using image = await sif.openSif(signed)
    const partition = image.primary()
    const fd = openSync(changed, "r+")
    writeSync(fd, Buffer.from([0x5a]), 0, 1, partition.offset + partition.size - 5000)
    closeSync(fd)
    const target = path.join(newFolder("signed-mount", userId), "mnt")
    mkdirSync(target)
    const args = ["mount", "--verify", "--signer-key", signerFile, "--pem-path", keys.privateKey]
    await open26([...args, changed, target], /object 1: signature \d+: its data was changed/)
    assert.equal(existsSync(path.join(target, "data")), false)
  })

  it("S3: what is verified is what is read, whatever has the name by then", async () => {
    const folder2 = newFolder("swapped")
    const name = path.join(folder2, "image.sif")
    copyFileSync(signed, name)
    const other = path.join(folder2, "other.sif")
    const tree = makeRootTree()
    writeFileSync(path.join(tree, "data", "hello"), "evil\n")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, other, tree], { as: "self" })
    let swapped = false
    await using image = await open(name, {
      unlock: [{ key: { file: keys.privateKey } }],
      verify: {
        keys: [signer.publicKey],
        onProgress: () => {
          if (!swapped) renameSync(other, name)
          swapped = true
        },
      },
    })
    assert.ok(swapped)
    assert.equal((await image.readFile("/data/hello")).toString(), "hello\n")
  })

  it("one unknown signer does not hide a good one, unless all are required", async () => {
    const both = path.join(folder, "both.sif")
    copyFileSync(signed, both)
    await signDsse(both, stranger.privateKey, [1, 2])
    await sifcryptOk(["verify", "--key", signerFile, both])
    const all = await sifcrypt(["verify", "--require", "all", "--key", signerFile, both])
    assert.equal(all.status, 26)
    assert.match(all.stderr, /is by no key that was given/)
    await sifcryptOk(["verify", "--require", "all", "--key", signerFile, "--key", strangerFile, both])
  })

  it("a signature of a part of the group does not spoil one of the whole", async () => {
    const part = path.join(folder, "part.sif")
    copyFileSync(signed, part)
    await addSignature(part, envelope(metadataOf(readFileSync(part), [1]), signer.privateKey))
    await sifcryptOk(["verify", "--key", signerFile, part])
  })
})
