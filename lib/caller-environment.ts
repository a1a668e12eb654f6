// The environment that a process was given. A leaf: imports nothing.

/** What Node would obey, the command's start (lib/cli/start.cjs) sets aside under names with this in front. */
const setAside = "SIFCRYPT_SET_ASIDE_"

/** Where the command's start tells how many files its caller's programs may have open. */
const openFiles = "SIFCRYPT_START_FILES"

/** The caller's soft limit on open files, which Node has raised for this process; undefined: unknown, or none. */
export function callerOpenFiles(): number | undefined {
  const told = process.env[openFiles] ?? ""
  return /^\d{1,10}$/.test(told) ? Number(told) : undefined
}

/** The caller's variables, for payloads and for programs of the caller's choice; `process.env` has those that this process obeys. */
export function callerEnvironment(): NodeJS.ProcessEnv {
  const all = Object.entries(process.env).filter(([name]) => name !== openFiles)
  const hidden = all.filter(([name]) => name.startsWith(setAside))
  return Object.fromEntries([
    ...all.filter(([name]) => !name.startsWith(setAside)),
    ...hidden.map(([name, value]) => [name.slice(setAside.length), value] as const),
  ])
}
