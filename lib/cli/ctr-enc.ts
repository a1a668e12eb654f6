// imgcrypt's `ctr-enc images encrypt|decrypt|layerinfo` in our words. What it calls an image is one of the store here, unless it is named as
// images are here; without a second name it takes the place of the first.

/** Commands below `images`, and how many names they have at most. */
const commands: Readonly<Record<string, readonly [ours: readonly string[], names: number]>> = {
  encrypt: [["image", "encrypt"], 2],
  decrypt: [["image", "decrypt"], 2],
  layerinfo: [["image", "layerinfo"], 1],
  ls: [["image", "list"], 0],
  list: [["image", "list"], 0],
  rm: [["image", "rm"], Infinity],
  remove: [["image", "rm"], Infinity],
}

/** Options without a value, and what they are here; undefined: so it is anyway, or it is about a containerd. */
const switches: Readonly<Record<string, string | undefined>> = {
  "all-platforms": undefined,
  "skip-decrypt-auth": undefined,
  debug: undefined,
  sync: undefined,
  "plain-http": "--no-https",
}

/** Options with a value. */
const valued: Readonly<Record<string, string | undefined>> = {
  recipient: "--recipient",
  layer: "--layer",
  platform: "--platform",
  key: "--key",
  "dec-recipient": "--dec-recipient",
  "gpg-homedir": "--gpg-homedir",
  "gpg-version": undefined,
  address: undefined,
  a: undefined,
  namespace: undefined,
  n: undefined,
  timeout: undefined,
}

const isNamed = (word: string): boolean => /^(?:docker|oci|oci-archive|docker-archive|store):/.test(word)

/** Of a flag as Go takes it, with one dash or two, and its value behind it or after it. */
function parseFlag(word: string): readonly [name: string, value: string | undefined] | undefined {
  const [, name, value] = /^--?([a-z][a-z-]*)(?:=(.*))?$/s.exec(word) ?? []
  return name === undefined ? undefined : [name, value]
}

/** What was asked for, as it is asked for here; what is not known stays, and is refused as any unknown word. */
export function ctrEncWords(words: readonly string[]): readonly string[] {
  const flags: string[] = []
  const names: string[] = []
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? ""
    const flag = names.length > 0 || word.startsWith("-") ? parseFlag(word) : undefined
    if (flag === undefined) {
      names.push(word)
      continue
    }
    const [name, given] = flag
    if (Object.hasOwn(valued, name)) {
      const value = given ?? words[++at] ?? ""
      const ours = valued[name]
      if (ours !== undefined) flags.push(`${ours}=${value}`)
    } else if (Object.hasOwn(switches, name)) flags.push(...[switches[name] ?? []].flat())
    else flags.push(word)
  }
  const [group = "", verb = "", ...rest] = names
  const known = ["images", "image", "i"].includes(group) ? commands[verb] : undefined
  if (known === undefined) return [...names, ...flags]
  const [ours, most] = known
  const images = rest.map((name) => (isNamed(name) || ours[1] === "rm" ? name : `store:${name}`))
  if (most === 2 && images.length === 1) images.push(...images)
  // GnuPG's keys are used where its folder is named, as there.
  const isRing =
    verb === "decrypt" &&
    flags.some((one) => one.startsWith("--gpg-homedir=")) &&
    !flags.some((one) => one.startsWith("--key="))
  return [...ours, ...flags, ...(isRing ? ["--key=pgp:"] : []), ...images]
}
