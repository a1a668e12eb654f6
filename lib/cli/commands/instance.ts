import { InvalidArgumentError } from "commander"
import { writeFileSync } from "node:fs"
import { constants, totalmem, userInfo } from "node:os"
import { setTimeout as sleep } from "node:timers/promises"
import {
  listInstances,
  openInstance,
  parseRestart,
  RunError,
  type Instance,
  type InstanceOptions,
  type InstanceStats,
  type ServiceOptions,
} from "../../index.ts"
import { actionOptions, actionRows, commonActions } from "../action-options.ts"
import { command, type CommandRow, type FlagsOf } from "../command.ts"
import { withCredentials } from "../credentials.ts"
import { stateOf } from "../instance-state.ts"
import { interruption } from "../interrupt.ts"
import { isPeer } from "../name.ts"
import { cipherRows, imageRows, openImage } from "../opening.ts"
import {
  columns,
  GAP,
  errors,
  jsonRow,
  output,
  print,
  printJson,
  printLines,
  writeAll,
  writePiece,
} from "../output.ts"
import { humanBytes, inform, notice, printable } from "../terminal.ts"
import { BYTES, count, duration, each, flag, pairs, SECONDS, size as sizeOption, text } from "../values.ts"

function parseSignal(text: string): NodeJS.Signals {
  const name = /^\d+$/.test(text)
    ? Object.entries(constants.signals).find(([, number]) => number === Number(text))?.[0]
    : `SIG${text.toUpperCase().replace(/^SIG/, "")}`
  if (name === undefined || !(name in constants.signals)) throw new InvalidArgumentError("No such signal.")
  return name as NodeJS.Signals
}

/** `*` and `?` as in file names, as the peers take them. */
function matches(name: string, pattern: string): boolean {
  let [at, inPattern] = [0, 0]
  // Behind the last star, and where what it stands for ends: no earlier one has to be tried again.
  let [star, end] = [-1, 0]
  while (at < name.length) {
    const letter = pattern[inPattern]
    if (letter === "*") [star, end] = [++inPattern, at]
    else if (letter === "?" || letter === name[at]) [at, inPattern] = [at + 1, inPattern + 1]
    else if (star >= 0) [at, inPattern] = [++end, star]
    else return false
  }
  return /^\**$/.test(pattern.slice(inPattern))
}

async function matching(pattern: string): Promise<Instance[]> {
  return (await listInstances()).filter(({ name }) => matches(name, pattern))
}

/** Whose instances are meant. */
const userRow = ["-u, --user <name>", "those of this user (root only)", text] as const

/** What the system calls this user, if it does. */
function ownName(): string | undefined {
  try {
    return userInfo().username
  } catch {
    return undefined
  }
}

/** Root looks for another user's instances as that user: where he keeps them, and with no more rights than his. */
function actAs(name: string | undefined): void {
  if (name === undefined) return
  if (process.geteuid?.() !== 0) {
    if (ownName() === name) return
    throw new RunError("ERR_INSTANCE_NONE", `only root sees the instances of ${name}`)
  }
  const user = /^\d+$/.test(name) ? Number(name) : name
  let home: string
  try {
    process.seteuid?.(user)
    const { gid, homedir } = userInfo()
    home = homedir
    process.seteuid?.(0)
    process.setgroups?.([])
    process.setegid?.(gid)
    process.seteuid?.(user)
  } catch (cause) {
    throw new RunError("ERR_INSTANCE_NONE", `there is no user ${name}`, { cause })
  }
  process.env["HOME"] = home
  for (const variable of ["XDG_RUNTIME_DIR", "XDG_CACHE_HOME"]) Reflect.deleteProperty(process.env, variable)
}

const stopRows = {
  all: ["-a, --all", "all of yours", flag],
  signal: [
    "-s, --signal <signal>",
    "what it gets first (default: as it was started, else TERM)",
    parseSignal,
  ],
  timeout: [
    "-t, --timeout <seconds>",
    "kill it after so long (default: as it was started, else 10)",
    duration(SECONDS, 0, 86_400),
  ],
  force: ["-F, --force", "kill it at once", flag],
  json: jsonRow,
} as const

