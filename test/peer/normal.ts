// Outputs in a form in which those of two sides can be compared.

/** Lines of `env` as names and values; a line that names nothing continues the value before it. */
export function parseEnvironment(text: string): Readonly<Record<string, string>> {
  const found: Record<string, string> = {}
  let last: string | undefined
  for (const line of text.replace(/\n$/, "").split("\n")) {
    const [, name, value = ""] = /^([A-Za-z_]\w*)=(.*)$/.exec(line) ?? []
    if (name !== undefined) found[(last = name)] = value
    else if (last !== undefined) found[last] = `${found[last] ?? ""}\n${line}`
  }
  return found
}

/** What of a mount is compared. */
export interface ComparedMount {
  readonly type: string
  readonly flags: readonly string[]
}

/** What is at places that only one of the two has, or has from elsewhere, and for a reason. */
const leftOut = [
  // The root itself, which the cases look at by what it lets one do, and the folder of the entry script.
  /^\/$/,
  /^\/\.sifcrypt(?:\/|$)/,
  // crun is shown the unified hierarchy, where a host has both kinds of cgroups.
  /^\/sys\/fs\/cgroup/,
  // Nodes of a minimal /dev: bound from the host, or made.
  /^\/dev\/(?:full|null|random|tty|urandom|zero)$/,
]

/** Flags that forbid something; how times are kept is the host's. */
const forbidding: ReadonlySet<string> = new Set(["ro", "nosuid", "nodev", "noexec"])

/** What we forbid and the peer does not: nothing there has a use for it. */
const stricter: readonly (readonly [place: RegExp, flags: readonly string[]])[] = [
  [/^\/dev$/, ["nosuid"]],
  [/^\/sys$/, ["nosuid", "nodev"]],
  [/^\/(?:proc|dev\/mqueue)$/, ["noexec"]],
  [/^\/etc\/(?:passwd|group|resolv\.conf|hostname)$/, ["nodev"]],
]

/** Mounts by their places; of several at one place, the last. Files in /etc may be copies or the host's own. */
export function parseMountTable(text: string): Readonly<Record<string, ComparedMount>> {
  const found: Record<string, ComparedMount> = {}
  for (const line of text.trim().split("\n")) {
    const [left = "", right = ""] = line.split(" - ")
    const [, , , , target = "", options = ""] = left.split(" ")
    const [type = ""] = right.split(" ")
    if (leftOut.some((place) => place.test(target))) continue
    const more = stricter.find(([place]) => place.test(target))?.[1] ?? []
    const flags = options.split(",").filter((flag) => forbidding.has(flag) && !more.includes(flag))
    // Each of us serves images by a program of its own.
    const kind = target.startsWith("/etc/") ? "file" : type.replace(/^fuse\..*/, "fuse")
    found[target] = { type: kind, flags: flags.sort() }
  }
  return found
}

/** Where two values differ, by paths into them. */
export function differences(peer: unknown, own: unknown, place: string = ""): string[] {
  if (isObject(peer) && isObject(own))
    return [...new Set([...Object.keys(peer), ...Object.keys(own)])]
      .sort()
      .flatMap((key) => differences(peer[key], own[key], `${place}/${key}`))
  if (JSON.stringify(peer) === JSON.stringify(own)) return []
  return [`${place}: peer ${JSON.stringify(peer)}, own ${JSON.stringify(own)}`]
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}
