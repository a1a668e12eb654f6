import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { checkBytes, parseDigest } from "../../../lib/oci/digest.ts"

const hex = "0123456789abcdef".repeat(4)

describe("parseDigest", () => {
  it("takes SHA-256 and SHA-512, whole", () => {
    assert.equal(parseDigest(`sha256:${hex}`, "x").hex, hex)
    assert.equal(parseDigest(`sha512:${hex}${hex}`, "x").bytes.length, 64)
  })

  for (const text of [
    undefined,
    7,
    "",
    hex,
    `sha256:`,
    `sha256:${hex.slice(1)}`,
    `sha256:${hex}0`,
    `sha256:${hex.toUpperCase()}`,
    `sha256:../${hex.slice(3)}`,
    `sha256:${hex}\n`,
    `\nsha256:${hex}`,
    `sha512:${hex}`,
  ])
    it(`S16: refuses ${JSON.stringify(text)}`, () => {
      assert.throws(() => parseDigest(text, "x"), { code: "ERR_OCI_FORMAT" })
    })

  it("S16: names an algorithm that it does not know", () => {
    for (const text of [`md5:${"a".repeat(32)}`, `sha1:${"a".repeat(40)}`, `constructor:${hex}`])
      assert.throws(() => parseDigest(text, "x"), { code: "ERR_OCI_UNSUPPORTED" })
  })
})

describe("checkBytes", () => {
  const bytes = Buffer.from("content")
  const digest = parseDigest(`sha256:${createHash("sha256").update(bytes).digest("hex")}`, "x")

  it("S16: takes what was promised and nothing else", () => {
    checkBytes(bytes, digest, 7, "x")
    checkBytes(bytes, digest, undefined, "x")
    assert.throws(() => {
      checkBytes(bytes, digest, 8, "x")
    }, /7 bytes where 8 are promised/)
    assert.throws(
      () => {
        checkBytes(Buffer.from("Content"), digest, 7, "x")
      },
      { code: "ERR_OCI_DIGEST" },
    )
  })
})
