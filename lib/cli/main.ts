// The sifcrypt command: parses arguments, runs one command, turns errors into a line, a hint and an exit status.
import { readFileSync } from "node:fs"
import { inspect } from "node:util"
import { Command, CommanderError } from "commander"
import { ContainerError } from "../index.ts"
import { addAbsentCommands } from "./commands/absent.ts"
import { addBuildCommand } from "./commands/build.ts"
import { addCacheCommands } from "./commands/cache.ts"
import { addCertCommands } from "./commands/cert.ts"
import { addContentCommands } from "./commands/content.ts"
import { addConvertCommands } from "./commands/convert.ts"
import { addEclCommands } from "./commands/ecl.ts"
import { addInspectCommand } from "./commands/inspect.ts"
import { addInstanceCommands } from "./commands/instance.ts"
import { addKeyCommands } from "./commands/key.ts"
import { addMountCommands } from "./commands/mount.ts"
import { addOverlayCommands } from "./commands/overlay.ts"
import { addRecipientCommands } from "./commands/recipient.ts"
import { actions, addRunCommands } from "./commands/run.ts"
import { addSifCommands } from "./commands/sif.ts"
import { addSignCommand } from "./commands/sign.ts"
import { addVerifyCommand } from "./commands/verify.ts"
import { exitCodeFor, exitCodes } from "./exit-codes.ts"
import { failureToReport } from "./failure.ts"
import { hintFor } from "./hints.ts"
import { dieAsAsked, Interrupted, undoOnSignals } from "./interrupt.ts"
import { errors, flush, output } from "./output.ts"
import { notice, printable } from "./terminal.ts"

function packageVersion(): string {
  const file = readFileSync(new URL("../../package.json", import.meta.url), "utf8")
  return (JSON.parse(file) as { version: string }).version
}

/** One line for what happened, one for what to do; the chain of causes with SIFCRYPT_DEBUG=1. */
function report(error: unknown): number {
  if (error instanceof Interrupted) return error.exitCode
  if (error instanceof ContainerError) {
    notice(printable(error.message))
    const hint = hintFor(error.code)
    if (hint !== undefined) notice(`hint: ${hint}`)
    if (process.env["SIFCRYPT_DEBUG"] === "1") errors().write(`${inspect(error)}\n`)
    return exitCodeFor(error.code)
  }
  const system = error as Partial<NodeJS.ErrnoException> | null
  if (typeof system?.syscall === "string" && typeof system.code === "string") {
    notice(printable(system.message ?? system.code))
    if (process.env["SIFCRYPT_DEBUG"] === "1") errors().write(`${inspect(error)}\n`)
    return exitCodes.inputOutput
  }
  errors().write(`${inspect(error)}\n`)
  notice("this is a defect of sifcrypt: please report the lines above")
  return 1
}

/** Commands, and who adds them. */
const commands: readonly (readonly [names: readonly string[], add: (program: Command) => void])[] = [
  [["build"], addBuildCommand],
  [["encrypt", "decrypt", "reencrypt"], addConvertCommands],
  [["recipient"], addRecipientCommands],
  [["overlay"], addOverlayCommands],
  [["sif"], addSifCommands],
  [["sign"], addSignCommand],
  [["verify"], addVerifyCommand],
  [["ls", "cat", "extract", "info"], addContentCommands],
  [["inspect", "run-help"], addInspectCommand],
  [["mount", "unmount", "mounts"], addMountCommands],
  ...actions.map(
    (name) =>
      [
        [name],
        (program: Command) => {
          addRunCommands(program, [name])
        },
      ] as const,
  ),
  [["instance"], addInstanceCommands],
  [["cert"], addCertCommands],
  [["capability", "config", "plugin", "oci", "checkpoint"], addAbsentCommands],
  [["key"], addKeyCommands],
  [["ecl"], addEclCommands],
  [["cache"], addCacheCommands],
]

const commandIs = (asked: string | undefined): boolean =>
  asked !== undefined && commands.some(([names]) => names.includes(asked))

/** What has been asked for, alone: making hundreds of options takes as long as opening an image. */
function addCommands(program: Command, asked: string | undefined): void {
  const one = commands.filter(([names]) => asked !== undefined && names.includes(asked))
  for (const [, add] of one.length > 0 ? one : commands) add(program)
}

async function main(): Promise<number> {
  const failure = failureToReport(process.argv)
  if (failure !== undefined) return report(failure)
  const program = new Command("sifcrypt")
    .description("Encrypted containers for Linux: the same LUKS2 image for root and for an ordinary user.")
    // A command does not need it, and it is a file.
    .version(commandIs(process.argv[2]) ? "" : packageVersion(), "-V, --version")
    .enablePositionalOptions()
    .showHelpAfterError("(sifcrypt COMMAND --help tells more)")
    .exitOverride()
    .configureOutput({
      writeOut: (text) => output().write(text),
      writeErr: (text) => errors().write(text),
    })
  addCommands(program, process.argv[2])
  undoOnSignals()
  try {
    await program.parseAsync(process.argv)
    return typeof process.exitCode === "number" ? process.exitCode : exitCodes.done
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.done : exitCodes.usage
    return report(error)
  }
}

void main().then(async (code) => {
  await flush()
  dieAsAsked()
  // Nothing is left to wait for.
  process.exit(code)
})
