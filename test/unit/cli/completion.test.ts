// Completions against what commander makes of the same tables: what it takes is offered, and nothing else.
import assert from "node:assert/strict"
import { Command, Option } from "commander"
import { addCommand, addOptions } from "../../../lib/cli/command.ts"
import { commands } from "../../../lib/cli/commands.ts"
import { completions } from "../../../lib/cli/completion.ts"
import { globalRows } from "../../../lib/cli/verbosity.ts"

const words = (...line: string[]): string[] =>
  completions(commands, line)
    .words.map(([word]) => word)
    .toSorted()

/** Every command as commander has it, from the program down. */
function* all(command: Command, above: readonly string[] = []): Generator<[readonly string[], Command]> {
  yield [above, command]
  for (const below of command.createHelp().visibleCommands(command))
    if (below.name() !== "help") yield* all(below, [...above, below.name()])
}

describe("completions", () => {
  const program = addOptions(
    new Command("sifcrypt").version("1", "-V, --version").enablePositionalOptions(),
    globalRows,
    true,
  )
  for (const row of commands) addCommand(program, row)

  it("has every command and every option, and nothing else", () => {
    let count = 0
    for (const [above, command] of all(program)) {
      const help = command.createHelp()
      const options = [...command.options.filter(({ hidden }) => !hidden), new Option("-h, --help")].flatMap(
        ({ short, long }) => [short ?? [], long ?? []].flat(),
      )
      assert.deepEqual(words(...above, "-"), options.toSorted(), above.join(" "))
      count += options.length
      if (command.commands.length === 0) continue
      const names = help.visibleCommands(command).map((one) => one.name())
      assert.deepEqual(words(...above, ""), names.toSorted(), above.join(" "))
      assert.deepEqual(words(...above, "help", ""), names.filter((name) => name !== "help").toSorted())
    }
    assert.ok(count > 500)
  })

  it("knows which options take a value, and what that may be", () => {
    for (const [above, command] of all(program))
      for (const option of command.options) {
        if (option.hidden) continue
        if (!option.required || option.long === undefined) continue
        const found = completions(commands, [...above, option.long, ""])
        if (option.argChoices !== undefined)
          assert.deepEqual(
            found.words.map(([word]) => word),
            option.argChoices,
          )
        assert.ok(
          found.words.every(([word]) => !word.startsWith("-")),
          `${above.join(" ")} ${option.long}`,
        )
        if (/<(?:file|path)/.test(option.flags)) assert.equal(found.places, "files", option.flags)
        if (/<dir/.test(option.flags)) assert.equal(found.places, "folders", option.flags)
      }
  })

  it("follows a command line to where the cursor is", () => {
    assert.deepEqual(words("-c", "build", "key", "li"), ["list"])
    assert.deepEqual(words("exec", "--bind", "ls", "-"), words("exec", "-"))
    assert.deepEqual(words("build", "out.sif", "--pem"), ["--pem-path"])
    assert.deepEqual(words("build", "--", "--pem"), [])
    assert.deepEqual(words("exec", "image.sif", "--pem"), [])
    assert.deepEqual(words("mounts", ""), ["--help", "--json", "-h"])
    assert.deepEqual(words("search", "--"), ["--help"])
  })
})
