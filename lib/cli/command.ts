// Commands and their options as data: whoever shows them or asks for them (--help, docs/cli.md, completions, manual pages) reads
// these tables, and commander is told what they say.
import { Argument, Option, type Command } from "commander"
import { commandName, isPeer, programName } from "./name.ts"
import { flag, truth } from "./values.ts"

/** What becomes of the word behind a flag: a reader of values.ts, or the words that there may be. */
type Value<T> = ((text: string, earlier: never) => T) | ([T] extends [string] ? readonly T[] : never)
type AnyValue = ((text: string, earlier: never) => unknown) | readonly string[]

interface More {
  readonly required?: true
  /** What holds unless it is given, and how --help writes it if not as it is. */
  readonly default?: readonly [value: unknown, text?: string]
  /** Keys of options that cannot be given as well. */
  readonly conflicts?: readonly string[]
  /** The variable that stands for it. */
  readonly variable?: string
  /** Variables that stand for it behind each of the prefixes of `action-options.ts`, which reads them. */
  readonly variables?: readonly string[]
  /** It takes back what the option with this key asks for: the last one counts. */
  readonly negates?: string
  /** Values that there may be, or how they begin: completions offer them. */
  readonly suggested?: readonly string[]
  /** `--flag=VALUE` stands for this other option with VALUE. */
  readonly valued?: string
  /** Not in --help. */
  readonly hidden?: true
  /** What it stands under in --help and in manual pages. */
  readonly heading?: string
  /** Said below the options of --help. */
  readonly note?: string
}

/** An option: flags as commander takes them, help, the kind of value (without it: the word itself), and what is out of the ordinary. */
export type OptionRow<T> = readonly [flags: string, help: string, value?: Value<T>, more?: More]
export type AnyOption = readonly [flags: string, help: string, value?: AnyValue, more?: More]
export type AnyOptions = Readonly<Record<string, AnyOption>>

/** Options that commands share, in the order of --help: a row for each property of what they amount to, as the API names it. */
export type OptionRows<T> = { readonly [K in keyof T]-?: OptionRow<NonNullable<T[K]>> }

/**
 * An argument: as commander writes it, help, and a reader, the words that there may be, or what it is where it is left out;
 * and what completes it, where its name does not say so.
 */
export type ArgumentRow = readonly [
  name: string,
  help: string,
  value?: ((text: string) => unknown) | readonly string[] | string | undefined,
  completed?: "instances" | "files-or-instances",
]

type OptionValue<R> = R extends readonly [string, string, infer V, ...unknown[]]
  ? V extends (text: string, earlier: never) => infer T
    ? T
    : V extends readonly (infer W)[]
      ? W
      : never
  : R extends readonly [string, string]
    ? R[0] extends `${string}<${string}`
      ? string
      : true
    : R extends OptionRow<infer T>
      ? T
      : never
type Certain<O> = {
  [K in keyof O]: O[K] extends readonly [string, string, unknown, { required: true } | { default: unknown }]
    ? K
    : never
}[keyof O]
/** What commander makes of a command line with these options. */
export type FlagsOf<O> = { readonly [K in Exclude<keyof O, Certain<O>>]?: OptionValue<O[K]> } & {
  readonly [K in Certain<O>]: OptionValue<O[K]>
}
type WordOf<A> = A extends readonly [`${string}...${string}`, ...unknown[]]
  ? string[]
  : A extends readonly [string, string, (text: string) => infer T]
    ? T
    : A extends readonly [`<${string}`, string, readonly (infer W)[]]
      ? W
      : A extends
            | readonly [`<${string}`, string]
            | readonly [`<${string}`, string, undefined, string]
            | readonly [string, string, string]
        ? string
        : string | undefined
type WordsOf<A> = { -readonly [I in keyof A]: WordOf<A[I]> }

interface CommandText {
  readonly name: string
  readonly alias?: string
  /** What it stands under in the list of commands. */
  readonly heading?: string
  /** In the list of commands; default: the description. */
  readonly summary?: string
  readonly description: string
  /** Keys of the options that --help shows, where it would be too long with all: --help-all does. */
  readonly common?: readonly string[]
  readonly examples?: readonly (readonly [what: string, line: string])[]
  /** What stands behind the first argument is the payload's. */
  readonly passesOn?: true
  /** What status 255 says of one that has no payload of its own: in a word, and in full. */
  readonly notStarted?: readonly [word: string, meaning: string]
  /** Of the peers, which show help of it, and are content, where no command of it is named. */
  readonly helpsAlone?: true
  /** Options that are not known are arguments, too. */
  readonly takesAnything?: true
  readonly hidden?: true
}

