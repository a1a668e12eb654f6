// What a payload may do: its ids, capabilities and namespaces, and what confines it. What is asked for and was not applied
// is an error, so sifcrypt-init reads it back inside before the payload starts.
import { existsSync, readFileSync } from "node:fs"
import path from "node:path"
import { EnvironmentError, RunError } from "../errors.ts"
import { allCapabilities, capabilityMask, ownCapabilities, parseCapabilities } from "./capabilities.ts"
import { networkOf, type ConnectedNetwork, type NetworkChoice } from "./network.ts"
import type { ExecOptions } from "./options.ts"
import { readProfile } from "./seccomp.ts"

/** What of the options says what a payload may do. */
export type ConfinementOptions = NetworkChoice &
  Pick<
    ExecOptions,
    | "fakeroot"
    | "userns"
    | "pid"
    | "noPid"
    | "noInit"
    | "ipc"
    | "uts"
    | "security"
    | "addCaps"
    | "dropCaps"
    | "keepPrivs"
    | "noPrivs"
    | "allowSetuid"
  >

/** Who the payload is. */
export interface PayloadIds {
  readonly uid: number
  readonly gid: number
  /** Beside `gid`. */
  readonly groups: readonly number[]
}

/** A namespace in the runtime's words. */
export interface Namespace {
  readonly type: "mount" | "user" | "pid" | "ipc" | "uts" | "network"
  readonly path?: string
}

export interface Confinement {
  readonly ids: PayloadIds
  readonly capabilities: readonly string[]
  readonly noNewPrivileges: boolean
  readonly namespaces: readonly Namespace[]
  /** One of its own that has a way out. */
  readonly network: ConnectedNetwork | undefined
  /** It is root of the machine: all ids are there, and memory is limited by nobody else. */
  readonly privileged: boolean
  /** Of the inner user namespace: ids inside are the session's 0. */
  readonly innerUser: boolean
  /** A profile that {@link withProfile} reads. */
  readonly seccompFile: string | undefined
  readonly seccomp: object | undefined
  readonly apparmorProfile: string | undefined
  readonly selinuxLabel: string | undefined
  /** The root's mount is not nosuid. */
  readonly suid: boolean
  /** What sifcrypt-init is to do, in its words; none: it is not needed. */
  readonly initArguments: readonly string[]
}

interface Security {
  seccomp?: string
  apparmor?: string
  selinux?: string
  uid?: number
  gids?: number[]
}

const MAX_ID = 0xffff_fffe

function refuse(what: string): never {
  throw new RunError("ERR_RUN_OPTION", what)
}

function parseId(text: string, what: string): number {
  const id = /^\d{1,10}$/.test(text) ? Number(text) : NaN
  if (!(id <= MAX_ID)) refuse(`${what}: ${text} is no id`)
  return id
}

/** Each may hold several, separated by commas; a value has colons of its own. */
export function parseSecurity(texts: readonly string[]): Security {
  const security: Security = {}
  for (const text of texts.flatMap((one) => one.split(","))) {
    const colon = text.indexOf(":")
    const name = text.slice(0, Math.max(colon, 0))
    const value = text.slice(colon + 1)
    if (colon <= 0 || value === "") refuse(`security ${text}: not NAME:VALUE`)
    switch (name) {
      case "seccomp":
      case "apparmor":
      case "selinux":
        security[name] = value
        break
      case "uid":
        security.uid = parseId(value, "security uid")
        break
      case "gid":
        security.gids = value.split(":").map((part) => parseId(part, "security gid"))
        break
      default:
        refuse(`security ${text}: there is no ${name}; there are seccomp, apparmor, selinux, uid and gid`)
    }
  }
  return security
}

/** The same with the files of profiles named from the root. */
export function absoluteSecurity(texts: readonly string[]): string[] {
  return texts
    .flatMap((text) => text.split(","))
    .map((text) =>
      text.replace(/^(seccomp:)(.+)$/s, (_, name: string, file: string) => name + path.resolve(file)),
    )
}

function enabled(file: string): boolean {
  try {
    return readFileSync(file, "utf8").trim() === "Y"
  } catch {
    return false
  }
}

/** A module that this kernel does not have would leave the payload unconfined. */
function checkModules(security: Security): void {
  if (security.apparmor !== undefined && !enabled("/sys/module/apparmor/parameters/enabled"))
    throw new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      `the AppArmor profile ${security.apparmor} cannot be applied: AppArmor is not enabled in this kernel`,
    )
  if (security.selinux !== undefined && !existsSync("/sys/fs/selinux/enforce"))
    throw new EnvironmentError(
      "ERR_ENV_NO_KERNEL_SUPPORT",
      `the SELinux label ${security.selinux} cannot be applied: SELinux is not enabled in this kernel`,
    )
}

/**
 * Capabilities that its network takes from a payload, unless they are given by name: with packets of its own it could talk to what
 * listens on the machine's loopback alone, as pasta of 2023 passes them on.
 */
