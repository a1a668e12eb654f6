import { sif as sifs } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { output, print, writeAll } from "../output.ts"
import { count, flag } from "../values.ts"

const objectId = count(0, 9_999_999_999)

const image = ["<image>", "the image to look at"] as const
const json = ["--json", "print JSON", flag] as const

/** A command that prints what `text` or `asJson` makes of an image. */
function listing(
  name: string,
  description: string,
  text: (image: sifs.SifImage) => string,
  asJson: (image: sifs.SifImage) => unknown,
): CommandRow {
  return command({
    name,
    description,
    arguments: [image],
    options: { json, lenient: ["--lenient", "list a malformed image as far as it can be read", flag] },
    run: async (flags, [path]) => {
      await using opened = await sifs.openSif(path, { lenient: flags.lenient === true })
      await print(flags.json === true ? `${JSON.stringify(asJson(opened), null, 2)}\n` : text(opened))
    },
  })
}

const info = command({
  name: "info",
  description: "Show one object's descriptor",
  arguments: [["<id>", "object ID", objectId], image],
  options: { json },
  run: async (flags, [id, path]) => {
    await using opened = await sifs.openSif(path)
    await print(
      flags.json === true
        ? `${JSON.stringify(sifs.infoJson(opened, id), null, 2)}\n`
        : sifs.infoText(opened, id),
    )
  },
})

const dump = command({
  name: "dump",
  description: "Write one object's data to standard output",
  arguments: [["<id>", "object ID", objectId], image],
  run: async (_, [id, path]) => {
    await using opened = await sifs.openSif(path)
    await writeAll(output(), sifs.dump(opened, id))
  },
})

export const sif: CommandRow = {
  name: "sif",
  summary: "look at the objects of an image; no key needed",
  description: "Shows what a SIF image is made of. No key, no privilege and no native library is needed.",
  commands: [
    listing("list", "List the objects", sifs.listText, sifs.listJson),
    listing("header", "Show the global header", sifs.headerText, sifs.headerJson),
    info,
    dump,
  ],
}
