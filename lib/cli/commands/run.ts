import { isatty } from "node:tty"
import type { Command } from "commander"
import { open, type Engine, type ExecOptions } from "../../index.ts"
import { withCredentials } from "../credentials.ts"
import { parseEngine } from "../engine.ts"
import { interruption, passSignalsTo } from "../interrupt.ts"
import { addOpenOptions, openOptions, type OpenFlags } from "../opening.ts"

interface RunFlags extends OpenFlags {
  readonly engine: Engine
  readonly bind?: string[]
  readonly pwd?: string
  readonly env?: string[]
  readonly cleanenv?: true
  readonly allowCipher?: string
}

const collect = (value: string, earlier: string[] | undefined): string[] => [...(earlier ?? []), value]

function addAction(
  program: Command,
  name: "exec" | "run" | "shell",
  summary: string,
  description: string,
  commandArgument: string | undefined,
): void {
  const command = program
    .command(name)
    .summary(summary)
    .description(description)
    .passThroughOptions()
    .argument("<image>", "the image to run in; options go before it")
    .option("--engine <engine>", "auto, kernel or userspace", parseEngine, "auto")
    .option(
      "-B, --bind <src[:dst[:ro]]>",
      "bind a file or folder of the host (repeatable, or separated by commas)",
      collect,
    )
    .option("--pwd <dir>", "working directory inside")
    .option("--env <name=value>", "set a variable inside, literally (repeatable)", collect)
    .option("--cleanenv", "pass nothing of the environment on but TERM and the proxies")
    .option("--allow-cipher <name>", "let the kernel engine use this cipher, e.g. serpent-xts-plain64")
  if (commandArgument !== undefined) command.argument(commandArgument, "passed on as they are")
  addOpenOptions(command).action(async (image: string, ...rest: unknown[]) => {
    const argv = commandArgument === undefined ? [] : (rest[0] as string[])
    const flags = (commandArgument === undefined ? rest[0] : rest[1]) as RunFlags
    const options: ExecOptions = {
      engine: flags.engine,
      stdio: "inherit",
      signal: interruption,
      ...(flags.bind === undefined ? {} : { binds: flags.bind }),
      ...(flags.pwd === undefined ? {} : { cwd: flags.pwd }),
      ...(flags.env === undefined ? {} : { env: flags.env }),
      ...(flags.cleanenv === undefined ? {} : { cleanEnv: true }),
    }
    const running = await withCredentials(flags, false, async (credentials) => {
      await using opened = await open(image, openOptions(flags, credentials))
      const started = name === "shell" ? await opened.shell(options) : await opened[name](argv, options)
      // A terminal signals its whole foreground group, the starter included; what reaches only us is passed on.
      passSignalsTo((signal) => {
        if (!(isatty(0) && (signal === "SIGINT" || signal === "SIGQUIT"))) started.kill(signal)
      })
      return started
    })
    const result = await running.exited
    process.exitCode = result.exitCode
  })
}

export function addRunCommands(program: Command): void {
  addAction(
    program,
    "exec",
    "run a command in an image",
    "Runs COMMAND inside IMAGE; its exit status is this command's.",
    "<command...>",
  )
  addAction(
    program,
    "run",
    "run an image's run script",
    "Runs the image's run script with ARGS.",
    "[args...]",
  )
  addAction(
    program,
    "shell",
    "an interactive shell in an image",
    "Starts bash, or sh, inside IMAGE.",
    undefined,
  )
}
