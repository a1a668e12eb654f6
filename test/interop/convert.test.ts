// Images that were encrypted from plain ones, under a live Apptainer.
import assert from "node:assert/strict"
import { chmodSync, chownSync, copyFileSync, mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { encrypt } from "../../lib/index.ts"
import { idOf, packageRoot, runProgram, sifcryptOk, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { vector } from "../vectors/load.ts"
import { peerRoot } from "./peer.ts"

describe("a plain image of Apptainer's, encrypted", () => {
  const keys = testKeys()
  const folder = newFolder("converted")
  const plain = path.join(folder, "plain.sif")
  const key = path.join(folder, "key.pem")

  /** Runs Apptainer as an ordinary user in the folder. */
  async function apptainer(...args: readonly string[]): Promise<Result> {
    const script = path.join(packageRoot, "test", "support", "peer-run.sh")
    return await runProgram([script, "--bind", folder, "1000", "apptainer", ...args], {
      as: "self",
      env: { SIFCRYPT_PEER_ROOT: peerRoot },
    })
  }

  before(async () => {
    chmodSync(folder, 0o777)
    writeFileSync(plain, vector("peer/plain.sif"))
    copyFileSync(keys.privateKey, key)
    for (const publicMetadata of [false, true])
      await encrypt({
        image: plain,
        output: path.join(folder, publicMetadata ? "public.sif" : "sealed.sif"),
        recipients: [{ key: { file: keys.publicKey } }],
        format: "gocryptfs",
        publicMetadata,
      })
  })

  it("A6: runs there, with what is sealed behind the squashfs", async () => {
    const { status, text, stderr } = await apptainer("exec", "--pem-path", "key.pem", "sealed.sif", "ls", "/")
    assert.equal(status, 0, stderr)
    assert.match(text, /^etc$/m)
  })

  it("A10: shows its labels there with --public-metadata, and nothing otherwise", async () => {
    const shown = await apptainer("inspect", "public.sif")
    assert.equal(shown.status, 0, shown.stderr)
    assert.match(shown.text, /^org\.label-schema\.build-arch: amd64$/m)
    const hidden = await apptainer("inspect", "sealed.sif")
    assert.notEqual(hidden.status, 0)
    assert.doesNotMatch(hidden.text + hidden.stderr, /build-arch/)
  })
})

describe("an encrypted image in a plain view", () => {
  const keys = testKeys()
  // fusermount3 serves only users whom passwd knows.
  const as = "nobody"
  const folder = newFolder("viewed", idOf(as))
  const plain = path.join(folder, "plain.sif")
  const image = path.join(folder, "image.sif")
  const target = path.join(folder, "view")

  it("A6: runs under an Apptainer that knows nothing of it, and is inspected and listed", async () => {
    writeFileSync(plain, vector("peer/plain.sif"))
    mkdirSync(target)
    await encrypt({ image: plain, output: image, recipients: [{ key: { file: keys.publicKey } }] })
    for (const place of [image, target]) chownSync(place, idOf(as), idOf(as))
    await sifcryptOk(["view", "--pem-path", keys.privateKey, image, target], { as })
    try {
      const script = path.join(packageRoot, "test", "support", "peer-run.sh")
      const apptainer = (...args: readonly string[]): Promise<Result> =>
        runProgram([script, "--bind", folder, String(idOf(as)), "apptainer", ...args], {
          as: "self",
          env: { SIFCRYPT_PEER_ROOT: peerRoot },
        })
      const ran = await apptainer("exec", "view/image.sif", "ls", "/")
      assert.equal(ran.status, 0, ran.stderr)
      assert.match(ran.text, /^etc$/m)
      for (const args of [["inspect"], ["sif", "list"]]) {
        const viewed = await apptainer(...args, "view/image.sif")
        const original = await apptainer(...args, "plain.sif")
        assert.equal(viewed.status, 0, viewed.stderr)
        const withoutTimes = (text: string): string =>
          text.replaceAll(/^(?:Container|Created|Modified).*$/gm, "")
        assert.equal(withoutTimes(viewed.text), withoutTimes(original.text))
      }
    } finally {
      await sifcryptOk(["unmount", target], { as })
    }
  })
})