async function end(name: string | undefined, flags: FlagsOf<typeof stopRows>): Promise<void> {
  if (name === undefined && flags.all !== true)
    throw new RunError("ERR_INSTANCE_NONE", "which instance? give a name, or --all")
  const chosen =
    flags.all === true
      ? await listInstances()
      : /[*?]/.test(name ?? "")
        ? await matching(name ?? "")
        : [openInstance(name ?? "")]
  // The peers take it for a failure, and under our own name it is what was asked for: that none is running.
  if (isPeer && chosen.length === 0)
    throw new RunError("ERR_INSTANCE_NONE", "no instance of yours that fits is running")
  const signal = flags.force === true ? "SIGKILL" : flags.signal
  const results = await Promise.allSettled(
    chosen.map(async (instance) => {
      await instance.stop({ timeoutMs: flags.timeout, signal })
      if (flags.json !== true) inform(`instance ${instance.name} of ${printable(instance.image)} has ended`)
    }),
  )
  for (const result of results) if (result.status === "rejected") throw result.reason
  if (flags.json === true) await printJson({ stopped: chosen.map(({ name }) => name) })
}

async function show(
  pattern: string | undefined,
  flags: { readonly json?: true; readonly logs?: true; readonly ended?: true },
): Promise<void> {
  const all = await listInstances({ ended: flags.ended })
  const found = pattern === undefined ? all : all.filter(({ name }) => matches(name, pattern))
  if (flags.json === true) {
    const instances = found.map((one) => ({
      instance: one.name,
      pid: one.pid,
      img: one.image,
      ip: one.networks[0]?.address ?? "",
      engine: one.engine,
      logErrPath: one.logErr,
      logOutPath: one.logOut,
      networks: one.networks,
      labels: one.labels,
      ...one.status(),
    }))
    await print(`${JSON.stringify({ instances }, null, 2)}\n`)
    return
  }
  const heading = ["INSTANCE NAME", "PID", "IP", "IMAGE", "ENGINE", "STATE"]
  const rows = [
    flags.logs === true ? [...heading.slice(0, 2), "LOGS"] : heading,
    ...found.map((one) =>
      flags.logs === true
        ? [one.name, String(one.pid), `${one.logErr} ${one.logOut}`]
        : [
            ...[one.name, String(one.pid), one.networks[0]?.address ?? "", printable(one.image), one.engine],
            stateOf(one.status()),
          ],
    ),
  ]
  await printLines(columns(rows, GAP))
}

const STREAM_MS = 1000
/** Between the two looks that a use of processors takes. */
const FIRST_MS = 200

function size(bytes: number | undefined): string {
  return bytes === undefined ? "-" : humanBytes(bytes)
}

/** A sample, and the processors that were busy since the one before it. */
interface Sample {
  readonly stats: InstanceStats
  readonly cpus: number
}

async function* samples(instance: Instance): AsyncGenerator<Sample, void, undefined> {
  let before = { at: performance.now(), stats: instance.stats() }
  for (let pause = FIRST_MS; ; pause = STREAM_MS) {
    await sleep(pause, undefined, { signal: interruption }).catch(() => {
      interruption.throwIfAborted()
    })
    const now = { at: performance.now(), stats: instance.stats() }
    const nanoseconds = (now.at - before.at) * 1e6
    yield { stats: now.stats, cpus: Math.max(0, now.stats.cpuTime - before.stats.cpuTime) / nanoseconds }
    before = now
  }
}

/** The peers' JSON, as far as it is known, and what only we say. */
function statsJson(name: string, { stats, cpus }: Sample): object {
  const { source, cpuTime, memory, memoryLimit, readBytes, writtenBytes, processes, processLimit } = stats
  const io = [
    ["Read", readBytes],
    ["Write", writtenBytes],
  ] as const
  return {
    instance: name,
    source,
    cpu_percent: cpus * 100,
    cpu_stats: { cpu_usage: { total_usage: Math.round(cpuTime) } },
    memory_stats: { usage: { usage: memory, limit: memoryLimit } },
    pids_stats: { current: processes, limit: processLimit },
    blkio_stats: {
      io_service_bytes_recursive: io.flatMap(([op, value]) => (value === undefined ? [] : [{ op, value }])),
    },
  }
}

/** One line under the peers' heading. */
function statsTable(name: string, { stats, cpus }: Sample): string[] {
  const { source, memory, memoryLimit, readBytes, writtenBytes, processes } = stats
  const most = Math.min(memoryLimit ?? Infinity, totalmem())
  const rows = [
    ["INSTANCE NAME", "CPU USAGE", "MEM USAGE / LIMIT", "MEM %", "BLOCK I/O", "PIDS", "COUNTED BY"],
    [
      name,
      `${(cpus * 100).toFixed(2)}%`,
      `${size(memory)} / ${size(most)}`,
      `${((memory / most) * 100).toFixed(2)}%`,
      `${size(readBytes)} / ${size(writtenBytes)}`,
      String(processes),
      source,
    ],
  ]
  return columns(rows, GAP)
}

