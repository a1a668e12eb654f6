// What the sifcrypt command does whatever it is asked for: parses arguments, runs one command, turns errors into a line, a hint
// and an exit status.
import { readFileSync } from "node:fs"
import { setImmediate } from "node:timers/promises"
import { inspect } from "node:util"
import { Command, CommanderError } from "commander"
import { ContainerError } from "../index.ts"
import { printableLines } from "../printable.ts"
import { addCommand, type CommandRow } from "./command.ts"
import { exitCodeFor, exitCodes } from "./exit-codes.ts"
import { failureToReport } from "./failure.ts"
import { hintFor } from "./hints.ts"
import { Interrupted, dieAsAsked, endInTime, interruption, leave, undoOnSignals } from "./interrupt.ts"
import { errors, flush, output } from "./output.ts"
import { notice } from "./terminal.ts"

function packageVersion(): string {
  const file = readFileSync(new URL("../../package.json", import.meta.url), "utf8")
  return (JSON.parse(file) as { version: string }).version
}

/** One line for what happened, one for what to do; the chain of causes with SIFCRYPT_DEBUG=1. */
function report(error: unknown): number {
  if (error instanceof Interrupted) return error.exitCode
  if (error instanceof ContainerError) {
    notice(error.message)
    const hint = hintFor(error.code)
    if (hint !== undefined) notice(`hint: ${hint}`)
    if (process.env["SIFCRYPT_DEBUG"] === "1") errors().write(`${printableLines(inspect(error))}\n`)
    return exitCodeFor(error.code)
  }
  const system = error as Partial<NodeJS.ErrnoException> | null
  if (typeof system?.syscall === "string" && typeof system.code === "string") {
    notice(system.message ?? system.code)
    if (process.env["SIFCRYPT_DEBUG"] === "1") errors().write(`${printableLines(inspect(error))}\n`)
    return exitCodes.inputOutput
  }
  // A word of the command line that the API refuses, as one that is empty.
  if (error instanceof TypeError && system?.code === "ERR_INVALID_ARG_VALUE") {
    notice(error.message)
    if (process.env["SIFCRYPT_DEBUG"] === "1") errors().write(`${printableLines(inspect(error))}\n`)
    return exitCodes.usage
  }
  errors().write(`${printableLines(inspect(error))}\n`)
  notice("this is a defect of sifcrypt: please report the lines above")
  return 1
}

async function runCommand(commands: readonly CommandRow[]): Promise<number> {
  const failure = failureToReport(process.argv)
  if (failure !== undefined) return report(failure)
  const asked = process.argv[2]
  // That alone: making hundreds of options takes as long as opening an image.
  const one = commands.filter(({ name, alias }) => asked !== undefined && (name === asked || alias === asked))
  const program = new Command("sifcrypt")
    .description("Encrypted containers for Linux: the same LUKS2 image for root and for an ordinary user.")
    // A command does not need it, and it is a file.
    .version(one.length > 0 ? "" : packageVersion(), "-V, --version")
    .enablePositionalOptions()
    .showHelpAfterError("(sifcrypt COMMAND --help tells more)")
    .exitOverride()
    .configureOutput({
      writeOut: (text) => output().write(text),
      writeErr: (text) => errors().write(printableLines(text)),
    })
  for (const row of one.length > 0 ? one : commands) addCommand(program, row)
  undoOnSignals()
  program.hook("preAction", endInTime)
  try {
    await program.parseAsync(process.argv)
    return typeof process.exitCode === "number" ? process.exitCode : exitCodes.done
  } catch (error) {
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
