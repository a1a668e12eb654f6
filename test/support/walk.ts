// What each process that came of a command may do and has, as /proc tells it.
import { readFileSync, readlinkSync, statSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { isDeepStrictEqual } from "node:util"
import { packageRoot } from "./cli.ts"
import { descriptorsOf, holdsFuse, type ProcessInfo } from "./processes.ts"

/** Where many programs run at once, the last process of a command may come late. */
const settleMs = 40_000
/** What is as it should be stays so: what one more look sees after so long. */
const restMs = 50

const kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]

const read = (file: string): string => readFileSync(file, "latin1")
const field = (pid: number | "self", name: string): string =>
  new RegExp(`^${name}:\\s*(.*)$`, "m").exec(read(`/proc/${pid}/status`))?.[1] ?? ""

/** CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT and SETFCAP. */
const ofServices = "00000000800405fb"

/** A set of capabilities: none, as many as whoever runs the tests has, a service's, or all of a user namespace of their own. */
function named(set: string, own: boolean): string {
  if (/^0+$/.test(set)) return "none"
  if (set === ofServices) return "a service's"
  if (own) return "its namespace's"
  return set === field("self", "CapBnd") ? "the caller's" : set
}

/** What a shell gives itself: which one /bin/sh is, is the machine's. */
const ofShells: ReadonlySet<string> = new Set(["_", "OLDPWD", "SHLVL"])

function descriptorKind(target: string, names: Readonly<Record<string, string>>): string {
  for (const [start, name] of Object.entries(names)) if (target.startsWith(start)) return name
  return (
    target
      .replace(/^(pipe|socket|net|mnt|user|pid|pidfd):.*/, "$1")
      .replace(/^anon_inode:\[?(\w+)\]?$/, "$1")
      // Some releases of Node tell epoll through one what to wait for, where the kernel lets them.
      .replace(/^io_uring$/, "eventpoll")
  )
}

/** How many filters a process has: its own are those that whoever runs the tests does not have. */
const filters = (pid: number | "self"): number => Number(field(pid, "Seccomp_filters"))

const list = (items: readonly string[]): string =>
  items.length === 0 ? "none" : [...new Set(items)].sort().join(", ")

/**
 * One process, in the cells of the table of docs/security.md behind its name.
 *
 * @param reference - In whose namespaces the command was started.
 */
export function cellsOf(
  pid: number,
  names: Readonly<Record<string, string>>,
  reference: number | "self",
): readonly string[] {
  const namespaces = kinds.filter(
    (kind) => readlinkSync(`/proc/${pid}/ns/${kind}`) !== readlinkSync(`/proc/${reference}/ns/${kind}`),
  )
  const own = namespaces.includes("user")
  const variables = read(`/proc/${pid}/environ`)
    .split("\0")
    .filter((variable) => variable.includes("="))
    .map((variable) => variable.split("=")[0] ?? "")
    .filter((name) => !ofShells.has(name))
    .map((name) => name.replace(/^(APPTAINER|SINGULARITY|_LIBCONTAINER)_.*/, "$1_…"))
  const [effective, permitted, bounding] = ["CapEff", "CapPrm", "CapBnd"].map((set) =>
    named(field(pid, set), own),
  )
  return [
    effective === permitted ? (effective ?? "") : `${effective ?? ""} of ${permitted ?? ""}`,
    bounding ?? "",
    field(pid, "NoNewPrivs") === "1" ? "yes" : "no",
    filters(pid) > filters("self") ? "yes" : "no",
    // In /proc what cannot be dumped is the user namespace's root's, which shows where that is somebody else.
    own || Number(field(pid, "Uid").split("\t")[1]) === 0
      ? "–"
      : statSync(`/proc/${pid}/environ`).uid === 0
        ? "no"
        : "yes",
    list(namespaces),
    list(variables),
    field(pid, "VmLck").startsWith("0 ") ? "no" : "yes",
    list(descriptorsOf(pid).map((target) => descriptorKind(target, names))),
  ]
}

/** What it is, by its words. */
export function roleOf({ pid, command, program }: ProcessInfo): string {
  const [word = "", second = ""] = command.split(" ")
  if (/sifcrypt-starter$/.test(program) || word.startsWith("sifcrypt-starter"))
    return `starter ${second}${holdsFuse(pid) ? ", server" : ""}`
  // A script is called like its file.
  return path.basename(word.endsWith("/sh") && second.startsWith("/") ? second : word)
}

/** The rows of the table in docs/security.md. */
export function tableRows(): string[] {
  const text = readFileSync(path.join(packageRoot, "docs", "security.md"), "utf8")
  const [section = ""] = (text.split("\n## What each process may\n")[1] ?? "").split(/\n#/)
  return section
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .slice(2)
    .map((line) => line.replace(/\s+/g, " ").trim())
}

/**
 * The rows of processes, at two looks running, once they are as they should be, or what they are in the end. A process may end meanwhile.
 *
 * @param first - The cells of command and user.
 * @param names - Of descriptors that lead to what starts so.
 * @param reference - In whose namespaces the command was started.
 */
export async function settledRows(
  first: string,
  processes: () => readonly ProcessInfo[],
  names: Readonly<Record<string, string>>,
  expected: readonly string[],
  reference: number | "self" = "self",
): Promise<string[]> {
  const end = performance.now() + settleMs
  for (let before = false; ;) {
    let rows: string[] | undefined
    try {
      const all = processes().map(
        (one) => `${first} ${[roleOf(one), ...cellsOf(one.pid, names, reference)].join(" | ")} |`,
      )
      rows = [...new Set(all)].sort()
    } catch (error) {
      if (!["ENOENT", "ESRCH"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error
    }
    const now = isDeepStrictEqual(rows, expected)
    if (rows !== undefined && ((before && now) || performance.now() > end)) return rows
    before = now
    await sleep(restMs)
  }
}
