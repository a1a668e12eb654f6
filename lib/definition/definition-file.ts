// Definition files: the text from which Singularity and Apptainer build. Pure: no file, no network, no process.
//
//   file      := stage+                 a stage starts at a line "Bootstrap:"
//   stage     := (KEY ":" VALUE)* section*
//   section   := "%" NAME [arguments] NEWLINE body
//   template  := "{{" NAME "}}"         replaced before anything else
import { BuildError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** A definition file is read into memory; its templates may make it longer. */
export const MAX_DEFINITION_SIZE: Bytes = 4 << 20
export const MAX_EXPANDED_SIZE: Bytes = 16 << 20
export const MAX_STAGES = 128
const MAX_APPS = 1024

/** The body of a section that is run or kept as a script. */
export interface Script {
  readonly text: string
  /** What stands behind the section's name, without comments. */
  readonly args: string
  /** Of the section's first appearance. */
  readonly line: number
}

/** One line of `%files`. */
export interface FileTransfer {
  readonly source: string
  /** Empty: the same path. */
  readonly destination: string
  readonly line: number
  /** Where it comes from another machine: what the source stands for there. */
  readonly sent?: readonly SentFile[]
}

/** A file or a folder that another machine sent. */
export interface SentFile {
  /** As it is called there. */
  readonly name: string
  /** Its number among all that was sent. */
  readonly number: number
}

/** One `%files` section, or several with the same origin. */
export interface FileSet {
  /** Name of the stage that they come from; undefined: this machine. */
  readonly from: string | undefined
  readonly transfers: readonly FileTransfer[]
}

/** A SCIF application. */
export interface App {
  readonly name: string
  readonly line: number
  readonly install: string
  readonly run: string
  readonly start: string
  readonly test: string
  readonly env: string
  readonly help: string
  readonly labels: Readonly<Record<string, string>>
  readonly files: readonly FileTransfer[]
}

/** The sections whose body is a script. */
export type ScriptName =
  "pre" | "setup" | "post" | "test" | "runscript" | "startscript" | "environment" | "help"

/** One root file system under construction. */
export interface Stage {
  /** Keys in lower case, in the order of the file. */
  readonly headers: ReadonlyMap<string, string>
  /** Where each key stands. */
  readonly headerLines: ReadonlyMap<string, number>
  /** As other stages refer to it. */
  readonly name: string | undefined
  readonly line: number
  readonly scripts: Readonly<Partial<Record<ScriptName, Script>>>
  readonly files: readonly FileSet[]
  readonly labels: Readonly<Record<string, string>>
  readonly apps: readonly App[]
}

/** What a definition file says. */
export interface Definition {
  /** All of it, templates replaced. */
  readonly text: string
  readonly stages: readonly Stage[]
  /** Build arguments that were given and that no template asks for. */
  readonly unusedArguments: readonly string[]
  /** What is ignored, and probably should not be. */
  readonly notices: readonly string[]
}

/** What {@link parseDefinition} needs to know. */
export interface ParseOptions {
  /** For messages. */
  readonly path: string
  /** Build arguments, stronger than the file's own `%arguments`. */
  readonly buildArguments?: ReadonlyMap<string, string> | undefined
  /** Its templates are replaced already: what looks like one is text. */
  readonly isExpanded?: boolean
}

interface Line {
  readonly text: string
  readonly number: number
}

const scriptNames: ReadonlySet<string> = new Set([
  "pre",
  "setup",
  "post",
  "test",
  "runscript",
  "startscript",
  "environment",
  "help",
])
const appSections: ReadonlySet<string> = new Set([
  "appinstall",
  "apprun",
  "appstart",
  "apptest",
  "appenv",
  "apphelp",
  "applabels",
  "appfiles",
])
const headerKeys: ReadonlySet<string> = new Set(
  (
    "bootstrap from stage include includecmd mirrorurl updateurl osversion library registry namespace fingerprints " +
    "product user regcode productpgp registerurl modules confurl setopt target frontend filename buildargs"
  ).split(" "),
)

function isHeaderKey(key: string): boolean {
  return headerKeys.has(key) || /^otherurl\d+$/.test(key)
}

/** A message that names the place. */
function syntaxError(path: string, line: number, what: string): BuildError {
  return new BuildError("ERR_DEFINITION_SYNTAX", `${path}:${line}: ${what}`, { path })
}

function argumentError(path: string, line: number, what: string): BuildError {
  return new BuildError("ERR_DEFINITION_ARGUMENT", `${path}:${line}: ${what}`, { path })
}

/** Comments and empty lines aside. */
function isSkipped(text: string): boolean {
  return text === "" || text.startsWith("#")
}

/** The section that a line starts. */
function sectionOf({ text }: Line): { readonly name: string; readonly args: string } | undefined {
  // It never fails behind the first letter: what can be taken in many ways would be tried in all of them.
  const match = /^\s*%+(\S*)\s*(.*)$/s.exec(text)
  if (match === null) return undefined
  return { name: (match[1] ?? "").toLowerCase(), args: withoutComment(match[2] ?? "") }
}

function withoutComment(text: string): string {
  return (text.split("#", 1)[0] ?? "").trim()
}

/** `KEY=VALUE`, spaces around either left out; undefined: it is none. */
function keyValue(text: string): readonly [string, string] | undefined {
  const equals = text.indexOf("=")
  const key = text.slice(0, Math.max(0, equals)).trim()
  return key === "" ? undefined : [key, text.slice(equals + 1).trim()]
}

/**
 * Build arguments as `--build-arg` and the lines of `--build-arg-file` give them; a later one wins.
 *
 * @throws BuildError `ERR_DEFINITION_ARGUMENT`.
 */
export function parseBuildArguments(texts: readonly string[]): Map<string, string> {
  return new Map(
    texts.map((text) => {
      const pair = keyValue(text)
      if (pair === undefined)
        throw new BuildError("ERR_DEFINITION_ARGUMENT", `${JSON.stringify(text)} is not NAME=VALUE`)
      return pair
    }),
  )
}

/** The lines of a `--build-arg-file`, without comments. */
export function buildArgumentLines(text: string): string[] {
  return text
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter((line) => !isSkipped(line))
}

/** A file's lines, in stages. What stands before the first "Bootstrap:" belongs to it if those are only comments. */
function splitStages(lines: readonly Line[]): Line[][] {
  const stages: Line[][] = [[]]
  let begun = false
  for (const line of lines) {
    if (begun && /^bootstrap:/i.test(line.text)) stages.push([])
    begun ||= !isSkipped(line.text.trim())
    stages.at(-1)?.push(line)
  }
  return stages
}

/** The defaults that a stage gives itself. */
function defaultsOf(stage: readonly Line[], notices: string[], path: string): Map<string, string> {
  const defaults = new Map<string, string>()
  let inside = false
  for (const line of stage) {
    const section = sectionOf(line)
    if (section !== undefined) inside = section.name === "arguments"
    else if (inside && !isSkipped(line.text.trim())) {
      const pair = keyValue(line.text)
      if (pair === undefined)
        notices.push(`${path}:${line.number}: ${JSON.stringify(line.text.trim())} is not NAME=VALUE: ignored`)
      else defaults.set(...pair)
    }
  }
  return defaults
}

const template = /\{\{[ \t]*(\w+)[ \t]*\}\}/g
/** Behind it a line is a comment. The first line of a script is none. */
const comment = /#(?!!)/

function tooLong(path: string, size: number, most: number): BuildError {
  return BuildError.at(path, "ERR_DEFINITION_SYNTAX", `${size} bytes are more than the ${most} that are read`)
}

/** Replaces templates. A value's own ones are replaced once. */
class Templates {
  readonly #path: string
  readonly #given: ReadonlyMap<string, string>
  readonly #used = new Set<string>()
  #defaults: ReadonlyMap<string, string> = new Map()
  #size = 0

  constructor(path: string, given: ReadonlyMap<string, string>) {
    this.#path = path
    this.#given = given
  }

  get used(): ReadonlySet<string> {
    return this.#used
  }

  #count(length: number): void {
    this.#size += length
    if (this.#size > MAX_EXPANDED_SIZE) throw tooLong(this.#path, this.#size, MAX_EXPANDED_SIZE)
  }

  #lookUp(name: string): string | undefined {
    const value = this.#given.get(name) ?? this.#defaults.get(name)
    if (value !== undefined) this.#used.add(name)
    return value
  }

  #value(name: string, line: number): string {
    const value = this.#lookUp(name)
    if (value === undefined)
      throw argumentError(
        this.#path,
        line,
        `{{ ${name} }} has no value: neither a build argument nor %arguments`,
      )
    const replaced = value.replace(template, (text, inner: string) => {
      const found = this.#lookUp(inner) ?? text
      this.#count(found.length)
      return found
    })
    this.#count(replaced.length)
    return replaced
  }

  #replaceIn({ text, number }: Line): Line[] {
    this.#count(text.length)
    if (!text.includes("{{")) return [{ text, number }]
    const commented = text.search(comment)
    const replaced = text.replace(template, (found, name: string, at: number) =>
      commented >= 0 && commented < at ? found : this.#value(name, number),
    )
    return replaced.split(/\r?\n/).map((part) => ({ text: part, number }))
  }

  /** @param defaults - The stage's own. */
  replace(stage: readonly Line[], defaults: ReadonlyMap<string, string>): Line[] {
    this.#defaults = defaults
    return stage.flatMap((line) => this.#replaceIn(line))
  }
}

