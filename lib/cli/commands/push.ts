import { InvalidArgumentError } from "commander"
import { push as pushImage } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { writeDigestFile } from "../digest-file.ts"
import { interruption } from "../interrupt.ts"
import { jsonRow, printResult } from "../output.ts"
import { clientRows, withClientOptions } from "../registry.ts"
import { informDone, Progress, progressRow } from "../progress.ts"
import { notice } from "../terminal.ts"
import { BYTES, each, flag, size, text } from "../values.ts"

function parseAnnotation(word: string): readonly [name: string, value: string] {
  const equals = word.indexOf("=")
  if (equals < 1) throw new InvalidArgumentError("It is NAME=VALUE.")
  return [word.slice(0, equals), word.slice(equals + 1)]
}

export const push: CommandRow = command({
  name: "push",
  examples: [["to a registry", "sifcrypt push image.sif oras://registry.example/group/image:1.0"]],
  heading: "Registries",
  summary: "send an image to a registry",
  description:
    "Sends the SIF IMAGE to a registry, where Apptainer and SingularityCE find it as well. What the registry has is not sent again. " +
    "An encrypted image stays encrypted: its keys are not touched.",
  arguments: [
    ["<image>", "the image, a SIF"],
    ["<reference>", "oras://HOST/REPOSITORY[:TAG]"],
  ],
  options: {
    index: [
      "--index",
      "keep the images for other architectures that have this name; it is done where there are some",
      flag,
    ],
    description: ["--description <text>", "say what it is, as an annotation", text],
    annotation: ["--annotation <name=value>", "say more of it (repeatable)", each(parseAnnotation)],
    allowUnsigned: ["-U, --allow-unsigned", "do not speak of an image that carries no signature", flag],
    digestfile: ["--digestfile <file>", "write the digest that the registry has it by into this file", text],
    chunkSize: [
      "--chunk-size <size>",
      "send in requests of so many bytes, for proxies that take no larger ones",
      size(BYTES, 1, Number.MAX_SAFE_INTEGER),
    ],
    json: jsonRow,
    progress: progressRow,
    ...clientRows,
  },
  run: async (flags, [image, reference]) => {
    const { index, description, annotation = [], allowUnsigned, chunkSize } = flags
    const progress = new Progress(`pushing ${image}`)
    const start = performance.now()
    try {
      const pushed = await withClientOptions(flags, (client) =>
        pushImage({
          image,
          reference,
          index,
          annotations: {
            ...(description === undefined ? {} : { "org.opencontainers.image.description": description }),
            ...Object.fromEntries(annotation),
          },
          unsigned: allowUnsigned === true ? "allow" : "warn",
          registry: { ...client, ...(chunkSize === undefined ? {} : { chunkSize }) },
          signal: interruption,
          onNotice: notice,
          onProgress: (bytes, total) => {
            progress.update(bytes, total)
          },
        }),
      )
      progress.done()
      const digest = pushed.indexDigest ?? pushed.digest
      writeDigestFile(flags.digestfile, digest)
      informDone(`pushed ${image}`, pushed.size, performance.now() - start)
      await printResult(flags, pushed, () => [digest])
    } finally {
      progress.done()
    }
  },
})
