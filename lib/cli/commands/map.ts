import { mapImage } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { jsonRow, output, printJson, writeAll } from "../output.ts"
import { flag, text } from "../values.ts"

/** How the terminal on standard output wants it; nothing where there is none. */
function look(): { readonly columns?: number; readonly colors?: boolean } {
  const stream = output()
  if (!stream.isTTY) return {}
  const { TERM = "dumb", NO_COLOR = "" } = process.env
  return { columns: Math.max(20, stream.columns || 80), colors: TERM !== "dumb" && NO_COLOR === "" }
}

export const map: CommandRow = command({
  name: "map",
  examples: [
    ["on the terminal", "sifcrypt map image.sif"],
    ["as a picture", "sifcrypt map --svg image.svg image.sif"],
  ],
  heading: "Look into images",
  summary: "where everything lies in an image, as a picture; no key needed",
  description:
    "Shows what lies where in IMAGE: header, objects, padding, and inside of partitions keyslots, tables and payload. " +
    "Widths grow with the cube root of sizes, so that small parts are seen. No key is needed.",
  arguments: [["<image>", "the image to draw"]],
  options: {
    svg: ["-o, --svg <file>", "write an SVG picture instead", text],
    force: ["-F, --force", "replace an existing file", flag],
    json: jsonRow,
  },
  run: async (flags, [image]) => {
    const map = await mapImage(image)
    if (flags.svg !== undefined) await map.save(flags.svg, { force: flags.force === true })
    if (flags.json === true) await printJson(map)
    else if (flags.svg === undefined) await writeAll(output(), [Buffer.from(map.text(look()))])
  },
})
