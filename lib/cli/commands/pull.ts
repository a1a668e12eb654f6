import path from "node:path"
import { build as buildImage } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { outputRows, showMaking } from "../encryption.ts"
import { registryRows, withRegistryOptions } from "../registry.ts"
import { printable } from "../terminal.ts"
import { flag, text } from "../values.ts"
import { variable } from "../variables.ts"

/** What the peers call the image of a name: the last part of the repository, and the tag. */
export function pulledName(source: string): string {
  const [, transport = "", rest = source] = /^([a-z][a-z0-9-]*):(.*)$/s.exec(source) ?? []
  const last = rest.split("/").findLast((part) => part !== "") ?? ""
  // A path is followed by a choice, and has an ending.
  const [name = "", tag = "latest"] =
    transport === "docker"
      ? last.split(":")
      : last.split(":").map((part) => part.replace(/\.tar(?:\.\w+)?$/, ""))
  return `${name}_${tag}.sif`
}

export const pull: CommandRow = command({
  name: "pull",
  summary: "fetch an image and make a SIF of it",
  description:
    "Makes a SIF image of the image that SOURCE names: docker://[HOST/]REPOSITORY[:TAG|@DIGEST], oci:DIR, oci-archive:FILE or " +
    "docker-archive:FILE. It is called OUTPUT, or as the image with its tag: repository_tag.sif.",
  arguments: [
    ["<output-or-source>", "what to call it, if SOURCE follows"],
    ["[source]", "name of the image"],
  ],
  options: {
    name: ["--name <file>", "what to call it; stronger than OUTPUT", text],
    folder: ["--dir <dir>", "where to put it (default: here)", text],
    architecture: [
      "--arch <architecture>",
      "of the image to choose: amd64, arm64, arm32v7, ppc64le, ...",
      text,
    ],
    sandbox: ["--sandbox", "write an ordinary folder instead of an image", flag],
    tmpFolder: ["--tmpdir <dir>", "for temporary files (default TMPDIR)", text],
    noCleanup: [
      "--no-cleanup",
      "accepted: nothing is left that had to be cleaned up",
      flag,
      { hidden: true },
    ],
    allowUnsigned: [
      "-U, --allow-unsigned",
      "accepted: images of registries carry no signature",
      flag,
      { hidden: true },
    ],
    ...outputRows,
    ...registryRows,
  },
  run: async (flags, [first, second], made) => {
    const source = second ?? first
    if (!/^[a-z][a-z0-9-]*:/.test(source))
      made.error(
        `error: '${printable(source)}' names no image: docker://${printable(source)} would, at Docker Hub`,
      )
    const called = flags.name ?? (second === undefined ? pulledName(source) : first)
    const folder = flags.folder ?? variable("PULLDIR", "PULLFOLDER")
    const output = folder === undefined ? called : path.join(folder, called)
    const { architecture, sandbox } = flags
    await withRegistryOptions(flags, source, flags.tmpFolder ?? variable("TMPDIR"), (oci) =>
      showMaking(`pulling ${source}`, output, flags, (options) =>
        buildImage({ ...options, source, oci, architecture, sandbox }),
      ),
    )
  },
})
