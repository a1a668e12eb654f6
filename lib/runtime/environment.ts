// The payload's environment, composed as the peers compose it: --env, then the file of --env-file, then ...ENV_NAME, then the
// image's scripts, then the host.
import { RunError } from "../errors.ts"

/** What the payload's search path starts from; the host's never enters. */
export const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/** Where libraries of the host are bound, such as those for GPUs. */
const LIBRARIES = "/.singularity.d/libs"

/** Ours first: what counts before what. */
const families = ["SIFCRYPT", "APPTAINER", "SINGULARITY"] as const
/** Ours to set inside. */
const ours: ReadonlySet<string> = new Set([
  "HOME",
  "PATH",
  "LD_LIBRARY_PATH",
  "PWD",
  "OLDPWD",
  "SHLVL",
  "_",
  "IFS",
  "PS1",
])
/** Not for the caller to set either. */
const fixed: ReadonlySet<string> = new Set([
  "HOME",
  ...families.flatMap((family) => [`${family}_SHELL`, `${family}_APPNAME`]),
])
const keptWhenClean: ReadonlySet<string> = new Set([
  "TERM",
  ...["http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy"].flatMap((name) => [
    name,
    name.toUpperCase(),
  ]),
])
/** A shell cannot assign to these. */
const readOnlyInShells: ReadonlySet<string> = new Set([
  "EUID",
  "UID",
  "GID",
  "PPID",
  "OPTIND",
  "BASHOPTS",
  "SHELLOPTS",
])
/** The variables in which the peers hand over what becomes of the search path; the image's own scripts know them. */
const handOver: Readonly<Record<string, string>> = {
  PREPEND_PATH: "SING_USER_DEFINED_PREPEND_PATH",
  APPEND_PATH: "SING_USER_DEFINED_APPEND_PATH",
  PATH: "SING_USER_DEFINED_PATH",
}

/** What stands before and behind LD_LIBRARY_PATH as it is then, and is no variable itself. */
const prependLibraries = "PREPEND_LD_LIBRARY_PATH"
const appendLibraries = "APPEND_LD_LIBRARY_PATH"
const isLibraryPart = (name: string): boolean => name === prependLibraries || name === appendLibraries

const shellName = /^[A-Za-z_][A-Za-z0-9_]*$/

/** Keys, passwords, settings of ours and of the peers: none of them is the payload's business. */
export function isFamilyVariable(name: string): boolean {
  if (name === "DOCKER_PASSWORD") return true
  return families.some((family) => name.startsWith(`${family}_`) || name.startsWith(`${family}ENV_`))
}

export interface PayloadEnvironment {
  /** What the host gives, used where the image does not set a variable itself. */
  readonly host: ReadonlyMap<string, string>
  /** What the host gives by names that no script can set, such as those of exported functions. */
  readonly others: ReadonlyMap<string, string>
  /** What the caller gives, whatever the image sets. */
  readonly overrides: ReadonlyMap<string, string>
}

/** What {@link composeEnvironment} composes. */
export interface EnvironmentRequest {
  /** The caller's, usually `process.env`. */
  readonly host: Readonly<Record<string, string | undefined>>
  /** `NAME=VALUE`, as `--env` takes them. */
  readonly assignments?: readonly string[]
  /** Of the file of `--env-file`. */
  readonly fromFile?: ReadonlyMap<string, string>
  /** Only the terminal type and the proxies of the host. */
  readonly clean?: boolean
  /** Names of host variables that do not get in. */
  readonly omit?: readonly string[]
  /** Folders inside that stand behind what the image has in LD_LIBRARY_PATH. */
  readonly libraries?: readonly string[]
  readonly onNotice?: (text: string) => void
}

