// What may be asked of a run, by a program and on the command line.
import * as is from "../arguments.ts"
import { credentialList, type CredentialSource } from "../encryption/credentials.ts"
import { engineName, type Engine } from "./engine.ts"
import { RunError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import type { FailureReporter } from "./handover.ts"
import { stdioOption, type StdioOption } from "./stdio.ts"
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

/** A network that a container is to be in. */
export interface NetworkSpec {
  readonly name: string
  /** Names by which it is found there. */
  readonly aliases?: readonly string[] | undefined
  /** Its address there; default: one that is free. */
  readonly address?: string | undefined
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

/** A file that is in memory alone, and read-only inside. */
export interface MemoryFile {
  /** Where it is seen: absolute. */
  readonly path: string
  /** At most a mebibyte. */
  readonly content: Uint8Array
  /** Permission bits; default 0o444. The payload's user owns it, or root does. */
  readonly mode?: number | undefined
}

/** What only a program can ask of a run. */
export interface ProgramOptions {
  /** Files that are given along, secrets for instance: never in an argument, the environment or a file of the machine. At most 32. */
  readonly files?: readonly MemoryFile[] | undefined
  /**
   * Default `pipe`; with `pty` the payload has a terminal, and {@link Running.terminal} is the other end. Or one for each of standard
   * input, output and error: a number is a descriptor of this process, a stream is read from or written to until the payload
   * ends, and stays open if it is written to.
   */
  readonly stdio?: StdioOption | undefined
  /** With `pty`; default 80 columns, 24 rows. */
  readonly terminalSize?: TerminalSize | undefined
  /** Ends the payload and takes everything back. */
  readonly signal?: AbortSignal | undefined
  /**
   * After so long, milliseconds from its start, the payload is ended as by `signal`: {@link Running.exited} rejects with
   * `ERR_RUN_TIMEOUT` then, or the start does, if the payload was not there yet.
   */
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
  /** Open encrypted overlays, and encrypted images that something is bound out of; default: none. */
  readonly overlayUnlock?: readonly CredentialSource[] | undefined
}

/** How {@link Image.exec}, {@link Image.run}, {@link Image.shell} and {@link Image.test} run. */
export interface ExecOptions extends ProgramOptions, ResourceLimits {
  /** Default `auto`. */
  readonly engine?: Engine | undefined
  /**
   * So many of this process's descriptors, from 3 on, are the payload's too, under the same numbers, or those of a list; default
   * none. All have to be open, and none may be Node's own, the image's or one that a secret was read from. They stay open here as
   * well.
   */
  readonly preserveFds?: number | readonly number[] | undefined

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
  /** `NAME:ADDRESS`, lines more of the machine's /etc/hosts. */
  readonly addHost?: readonly string[] | undefined
  /** Name of the machine inside; implies `uts`. */
  readonly hostname?: string | undefined
  /** The payload starts with umask 0022 instead of the caller's. */
  readonly noUmask?: boolean | undefined
  /**
   * In one container with others of this user's that ask for the same image in the same way: it is mounted once, and they see each other's
   * files in memory and, as far as the kernel lets them, each other's memory. It lives as long as one of them does. Default: where
   * Slurm, or a starter of parallel programs (PMI, PMIx, Open MPI), has started several of them. Their session is never another's.
   */
  readonly sharens?: boolean | undefined
  /** Alone, whatever asks for `sharens`. */
  readonly noSharens?: boolean | undefined
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
  /** With `nv` or `rocm`: of the libraries those of 32 bits as well, in a folder of their own. */
  readonly compat32?: boolean | undefined

  /** `PATH[:ro]` of folders and images that lie over the root, the last on top. */
  readonly overlay?: readonly string[] | undefined
  /**
   * What is written over an encrypted image may be kept in the clear; default: only in an encrypted overlay or in memory.
   */
  readonly plainOverlay?: boolean | undefined
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
  /**
   * `host` is the machine's; `none` has the loopback only; `pasta`, or `bridge`, is one of its own with a way out. Or networks that
   * {@link createNetwork} has made, by their names. Default `host`, and `pasta` with `net` or `publish`.
   */
  readonly network?: string | readonly (string | NetworkSpec)[] | undefined
  /** Names by which it is found in networks, beside its own: an instance's, and `hostname`. */
  readonly networkAlias?: readonly string[] | undefined
  /**
   * `[ADDRESS:]PORT:PORT[/PROTOCOL]`: ports of the machine, at an IPv4 address or all, that lead to the container's; each may be
   * `FIRST-LAST`, the protocol is `tcp` or `udp`.
   */
  readonly publish?: readonly string[] | undefined
  /** The same in the peers' words: `portmap=PORT:PORT[/PROTOCOL]`. */
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

const bindSpec = is.shape<BindSpec>({
  source: is.required(is.path),
  destination: is.path,
  readOnly: is.flag,
  nested: is.flag,
  imageSource: is.path,
  imageId: is.count,
})
const bind: is.Check<string | BindSpec> = (value, name) =>
  typeof value === "string" ? value : bindSpec(value, name)

export const bindList: is.Check<(string | BindSpec)[]> = is.list(bind)

const memoryFile = is.shape<MemoryFile>({
  path: is.required(is.path),
  content: is.required(is.bytes),
  mode: is.whole(0, 0o777),
})

const networkSpec = is.shape<NetworkSpec>({
  name: is.required(is.text),
  aliases: is.list(is.text),
  address: is.text,
})
const networks = is.list<string | NetworkSpec>((value, name) =>
  typeof value === "string" ? value : networkSpec(value, name),
)

const terminalSize: is.Check<TerminalSize> = is.shape<TerminalSize>({
  columns: is.required(is.count),
  rows: is.required(is.count),
})

const replacement: is.Check<FailureReporter> = is.shape<FailureReporter>({
  file: is.required(is.path),
  args: is.required(is.list(is.text)),
  env: is.required(is.variables),
})

/** Kinds of value on the command line, and what an option of each is here. */
export interface ExecOptionKinds {
  readonly flag: boolean
  readonly text: string
  readonly path: string
  /** With commas between them. */
  readonly words: readonly string[]
  /** A comma ends one only where another follows. */
  readonly assignments: readonly string[]
  readonly binds: readonly (string | BindSpec)[]
  readonly mounts: readonly (string | BindSpec)[]
  readonly integer: number
  readonly decimal: number
  /** -1 stands for itself. */
  readonly size: Bytes
  readonly descriptors: number | readonly number[]
  readonly descriptorList: readonly number[]
  readonly engine: Engine
  readonly networks: string | readonly (string | NetworkSpec)[]
}

const descriptor = is.number(-Infinity, Infinity)

/** Grammars and ranges of their own are said by `exec`, and that of a flag as the flag's. */
const kinds: { readonly [K in keyof ExecOptionKinds]: is.Check<ExecOptionKinds[K]> } = {
  flag: is.flag,
  text: is.text,
  path: is.path,
  words: is.list(is.text),
  assignments: is.list(is.text),
  binds: bindList,
  mounts: bindList,
  integer: is.whole(-1),
  decimal: is.number(0),
  size: is.whole(-1),
  descriptors: (value, name) =>
    Array.isArray(value) ? is.list(descriptor)(value, name) : descriptor(value, name),
  descriptorList: is.list(descriptor),
  engine: engineName,
  networks: (value, name) => (typeof value === "string" ? value : networks(value, name)),
}

type KindOf<T> = {
  [K in keyof ExecOptionKinds]: ExecOptionKinds[K] extends T ? K : never
}[keyof ExecOptionKinds]

/** How the command line has an option of {@link ExecOptions}. */
export type ExecOptionRow<T = unknown> = readonly [
  kind: KindOf<T>,
  flags: string,
  help: string,
  more?: {
    /** That stand for it behind a prefix; the first that is set counts. Default: named like the flag. */
    readonly variables?: readonly string[]
    /** Variables add to the flags instead of giving way to them. */
    readonly adds?: true
    /** Only these commands have it, and no instance. */
    readonly only?: readonly ("exec" | "run" | "shell" | "test")[]
    /** Joining an instance takes it, too; all else was settled when that was started. */
    readonly joins?: true
    /** A second flag for the same. */
    readonly also?: ExecOptionRow<T>
  },
]

/** What `sifcrypt exec`, `run`, `shell`, `test` and `instance` take, in the order of --help. */
export const execOptionTable: {
  readonly [K in Exclude<keyof ExecOptions, keyof ProgramOptions>]-?: ExecOptionRow<
    NonNullable<ExecOptions[K]>
  >
} = {
  engine: ["engine", "--engine <engine>", "auto (default), kernel, userspace or memory"],
  // What of the host is seen.
  binds: [
    "binds",
    "-B, --bind <src[:dst[:opts]]>",
    "a file or folder of the host to be seen inside (repeatable, or separated by commas)",
    {
      variables: ["BIND", "BINDPATH"],
      adds: true,
      also: [
        "mounts",
        "--mount <spec>",
        "the same as type=bind,source=SRC,destination=DST[,ro] (repeatable)",
      ],
    },
  ],
  home: ["text", "-H, --home <src[:dst]>", "another home folder, seen inside as DST"],
  noHome: ["flag", "--no-home", "bind no home folder"],
  noMount: [
    "words",
    "--no-mount <list>",
    "leave out proc, sys, dev, devpts, home, tmp, hostfs, cwd, bind-paths or a destination",
  ],
  contain: ["flag", "-c, --contain", "a minimal /dev, and an empty home and /tmp"],
  containAll: ["flag", "-C, --containall", "--contain, PID and IPC namespaces, and --cleanenv"],
  compat: [
    "flag",
    "--compat",
    "--containall --no-init --no-umask --no-eval --writable-tmpfs, as OCI runtimes do",
  ],
  workdir: [
    "path",
    "-W, --workdir <dir>",
    "where --contain puts home and /tmp, and --scratch its folders; default: in memory",
  ],
  scratch: [
    "words",
    "-S, --scratch <dir>",
    "an empty folder inside that can be written to (repeatable, or separated by commas)",
    { variables: ["SCRATCH", "SCRATCHDIR"] },
  ],
  cwd: [
    "path",
    "--cwd <dir>",
    "working directory inside",
    {
      variables: ["CWD", "TARGET_CWD"],
      joins: true,
      also: ["path", "--pwd <dir>", "the same as --cwd", { variables: ["PWD", "TARGET_PWD"] }],
    },
  ],
  dns: ["words", "--dns <list>", "addresses of name servers, separated by commas"],
  addHost: [
    "words",
    "--add-host <name:ip>",
    "a name and its address for /etc/hosts (repeatable, or separated by commas)",
  ],
  hostname: ["text", "--hostname <name>", "name of the machine inside"],
  nv: ["flag", "--nv", "NVIDIA's devices, libraries and programs"],
  noNv: ["flag", "--no-nv", "not even if --nv is asked for", { variables: ["NV_OFF", "NO_NV"] }],
  rocm: ["flag", "--rocm", "AMD's devices, libraries and programs"],
  compat32: ["flag", "--compat32", "with --nv or --rocm: their libraries of 32 bits, too"],
  noRocm: ["flag", "--no-rocm", "not even if --rocm is asked for", { variables: ["ROCM_OFF", "NO_ROCM"] }],
  // The environment, and what is run in it.
  env: [
    "assignments",
    "--env <name=value>",
    "set a variable inside, literally (repeatable)",
    { variables: [], joins: true },
  ],
  envFile: ["path", "--env-file <file>", "set variables from a file of assignments", { joins: true }],
  noEnv: [
    "words",
    "--no-env <list>",
    "variables of the host to leave out",
    { variables: ["NOENV"], joins: true },
  ],
  cleanEnv: [
    "flag",
    "-e, --cleanenv",
    "pass nothing of the environment on but TERM and the proxies",
    { joins: true },
  ],
  evaluate: [
    "flag",
    "--eval",
    "let a shell inside expand the values of --env, as the peers do",
    { joins: true },
  ],
  noEval: [
    "flag",
    "--no-eval",
    "expand nothing, the words of an OCI image's run script neither",
    { joins: true },
  ],
  noUmask: ["flag", "--no-umask", "start with umask 0022 instead of the caller's", { joins: true }],
  app: ["text", "--app <name>", "an app of the image", { variables: ["APP", "APPNAME"], joins: true }],
  shell: ["path", "-s, --shell <path>", "the program to start", { only: ["shell"], joins: true }],
  preserveFds: [
    "descriptors",
    "--preserve-fds <n>",
    "descriptors 3 to n + 2 are the payload's as well; or those of a list",
    {
      variables: [],
      only: ["exec", "run", "shell", "test"],
      also: ["descriptorList", "--preserve-fd <list>", "this descriptor, or these", { variables: [] }],
    },
  ],
  // The root file system.
  overlay: [
    "words",
    "-o, --overlay <path[:ro]>",
    "lies over the root: a folder, an image (repeatable)",
    { variables: ["OVERLAY", "OVERLAYIMAGE"] },
  ],
  plainOverlay: [
    "flag",
    "--plain-overlay",
    "let what is written over an encrypted image be kept in the clear",
  ],
  writableTmpfs: ["flag", "--writable-tmpfs", "let the root be written to, in memory"],
  writable: ["flag", "-w, --writable", "let the image itself be written to"],
  // Who the payload is, and what it is kept apart from.
  fakeroot: ["flag", "-f, --fakeroot", "be root inside"],
  userns: [
    "flag",
    "-u, --userns",
    "a user namespace, for root as well",
    { variables: ["USERNS", "UNSHARE_USERNS"] },
  ],
  pid: ["flag", "-p, --pid", "a PID namespace", { variables: ["PID", "UNSHARE_PID"] }],
  noPid: ["flag", "--no-pid", "no PID namespace, though --containall asks for one"],
  noInit: ["flag", "--no-init", "with --pid, the payload is process 1 itself", { variables: ["NOSHIMINIT"] }],
  sharens: [
    "flag",
    "--sharens",
    "in one container with others that ask for the same; default where many are started at once, as by mpirun and srun",
    { only: ["exec", "run", "shell", "test"] },
  ],
  noSharens: [
    "flag",
    "--no-sharens",
    "alone, though --sharens or a launcher asks for it",
    { only: ["exec", "run", "shell", "test"] },
  ],
  ipc: ["flag", "-i, --ipc", "an IPC namespace", { variables: ["IPC", "UNSHARE_IPC"] }],
  uts: ["flag", "--uts", "a namespace for the machine's name", { variables: ["UTS", "UNSHARE_UTS"] }],
  net: ["flag", "-n, --net", "a network namespace", { variables: ["NET", "UNSHARE_NET"] }],
  network: [
    "networks",
    "--network <name>",
    "host, the machine's; none, the loopback only; pasta or bridge, its own with a way out; or networks by name (repeatable)",
  ],
  networkAlias: [
    "words",
    "--network-alias <name>",
    "a name more by which it is found in its networks (repeatable, or separated by commas)",
  ],
  publish: [
    "words",
    "--publish <[ip:]port:port[/udp]>",
    "a port of the machine that leads to one of the container's network (repeatable, or separated by commas)",
  ],
  networkArgs: ["words", "--network-args <args>", "the same as portmap=PORT:PORT[/PROTOCOL]"],
  netnsPath: ["path", "--netns-path <path>", "a network namespace that is there already"],
  security: [
    "words",
    "--security <list>",
    "seccomp:FILE, apparmor:PROFILE, selinux:LABEL, uid:N, gid:N[:N...]",
  ],
  addCaps: ["words", "--add-caps <list>", "capabilities to add"],
  dropCaps: ["words", "--drop-caps <list>", "capabilities to drop"],
  keepPrivs: ["flag", "--keep-privs", "let root keep its privileges"],
  noPrivs: ["flag", "--no-privs", "take all privileges from root"],
  allowSetuid: ["flag", "--allow-setuid", "let setuid programs of the image work, for root"],
  // Limits.
  applyCgroups: ["path", "--apply-cgroups <file>", "limits from a TOML file"],
  cpus: ["decimal", "--cpus <n>", "processors' worth of time"],
  cpuShares: ["integer", "--cpu-shares <n>", "weight of processor time"],
  cpusetCpus: ["text", "--cpuset-cpus <list>", "processors it may run on"],
  cpusetMems: ["text", "--cpuset-mems <list>", "memory nodes it may use"],
  memory: ["size", "--memory <size>", "limit on memory"],
  memoryReservation: ["size", "--memory-reservation <size>", "soft limit on memory"],
  memorySwap: ["size", "--memory-swap <size>", "limit on memory and swap together, -1: none"],
  oomKillDisable: ["flag", "--oom-kill-disable", "wait for memory instead of being killed"],
  pidsLimit: ["integer", "--pids-limit <n>", "limit on processes, -1: none"],
  blkioWeight: ["integer", "--blkio-weight <n>", "weight of block input and output, 10 to 1000"],
  blkioWeightDevice: ["words", "--blkio-weight-device <device:n>", "the same for one device"],
}

const { shell, preserveFds, sharens, noSharens, ...containerRows } = Object.fromEntries(
  Object.entries(execOptionTable).map(([key, [kind]]) => [key, kinds[kind]]),
) as unknown as is.Rows<Omit<ExecOptions, keyof ProgramOptions>>

/** What concerns the one who starts it: an instance has none of these. */
export const streamRows: is.Rows<
  Pick<
    ExecOptions,
    | "stdio"
    | "terminalSize"
    | "preserveFds"
    | "replaceProcess"
    | "shell"
    | "timeoutMs"
    | "sharens"
    | "noSharens"
  >
> = {
  ...{ stdio: stdioOption, terminalSize, preserveFds, shell, sharens, noSharens },
  replaceProcess: replacement,
  timeoutMs: is.milliseconds,
}

export const instanceRows: is.Rows<Omit<ExecOptions, keyof typeof streamRows>> = {
  ...containerRows,
  signal: is.abortSignal,
  cacheSize: is.count,
  overlayUnlock: credentialList,
  files: is.list(memoryFile),
  onNotice: is.callback,
}
export const execOptions: is.Check<ExecOptions> = is.shape({ ...streamRows, ...instanceRows })

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
