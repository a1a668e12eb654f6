// What the sifcrypt command does whatever it is asked for: parses arguments, runs one command, turns errors into a line, a hint
// and an exit status.
import { setImmediate } from "node:timers/promises"
import { inspect } from "node:util"
import { Command, CommanderError, InvalidArgumentError } from "commander"
import { ContainerError } from "../index.ts"
import { printableLines } from "../printable.ts"
import {
  addCommand,
  addOptions,
  flagNames,
  helpHint,
  wordsOf,
  type AnyOptions,
  type CommandRow,
} from "./command.ts"
import { exitCodeFor, exitCodes, limitStatus } from "./exit-codes.ts"
import { failureToReport } from "./failure.ts"
import { helpOf } from "./help.ts"
import { hintFor, limitHint, nameHint, roomHint, type Failed } from "./hints.ts"
import { Interrupted, dieAsAsked, endInTime, interruption, leave, undoOnSignals } from "./interrupt.ts"
import { commandWords, programName, versionLine } from "./name.ts"
import { errors, flush, hasPrinted, output } from "./output.ts"
import { setProgress } from "./progress.ts"
import { sentence } from "./sentence.ts"
import { complain } from "./terminal.ts"
import { truth } from "./values.ts"
import { globalRows, lookAtConfiguration, setVerbosity, takesValue, tellsCauses } from "./verbosity.ts"

let running: Command | undefined
/** Of the command that is asked for, as far as one is known. */
let options: AnyOptions | undefined
/** What commander has told beside an error. */
let usageHint: string | undefined

function whereItFailed({ cause, limit }: ContainerError): Failed | undefined {
  if (running === undefined) return undefined
  return {
    command: wordsOf(running).join(" "),
    options: new Set(running.options.flatMap(({ long }) => long ?? [])),
    words: running.args,
    cause,
    limit,
    plainScratch: running.opts()["plainScratch"] === true,
    requiresEncrypted: running.opts()["requireEncrypted"] === true,
  }
}

/** What the API says of one of its options, said of the flag that it came from. */
function ofFlags(message: string): string {
  return message.replace(/^options\.(\w+)(?:\[\d+\])?/, (property, key: string) => {
    const row = options?.[key]
    return (row && flagNames(row).at(-1)) ?? property
  })
}

/** What is said of an error, to people and as JSON. */
interface Failure {
  readonly code: string
  readonly message: string
  readonly hint?: string | undefined
  readonly status: number
}

const USAGE = "ERR_USAGE"

function failureOf(error: unknown): Failure {
  if (error instanceof Interrupted)
    return { code: "ERR_INTERRUPTED", message: error.message, status: error.exitCode }
  if (error instanceof ContainerError) {
    const { code, message, kdfLimits } = error
    const limit = limitHint(error)
    const hint = limit ?? roomHint(error) ?? hintFor(code, whereItFailed(error), kdfLimits)
    return {
      code,
      message: sentence(message),
      hint,
      status: limit === undefined ? exitCodeFor(code) : limitStatus(code),
    }
  }
  const system = error as Partial<NodeJS.ErrnoException> | null
  if (typeof system?.syscall === "string" && typeof system.code === "string") {
    const { code, message = code } = system
    const limit = limitHint(error)
    const hint = limit ?? roomHint(error) ?? nameHint(system)
    const status = limit === undefined ? exitCodes.inputOutput : exitCodes.environment
    return { code, message: sentence(message), hint, status }
  }
  const limit = limitHint(error)
  if (limit !== undefined && error instanceof Error)
    return { code: "EMFILE", message: sentence(error.message), hint: limit, status: exitCodes.environment }
  // A variable's value, or a word of the command line that the API refuses, as one that is empty.
  if (
    error instanceof InvalidArgumentError ||
    (error instanceof TypeError && system?.code === "ERR_INVALID_ARG_VALUE")
  )
    return { code: USAGE, message: ofFlags(error.message), status: exitCodes.usage }
  const message = error instanceof Error ? error.message : String(error)
  return { code: "ERR_DEFECT", message, hint: "this is a defect of sifcrypt: please report it", status: 1 }
}

/** One line for what happened, one for what to do; the chain of causes with --debug. */
function report(error: unknown): number {
  const failure = failureOf(error)
  const { code, message, hint, status } = failure
  reportAsJson(failure)
  if (error instanceof Interrupted) return status
  if (code === "ERR_DEFECT") errors().write(`${printableLines(inspect(error))}\n`)
  else complain(message)
  if (hint !== undefined) complain(`hint: ${hint}`)
  if (code !== "ERR_DEFECT") tellCauses(error)
  return status
}

