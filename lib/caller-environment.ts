// The environment that a process was given. A leaf: imports nothing.

/** What Node would obey, the command's start (lib/cli/start.cjs) sets aside under names with this in front. */
const setAside = "SIFCRYPT_SET_ASIDE_"

/** The caller's variables, for payloads and for programs of the caller's choice; `process.env` has those that this process obeys. */
export function callerEnvironment(): NodeJS.ProcessEnv {
  const all = Object.entries(process.env)
  const hidden = all.filter(([name]) => name.startsWith(setAside))
  if (hidden.length === 0) return { ...process.env }
  return Object.fromEntries([
    ...all.filter(([name]) => !name.startsWith(setAside)),
    ...hidden.map(([name, value]) => [name.slice(setAside.length), value] as const),
  ])
}
