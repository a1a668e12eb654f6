// The command under the names of the peers.
import { finish, sifcryptOk, startProgram, type CommandOptions, type Result } from "./cli.ts"
import { newFolder } from "./scratch.ts"

let linked: Promise<string> | undefined

async function link(): Promise<string> {
  const folder = newFolder("names")
  await sifcryptOk(["link", folder], { as: "self" })
  return folder
}

/** A folder with the names of the peers, linked to the command. */
export function namesFolder(): Promise<string> {
  return (linked ??= link())
}

/** The environment in which the peers are found there. */
export async function peerEnvironment(
  env: Readonly<Record<string, string>> = {},
): Promise<Readonly<Record<string, string>>> {
  return { PATH: `${await namesFolder()}:${process.env["PATH"] ?? ""}`, ...env }
}

/** Runs a program that looks for the peers on its search path, or one of them. */
export async function underNames(argv: readonly string[], options: CommandOptions = {}): Promise<Result> {
  const env = await peerEnvironment(options.env)
  // startProgram looks for the program along the path of this process.
  return await finish(startProgram(["env", ...argv], { ...options, env }), options)
}
