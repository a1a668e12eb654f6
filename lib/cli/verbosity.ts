// How much is said, as the peers have it: options before the command, and variables that stand for them.
import { openSync, closeSync } from "node:fs"
import { flagNames, type AnyOptions } from "./command.ts"
import { flag, text, truth } from "./values.ts"
import { variable } from "./variables.ts"

/** The peers' numbers. */
const levels = { silent: -3, quiet: -1, normal: 1, verbose: 4, debug: 5 } as const
/** What at least has to be said: errors always are. */
const warnings = -2

let level: number = levels.normal

/** Options that stand before the command. */
export const globalRows: AnyOptions = {
  debug: ["-d, --debug", "print stack and causes of an error", flag],
  verbose: ["-v, --verbose", "accepted: there is no more to tell", flag],
  quiet: ["-q, --quiet", "print warnings and errors only", flag],
  silent: ["-s, --silent", "print errors only", flag],
  nocolor: ["--nocolor", "accepted: nothing is coloured", flag],
  config: ["-c, --config <file>", "accepted: there is no configuration here, and it is not used", text],
  buildConfig: ["--build-config", "accepted: there is no configuration here", flag, { hidden: true }],
}

/** Which of them takes a value, which is not the command. */
export const takesValue: ReadonlySet<string> = new Set(
  Object.values(globalRows).flatMap((row) => (row[0].includes("<") ? flagNames(row) : [])),
)

/** The strongest of what was asked for: the peers' order. */
const order = ["debug", "verbose", "quiet", "silent"] as const

/** Takes what options and variables say; an option is stronger than any variable. */
export function setVerbosity(flags: Readonly<Record<string, unknown>>): void {
  const asked = (name: string): boolean => flags[name] === true
  const said = (name: string): boolean => {
    const value = variable(name.toUpperCase())
    // A word that is no truth value is somebody else's.
    return flags[name] === undefined && value !== undefined && truth(value) === true
  }
  const number = /^-?\d$/.exec(variable("MESSAGELEVEL") ?? "")?.[0]
  const chosen = order.find(asked) ?? order.find(said)
  level = chosen !== undefined ? levels[chosen] : number === undefined ? levels.normal : Number(number)
}

/** For another process that speaks in this one's place. */
export function verbosityVariable(): Readonly<Record<string, string>> {
  return { SIFCRYPT_MESSAGELEVEL: String(level) }
}

/** Is it said what went well? */
export function tellsNews(): boolean {
  return level >= levels.normal
}

export function tellsWarnings(): boolean {
  return level >= warnings
}

export function tellsCauses(): boolean {
  return level >= levels.debug
}

/** A configuration that is named has to be there, whatever becomes of it. */
export function lookAtConfiguration(file: string): void {
  closeSync(openSync(file, "r"))
}