async function measure(
  name: string,
  flags: { readonly json?: true; readonly noStream?: true },
): Promise<void> {
  const instance = openInstance(name)
  const once = flags.json === true || flags.noStream === true || !process.stdout.isTTY
  for await (const sample of samples(instance)) {
    if (flags.json === true) await print(`${JSON.stringify(statsJson(name, sample), null, 2)}\n`)
    // Over the one before: up to the top, and what is below cleared.
    else {
      if (!once) await writeAll(output(), [Buffer.from("\x1b[H\x1b[J")])
      await printLines(statsTable(name, sample))
    }
    if (once) return
  }
}

/** What a service has beyond an instance. */
const serviceRows = {
  service: ["--service", "end when the script ends; what became of it is known until `instance rm`", flag],
  restart: [
    "--restart <policy>",
    "start it again when it has ended: no, on-failure[:N], always, unless-stopped; implies --service",
    parseRestart,
  ],
  healthCmd: ["--health-cmd <command>", "asks it whether it is well: a command for sh inside", text],
  healthInterval: ["--health-interval <time>", "so often (default 30s)", duration(SECONDS, 0.001, 86_400)],
  healthTimeout: [
    "--health-timeout <time>",
    "who takes longer is not well (default 30s)",
    duration(SECONDS, 0.001, 86_400),
  ],
  healthStartPeriod: [
    "--health-start-period <time>",
    "failures do not count that early (default 0s)",
    duration(SECONDS, 0, 86_400),
  ],
  healthRetries: [
    "--health-retries <n>",
    "unhealthy after so many failures in a row (default 3)",
    count(1, 1000),
  ],
  noHealthcheck: ["--no-healthcheck", "do not ask, though the image says how", flag],
  logMaxSize: [
    "--log-max-size <size>",
    "of what it writes keep so much in one file (default: all)",
    sizeOption(BYTES, 4096, 2 ** 40),
  ],
  logMaxFiles: [
    "--log-max-files <n>",
    "and so many files, of output and of errors each (default 1)",
    count(1, 100),
  ],
  stopSignal: [
    "--stop-signal <signal>",
    "what `instance stop` sends first (default: as the image says, else TERM)",
    parseSignal,
  ],
  stopTimeout: ["--stop-timeout <time>", "how long that waits (default 10s)", duration(SECONDS, 0, 86_400)],
  label: ["--label <name=value>", "kept with it (repeatable)", each(text)],
} as const

function serviceOptions(flags: FlagsOf<typeof serviceRows>): ServiceOptions {
  const { healthCmd, healthInterval, healthTimeout, healthStartPeriod, healthRetries } = flags
  const times = { intervalMs: healthInterval, timeoutMs: healthTimeout, startPeriodMs: healthStartPeriod }
  if (
    healthCmd === undefined &&
    [...Object.values(times), healthRetries].some((value) => value !== undefined)
  )
    throw new RunError("ERR_RUN_OPTION", "--health-interval and its like go with --health-cmd")
  if (healthCmd !== undefined && flags.noHealthcheck === true)
    throw new RunError("ERR_RUN_OPTION", "--health-cmd: it excludes --no-healthcheck")
  if (flags.logMaxFiles !== undefined && flags.logMaxSize === undefined)
    throw new RunError("ERR_RUN_OPTION", "--log-max-files: it goes with --log-max-size")
  return {
    service: flags.service,
    restart: flags.restart,
    health:
      healthCmd === undefined
        ? flags.noHealthcheck && "none"
        : { command: ["/bin/sh", "-c", healthCmd], ...times, retries: healthRetries },
    logs:
      flags.logMaxSize === undefined ? undefined : { maxSize: flags.logMaxSize, maxFiles: flags.logMaxFiles },
    stopSignal: flags.stopSignal,
    stopTimeoutMs: flags.stopTimeout,
    labels: pairs(flags.label ?? []),
  }
}

function starting(name: "start" | "run", summary: string, description: string): CommandRow {
  return command({
    name,
    summary,
    description,
    passesOn: true,
    common: [...commonActions, "json", "pidFile", "pemPath", "passphrase", "verify"],
    examples: [
      ["with the key of an encrypted image", `sifcrypt instance ${name} --pem-path key.pem image.sif web`],
    ],
    arguments: [
      ["<image>", "the image; options go before it"],
      ["<name>", "what to call it: letters, digits, dots, dashes, underscores"],
      ["[args...]", "passed on as they are"],
    ],
    get options() {
      return {
        pidFile: ["--pid-file <file>", "write the number of the instance's process there", text],
        ...serviceRows,
        json: jsonRow,
        ...cipherRows,
        ...actionRows("instance"),
        ...imageRows,
      } as const
    },
    run: async (flags, [image, called, argv]) => {
      const options: InstanceOptions = {
        ...actionOptions("instance", flags, process.env),
        ...serviceOptions(flags),
        signal: interruption,
        onNotice: notice,
      }
      await withCredentials(flags, false, async (credentials) => {
        await using opened = await openImage(image, flags, credentials)
        const started =
          name === "start"
            ? await opened.startInstance(called, argv, { ...options, overlayUnlock: credentials })
            : await opened.runInstance(called, argv, { ...options, overlayUnlock: credentials })
        if (flags.pidFile !== undefined) writeFileSync(flags.pidFile, `${started.pid}\n`)
        if (flags.json === true) await printJson({ instance: started.name, pid: started.pid })
        else inform(`instance ${started.name} started`)
      })
    },
  })
}

