// Certificates that were accepted and must not be, that were refused and must not be, and that ended in more than an error: each a
// vector (test/vectors/certificates/hostile.ts makes them).
import assert from "node:assert/strict"
import { gunzipSync } from "node:zlib"
import { certifiedKey } from "../../../lib/signing/certificate.ts"
import { pemOf } from "../../support/certificates.ts"
import { vector } from "../../vectors/load.ts"

interface Hostile {
  readonly name: string
  /** Why it is refused; undefined: it is good. */
  readonly refused?: string
  /** DER in base64. */
  readonly signer: string
  readonly intermediates: readonly string[]
  readonly roots: readonly string[]
}

describe("a certificate of a stranger", () => {
  const all = JSON.parse(
    gunzipSync(vector("certificates/hostile.json.gz")).toString("utf8"),
  ) as readonly Hostile[]
  const der = (text: string): Buffer => Buffer.from(text, "base64")

  for (const { name, refused, signer, intermediates, roots } of all)
    it(`${refused === undefined ? "is good" : "is refused"}: ${name}`, async () => {
      const given = {
        certificate: pemOf(der(signer), ...intermediates.map(der)),
        roots: pemOf(...roots.map(der)),
      }
      if (refused === undefined) await certifiedKey(given)
      else
        await assert.rejects(certifiedKey(given), {
          code: "ERR_SIGNATURE_CERTIFICATE",
          message: new RegExp(refused),
        })
    })

  it("costs little, also below many authorities whose keys cost much", async () => {
    const [many] = all.filter(({ name }) => name === "below one of many authorities with large keys")
    assert.ok(many)
    const roots = pemOf(der(many.roots[0] ?? ""))
    const before = process.cpuUsage()
    await assert.rejects(
      certifiedKey({ certificate: pemOf(der(many.signer), ...many.intermediates.map(der)), roots }),
      { code: "ERR_SIGNATURE_CERTIFICATE" },
    )
    const { user, system } = process.cpuUsage(before)
    assert.ok(user + system < 20_000_000, `${user + system} microseconds of the processor`)
  })

  it("can be given up while it is looked at", async () => {
    const [many] = all.filter(({ name }) => name === "below one of many authorities with large keys")
    assert.ok(many)
    const controller = new AbortController()
    const looking = certifiedKey(
      {
        certificate: pemOf(der(many.signer), ...many.intermediates.map(der)),
        roots: pemOf(der(many.roots[0] ?? "")),
      },
      controller.signal,
    )
    setImmediate(() => {
      controller.abort(new Error("enough"))
    })
    await assert.rejects(looking, /enough/)
  })
})
