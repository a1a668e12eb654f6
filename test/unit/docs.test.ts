// What the documentation promises, held against the code: codes, statuses, options, links.
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import type { CommandRow } from "../../lib/cli/command.ts"
import { commands } from "../../lib/cli/commands.ts"
import { exitCodeFor, exitCodes, exitMeanings } from "../../lib/cli/exit-codes.ts"
import { globalRows } from "../../lib/cli/verbosity.ts"
import * as api from "../../lib/index.ts"
import type { ErrorCode } from "../../lib/index.ts"
import { clientsTable } from "../clients/cases.ts"
import { compatibilityTable } from "../peer/cases.ts"
import { brokenLinks } from "../support/links.ts"
import { synopsis } from "../support/synopsis.ts"

const root = path.resolve(import.meta.dirname, "../..")
const read = (file: string): string => readFileSync(path.join(root, file), "utf8")

/** The text below each heading of a level, by the heading's own text. */
function sections(markdown: string, level: string): Map<string, string> {
  const parts = markdown.split(new RegExp(`^${level} `, "m")).slice(1)
  return new Map(
    parts.map((part) => {
      const [heading = "", ...rest] = part.split("\n")
      return [heading.replaceAll("`", ""), rest.join("\n")]
    }),
  )
}

/** Of a command, and of those below it: every flag, and whether a value is shown behind it. */
function flags({ options = {}, commands: below = [] }: CommandRow): { flag: string; takesValue: boolean }[] {
  return [
    ...Object.values(options).flatMap(([text, , , more]) =>
      [...text.matchAll(/(?<![\w-])--?[\w-]+/g)].map(([flag]) => ({
        flag,
        takesValue: text.includes("<") && more?.hidden !== true,
      })),
    ),
    ...below.flatMap(flags),
  ]
}

describe("docs/errors.md", () => {
  const documented = sections(read("docs/errors.md"), "###")
  const codes = [...read("lib/errors.ts").matchAll(/^ {2}\| "(ERR_[A-Z_]+)"$/gm)].map(
    ([, code]) => code as ErrorCode,
  )

  it("has every code there is, and no other", () => {
    assert.ok(codes.length > 40)
    assert.deepEqual([...documented.keys()].sort(), [...codes].sort())
  })

  it("has every class there is, and no other", () => {
    const classes = Object.values(api).filter(
      (one) => typeof one === "function" && one.prototype instanceof api.ContainerError,
    ) as (typeof api.ContainerError)[]
    const listed = [...read("docs/errors.md").matchAll(/^\| `(\w+Error)`/gm)].map(([, name]) => name)
    assert.deepEqual(listed.toSorted(), classes.map(({ name }) => name).toSorted())
  })

  it("gives the exit status that the command ends with", () => {
    for (const code of codes)
      assert.match(documented.get(code) ?? "", new RegExp(`^\\s*Exit status ${exitCodeFor(code)}\\.`), code)
  })
})

