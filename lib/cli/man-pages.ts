// The manual pages, from the tables of commands: a page for sifcrypt itself and one for each command, in the macros of man(7).
// scripts/bundle-command.mjs has them written. npm links those that package.json lists, and knows no patterns there:
// `node --import tsx lib/cli/man-pages.ts --list` brings that list up to date.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { flagNames, helpAllRow, type AnyOption, type ArgumentRow, type CommandRow } from "./command.ts"
import { commands } from "./commands.ts"
import { exitMeaningsOf } from "./exit-codes.ts"
import { versionNumber } from "./name.ts"
import { prefixes } from "./variables.ts"
import { globalRows } from "./verbosity.ts"

/** Text that roff shows as it is. */
function plain(text: string): string {
  return text
    .replaceAll("\\", "\\[rs]")
    .replaceAll("-", "\\-")
    .replaceAll("`", "\\[ga]")
    .replaceAll("^", "\\[ha]")
    .replaceAll("~", "\\[ti]")
    .replaceAll("'", "\\[aq]")
    .replace(/^\./gm, "\\&.")
}

/** What stands in backquotes is typed. */
function prose(text: string): string {
  return text
    .split("`")
    .map((part, i) => (i % 2 === 1 ? bold(part) : plain(part)))
    .join("")
}

const bold = (text: string): string => `\\fB${plain(text)}\\fR`
const italic = (text: string): string => `\\fI${plain(text)}\\fR`

/** `<file>` and `[path...]` as manual pages have them. */
function placeholder(name: string): string {
  const word = italic(/[a-z][a-z-]*/.exec(name)?.[0] ?? name)
  const more = name.includes("...") ? "\\|.\\|.\\|." : ""
  return name.startsWith("[") ? `[${word}${more}]` : `${word}${more}`
}

function term(option: AnyOption): string {
  const value = /<(.*)>$/.exec(option[0])?.[1]
  return `${flagNames(option).map(bold).join(", ")}${value === undefined ? "" : ` ${italic(value)}`}`
}

/** Everything that is said of an option. */
function meaning([, help, value, more = {}]: AnyOption): string {
  const facts = [
    ...(typeof value === "object" ? [`one of ${value.join(", ")}`] : []),
    ...(more.default === undefined ? [] : [`default ${String(more.default[1] ?? more.default[0])}`]),
  ]
  return prose(`${help}${facts.length === 0 ? "" : ` (${facts.join("; ")})`}`)
}

const paragraph = (tag: string, text: string): string => `.TP\n${tag}\n${text}`

function optionLists(rows: readonly AnyOption[]): string[] {
  const shown = rows.filter(([, , , more]) => more?.hidden !== true)
  const headings = [...new Set(shown.map(([, , , more]) => more?.heading ?? "Options"))]
  return headings.flatMap((heading) => [
    ...(headings.length > 1 && heading !== "Options" ? [`.SS ${plain(heading)}`] : []),
    ...shown
      .filter(([, , , more]) => (more?.heading ?? "Options") === heading)
      .map((row) => paragraph(term(row), meaning(row))),
  ])
}

/** Variables that stand for options, and what the options say of others. */
function environment(rows: readonly AnyOption[]): string[] {
  const shown = rows.filter(([, , , more]) => more?.hidden !== true)
  const stand = shown.flatMap((row) => {
    const { variable, variables = [] } = row[3] ?? {}
    const names = [
      ...(variable === undefined ? [] : [variable]),
      ...variables.map((one) => prefixes[0] + one),
    ]
    const [flag = ""] = flagNames(row).toReversed()
    return names.map((name) => paragraph(bold(name), `stands for ${bold(flag)}`))
  })
  const others = prefixes.slice(1).map(bold).join(" or ")
  const notes = shown.flatMap(([, , , more]) => (more?.note === undefined ? [] : [prose(more.note.trim())]))
  return [
    ...notes.map((note) => `.PP\n${note}`),
    ...stand,
    ...(shown.some(([, , , more]) => more?.variables !== undefined)
      ? [`.PP\nWhat begins with ${bold(prefixes[0])} counts as well with ${others} in its place.`]
      : []),
  ]
}

function exitStatus(row: CommandRow): string[] {
  return [
    ...exitMeaningsOf(row).map(([status, , text]) => paragraph(String(status), plain(text))),
    ...(row.passesOn === true
      ? [".PP\nOtherwise the status of the payload, or 128 and the number of the signal that ended it."]
      : []),
  ]
}

