import assert from "node:assert/strict"
import { OciError } from "../../lib/errors.ts"
import { parseJson } from "../../lib/json.ts"
import { parseDocument } from "../../lib/oci/manifest.ts"

const nested = (levels: number): string => "[".repeat(levels) + "]".repeat(levels)

describe("JSON of strangers", () => {
  it("is refused when it is nested deeper than a stack may hold", () => {
    for (const text of [nested(100_000), `{"a":${nested(129)}}`, "[".repeat(1_000_000)])
      assert.throws(() => parseJson(text), SyntaxError)
    assert.deepEqual(parseJson(`{"a":"[[\\"{","b":[1,{}]}`), { a: '[["{', b: [1, {}] })
    assert.ok(Array.isArray(parseJson(nested(128))))
  })

  it("is an error with a code in images", () => {
    const text = `{"schemaVersion":2,"manifests":${nested(100_000)}}`
    assert.throws(
      () => parseDocument(Buffer.from(text), undefined, "index"),
      (error) => error instanceof OciError && error.code === "ERR_OCI_FORMAT",
    )
  })
})
