// Layers that are encrypted for keys that GnuPG has, by their names; its agent decrypts.
import assert from "node:assert/strict"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { oci, type CredentialSource, type LayerRecipient } from "../../lib/index.ts"
import { GnuPg } from "../support/gnupg.ts"
import { waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { vectorPath } from "../vectors/load.ts"

describe("layers encrypted for a key of GnuPG", () => {
  const folder = newFolder("gnupg-layers")
  const plain = `oci:${vectorPath("oci/layout")}`
  const originalDigest = /sha256:[0-9a-f]{64}/.exec(
    readFileSync(vectorPath("oci/layout/index.json"), "utf8"),
  )?.[0]
  let ring: GnuPg
  let fingerprint: string
  const target = (name: string): string => `oci:${path.join(folder, name)}:it`
  const encrypt = async (name: string, recipient: LayerRecipient): Promise<void> => {
    await oci.encrypt({ source: plain, target: target(name), recipients: [recipient] })
  }
  const decrypt = async (name: string, credential: CredentialSource): Promise<string> => {
    const unlock = [credential]
    return (await oci.decrypt({ source: target(name), target: target(`${name}-back`), unlock })).digest
  }
  const named = (gnupg: string | true): { gnupg: string | true; homeFolder: string } => ({
    gnupg,
    homeFolder: ring.home,
  })

  before(() => {
    ring = new GnuPg()
    fingerprint = ring.generate("Ada Lovelace (engine) <ada@example.org>", "rsa2048", "encr")
    ring.generate("Grace <grace@example.org>", "future-default", "default")
    ring.generate("Grace <grace@example.com>", "future-default", "default")
    ring.generate("Signer <signer@example.org>", "ed25519", "sign")
  })
  after(() => {
    ring[Symbol.dispose]()
  })

  it("open with the secret key that was named, by any of its names, or with whichever fits", async () => {
    const names = [
      "ada@example.org",
      "Ada Lovelace",
      fingerprint,
      `0x${fingerprint.slice(-16).toLowerCase()}`,
    ]
    for (const [i, name] of names.entries()) await encrypt(`ada-${i}`, named(name))
    for (const [i, name] of [...names, true as const].entries())
      assert.equal(await decrypt(`ada-${i % names.length}`, named(name)), originalDigest, String(name))
    // Somebody else's secret key is not asked for.
    await assert.rejects(decrypt("ada-0", named("grace@example.com")), { code: "ERR_KEY_MISMATCH" })
    // The same key in a file.
    const file = path.join(folder, "ada.gpg")
    writeFileSync(file, ring.run(["--export-secret-keys", fingerprint]))
    assert.equal(await decrypt("ada-1", { key: { file } }), originalDigest)
  })

  it("are for one key, which is there, is good, and can be encrypted for", async () => {
    const refused = async (name: string, message: RegExp, code = "ERR_KEY_GNUPG"): Promise<void> => {
      await assert.rejects(encrypt("none", named(name)), (error: Error & { code?: string }) => {
        assert.equal(error.code, code, error.message)
        assert.match(error.message, message)
        return true
      })
    }
    await refused(
      "Grace",
      /^gpg has 2 keys called "Grace", and one has to be chosen: [0-9A-F]{40}, [0-9A-F]{40}$/,
    )
    await refused("ada@example", /^gpg has no key "ada@example"/)
    await refused("ada", /^gpg has no key "ada"/)
    await refused("--version", /^gpg has no key "--version"/)
    await refused("signer@example.org", /something can be encrypted for/, "ERR_KEY_FORMAT")
    await assert.rejects(decrypt("ada-0", named("nobody")), { code: "ERR_KEY_GNUPG" })
    ring.run(["--quick-set-expire", fingerprint, "seconds=1"])
    await waitFor("the key's end", () =>
      /^pub:e:/m.test(ring.run(["--with-colons", "--list-keys", fingerprint]).toString()),
    )
    await refused("ada@example.org", /has expired, was revoked or is disabled$/)
  })

  it("stay closed when the agent gives nothing, and open with what else there is", async () => {
    const broken: CredentialSource = { gnupg: true, homeFolder: ring.home }
    ring.forget()
    writeFileSync(path.join(ring.home, "gpg-agent.conf"), "pinentry-program /bin/false\ns2k-count 65536\n")
    const locked = ring.generate("Locked <locked@example.org>", "future-default", "default", "a password")
    ring.forget()
    await encrypt("locked", named(locked))
    await assert.rejects(decrypt("locked", broken), {
      code: "ERR_KEY_GNUPG",
      message: /^gpg ended with status 2: /,
    })
    const rsa = { jwe: { file: vectorPath("ocicrypt/keys/rsa1.pub.pem") } }
    await oci.encrypt({ source: plain, target: target("both"), recipients: [named(locked), rsa] })
    const unlock = [broken, { key: { file: vectorPath("ocicrypt/keys/rsa1.pem") } }]
    const back = await oci.decrypt({ source: target("both"), target: target("both-back"), unlock })
    assert.equal(back.digest, originalDigest)
  })
})
