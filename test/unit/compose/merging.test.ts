// Compose files over each other, variables, and files of variables.
import assert from "node:assert/strict"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import path from "node:path"
import { load, type LoadOptions, type Project } from "../../../lib/compose/compose.ts"
import { parseEnvFile } from "../../../lib/compose/env-file.ts"
import { Field } from "../../../lib/compose/field.ts"
import { interpolate, InterpolationError } from "../../../lib/compose/interpolation.ts"
import { loadTree, newLoading } from "../../../lib/compose/load.ts"
import { configurationOf, readModel } from "../../../lib/compose/model.ts"
import { splitWords } from "../../../lib/compose/words.ts"
import { ComposeError } from "../../../lib/errors.ts"

let folder: string

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), "compose-"))
})

afterEach(() => {
  rmSync(folder, { recursive: true })
})

function write(files: Readonly<Record<string, string>>): void {
  for (const [name, text] of Object.entries(files)) writeFileSync(path.join(folder, name), text)
}

function loaded(options: LoadOptions = {}): Project {
  return load({ folder, name: "p", environment: {}, ...options })
}

const serviceOf = (project: Project, name: string): Record<string, unknown> =>
  (project.config() as { services: Record<string, Record<string, unknown>> }).services[name] ?? {}

describe("compose files over each other", () => {
  it("merge mappings and lists, and replace commands", () => {
    write({
      "compose.yaml": `
services:
  a:
    image: a:1
    command: [one, two]
    environment: { A: "1", B: "1" }
    ports: ["80:80", "81:81"]
    volumes: ["one:/data", "one:/more"]
    dns: [1.1.1.1]
    logging: { driver: json-file, options: { max-size: 1m, max-file: "2" } }
volumes: { one: {}, two: {} }
`,
      "compose.override.yaml": `
services:
  a:
    image: a:2
    command: [three]
    environment: [B=2]
    ports: ["80:80", "82:82"]
    volumes: ["two:/data/"]
    dns: 8.8.8.8
    logging: { driver: local, options: { max-size: 2m } }
  b: { image: b }
`,
    })
    const project = loaded()
    const { image, command, environment, ports, volumes, dns, logging } = serviceOf(project, "a")
    assert.deepEqual(
      { image, command, environment, dns, logging },
      {
        image: "docker://a:2",
        command: ["three"],
        environment: { A: "1", B: "2" },
        dns: ["1.1.1.1", "8.8.8.8"],
        logging: { driver: "local", options: { "max-size": "2m" } },
      },
    )
    assert.deepEqual(
      (ports as { published: string }[]).map(({ published }) => published),
      ["80", "81", "82"],
    )
    assert.deepEqual(
      (volumes as { source: string; target: string }[]).map(({ source, target }) => `${source}:${target}`),
      ["two:/data/", "one:/more"],
    )
    assert.deepEqual(project.services, ["a", "b"])
  })

  it("take away with !reset and stand instead with !override", () => {
    write({
      "one.yaml": `
services:
  a: { image: a, ports: ["80:80"], environment: { A: "1", B: "1" }, command: [x], dns: [1.1.1.1] }
  b: { image: b }
`,
      "two.yaml": `
services:
  a: { ports: !override ["90:90"], environment: { A: !reset null }, command: !reset [], dns: !reset null }
  b: !reset null
`,
    })
    const project = loaded({ files: ["one.yaml", "two.yaml"].map((name) => path.join(folder, name)) })
    assert.deepEqual(project.services, ["a"])
    const { ports, environment, command, dns } = serviceOf(project, "a")
    assert.deepEqual(
      { environment, command, dns },
      { environment: { B: "1" }, command: undefined, dns: undefined },
    )
    assert.deepEqual(
      (ports as { published: string }[]).map(({ published }) => published),
      ["90"],
    )
  })

  it("are found as COMPOSE_FILE says, and above where nothing is", () => {
    write({
      "other.yaml": "services: { other: { image: a } }",
      "compose.yml": "services: { here: { image: a } }",
    })
    const environment = { COMPOSE_FILE: path.join(folder, "other.yaml"), COMPOSE_PROJECT_NAME: "named" }
    const project = load({ folder, environment })
    assert.deepEqual([project.name, project.services], ["named", ["other"]])
    assert.deepEqual(loaded().services, ["here"])
  })

  it("have no resource of an included file with two meanings", () => {
    write({
      "compose.yaml": "include: [more.yaml]\nservices: { a: { image: a } }\n",
      "more.yaml": "services: { a: { image: b } }\n",
    })
    assert.throws(() => loaded(), /compose\.yaml:2: services\.a: .*more\.yaml:1, which is included/)
  })

  it("have a name from the folder, in small letters", () => {
    write({ "compose.yaml": "services: { a: { image: a } }" })
    assert.match(load({ folder, environment: {} }).name, /^compose-[a-z0-9]+$/)
    assert.throws(() => loaded({ name: "Of Course" }), { code: "ERR_COMPOSE_FILE" })
  })

  it("are bounded in what their variables come to", () => {
    const value = "x".repeat(1 << 19)
    const lines = Array.from({ length: 64 }, (_, i) => `      V${i}: "\${BIG}"\n`).join("")
    write({ "compose.yaml": `services:\n  a:\n    image: a\n    environment:\n${lines}` })
    assert.throws(() => loaded({ environment: { BIG: value } }), /come to more than/)
  })

  it("are bounded in what repeats itself", () => {
    const refused = (why: RegExp, files: Readonly<Record<string, string>>): void => {
      write(files)
      assert.throws(
        () => loaded(),
        (error) => {
          assert.ok(error instanceof ComposeError, String(error))
          assert.equal(error.code, "ERR_COMPOSE_FILE")
          assert.match(error.message, why)
          return true
        },
      )
    }
    const some = (count: number, line: (i: number) => string): string =>
      Array.from({ length: count }, (_, i) => line(i)).join("")
    refused(/: services: more than 2000 entries$/, {
      "compose.yaml": `services:\n${some(2001, (i) => `  a${i}: { image: a }\n`)}`,
    })
    refused(/more than 1000 services$/, {
      "compose.yaml": `services:\n${some(1001, (i) => `  a${i}: { image: a }\n`)}`,
    })
    refused(/: services\.a\.ports: more than 256 ports$/, {
      "compose.yaml": "services: { a: { image: a, ports: ['1-200:1-200', '201-300:201-300'] } }",
    })
    refused(/with what is included and extended there are more than 1000000 values$/, {
      "compose.yaml": `services:
  base:
    image: a
    environment:
${some(2000, (i) => `      V${i}: a\n`)}${some(900, (i) => `  a${i}: { extends: base, environment: { A: a } }\n`)}`,
    })
    refused(/: all services together have more than 200000 variables from files$/, {
      "compose.yaml": `services:\n${some(21, (i) => `  a${i}: { image: a, env_file: many.env }\n`)}`,
      "many.env": some(10_000, (i) => `V${i}=a\n`),
    })
  })

  it("have a configuration that changes with whatever they refer to", () => {
    const text = `
services:
  a:
    image: a
    configs: [c]
    secrets: [s]
    volumes: ["v:/v"]
    networks: [n]
configs: { c: { content: one } }
secrets: { s: { environment: ONE } }
volumes: { v: { name: one } }
networks: { n: { name: one } }
`
    const configuration = (changed: string): string => {
      write({ "compose.yaml": changed })
      const lookup = (): undefined => undefined
      const files = [path.join(folder, "compose.yaml")]
      const tree = loadTree(
        files,
        folder,
        newLoading(lookup, (notice) => {
          throw new Error(notice)
        }),
      )
      const model = readModel(
        new Field(tree, ""),
        "p",
        lookup,
        () => folder,
        () => true,
      )
      const service = model.services.get("a")
      assert.ok(service)
      return configurationOf(service, model)
    }
    const all = [
      text,
      ...["content: one", "environment: ONE", "v: { name: one", "n: { name: one"].map((part) =>
        text.replace(part, part.replace(/one$/i, "other")),
      ),
    ]
    assert.equal(new Set(all.map(configuration)).size, all.length)
    assert.equal(configuration(text), configuration(text))
  })
})

