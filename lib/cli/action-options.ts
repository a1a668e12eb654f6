// The options of exec, run, shell, test and of instances: one table of flags, the variables that stand for them, and how
// both are read.
import { Option, type Command } from "commander"
import { RunError, type Engine, type ExecOptions } from "../index.ts"
import { parseCsv } from "./csv.ts"
import { parseEngine } from "./engine.ts"
import { parseMountSpec } from "./mount-spec.ts"
import { notice } from "./terminal.ts"
import { collect, parseDecimal, parseInteger, parseSize, words as listed } from "./values.ts"

/** How the words of a flag, or the text of a variable, become an option's value. */
interface Reader<T> {
  /** Is there a value behind the flag? */
  readonly takesValue: boolean
  /** Every use of the flag, in order. */
  read(texts: readonly string[]): T
}

interface Definition<K extends keyof ExecOptions> {
  /** Where two lines of the table have the same one, both add up or the first wins. */
  readonly key: K
  /** As commander takes them. */
  readonly flags: string
  readonly help: string
  readonly reader: Reader<NonNullable<ExecOptions[K]>>
  /** Variables that stand for it, without their prefix; the first that is set counts. */
  readonly env?: readonly string[]
  /** Variables add to the flags instead of giving way to them. */
  readonly adds?: true
  /** Only these commands have it. */
  readonly only?: readonly string[]
}

type ActionOption = { [K in keyof ExecOptions]-?: Definition<K> }[keyof ExecOptions]

const last = (texts: readonly string[]): string => texts.at(-1) ?? ""

const text: Reader<string> = { takesValue: true, read: last }
const texts: Reader<readonly string[]> = { takesValue: true, read: (all) => all }
/** Separated by commas, quoted as in CSV. */
const words: Reader<readonly string[]> = {
  takesValue: true,
  read: (all) => all.flatMap(listed).filter((word) => word !== ""),
}

const yes: ReadonlySet<string> = new Set(["1", "t", "T", "TRUE", "true", "True"])
const no: ReadonlySet<string> = new Set(["0", "f", "F", "FALSE", "false", "False"])

const flag: Reader<boolean> = {
  takesValue: false,
  read: (all) => {
    const word = last(all)
    if (!yes.has(word) && !no.has(word)) throw new RangeError(`${word} is neither true nor false`)
    return yes.has(word)
  },
}

function number(what: string, parse: (text: string) => number): Reader<number> {
  return {
    takesValue: true,
    read: (all) => {
      const value = parse(last(all))
      if (Number.isNaN(value)) throw new RangeError(`${last(all)} is ${what}`)
      return value
    },
  }
}

const integer = number("not an integer", parseInteger)
const decimal = number("not a number", parseDecimal)
/** -1 stands for itself. */
const size = number("no size", (word) => (word === "-1" ? -1 : parseSize(word)))

/** A comma ends an assignment where another one follows; elsewhere it belongs to the value. Quotes as in CSV keep it there. */
const assignments: Reader<readonly string[]> = {
  takesValue: true,
  read: (all) =>
    all.flatMap((one) =>
      one.startsWith('"') || one.includes(',"') ? parseCsv(one) : one.split(/,(?=[A-Za-z_][A-Za-z0-9_]*=)/),
    ),
}

const mounts: Reader<NonNullable<ExecOptions["binds"]>> = {
  takesValue: true,
  read: (all) =>
    all
      .flatMap((one) => one.split("\n"))
      .filter((line) => line.trim() !== "")
      .map(parseMountSpec),
}

const engine: Reader<Engine> = { takesValue: true, read: (all) => parseEngine(last(all)) }

