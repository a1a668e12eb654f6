// What may stand where the cursor is, from the tables of commands: for the shells' scripts in lib/cli/commands/completion, which know nothing else.
import {
  flagNames,
  helpAllRow,
  type AnyOption,
  type AnyOptions,
  type ArgumentRow,
  type CommandRow,
} from "./command.ts"
import { globalRows } from "./verbosity.ts"

/** What completes a word: these, the shell's own files or folders, or names of instances. */
type Kind = readonly string[] | "files" | "folders" | "instances" | "files-or-instances"

export interface Completions {
  readonly words: readonly (readonly [word: string, help: string])[]
  readonly places?: "files" | "folders"
  /** Those of instances that run, with this before each. */
  readonly instances?: string
}

/** What stands before an instance's name where an image could stand. */
const INSTANCE = "instance://"

const nothing: Completions = { words: [] }

/** What commander has beside the tables. */
const helpRow: AnyOption = ["-h, --help", "display help for command"]
const versionRow: AnyOption = ["-V, --version", "output the version number"]

/** What the words for values and arguments stand for, without what may follow them. */
const kinds: Readonly<Record<string, Kind>> = {
  file: "files",
  path: "files",
  src: "files",
  dir: "folders",
  folder: "folders",
  image: "files",
  input: "files",
  output: "files",
  "output-or-source": "files",
  source: "files",
  recipient: "files",
  args: "files",
  command: "files",
}

function kindOf(placeholder: string): Kind {
  const [name = ""] = /^[a-z-]+/.exec(placeholder) ?? []
  return kinds[name] ?? []
}

function optionKind([flags, , value, more]: AnyOption): Kind {
  if (more?.suggested !== undefined) return more.suggested
  if (typeof value === "object") return value
  // A shell command, not a payload's.
  const placeholder = /<([^>]+)>/.exec(flags)?.[1] ?? ""
  return placeholder === "command" ? [] : kindOf(placeholder)
}

function argumentKind([name, , value, completed]: ArgumentRow): Kind {
  if (completed !== undefined) return completed
  return typeof value === "object" ? value : kindOf(name.slice(1))
}

const takesValue = ([flags]: AnyOption): boolean => flags.includes("<")

function among(kind: Kind, begin: string, before = ""): Completions {
  if (kind === "instances") return { words: [], instances: "" }
  // Where words are offered a shell offers no files, so what could be a file's name is left to it.
  if (kind === "files-or-instances")
    return begin.length >= "instance".length && (INSTANCE.startsWith(begin) || begin.startsWith(INSTANCE))
      ? { words: [], instances: INSTANCE }
      : { words: [], places: "files" }
  if (typeof kind === "string") return { words: [], places: kind }
  return { words: kind.filter((word) => word.startsWith(begin)).map((word) => [`${before}${word}`, ""]) }
}

/** Where the words before the cursor lead. */
interface Place extends Pick<CommandRow, "commands" | "arguments" | "passesOn"> {
  readonly options: AnyOptions
}

/** A command as commander has it: groups can be asked for help by a command of their own. */
function placeOf({ commands, options = {}, ...row }: CommandRow, more: AnyOptions = {}): Place {
  if (commands === undefined)
    return { ...row, options: { ...options, ...(row.common && { helpAllRow }), helpRow } }
  const names = commands.filter(({ hidden }) => hidden !== true).map(({ name }) => name)
  const help: CommandRow = {
    name: "help",
    description: "display help for command",
    arguments: [["[command]", "", names]],
  }
  return { ...row, commands: [...commands, help], options: { ...options, ...more, helpRow } }
}

function optionsOf({ options }: Place, begin: string): Completions {
  const shown = Object.values(options).filter(([, , , more]) => more?.hidden !== true)
  return {
    words: shown.flatMap((row) =>
      flagNames(row)
        .filter((name) => name.startsWith(begin))
        .map((name) => [name, row[1]] as const),
    ),
  }
}

/**
 * What completes the last word of a command line.
 *
 * @param words - Without the command itself; the last one may be empty.
 */
export function completions(commands: readonly CommandRow[], words: readonly string[]): Completions {
  const current = words.at(-1) ?? ""
  const before = words.slice(0, -1)
  let place = placeOf({ name: "", description: "", options: globalRows, commands }, { versionRow })
  let position = 0
  let optionsEnded = false
  const optionOf = (name: string): AnyOption | undefined =>
    Object.values(place.options).find((row) => flagNames(row).includes(name))
  for (let i = 0; i < before.length; i++) {
    const word = before[i] ?? ""
    if (!optionsEnded && word === "--") optionsEnded = true
    else if (!optionsEnded && word.length > 1 && word.startsWith("-")) {
      const option = optionOf(word)
      if (option === undefined || !takesValue(option)) continue
      if (++i === before.length) return among(optionKind(option), current)
    } else if (place.commands !== undefined) {
      const below = place.commands.find(({ name, alias }) => name === word || alias === word)
      if (below === undefined) return nothing
      place = placeOf(below)
    } else {
      position++
      if (place.passesOn === true) optionsEnded = true
    }
  }
  if (!optionsEnded && current.startsWith("-")) {
    const equals = current.indexOf("=")
    if (equals < 0) return optionsOf(place, current)
    const option = optionOf(current.slice(0, equals))
    return option !== undefined && takesValue(option)
      ? among(optionKind(option), current.slice(equals + 1), current.slice(0, equals + 1))
      : nothing
  }
  if (place.commands !== undefined)
    return {
      words: place.commands
        .filter(({ name, hidden }) => hidden !== true && name.startsWith(current))
        .map(({ name, summary, description }) => [name, summary ?? description]),
    }
  const { arguments: rows = [] } = place
  const last = rows.at(-1)
  const row = rows[position] ?? (last?.[0].includes("...") === true ? last : undefined)
  if (row !== undefined) return among(argumentKind(row), current)
  return optionsEnded || current !== "" ? nothing : optionsOf(place, "")
}
