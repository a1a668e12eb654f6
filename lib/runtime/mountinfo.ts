// The kernel's list of mounts, as proc(5) describes it.
import { readFileSync } from "node:fs"

export interface MountEntry {
  readonly target: string
  /** `fuse.sifcrypt`, `squashfs`, … */
  readonly type: string
  readonly source: string
  readonly device: string
}

/** Space, tab, newline and backslash are written in octal. */
function unescape(text: string): string {
  const bytes: number[] = []
  const raw = Buffer.from(text, "utf8")
  for (let at = 0; at < raw.length; at++) {
    const octal = raw[at] === 0x5c ? /^[0-7]{3}/.exec(raw.toString("latin1", at + 1, at + 4))?.[0] : undefined
    if (octal === undefined) bytes.push(raw[at] ?? 0)
    else {
      bytes.push(parseInt(octal, 8))
      at += 3
    }
  }
  return Buffer.from(bytes).toString("utf8")
}

/** Parses /proc/self/mountinfo's text. */
export function parseMountInfo(text: string): readonly MountEntry[] {
  const entries: MountEntry[] = []
  for (const line of text.split("\n")) {
    const [left, right] = line.split(" - ")
    if (left === undefined || right === undefined) continue
    const [, , device, , target] = left.split(" ")
    const [type, source] = right.split(" ")
    if (device === undefined || target === undefined || type === undefined || source === undefined) continue
    entries.push({ device, target: unescape(target), type, source: unescape(source) })
  }
  return entries
}

/** The mounts that this process sees. */
export function readMounts(): readonly MountEntry[] {
  return parseMountInfo(readFileSync("/proc/self/mountinfo", "utf8"))
}

/** The flags of the mount that an open file is in: `noexec`, `nosuid`, … */
export function mountFlagsOf(fd: number): ReadonlySet<string> {
  const id = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1]
  const line = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .find((one) => one.split(" ", 1)[0] === id)
  return new Set(line?.split(" ")[5]?.split(","))
}
