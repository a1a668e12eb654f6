// /etc/passwd and /etc/group of the image, with a line for who runs: inside and outside one is the same.

export interface Identity {
  readonly uid: number
  readonly gid: number
  readonly name: string
  readonly group: string
  readonly home: string
  readonly shell: string
  /** The fifth field of passwd. */
  readonly gecos?: string
}

/** The fifth field of a user's line in a passwd file. */
export function gecosOf(file: string, uid: number): string | undefined {
  return lines(file)
    .map((line) => line.split(":"))
    .find((parts) => parts[2] === String(uid))?.[4]
}

/** Passwd fields end at colons and lines. */
function field(text: string): string {
  return text.replace(/[:\n\r]/g, "_")
}

function lines(file: string): string[] {
  return file.split("\n").filter((line) => line !== "")
}

/** The image's file with the caller's line replaced, or added at its end. */
export function passwdWith(file: string, identity: Identity): string {
  const { uid, gid, home, shell, gecos } = identity
  const all = lines(file)
  const own = all.findIndex((line) => line.split(":")[2] === String(uid))
  const rewritten = all.map((line, index) => {
    if (index !== own) return line
    const parts = line.split(":")
    const name = uid === 0 ? (parts[0] ?? "root") : field(identity.name)
    const loginShell = parts[6] === undefined || parts[6] === "" ? shell : parts[6]
    return [name, "x", uid, gid, field(gecos ?? parts[4] ?? ""), field(home), loginShell].join(":")
  })
  if (own < 0)
    rewritten.push(
      [field(identity.name), "x", uid, gid, field(gecos ?? ""), field(home), field(shell)].join(":"),
    )
  return `${rewritten.join("\n")}\n`
}

/** The image's file, with the caller's group at its end unless it is there. */
export function groupWith(file: string, identity: Identity): string {
  const groups = lines(file)
  if (!groups.some((line) => line.split(":")[2] === String(identity.gid)))
    groups.push(
      `${field(identity.group)}:x:${identity.gid}:${identity.uid === 0 ? "" : field(identity.name)}`,
    )
  return `${groups.join("\n")}\n`
}
