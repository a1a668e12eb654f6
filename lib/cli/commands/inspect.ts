import type { Command } from "commander"
import { readMetadata, type ImageMetadata } from "../../index.ts"
import { withCredentials } from "../credentials.ts"
import { addOpenOptions, openOptions, type OpenFlags } from "../opening.ts"
import { print } from "../output.ts"
import { printable } from "../terminal.ts"

interface InspectFlags extends OpenFlags {
  readonly deffile?: true
  readonly environment?: true
  readonly labels?: true
  readonly runscript?: true
  readonly test?: true
  readonly helpfile?: true
  readonly all?: true
  readonly json?: true
}

type Part = "labels" | "deffile" | "environment" | "runscript" | "startscript" | "test" | "helpfile"

const parts: readonly Part[] = [
  "labels",
  "deffile",
  "runscript",
  "startscript",
  "test",
  "helpfile",
  "environment",
]

/** A script as it is, but nothing in it steers the terminal. */
function printableText(text: string): string {
  const lines = text.split("\n").map((line) => line.split("\t").map(printable).join("\t"))
  return lines.join("\n").replace(/\n*$/, "\n")
}

function partText(metadata: ImageMetadata, part: Part): string {
  switch (part) {
    case "labels":
      return Object.entries(metadata.labels)
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([name, value]) => `${printable(name)}: ${printable(value)}\n`)
        .join("")
    case "environment":
      return Object.entries(metadata.environment)
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([name, text]) => `=== ${printable(name)} ===\n${printableText(text)}`)
        .join("")
    default: {
      const text = metadata[part]
      return text === undefined ? "" : printableText(text)
    }
  }
}

export function addInspectCommand(program: Command): void {
  const command = program
    .command("inspect")
    .summary("labels, definition and scripts of an image")
    .description(
      "Shows what IMAGE says of itself, its labels by default. A key is needed where that is kept inside the encryption.",
    )
    .argument("<image>", "the image to ask")
    .option("-l, --labels", "labels (default)")
    .option("-d, --deffile", "definition file")
    .option("-e, --environment", "environment scripts")
    .option("-r, --runscript", "run script")
    .option("-t, --test", "test script")
    .option("-H, --helpfile", "help text")
    .option("--all", "everything, as JSON")
    .option("--json", "print JSON, as the peers do")
  addOpenOptions(command).action(async (image: string, flags: InspectFlags) => {
    const metadata = await withCredentials(flags, false, (credentials) =>
      readMetadata(image, openOptions(flags, credentials)),
    )
    const chosen = parts.filter(
      (part) => flags.all === true || (part !== "startscript" && flags[part] === true),
    )
    const wanted: readonly Part[] = chosen.length === 0 ? ["labels"] : chosen
    if (flags.json === true || flags.all === true) {
      const attributes = Object.fromEntries(wanted.map((part) => [part, metadata[part]]))
      await print(`${JSON.stringify({ data: { attributes }, type: "container" }, null, "\t")}\n`)
    } else await print(wanted.map((part) => partText(metadata, part)).join(""))
  })
}
