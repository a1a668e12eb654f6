import type { Command } from "commander"
import { isatty } from "node:tty"
import { compose as services, type Running } from "../../index.ts"
import { command, type ArgumentRow, type CommandRow, type FlagsOf } from "../command.ts"
import { credentialRows, withCredentials } from "../credentials.ts"
import { stateOf } from "../instance-state.ts"
import { endWith, interruption, passSignalsTo } from "../interrupt.ts"
import { costOptions, costRows, imageRows } from "../opening.ts"
import {
  columns,
  errors,
  GAP,
  jsonRow,
  output,
  print,
  printJson,
  printLines,
  printResult,
  writePiece,
} from "../output.ts"
import { registryRows, withRegistryOptions } from "../registry.ts"
import { inform, isTerminal, notice, printable } from "../terminal.ts"
import { count, duration, each, flag, SECONDS, text } from "../values.ts"

const projectRows = {
  file: ["-f, --file <file>", "a compose file; what comes later is stronger (repeatable)", each(text)],
  projectName: ["-p, --project-name <name>", "what instances, networks and volumes are named for", text],
  profile: ["--profile <name>", "services of this profile are there, too (repeatable)", each(text)],
  envFile: ["--env-file <file>", "variables for the files, instead of .env (repeatable)", each(text)],
  projectDirectory: ["--project-directory <dir>", "what paths in the files are relative to", text],
} as const

/** They stand before the command's name: `-f` is something else behind some. */
function projectFlags({ parent }: Command): FlagsOf<typeof projectRows> {
  return parent?.opts() ?? {}
}

const tell = (text: string): void => {
  notice(printable(text))
}

function projectOf(command: Command, named: readonly string[] = []): services.Project {
  const { file, projectName, profile, envFile, projectDirectory } = projectFlags(command)
  return services.load({
    ...{ files: file, name: projectName, profiles: profile, envFiles: envFile, folder: projectDirectory },
    services: named,
    onNotice: tell,
  })
}

/** What runs of a project: its name is enough. */
function runningOf(command: Command): services.Services {
  const { file, projectName } = projectFlags(command)
  return projectName !== undefined && file === undefined ? services.open(projectName) : projectOf(command)
}

/** Whom an image is to be signed by, and whether it has to be encrypted, the file says. */
const accessRows = {
  ...{ ...credentialRows, ...costRows, ...registryRows },
  ...{ unsigned: imageRows.unsigned, layerKeys: imageRows.layerKeys, tmpFolder: imageRows.tmpFolder },
} as const

/** Runs `use` with how images are found and opened. */
async function withAccess<T>(
  flags: FlagsOf<typeof accessRows>,
  use: (access: services.ImageAccess) => Promise<T>,
): Promise<T> {
  return await withCredentials(flags, false, async (unlock, password) =>
    withRegistryOptions(flags, "images", flags.tmpFolder, (oci) =>
      use({
        ...{ unlock, password, oci, onNotice: tell },
        unsigned: flags.unsigned ?? (isTerminal(2) ? "warn" : "allow"),
        ...costOptions(flags),
      }),
    ),
  )
}

const onEvent = ({ kind, name, state }: services.ProjectEvent): void => {
  inform(`${kind} ${printable(name)} ${state}`)
}

/** Does something, and tells what became of what: as it comes, or as JSON in the end. */
async function telling(
  isJson: true | undefined,
  work: (how: { readonly onEvent: typeof onEvent; readonly signal: AbortSignal }) => Promise<void>,
): Promise<void> {
  const events: services.ProjectEvent[] = []
  const note = (event: services.ProjectEvent): void => {
    events.push(event)
  }
  await work({ onEvent: isJson === true ? note : onEvent, signal: interruption })
  if (isJson === true) await printJson(events)
}

const notStarted = ["not started", "a service could not be started"] as const
const servicesArgument = ["[services...]", "default: all"] as const satisfies ArgumentRow
const timeoutRow = [
  "-t, --timeout <seconds>",
  "kill what has not ended after so long",
  duration(SECONDS, 0, 86_400),
] as const

/** Names or nothing, as the API has it. */
const given = (names: readonly string[]): readonly string[] | undefined =>
  names.length > 0 ? names : undefined

const MAX_LINE = 1 << 16

/** Whole lines, each with whose it is before it. */
class Lines {
  readonly #width: number
  readonly #isPlain: boolean
  readonly #streams = { stdout: output(), stderr: errors() }
  readonly #rest = new Map<string, { readonly piece: services.ServiceLogPiece; readonly data: Buffer }>()