/** In the order of --help. */
const table: readonly ActionOption[] = [
  {
    key: "engine",
    flags: "--engine <engine>",
    help: "auto (default), kernel or userspace",
    reader: engine,
    env: ["ENGINE"],
  },
  // What of the host is seen.
  {
    key: "binds",
    flags: "-B, --bind <src[:dst[:opts]]>",
    help: "a file or folder of the host to be seen inside (repeatable, or separated by commas)",
    reader: texts,
    env: ["BIND", "BINDPATH"],
    adds: true,
  },
  {
    key: "binds",
    flags: "--mount <spec>",
    help: "the same as type=bind,source=SRC,destination=DST[,ro] (repeatable)",
    reader: mounts,
    env: ["MOUNT"],
    adds: true,
  },
  {
    key: "home",
    flags: "-H, --home <src[:dst]>",
    help: "another home folder, seen inside as DST",
    reader: text,
    env: ["HOME"],
  },
  { key: "noHome", flags: "--no-home", help: "bind no home folder", reader: flag, env: ["NO_HOME"] },
  {
    key: "noMount",
    flags: "--no-mount <list>",
    help: "leave out proc, sys, dev, devpts, home, tmp, hostfs, cwd, bind-paths or a destination",
    reader: words,
    env: ["NO_MOUNT"],
  },
  {
    key: "contain",
    flags: "-c, --contain",
    help: "a minimal /dev, and an empty home and /tmp instead of the host's",
    reader: flag,
    env: ["CONTAIN"],
  },
  {
    key: "containAll",
    flags: "-C, --containall",
    help: "--contain, PID and IPC namespaces, and --cleanenv",
    reader: flag,
    env: ["CONTAINALL"],
  },
  {
    key: "compat",
    flags: "--compat",
    help: "--containall --no-init --no-umask --no-eval --writable-tmpfs, as OCI runtimes do",
    reader: flag,
    env: ["COMPAT"],
  },
  {
    key: "workdir",
    flags: "-W, --workdir <dir>",
    help: "where --contain puts home and /tmp, and --scratch its folders; default: in memory",
    reader: text,
    env: ["WORKDIR"],
  },
  {
    key: "scratch",
    flags: "-S, --scratch <dir>",
    help: "an empty folder inside that can be written to (repeatable, or separated by commas)",
    reader: words,
    env: ["SCRATCH", "SCRATCHDIR"],
  },
  {
    key: "cwd",
    flags: "--cwd <dir>",
    help: "working directory inside",
    reader: text,
    env: ["CWD", "TARGET_CWD"],
  },
  {
    key: "cwd",
    flags: "--pwd <dir>",
    help: "the same as --cwd",
    reader: text,
    env: ["PWD", "TARGET_PWD"],
  },
  {
    key: "dns",
    flags: "--dns <list>",
    help: "addresses of name servers, separated by commas",
    reader: words,
    env: ["DNS"],
  },
  {
    key: "hostname",
    flags: "--hostname <name>",
    help: "name of the machine inside",
    reader: text,
    env: ["HOSTNAME"],
  },
  { key: "nv", flags: "--nv", help: "NVIDIA's devices, libraries and programs", reader: flag, env: ["NV"] },
  {
    key: "noNv",
    flags: "--no-nv",
    help: "not even if --nv is asked for",
    reader: flag,
    env: ["NV_OFF", "NO_NV"],
  },
  {
    key: "rocm",
    flags: "--rocm",
    help: "AMD's devices, libraries and programs",
    reader: flag,
    env: ["ROCM"],
  },
  {
    key: "noRocm",
    flags: "--no-rocm",
    help: "not even if --rocm is asked for",
    reader: flag,
    env: ["ROCM_OFF", "NO_ROCM"],
  },
  // The environment, and what is run in it.
  {
    key: "env",
    flags: "--env <name=value>",
    help: "set a variable inside, literally (repeatable, or separated by commas)",
    reader: assignments,
  },
  {
    key: "envFile",
    flags: "--env-file <file>",
    help: "set variables from a file of assignments",
    reader: text,
    env: ["ENV_FILE"],
  },
  {
    key: "noEnv",
    flags: "--no-env <list>",
    help: "variables of the host to leave out",
    reader: words,
    env: ["NOENV"],
  },
  {
    key: "cleanEnv",
    flags: "-e, --cleanenv",
    help: "pass nothing of the environment on but TERM and the proxies",
    reader: flag,
    env: ["CLEANENV"],
  },
  {
    key: "evaluate",
    flags: "--eval",
    help: "let a shell inside expand the values of --env, as the peers do",
    reader: flag,
    env: ["EVAL"],
  },
  {
    key: "noEval",
    flags: "--no-eval",
    help: "expand nothing, the words of an OCI image's run script neither",
    reader: flag,
    env: ["NO_EVAL"],
  },
  {
    key: "noUmask",
    flags: "--no-umask",
    help: "start with umask 0022 instead of the caller's",
    reader: flag,
    env: ["NO_UMASK"],
  },
  { key: "app", flags: "--app <name>", help: "an app of the image", reader: text, env: ["APP", "APPNAME"] },
  {
    key: "shell",
    flags: "-s, --shell <path>",
    help: "the program to start",
    reader: text,
    env: ["SHELL"],
    only: ["shell"],
  },
  {
    key: "preserveFds",
    flags: "--preserve-fds <n>",
    help: "descriptors 3 to n + 2 are the payload's as well",
    reader: integer,
    only: ["exec", "run", "shell", "test"],
  },
  // The root file system.
  {
    key: "overlay",
    flags: "-o, --overlay <path[:ro]>",
    help: "a folder or an image to lie over the root (repeatable, the last on top)",
    reader: words,
    env: ["OVERLAY", "OVERLAYIMAGE"],
  },
  {
    key: "plainOverlay",
    flags: "--plain-overlay",
    help: "let what is written over an encrypted image be kept in the clear",
    reader: flag,
    env: ["PLAIN_OVERLAY"],
  },
  {
    key: "writableTmpfs",
    flags: "--writable-tmpfs",
    help: "let the root be written to, in memory",
    reader: flag,
    env: ["WRITABLE_TMPFS"],
  },
  {
    key: "writable",
    flags: "-w, --writable",
    help: "let the image itself be written to",
    reader: flag,
    env: ["WRITABLE"],
  },
  // Who the payload is, and what it is kept apart from.
  { key: "fakeroot", flags: "-f, --fakeroot", help: "be root inside", reader: flag, env: ["FAKEROOT"] },
  {
    key: "userns",
    flags: "-u, --userns",
    help: "a user namespace, for root as well",
    reader: flag,
    env: ["USERNS", "UNSHARE_USERNS"],
  },
  { key: "pid", flags: "-p, --pid", help: "a PID namespace", reader: flag, env: ["PID", "UNSHARE_PID"] },
  {
    key: "noPid",
    flags: "--no-pid",
    help: "no PID namespace, though --containall asks for one",
    reader: flag,
    env: ["NO_PID"],
  },
  {
    key: "noInit",
    flags: "--no-init",
    help: "with --pid, the payload is process 1 itself",
    reader: flag,
    env: ["NOSHIMINIT"],
  },
  { key: "ipc", flags: "-i, --ipc", help: "an IPC namespace", reader: flag, env: ["IPC", "UNSHARE_IPC"] },
  {
    key: "uts",
    flags: "--uts",
    help: "a namespace for the machine's name",
    reader: flag,
    env: ["UTS", "UNSHARE_UTS"],
  },
  { key: "net", flags: "-n, --net", help: "a network namespace", reader: flag, env: ["NET", "UNSHARE_NET"] },
  {
    key: "network",
    flags: "--network <name>",
    help: "none: a network of its own with loopback only",
    reader: text,
    env: ["NETWORK"],
  },
  {
    key: "networkArgs",
    flags: "--network-args <args>",
    help: "for CNI networks",
    reader: words,
    env: ["NETWORK_ARGS"],
  },
  {
    key: "netnsPath",
    flags: "--netns-path <path>",
    help: "a network namespace that is there already",
    reader: text,
    env: ["NETNS_PATH"],
  },
  {
    key: "security",
    flags: "--security <list>",
    help: "seccomp:FILE, apparmor:PROFILE, selinux:LABEL, uid:N, gid:N[:N...]",
    reader: words,
    env: ["SECURITY"],
  },
  {
    key: "addCaps",
    flags: "--add-caps <list>",
    help: "capabilities to add",
    reader: words,
    env: ["ADD_CAPS"],
  },
  {
    key: "dropCaps",
    flags: "--drop-caps <list>",
    help: "capabilities to drop",
    reader: words,
    env: ["DROP_CAPS"],
  },
  {
    key: "keepPrivs",
    flags: "--keep-privs",
    help: "let root keep its privileges",
    reader: flag,
    env: ["KEEP_PRIVS"],
  },
  {
    key: "noPrivs",
    flags: "--no-privs",
    help: "take all privileges from root",
    reader: flag,
    env: ["NO_PRIVS"],
  },
  {
    key: "allowSetuid",
    flags: "--allow-setuid",
    help: "let setuid programs of the image work, for root",
    reader: flag,
    env: ["ALLOW_SETUID"],
  },
  // Limits.
  {
    key: "applyCgroups",
    flags: "--apply-cgroups <file>",
    help: "limits from a TOML file",
    reader: text,
    env: ["APPLY_CGROUPS"],
  },
  { key: "cpus", flags: "--cpus <n>", help: "processors' worth of time", reader: decimal, env: ["CPUS"] },
  {
    key: "cpuShares",
    flags: "--cpu-shares <n>",
    help: "weight of processor time",
    reader: integer,
    env: ["CPU_SHARES"],
  },
  {
    key: "cpusetCpus",
    flags: "--cpuset-cpus <list>",
    help: "processors it may run on",
    reader: text,
    env: ["CPUSET_CPUS"],
  },
  {
    key: "cpusetMems",
    flags: "--cpuset-mems <list>",
    help: "memory nodes it may use",
    reader: text,
    env: ["CPUSET_MEMS"],
  },
  { key: "memory", flags: "--memory <size>", help: "limit on memory", reader: size, env: ["MEMORY"] },
  {
    key: "memoryReservation",
    flags: "--memory-reservation <size>",
    help: "soft limit on memory",
    reader: size,
    env: ["MEMORY_RESERVATION"],
  },
  {
    key: "memorySwap",
    flags: "--memory-swap <size>",
    help: "limit on memory and swap together, -1: none",
    reader: size,
    env: ["MEMORY_SWAP"],
  },
  {
    key: "oomKillDisable",
    flags: "--oom-kill-disable",
    help: "wait for memory instead of being killed",
    reader: flag,
    env: ["OOM_KILL_DISABLE"],
  },
  {
    key: "pidsLimit",
    flags: "--pids-limit <n>",
    help: "limit on processes, -1: none",
    reader: integer,
    env: ["PIDS_LIMIT"],
  },
  {
    key: "blkioWeight",
    flags: "--blkio-weight <n>",
    help: "weight of block input and output, 10 to 1000",
    reader: integer,
    env: ["BLKIO_WEIGHT"],
  },
  {
    key: "blkioWeightDevice",
    flags: "--blkio-weight-device <device:n>",
    help: "the same for one device",
    reader: words,
    env: ["BLKIO_WEIGHT_DEVICE"],
  },
]

