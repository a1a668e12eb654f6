import assert from "node:assert/strict"
import { inspect } from "node:util"
import { Secret } from "../../../lib/key/secret.ts"

describe("Secret", () => {
  it("copies what it is given", () => {
    const given = Buffer.from("secret")
    const secret = new Secret(given)
    given.fill(0)
    assert.equal(secret.bytes.toString(), "secret")
    assert.equal(secret.length, 6)
  })

  it("lies in memory of its own", () => {
    const { bytes } = new Secret(Buffer.from("secret"))
    assert.equal(bytes.buffer.byteLength, 6)
  })

  it("wipes its bytes when disposed, and throws when used afterwards", () => {
    let bytes: Buffer
    let kept: Secret
    {
      using secret = new Secret(Buffer.from("secret"))
      kept = secret
      bytes = secret.bytes
    }
    assert.deepEqual(bytes, Buffer.alloc(6))
    assert.throws(() => kept.bytes, { message: "the secret was wiped" })
    kept.wipe()
  })

  it("shows nothing when printed", () => {
    const secret = new Secret(Buffer.from("secret"))
    assert.doesNotMatch(inspect(secret, { depth: 9, showHidden: true }), /secret"|73 65 63/)
    assert.doesNotMatch(JSON.stringify(secret), /115|secret/)
  })
})