const section = (title: string, parts: readonly string[]): string[] =>
  parts.length === 0 ? [] : [`.SH ${title}`, ...parts]

function synopsis(words: readonly string[], row: CommandRow): string {
  const options = Object.keys(row.options ?? {}).length === 0 ? [] : [`[${italic("options")}]`]
  const rest = row.commands === undefined ? (row.arguments ?? []).map(([name]) => placeholder(name)) : []
  const below = row.commands === undefined ? [] : [italic("command"), "\\|.\\|.\\|."]
  return [bold(words.join(" ")), ...options, ...below, ...rest].join("\n")
}

function argumentList(rows: readonly ArgumentRow[]): string[] {
  return rows.map(([name, help, value]) => {
    const choices = typeof value === "object" ? ` (one of ${value.join(", ")})` : ""
    return paragraph(placeholder(name), prose(help + choices))
  })
}

const isListed = ({ hidden }: CommandRow): boolean => hidden !== true

/** @param words - The command, from `sifcrypt` on. */
function page(words: readonly string[], row: CommandRow): string {
  const name = words.join("-")
  const rows: AnyOption[] = [
    ...Object.values(row.options ?? {}),
    ...(row.common === undefined ? [] : [helpAllRow]),
    ["-h, --help", row.common === undefined ? "display help" : "display help with the usual options"],
  ]
  const below = (row.commands ?? []).filter(isListed)
  const above = words.length > 1 ? [words.slice(0, -1)] : []
  const related = [...above, ...below.map((one) => [...words, one.name])]
  return [
    `.TH ${plain(name.toUpperCase())} 1 "" "sifcrypt ${versionNumber()}" "sifcrypt"`,
    ".SH NAME",
    `${plain(name)} \\- ${plain(row.summary ?? row.description.replace(/\.$/, ""))}`,
    ".SH SYNOPSIS",
    synopsis(words, row),
    ".SH DESCRIPTION",
    // Lines with more than one blank in them are laid out.
    ...row.description
      .split("\n\n")
      .map((part) => (/ {3}/.test(part) ? `.PP\n.EX\n${plain(part)}\n.EE` : `.PP\n${prose(part)}`)),
    ...section("ARGUMENTS", argumentList(row.arguments ?? [])),
    ...section(
      "COMMANDS",
      below.map((one) => paragraph(bold(one.name), prose(one.summary ?? one.description))),
    ),
    ...section("OPTIONS", optionLists(rows)),
    ...section(
      "EXAMPLES",
      (row.examples ?? []).map(
        ([what, line]) => `.PP\n${plain(what)}:\n.PP\n.RS 4\n.EX\n${plain(line)}\n.EE\n.RE`,
      ),
    ),
    ...section("ENVIRONMENT", environment(rows)),
    ...section("EXIT STATUS", exitStatus(row)),
    ...section("SEE ALSO", [related.map((one) => `${bold(one.join("-"))}(1)`).join(",\n")].filter(Boolean)),
    "",
  ].join("\n")
}

/** Each page by the name of its file. */
export function manualPages(): ReadonlyMap<string, string> {
  const pages = new Map<string, string>()
  const add = (words: readonly string[], row: CommandRow): void => {
    pages.set(`${words.join("-")}.1`, page(words, row))
    for (const below of row.commands ?? []) if (isListed(below)) add([...words, below.name], below)
  }
  add(["sifcrypt"], {
    name: "sifcrypt",
    summary: "encrypted containers for Linux",
    description:
      "Builds, opens, mounts, runs, signs and verifies encrypted SIF images, as root and as an ordinary user. An image that root runs " +
      "through the kernel is the one that an ordinary user runs without any privilege. These options stand before the command.",
    options: { ...globalRows, version: ["-V, --version", "display the version"] },
    commands,
  })
  return pages
}

/** Where the package has them. */
export const manualFolder = "dist/man"

if (process.argv[1] === import.meta.filename) {
  const pages = manualPages()
  mkdirSync(manualFolder, { recursive: true })
  for (const [file, text] of pages) writeFileSync(path.join(manualFolder, file), text)
  if (process.argv[2] === "--list") {
    const man = [...pages.keys()].map((file) => `${manualFolder}/${file}`)
    const metadata = JSON.parse(readFileSync("package.json", "utf8")) as object
    writeFileSync("package.json", `${JSON.stringify({ ...metadata, man }, null, 2)}\n`)
  }
}
