import { isatty } from "node:tty"
import type { Command } from "commander"
import {
  open,
  openInstance,
  RunError,
  type ExecOptions,
  type Image,
  type Instance,
  type Running,
} from "../../index.ts"
import { actionOptions, addActionOptions } from "../action-options.ts"
import { withCredentials } from "../credentials.ts"
import { failureReporter } from "../failure.ts"
import { endWith, interruption, passSignalsTo, waitForHelpers } from "../interrupt.ts"
import { addOpenOptions, openOptions, type OpenFlags } from "../opening.ts"
import type { CommandTable } from "../program.ts"
import { notice, printable } from "../terminal.ts"

const actions = ["exec", "run", "shell", "test"] as const
type Action = (typeof actions)[number]

const INSTANCE = "instance://"

async function start(
  image: Image | Instance,
  action: Action,
  argv: readonly string[],
  options: ExecOptions,
): Promise<Running> {
  if (action !== "shell") return await image[action](argv, options)
  if (argv.length > 0) notice("a shell takes no arguments: they are ignored")
  return await image.shell(options)
}

/** A descriptor that a secret is read from is closed then, and something else takes its number. */
function refuseSpent(preserveFds: number, flags: Readonly<Record<string, unknown>>): void {
  for (const [name, fd] of Object.entries(flags))
    if (name.endsWith("Fd") && typeof fd === "number" && fd >= 3 && fd < 3 + preserveFds)
      throw new RunError("ERR_RUN_OPTION", `--preserve-fds: a secret is read from descriptor ${fd}`)
}

/** What concerns a command that joins an instance; the rest was settled when that was started. */
const joinOptions: ReadonlySet<string> = new Set([
  ...["env", "env-file", "no-env", "cleanenv", "eval", "no-eval", "cwd", "pwd", "app", "shell", "no-umask"],
])

function refuseForInstance(command: Command): void {
  const refused = command.options.filter(
    (option) =>
      !joinOptions.has(option.name()) && command.getOptionValueSource(option.attributeName()) === "cli",
  )
  if (refused.length > 0)
    throw new RunError(
      "ERR_RUN_OPTION",
      `${refused.map(({ long }) => long).join(", ")}: not for an instance that runs already`,
    )
}

function addAction(
  program: Command,
  name: Action,
  summary: string,
  description: string,
  commandArgument: string,
): void {
  const command = program
    .command(name)
    .summary(summary)
    .description(description)
    .passThroughOptions()
    .argument("<image>", "the image to run in, or instance://NAME; options go before it")
    .argument(commandArgument, "passed on as they are")
    .option("--allow-cipher <name>", "let the kernel engine use this cipher, e.g. serpent-xts-plain64")
  addOpenOptions(addActionOptions(command, name)).action(
    async (image: string, argv: string[], flags: OpenFlags) => {
      const options: ExecOptions = {
        ...actionOptions(name, command.opts(), process.env),
        stdio: "inherit",
        replaceProcess: failureReporter(),
        signal: interruption,
        onNotice: (text) => {
          notice(printable(text))
        },
      }
      refuseSpent(options.preserveFds ?? 0, command.opts())
      if (image.startsWith(INSTANCE)) {
        refuseForInstance(command)
        // What variables ask for besides was settled when the instance was started.
        const { stdio, replaceProcess, signal, onNotice, env, envFile, noEnv, cleanEnv } = options
        const { evaluate, noEval, cwd, app, shell, noUmask } = options
        await start(openInstance(image.slice(INSTANCE.length)), name, argv, {
          ...{ stdio, replaceProcess, signal, onNotice, env, envFile, noEnv, cleanEnv },
          ...{ evaluate, noEval, cwd, app, shell, noUmask },
        })
        return
      }
      const running = await withCredentials(flags, false, async (credentials) => {
        await using opened = await open(image, openOptions(flags, credentials))
        waitForHelpers()
        // This process becomes the payload's attendant: what follows is for a payload that did not start, and for an image
        // that was verified.
        const started = await start(opened, name, argv, { ...options, overlayUnlock: credentials })
        // A terminal signals its whole foreground group, the starter included; what reaches only us is passed on.
        passSignalsTo((signal) => {
          if (!(isatty(0) && (signal === "SIGINT" || signal === "SIGQUIT"))) started.kill(signal)
        })
        return started
      })
      const { exitCode, signal } = await running.exited
      process.exitCode = exitCode
      if (signal !== undefined) endWith(signal)
    },
  )
}

const descriptions: Readonly<Record<Action, readonly [summary: string, description: string, argv: string]>> =
  {
    exec: [
      "run a command in an image",
      "Runs COMMAND inside IMAGE; its exit status is this command's.",
      "<command...>",
    ],
    run: ["run an image's run script", "Runs the image's run script with ARGS.", "[args...]"],
    shell: ["an interactive shell in an image", "Starts bash, or sh, inside IMAGE.", "[args...]"],
    test: [
      "run an image's test script",
      "Runs the image's test script with ARGS; without one there is nothing to do.",
      "[args...]",
    ],
  }

export function addRunCommands(program: Command, names: readonly Action[] = actions): void {
  for (const name of names) addAction(program, name, ...descriptions[name])
}

/** A line for each: the options of one are enough. */
export const actionTable: CommandTable = actions.map((name) => [
  [name],
  (program) => {
    addRunCommands(program, [name])
  },
])
