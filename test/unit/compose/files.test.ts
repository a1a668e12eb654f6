// Compose files of the shapes that are about, and what they come to; and files that break a rule, named for it.
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { parse } from "yaml"
import { load, type Project } from "../../../lib/compose/compose.ts"
import { ComposeError } from "../../../lib/errors.ts"

const vectors = path.resolve(import.meta.dirname, "../../vectors/compose")
const environment = { TAG: "v1", EMPTY: "", PASSED: "p" }

function loaded(file: string): Project {
  return load({ files: [path.join(vectors, file)], name: "vectors", profiles: ["dev"], environment })
}

/** What is expected is there, and as it is expected; what else is there does not count. Lists count as a whole. */
function assertHas(found: unknown, expected: unknown, at: string): void {
  if (expected === "absent") assert.equal(found, undefined, at)
  else if (Array.isArray(expected)) {
    assert.ok(Array.isArray(found) && found.length === expected.length, `${at}: ${JSON.stringify(found)}`)
    for (const [i, one] of expected.entries()) assertHas(found[i], one, `${at}[${i}]`)
  } else if (typeof expected === "object" && expected !== null)
    for (const [key, one] of Object.entries(expected))
      assertHas((found as Record<string, unknown> | undefined)?.[key], one, `${at}.${key}`)
  else assert.deepEqual(found, expected, at)
}

describe("compose files", () => {
  const accepted = readdirSync(path.join(vectors, "accepted")).filter((name) => /^[^.]+\.yaml$/.test(name))

  it("are of thirty shapes here", () => {
    assert.ok(accepted.length >= 30)
  })

  for (const name of accepted)
    it(`come to what the specification says: ${name}`, () => {
      const project = loaded(`accepted/${name}`)
      const expected = readFileSync(
        path.join(vectors, "accepted", name.replace(".yaml", ".expected.yaml")),
        "utf8",
      )
      assertHas(project.config(), parse(expected), name)
      // What is shown can be read again, and means the same.
      assert.deepEqual(parse(project.yaml()), JSON.parse(JSON.stringify(project.config())))
    })

  it("are refused otherwise for what is not there than for what is wrong", () => {
    assert.throws(() => loaded("rejected/privileged.yaml"), { code: "ERR_COMPOSE_UNSUPPORTED" })
    assert.throws(() => loaded("rejected/wrong-type.yaml"), { code: "ERR_COMPOSE_FILE" })
  })

  for (const name of readdirSync(path.join(vectors, "rejected")))
    it(`are refused where they break a rule: ${name}`, () => {
      const file = path.join(vectors, "rejected", name)
      const [, line, at, words] =
        /^# (\d+) (\S*): (.*)$/m.exec(readFileSync(file, "utf8")) ??
        assert.fail(`${name} does not say what is wrong with it`)
      assert.throws(
        () => loaded(`rejected/${name}`),
        (error) => {
          assert.ok(error instanceof ComposeError, String(error))
          if (line !== "0") assert.ok(error.message.startsWith(`${file}:${line}: `), error.message)
          if (at !== "") assert.ok(error.message.includes(`: ${at}: `), error.message)
          assert.ok(error.message.includes(words ?? ""), error.message)
          assert.ok(error.code === "ERR_COMPOSE_FILE" || error.code === "ERR_COMPOSE_UNSUPPORTED", error.code)
          return true
        },
      )
    })
})
