// What --help shows beside what commander makes of the tables: fewer options where there are too many, examples, exit statuses.
import { Help, type Command } from "commander"
import { isShown, wordsOf, type CommandRow } from "./command.ts"
import { exitCodes, exitMeaningsOf } from "./exit-codes.ts"
import { commandName } from "./name.ts"

type Helper = Pick<Help, "formatHelp" | "visibleOptions">

/** The command, or group, that these words name. */
function rowOf(rows: readonly CommandRow[], [word, ...rest]: readonly string[]): CommandRow | undefined {
  const row = rows.find(({ name }) => name === word)
  return rest.length === 0 ? row : rowOf(row?.commands ?? [], rest)
}

/** As it is typed, by the name that this command was called by. */
export function exampleLine(line: string): string {
  return line.replace(/^sifcrypt\b/, commandName)
}

/** What stands below the options. */
function tail(row: CommandRow): string {
  const { examples = [], options = {}, passesOn } = row
  const rows = Object.entries(options)
  const isWhole = rows.every(([key, one]) => one[3]?.hidden === true || isShown(row, key, one))
  const notes = isWhole ? rows.flatMap(([, [, , , more]]) => more?.note?.trim() ?? []) : []
  // Not what every program has: a defect's, and a signal's.
  const statuses = exitMeaningsOf(row)
    .filter(([status]) => (status !== 1 && status < 128) || status === exitCodes.notStarted)
    .map(([status, word]) => `${status} ${word}`)
  if (passesOn === true) statuses.push("or the payload's own")
  return [
    ...notes,
    ...(examples.length === 0
      ? []
      : [`Examples:\n${examples.map(([what, line]) => `  # ${what}\n  ${exampleLine(line)}`).join("\n")}`]),
    `Exit status: ${statuses.join(", ")}`.replace(/(.{1,78})(?:, |$)/g, "$1,\n").replace(/,\n$/, ""),
  ].join("\n\n")
}

/** How commander shows these commands. */
export function helpOf(rows: readonly CommandRow[]): Helper {
  const rowFor = (command: Command): CommandRow | undefined => rowOf(rows, wordsOf(command))
  return {
    visibleOptions: (command) => {
      const row = rowFor(command)
      const shown = Help.prototype.visibleOptions.call(new Help(), command)
      if (row === undefined) return shown
      const left = new Set(
        Object.entries(row.options ?? {}).flatMap(([key, one]) => (isShown(row, key, one) ? [] : [one[0]])),
      )
      return shown.filter(({ flags }) => !left.has(flags))
    },
    formatHelp: (command, helper) => {
      const row = rowFor(command)
      const text = Help.prototype.formatHelp.call(helper, command, helper)
      return row === undefined || row.commands !== undefined ? text : `${text.trimEnd()}\n\n${tail(row)}\n`
    },
  }
}
