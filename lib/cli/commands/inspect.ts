import * as api from "../../index.ts"
import { command, type CommandRow, type FlagsOf } from "../command.ts"
import { withCredentials } from "../credentials.ts"
import { imageRows, openOptions, withNameOptions, type ImageFlags } from "../opening.ts"
import { jsonRow, print, printJson } from "../output.ts"
import { printable } from "../terminal.ts"
import { flag, text } from "../values.ts"

const inspectRows = {
  labels: ["-l, --labels", "labels (default)", flag],
  deffile: ["-d, --deffile", "definition file", flag],
  environment: ["-e, --environment", "environment scripts", flag],
  runscript: ["-r, --runscript", "run script", flag],
  startscript: ["-s, --startscript", "start script of an instance", flag],
  test: ["-t, --test", "test script", flag],
  helpfile: ["-H, --helpfile", "help text", flag],
  app: ["--app <name>", "of an app in the image", text],
  listApps: ["--list-apps", "names of the apps in the image", flag],
  all: ["--all", "everything, as JSON", flag],
  json: ["-j, --json", "print JSON, as the peers do", flag],
} as const
type InspectFlags = FlagsOf<typeof inspectRows>

/** In the order of their output. */
const parts: readonly api.MetadataPart[] = [
  "deffile",
  "runscript",
  "startscript",
  "test",
  "helpfile",
  "environment",
  "labels",
]

/** Without line ends at its end; looked for from there, so that a text of nothing else takes no longer. */
function withoutEnd(text: string): string {
  let end = text.length
  while (text[end - 1] === "\n") end--
  return text.slice(0, end)
}

/** A script as it is, but nothing in it steers the terminal. */
function printableText(text: string): string {
  return `${withoutEnd(text.replace(/[^\n\t -~]+/g, printable))}\n`
}

function partText(metadata: Partial<api.ImageMetadata>, part: api.MetadataPart): string {
  switch (part) {
    case "labels":
      return Object.entries(metadata.labels ?? {})
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([name, value]) => `${printable(name)}: ${printable(value)}\n`)
        .join("")
    case "environment":
      return Object.entries(metadata.environment ?? {})
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([name, text]) => `=== ${printable(name)} ===\n${printableText(text)}\n`)
        .join("")
    default: {
      const text = metadata[part]
      return text === undefined ? "" : printableText(text)
    }
  }
}

/** The parts as JSON has them: text without a line end, nothing for what is empty. */
function partValues(
  metadata: Partial<api.ImageMetadata>,
  wanted: readonly api.MetadataPart[],
): Record<string, unknown> {
  const entries = wanted.flatMap((part): [string, unknown][] => {
    const value = metadata[part]
    if (value === undefined) return []
    if (typeof value === "string") return [[part, withoutEnd(value)]]
    const texts = Object.entries(value).map(([name, text]) => [name, withoutEnd(text)] as const)
    return texts.length === 0 ? [] : [[part, Object.fromEntries(texts)]]
  })
  return Object.fromEntries(entries)
}

function appNamed(metadata: api.ImageMetadata, name: string): api.AppMetadata {
  const app = Object.hasOwn(metadata.apps, name) ? metadata.apps[name] : undefined
  if (app === undefined)
    throw new api.RunError("ERR_RUN_OPTION", `--app: there is no app ${printable(name)} in the image`)
  return app
}

/** What has to be read of the image, and no more. */
function asked({
  app,
  all,
  listApps,
  json,
  ...flags
}: InspectFlags): Pick<api.MetadataOptions, "parts" | "apps"> {
  if (listApps === true && json !== true && all !== true) return { parts: [], apps: "names" }
  const of = app === undefined ? {} : { apps: [app] }
  if (all === true || listApps === true) return of
  const chosen = parts.filter((part) => flags[part] === true)
  return { parts: chosen.length === 0 ? ["labels"] : chosen, apps: [], ...of }
}

async function show(metadata: api.ImageMetadata, flags: InspectFlags): Promise<void> {
  const chosen = parts.filter((part) => flags.all === true || flags[part] === true)
  const apps = flags.app === undefined ? metadata.apps : { [flags.app]: appNamed(metadata, flags.app) }
  const asJson = flags.json === true || flags.all === true
  const wanted: readonly api.MetadataPart[] =
    chosen.length === 0 && flags.listApps !== true ? ["labels"] : chosen
  if (!asJson) {
    if (flags.listApps === true) {
      await print(
        Object.keys(apps)
          .sort()
          .map((name) => `${printable(name)}\n`)
          .join(""),
      )
      return
    }
    // Only the image as a whole has a definition.
    const shown = flags.app === undefined ? metadata : { deffile: metadata.deffile, ...apps[flags.app] }
    await print(wanted.map((part) => partText(shown as Partial<api.ImageMetadata>, part)).join(""))
    return
  }
  const withApps = flags.all === true || flags.listApps === true || flags.app !== undefined
  const ofApps = flags.all === true || flags.listApps === true ? parts : wanted
  const attributes = {
    ...(withApps && Object.keys(apps).length > 0
      ? {
          apps: Object.fromEntries(
            Object.entries(apps).map(([name, app]) => [name, partValues(app, ofApps)]),
          ),
        }
      : {}),
    ...(flags.app === undefined || flags.all === true ? partValues(metadata, wanted) : {}),
  }
  await print(`${JSON.stringify({ data: { attributes }, type: "container" }, null, "\t")}\n`)
}

async function read(
  image: string,
  flags: ImageFlags,
  what: Pick<api.MetadataOptions, "parts" | "apps">,
): Promise<api.ImageMetadata> {
  return await withCredentials(flags, false, (credentials) =>
    withNameOptions(image, flags, (named) =>
      api.readMetadata(image, { ...openOptions(flags, credentials), ...what, ...named }),
    ),
  )
}

export const inspect: CommandRow = command({
  name: "inspect",
  examples: [["its definition file", "sifcrypt inspect --deffile --pem-path key.pem image.sif"]],
  heading: "Look into images",
  summary: "labels, definition and scripts of an image",
  description:
    "Shows what IMAGE says of itself, its labels by default. A key is needed where that is kept inside the encryption.",
  arguments: [["<image>", "the image to ask"]],
  options: {
    ...inspectRows,
    ...imageRows,
  },
  run: async (flags, [image]) => {
    await show(await read(image, flags, asked(flags)), flags)
  },
})

export const runHelp: CommandRow = command({
  name: "run-help",
  examples: [["of an encrypted image", "sifcrypt run-help --pem-path key.pem image.sif"]],
  heading: "Look into images",
  summary: "help text of an image",
  description: "Shows the help that IMAGE has for those who run it.",
  arguments: [["<image>", "the image to ask"]],
  options: { app: ["--app <name>", "of an app in the image", text], json: jsonRow, ...imageRows },
  run: async (flags, [image]) => {
    const apps = flags.app === undefined ? [] : [flags.app]
    const metadata = await read(image, flags, { parts: ["helpfile"], apps })
    const of = flags.app === undefined ? metadata : appNamed(metadata, flags.app)
    if (flags.json === true) await printJson({ help: of.helpfile ?? null })
    else
      await print(
        of.helpfile === undefined
          ? "No help sections were defined for this image\n"
          : printableText(of.helpfile),
      )
  },
})
