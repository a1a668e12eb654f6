// What a caller may ask of a run. Each option of `sifcrypt exec` has its twin here, by the same name.
import { Readable, Writable } from "node:stream"
import {
  abortSignal,
  callback,
  count,
  flag,
  instance,
  list,
  milliseconds,
  number,
  oneOf,
  path,
  required,
  shape,
  text,
  variables,
  whole,
  type Check,
  type Rows,
} from "../arguments.ts"
import { credentialList, type CredentialSource } from "../encryption/credentials.ts"
import { engineName, type Engine } from "./engine.ts"
import { RunError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import type { FailureReporter } from "./handover.ts"
import type { TerminalSize } from "./terminal.ts"

/** A file or folder of the host that is to be seen inside. */
export interface BindSpec {
  /** On the host; a relative one is relative to the working directory. */
  readonly source: string
  /** Absolute, inside; default: as `source`. */
  readonly destination?: string
  /** Default false. */
  readonly readOnly?: boolean
  /** Is a container that is started inside told to bind it as well? Default true. */
  readonly nested?: boolean
  /** `source` is an image (SIF, squashfs, ext3), and this a file or folder in it; default with `imageId`: `/`. */
  readonly imageSource?: string
  /** The partition of a SIF; default with `imageSource`: the first one for data, else the root file system. */
  readonly imageId?: number
}

/** Limits on what a payload may use, set through cgroups. */
export interface ResourceLimits {
  /** Processors' worth of time: 1.5 is one and a half. */
  readonly cpus?: number | undefined
  /** Weight beside other groups; 1024 is the kernel's default. */
  readonly cpuShares?: number | undefined
  /** Processors it may run on, as the kernel lists them: `0-3,8`. */
  readonly cpusetCpus?: string | undefined
  /** Memory nodes it may use, in the same notation. */
  readonly cpusetMems?: string | undefined
  /** Hard limit on memory. */
  readonly memory?: Bytes | undefined
  /** Soft limit on memory. */
  readonly memoryReservation?: Bytes | undefined
  /** Memory and swap together; -1: unlimited. */
  readonly memorySwap?: Bytes | undefined
  /** Processes that find no memory wait instead of being killed. */
  readonly oomKillDisable?: boolean | undefined
  /** Processes and threads; -1: unlimited. */
  readonly pidsLimit?: number | undefined
  /** Weight of block input and output, 10 to 1000. */
  readonly blkioWeight?: number | undefined
  /** The same for single devices: `/dev/sda:200`. */
  readonly blkioWeightDevice?: readonly string[] | undefined
}

/** Where one of a payload's standard streams leads. */
export type Stdio = "inherit" | "pipe" | "ignore"
type Output = Stdio | number | Writable
export type StdioOption =
  Stdio | "pty" | readonly [stdin: Stdio | number | Readable, stdout: Output, stderr: Output]

/** How {@link Image.exec}, {@link Image.run}, {@link Image.shell} and {@link Image.test} run. */
export interface ExecOptions extends ResourceLimits {
  /** Default `auto`. */
  readonly engine?: Engine | undefined
  /**
   * Default `pipe`; with `pty` the payload has a terminal, and {@link Running.terminal} is the other end. Or one for each of standard
   * input, output and error: a number is a descriptor of this process, a stream is read from or written to until the payload
   * ends, and stays open if it is written to.
   */
  readonly stdio?: StdioOption | undefined
  /** With `pty`; default 80 columns, 24 rows. */
  readonly terminalSize?: TerminalSize | undefined
  /**
   * So many of this process's descriptors, from 3 on, are the payload's too, under the same numbers; default 0. All have to
   * be open, and none may be Node's own, the image's or one that a secret was read from. They stay open here as well.
   */
  readonly preserveFds?: number | undefined
  /** Ends the payload and takes everything back. */
  readonly signal?: AbortSignal | undefined
  /** After so long, milliseconds, the payload is ended as by `signal`; {@link Running.exited} rejects with `ERR_RUN_TIMEOUT` then. */
  readonly timeoutMs?: number | undefined
  /** Of decoded blocks that the userspace engine keeps, bytes; default 8 MiB. */
  readonly cacheSize?: Bytes | undefined
  /**
   * This process becomes the payload's starter, as by execve(2): nothing of the program goes on, listeners of `exit` are
   * called before, and the process ends as the payload does. Needs `stdio` "inherit". Should the payload fail to start,
   * the process becomes this program, which says so: its last three arguments are for {@link startFailure}. Not for an image that
   * was verified: then this process stays, to look at the file again once the payload runs.
   */
  readonly replaceProcess?: FailureReporter | undefined
  /** Hears what the user should know, in a sentence. */
  readonly onNotice?: ((text: string) => void) | undefined

  /** `SRC[:DST[:OPTIONS]]`, several separated by commas, or the parts by name. */
  readonly binds?: readonly (string | BindSpec)[] | undefined
  /** `NAME=VALUE`, one each, stronger than what the image sets. */
  readonly env?: readonly string[] | undefined
  /** A file of assignments, evaluated by a shell on the host; `env` is stronger. */
  readonly envFile?: string | undefined
  /** Names of host variables that do not get in. */
  readonly noEnv?: readonly string[] | undefined
  /** Of the host's environment only TERM and the proxies; default false. */
  readonly cleanEnv?: boolean | undefined
  /** A shell inside expands the values of `env` and of variables like `APPTAINERENV_NAME`; default: literal. */
  readonly evaluate?: boolean | undefined
  /** Nothing is expanded, the words of an OCI image's run script neither. */
  readonly noEval?: boolean | undefined
  /** A minimal /dev, an empty home and an empty /tmp; default false. */
  readonly contain?: boolean | undefined
  /** `contain` with PID and IPC namespaces and a clean environment; default false. */
  readonly containAll?: boolean | undefined
  /** `containAll` with `noInit`, `noUmask`, `noEval` and `writableTmpfs`: what users of OCI runtimes expect. */
  readonly compat?: boolean | undefined
  /** `SRC[:DST]`: another home folder, seen inside as DST. */
  readonly home?: string | undefined
  /** No home folder is bound; default false. */
  readonly noHome?: boolean | undefined
  /** Working directory inside; default: the caller's if it is seen inside, else home, else `/`. */
  readonly cwd?: string | undefined
  /** Default mounts to leave out: `proc sys dev devpts home tmp hostfs cwd bind-paths`, or a destination. */
  readonly noMount?: readonly string[] | undefined
  /** Where `contain` puts home and tmp, and scratch folders lie; default: in memory. */
  readonly workdir?: string | undefined
  /** Folders inside that are empty and writable. */
  readonly scratch?: readonly string[] | undefined
  /** Addresses for resolv.conf. */
  readonly dns?: readonly string[] | undefined
  /** Name of the machine inside; implies `uts`. */
  readonly hostname?: string | undefined
  /** The payload starts with umask 0022 instead of the caller's. */
  readonly noUmask?: boolean | undefined
  /** A SCIF app of the image to run instead of the image's own script. */
  readonly app?: string | undefined
  /** The program that {@link Image.shell} starts. */
  readonly shell?: string | undefined
  /** NVIDIA's devices, libraries and programs of the host are seen inside. */
  readonly nv?: boolean | undefined
  /** Leaves `nv` out whatever asks for it. */
  readonly noNv?: boolean | undefined
  /** AMD's devices, libraries and programs of the host are seen inside. */
  readonly rocm?: boolean | undefined
  /** Leaves `rocm` out whatever asks for it. */
  readonly noRocm?: boolean | undefined

  /** `PATH[:ro]` of folders and images that lie over the root, the last on top. */
  readonly overlay?: readonly string[] | undefined
  /**
   * What is written over an encrypted image may be kept in the clear; default: only in an encrypted overlay or in memory.
   */
  readonly plainOverlay?: boolean | undefined
  /** Open encrypted overlays, and encrypted images that something is bound out of; default: none. */
  readonly overlayUnlock?: readonly CredentialSource[] | undefined
  /** The root can be written to, in memory. */
  readonly writableTmpfs?: boolean | undefined
  /** The image itself can be written to. */
  readonly writable?: boolean | undefined
  /** Inside, the caller is root. */
  readonly fakeroot?: boolean | undefined
  /** A user namespace for root as well. */
  readonly userns?: boolean | undefined
  /** A PID namespace. */
  readonly pid?: boolean | undefined
  /** No PID namespace, though `containAll` asks for one. */
  readonly noPid?: boolean | undefined
  /** An IPC namespace. */
  readonly ipc?: boolean | undefined
  /** A namespace for the machine's name. */
  readonly uts?: boolean | undefined
  /** A network namespace. */
  readonly net?: boolean | undefined
  /** What is in it: `none` is loopback only. */
  readonly network?: string | undefined
  /** For CNI networks. */
  readonly networkArgs?: readonly string[] | undefined
  /** A network namespace that is there already. */
  readonly netnsPath?: string | undefined
  /** With `pid`, the payload is process 1 itself. */
  readonly noInit?: boolean | undefined
  /** `seccomp:FILE`, `apparmor:PROFILE`, `selinux:LABEL`, `uid:N`, `gid:N[:N…]`. */
  readonly security?: readonly string[] | undefined
  /** Capabilities to add. */
  readonly addCaps?: readonly string[] | undefined
  /** Capabilities to drop. */
  readonly dropCaps?: readonly string[] | undefined
  /** Root keeps its privileges. */
  readonly keepPrivs?: boolean | undefined
  /** Root loses its privileges. */
  readonly noPrivs?: boolean | undefined
  /** Setuid programs of the image work, for root. */
  readonly allowSetuid?: boolean | undefined
  /** A TOML file of cgroup limits; excludes those of {@link ResourceLimits}. */
  readonly applyCgroups?: string | undefined
}

const bindSpec = shape<BindSpec>({
  source: required(path),
  destination: path,
  readOnly: flag,
  nested: flag,
  imageSource: path,
  imageId: count,
})
const bind: Check<string | BindSpec> = (value, name) =>
  typeof value === "string" ? value : bindSpec(value, name)

export const terminalSize: Check<TerminalSize> = shape<TerminalSize>({
  columns: required(count),
  rows: required(count),
})

const stdioWord: Check<Stdio> = oneOf("inherit", "pipe", "ignore")
const input = instance(Readable, "inherit, pipe, ignore, a descriptor or a stream")
const output = instance(Writable, "inherit, pipe, ignore, a descriptor or a stream")
const stream =
  <T>(object: Check<T>): Check<Stdio | number | T> =>
  (value, name) => {
    if (typeof value === "string") return stdioWord(value, name)
    return typeof value === "number" ? count(value, name) : object(value, name)
  }
const stdio: Check<StdioOption> = (value, name) => {
  if (!Array.isArray(value)) return oneOf("inherit", "pipe", "ignore", "pty")(value, name)
  if (value.length !== 3) throw new TypeError(`${name} has three entries, not ${value.length}`)
  return [
    stream(input)(value[0], `${name}[0]`),
    stream(output)(value[1], `${name}[1]`),
    stream(output)(value[2], `${name}[2]`),
  ]
}

const replacement: Check<FailureReporter> = shape<FailureReporter>({
  file: required(path),
  args: required(list(text)),
  env: required(variables),
})

/** What concerns the one who starts it: an instance has none of these. */
export const streamRows: Rows<
  Pick<ExecOptions, "stdio" | "terminalSize" | "preserveFds" | "replaceProcess" | "shell" | "timeoutMs">
> = {
  stdio,
  terminalSize,
  // Its range is said as that of the flag.
  preserveFds: number(-Infinity, Infinity),
  replaceProcess: replacement,
  shell: path,
  timeoutMs: milliseconds,
}

/** Each has a grammar or a range of its own, which `exec` says. */
export const instanceRows: Rows<Omit<ExecOptions, keyof typeof streamRows>> = {
  cpus: number(0),
  cpuShares: whole(-1),
  cpusetCpus: text,
  cpusetMems: text,
  memory: whole(-1),
  memoryReservation: whole(-1),
  memorySwap: whole(-1),
  oomKillDisable: flag,
  pidsLimit: whole(-1),
  blkioWeight: whole(-1),
  blkioWeightDevice: list(text),
  engine: engineName,
  signal: abortSignal,
  cacheSize: count,
  onNotice: callback,
  binds: list(bind),
  env: list(text),
  envFile: path,
  noEnv: list(text),
  cleanEnv: flag,
  evaluate: flag,
  noEval: flag,
  contain: flag,
  containAll: flag,
  compat: flag,
  home: text,
  noHome: flag,
  cwd: path,
  noMount: list(text),
  workdir: path,
  scratch: list(text),
  dns: list(text),
  hostname: text,
  noUmask: flag,
  app: text,
  nv: flag,
  noNv: flag,
  rocm: flag,
  noRocm: flag,
  overlay: list(text),
  plainOverlay: flag,
  overlayUnlock: credentialList,
  writableTmpfs: flag,
  writable: flag,
  fakeroot: flag,
  userns: flag,
  pid: flag,
  noPid: flag,
  ipc: flag,
  uts: flag,
  net: flag,
  network: text,
  networkArgs: list(text),
  netnsPath: path,
  noInit: flag,
  security: list(text),
  addCaps: list(text),
  dropCaps: list(text),
  keepPrivs: flag,
  noPrivs: flag,
  allowSetuid: flag,
  applyCgroups: path,
}
export const execRows: Rows<ExecOptions> = { ...streamRows, ...instanceRows }
export const execOptions: Check<ExecOptions> = shape(execRows)

/** An option that cannot be had: {@link ExecOptions} names it. */
export function optionError(option: keyof ExecOptions, why: string): RunError {
  const flag = option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
  return new RunError("ERR_RUN_OPTION", `--${flag}: ${why}`)
}

/** With what `containAll` and `compat` stand for spelled out. */
export function impliedOptions(options: ExecOptions): ExecOptions {
  let implied = options
  if (implied.compat === true)
    implied = { ...implied, containAll: true, noInit: true, noUmask: true, noEval: true, writableTmpfs: true }
  if (implied.containAll === true)
    implied = { ...implied, contain: true, cleanEnv: true, pid: implied.noPid !== true, ipc: true }
  if (implied.hostname !== undefined) implied = { ...implied, uts: true }
  return implied
}
