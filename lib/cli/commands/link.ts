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
import { BuildError, squashfuseProgram } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { peerNames, squashfuseName, toolNames } from "../name.ts"
import { jsonRow, printJson } from "../output.ts"
import { inform } from "../terminal.ts"
import { flag } from "../values.ts"

/** What links of ours lead to. */
const ours = /(?:^|\/)(?:dist\/cli\/main\.js|sifcrypt-starter(?:\.\w+)?)$/

/** Is there something that is not a link to a command of ours? One that leads nowhere belongs to a package that was moved. */
function isForeign(file: string): boolean {
  try {
    return !lstatSync(file).isSymbolicLink() || !ours.test(readlinkSync(file))
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
  examples: [
    ["for the user alone", "sifcrypt link ~/.local/bin"],
    ["for podman --runtime ~/.local/bin/sifcrypt-oci", "sifcrypt link ~/.local/bin sifcrypt-oci"],
  ],
  heading: "This command",
  summary: "be found as apptainer and singularity, too",
  description:
    "Links apptainer, singularity and run-singularity in FOLDER to this command, or those of them that are named. " +
    "Called by these names it takes options and answers as the peers do; run-singularity is what starts an image that is called as " +
    "a program. ctd-decoder, which decrypts layers for containerd, ctr-enc of imgcrypt, sifcrypt-oci, an OCI runtime, and squashfuse_ll, " +
    "with which Apptainer and Singularity mount plain images, are linked if they are named.",
  arguments: [
    ["<folder>", "where the links are made: one that PATH lists, before the peers' own"],
    [
      "[names...]",
      "some of them, or ctd-decoder, ctr-enc, sifcrypt-oci, squashfuse_ll",
      [...peerNames, ...toolNames, squashfuseName],
    ],
  ],
  options: { force: ["-F, --force", "replace what is there and is no link of ours", flag], json: jsonRow },
  run: async ({ force, json }, [folder, names]) => {
    mkdirSync(folder, { recursive: true })
    const own = realpathSync(process.argv[1] ?? "")
    const links = (names.length > 0 ? names : peerNames).map((name) => ({
      file: path.join(folder, name),
      target: name === squashfuseName ? squashfuseProgram() : own,
    }))
    const foreign = links.find(({ file }) => force !== true && isForeign(file))?.file
    if (foreign !== undefined)
      throw new BuildError("ERR_BUILD_EXISTS", `${foreign} exists and is not a link to this command`)
    for (const { file, target } of links) {
      linkOne(file, target)
      if (json !== true) inform(`${file} leads to ${target}`)
    }
    const squashfuse = links.find(({ target }) => target !== own)?.target
    if (json === true) await printJson({ target: own, squashfuse, links: links.map(({ file }) => file) })
  },
})
