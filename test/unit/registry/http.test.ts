import assert from "node:assert/strict"
import { nextPlace } from "../../../lib/registry/http.ts"

describe("nextPlace", () => {
  const leads = (from: string, location: string): string => nextPlace(new URL(from), location).href

  it("is where an answer leads, to another host and by a path of the same", () => {
    assert.equal(leads("https://a.example/v2/x", "/y?z"), "https://a.example/y?z")
    assert.equal(leads("https://a.example/v2/x", "https://b.example/y"), "https://b.example/y")
    assert.equal(leads("http://localhost:5000/v2/x", "http://127.0.0.1:5001/y"), "http://127.0.0.1:5001/y")
    assert.equal(leads("http://localhost:5000/v2/x", "https://b.example/y"), "https://b.example/y")
    for (const other of ["https://localhost.example/y", "https://10.0.0.127/y", "https://[2001:db8::1]/y"])
      assert.equal(leads("https://a.example/v2/x", other), other)
  })

  it("is nowhere but at servers, never without TLS where there was some, and not on this machine for others", () => {
    for (const [location, why] of [
      ["file:///etc/passwd", /a redirect to "file:/],
      ["http://[::1", /a redirect to "http:/],
      ["http://b.example/y", /from https to http:/],
      ["https://localhost:8443/y", /to this machine/],
      ["https://127.1/y", /to this machine/],
      ["https://0x7f000001/y", /to this machine/],
      ["https://[::1]/y", /to this machine/],
      ["https://0.0.0.0:8443/y", /to this machine/],
      ["https://0/y", /to this machine/],
      ["https://[::]/y", /to this machine/],
      ["https://[::ffff:127.0.0.2]/y", /to this machine/],
      ["https://localhost./y", /to this machine/],
      ["https://A.LocalHost/y", /to this machine/],
    ] as const)
      assert.throws(() => leads("https://a.example/v2/x", location), {
        code: "ERR_OCI_REGISTRY",
        message: why,
      })
    assert.throws(() => leads("http://a.example/v2/x", "http://127.0.0.1:9200/_shutdown"), /to this machine/)
  })
})
