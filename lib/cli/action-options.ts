// The options of exec, run, shell, test and of instances on the command line: the words of the API's table, the variables that
// stand for them, and how both are read.
import * as api from "../index.ts"
import type { AnyOption } from "./command.ts"
import { parseCsv } from "./csv.ts"
import { engines, parseEngine } from "./engine.ts"
import { parseMountSpec } from "./mount-spec.ts"
import { notice } from "./terminal.ts"
import { prefixes } from "./variables.ts"
import { each, flag, parseDecimal, parseInteger, parseSize, text, truth, words as listed } from "./values.ts"

/** Every use of a flag, in order, or the text of a variable. */
type Texts = readonly string[]

const last = (texts: Texts): string => texts.at(-1) ?? ""

function truthOf(texts: Texts): boolean {
  const word = last(texts)
  const value = truth(word)
  if (value === undefined) throw new RangeError(`${word} is neither true nor false`)
  return value
}

function number(what: string, parse: (text: string) => number): (texts: Texts) => number {
  return (texts) => {
    const value = parse(last(texts))
    if (Number.isNaN(value)) throw new RangeError(`${last(texts)} is ${what}`)
    return value
  }
}

const integer = number("not an integer", parseInteger)
const integers = (texts: Texts): number[] => texts.flatMap(listed).map((word) => integer([word]))

const readers: { readonly [K in keyof api.ExecOptionKinds]: (texts: Texts) => api.ExecOptionKinds[K] } = {
  flag: truthOf,
  text: last,
  path: last,
  words: (texts) => texts.flatMap(listed).filter((word) => word !== ""),
  // Quotes as in CSV keep a comma in a value.
  assignments: (texts) =>
    texts.flatMap((one) =>
      one.startsWith('"') || one.includes(',"') ? parseCsv(one) : one.split(/,(?=[A-Za-z_][A-Za-z0-9_]*=)/),
    ),
  binds: (texts) => texts,
  mounts: (texts) =>
    texts
      .flatMap((one) => one.split("\n"))
      .filter((line) => line.trim() !== "")
      .map(parseMountSpec),
  // -1 is without a limit, and what the API takes begins there.
  integer: number("not an integer from -1 on", (word) => {
    const value = parseInteger(word)
    return value >= -1 ? value : Number.NaN
  }),
  decimal: number("not a number", parseDecimal),
  size: number("no size", (word) => (word === "-1" ? -1 : parseSize(word))),
  descriptors: (texts) => (last(texts).includes(",") ? integers([last(texts)]) : integer([last(texts)])),
  descriptorList: (texts) => integers(texts),
  engine: (texts) => parseEngine(last(texts)),
  networks: (texts) => texts.flatMap(listed).filter((word) => word !== ""),
}
/** What adds up if it is given again; of all else the last one counts. */
const lists: ReadonlySet<keyof api.ExecOptionKinds> = new Set([
  "words",
  "assignments",
  "binds",
  "mounts",
  "descriptorList",
  "networks",
])

/** An empty word is none, as with the peers: scripts write `--workdir "$SCRATCH"` where nothing is set. It hides a variable. */
const emptyIsNone: ReadonlySet<keyof api.ExecOptionKinds> = new Set([
  "text",
  "path",
  "decimal",
  "size",
  "networks",
])
/** What the peers refuse as well. */
const neverEmpty: ReadonlySet<keyof typeof api.execOptionTable> = new Set(["home"])

/** `--home <dir>` is `home`. */
function nameOf(flags: string): string {
  return flags.slice(flags.indexOf("--") + 2).split(" ", 1)[0] ?? flags
}

/** What options stand under, from these on. */
const headings: Partial<Record<keyof typeof api.execOptionTable, string>> = {
  engine: "Options",
  binds: "What is seen of the host",
  env: "What is run, and its environment",
  overlay: "Root file system",
  fakeroot: "Identity and isolation",
  applyCgroups: "Limits",
}

interface ActionOption extends Pick<NonNullable<api.ExecOptionRow[3]>, "adds" | "only" | "joins"> {
  readonly key: keyof typeof api.execOptionTable
  readonly name: string
  readonly row: api.ExecOptionRow
  readonly heading: string
  readonly variables: readonly string[]
}

/** A row for each flag: of those with the same key, both add up or the first one counts. */
let heading = ""
const table = (Object.entries(api.execOptionTable) as [ActionOption["key"], api.ExecOptionRow][]).flatMap(
  ([key, first]) => {
    const { adds, only, joins, also } = first[3] ?? {}
    const under = (heading = headings[key] ?? heading)
    return (also === undefined ? [first] : [first, also]).map((row): ActionOption => {
      const name = nameOf(row[1])
      const variables = row[3]?.variables ?? [name.toUpperCase().replaceAll("-", "_")]
      return { key, name, row, heading: under, variables, adds, only, joins }
    })
  },
)

/** The options that `exec` has, or another command that starts a payload. */
function actionTable(action: string): readonly ActionOption[] {
  return table.filter(({ only }) => only?.some((one) => one === action) !== false)
}

