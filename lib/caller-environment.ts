// The environment that a process was given. A leaf: imports nothing.

/** What Node would obey, the command's start (lib/cli/start.cjs) sets aside under names with this in front. */
const setAside = "SIFCRYPT_SET_ASIDE_"

/** Where the command's start tells how many files its caller's programs may have open. */
const openFiles = "SIFCRYPT_START_FILES"

/** Where the command tells by which of its names it was called (lib/cli/program.ts). */
const called = "SIFCRYPT_START_CALLED"

/** What every message begins with that does not come through the API, but of the starter or from inside. */
export function messageName(): string {
  const name = process.env[called] ?? ""
  return /^[a-z][a-z-]{0,31}$/.test(name) ? name : "sifcrypt"
}

/** The caller's soft limit on open files, which Node has raised for this process; undefined: unknown, or none. */
export function callerOpenFiles(): number | undefined {
  const told = process.env[openFiles] ?? ""
  return /^\d{1,10}$/.test(told) ? Number(told) : undefined
}

/** The caller's variables, for payloads and for programs of the caller's choice; `process.env` has those that this process obeys. */
export function callerEnvironment(): NodeJS.ProcessEnv {
  const all = Object.entries(process.env).filter(([name]) => name !== openFiles && name !== called)
  const hidden = all.filter(([name]) => name.startsWith(setAside))
  return Object.fromEntries([
    ...all.filter(([name]) => !name.startsWith(setAside)),
    ...hidden.map(([name, value]) => [name.slice(setAside.length), value] as const),
  ])
}

const secretVariables = /^(?:(?:SIFCRYPT|APPTAINER|SINGULARITY)_|DOCKER_PASSWORD$)/

/** For programs that are started to work with keys: without what may hold secrets of ours and the peers'. */
export function programEnvironment(
  environment: Readonly<NodeJS.ProcessEnv> = callerEnvironment(),
): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(environment).filter(([name]) => !secretVariables.test(name)))
}
