import assert from "node:assert/strict"
import { chmodSync, existsSync, readdirSync, readFileSync, renameSync, statSync } from "node:fs"
import path from "node:path"
import { certificate } from "../../../lib/index.ts"
import { openssl } from "../../support/openssl.ts"
import { newFolder } from "../../support/scratch.ts"

describe("the store of certificates", () => {
  const folder = newFolder("certificates")
  const password = { bytes: Buffer.from("a pässword") }
  const pfx = (name: string): string => path.join(folder, `${name}.pfx`)
  let folders = 0
  const newStore = (): string => path.join(folder, `store-${folders++}`)
  const add = (name: string, store: string): ReturnType<typeof certificate.add> =>
    certificate.add({ file: pfx(name), password, folder: store })

  before(async () => {
    for (const name of ["one", "two"])
      await certificate.create({ filePrefix: path.join(folder, name), password, bits: 2048 })
  })

  it("keeps a PFX as it is, under the thumbprint that OpenSSL gives it, and lists it without a password", async () => {
    const store = newStore()
    const stored = await add("one", store)
    const der = openssl(["pkcs12", "-in", pfx("one"), "-nokeys", "-passin", "pass:a pässword"])
    const print = (hash: string): string =>
      openssl(["x509", "-noout", "-fingerprint", hash], der).toString().trim().split("=")[1] ?? ""
    assert.equal(stored.added, true)
    assert.deepEqual([stored.sha256, stored.sha1], [print("-sha256"), print("-sha1")])
    const hex = print("-sha256").replaceAll(":", "").toLowerCase()
    assert.deepEqual(readdirSync(store).sort(), [`${hex}.cer`, `${hex}.pfx`])
    assert.deepEqual(readFileSync(stored.pfx), readFileSync(pfx("one")))
    assert.equal(statSync(stored.pfx).mode & 0o777, 0o600)
    assert.equal(statSync(store).mode & 0o777, 0o700)
    assert.equal((await add("one", store)).added, false)
    await add("two", store)
    const listed = await certificate.listStored({ folder: store })
    assert.deepEqual(listed.map(({ subject }) => subject).sort(), ["CN=one", "CN=two"])
  })

  it("forgets all that are named, or none, by either thumbprint", async () => {
    const store = newStore()
    const [one, two] = [await add("one", store), await add("two", store)]
    await assert.rejects(certificate.remove([one.sha256, "0".repeat(40)], { folder: store }), {
      code: "ERR_KEY_MISMATCH",
    })
    assert.equal((await certificate.listStored({ folder: store })).length, 2)
    await certificate.remove([one.sha256, two.sha1], { folder: store })
    assert.deepEqual(readdirSync(store), [])
    assert.deepEqual(await certificate.listStored({ folder: newStore() }), [])
  })

  it("takes nothing that is not under its password, or is no PKCS#12", async () => {
    const store = newStore()
    const bad = (file: string, secret: string): Promise<unknown> =>
      certificate.add({ file, password: { bytes: Buffer.from(secret) }, folder: store })
    await assert.rejects(bad(pfx("one"), "another"), { code: "ERR_KEY_PASSPHRASE" })
    await assert.rejects(bad(pfx("one"), ""), { code: "ERR_KEY_MISSING" })
    await assert.rejects(bad(path.join(folder, "one-public.pem"), "x"), { code: "ERR_KEY_FORMAT" })
    assert.equal(existsSync(store), false)
  })

  it("is not used where others may look into it, or where a file is not what its name says", async () => {
    const store = newStore()
    const stored = await add("one", store)
    chmodSync(store, 0o750)
    await assert.rejects(certificate.listStored({ folder: store }), { code: "ERR_KEYRING_INSECURE" })
    await assert.rejects(add("two", store), { code: "ERR_KEYRING_INSECURE" })
    chmodSync(store, 0o700)
    for (const kind of ["pfx", "cer"])
      renameSync(stored.pfx.replace(/pfx$/, kind), path.join(store, `${"0".repeat(64)}.${kind}`))
    await assert.rejects(certificate.listStored({ folder: store }), { code: "ERR_KEY_DAMAGED" })
  })
})
