import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { fingerprint, isNamedBy, parseFingerprint } from "../../../lib/key/fingerprint.ts"
import { testKeys } from "../../support/keys.ts"
import { newFolder } from "../../support/scratch.ts"

const keys = testKeys()
const publicKey = createPublicKey(readFileSync(keys.publicKey))
const other = createPublicKey(readFileSync(keys.otherPublicKey))

function sshKeygen(key: KeyObject, hash: string): string {
  const file = path.join(newFolder("fingerprint"), "key.pub")
  writeFileSync(file, key.export({ type: "spki", format: "pem" }))
  const line = execFileSync("ssh-keygen", ["-i", "-m", "PKCS8", "-f", file], { encoding: "utf8" })
  writeFileSync(file, line)
  return execFileSync("ssh-keygen", ["-l", "-E", hash, "-f", file], { encoding: "utf8" }).split(" ")[1] ?? ""
}

describe("fingerprint", () => {
  it("is what ssh-keygen prints", () => {
    const odd = generateKeyPairSync("rsa", { modulusLength: 1031, publicExponent: 3 }).publicKey
    for (const key of [publicKey, other, odd]) assert.equal(fingerprint(key), sshKeygen(key, "sha256"))
  })

  it("is the same for a private key", () => {
    assert.equal(fingerprint(createPrivateKey(readFileSync(keys.privateKey))), fingerprint(publicKey))
  })
})

describe("parseFingerprint", () => {
  const hex = Buffer.from(fingerprint(publicKey).slice(7), "base64").toString("hex")
  const sha1 = sshKeygen(publicKey, "sha1")

  it("S30: finds a key by its whole SHA-256, and by SHA-1 as a name only", () => {
    const sha1Hex = Buffer.from(sha1.slice(5), "base64").toString("hex")
    const colons = hex.replace(/..(?=.)/g, "$&:").toUpperCase()
    for (const text of [fingerprint(publicKey), hex, colons, sha1, `${sha1}=`, sha1Hex]) {
      const query = parseFingerprint(text)
      assert.ok(query !== undefined, text)
      assert.equal(query.hash, query.digest.length === 20 ? "sha1" : "sha256")
      assert.ok(isNamedBy(publicKey, query), text)
      assert.ok(!isNamedBy(other, query), text)
    }
  })

  it("S40: takes no part of one", () => {
    for (const text of [
      "",
      hex.slice(0, 16),
      hex.slice(1),
      `${hex}0`,
      fingerprint(publicKey).slice(0, -1),
      `${fingerprint(publicKey)}A`,
      "SHA256:",
      `SHA1:${fingerprint(publicKey).slice(7)}`,
      `MD5:${sha1.slice(5)}`,
      `${fingerprint(publicKey)}\n`,
      ` ${hex}`,
    ])
      assert.equal(parseFingerprint(text), undefined, JSON.stringify(text))
  })
})
