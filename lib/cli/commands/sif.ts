import type { Command } from "commander"
import { sif } from "../../index.ts"
import { output, print, writeAll } from "../output.ts"
import { count } from "../values.ts"

interface ListFlags {
  readonly json?: true
  readonly lenient?: true
}

const objectId = count(0, 9_999_999_999)

export function addSifCommands(program: Command): void {
  const command = program
    .command("sif")
    .summary("look at the objects of an image; no key needed")
    .description("Shows what a SIF image is made of. No key, no privilege and no native library is needed.")
  const listing = (name: string, text: string): Command =>
    command
      .command(name)
      .description(text)
      .argument("<image>", "the image to look at")
      .option("--json", "print JSON")
      .option("--lenient", "list a malformed image as far as it can be read")
  listing("list", "List the objects").action(async (image: string, flags: ListFlags) => {
    await using opened = await sif.openSif(image, { lenient: flags.lenient === true })
    await print(
      flags.json === true ? `${JSON.stringify(sif.listJson(opened), null, 2)}\n` : sif.listText(opened),
    )
  })
  listing("header", "Show the global header").action(async (image: string, flags: ListFlags) => {
    await using opened = await sif.openSif(image, { lenient: flags.lenient === true })
    await print(
      flags.json === true ? `${JSON.stringify(sif.headerJson(opened), null, 2)}\n` : sif.headerText(opened),
    )
  })
  command
    .command("info")
    .description("Show one object's descriptor")
    .argument("<id>", "object ID", objectId)
    .argument("<image>", "the image to look at")
    .option("--json", "print JSON")
    .action(async (id: number, image: string, flags: ListFlags) => {
      await using opened = await sif.openSif(image)
      await print(
        flags.json === true
          ? `${JSON.stringify(sif.infoJson(opened, id), null, 2)}\n`
          : sif.infoText(opened, id),
      )
    })
  command
    .command("dump")
    .description("Write one object's data to standard output")
    .argument("<id>", "object ID", objectId)
    .argument("<image>", "the image to look at")
    .action(async (id: number, image: string) => {
      await using opened = await sif.openSif(image)
      await writeAll(output(), sif.dump(opened, id))
    })
}
