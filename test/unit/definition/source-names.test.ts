// What becomes of ~ and variables in %files. The results are those of Apptainer 1.4.
import assert from "node:assert/strict"
import { expandSource, type SourceVariables } from "../../../lib/definition/source-names.ts"

const variables: SourceVariables = {
  environment: { HOME: "/home/me", DATA: "/data", PATTERN: "*.txt", TWICE: "$DATA" },
  homeOf: (user) => ({ peer: "/home/peer", "": "/home/passwd" })[user ?? ""],
}

describe("expandSource", () => {
  const cases: Readonly<Record<string, string>> = {
    "~": "/home/me",
    "~/x": "/home/me/x",
    "~peer/x": "/home/peer/x",
    "~nobodyx/x": "~nobodyx/x",
    "x~/x": "x~/x",
    "~+/x": "~+/x",
    "$HOME/x": "/home/me/x",
    "${HOME}x": "/home/mex",
    $HOME: "/home/me",
    "$DATA/$PATTERN": "/data/*.txt",
    $TWICE: "$DATA",
    "$NONE/etc/hosts": "/etc/hosts",
    "${NONE}x": "x",
    "\\$HOME/x": "\\$HOME/x",
    "\\\\$HOME/x": "\\\\/home/me/x",
    "$constructor/x": "/x",
    $: "$",
    a$: "a$",
    "a$/b": "a$/b",
    $1: "$1",
    "/plain/{a,b}*": "/plain/{a,b}*",
  }
  for (const [source, expected] of Object.entries(cases))
    it(`takes ${source} for ${expected}`, () => {
      assert.equal(expandSource(source, variables), expected)
    })

  it("refuses what comes to nothing, which would be the folder that the build was called in", () => {
    for (const source of ["$NONE", "${NONE}", "$NONE${NONE}"])
      assert.throws(() => expandSource(source, variables), /it is nothing: its variables are not set/)
  })

  it("takes the home folder from passwd where no variable says it", () => {
    assert.equal(expandSource("~/x", { ...variables, environment: {} }), "/home/passwd/x")
  })

  it("refuses what a shell would run or compute", () => {
    for (const source of ["$(pwd)/x", "`pwd`/x", "${NONE:-/etc}/x", "${HOME", "$((1+1))", "${1}"])
      assert.throws(() => expandSource(source, variables), /no shell reads it/, source)
  })

  it("takes time in proportion to its length", () => {
    const source = "$HOME${HOME}\\$".repeat(50_000)
    assert.equal(expandSource(source, variables).length, ("/home/me".length * 2 + 2) * 50_000)
  })
})
