import path from "node:path"
import { build as buildImage, pull as pullImage } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { commandName } from "../name.ts"
import { outputRows, showMaking } from "../encryption.ts"
import { interruption } from "../interrupt.ts"
import { printJson } from "../output.ts"
import { informDone } from "../progress.ts"
import { architectureRows, chosenArchitecture, registryRows, withRegistryOptions } from "../registry.ts"
import { signerOptions, signerRows } from "../signers.ts"
import { notice, printable } from "../terminal.ts"
import { flag, text } from "../values.ts"
import { variable } from "../variables.ts"

function isAddress(source: string): boolean {
  return /^https?:\/\//.test(source) && URL.canParse(source)
}

/** What the peers call the image of a name: the last part of the repository, and the tag; a file as its address does. */
export function pulledName(source: string): string {
  if (isAddress(source)) return path.posix.basename(new URL(source).pathname) || "image.sif"
  const [, transport = "", rest = source] = /^([a-z][a-z0-9-]*):(.*)$/s.exec(source) ?? []
  const last = rest.split("/").findLast((part) => part !== "") ?? ""
  // A path is followed by a choice, and has an ending.
  const [name = "", tag = "latest"] =
    transport === "docker" || transport === "oras"
      ? last.split(":")
      : last.split(":").map((part) => part.replace(/\.tar(?:\.\w+)?$/, ""))
  return `${name}_${tag}.sif`
}

export const pull: CommandRow = command({
  name: "pull",
  examples: [
    ["an image that Docker Hub has", "sifcrypt pull docker://alpine:3.20"],
    [
      "a SIF, by whoever must have signed it",
      "sifcrypt pull --verify image.sif oras://registry.example/group/image:1.0",
    ],
  ],
  heading: "Registries",
  summary: "fetch an image and make a SIF of it",
  description:
    "Fetches the SIF that SOURCE names, oras://HOST/REPOSITORY[:TAG|@DIGEST], or one at an address, https://HOST/PATH, with --digest or " +
    "--verify, or makes one of an OCI image: docker://[HOST/]REPOSITORY[:TAG|@DIGEST], oci:DIR, oci-archive:FILE, docker-archive:FILE or store:NAME. It is called OUTPUT, or as the " +
    "image with its tag: repository_tag.sif.",
  arguments: [
    ["<output-or-source>", "what to call it, if SOURCE follows"],
    ["[source]", "name of the image"],
  ],
  options: {
    name: ["--name <file>", "what to call it; stronger than OUTPUT", text],
    folder: ["--dir <dir>", "where to put it (default: here)", text],
    ...architectureRows,
    digest: ["--digest <digest>", "of the SIF file, sha256:...: another one is refused", text],
    library: ["--library <url>", "accepted: there are no libraries of images here", text, { hidden: true }],
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
      "accepted: what has to be signed is said by --verify",
      flag,
      { hidden: true },
    ],
    ...outputRows,
    ...signerRows,
    ...registryRows,
  },
  run: async (flags, [first, second], made) => {
    const source = second ?? first
    if (second !== undefined && /^[a-z][a-z0-9-]*:\/\//.test(first))
      made.error(
        `error: OUTPUT comes before SOURCE: ${commandName} pull ${printable(second)} ${printable(first)}`,
      )
    if (!/^[a-z][a-z0-9-]*:/.test(source))
      made.error(
        `error: '${printable(source)}' names no image: docker://${printable(source)} would, at Docker Hub`,
      )
    const called = flags.name ?? (second === undefined ? pulledName(source) : first)
    const folder = flags.folder ?? variable("PULLDIR", "PULLFOLDER")
    const output = folder === undefined ? called : path.join(folder, called)
    const { sandbox, digest } = flags
    const architecture = chosenArchitecture(flags)
    const tmpFolder = flags.tmpFolder ?? variable("TMPDIR")
    const signers = signerOptions(flags)
    if (source.startsWith("oras://") || isAddress(source)) {
      if (sandbox === true)
        made.error(`error: --sandbox: ${printable(source)} is an image, and is fetched as it is`)
      const start = performance.now()
      const pulled = await withRegistryOptions(flags, source, tmpFolder, ({ onFetch: onProgress, ...oci }) =>
        pullImage({
          ...signers,
          ...{ reference: source, output, force: flags.force, digest, architecture, oci },
          signal: interruption,
          onNotice: notice,
          onProgress,
        }),
      )
      if (flags.json === true) await printJson(pulled)
      else informDone(output, pulled.size, performance.now() - start)
      return
    }
    if (digest !== undefined)
      made.error(
        `error: --digest: ${printable(source)} is an OCI image: @sha256:... behind its name says which`,
      )
    if (signers.verify !== undefined)
      made.error(`error: --verify: ${printable(source)} is an OCI image, which nobody signs so`)
    await withRegistryOptions(flags, source, tmpFolder, (oci) =>
      showMaking(`pulling ${source}`, output, flags, (options) =>
        buildImage({ ...options, source, oci, architecture, sandbox }),
      ),
    )
  },
})
