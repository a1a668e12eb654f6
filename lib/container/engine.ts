// Which engine an image gets.
import { accessSync, constants, readFileSync } from "node:fs"
import type { PartitionKind } from "./partition.ts"
import { EnvironmentError } from "../errors.ts"
import type { ConcreteEngine } from "../runtime/starter.ts"

/** `auto`: the kernel for root where it can, else user space. */
export type Engine = "auto" | ConcreteEngine

const SUPPORTED_IN_USERSPACE = "aes-xts-plain64"

function isThere(file: string): boolean {
  try {
    accessSync(file, constants.F_OK)
    return true
  } catch {
    return false
  }
}

/** What keeps the kernel engine from working here; undefined when nothing obvious does. */
function kernelObstacle(kind: PartitionKind): EnvironmentError | undefined {
  if (process.geteuid?.() !== 0)
    return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", "the kernel engine needs root")
  if (!isThere("/dev/loop-control"))
    return new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      "the kernel engine needs loop devices, which are missing here",
    )
  // The capability bounding set of a container may lack it though the user is root.
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0"
  const CAP_SYS_ADMIN = 21n // linux/capability.h
  if (((BigInt(`0x${effective}`) >> CAP_SYS_ADMIN) & 1n) === 0n)
    return new EnvironmentError("ERR_ENV_NO_PRIVILEGE", "the kernel engine needs CAP_SYS_ADMIN")
  // Root of a user namespace may neither attach loop devices nor mount a block device.
  const initial = /^\s*0\s+0\s+4294967295\s*$/.test(readFileSync("/proc/self/uid_map", "utf8"))
  if (!initial)
    return new EnvironmentError(
      "ERR_ENV_NO_PRIVILEGE",
      "the kernel engine needs root outside a user namespace",
    )
  if (kind === "luks" && !isThere("/dev/mapper/control"))
    return new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      "the kernel engine needs device-mapper with dm-crypt, which is missing here",
    )
  return undefined
}

/**
 * Decides between the engines.
 *
 * @param cipher - Of an encrypted partition.
 * @throws EnvironmentError when `wanted` cannot work here, `ERR_ENV_NO_KERNEL_SUPPORT` also for a cipher that only the
 * kernel knows where there is no kernel engine.
 */
export function chooseEngine(
  wanted: Engine,
  kind: PartitionKind,
  cipher: string | undefined,
): ConcreteEngine {
  const obstacle = wanted === "userspace" ? undefined : kernelObstacle(kind)
  if (wanted === "kernel" && obstacle !== undefined) throw obstacle
  if (wanted === "kernel" || (wanted === "auto" && obstacle === undefined)) return "kernel"
  if (cipher !== undefined && cipher !== SUPPORTED_IN_USERSPACE)
    throw new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      `the userspace engine does not know the cipher ${cipher}`,
    )
  return "userspace"
}
