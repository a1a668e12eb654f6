import { InvalidArgumentError, type Command } from "commander"
import { constants } from "node:os"
import {
  listInstances,
  open,
  openInstance,
  RunError,
  type Instance,
  type InstanceOptions,
} from "../../index.ts"
import { actionOptions, addActionOptions } from "../action-options.ts"
import { withCredentials } from "../credentials.ts"
import { interruption } from "../interrupt.ts"
import { addOpenOptions, openOptions, type OpenFlags } from "../opening.ts"
import { print } from "../output.ts"
import { notice, printable } from "../terminal.ts"

function parseSignal(text: string): NodeJS.Signals {
  const name = /^\d+$/.test(text)
    ? Object.entries(constants.signals).find(([, number]) => number === Number(text))?.[0]
    : `SIG${text.toUpperCase().replace(/^SIG/, "")}`
  if (name === undefined || !(name in constants.signals)) throw new InvalidArgumentError("No such signal.")
  return name as NodeJS.Signals
}

const MAX_SECONDS = 86_400

function parseSeconds(text: string): number {
  if (!/^\d{1,5}$/.test(text) || Number(text) > MAX_SECONDS)
    throw new InvalidArgumentError(`It is 0 to ${MAX_SECONDS} seconds.`)
  return Number(text)
}

/** `*` and `?` as in file names, as the peers take them. */
async function matching(pattern: string): Promise<Instance[]> {
  const expression = pattern
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replaceAll("*", ".*")
    .replaceAll("?", ".")
  return (await listInstances()).filter(({ name }) => new RegExp(`^${expression}$`).test(name))
}

interface StopFlags {
  readonly all?: true
  readonly signal?: NodeJS.Signals
  readonly timeout: number
  readonly force?: true
}

async function stop(name: string | undefined, flags: StopFlags): Promise<void> {
  if (name === undefined && flags.all !== true)
    throw new RunError("ERR_INSTANCE_NONE", "which instance? give a name, or --all")
  const chosen =
    flags.all === true
      ? await listInstances()
      : /[*?]/.test(name ?? "")
        ? await matching(name ?? "")
        : [openInstance(name ?? "")]
  const signal = flags.force === true ? "SIGKILL" : flags.signal
  const timeoutMs = flags.timeout * 1000
  const results = await Promise.allSettled(
    chosen.map(async (instance) => {
      await instance.stop({ timeoutMs, ...(signal === undefined ? {} : { signal }) })
      notice(`instance ${instance.name} of ${printable(instance.image)} has ended`)
    }),
  )
  for (const result of results) if (result.status === "rejected") throw result.reason
}

async function list(pattern: string | undefined, flags: { json?: true; logs?: true }): Promise<void> {
  const found = pattern === undefined ? await listInstances() : await matching(pattern)
  if (flags.json === true) {
    const instances = found.map(({ name, pid, image, engine, logErr, logOut }) => ({
      instance: name,
      pid,
      img: image,
      ip: "",
      engine,
      logErrPath: logErr,
      logOutPath: logOut,
    }))
    await print(`${JSON.stringify({ instances }, null, 2)}\n`)
    return
  }
  const heading = ["INSTANCE NAME", "PID", "IP", "IMAGE"]
  const rows = [
    flags.logs === true ? [...heading.slice(0, 2), "LOGS"] : heading,
    ...found.map(({ name, pid, image, logErr, logOut }) =>
      flags.logs === true
        ? [name, String(pid), `${logErr} ${logOut}`]
        : [name, String(pid), "", printable(image)],
    ),
  ]
  const widths = heading.map((_, i) => Math.max(...rows.map((row) => (row[i] ?? "").length)))
  for (const row of rows)
    await print(
      `${row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join("    ")
        .trimEnd()}\n`,
    )
}

function addStart(instance: Command, name: "start" | "run", summary: string, description: string): void {
  const command = instance
    .command(name)
    .summary(summary)
    .description(description)
    .passThroughOptions()
    .argument("<image>", "the image; options go before it")
    .argument("<name>", "what to call it: letters, digits, dots, dashes, underscores")
    .argument("[args...]", "passed on as they are")
    .option("--allow-cipher <name>", "let the kernel engine use this cipher, e.g. serpent-xts-plain64")
  addOpenOptions(addActionOptions(command, "instance")).action(
    async (image: string, called: string, argv: string[], flags: OpenFlags) => {
      const options: InstanceOptions = {
        ...actionOptions("instance", command.opts(), process.env),
        signal: interruption,
        onNotice: (text) => {
          notice(printable(text))
        },
      }
      await withCredentials(flags, false, async (credentials) => {
        await using opened = await open(image, openOptions(flags, credentials))
        const started =
          name === "start"
            ? await opened.startInstance(called, argv, { ...options, overlayCredentials: credentials })
            : await opened.runInstance(called, argv, { ...options, overlayCredentials: credentials })
        notice(`instance ${started.name} started`)
      })
    },
  )
}

export function addInstanceCommands(program: Command): void {
  const instance = program
    .command("instance")
    .summary("images that run in the background")
    .description(
      "Starts, lists and stops images that run in the background. exec, run and shell take instance://NAME.",
    )
    .enablePositionalOptions()
  addStart(
    instance,
    "start",
    "start an image in the background",
    "Starts IMAGE as the instance NAME, and its start script with ARGS.",
  )
  addStart(
    instance,
    "run",
    "start an image's run script in the background",
    "Starts IMAGE as the instance NAME, and its run script with ARGS in place of the start script.",
  )
  instance
    .command("list")
    .summary("list instances")
    .description("Lists your instances, or those whose names match PATTERN (* and ? as in file names).")
    .argument("[pattern]", "names to list")
    .option("-j, --json", "print JSON")
    .option("-l, --logs", "show where what they write is kept")
    .action(list)
  instance
    .command("stop")
    .summary("stop instances")
    .description("Ends the instance NAME, or those that match, and waits until nothing is left of it.")
    .argument("[name]", "its name; * and ? stand for any characters")
    .option("-a, --all", "all of yours")
    .option("-s, --signal <signal>", "what the start script gets (default TERM)", parseSignal)
    .option("-t, --timeout <seconds>", "kill it after so long", parseSeconds, 10)
    .option("-F, --force", "kill it at once")
    .action(stop)
}