  constructor(names: readonly string[], isPlain: boolean) {
    this.#width = Math.max(0, ...names.map((name) => name.length))
    this.#isPlain = isPlain
    // Told where it is written.
    for (const stream of Object.values(this.#streams)) stream.on("error", () => undefined)
  }

  /** false: nobody reads it any more. */
  async write(piece: services.ServiceLogPiece): Promise<boolean> {
    const { name, stream } = piece
    if (this.#isPlain) return await writePiece(this.#streams[stream], piece.data)
    const key = `${name} ${stream}`
    const all = Buffer.concat([this.#rest.get(key)?.data ?? Buffer.alloc(0), piece.data])
    // A line without an end is shown in pieces.
    const end = all.length > MAX_LINE ? all.length : all.lastIndexOf(0x0a) + 1
    this.#rest.set(key, { piece, data: all.subarray(end) })
    return end === 0 || (await writePiece(this.#streams[stream], this.#prefixed(name, all.subarray(0, end))))
  }

  /** What does not end with a line's end. */
  async flush(): Promise<void> {
    for (const { piece, data } of this.#rest.values())
      if (data.length > 0)
        await writePiece(
          this.#streams[piece.stream],
          Buffer.concat([this.#prefixed(piece.name, data), Buffer.from("\n")]),
        )
    this.#rest.clear()
  }

  #prefixed(name: string, lines: Buffer): Buffer {
    const prefix = `${name.padEnd(this.#width)} | `
    return Buffer.from(lines.toString("latin1").replaceAll(/^(?=[^])/gm, prefix), "latin1")
  }
}

async function showLogs(
  project: services.Services,
  options: services.ServiceLogOptions,
  isPlain: boolean,
): Promise<void> {
  const lines = new Lines(
    (await project.ps()).map(({ name }) => name),
    isPlain,
  )
  for await (const piece of project.logs(options)) if (!(await lines.write(piece))) return
  await lines.flush()
}

/** Shows what services write until all have ended, or somebody wants them to. */
async function attend(project: services.Project, names: readonly string[] | undefined): Promise<void> {
  const wanted = new AbortController()
  passSignalsTo(() => {
    wanted.abort()
  })
  try {
    await showLogs(project, { services: names, follow: true, signal: wanted.signal }, false)
  } catch (error) {
    if (!wanted.signal.aborted) throw error
    inform("services are being stopped")
  }
  await project.stop({ services: names, onEvent })
  if (wanted.signal.aborted) {
    process.exitCode = 130
    return
  }
  const failed = (await project.ps()).find(({ exitCode }) => exitCode !== undefined && exitCode !== 0)
  process.exitCode = failed?.exitCode ?? 0
}

/** Ends as the payload does. */
async function endAs(running: Running): Promise<void> {
  passSignalsTo((signal) => {
    // A terminal signals its whole foreground group, the starter included.
    if (!(isatty(0) && (signal === "SIGINT" || signal === "SIGQUIT"))) running.kill(signal)
  })
  const { exitCode, signal } = await running.exited
  process.exitCode = exitCode
  if (signal !== undefined) endWith(signal)
}

const up = command({
  name: "up",
  notStarted,
  summary: "start services",
  description:
    "Starts services, and those that they depend on: what does not run, and what the files describe otherwise than when it was " +
    "started. Without --detach it shows what they write, and stops them in the end.",
  arguments: [servicesArgument],
  common: [
    "detach",
    "build",
    "forceRecreate",
    "noDeps",
    "removeOrphans",
    "wait",
    "json",
    "pemPath",
    "passphrase",
  ],
  examples: [["in the background", "sifcrypt compose up -d"]],
  get options() {
    return {
      detach: ["-d, --detach", "come back when all are started", flag],
      build: ["--build", "build images of definition files anew", flag],
      forceRecreate: ["--force-recreate", "start anew what runs, changed or not", flag],
      noDeps: ["--no-deps", "not what they depend on", flag],
      removeOrphans: ["--remove-orphans", "remove what the files do not have any more", flag],
      wait: ["--wait", "come back when all are healthy that can tell; implies --detach", flag],
      json: jsonRow,
      ...accessRows,
    } as const
  },
  run: async (flags, [names], command) => {
    const project = projectOf(command, names)
    await withAccess(flags, async (access) => {
      await project.up({
        ...access,
        ...{ services: given(names), noDependencies: flags.noDeps, build: flags.build, wait: flags.wait },
        ...{
          recreate: flags.forceRecreate,
          removeOrphans: flags.removeOrphans,
          onEvent,
          signal: interruption,
        },
      })
    })
    if (flags.json === true) await printJson(await project.ps())
    if (flags.detach !== true && flags.wait !== true && flags.json !== true)
      await attend(project, given(names))
  },
})

const down = command({
  name: "down",
  summary: "end all, and remove it",
  description:
    "Ends all services of a project, and removes them and its networks. Volumes stay, unless --volumes is given.",
  examples: [["with their volumes", "sifcrypt compose down --volumes"]],
  options: {
    volumes: [
      "-v, --volumes",
      "remove the volumes that the project has made, with all that is in them, unless an instance of another project has one",
      flag,
    ],
    timeout: timeoutRow,
    removeOrphans: ["--remove-orphans", "accepted: they are", flag, { hidden: true }],
    json: jsonRow,
  },
  run: async (flags, _, command) => {
    const project = runningOf(command)
    await telling(flags.json, (how) =>
      project.down({ ...how, volumes: flags.volumes, timeoutMs: flags.timeout }),
    )
  },
})

const stop = command({
  name: "stop",
  summary: "end services",
  description:
    "Ends services, those first that others do not need. What they wrote can still be read; start starts them again.",
  arguments: [servicesArgument],
  examples: [["one of them", "sifcrypt compose stop web"]],
  options: { timeout: timeoutRow, json: jsonRow },
  run: async (flags, [names], command) => {
    const project = runningOf(command)
    await telling(flags.json, (how) =>
      project.stop({ ...how, services: given(names), timeoutMs: flags.timeout }),
    )
  },
})

/** A command that opens the images of services. */
function opening(
  text: Pick<CommandRow, "name" | "notStarted" | "summary" | "description" | "examples">,
  work: (project: services.Project, options: services.UpOptions) => Promise<void>,
): CommandRow {
  return command({
    ...text,
    arguments: [servicesArgument],
    common: ["json", "pemPath", "passphrase"],
    get options() {
      return { json: jsonRow, ...accessRows }
    },
    run: async (flags, [names], command) => {
      const project = projectOf(command, names)
      await withAccess(flags, (access) =>
        telling(flags.json, (how) => work(project, { ...access, ...how, services: given(names) })),
      )
    },
  })
}

const start = opening(
  {
    name: "start",
    notStarted,
    summary: "start what was stopped",
    description: "Starts services that were stopped, without what they depend on.",
    examples: [["one of them", "sifcrypt compose start web"]],
  },
  (project, options) => project.start(options),
)

const restart = command({
  name: "restart",
  notStarted,
  summary: "stop services and start them again",
  description: "Stops services and starts them again, without what they depend on.",
  arguments: [servicesArgument],
  examples: [["and wait no longer than a second", "sifcrypt compose restart --timeout 1 web"]],
  common: ["timeout", "json", "pemPath", "passphrase"],
  get options() {
    return { timeout: timeoutRow, json: jsonRow, ...accessRows } as const
  },
  run: async (flags, [names], command) => {
    const project = projectOf(command, names)
    // What starts again is what ends: neither what profiles leave out nor what the files do not have any more.
    const there = new Set((await project.ps()).map(({ service }) => service))
    const services = given(names) ?? project.services.filter((name) => there.has(name))
    await withAccess(flags, (access) =>
      telling(flags.json, async (how) => {
        await project.stop({ ...how, services, timeoutMs: flags.timeout })
        await project.start({ ...access, ...how, services })
      }),
    )
  },
})

const ps = command({
  name: "ps",
  summary: "what runs",
  description: "Lists instances of a project, with --all those that have ended as well.",
  examples: [["those that have ended as well", "sifcrypt compose ps --all"]],
  options: {
    all: ["-a, --all", "those that have ended, too", flag],
    quiet: ["-q, --quiet", "names alone", flag],
    json: jsonRow,
  },
  run: async (flags, _, command) => {
    const all = await runningOf(command).ps()
    const shown = all.filter(({ state }) => flags.all === true || state !== "ended")
    if (flags.quiet === true)
      await printResult(
        flags,
        shown.map(({ name }) => name),
        (names) => names,
      )
    else if (flags.json === true) await printJson(shown)
    else
      await printLines(
        columns(
          [
            ["NAME", "SERVICE", "STATE", "PORTS", "IMAGE"],
            ...shown.map((one) => [
              one.name,
              one.service,
              stateOf(one),
              one.ports.join(", "),
              printable(one.image),
            ]),
          ],
          GAP,
        ),
      )
  },
})

const logs = command({
  name: "logs",
  summary: "what services have written",
  description: "Prints what services have written, each line with whose it is before it.",
  arguments: [servicesArgument],
  examples: [["of one, as it comes", "sifcrypt compose logs --follow web"]],
  options: {
    follow: ["-f, --follow", "go on until all have ended", flag],
    noLogPrefix: ["--no-log-prefix", "lines as they are", flag],
  },
  run: async (flags, [names], command) => {
    const options = { services: given(names), follow: flags.follow, signal: interruption }
    await showLogs(runningOf(command), options, flags.noLogPrefix === true)
  },
})

const exec = command({
  name: "exec",
  summary: "run a command in a service that runs",
  description: "Runs COMMAND in a service that runs; its exit status is this command's.",
  passesOn: true,
  arguments: [
    ["<service>", "its name"],
    ["<command...>", "passed on as it is"],
  ],
  examples: [["a shell beside the service", "sifcrypt compose exec web sh"]],
  options: {
    env: ["-e, --env <name=value>", "set a variable (repeatable)", each(text)],
    workdir: ["-w, --workdir <dir>", "working directory inside", text],
    index: ["--index <n>", "which of several instances", count(1, 100)],
    noTty: ["-T, --no-tty", "accepted: a terminal is passed on if there is one", flag, { hidden: true }],
  },
  run: async (flags, [service, argv], command) => {
    const running = await projectOf(command, [service]).exec(service, argv, {
      ...{ stdio: "inherit", env: flags.env, cwd: flags.workdir, number: flags.index },
      ...{ signal: interruption, onNotice: tell },
    })
    await endAs(running)
  },
})

const run = command({
  name: "run",
  summary: "run a command once, as a service would",
  description:
    "Runs a command once, with all that SERVICE has but its ports, beside what it depends on. Its exit status is this command's.",
  passesOn: true,
  arguments: [
    ["<service>", "its name"],
    ["[args...]", "instead of the service's command"],
  ],
  examples: [["without what it depends on", "sifcrypt compose run --no-deps web id"]],
  common: ["env", "workdir", "entrypoint", "noDeps", "servicePorts", "pemPath", "passphrase"],
  get options() {
    return {
      env: ["-e, --env <name=value>", "set a variable (repeatable)", each(text)],
      workdir: ["-w, --workdir <dir>", "working directory inside", text],
      entrypoint: ["--entrypoint <program>", "instead of the service's", text],
      noDeps: ["--no-deps", "not what it depends on", flag],
      servicePorts: ["-P, --service-ports", "publish its ports", flag],
      rm: ["--rm", "accepted: nothing is left anyway", flag, { hidden: true }],
      noTty: ["-T, --no-tty", "accepted: a terminal is passed on if there is one", flag, { hidden: true }],
      ...accessRows,
    } as const
  },
  run: async (flags, [service, argv], command) => {
    const project = projectOf(command, [service])
    const running = await withAccess(flags, (access) =>
      project.run(service, argv, {
        ...access,
        ...{ env: flags.env, cwd: flags.workdir, noDependencies: flags.noDeps, ports: flags.servicePorts },
        ...(flags.entrypoint === undefined ? {} : { entrypoint: [flags.entrypoint] }),
        ...{ onEvent, signal: interruption },
      }),
    )
    await endAs(running)
  },
})

const pull = opening(
  {
    name: "pull",
    summary: "fetch images",
    description: "Fetches the images of services into the cache.",
    examples: [["before they are needed", "sifcrypt compose pull"]],
  },
  (project, options) => project.pull(options),
)

const build = opening(
  {
    name: "build",
    summary: "build images of definition files",
    description: "Builds the images of services that say which definition file they are made of.",
    examples: [["of one service", "sifcrypt compose build web"]],
  },
  (project, options) => project.build(options),
)

const images = command({
  name: "images",
  summary: "what services start from",
  description: "Lists the image of each service.",
  examples: [["for a program", "sifcrypt compose images --json"]],
  options: { json: jsonRow },
  run: async (flags, _, command) => {
    const found = [...projectOf(command).images]
    if (flags.json === true) await printJson(found.map(([service, image]) => ({ service, image })))
    else
      await printLines(
        columns([["SERVICE", "IMAGE"], ...found.map(([service, image]) => [service, printable(image)])], GAP),
      )
  },
})

const config = command({
  name: "config",
  summary: "what is understood of the files",
  description:
    "Prints what is understood of the compose files: merged, with variables filled in, in the long forms.",
  examples: [["whether the files are right", "sifcrypt compose config --quiet"]],
  options: {
    services: ["--services", "the names of services alone", flag],
    quiet: ["-q, --quiet", "print nothing: is it right?", flag, { conflicts: ["json"] }],
    json: jsonRow,
  },
  run: async (flags, _, command) => {
    const project = projectOf(command)
    if (flags.quiet === true) return
    if (flags.services === true) await printResult(flags, [...project.services], (names) => names)
    else if (flags.json === true) await printJson(project.config())
    else await print(project.yaml())
  },
})

export const compose: CommandRow = {
  name: "compose",
  notStarted,
  heading: "Run images",
  summary: "services beside each other, of a compose file",
  description:
    "Starts, shows and ends services that a compose file describes, from encrypted images or plain ones.",
  options: projectRows,
  commands: [up, down, ps, logs, exec, run, start, stop, restart, pull, build, images, config],
}
