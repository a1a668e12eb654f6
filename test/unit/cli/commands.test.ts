// The tables of commands and options: what commander makes of them, and that what they say of each other holds.
import assert from "node:assert/strict"
import { Command, Option } from "commander"
import { addCommand, addOptions, type CommandRow } from "../../../lib/cli/command.ts"
import { commands } from "../../../lib/cli/commands.ts"
import { actions } from "../../../lib/cli/commands/run.ts"

/** Every command with its whole name. */
function all(rows: readonly CommandRow[], above = ""): [name: string, row: CommandRow][] {
  return rows.flatMap((row) => [
    [`${above}${row.name}`, row] as [string, CommandRow],
    ...all(row.commands ?? [], `${above}${row.name} `),
  ])
}

/** Is the command, or the group that it is in, left out of --help? */
function hidden(name: string): boolean {
  const [first, second] = name.split(" ")
  const row = commands.find((one) => one.name === first)
  return row?.hidden === true || row?.commands?.find((one) => one.name === second)?.hidden === true
}

const program = new Command("sifcrypt").enablePositionalOptions()
for (const row of commands) addCommand(program, row)

function made(name: string): Command {
  return name.split(" ").reduce((above, word) => above.commands.find((one) => one.name() === word)!, program)
}

/** What commander makes of a command line. */
function parsed(name: string, args: readonly string[]): Record<string, unknown> {
  const row = all(commands).find(([one]) => one === name)?.[1]
  return addOptions(new Command(), row?.options ?? {})
    .exitOverride()
    .configureOutput({ writeErr: () => undefined })
    .parse(args, { from: "user" })
    .opts()
}

describe("commands", () => {
  it("are what commander has, and all that it has", () => {
    const names = (command: Command, above = ""): string[] =>
      command.commands.flatMap((one) => [`${above}${one.name()}`, ...names(one, `${above}${one.name()} `)])
    assert.deepEqual(
      names(program),
      all(commands).map(([name]) => name),
    )
    for (const [name, { options = {}, arguments: words = [], ...row }] of all(commands)) {
      const command = made(name)
      assert.equal(command.description(), row.description, name)
      assert.equal(command.summary(), row.summary ?? "", name)
      assert.deepEqual(command.aliases(), row.alias === undefined ? [] : [row.alias], name)
      assert.deepEqual(
        command.options
          .filter(({ long }) => long !== "--help-all")
          .map(({ flags, description }) => [flags, description]),
        Object.values(options).map(([flags, help]) => [flags, help]),
        name,
      )
      assert.equal(command.registeredArguments.length, words.length, name)
    }
  })

  it("stand under a heading, where they are shown", () => {
    for (const { name, heading, hidden } of commands)
      if (hidden !== true) assert.ok(heading !== undefined, name)
  })

  it("have something to do, or commands below them", () => {
    for (const [name, { run, commands: below }] of all(commands))
      assert.notEqual(run === undefined, below === undefined, name)
  })

  it("of a group are added with it: what starts payloads is a part of all", () => {
    for (const action of actions) assert.ok(commands.includes(action), action.name)
  })

  it("print JSON, but for those whose output is the image's, the payload's, a shell's or another machine's", () => {
    const bytes = new Set([
      ...["cat", "sif dump", "ctd-decoder", "oci-runtime", "exec", "run", "shell", "test", "instance logs"],
      ...["batch tail", "batch logs", "completion", "serve-build", "batch serve-node"],
      ...["compose logs", "compose exec", "compose run"],
    ])
    for (const [name, { options = {}, commands: below }] of all(commands))
      if (below === undefined && !hidden(name)) assert.equal("json" in options, !bytes.has(name), name)
  })

  it("show the common ones of their own options, and have examples of themselves", () => {
    for (const [name, { options = {}, common = [], examples = [] }] of all(commands)) {
      for (const key of common.filter((key) => key !== "action shell"))
        assert.ok(key in options, `${name} ${key}`)
      for (const [, line] of examples) {
        assert.ok(line === `sifcrypt ${name}` || line.startsWith(`sifcrypt ${name} `), line)
        const flags = Object.values(options).flatMap(([text]) => text.match(/--[a-z-]+/g) ?? [])
        const [own = ""] = line.split(/image\.sif|web | -- /)
        for (const flag of own.match(/--[a-z-]+/g) ?? []) assert.ok(flags.includes(flag), line)
      }
    }
  })

  it("have an example each, those that --help lists", () => {
    const shown = all(commands).filter(([name, { commands: below }]) => below === undefined && !hidden(name))
    assert.ok(shown.length > 80, String(shown.length))
    assert.deepEqual(
      shown.filter(([, { examples = [] }]) => examples.length === 0).map(([name]) => name),
      [],
    )
  })

  it("speak of options that they have: a conflict with none would be nothing", () => {
    for (const [name, { options = {} }] of all(commands)) {
      const keys = new Set(Object.keys(options))
      const flags = Object.values(options).map(([text]) => text)
      for (const [flag, , , { conflicts = [], negates, valued } = {}] of Object.values(options)) {
        for (const key of [...conflicts, negates ?? []].flat())
          assert.ok(keys.has(key), `${name} ${flag} ${key}`)
        if (valued !== undefined)
          assert.ok(
            flags.some((text) => text.startsWith(`${valued} <`)),
            `${name} ${flag}`,
          )
      }
    }
  })

  it("say of an option that it is repeatable where it is, and only there", () => {
    for (const [name, { options = {} }] of all(commands))
      for (const [flag, help, value, more] of Object.values(options)) {
        if (!help.includes("repeatable")) continue
        assert.ok(typeof value === "function" && "repeatable" in value, `${name} ${flag}`)
        assert.equal(more?.default, undefined, `${name} ${flag}`)
      }
  })
})