/** A command, or a group of them. */
export interface CommandRow extends CommandText {
  readonly arguments?: readonly ArgumentRow[]
  readonly options?: AnyOptions
  readonly commands?: readonly CommandRow[]
  readonly run?: (flags: never, words: never, command: Command) => Promise<void>
}

/** A command whose flags and arguments have the types that its rows say. */
export function command<const O extends AnyOptions, const A extends readonly ArgumentRow[]>(
  row: CommandText & {
    readonly options?: O
    readonly arguments?: A
    readonly run: (flags: FlagsOf<O>, words: WordsOf<A>, command: Command) => Promise<void>
  },
): CommandRow {
  return row
}

/** Options that --help shows under a heading of their own. */
export function under<T>(heading: string, rows: OptionRows<T>): OptionRows<T> {
  return Object.fromEntries(
    Object.entries(rows as AnyOptions).map(([key, [flags, help, value, more]]) => [
      key,
      [flags, help, value, { ...more, heading }],
    ]),
  ) as unknown as OptionRows<T>
}

/** Of what was given, what one table is about. */
export function given<T extends object>(rows: OptionRows<T>, flags: Partial<T>): Partial<T> {
  return Object.fromEntries(
    Object.entries(flags).filter(([key, value]) => value !== undefined && Object.hasOwn(rows, key)),
  ) as Partial<T>
}

function newOption(key: string, [flags, help, value, more = {}]: AnyOption): Option {
  const option = new Option(flags, help)
  // --no-home is an option of its own, not the opposite of --home.
  option.negate = more.negates !== undefined
  option.attributeName = () => more.negates ?? key
  option.hidden = more.hidden === true
  option.mandatory = more.required === true
  if (typeof value === "object") option.choices(value)
  else if (option.required && value !== undefined)
    option.argParser(value as (text: string, earlier: unknown) => unknown)
  if (more.default !== undefined) option.default(...more.default)
  if (more.heading !== undefined) option.helpGroup(`${more.heading}:`)
  if (more.conflicts !== undefined) option.conflicts([...more.conflicts])
  if (more.variable !== undefined) option.env(more.variable)
  return option
}

function newArgument([name, help, value]: ArgumentRow): Argument {
  const argument = new Argument(name, help)
  if (typeof value === "object") return argument.choices(value)
  return typeof value === "function" ? argument.argParser(value) : argument.default(value)
}

/** A flag's opposite, for commander to find where the flag was given as false. */
function addOpposite(command: Command, option: Option): string {
  const name = `${option.long ?? ""}-is-false`
  if (!command.options.some(({ long }) => long === name)) {
    const opposite = new Option(name).hideHelp()
    opposite.attributeName = () => option.attributeName()
    opposite.preset(option.negate)
    command.addOption(opposite)
  }
  return name
}

/** A word of the form `--flag=VALUE` or `-f=VALUE` as commander takes it. */
function rewriteWord(command: Command, arg: string, valued: ReadonlyMap<string, string>): readonly string[] {
  const equals = arg.indexOf("=")
  const flag = arg.slice(0, Math.max(0, equals))
  const option = command.options.find(({ short, long }) => flag !== "" && (flag === long || flag === short))
  if (option === undefined) return [arg]
  const value = arg.slice(equals + 1)
  // `--flag VALUE` and `--flag=VALUE` commander knows.
  if (option.required || option.optional) return flag === option.short ? [flag, value] : [arg]
  const yes = truth(value)
  if (yes === true) return [flag]
  if (yes === false) return [addOpposite(command, option)]
  const other = valued.get(option.long ?? "")
  if (other !== undefined) return [`${other}=${value}`]
  // The word itself may be a secret that belongs elsewhere.
  return command.error(`error: option '${option.flags}' is true or false, and takes no other value`)
}

/**
 * Lets `--nv=true` and `-e=0` stand for flags as programs that are written in Go take them; and `--verify=FINGERPRINT` for
 * `--require-signer FINGERPRINT`: as an option with a value of its own, `--verify` would take the image's name, which comes next, for
 * that value.
 *
 * @param passesOn - From the first argument on, words are the payload's.
 */