/** Words, where quotes group spaces. */
function words(text: string): string[] {
  return [...text.matchAll(/"([^"]*)"|'([^']*)'|((?:[^\s"']|"(?![^"]*")|'(?![^']*'))+)/g)].map(
    ([, double, single, bare]) => double ?? single ?? bare ?? "",
  )
}

/** One stage under construction. */
class StageParser {
  readonly #path: string
  readonly #notices: string[]
  readonly #headers = new Map<string, string>()
  readonly #headerLines = new Map<string, number>()
  readonly #scripts = new Map<ScriptName, { text: string; args: string; line: number }>()
  readonly #files = new Map<string | undefined, FileTransfer[]>()
  readonly #labels: Record<string, string> = Object.create(null) as Record<string, string>
  readonly #apps = new Map<string, { line: number; bodies: Map<string, string>; files: FileTransfer[] }>()

  constructor(path: string, notices: string[]) {
    this.#path = path
    this.#notices = notices
  }

  parse(lines: readonly Line[]): Stage {
    const first = lines.findIndex((line) => sectionOf(line) !== undefined)
    const end = first < 0 ? lines.length : first
    this.#parseHeader(lines.slice(0, end))
    for (let at = end; at < lines.length;) {
      let next = at + 1
      while (next < lines.length && sectionOf(lines[next] as Line) === undefined) next++
      this.#parseSection(lines[at] as Line, lines.slice(at + 1, next))
      at = next
    }
    return {
      headers: this.#headers,
      headerLines: this.#headerLines,
      name: this.#headers.get("stage"),
      line: lines[0]?.number ?? 1,
      scripts: Object.fromEntries(this.#scripts),
      files: [...this.#files].map(([from, transfers]) => ({ from, transfers })),
      labels: this.#labels,
      apps: [...this.#apps].map(([name, app]) => this.#app(name, app)),
    }
  }

  #parseHeader(lines: readonly Line[]): void {
    // Only the end of a value is looked at again when a line is added to it.
    let continued: { key: string; head: string[]; end: string; line: number } | undefined
    const keep = (): void => {
      if (continued === undefined) return
      this.#setHeader(continued.key, [...continued.head, continued.end].join(""), continued.line)
      continued = undefined
    }
    for (const { text, number } of lines) {
      const bare = text.trim()
      if (isSkipped(bare)) {
        keep()
        continue
      }
      const content = withoutComment(bare)
      if (continued === undefined) {
        const colon = content.indexOf(":")
        if (colon < 0) throw syntaxError(this.#path, number, `header key ${content} has no value`)
        continued = {
          key: content.slice(0, colon).trim().toLowerCase(),
          head: [],
          end: content.slice(colon + 1).trim(),
          line: number,
        }
      } else {
        continued.head.push(continued.end.slice(0, -1))
        continued.end = continued.end.slice(-1) + content
      }
      if (continued.end.endsWith("\\")) continued.end = continued.end.slice(0, -1).replace(/\\n$/, "\n")
      else keep()
    }
    keep()
  }

  #setHeader(key: string, value: string, line: number): void {
    if (!isHeaderKey(key)) throw syntaxError(this.#path, line, `unknown header ${key === "" ? '""' : key}`)
    if (this.#headers.has(key))
      this.#notices.push(`${this.#path}:${line}: a second ${key}: the last one counts`)
    this.#headers.set(key, value)
    this.#headerLines.set(key, line)
  }

  #parseSection(start: Line, body: readonly Line[]): void {
    const { name, args } = sectionOf(start) ?? { name: "", args: "" }
    if (scriptNames.has(name)) this.#addScript(name as ScriptName, args, start.number, body)
    else if (name === "files") this.#addFiles(args, start.number, body)
    else if (name === "labels") Object.assign(this.#labels, labelsOf(body.map(({ text }) => text)))
    else if (appSections.has(name)) this.#addApp(name, args, start.number, body)
    else if (name !== "arguments")
      throw syntaxError(this.#path, start.number, `invalid section(s) specified: ${name === "" ? "%" : name}`)
  }

  #addScript(name: ScriptName, args: string, line: number, body: readonly Line[]): void {
    const text = bodyText(body)
    const earlier = this.#scripts.get(name)
    if (earlier === undefined) this.#scripts.set(name, { text, args, line })
    else {
      earlier.text += text
      if (args !== "") earlier.args = args
    }
  }

  #addFiles(args: string, line: number, body: readonly Line[]): void {
    const match = /^from\s+(\S+)$/i.exec(args)
    if (args !== "" && match === null)
      throw syntaxError(this.#path, line, `%files ${args}: it is %files or %files from STAGE`)
    const from = match?.[1]
    const transfers = this.#files.get(from) ?? []
    for (const transfer of this.#transfers(body)) transfers.push(transfer)
    this.#files.set(from, transfers)
  }

  #transfers(body: readonly Line[]): FileTransfer[] {
    return body.flatMap(({ text, number }) => {
      if (isSkipped(text.trim())) return []
      const [source = "", destination = "", ...rest] = words(text)
      if (source === "") throw syntaxError(this.#path, number, "a source without a name")
      const commented = destination.startsWith("#")
      if (!commented && rest.length > 0 && rest[0]?.startsWith("#") !== true)
        this.#notices.push(
          `${this.#path}:${number}: more than a source and a destination: ignored: ${rest.join(" ")}`,
        )
      return [{ source, destination: commented ? "" : destination, line: number }]
    })
  }

  #addApp(section: string, args: string, line: number, body: readonly Line[]): void {
    const name = args.split(/\s+/)[0] ?? ""
    if (!/^\w[\w.+-]{0,127}$/.test(name))
      throw syntaxError(
        this.#path,
        line,
        name === "" ? `%${section} names no app` : `${name} is no name for an app`,
      )
    const app = this.#apps.get(name) ?? { line, bodies: new Map<string, string>(), files: [] }
    if (!this.#apps.has(name) && this.#apps.size === MAX_APPS)
      throw syntaxError(this.#path, line, `more than ${MAX_APPS} apps`)
    this.#apps.set(name, app)
    if (section === "appfiles") for (const transfer of this.#transfers(body)) app.files.push(transfer)
    else app.bodies.set(section, (app.bodies.get(section) ?? "") + bodyText(body))
  }

  #app(name: string, app: { line: number; bodies: Map<string, string>; files: FileTransfer[] }): App {
    const body = (section: string): string => app.bodies.get(`app${section}`) ?? ""
    return {
      name,
      line: app.line,
      install: body("install"),
      run: body("run"),
      start: body("start"),
      test: body("test"),
      env: body("env"),
      help: body("help"),
      labels: labelsOf(body("labels").split("\n")),
      files: app.files,
    }
  }
}

function bodyText(body: readonly Line[]): string {
  return body.map(({ text }) => `${text}\n`).join("")
}

/** `KEY VALUE…` per line, the value optional. Also what a `%post` writes to `$APPTAINER_LABELS`. */
export function labelsOf(lines: readonly string[]): Record<string, string> {
  const labels = Object.create(null) as Record<string, string>
  for (const line of lines) {
    const text = line.trim()
    if (isSkipped(text)) continue
    const [, key = "", value = ""] = /^(\S+)\s*([^]*)$/.exec(text) ?? []
    labels[key] = value
  }
  return labels
}

/** Every stage has to say what it is, and takes files only from stages that exist by then. */
function checkStages(stages: readonly Stage[], path: string): void {
  const names = new Set<string>()
  for (const stage of stages) {
    const { headers, name, line, files } = stage
    const wanting = stages.length > 1 ? "several stages, so each must have a header" : "there is no header"
    if (headers.size === 0) throw syntaxError(path, line, wanting)
    if ((headers.get("bootstrap") ?? "") === "") {
      const [first = ""] = headers.keys()
      const isBehind = !headers.has("bootstrap") && stages.length > 1
      const what = `${first}: stands before Bootstrap:, with which a stage begins`
      throw syntaxError(path, line, isBehind ? what : "there is no Bootstrap: header")
    }
    for (const { from, transfers } of files)
      if (from !== undefined && !names.has(from))
        throw syntaxError(path, transfers[0]?.line ?? line, `there is no stage ${from} before this one`)
    if (name !== undefined) {
      if (names.has(name)) throw syntaxError(path, line, `a second stage with the name ${name}`)
      names.add(name)
    }
  }
}

/**
 * Parses a definition file.
 *
 * @throws BuildError `ERR_DEFINITION_SYNTAX`, `ERR_DEFINITION_ARGUMENT` for a template without a value; both with the line.
 */
export function parseDefinition(text: string, options: ParseOptions): Definition {
  const { path, buildArguments = new Map<string, string>(), isExpanded = false } = options
  const most = isExpanded ? MAX_EXPANDED_SIZE : MAX_DEFINITION_SIZE
  if (text.length > most) throw tooLong(path, text.length, most)
  const lines = text
    .replace(/^\uFEFF/, "")
    .replace(/\r?\n$/, "")
    .split(/\r?\n/)
    .map((line, index): Line => ({ text: line, number: index + 1 }))
  const odd = lines.find((line) => line.text.includes("\0"))
  if (odd !== undefined) throw syntaxError(path, odd.number, "a byte that is zero")
  if (lines.every((line) => isSkipped(line.text.trim()))) throw syntaxError(path, 1, "nothing is defined")
  const raw = splitStages(lines)
  const beyond = raw[MAX_STAGES]
  if (beyond !== undefined) throw syntaxError(path, beyond[0]?.number ?? 1, `more than ${MAX_STAGES} stages`)
  const notices: string[] = []
  const templates = new Templates(path, buildArguments)
  const expanded = isExpanded
    ? raw
    : raw.map((stage) => templates.replace(stage, defaultsOf(stage, notices, path)))
  const stages = expanded.map((stage) => new StageParser(path, notices).parse(stage))
  checkStages(stages, path)
  return {
    text: expanded.flatMap((stage) => stage.map((line) => `${line.text}\n`)).join(""),
    stages,
    unusedArguments: [...buildArguments.keys()].filter((name) => !templates.used.has(name)),
    notices,
  }
}

/** Is it a definition file, as far as its first bytes tell? */
export function looksLikeDefinition(start: Buffer): boolean {
  if (start.includes(0)) return false
  return start
    .toString("latin1")
    .split(/\r?\n/)
    .some((line) => /^\s*%[A-Za-z]/.test(line) || /^\s*[A-Za-z]\w*\s*:/.test(line))
}