/** @throws RunError `ERR_RUN` for what is no assignment. */
export function composeEnvironment(request: EnvironmentRequest): PayloadEnvironment {
  const { clean = false, fromFile = new Map<string, string>(), onNotice = () => undefined } = request
  const omitted = new Set(request.omit ?? [])
  const host = new Map<string, string>()
  const others = new Map<string, string>()
  const overrides = new Map<string, string>()
  for (const [name, value] of Object.entries(request.host)) {
    if (value === undefined || name === "" || isFamilyVariable(name)) continue
    if (ours.has(name) || readOnlyInShells.has(name) || omitted.has(name)) continue
    if (!clean || keptWhenClean.has(name)) (shellName.test(name) ? host : others).set(name, value)
  }
  if (clean) host.set("LANG", "C")
  const override = (name: string, value: string, by: string): void => {
    if (!shellName.test(name))
      onNotice(`${by}: ${name === "" ? "there is no name" : `${name} is no name for a shell`}: left out`)
    else if (fixed.has(name) || readOnlyInShells.has(name))
      onNotice(`${by}: ${name} is not for the caller to set`)
    else if (name === "LD_LIBRARY_PATH" && value !== "") overrides.set(name, `${value}:${LIBRARIES}`)
    else overrides.set(handOver[name] ?? name, value)
  }
  /** By the name inside: the strongest variable that sets it. */
  const strongest = new Map<string, string>()
  for (const family of families)
    for (const [name, value] of Object.entries(request.host)) {
      if (value === undefined || !name.startsWith(`${family}ENV_`)) continue
      const inside = name.slice(family.length + 4)
      const stronger = strongest.get(inside)
      if (stronger === undefined) {
        strongest.set(inside, name)
        override(inside, value, name)
      } else if (request.host[stronger] !== value)
        onNotice(`${name} and ${stronger} have different values: the latter counts`)
    }
  for (const [name, value] of fromFile) override(name, value, "--env-file")
  for (const assignment of request.assignments ?? []) {
    const equals = assignment.indexOf("=")
    if (equals < 0) throw new RunError("ERR_RUN", `--env: ${JSON.stringify(assignment)} is not NAME=VALUE`)
    override(assignment.slice(0, equals), assignment.slice(equals + 1), "--env")
  }
  const { libraries = [] } = request
  if (libraries.length > 0)
    overrides.set(appendLibraries, [...libraries, overrides.get(appendLibraries) ?? []].flat().join(":"))
  return { host, others, overrides }
}

// Not `'\''`: the interpreter of the image's scripts keeps the backslash of that.
/** A value as a shell reads it back, whatever is in it. */
export function shellQuote(value: string): string {
  return `'${value.replaceAll("'", `'"'"'`)}'`
}

/** A value that a shell expands once. */
function shellExpanded(value: string): string {
  return `"${value.replaceAll('"', '\\"')}"`
}

/**
 * Sets every override.
 *
 * @param evaluate - Let the shell inside expand the values.
 */
export function overrideScript(
  environment: Pick<PayloadEnvironment, "overrides">,
  evaluate: boolean = false,
): string {
  const quote = evaluate ? shellExpanded : shellQuote
  const { overrides } = environment
  const [first, last] = [prependLibraries, appendLibraries].map((name) => overrides.get(name) ?? "")
  return [
    ...[...overrides]
      .filter(([name]) => !isLibraryPart(name))
      .map(([name, value]) => `export ${name}=${quote(value)}\n`),
    first ? `export LD_LIBRARY_PATH=${quote(first)}"\${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"\n` : "",
    last ? `export LD_LIBRARY_PATH="\${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}"${quote(last)}\n` : "",
  ].join("")
}

/** Sets what is not set yet; what the image empties is not there at all. */
export function hostScript(environment: Pick<PayloadEnvironment, "host" | "overrides">): string {
  return [...environment.host]
    .filter(([name]) => !environment.overrides.has(name))
    .map(([name, value]) => {
      const set = `export ${name}=${shellQuote(value)}`
      return `if [ -z "\${${name}+set}" ]; then ${set}; elif [ -z "$${name}" ]; then unset ${name}; fi\n`
    })
    .join("")
}