/** What the peers have and we do not, and why. */
const absent: readonly (readonly [flags: string, why: string])[] = [
  ["--unsquash", "the image is never unpacked to disk: it is read where it lies, by everybody"],
  [
    "--nvccli",
    "nvidia-container-cli needs privileges that are not asked for here: --nv binds the same files",
  ],
  [
    "--fusemount <spec>",
    "file systems of the payload's are not started here: mount them on the host and --bind them",
  ],
  ["--runscript-timeout <duration>", "scripts of the image may take as long as they like"],
  ["--boot", "no init system is started in a container here"],
  ["--sharens", "a namespace is not shared between containers: start an instance"],
  ["--dmtcp-launch <name>", "checkpoints are not made here"],
  ["--dmtcp-restart <name>", "checkpoints are not made here"],
  ["--device <name>", "CDI is not known here: --bind the device's node"],
  ["--cdi-dirs <list>", "CDI is not known here: --bind the device's node"],
]

/** What the peers need to make a file of an image that lies elsewhere; here it is a file already. */
const unneeded = [
  "--disable-cache",
  "--tmpdir <dir>",
  "--docker-login",
  "--docker-host <host>",
  "--authfile <file>",
  "--no-https",
]

/** Name of the property in which commander leaves the words of a flag. */
function property(flags: string): string {
  return new Option(flags).name()
}

