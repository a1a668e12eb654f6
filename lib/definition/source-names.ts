// Sources of %files on this machine as a shell would read them: ~, $NAME and ${NAME}. What it would compute or run is refused.

/** Of whoever builds. */
export interface SourceVariables {
  readonly environment: Readonly<Record<string, string>>
  /** As passwd has it; undefined: there is no such user. No name: the caller's own. */
  readonly homeOf: (user?: string) => string | undefined
}

const expansions = /\\[^]|`|\$(?:[({]|[A-Za-z_]\w*)/g
const variable = /\$\{([A-Za-z_]\w*)\}/y

/**
 * Puts in what variables and home folders are; a variable that is not set is nothing, a user that there is not stays `~name`.
 *
 * @throws Error for what is neither a name nor one of these, and for what comes to nothing.
 */
export function expandSource(source: string, { environment, homeOf }: SourceVariables): string {
  const value = (name: string): string => (Object.hasOwn(environment, name) ? (environment[name] ?? "") : "")
  const [tilde = "", user = ""] = /^~([\w.-]*)(?=\/|$)/.exec(source) ?? []
  const home = tilde === "" ? undefined : user === "" ? (environment["HOME"] ?? homeOf()) : homeOf(user)
  let text = home ?? ""
  let at = home === undefined ? 0 : tilde.length
  expansions.lastIndex = at
  for (let found; (found = expansions.exec(source)) !== null; at = expansions.lastIndex) {
    const [word] = found
    text += source.slice(at, found.index)
    if (word.startsWith("\\")) text += word
    else if (/^\$\w/.test(word)) text += value(word.slice(1))
    else {
      variable.lastIndex = found.index
      const [all = "", name = ""] = variable.exec(source) ?? []
      if (all === "")
        throw new Error("no shell reads it: of what one puts in, there are ~, $NAME and ${NAME} only")
      text += value(name)
      expansions.lastIndex = found.index + all.length
    }
  }
  const expanded = text + source.slice(at)
  // An empty name would be the folder that the build was called in.
  if (expanded === "" && source !== "") throw new Error("it is nothing: its variables are not set")
  return expanded
}