describe("docs/cli.md", () => {
  const text = read("docs/cli.md")
  const parts = sections(text, "##")
  const section = (name: string): string => parts.get(name) ?? ""
  /** What other sections say for several commands. */
  const shared =
    section("Images") + section("JSON") + section("Progress") + section("Credentials") + section("Engines")

  /** Whose section describes the options that both have. */
  const sameAs: Readonly<Record<string, string>> = {
    run: "exec",
    shell: "exec",
    test: "exec",
    instance: "exec",
    encrypt: "build",
    decrypt: "build",
    reencrypt: "build",
  }

  it("begins with the synopsis of the tables: node --import tsx test/support/synopsis.ts", () => {
    const [, written = ""] =
      /<!-- made by test\/support\/synopsis\.ts -->\n([^]*?)<!-- end -->/.exec(text) ?? []
    assert.equal(written, `\n\`\`\`\n${synopsis()}\`\`\`\n\n`)
  })

  it("has a section for every command", () => {
    for (const { name } of commands) assert.ok(parts.has(name), name)
  })

  it("describes every option of the tables, with a value where it takes one", () => {
    for (const command of commands) {
      const { name } = command
      const place = section(name) + shared + section(sameAs[name] ?? "")
      for (const { flag, takesValue } of flags(command)) {
        assert.match(place, new RegExp(`\`${flag}[ \`]`), `${name} ${flag}`)
        if (takesValue && flag.startsWith("--"))
          assert.match(place, new RegExp(`${flag} [^ ]`), `${name} ${flag} VALUE`)
      }
    }
  })

  it("shows how a command is called with its own options", () => {
    for (const command of commands) {
      const [, block = ""] = /^```\n(sifcrypt [^]*?)^```/m.exec(section(command.name)) ?? []
      for (const [usage, word] of block.replace(/\n +/g, " ").matchAll(/^sifcrypt [\w-]+ +([\w-]*).*$/gm)) {
        const row = command.commands?.find(({ name }) => name === word) ?? command
        const own = new Set(flags(row).map(({ flag }) => flag))
        for (const [flag] of usage.matchAll(/(?<![\w-])--?[a-z][\w-]*/gi)) assert.ok(own.has(flag), usage)
      }
    }
  })

  it("describes no option that is not there", () => {
    const everywhere = { name: "", description: "", options: globalRows }
    const known = new Set([
      "--help",
      "--help-all",
      "--version",
      ...[everywhere, ...commands].flatMap(flags).map(({ flag }) => flag),
    ])
    for (const [flag] of text.matchAll(/(?<![\w-])--[a-z][a-z-]*/g)) {
      // of bash
      if (flag !== "--norc") assert.ok(known.has(flag), flag)
    }
  })

  it("lists every exit status", () => {
    const listed = [...section("Exit status").matchAll(/^\| (\d+) +\| (.*?) +\|$/gm)]
    assert.deepEqual(
      listed.map(([, status, meaning]) => [Number(status), meaning]),
      exitMeanings.map(([status, , meaning]) => [status, meaning]),
    )
    for (const status of Object.values(exitCodes))
      assert.ok(
        exitMeanings.some(([one]) => one === status),
        String(status),
      )
  })
})

describe("examples in the documentation", () => {
  for (const file of ["README.md", "docs/errors.md", "docs/guide/library.md"])
    it(`import what the package exports, in ${file}`, () => {
      const names = [...read(file).matchAll(/^import \{ (.*) \} from "sifcrypt"$/gm)].flatMap(
        ([, list = ""]) => list.split(", "),
      )
      assert.ok(names.length > 0)
      for (const name of names) assert.ok(name in api, name)
    })
})

describe("docs/security.md", () => {
  const start = read("docs/security.md").split("\n").slice(0, 40).join("\n")

  it("A22: says in its first screen what encryption protects from", () => {
    const protects = /protects from([^]*?)does not protect from/i.exec(start)?.[1] ?? ""
    for (const whom of [/thief/i, /other users/i, /registry/i]) assert.match(protects, whom)
  })

  it("A22: says in its first screen what encryption does not protect from", () => {
    const not = /does not protect from([^]*)/i.exec(start)?.[1] ?? ""
    for (const whom of [/holds the key/i, /root of the (node|machine)/i, /memory/i]) assert.match(not, whom)
  })

  it("says of every program that a command starts what it reads of others and what it may", () => {
    const patterns = [
      /[fF]indProgram\(\s*"([^"]+)"/g,
      /\bspawn(?:Sync)?\(\s*"(?:\/bin\/)?([^"]+)"/g,
      /\bexecFile(?:Sync)?\(\s*"([^"]+)"/g,
      /\brun(?:Program|Signer)\(\s*\[?"(?:\/bin\/)?([^"]+)"/g,
      /\b(?:slurm|pipeThrough)\(\s*"([^"]+)"/g,
      /HelperProgram\{\s*"([^"]+)"/g,
      /WriteIdMap\("([^"]+)"/g,
    ]
    const files = ["lib", "native"].flatMap((folder) =>
      readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" })
        .filter((name) => /\.(?:ts|cc)$/.test(name))
        .map((name) => read(path.join(folder, name))),
    )
    const started = new Set(
      files.flatMap((text) =>
        patterns.flatMap((one) => [...text.matchAll(one)].map(([, name = ""]) => name)),
      ),
    )
    assert.ok(started.has("gpg") && started.has("fuse2fs") && started.has("cp"))
    const judged =
      sections(read("docs/security.md"), "##").get("Programs that read what an image brings") ?? ""
    const table = judged.split("\n").filter((line) => line.startsWith("| `"))
    const missing = [...started].filter(
      (name) => !table.some((line) => line.split("|")[1]?.includes(`\`${name}\``)),
    )
    assert.deepEqual(missing, [])
  })
})

