import {
  lstatSync,
  mkdirSync,
  readlinkSync,
  realpathSync,
  renameSync,
  symlinkSync,
  unlinkSync,
} from "node:fs"
import path from "node:path"
import { BuildError } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { peerNames, toolNames } from "../name.ts"
import { jsonRow, printJson } from "../output.ts"
import { inform } from "../terminal.ts"
import { flag } from "../values.ts"

/** Is there something that is not a link to a command of ours? One that leads nowhere belongs to a package that was moved. */
function isForeign(file: string): boolean {
  try {
    return !lstatSync(file).isSymbolicLink() || !/(?:^|\/)dist\/cli\/main\.js$/.test(readlinkSync(file))
  } catch {
    return false // there is nothing
  }
}

function linkOne(file: string, target: string): void {
  const temporary = `${file}.${process.pid}`
  symlinkSync(target, temporary)
  try {
    renameSync(temporary, file)
  } catch (error) {
    unlinkSync(temporary)
    throw error
  }
}

export const link: CommandRow = command({
  name: "link",
  examples: [["for the user alone", "sifcrypt link ~/.local/bin"]],
  heading: "This command",
  summary: "be found as apptainer and singularity, too",
  description:
    "Links apptainer, singularity and run-singularity in FOLDER to this command, or those of them that are named. " +
    "Called by these names it takes options and answers as the peers do; run-singularity is what starts an image that is called as " +
    "a program. ctd-decoder, which decrypts layers for containerd, and ctr-enc of imgcrypt are linked if they are named.",
  arguments: [
    ["<folder>", "where the links are made: one that PATH lists, before the peers' own"],
    ["[names...]", "some of them, or ctd-decoder, ctr-enc", [...peerNames, ...toolNames]],
  ],
  options: { force: ["-F, --force", "replace what is there and is no link of ours", flag], json: jsonRow },
  run: async ({ force, json }, [folder, names]) => {
    mkdirSync(folder, { recursive: true })
    const target = realpathSync(process.argv[1] ?? "")
    const files = (names.length > 0 ? names : peerNames).map((name) => path.join(folder, name))
    const foreign = files.find((file) => force !== true && isForeign(file))
    if (foreign !== undefined)
      throw new BuildError("ERR_BUILD_EXISTS", `${foreign} exists and is not a link to this command`)
    for (const file of files) {
      linkOne(file, target)
      if (json !== true) inform(`${file} leads to ${target}`)
    }
    if (json === true) await printJson({ target, links: files })
  },
})