describe("variables in values", () => {
  const variables = new Map([
    ["SET", "v"],
    ["EMPTY", ""],
  ])
  const told: string[] = []
  const expand = (text: string): string =>
    interpolate(
      text,
      (name) => variables.get(name),
      (name) => told.push(name),
    )

  it("have every form of the specification", () => {
    for (const [text, expected] of [
      ["$SET ${SET}", "v v"],
      ["${SET:-d}${EMPTY:-d}${NONE:-d}", "vdd"],
      ["${SET-d}${EMPTY-d}${NONE-d}", "vd"],
      ["${SET:+a}${EMPTY:+a}${NONE:+a}", "a"],
      ["${SET+a}${EMPTY+a}${NONE+a}", "aa"],
      ["${SET:?e}${EMPTY?e}", "v"],
      ["$$SET $${SET} $$$SET", "$SET ${SET} $v"],
      ["${NONE:-${EMPTY:-${SET}}}-${NONE-}", "v-"],
      ["${NONE:-a$$b}", "a$b"],
      ["${SET:-${BROKEN", undefined],
      ["${}", undefined],
      ["${1}", undefined],
      ["$(id)", undefined],
      ["100$", undefined],
      ["${SET!}", undefined],
      ["${NONE:?}", undefined],
      ["${EMPTY:?why}", undefined],
      ["${NONE?why}", undefined],
    ] as const)
      if (expected === undefined) assert.throws(() => expand(text), InterpolationError, text)
      else assert.equal(expand(text), expected, text)
  })

  it("stand for nothing where they are not set, and that is told", () => {
    told.length = 0
    assert.equal(expand("[$NONE${OTHER}]"), "[]")
    assert.deepEqual(told, ["NONE", "OTHER"])
  })

  it("are bounded in length and depth", () => {
    const big = "x".repeat(1 << 16)
    assert.throws(() => interpolate("$A".repeat(100), () => big), /longer than/)
    assert.throws(() => interpolate(`${"${A:-".repeat(50)}${"}".repeat(50)}`, () => undefined), /too deeply/)
  })
})

