// Names of capabilities, and which of them a payload gets.
import { readFileSync } from "node:fs"
import { RunError } from "../errors.ts"

/** In the order of their numbers: linux/capability.h. */
const names: readonly string[] = (
  "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE " +
  "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN " +
  "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE " +
  "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
  .split(" ")
  .map((name) => `CAP_${name}`)

function ofMask(mask: bigint): string[] {
  return names.filter((_, bit) => ((mask >> BigInt(bit)) & 1n) === 1n)
}

/** The capabilities this process has. */
export function ownCapabilities(): string[] {
  const hex = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0"
  return ofMask(BigInt(`0x${hex}`))
}

/** All that this kernel has: what root of a new user namespace gets in it. */
export function allCapabilities(): string[] {
  const last = Number(readFileSync("/proc/sys/kernel/cap_last_cap", "utf8"))
  return names.slice(0, last + 1)
}

/** As CapEff in /proc shows them, without leading zeros. */
export function capabilityMask(capabilities: readonly string[]): string {
  return capabilities.reduce((mask, name) => mask | (1n << BigInt(names.indexOf(name))), 0n).toString(16)
}

/**
 * Names as people write them, with or without `CAP_`, separated by commas; `all`.
 *
 * @throws RunError `ERR_RUN_OPTION`.
 */
export function parseCapabilities(texts: readonly string[]): string[] {
  return texts
    .flatMap((text) => text.split(","))
    .map((word) => word.trim().toUpperCase())
    .filter((word) => word !== "")
    .flatMap((word) => {
      if (word === "ALL") return allCapabilities()
      const name = word.startsWith("CAP_") ? word : `CAP_${word}`
      if (!names.includes(name)) throw new RunError("ERR_RUN_OPTION", `${word} is no capability`)
      return [name]
    })
}
