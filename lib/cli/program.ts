// What the sifcrypt command does whatever it is asked for: parses arguments, runs one command, turns errors into a line, a hint
// and an exit status.
import { setImmediate } from "node:timers/promises"
import { inspect } from "node:util"
import { Command, CommanderError, InvalidArgumentError } from "commander"
import { ContainerError } from "../index.ts"
import { printableLines } from "../printable.ts"
import { addCommand, addOptions, helpHint, type CommandRow } from "./command.ts"
import { exitCodeFor, exitCodes } from "./exit-codes.ts"
import { failureToReport } from "./failure.ts"
import { hintFor, type Failed } from "./hints.ts"
import { Interrupted, dieAsAsked, endInTime, interruption, leave, undoOnSignals } from "./interrupt.ts"
import { commandWords, programName, versionLine } from "./name.ts"
import { errors, flush, output } from "./output.ts"
import { sentence } from "./sentence.ts"
import { complain } from "./terminal.ts"
import { globalRows, lookAtConfiguration, setVerbosity, takesValue, tellsCauses } from "./verbosity.ts"

let running: Command | undefined

function whereItFailed({ cause }: Error): Failed | undefined {
  if (running === undefined) return undefined
  const above = running.parent?.parent === null ? [] : [running.parent?.name() ?? ""]
  return {
    command: [...above, running.name()].join(" "),
    options: new Set(running.options.flatMap(({ long }) => long ?? [])),
    words: running.args,
    cause,
  }
}

/** One line for what happened, one for what to do; the chain of causes with --debug. */
function report(error: unknown): number {
  if (error instanceof Interrupted) return error.exitCode
  if (error instanceof ContainerError) {
    complain(sentence(error.message))
    const hint = hintFor(error.code, whereItFailed(error), error.kdfLimits)
    if (hint !== undefined) complain(`hint: ${hint}`)
    tellCauses(error)
    return exitCodeFor(error.code)
  }
  const system = error as Partial<NodeJS.ErrnoException> | null
  if (typeof system?.syscall === "string" && typeof system.code === "string") {
    complain(sentence(system.message ?? system.code))
    tellCauses(error)
    return exitCodes.inputOutput
  }
  // A word of the command line that the API refuses, as one that is empty.
  if (error instanceof TypeError && system?.code === "ERR_INVALID_ARG_VALUE") {
    complain(error.message)
    tellCauses(error)
    return exitCodes.usage
  }
  errors().write(`${printableLines(inspect(error))}\n`)
  complain("this is a defect of sifcrypt: please report the lines above")
  return 1
}

function tellCauses(error: unknown): void {
  if (tellsCauses()) errors().write(`${printableLines(inspect(error))}\n`)
}

/** The words from the command on. */
function fromCommand(words: readonly string[]): readonly string[] {
  for (let i = 0; i < words.length; i++)
    if (takesValue.has(words[i] ?? "")) i++
    else if (!words[i]?.startsWith("-")) return words.slice(i)
  return []
}

/** The first word that should name a command and names none. */
function unknownCommand(rows: readonly CommandRow[], words: readonly string[]): string | undefined {
  const [word, ...rest] = words
  if (word === undefined || word.startsWith("-") || word === "help") return undefined
  const row = rows.find(({ name, alias }) => name === word || alias === word)
  if (row === undefined) return word
  return row.commands === undefined ? undefined : unknownCommand(row.commands, rest)
}

async function runCommand(commands: readonly CommandRow[]): Promise<number> {
  setVerbosity({})
  const failure = failureToReport(process.argv)
  if (failure !== undefined) return report(failure)
  const words = commandWords()
  const asked = fromCommand(words)
  // That alone: making hundreds of options takes as long as opening an image.
  const one = commands.filter(
    ({ name, alias }) => asked.length > 0 && (name === asked[0] || alias === asked[0]),
  )
  const program = new Command(programName)
    .description("Encrypted containers for Linux: the same LUKS2 image for root and for an ordinary user.")
    // A command does not need it, and it is a file.
    .version(one.length > 0 ? "" : versionLine(), "-V, --version")
    .enablePositionalOptions()
    .showHelpAfterError(helpHint(["COMMAND"]))
    .exitOverride()
    .configureOutput({
      writeOut: (text) => output().write(text),
      writeErr: (text) => errors().write(printableLines(text)),
      outputError: (text, write) => {
        write(`${programName}: ${text.replace(/^error: /, "")}`)
      },
    })
  addOptions(program, globalRows, true)
  for (const row of one.length > 0 ? one : commands) addCommand(program, row)
  undoOnSignals()
  program.hook("preSubcommand", () => {
    const flags = program.opts()
    setVerbosity(flags)
    if (typeof flags["config"] === "string") lookAtConfiguration(flags["config"])
  })
  program.hook("preAction", endInTime)
  program.hook("preAction", (_, made) => {
    running = made
  })
  try {
    // Of one that is not known there is no help either, which is how scripts ask what there is.
    const unknown = unknownCommand(commands, asked)
    if (unknown !== undefined) program.error(`error: there is no command '${unknown}'`)
    await program.parseAsync(words, { from: "user" })
    return typeof process.exitCode === "number" ? process.exitCode : exitCodes.done
  } catch (error) {
    // A variable's value; commander has told of an argument's.
    if (error instanceof InvalidArgumentError) {
      complain(error.message)
      return exitCodes.usage
    }
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.done : exitCodes.usage
    // Ctrl-C reaches helper programs, too, whose end is no news then; and after a wait in which nothing was heard it is heard now.
    await setImmediate()
    await setImmediate() // the first may come before anybody has looked for signals
    return report(interruption.aborted ? interruption.reason : error)
  }
}

/** Does what the command line says, and ends this process. */
export function main(commands: readonly CommandRow[]): void {
  void runCommand(commands).then(async (code) => {
    const unwritten = await flush()
    dieAsAsked()
    if (interruption.aborted) leave(code)
    // Nothing is left to wait for but that line.
    const status = code === exitCodes.done && unwritten !== undefined ? report(unwritten) : code
    await flush()
    process.exit(status)
  })
}
