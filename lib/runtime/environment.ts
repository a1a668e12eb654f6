// The payload's environment, composed as the peers compose it: --env wins over the image's scripts, and these over the host.
import { RunError } from "../errors.ts"

/** What the payload's search path starts from; the host's never enters. */
export const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

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
  "PPID",
  "OPTIND",
  "BASHOPTS",
  "SHELLOPTS",
])

const shellName = /^[A-Za-z_][A-Za-z0-9_]*$/

/** Keys, settings of ours and of the peers: none of them is the payload's business. */
function isFamilyVariable(name: string): boolean {
  return families.some((family) => name.startsWith(`${family}_`) || name.startsWith(`${family}ENV_`))
}

export interface PayloadEnvironment {
  /** What the host gives, used where the image does not set a variable itself. */
  readonly host: ReadonlyMap<string, string>
  /** What the caller gives, whatever the image sets. */
  readonly overrides: ReadonlyMap<string, string>
}

/**
 * @param environment - The caller's, usually `process.env`.
 * @param assignments - `NAME=VALUE`, as `--env` takes them.
 * @param clean - Only the terminal type and the proxies of the host.
 * @throws RunError `ERR_RUN` for an assignment without a name.
 */
export function composeEnvironment(
  environment: Readonly<Record<string, string | undefined>>,
  assignments: readonly string[],
  clean: boolean,
): PayloadEnvironment {
  const host = new Map<string, string>()
  const overrides = new Map<string, string>()
  for (const [name, value] of Object.entries(environment)) {
    if (value === undefined || !shellName.test(name) || isFamilyVariable(name)) continue
    if (ours.has(name) || readOnlyInShells.has(name)) continue
    if (!clean || keptWhenClean.has(name)) host.set(name, value)
  }
  if (clean) host.set("LANG", "C")
  for (const family of [...families].reverse())
    for (const [name, value] of Object.entries(environment)) {
      const inside = name.startsWith(`${family}ENV_`) ? name.slice(family.length + 4) : ""
      if (value !== undefined && shellName.test(inside) && inside !== "HOME") overrides.set(inside, value)
    }
  for (const assignment of assignments) {
    const equals = assignment.indexOf("=")
    const name = assignment.slice(0, Math.max(0, equals))
    if (!shellName.test(name))
      throw new RunError("ERR_RUN", `${JSON.stringify(assignment)} is not NAME=VALUE`)
    overrides.set(name, assignment.slice(equals + 1))
  }
  return { host, overrides }
}

/** A value as a shell reads it back, whatever is in it. */
export function shellQuote(value: string): string {
  return `'${value.replaceAll("'", `'\\''`)}'`
}

/** Sets every override. */
export function overrideScript(environment: PayloadEnvironment): string {
  return [...environment.overrides].map(([name, value]) => `export ${name}=${shellQuote(value)}\n`).join("")
}

/** Sets what is not set yet. */
export function hostScript(environment: PayloadEnvironment): string {
  return [...environment.host]
    .map(([name, value]) => `[ -n "\${${name}+set}" ] || export ${name}=${shellQuote(value)}\n`)
    .join("")
}
