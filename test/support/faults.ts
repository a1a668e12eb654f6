// Commands of which one system call fails, by faults.c.
import { execFileSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { constants } from "node:os"
import path from "node:path"
import { packageRoot } from "./cli.ts"
import { newFolder } from "./scratch.ts"

/** What is failed, and with what. */
const errors: Readonly<Record<string, readonly (keyof typeof constants.errno)[]>> = {
  write: ["ENOSPC", "EIO", "EDQUOT", "EINTR"],
  fsync: ["EIO", "ENOSPC", "EDQUOT"],
  rename: ["ENOSPC", "EIO", "EDQUOT"],
  unlink: ["EIO"],
  open: ["EMFILE", "EIO", "ENOMEM", "ENOSPC", "EINTR"],
  mmap: ["ENOMEM"],
  fork: ["EAGAIN", "ENOMEM"],
  mount: ["ENOMEM", "EMFILE", "ENOSPC"],
  ioctl: ["EIO", "ENOMEM", "EINTR"],
  read: ["EIO", "EINTR", "ENOMEM"],
  receive: ["ECONNRESET", "EINTR", "ENOMEM"],
  send: ["ENOBUFS", "EINTR", "ENOMEM"],
  connect: ["ECONNREFUSED", "EINTR", "ENOBUFS"],
}

/** A system call that one of our processes made. */
export interface Call {
  /** From 1, over all processes. */
  readonly number: number
  /** The same among those calls of that program. */
  readonly place: number
  readonly program: string
  readonly kind: string
  readonly name: string
  /** A path, or what else a descriptor is; with what was written where that was asked for. */
  readonly object: string
}

export interface Fault {
  readonly call: Call
  readonly errno: string
}

let program: string | undefined

/** The words before a command of which a call fails, or none. `data`: what is written is reported as well. */
export function failing(report: string, from: string, fault: Fault | "none" | "data"): readonly string[] {
  if (program === undefined) {
    program = path.join(newFolder("faults"), "faults")
    const source = path.join(packageRoot, "test", "support", "faults.c")
    execFileSync("gcc", ["-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], { stdio: "inherit" })
  }
  const words =
    typeof fault === "string"
      ? ["-", "-", "0", fault === "data" ? fault : "0"]
      : [
          ...[fault.call.program, fault.call.name, String(fault.call.place)],
          String(constants.errno[fault.errno as keyof typeof constants.errno]),
        ]
  return [program, report, from, ...words, "--"]
}

/** What a report has. */
export function callsOf(report: string): Call[] {
  const places = new Map<string, number>()
  return readFileSync(report, "latin1")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const [number, program = "", kind = "", name = "", ...object] = line.split(" ")
      const place = (places.get(`${program} ${name}`) ?? 0) + 1
      places.set(`${program} ${name}`, place)
      return { number: Number(number), place, program, kind, name, object: object.join(" ") }
    })
}

/** What comes through Node may be the network's. Of the starter's each end lives as long as its process, which goes on here. */
const errorsOf = ({ program, kind, object }: Call): readonly string[] =>
  errors[program === "node" && kind === "read" && object.startsWith("socket:") ? "receive" : kind] ?? []

/** Calls that do the same: numbers and random names are left out of what they are made for. */
function alike({ program, kind, name, object }: Call): string {
  return [program, kind, name, object.replace(/[0-9a-f]{8,}|\d+/g, "#")].join(" ")
}

/** Each call, each kind of call with every errno. */
export function allFaults(calls: readonly Call[]): Fault[] {
  const seen = new Map<string, number>()
  const faults: Fault[] = []
  for (const call of calls) {
    const kinds = errorsOf(call)
    const times = seen.get(alike(call)) ?? 0
    seen.set(alike(call), times + 1)
    if (times === 0) faults.push(...kinds.map((errno) => ({ call, errno })))
    else faults.push({ call, errno: kinds[times % kinds.length] ?? "EIO" })
  }
  return faults
}

/** So many of them, as far apart as can be: always the same. */
export function someOf<T>(all: readonly T[], count: number): T[] {
  const step = Math.max(1, all.length / count)
  return all.filter((_, i) => Math.floor(i / step) !== Math.floor((i - 1) / step))
}

/** The last call of each kind. */
export function lastFaults(calls: readonly Call[]): Fault[] {
  const last = new Map(calls.map((call) => [`${call.program} ${call.kind} ${call.name}`, call]))
  return allFaults([...last.values()])
}
