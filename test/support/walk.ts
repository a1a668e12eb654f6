// What each process that came of a command may do and has, as /proc tells it.
import { readFileSync, readlinkSync, statSync } from "node:fs"
import { descriptorsOf, holdsFuse, type ProcessInfo } from "./processes.ts"

const kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]

const read = (file: string): string => readFileSync(file, "latin1")
const field = (pid: number | "self", name: string): string =>
  new RegExp(`^${name}:\\s*(.*)$`, "m").exec(read(`/proc/${pid}/status`))?.[1] ?? ""

/** Bits of <linux/capability.h>. */
const capabilities = [
  ...["chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"],
  ...[
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
  ],
  ...[
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
  ],
  ...[
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
  ],
  ...["mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"],
  "checkpoint_restore",
]

function named(set: string): string {
  const bits = BigInt(`0x${set}`)
  const has = capabilities.filter((_, i) => (bits >> BigInt(i)) & 1n)
  if (has.length === 0) return "none"
  const missing = capabilities.filter((name) => !has.includes(name))
  if (missing.length === 0) return "all"
  return missing.length < 6 ? `all but ${missing.join(", ")}` : has.join(", ")
}

function descriptorKind(target: string, names: Readonly<Record<string, string>>): string {
  for (const [start, name] of Object.entries(names)) if (target.startsWith(start)) return name
  return target.replace(/^(pipe|socket|net|mnt|user|pid):.*/, "$1").replace(/^anon_inode:\[?(\w+)\]?$/, "$1")
}

const list = (items: readonly string[]): string =>
  items.length === 0 ? "none" : [...new Set(items)].sort().join(", ")

/** One process, in the cells of the table of docs/security.md behind its name. */
export function cellsOf(pid: number, names: Readonly<Record<string, string>>): readonly string[] {
  const namespaces = kinds.filter(
    (kind) => readlinkSync(`/proc/${pid}/ns/${kind}`) !== readlinkSync(`/proc/self/ns/${kind}`),
  )
  const variables = read(`/proc/${pid}/environ`)
    .split("\0")
    .filter((variable) => variable.includes("="))
    .map((variable) => variable.split("=")[0] ?? "")
  const effective = named(field(pid, "CapEff"))
  const permitted = named(field(pid, "CapPrm"))
  return [
    effective === permitted ? effective : `${effective} of ${permitted}`,
    named(field(pid, "CapBnd")),
    field(pid, "NoNewPrivs") === "1" ? "yes" : "no",
    field(pid, "Seccomp") === "2" ? "yes" : "no",
    // What cannot be dumped is root's in /proc.
    Number(field(pid, "Uid").split("\t")[1]) === 0
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
  return word.split("/").at(-1) ?? ""
}
