import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { chmodSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  keyFingerprint,
  nodeCertificates,
  openBundle,
  parseHead,
  sealBundle,
} from "../../../lib/batch/bundle.ts"
import { SecretTable } from "../../../lib/batch/secret-table.ts"
import { wrapSecret } from "../../../lib/key/rsa-oaep.ts"
import { selfSigned } from "../../../lib/key/certificate.ts"
import { newFolder } from "../../support/scratch.ts"

describe("a bundle", () => {
  const [one, two, outside] = Array.from({ length: 3 }, () =>
    generateKeyPairSync("rsa", { modulusLength: 2048 }),
  )
  const digest = "ab".repeat(32)
  const secret = Buffer.alloc(64, 7)
  const table = SecretTable.write(new Map([[digest, secret]]))
  const about = { set: "set", uid: 1000, expires: 5000, digests: [digest] }
  const bundle = sealBundle(about, table, [
    { node: "n1", key: one!.publicKey },
    { node: "n2", key: two!.publicKey },
  ])
  const partOf = (place: number): Parameters<typeof openBundle>[0] => ({ ...bundle, ...bundle.nodes[place]! })

  it("is opened by each node that it is for, and says in the clear what it is about", () => {
    assert.deepEqual(parseHead(bundle.head), { version: 1, ...about })
    for (const [place, { privateKey, publicKey }] of [one!, two!].entries()) {
      assert.equal(bundle.nodes[place]!.fingerprint, keyFingerprint(privateKey))
      assert.equal(keyFingerprint(privateKey), keyFingerprint(publicKey))
      using opened = SecretTable.of(openBundle(partOf(place), privateKey)!)
      assert.deepEqual(Buffer.from(opened.get(digest)!), secret)
      assert.equal(opened.get("cd".repeat(32)), undefined)
    }
    assert.equal(JSON.stringify(bundle).includes(secret.toString("base64").slice(0, 40)), false)
  })

  it("is opened by no other, and not where any of it was changed", () => {
    const own = partOf(0)
    assert.equal(openBundle(own, outside!.privateKey), undefined)
    assert.equal(openBundle(own, two!.privateKey), undefined)
    const flip = (base64: string, at: number): string => {
      const bytes = Buffer.from(base64, "base64")
      bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at)
      return bytes.toString("base64")
    }
    const size = Buffer.from(own.sealed, "base64").length
    for (const at of [0, 12, size - 17, size - 1])
      assert.equal(openBundle({ ...own, sealed: flip(own.sealed, at) }, one!.privateKey), undefined)
    for (const cut of [0, 11, 28, size - 1]) {
      const sealed = Buffer.from(own.sealed, "base64").subarray(0, cut).toString("base64")
      assert.equal(openBundle({ ...own, sealed }, one!.privateKey), undefined)
    }
    for (const changes of [{ uid: 1001 }, { expires: 6000 }, { set: "other" }, { digests: [] }]) {
      const head = JSON.stringify({ version: 1, ...about, ...changes })
      assert.equal(openBundle({ ...own, head }, one!.privateKey), undefined)
    }
    assert.equal(openBundle({ ...own, head: `${own.head} ` }, one!.privateKey), undefined)
    // Another bundle's key, and what was wrapped for the node as the recipient of an image.
    const other = sealBundle(about, table, [{ node: "n1", key: one!.publicKey }])
    for (const key of [other.nodes[0]!.key, wrapSecret(one!.publicKey, secret).toString("base64"), ""])
      assert.equal(openBundle({ ...own, key }, one!.privateKey), undefined)
  })

  it("has no table that says more than there is", () => {
    for (const cut of [1, 33, 34, table.length - 1])
      assert.throws(() => SecretTable.of(Buffer.from(table.subarray(0, cut))), { code: "ERR_BATCH_SET" })
    using empty = SecretTable.of(Buffer.alloc(0))
    assert.equal(empty.get(digest), undefined)
  })

  it("is for the nodes whose certificates are valid, and nobody else could have put there", async () => {
    const folder = newFolder("nodes")
    const put = (name: string, notBefore: Date, days = 30): void => {
      writeFileSync(
        path.join(folder, name),
        selfSigned({ key: one!.privateKey, commonName: "n", notBefore, days }),
      )
    }
    put("n1.cer", new Date())
    put("n3.cer", new Date(Date.now() - 40 * 86_400_000))
    const found = await nodeCertificates(folder, ["n1", "n2"])
    assert.deepEqual(
      found.map(({ node, key }) => [node, keyFingerprint(key)]),
      [["n1", keyFingerprint(one!.publicKey)]],
    )
    await assert.rejects(nodeCertificates(folder, ["n3"]), {
      code: "ERR_BATCH_KEY",
      message: /n3\.cer: .* valid from/,
    })
    await assert.rejects(nodeCertificates(path.join(folder, "none"), ["n1"]), { code: "ERR_BATCH_KEY" })
    chmodSync(folder, 0o777)
    await assert.rejects(nodeCertificates(folder, ["n1"]), {
      code: "ERR_BATCH_KEY",
      message: /others may put/,
    })
  })
})