describe("addOptions", () => {
  it("keeps options in the API's names", () => {
    assert.deepEqual(parsed("build", ["-T", "--build-arg", "A=1", "--build-arg", "B=2", "--no-https"]), {
      noTest: true,
      buildArguments: ["A=1", "B=2"],
      noHttps: true,
    })
    assert.deepEqual(parsed("instance stop", ["-t", "10"]), { timeout: 10_000 })
  })

  it("lets the last of two that negate each other count", () => {
    assert.deepEqual(parsed("key newpair", ["--push", "--no-push"]), { push: false })
    assert.deepEqual(parsed("key newpair", ["--no-push", "-U"]), { push: true })
    assert.deepEqual(parsed("key newpair", []), {})
  })

  it("refuses a value before the API would call it a mistake of the program", () => {
    for (const args of [
      ["--create-dir", "made"],
      ["--size", "1"],
    ])
      assert.throws(() => parsed("overlay create", args), { code: "commander.invalidArgument" })
  })

  it("takes --verify=FINGERPRINT for --require-signer FINGERPRINT", () => {
    const signer = "A".repeat(40)
    assert.deepEqual(parsed("ls", [`--verify=${signer}`, "--pem-path", "--verify=x"]), {
      requireSigner: [signer],
      pemPath: ["--verify=x"],
    })
    assert.deepEqual(parsed("ls", ["--verify"]), { verify: true })
  })

  it("takes as many looks at options as there are options, and not the square of that", () => {
    // What commander asks each option; its types do not tell of it.
    const asked = Option.prototype as unknown as { is: (this: Option, flag: string) => boolean }
    const { is } = asked
    const rows = commands.filter(({ name }) => name === "exec")
    let looks = 0
    asked.is = function (flag) {
      looks++
      return is.call(this, flag)
    }
    try {
      for (const row of rows) addCommand(new Command().enablePositionalOptions(), row)
    } finally {
      asked.is = is
    }
    assert.equal(rows.length, 1)
    assert.ok(looks < Object.keys(rows[0]?.options ?? {}).length, String(looks))
  })

  it("refuses two options with one flag", () => {
    const twice = { one: ["-f, --first", ""], other: ["-f, --second", ""] } as const
    const row: CommandRow = { name: "twice", description: "", options: twice }
    assert.throws(() => {
      addCommand(new Command(), row)
    }, /conflicting flag '-f'/)
  })
})
