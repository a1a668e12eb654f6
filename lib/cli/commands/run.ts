import { fstatSync } from "node:fs"
import { isatty } from "node:tty"
import type { Command } from "commander"
import * as api from "../../index.ts"
import { actionOptions, actionRows, commonActions, joining } from "../action-options.ts"
import { command, type CommandRow } from "../command.ts"
import { withCredentials, type LayerKeyWord } from "../credentials.ts"
import { failureReporter } from "../failure.ts"
import { endWith, interruption, passSignalsTo } from "../interrupt.ts"
import { cipherRows, imageRows, openImage } from "../opening.ts"
import { notice } from "../terminal.ts"

type Action = "exec" | "run" | "shell" | "test"

const INSTANCE = "instance://"

async function start(
  image: api.Image | api.Instance,
  action: Action,
  argv: readonly string[],
  options: api.ExecOptions,
): Promise<api.Running> {
  if (action !== "shell") return await image[action](argv, options)
  if (argv.length > 0) notice("a shell takes no arguments: they are ignored")
  return await image.shell(options)
}

/**
 * What starters of parallel programs (MPICH's, Slurm's) speak with each process through: a socket whose number is in a variable. It may
 * have been closed on the way, and nothing of this process's own is a socket yet.
 */
function processManager(): readonly number[] {
  const text = process.env["PMI_FD"] ?? ""
  const fd = /^\d{1,4}$/.test(text) ? Number(text) : 0
  try {
    return fd >= 3 && fstatSync(fd).isSocket() ? [fd] : []
  } catch {
    return [] // it is not open
  }
}

/**
 * The descriptors that the payload gets.
 *
 * @throws RunError `ERR_RUN_OPTION` where a secret is read from one of them: it is closed then, and something else takes its number.
 */
function preserved(
  asked: number | readonly number[],
  flags: Readonly<Record<string, unknown>>,
): number | readonly number[] {
  const isAsked = (fd: number): boolean =>
    typeof asked === "number" ? fd >= 3 && fd < 3 + asked : asked.includes(fd)
  const { layerKeys = [] } = flags as { readonly layerKeys?: readonly LayerKeyWord[] }
  const secrets = [
    ...Object.entries(flags).flatMap(([name, fd]) =>
      name.endsWith("Fd") && typeof fd === "number" ? [fd] : [],
    ),
    ...layerKeys.flatMap((key) =>
      "password" in key && key.password !== undefined && "fd" in key.password ? [key.password.fd] : [],
    ),
  ]
  const spent = secrets.find(isAsked)
  if (spent !== undefined)
    throw new api.RunError("ERR_RUN_OPTION", `--preserve-fds: a secret is read from descriptor ${spent}`)
  const theirs = processManager().filter((fd) => !secrets.includes(fd) && !isAsked(fd))
  if (theirs.length === 0) return asked
  return [...(typeof asked === "number" ? Array.from({ length: asked }, (_, i) => 3 + i) : asked), ...theirs]
}

/** Of the options for an instance that runs, those that concern the command alone; the rest was settled when it was started. */
function joinOptions(options: api.ExecOptions, command: Command): api.ExecOptions {
  const { flags, keys } = joining()
  const refused = command.options.filter(
    (option) => !flags.has(option.name()) && command.getOptionValueSource(option.attributeName()) === "cli",
  )
  if (refused.length > 0)
    throw new api.RunError(
      "ERR_RUN_OPTION",
      `${refused.map(({ long }) => long).join(", ")}: not for an instance that runs already`,
    )
  // Variables may ask for more, which is for images.
  return Object.fromEntries(Object.entries(options).filter(([key]) => keys.has(key)))
}

function action(
  name: Action,
  summary: string,
  description: string,
  rest: string,
  examples: CommandRow["examples"],
): CommandRow {
  return command({
    name,
    summary,
    description,
    passesOn: true,
    heading: "Run images",
    common: [...commonActions, "pemPath", "passphrase", "verify"],
    examples,
    arguments: [
      ["<image>", "image, or instance://NAME; options go before it", undefined, "files-or-instances"],
      [rest as "[args...]", "passed on as they are"],
    ],
    // Made for the one command that is asked for: hundreds of objects at each start are felt.
    get options() {
      return { ...cipherRows, ...actionRows(name), ...imageRows }
    },
    run: async (flags, [image, argv], command) => {
      const asked = actionOptions(name, flags, process.env)
      // Before anything is opened that could have their numbers.
      const preserveFds = preserved(asked.preserveFds ?? [], flags)
      const options: api.ExecOptions = {
        stdio: "inherit",
        replaceProcess: failureReporter(),
        signal: interruption,
        onNotice: notice,
      }
      if (image.startsWith(INSTANCE)) {
        const own = joinOptions(asked, command)
        await start(api.openInstance(image.slice(INSTANCE.length)), name, argv, { ...own, ...options })
        return
      }
      const running = await withCredentials(flags, false, async (credentials) => {
        await using opened = await openImage(image, flags, credentials)
        // This process becomes the payload's attendant: what follows is for a payload that did not start, and for an image
        // that was verified.
        const started = await start(opened, name, argv, {
          ...asked,
          ...options,
          preserveFds,
          overlayUnlock: credentials,
        })
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
  })
}

/** What runs a payload: lib/cli/main-run.ts has nothing else. */
export const actions: readonly CommandRow[] = [
  action(
    "exec",
    "run a command in an image",
    "Runs COMMAND inside IMAGE; its exit status is this command's.",
    "<command...>",
    [
      ["with the key of an encrypted image", "sifcrypt exec --pem-path key.pem image.sif id"],
      ["a folder of the host, read-only", "sifcrypt exec --bind /data:/mnt:ro image.sif ls /mnt"],
    ],
  ),
  action("run", "run an image's run script", "Runs the image's run script with ARGS.", "[args...]", [
    ["with the key of an encrypted image", "sifcrypt run --pem-path key.pem image.sif"],
    ["an image at a registry", "sifcrypt run docker://alpine:3.20 echo hello"],
  ]),
  action("shell", "an interactive shell in an image", "Starts bash, or sh, inside IMAGE.", "[args...]", [
    ["with the key of an encrypted image", "sifcrypt shell --pem-path key.pem image.sif"],
    ["in an instance that runs", "sifcrypt shell instance://web"],
  ]),
  action(
    "test",
    "run an image's test script",
    "Runs the image's test script with ARGS; without one there is nothing to do.",
    "[args...]",
    [["with the key of an encrypted image", "sifcrypt test --pem-path key.pem image.sif"]],
  ),
]
