import assert from "node:assert/strict"
import { parseChallenges } from "../../../lib/registry/authorization.ts"

describe("parseChallenges", () => {
  it("reads what registries write", () => {
    const header =
      'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a:pull"'
    assert.deepEqual(parseChallenges(header), [
      {
        scheme: "bearer",
        parameters: {
          realm: "https://auth.example/token",
          service: "registry.example",
          scope: "repository:a:pull",
        },
      },
    ])
  })

  it("reads several, blanks, unquoted and escaped values", () => {
    const found = parseChallenges('Negotiate, Basic realm = "a \\"b\\", c" , BEARER service=x')
    assert.deepEqual(
      found.map(({ scheme, parameters }) => [scheme, { ...parameters }]),
      [
        ["negotiate", {}],
        ["basic", { realm: 'a "b", c' }],
        ["bearer", { service: "x" }],
      ],
    )
  })

  it("S35: finds nothing in what is no challenge, and takes no time for it", () => {
    for (const header of ["", ",,,", '"', "=", 'realm="x"'])
      assert.deepEqual(parseChallenges(header), [], header)
    assert.equal(parseChallenges(`Basic realm="${"\\".repeat(100_001)}`).length > 0, true)
  })
})