function newOption(flags: string, help: string): Option {
  const option = new Option(flags, help)
  // --no-home is an option of its own here, not the opposite of --home.
  option.negate = false
  // Under the flag's own name: two flags may stand for one option, and others have names of their own choosing.
  option.attributeName = () => `action ${option.name()}`
  return option
}

/** Adds every option of the table to a command that starts a payload. */
export function addActionOptions(command: Command, name: string): Command {
  for (const { flags, help, reader, only } of table) {
    if (only?.includes(name) === false) continue
    const option = newOption(flags, help)
    if (reader.takesValue) option.argParser(collect)
    command.addOption(option)
  }
  for (const [flags] of absent) command.addOption(newOption(flags, "not here").hideHelp())
  for (const flags of unneeded) command.addOption(newOption(flags, "accepted: it changes nothing").hideHelp())
  return command
}

/** In the order in which they count. */
const prefixes = ["SIFCRYPT_", "APPTAINER_", "SINGULARITY_"] as const

type Variables = Readonly<Record<string, string | undefined>>

/** What variables say of an option: all values if they add up, else the first. */
function fromVariables(option: ActionOption, variables: Variables): string[] {
  const found: string[] = []
  const seen = new Map<string, { readonly name: string; readonly value: string }>()
  for (const prefix of prefixes)
    for (const key of option.env ?? []) {
      const name = `${prefix}${key}`
      const value = variables[name]
      if (value === undefined || value.trim() === "") continue
      const stronger = seen.get(key)
      if (stronger === undefined) {
        seen.set(key, { name, value })
        found.push(option.adds === true ? value : value.trim())
      } else if (stronger.value !== value)
        notice(`${name} and ${stronger.name} have different values: the latter counts`)
    }
  return option.adds === true ? found : found.slice(0, 1)
}