export function deniedByNetwork(options: ConfinementOptions): string[] {
  if (networkOf(options).connected === undefined) return []
  const added = parseCapabilities(options.addCaps ?? [])
  return ["CAP_NET_ADMIN", "CAP_NET_RAW"].filter((name) => !added.includes(name))
}

/** Who the payload is, and what is checked of it. */
function idsOf(
  security: Security,
  caller: PayloadIds,
  root: boolean,
): { readonly ids: PayloadIds; readonly switched: boolean; readonly checks: string[] } {
  const { uid, gids } = security
  const switched = uid !== undefined || gids !== undefined
  if (!switched) return { ids: caller, switched, checks: [] }
  if (!root && gids !== undefined && gids.length > 1) refuse("only root can give a payload several groups")
  const [gid = caller.gid, ...groups] = gids ?? []
  const ids = { uid: uid ?? caller.uid, gid, groups: gids === undefined ? [] : groups }
  return {
    ids,
    switched,
    checks: [`--check-uid=${ids.uid}`, `--check-gid=${[ids.gid, ...ids.groups].join(":")}`],
  }
}

function capabilitiesOf(
  options: ConfinementOptions,
  root: boolean,
  fakeroot: boolean,
  switched: boolean,
): string[] {
  const { addCaps = [], dropCaps = [], noPrivs = false, keepPrivs = false } = options
  if (noPrivs && keepPrivs) refuse("privileges are kept or not: both were asked for")
  const none = noPrivs || switched
  const base = none ? [] : root ? ownCapabilities() : fakeroot ? allCapabilities() : []
  const dropped = new Set(parseCapabilities(dropCaps))
  const all = new Set([...base, ...parseCapabilities(addCaps)])
  return allCapabilities().filter((name) => all.has(name) && !dropped.has(name))
}

/**
 * Reads the filter of system calls that was asked for. Without it `sifcrypt-init` finds none, and ends the run.
 *
 * @throws RunError `ERR_RUN_OPTION`; the signal's reason.
 */
export async function withProfile(confinement: Confinement, signal?: AbortSignal): Promise<Confinement> {
  const { seccompFile, capabilities } = confinement
  if (seccompFile === undefined) return confinement
  return { ...confinement, seccomp: await readProfile(seccompFile, capabilities, signal) }
}

/**
 * Decides what the payload may do. A filter of system calls is read by {@link withProfile}.
 *
 * @param caller - Who it is unless `security` says otherwise: inside.
 * @param root - The caller is root of the machine, or of the user namespace that this is run in.
 * @throws RunError `ERR_RUN_OPTION`; EnvironmentError `ERR_ENV_NO_KERNEL_SUPPORT`.
 */
export function confine(options: ConfinementOptions, caller: PayloadIds, root: boolean): Confinement {
  const { noInit = false, ipc = false, uts = false, keepPrivs = false, allowSetuid = false } = options
  const pid = options.pid === true && options.noPid !== true
  const fakeroot = options.fakeroot === true && !root
  const security = parseSecurity(options.security ?? [])
  checkModules(security)
  if (allowSetuid && !root) refuse("setuid programs are allowed by root only")
  if (keepPrivs && !root) refuse("privileges are kept by root only")
  const { ids, switched, checks } = idsOf(security, caller, root)
  const { namespaces, connected } = networkOf(options)
  const denied = deniedByNetwork(options)
  const capabilities = capabilitiesOf(options, root, fakeroot, switched).filter(
    (name) => !denied.includes(name),
  )
  const fullRoot = root && !switched && options.noPrivs !== true
  const noNewPrivileges = !(fullRoot && (keepPrivs || allowSetuid))
  const innerUser = root ? options.userns === true : !fakeroot
  const initArguments = [...checks]
  const narrowed =
    switched || options.noPrivs === true || (options.dropCaps ?? []).length > 0 || options.userns === true
  if (narrowed) initArguments.push(`--check-capabilities=${capabilityMask(capabilities)}`)
  if (narrowed && noNewPrivileges) initArguments.push("--check-no-new-privs=1")
  if (security.seccomp !== undefined) initArguments.push("--check-seccomp=1")
  if (security.apparmor !== undefined) initArguments.push(`--check-apparmor=${security.apparmor}`)
  if (security.selinux !== undefined) initArguments.push(`--check-selinux=${security.selinux}`)
  if (pid && !noInit) initArguments.push("--init")
  return {
    ids,
    capabilities,
    noNewPrivileges,
    namespaces: [
      { type: "mount" },
      ...(innerUser ? [{ type: "user" } as const] : []),
      ...(pid ? [{ type: "pid" } as const] : []),
      ...(ipc ? [{ type: "ipc" } as const] : []),
      ...(uts ? [{ type: "uts" } as const] : []),
      ...namespaces,
    ],
    network: connected,
    privileged: root && !innerUser,
    innerUser,
    seccompFile: security.seccomp,
    seccomp: undefined,
    apparmorProfile: security.apparmor,
    selinuxLabel: security.selinux,
    suid: allowSetuid,
    initArguments,
  }
}
