import assert from "node:assert/strict"
import { createPrivateKey, generateKeyPairSync } from "node:crypto"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { selfSigned } from "../../lib/key/certificate.ts"
import { encryptPkcs8, writePkcs12 } from "../../lib/key/pkcs12-writer.ts"
import { parsePkcs12 } from "../../lib/key/pkcs12.ts"
import { openssl, opensslNotes } from "../support/openssl.ts"
import { newFolder } from "../support/scratch.ts"

const { privateKey: key } = generateKeyPairSync("rsa", { modulusLength: 2048 })
const certificate = (commonName: string): Buffer =>
  selfSigned({ key, commonName, notBefore: new Date(), days: 1 })
const password = "pä€😀"

describe("writePkcs12", () => {
  const certificates = [certificate("own"), certificate("second")]
  const files = new Map<string, string>()
  const write = async (name: string, legacy: boolean, secret: string): Promise<Buffer> => {
    const bytes = await writePkcs12({
      key,
      certificates,
      friendlyName: "a nämé",
      password: Buffer.from(secret),
      legacy,
    })
    const file = path.join(newFolder("pfx"), `${name}.pfx`)
    writeFileSync(file, bytes)
    files.set(name, file)
    return bytes
  }
  const show = (name: string, ...options: string[]): string =>
    openssl(["pkcs12", "-in", files.get(name)!, "-passin", `pass:${password}`, ...options]).toString("latin1")

  let modern: Buffer
  let legacy: Buffer
  before(async () => {
    modern = await write("modern", false, password)
    legacy = await write("legacy", true, password)
  })

  for (const name of ["modern", "legacy"])
    it(`gives OpenSSL the key and the certificates (${name})`, async () => {
      const text = show(name, "-nodes")
      assert.ok(createPrivateKey(text).equals(key))
      assert.equal(text.match(/BEGIN CERTIFICATE/g)?.length, 2)
      assert.equal(text.match(/friendlyName: a nämé/g)?.length, 2, text)
      assert.equal(text.match(/localKeyID/g)?.length, 2)
    })

  it("S34: reads its own, MAC and all", async () => {
    for (const bytes of [modern, legacy]) {
      const found = await parsePkcs12(bytes, Buffer.from(password))
      assert.ok(found.key.equals(key))
      assert.deepEqual(found.certificates, certificates)
    }
  })

  it("is AES-256 and SHA-256, and 3DES and SHA-1 only as legacy", async () => {
    const info = (name: string): string => {
      const args = ["pkcs12", "-in", files.get(name)!, "-passin", `pass:${password}`, "-info", "-noout"]
      return opensslNotes(args)
    }
    assert.match(info("modern"), /MAC: sha256, Iteration 150000/)
    assert.match(info("modern"), /PBES2, PBKDF2, AES-256-CBC, Iteration 150000, PRF hmacWithSHA256/)
    assert.match(info("legacy"), /MAC: sha1, Iteration 50000/)
    assert.match(info("legacy"), /pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 50000/)
  })

  it("draws new salts each time", async () => {
    assert.notDeepEqual(await write("again", false, password), modern)
  })
})

describe("encryptPkcs8", () => {
  it("writes what OpenSSL opens with the password, and with no other", async () => {
    const der = await encryptPkcs8(key, Buffer.from(password))
    const open = (secret: string): Buffer =>
      openssl(["pkey", "-inform", "DER", "-passin", `pass:${secret}`], der)
    assert.ok(createPrivateKey(open(password)).equals(key))
    assert.throws(() => open("another"))
  })
})