/**
 * What flags and variables ask for.
 *
 * @param flags - As commander has parsed them.
 * @throws RunError `ERR_RUN_OPTION` for what makes no sense.
 */
export function actionOptions(
  name: string,
  flags: Readonly<Record<string, unknown>>,
  variables: Variables,
): ExecOptions {
  for (const [absentFlags, why] of absent) {
    const long = property(absentFlags)
    if (flags[`action ${long}`] !== undefined) throw new RunError("ERR_RUN_OPTION", `--${long}: ${why}`)
  }
  const options = new Map<keyof ExecOptions, unknown>()
  for (const option of table) {
    if (option.only?.includes(name) === false) continue
    const long = property(option.flags)
    const given = flags[`action ${long}`]
    const words = given === undefined ? [] : given === true ? ["true"] : (given as string[])
    if (words.length === 0 || option.adds === true) words.push(...fromVariables(option, variables))
    const earlier = options.get(option.key)
    if (words.length === 0 || (earlier !== undefined && option.adds !== true)) continue
    try {
      const value = option.reader.read(words)
      options.set(option.key, option.adds === true ? [earlier ?? [], value].flat() : value)
    } catch (error) {
      if (error instanceof RunError || !(error instanceof Error)) throw error
      throw new RunError("ERR_RUN_OPTION", `--${long}: ${error.message}`, { cause: error })
    }
  }
  return Object.fromEntries(options)
}
