import assert from "node:assert/strict"
import { IncomingMessage } from "node:http"
import { Socket } from "node:net"
import { Authorization, parseChallenges } from "../../../lib/registry/authorization.ts"
import { HttpClient } from "../../../lib/registry/http.ts"

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

describe("Authorization", () => {
  it("asks nobody on this machine for tokens of a registry elsewhere", async () => {
    using client = new HttpClient({ registry: "registry.example", environment: {} })
    for (const place of ["http://127.0.0.1:9200", "http://0.0.0.0:9200", "https://localhost"]) {
      const wanted = { repository: "x", access: "pull" } as const
      using authorization = new Authorization(client, new URL("http://registry.example"), wanted, () =>
        Promise.resolve(undefined),
      )
      const reply = new IncomingMessage(new Socket())
      reply.headers["www-authenticate"] = `Bearer realm="${place}/token"`
      await assert.rejects(authorization.advance(reply, undefined), {
        code: "ERR_OCI_REGISTRY",
        message: `registry.example: tokens are given on this machine, at ${place}`,
      })
    }
  })
})