/** What the peers have and we do not, and why. */
const absent: readonly (readonly [flags: string, why: string])[] = [
  [
    "--nvccli",
    "nvidia-container-cli needs privileges that are not asked for here: --nv binds the same files",
  ],
  [
    "--fusemount <spec>",
    "file systems of the payload's are not started here: mount them on the host and --bind them",
  ],
  ["--boot", "no init system is started in a container here"],
  ["--dmtcp-launch <name>", "checkpoints are not made here"],
  ["--dmtcp-restart <name>", "checkpoints are not made here"],
  ["--device <name>", "CDI is not known here: --bind the device's node"],
  ["--cdi-dirs <list>", "CDI is not known here: --bind the device's node"],
]

/** What is not done and need not be: with it the payload would be the same. */
const noticed: readonly (readonly [flags: string, why: string])[] = [
  ["--unsquash", "the image is never unpacked to disk, it is read where it lies"],
  ["--runscript-timeout <duration>", "scripts of the image may take as long as they like"],
]

/** What the peers need and nothing here does: files to clean up, mount points without an overlay. */
const unneeded = ["--underlay", "--no-cleanup"]

/** Where commander leaves the words of a flag: two flags may stand for one option, and others have names of their own choosing. */
const property = (name: string): `action ${string}` => `action ${name}`
export type ActionKey = ReturnType<typeof property>
type ActionRows = Readonly<Record<ActionKey, AnyOption>>

/** What most people need of it. */
export const commonActions: readonly ActionKey[] = [
  ...(["engine", "bind", "contain", "cwd", "nv", "env", "overlay"] as const),
  ...(["writable-tmpfs", "fakeroot", "shell"] as const),
].map(property)

/** All of that for commander; {@link actionOptions} reads what comes of it. */
export function actionRows(action: string): ActionRows {
  const hidden = (flags: string, help: string): [string, AnyOption] => [
    property(nameOf(flags)),
    [flags, help, text, { hidden: true }],
  ]
  return Object.fromEntries([
    ...actionTable(action).map(
      ({ name, row: [kind, flags, help], heading, variables }): [string, AnyOption] => {
        const value = kind === "flag" ? flag : lists.has(kind) ? each(text) : (word: string) => [word]
        const suggested = kind === "engine" ? engines : undefined
        return [property(name), [flags, help, value, { variables, heading, ...(suggested && { suggested }) }]]
      },
    ),
    ...absent.map(([flags]) => hidden(flags, "not here")),
    ...noticed.map(([flags]) => hidden(flags, "accepted with a notice")),
    ...unneeded.map((flags) => hidden(flags, "accepted: it changes nothing")),
  ])
}

/** What joining an instance takes: names of flags, and of options. */
export function joining(): { readonly flags: ReadonlySet<string>; readonly keys: ReadonlySet<string> } {
  const rows = table.filter(({ joins }) => joins === true)
  return { flags: new Set(rows.map(({ name }) => name)), keys: new Set(rows.map(({ key }) => key)) }
}

type Variables = Readonly<Record<string, string | undefined>>

/** What variables say of an option: all values if they add up, else the first. */
function fromVariables(option: ActionOption, variables: Variables): string[] {
  const found: string[] = []
  const seen = new Map<string, { readonly name: string; readonly value: string }>()
  for (const prefix of prefixes)
    for (const key of option.variables) {
      const name = `${prefix}${key}`
      const value = variables[name]
      if (value === undefined || value.trim() === "") continue
      const stronger = seen.get(key)
      if (stronger === undefined) {
        seen.set(key, { name, value })
        found.push(option.adds === true ? value : value.trim())
      } else if (stronger.value !== value)
        notice(`${name} and ${stronger.name} have different values: the latter counts`)
    }
  return option.adds === true ? found : found.slice(0, 1)
}

/**
 * What flags and variables ask for.
 *
 * @param flags - As commander has parsed them.
 * @throws RunError `ERR_RUN_OPTION` for what makes no sense.
 */
export function actionOptions(
  action: string,
  flags: Readonly<Record<string, unknown>>,
  variables: Variables,
): api.ExecOptions {
  const isGiven = ([flag]: readonly [string, string]): boolean =>
    ![undefined, false, ""].includes(flags[property(nameOf(flag))] as false | "" | undefined)
  const refused = absent.find(isGiven)
  if (refused !== undefined)
    throw new api.RunError("ERR_RUN_OPTION", `--${nameOf(refused[0])}: ${refused[1]}`)
  for (const one of noticed.filter(isGiven)) notice(`--${nameOf(one[0])} changes nothing: ${one[1]}`)
  const options = new Map<keyof api.ExecOptions, unknown>()
  for (const option of actionTable(action)) {
    const { name } = option
    const given = flags[property(name)]
    const words =
      given === undefined ? [] : typeof given === "boolean" ? [String(given)] : (given as string[])
    if (words.at(-1) === "" && emptyIsNone.has(option.row[0]) && !neverEmpty.has(option.key)) continue
    if (words.length === 0 || option.adds === true) words.push(...fromVariables(option, variables))
    const earlier = options.get(option.key)
    if (words.length === 0 || (earlier !== undefined && option.adds !== true)) continue
    try {
      const value = readers[option.row[0]](words)
      options.set(option.key, option.adds === true ? [earlier ?? [], value].flat() : value)
    } catch (error) {
      if (error instanceof api.RunError || !(error instanceof Error)) throw error
      throw new api.RunError("ERR_RUN_OPTION", `--${name}: ${error.message}`, { cause: error })
    }
  }
  return Object.fromEntries(options)
}
