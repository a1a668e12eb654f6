// NIST's test suite for certification paths, made anew (test/vectors/certificates/pkits.ts): RFC 5280's verdict on each path, except
// that nothing here looks at revocation, and nothing is signed with DSA.
import assert from "node:assert/strict"
import { gunzipSync } from "node:zlib"
import { certifiedKey, type SignerCertificate } from "../../../lib/signing/certificate.ts"
import { pemOf } from "../../support/certificates.ts"
import { vector } from "../../vectors/load.ts"

interface Suite {
  readonly root: string
  readonly tests: readonly {
    readonly id: string
    readonly title: string
    readonly valid: boolean
    readonly difference?: "revocation" | "DSA"
    readonly signer: string
    readonly path: readonly string[]
  }[]
  /** DER in base64. */
  readonly certificates: Readonly<Record<string, string>>
}

/** Every test has a number, and the sections as many as NIST's. */
const sections: readonly (readonly [string, number])[] = [
  ["4.1", 6], ["4.2", 8], ["4.3", 11], ["4.4", 21], ["4.5", 8], ["4.6", 17], ["4.7", 5], ["4.8", 20], ["4.9", 8], ["4.10", 14],
  ["4.11", 11], ["4.12", 10], ["4.13", 38], ["4.14", 35], ["4.15", 10], ["4.16", 2],
] // prettier-ignore

describe("PKITS", () => {
  const suite = JSON.parse(gunzipSync(vector("certificates/pkits.json.gz")).toString("utf8")) as Suite
  const der = (name: string): Buffer => Buffer.from(suite.certificates[name] ?? "", "base64")
  const roots = der(suite.root)
  const good = async (given: SignerCertificate): Promise<boolean> => {
    try {
      await certifiedKey(given)
      return true
    } catch (error) {
      assert.equal((error as { code?: string }).code, "ERR_SIGNATURE_CERTIFICATE")
      return false
    }
  }

  it("is there as a whole", () => {
    const found = sections.map(([section]) => [
      section,
      suite.tests.filter(({ id }) => id.startsWith(`${section}.`)).length,
    ])
    assert.deepEqual(found, sections)
  })

  // Revocation alone makes these invalid, so the path itself is good; DSA alone makes those no path.
  const ours = ({ valid, difference }: Suite["tests"][number]): boolean =>
    difference === undefined ? valid : difference === "revocation"

  for (const test of suite.tests)
    it(`${test.id} ${test.title}`, async () => {
      const certificate = pemOf(...[test.signer, ...test.path].map(der))
      assert.equal(await good({ certificate, roots }), ours(test))
    })

  it("has the same verdicts when each path has to be found among the authorities of all of them", async () => {
    const authorities = pemOf(...new Set(suite.tests.flatMap(({ path }) => path).map(der)))
    for (const test of suite.tests)
      assert.equal(
        await good({ certificate: der(test.signer), intermediates: authorities, roots }),
        ours(test),
        test.id,
      )
  })
})