describe("files of variables", () => {
  const read = (text: string, raw = false): object =>
    Object.fromEntries(parseEnvFile(text, "f.env", (name) => (name === "CALLER" ? "c" : undefined), raw))

  it("are read as the specification has them", () => {
    const text = [
      "# a comment",
      "",
      "A=1",
      "export B = two words # and a comment",
      "C='single $A \\n' # left as it is",
      'D="double $A\\n${CALLER}\\$A"',
      "E=",
      "F=a#b",
      "G: colon",
      "H=${NONE:-default}",
      'I="over',
      'two lines"',
      "CALLER",
      "NOT_SET",
      "\r",
      "J=last",
    ].join("\n")
    assert.deepEqual(read(text), {
      ...{ A: "1", B: "two words", C: "single $A \\n", D: "double 1\nc$A", E: "", F: "a#b" },
      ...{ G: "colon", H: "default", I: "over\ntwo lines", CALLER: "c", J: "last" },
    })
  })

  it("take no longer for many blanks", function () {
    this.timeout(3000)
    assert.deepEqual(read(`A=x${" ".repeat(1 << 18)}y #z`), { A: `x${" ".repeat(1 << 18)}y` })
    assert.deepEqual(read("A=#b\nB= # c\nC=a #b #c"), { A: "", B: "", C: "a" })
  })

  it("are taken as they stand where they are raw", () => {
    assert.deepEqual(read("A='x' # $B\nC=$(id)", true), { A: "'x' # $B", C: "$(id)" })
  })

  it("are refused with their line", () => {
    for (const [text, line] of [
      ["A=1\nnot a line", 2],
      ['A="1\nB=2\n', 1],
      ["A='1' x", 1],
      ["\n\nA=${", 3],
      ["A=\0", 1],
    ] as const)
      assert.throws(
        () => read(text),
        (error) => error instanceof ComposeError && error.message.startsWith(`f.env:${line}: `),
      )
  })
})

describe("a command as one text", () => {
  it("is split as a shell splits it, and nothing else is done", () => {
    for (const [text, words] of [
      ["a b  c", ["a", "b", "c"]],
      [`a 'b c' "d e"`, ["a", "b c", "d e"]],
      [String.raw`a\ b "c\"d\e" 'f\g'`, ["a b", String.raw`c"d\e`, String.raw`f\g`]],
      ["'' \"\"", ["", ""]],
      ["a'b'\"c\"", ["abc"]],
      ["$(id) `id` ; |", ["$(id)", "`id`", ";", "|"]],
      ["", []],
    ] as const)
      assert.deepEqual(splitWords(text), words)
    for (const text of ["'a", '"a', "a\\"]) assert.equal(splitWords(text), undefined)
  })
})