describe("docs/requirements.md", () => {
  it("says what each code in the names of tests stands for", () => {
    const legend = new Set(
      [...read("docs/requirements.md").matchAll(/^\| ([AS]\d+) /gm)].map(([, code]) => code),
    )
    const files = readdirSync(path.join(root, "test"), { recursive: true, encoding: "utf8" })
    const named = files
      .filter((name) => name.endsWith(".test.ts"))
      .flatMap((name) => [...read(`test/${name}`).matchAll(/["`]((?:[AS]\d+(?:, |: ))+)/g)])
      .flatMap(([, codes = ""]) => codes.match(/[AS]\d+/g) ?? [])
    assert.ok(named.length > 100)
    assert.deepEqual(
      named.filter((code) => !legend.has(code)),
      [],
    )
  })
})

describe("docs/compatibility.md", () => {
  it("lists what the comparison with a live peer compares: node --import tsx test/peer/table.ts", () => {
    const [, list = ""] =
      /<!-- made by test\/peer\/table\.ts -->\n([^]*?)<!-- end -->/.exec(read("docs/compatibility.md")) ?? []
    assert.equal(list, `\n${compatibilityTable()}\n`)
  })

  it("lists the programs that are run, and whose command lines are: node --import tsx test/peer/table.ts", () => {
    const [, list = ""] =
      /<!-- of test\/clients -->\n([^]*?)<!-- end -->/.exec(read("docs/compatibility.md")) ?? []
    assert.equal(list, `\n${clientsTable()}\n`)
  })
})

describe("links in the documentation", () => {
  const files = [".", "docs", "docs/guide"].flatMap((folder) =>
    readdirSync(path.join(root, folder))
      .filter((name) => name.endsWith(".md"))
      .map((name) => path.join(folder, name)),
  )
  it("are those of all pages", () => {
    assert.ok(files.length > 17, String(files))
  })
  for (const file of files)
    it(`lead somewhere in ${file}`, () => {
      assert.deepEqual(brokenLinks(root, file), [])
    })
})

describe("tests that docs/security.md names", () => {
  const parts = sections(read("docs/security.md"), "##")
  const rowsOf = (heading: string): string[] =>
    (parts.get(heading) ?? "")
      .split("\n")
      .filter((line) => line.startsWith("| "))
      .slice(2)
  const files = readdirSync(path.join(root, "test"), { recursive: true, encoding: "utf8" })

  /** The file that a name stands for: a path, the end of one, or a program of the suite `core`. */
  function fileOf(name: string): string {
    const wanted = name.endsWith(".ts") ? name.replace(/^test\//, "") : `${name}.cc`
    const [found, ...others] = files.filter((file) => file === wanted || file.endsWith(`/${wanted}`))
    assert.ok(found !== undefined, `there is no ${name}`)
    assert.deepEqual(others, [], `${name} stands for several`)
    return `test/${found}`
  }

  /** Looks for those that a row names, and for the titles beside them. @returns How many there are. */
  function look(row: string, titled: boolean): number {
    const named = [...row.matchAll(/`([\w/-]+\.test\.ts|[a-z0-9_]+_(?:fuzz|test))`(?: "([^"]+)")?/g)]
    for (const [, name = "", title] of named) {
      const source = read(fileOf(name))
      const begins = ['"', "`"].flatMap((quote) => [`it(${quote}`, `describe(${quote}`])
      assert.ok(
        title === undefined ? !titled : begins.some((text) => source.includes(text + title)),
        `${name} has no test "${title ?? ""}"`,
      )
    }
    return named.length
  }

  for (const [heading, titled, least] of [
    ["The threat model", true, 16],
    ["What was found in others", false, 40],
  ] as const)
    it(`are there: ${heading}`, () => {
      const rows = rowsOf(heading)
      assert.ok(rows.length >= least)
      const without = rows.filter((row) => look(row, titled) === 0)
      // A sentence says of some flaws why they cannot occur.
      if (titled) assert.deepEqual(without, [])
      else assert.ok(without.length < rows.length / 2)
    })
})
