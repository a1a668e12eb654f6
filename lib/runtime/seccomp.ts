// Seccomp profiles: Docker's form, which says for whom a rule holds, and the runtime's own, which is what crun takes.
import { constants, release } from "node:os"
import { readBounded } from "../bounded-file.ts"
import { RunError } from "../errors.ts"
import { parseJson } from "../json.ts"

const MAX_PROFILE_SIZE = 4 << 20

interface Rule {
  readonly names?: readonly string[]
  readonly name?: string
  readonly action: string
  readonly errnoRet?: number
  /** By name; Podman's profiles have both. */
  readonly errno?: string
  readonly args?: readonly object[] | null
  readonly includes?: Condition
  readonly excludes?: Condition
}
interface Condition {
  readonly arches?: readonly string[] | null
  readonly caps?: readonly string[] | null
  readonly minKernel?: string
}
interface Profile {
  readonly defaultAction: string
  readonly defaultErrnoRet?: number
  readonly defaultErrno?: string
  readonly architectures?: readonly string[] | null
  readonly archMap?: readonly {
    readonly architecture: string
    readonly subArchitectures?: readonly string[] | null
  }[]
  readonly flags?: readonly string[]
  readonly syscalls?: readonly Rule[] | null
}

/** Node's names of architectures in Docker's and seccomp's words. */
const architectures: Readonly<Record<string, readonly [string, string]>> = {
  x64: ["amd64", "SCMP_ARCH_X86_64"],
  arm64: ["arm64", "SCMP_ARCH_AARCH64"],
  ppc64: ["ppc64le", "SCMP_ARCH_PPC64LE"],
  s390x: ["s390x", "SCMP_ARCH_S390X"],
  riscv64: ["riscv64", "SCMP_ARCH_RISCV64"],
}

function kernelAtLeast(wanted: string): boolean {
  const [major = 0, minor = 0] = wanted.split(".").map(Number)
  const [ownMajor = 0, ownMinor = 0] = release()
    .split(".")
    .map((part) => parseInt(part, 10))
  return ownMajor > major || (ownMajor === major && ownMinor >= minor)
}

/** All that is named holds. */
function holds(condition: Condition | undefined, arch: string, capabilities: readonly string[]): boolean {
  const { arches, caps, minKernel } = condition ?? {}
  if (arches !== undefined && arches !== null && arches.length > 0 && !arches.includes(arch)) return false
  if (caps !== undefined && caps !== null && !caps.every((name) => capabilities.includes(name))) return false
  return minKernel === undefined || minKernel === "" || kernelAtLeast(minKernel)
}

/** Any that is named holds. */
function excluded(condition: Condition | undefined, arch: string, capabilities: readonly string[]): boolean {
  const { arches, caps, minKernel } = condition ?? {}
  if (arches?.includes(arch) === true) return true
  if (caps?.some((name) => capabilities.includes(name)) === true) return true
  return minKernel !== undefined && minKernel !== "" && kernelAtLeast(minKernel)
}

function isProfile(value: unknown): value is Profile {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false
  const { defaultAction, syscalls } = value as Partial<Profile>
  const isRule = (rule: unknown): boolean =>
    typeof rule === "object" &&
    rule !== null &&
    typeof (rule as Rule).action === "string" &&
    (Array.isArray((rule as Rule).names) || typeof (rule as Rule).name === "string")
  return (
    typeof defaultAction === "string" &&
    (syscalls === undefined || syscalls === null || (Array.isArray(syscalls) && syscalls.every(isRule)))
  )
}

/** The number that a rule gives back, however it is written. */
function errnoOf(byNumber: number | undefined, byName: string | undefined): number | undefined {
  if (byNumber !== undefined || byName === undefined || byName === "") return byNumber
  const value = (constants.errno as Readonly<Record<string, number>>)[byName]
  if (value === undefined)
    throw new RunError("ERR_RUN_OPTION", `no seccomp profile: ${JSON.stringify(byName)} is no errno`)
  return value
}

/**
 * What `linux.seccomp` of a bundle says for a profile.
 *
 * @param capabilities - Of the payload: rules of Docker's hold for some only.
 */
export function convertProfile(
  profile: unknown,
  capabilities: readonly string[],
  arch: string = process.arch,
): object {
  if (!isProfile(profile))
    throw new RunError("ERR_RUN_OPTION", "no seccomp profile: defaultAction or syscalls are malformed")
  const [docker, native] = architectures[arch] ?? [arch, undefined]
  const mapped = profile.archMap?.find(({ architecture }) => architecture === native)
  const listed = profile.architectures ?? []
  const all =
    listed.length > 0
      ? listed
      : mapped === undefined
        ? []
        : [mapped.architecture, ...(mapped.subArchitectures ?? [])]
  return {
    defaultAction: profile.defaultAction,
    defaultErrnoRet: errnoOf(profile.defaultErrnoRet, profile.defaultErrno),
    ...(all.length === 0 ? {} : { architectures: all }),
    flags: profile.flags,
    syscalls: (profile.syscalls ?? [])
      .filter(({ includes }) => holds(includes, docker, capabilities))
      .filter(({ excludes }) => !excluded(excludes, docker, capabilities))
      .map(({ names, name, action, errnoRet, errno, args }) => ({
        names: names !== undefined && names.length > 0 ? names : [name],
        action,
        errnoRet: errnoOf(errnoRet, errno),
        ...(args === undefined || args === null || args.length === 0 ? {} : { args }),
      })),
  }
}

/**
 * Reads a profile.
 *
 * @throws RunError `ERR_RUN_OPTION`; the signal's reason.
 */
export async function readProfile(
  file: string,
  capabilities: readonly string[],
  signal?: AbortSignal,
): Promise<object> {
  try {
    const bytes = await readBounded(file, MAX_PROFILE_SIZE, { signal })
    return convertProfile(parseJson(bytes.toString("utf8")), capabilities)
  } catch (cause) {
    signal?.throwIfAborted()
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new RunError("ERR_RUN_OPTION", `seccomp profile ${file}: ${why}`, { path: file, cause })
  }
}