const notStarted = ["no instance", "there is no such instance"] as const

const list = command({
  name: "list",
  examples: [["those whose names begin with web", 'sifcrypt instance list "web*"']],
  summary: "list instances",
  description: "Lists your instances, or those whose names match PATTERN (* and ? as in file names).",
  arguments: [["[pattern]", "names to list", undefined, "instances"]],
  options: {
    json: ["-j, --json", "print JSON", flag],
    logs: ["-l, --logs", "show where what they write is kept", flag],
    ended: ["--ended", "services that have ended as well", flag],
    all: ["-a, --all", "accepted: yours are all shown", flag, { hidden: true }],
    user: userRow,
  },
  run: (flags, [pattern]) => {
    actAs(flags.user)
    return show(pattern, flags)
  },
})

const stats = command({
  name: "stats",
  notStarted,
  examples: [["one look, for a program", "sifcrypt instance stats --json web"]],
  summary: "what an instance uses",
  description:
    "Shows processor time, memory, block input and output and processes of the instance NAME, anew each second on a terminal.",
  arguments: [["<name>", "its name", undefined, "instances"]],
  options: {
    json: ["-j, --json", "print JSON, once", flag],
    noStream: ["--no-stream", "print it once", flag],
    user: userRow,
  },
  run: (flags, [name]) => {
    actAs(flags.user)
    return measure(name, flags)
  },
})

const logs = command({
  name: "logs",
  notStarted,
  summary: "what an instance has written",
  description:
    "Prints what the script of the instance NAME has written: to standard output what it wrote there, to standard error the same.",
  examples: [["until it ends", "sifcrypt instance logs -f web"]],
  arguments: [["<name>", "its name", undefined, "instances"]],
  options: {
    follow: ["-f, --follow", "go on until the instance has ended", flag],
    user: userRow,
  },
  run: async (flags, [name]) => {
    actAs(flags.user)
    const pieces = openInstance(name).logs({ follow: flags.follow, signal: interruption })
    const streams = { stdout: output(), stderr: errors() }
    // Told where it is written.
    for (const stream of Object.values(streams)) stream.on("error", () => undefined)
    for await (const { stream, data } of pieces) if (!(await writePiece(streams[stream], data))) return
  },
})

const stop = command({
  name: "stop",
  notStarted,
  examples: [
    ["one of them", "sifcrypt instance stop web"],
    ["all of yours", "sifcrypt instance stop --all"],
  ],
  summary: "stop instances",
  description: "Ends the instance NAME, or those that match, and waits until nothing is left of it.",
  arguments: [["[name]", "its name; * and ? stand for any characters", undefined, "instances"]],
  options: { ...stopRows, user: userRow },
  run: (flags, [name]) => {
    actAs(flags.user)
    return end(name, flags)
  },
})

const rm = command({
  name: "rm",
  notStarted,
  summary: "forget services that have ended",
  description: "Removes what is known of services that have ended, and what they have written.",
  examples: [["one that instance list --ended shows", "sifcrypt instance rm web"]],
  arguments: [["<names...>", "their names", undefined, "instances"]],
  options: { json: jsonRow },
  run: async ({ json }, [names]) => {
    for (const name of names) await openInstance(name).remove()
    if (json === true) await printJson({ removed: names })
  },
})

export const instance: CommandRow = {
  name: "instance",
  heading: "Run images",
  summary: "images that run in the background",
  description:
    "Starts, lists, measures and stops images that run in the background. exec, run and shell take instance://NAME.",
  commands: [
    starting(
      "start",
      "start an image in the background",
      "Starts IMAGE as the instance NAME, and its start script with ARGS.",
    ),
    starting(
      "run",
      "start an image's run script in the background",
      "Starts IMAGE as the instance NAME, and its run script with ARGS in place of the start script.",
    ),
    list,
    stats,
    logs,
    stop,
    rm,
  ],
}
