#!/usr/bin/env node
// The sifcrypt command: parses arguments, runs one command, turns errors into a line, a hint and an exit status.
import { readFileSync } from "node:fs"
import { Command, CommanderError } from "commander"
import { ContainerError } from "../index.ts"
import { addBuildCommand } from "./commands/build.ts"
import { addContentCommands } from "./commands/content.ts"
import { addMountCommands } from "./commands/mount.ts"
import { addRunCommands } from "./commands/run.ts"
import { addSifCommands } from "./commands/sif.ts"
import { exitCodeFor, exitCodes } from "./exit-codes.ts"
import { hintFor } from "./hints.ts"
import { Interrupted, undoOnSignals } from "./interrupt.ts"
import { flush } from "./output.ts"
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
    if (process.env["SIFCRYPT_DEBUG"] === "1") console.error(error)
    return exitCodeFor(error.code)
  }
  const system = error as Partial<NodeJS.ErrnoException> | null
  if (typeof system?.syscall === "string" && typeof system.code === "string") {
    notice(printable(system.message ?? system.code))
    if (process.env["SIFCRYPT_DEBUG"] === "1") console.error(error)
    return exitCodes.inputOutput
  }
  console.error(error)
  notice("this is a defect of sifcrypt: please report the lines above")
  return 1
}

async function main(): Promise<number> {
  const program = new Command("sifcrypt")
    .description("Encrypted containers for Linux: the same LUKS2 image for root and for an ordinary user.")
    .version(packageVersion(), "-V, --version")
    .enablePositionalOptions()
    .showHelpAfterError("(sifcrypt COMMAND --help tells more)")
    .exitOverride()
  addBuildCommand(program)
  addSifCommands(program)
  addContentCommands(program)
  addMountCommands(program)
  addRunCommands(program)
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
  await Promise.all([flush(process.stdout), flush(process.stderr)])
  // Nothing is left to wait for.
  process.exit(code)
})
