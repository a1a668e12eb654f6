// Messages of PKCS#7 that were made to do harm.
import assert from "node:assert/strict"
import { OciError } from "../../../lib/errors.ts"
import { pkcs7Recipients } from "../../../lib/ocicrypt/pkcs7.ts"
import { implicit, integer, octets, oid, sequence, set, tagged } from "../../support/der.ts"

const AUTHENTICATED = "1.2.840.113549.1.9.16.1.23"
const ENVELOPED = "1.2.840.113549.1.7.3"
const DATA = "1.2.840.113549.1.7.1"
const GCM = "2.16.840.1.101.3.4.1.46"
const CBC = "2.16.840.1.101.3.4.1.42"

/** For nobody, by a cipher with these parameters. */
function message(type: string, cipher: string, parameters: Buffer): Buffer {
  const content = sequence(oid(DATA), sequence(oid(cipher), parameters), implicit(0, Buffer.alloc(32)))
  const tag = type === AUTHENTICATED ? [octets(Buffer.alloc(16))] : []
  return sequence(oid(type), tagged(0, sequence(integer(0), set(), content, ...tag)))
}

describe("a hostile message of PKCS#7", () => {
  // CVE-2025-15467: more of these than its reader had room for.
  for (const [what, right, read] of [
    [
      "GCM",
      12,
      (size: number) => message(AUTHENTICATED, GCM, sequence(octets(Buffer.alloc(size)), integer(16))),
    ],
    ["CBC", 16, (size: number) => message(ENVELOPED, CBC, octets(Buffer.alloc(size)))],
  ] as const)
    it(`has another IV than ${what} has`, () => {
      assert.deepEqual(pkcs7Recipients(read(right), "x"), [])
      for (const size of [0, right - 1, right + 1, 17, 64, 5000])
        assert.throws(
          () => pkcs7Recipients(read(size), "x"),
          (error) =>
            error instanceof OciError &&
            error.code === "ERR_OCI_FORMAT" &&
            /parameters of its cipher/.test(error.message),
          `${size} bytes`,
        )
    })

  it("is authenticated by less than a whole tag", () => {
    const nonce = octets(Buffer.alloc(12))
    // CVE-2026-57062 of GnuPG took four bytes; where no size is said, it is twelve.
    for (const size of [0, 4, 8, 12, 15, 17, undefined])
      assert.throws(
        () =>
          pkcs7Recipients(
            message(AUTHENTICATED, GCM, sequence(nonce, ...(size === undefined ? [] : [integer(size)]))),
            "x",
          ),
        { name: "OciError", code: "ERR_OCI_FORMAT" },
        `${size} bytes`,
      )
  })
})