/** Does the command line ask for JSON? What commander could not parse is looked at word by word. */
function wantsJson(): boolean {
  if (running !== undefined) return running.opts()["json"] === true
  const words = commandWords()
  // A payload's words are none of ours.
  if (options !== undefined && !("json" in options)) return false
  const end = words.indexOf("--")
  return words
    .slice(0, end < 0 ? words.length : end)
    .some((word) => word === "--json" || (word.startsWith("--json=") && truth(word.slice(7)) === true))
}

/** For a program that reads standard output: an error in place of the result, unless some of that is there already. */
function reportAsJson({ code, message, hint }: Omit<Failure, "status">): void {
  if (hasPrinted() || !wantsJson()) return
  output().write(printableLines(`${JSON.stringify({ error: { code, message, hint: hint ?? null } })}\n`))
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

/** `help sif list` in the words of `sif list --help`: of a command in a group commander's own would show the group. */
function withHelp(words: readonly string[]): readonly string[] {
  const asked = fromCommand(words)
  const [word, ...named] = asked
  if (word !== "help" || named.length === 0) return words
  return [...words.slice(0, words.length - asked.length), ...named, "--help"]
}

/** Of the words that should name a command those up to the first that names none. */
function unknownCommand(
  rows: readonly CommandRow[],
  words: readonly string[],
): readonly string[] | undefined {
  const [word, ...rest] = words
  if (word === undefined || word.startsWith("-") || word === "help") return undefined
  const row = rows.find(({ name, alias }) => name === word || alias === word)
  if (row === undefined) return [word]
  const below = row.commands && unknownCommand(row.commands, rest)
  return below && [word, ...below]
}

/** The command that these words name; undefined for a group, or none. */
function rowOf(rows: readonly CommandRow[], [word, ...rest]: readonly string[]): CommandRow | undefined {
  const row = rows.find(({ name, alias }) => name === word || alias === word)
  return row?.commands === undefined ? row : rowOf(row.commands, rest)
}

async function runCommand(commands: readonly CommandRow[]): Promise<number> {
  setVerbosity({})
  process.env["SIFCRYPT_START_CALLED"] = programName
  const failure = failureToReport(process.argv)
  if (failure !== undefined) return report(failure)
  const words = withHelp(commandWords())
  const asked = fromCommand(words)
  // That alone: making hundreds of options takes as long as opening an image.
  const one = commands.filter(
    ({ name, alias }) => asked.length > 0 && (name === asked[0] || alias === asked[0]),
  )
  options = rowOf(one, asked)?.options
  const program = new Command(programName)
    .description("Encrypted containers for Linux: the same LUKS2 image for root and for an ordinary user.")
    // A command does not need it, and it is a file.
    .version(one.length > 0 ? "" : versionLine(), "-V, --version")
    .enablePositionalOptions()
    .showHelpAfterError(helpHint(["COMMAND"]))
    .exitOverride()
    .commandsGroup("This command:")
    .helpCommand(true)
    .configureHelp(helpOf(one.length > 0 ? one : commands))
    .configureOutput({
      writeOut: (text) => output().write(text),
      writeErr: (text) => {
        usageHint = text.split(`${programName}: hint: `)[1]?.trimEnd() ?? usageHint
        errors().write(printableLines(text))
      },
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
    setProgress(made.opts()["progress"])
  })
  try {
    // Of one that is not known there is no help either, which is how scripts ask what there is.
    const unknown = unknownCommand(commands, asked)
    if (unknown !== undefined)
      program
        .showHelpAfterError(helpHint(unknown.slice(0, -1)))
        .error(`error: there is no command '${unknown.at(-1) ?? ""}'`)
    await program.parseAsync(words, { from: "user" })
    return typeof process.exitCode === "number" ? process.exitCode : exitCodes.done
  } catch (error) {
    // Commander has told of it; a variable's value it has not seen.
    if (error instanceof CommanderError && !(error instanceof InvalidArgumentError)) {
      if (error.exitCode === 0) return exitCodes.done
      const message =
        error.code === "commander.help"
          ? "no command is named"
          : error.message.replace(/^error: /, "").replace(/\s*\n\s*/g, " ")
      reportAsJson({ code: USAGE, message, hint: usageHint })
      return exitCodes.usage
    }
    // Ctrl-C reaches helper programs, too, whose end is no news then; and after a wait in which nothing was heard it is heard now.
    await setImmediate()
    await setImmediate() // the first may come before anybody has looked for signals
    return report(interruption.aborted ? interruption.reason : error)
  }
}

const neverHeard = (): NodeJS.ErrnoException =>
  Object.assign(new Error("the end of what was begun was never heard of"), { code: "EIO", syscall: "read" })

/** Does what the command line says, and ends this process. */
export function main(commands: readonly CommandRow[]): void {
  // Where Node cannot open what it needs, it may tell nobody of an end that is waited for. Then there is nothing left to do, and
  // Node would end this process as if all were done.
  process.once("beforeExit", () => {
    process.exit(report(neverHeard()))
  })
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