function takeGoForms(command: Command, valued: ReadonlyMap<string, string>, passesOn: boolean): void {
  const parse = command.parseOptions.bind(command)
  command.parseOptions = (args) => {
    const rewritten: string[] = []
    for (let i = 0; i < args.length; i++) {
      const arg = args[i] ?? ""
      if (arg === "--" || (passesOn && !arg.startsWith("-"))) {
        rewritten.push(...args.slice(i))
        break
      }
      rewritten.push(...rewriteWord(command, arg, valued))
      const takesNext = command.options.some(
        ({ required, short, long }) => required && (short === arg || long === arg),
      )
      if (takesNext && i + 1 < args.length) rewritten.push(args[++i] ?? "")
    }
    return parse(rewritten)
  }
}

/** Has a command find its options by their flags: for each that comes commander looks at all, a hundred times a hundred. */
function findByFlag(command: Command): void {
  const options = new Map<string | undefined, Option>()
  const add = command.addOption.bind(command)
  command.addOption = (option) => {
    add(option)
    for (const flag of [option.short, option.long]) if (flag !== undefined) options.set(flag, option)
    return command
  }
  Object.assign(command, { _findOption: (flag: string) => options.get(flag) })
}

/** Tells commander of options. */
export function addOptions(command: Command, options: AnyOptions, passesOn: boolean = false): Command {
  const valued = new Map<string, string>()
  for (const [key, row] of Object.entries(options)) {
    command.addOption(newOption(key, row))
    const other = row[3]?.valued
    if (other !== undefined) valued.set(row[0], other)
  }
  takeGoForms(command, valued, passesOn)
  return command
}

/** What is false is not asked for, unless that takes back what something else asks for. */
function withoutFalse(flags: Readonly<Record<string, unknown>>, options: AnyOptions): object {
  const rows = Object.entries(options)
  const told = new Set(
    rows.flatMap(([key, row]) => [row[3]?.negates, row[3]?.variables === undefined ? undefined : key]),
  )
  return Object.fromEntries(Object.entries(flags).filter(([key, value]) => value !== false || told.has(key)))
}

/** The words that lead to a command. */
export function wordsOf(command: Command): readonly string[] {
  return command.parent === null ? [] : [...wordsOf(command.parent), command.name()]
}

/** Where to read more. */
export function helpHint(command: readonly string[]): string {
  return `${programName}: hint: \`${[commandName, ...command, "--help"].join(" ")}\` tells more`
}

/** `-B` and `--bind` of `-B, --bind <src[:dst[:opts]]>`. */
export function flagNames([flags]: AnyOption): readonly string[] {
  return flags.split(" ").flatMap((word) => (word.startsWith("-") ? word.replace(",", "") : []))
}

/** Of a command that has too many options for a page. */
export const helpAllRow: AnyOption = ["--help-all", "the same with every other option", flag]

let tellsAll = false

/** Does --help show this option? */
export function isShown({ common }: CommandRow, key: string, [, , , more]: AnyOption): boolean {
  return more?.hidden !== true && (tellsAll || common === undefined || common.includes(key))
}

function addHelpAll(command: Command): void {
  command.addOption(newOption("helpAll", helpAllRow))
  command.on("option:help-all", () => {
    tellsAll = true
    command.help()
  })
}

/** Tells commander of a command and of those below it. */
export function addCommand(program: Command, row: CommandRow): void {
  const { name, alias, summary, description, options = {}, commands = [], run } = row
  const made = program.command(name, { hidden: row.hidden === true }).description(description)
  if (alias !== undefined) made.alias(alias)
  if (summary !== undefined) made.summary(summary)
  if (row.heading !== undefined) made.helpGroup(`${row.heading}:`)
  for (const argument of row.arguments ?? []) made.addArgument(newArgument(argument))
  findByFlag(made)
  addOptions(made, options, row.passesOn === true)
  if (row.common !== undefined) addHelpAll(made)
  made.allowUnknownOption(row.takesAnything === true).passThroughOptions(row.passesOn === true)
  made.showHelpAfterError(helpHint(wordsOf(made)))
  // What stands behind the name of one of these is that one's.
  if (commands.length > 0) made.enablePositionalOptions()
  for (const below of commands) addCommand(made, below)
  if (row.helpsAlone === true && isPeer && run === undefined) made.helpCommand(true).action(() => made.help())
  if (run !== undefined)
    made.action(async (...parsed: unknown[]) => {
      if (row.helpsAlone === true && isPeer && made.args.every((word) => word === "help")) made.help()
      await run(withoutFalse(made.opts(), options) as never, parsed.slice(0, -2) as never, made)
    })
}
