import { InvalidArgumentError, type Command } from "commander"
import { sif as sifs } from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { interruption } from "../interrupt.ts"
import { notice } from "../terminal.ts"
import { jsonRow, output, print, printJson, writeAll } from "../output.ts"
import { count, flag } from "../values.ts"

const objectId = count(0, 9_999_999_999)

/** Of a descriptor's field. */
const MAX_NAME_BYTES = 128

function objectName(name: string): string {
  if (Buffer.byteLength(name) > MAX_NAME_BYTES)
    throw new InvalidArgumentError(`It has at most ${MAX_NAME_BYTES} bytes.`)
  return name
}

const image = ["<image>", "the image to look at"] as const

/** A command that prints what `text` or `asJson` makes of an image. */
function listing(
  name: string,
  description: string,
  text: (image: sifs.SifImage) => string,
  asJson: (image: sifs.SifImage) => unknown,
): CommandRow {
  return command({
    name,
    examples: [["of an image", `sifcrypt sif ${name} image.sif`]],
    description,
    arguments: [image],
    options: {
      json: jsonRow,
      lenient: ["--lenient", "list a malformed image as far as it can be read", flag],
    },
    run: async (flags, [path]) => {
      await using opened = await sifs.openSif(path, { lenient: flags.lenient === true })
      await print(flags.json === true ? `${JSON.stringify(asJson(opened), null, 2)}\n` : text(opened))
    },
  })
}

const info = command({
  name: "info",
  examples: [["what object 2 is", "sifcrypt sif info 2 image.sif"]],
  description: "Show one object's descriptor",
  arguments: [["<id>", "object ID", objectId], image],
  options: { json: jsonRow },
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
  examples: [["the definition file, if it is object 1", "sifcrypt sif dump 1 image.sif"]],
  description: "Write one object's data to standard output",
  arguments: [["<id>", "object ID", objectId], image],
  run: async (_, [id, path]) => {
    await using opened = await sifs.openSif(path)
    await writeAll(output(), sifs.dump(opened, id))
  },
})

const breakSignatures = [
  "--break-signatures",
  "also where signatures do not hold any more then",
  flag,
] as const
const changed = ["<image>", "the image to change"] as const

const create = command({
  name: "new",
  examples: [["without any object", "sifcrypt sif new image.sif"]],
  description: "Make an image without any object",
  arguments: [["<image>", "the image to make"]],
  options: { json: jsonRow },
  run: async ({ json }, [path]) => {
    await sifs.createSif(path)
    if (json === true) await printJson({ output: path })
  },
})

const sbomFormats = [
  "cyclonedx-json",
  "cyclonedx-xml",
  "github-json",
  "spdx-json",
  "spdx-rdf",
  "spdx-tag-value",
  "spdx-yaml",
  "syft-json",
] as const

/** The peers' numbers of types are these without their first digits. */
const TYPES = 0x4000

function fingerprint(word: string): Buffer {
  if (!/^(?:[0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$/.test(word))
    throw new InvalidArgumentError("It is a fingerprint: 40 or 64 hexadecimal digits.")
  return Buffer.from(word, "hex")
}

/** What the options say of one kind of object. */
function kindOf(
  flags: {
    readonly datatype: number
    readonly parttype?: number | undefined
    readonly partfs?: number | undefined
    readonly partarch?: number | undefined
    readonly signhash?: number | undefined
    readonly signentity?: Buffer | undefined
    readonly sbomformat?: (typeof sbomFormats)[number] | undefined
  },
  command: Command,
): Pick<sifs.NewFileObject, "partition" | "signature" | "sbomFormat"> {
  const { parttype, partfs, partarch, signhash, signentity, sbomformat } = flags
  const own = {
    [sifs.DataType.partition]: { parttype, partfs, partarch },
    [sifs.DataType.signature]: { signhash, signentity },
    [sifs.DataType.sbom]: { sbomformat },
  }
  for (const [type, options] of Object.entries(own))
    for (const [name, value] of Object.entries(options))
      if (value !== undefined && Number(type) !== TYPES + flags.datatype)
        command.error(`error: --${name} goes with --datatype ${Number(type) - TYPES}`)
  switch (TYPES + flags.datatype) {
    case sifs.DataType.partition:
      if (parttype === undefined || partfs === undefined || partarch === undefined)
        command.error("error: --datatype 4 needs --parttype, --partfs and --partarch")
      return { partition: { fileSystem: partfs, type: parttype, arch: String(partarch).padStart(2, "0") } }
    case sifs.DataType.signature:
      if (signhash === undefined || signentity === undefined)
        command.error("error: --datatype 5 needs --signhash and --signentity")
      return { signature: { hash: signhash, entity: signentity } }
    case sifs.DataType.sbom:
      if (sbomformat === undefined) command.error("error: --datatype 9 needs --sbomformat")
      return { sbomFormat: sbomFormats.indexOf(sbomformat) + 1 }
    default:
      return {}
  }
}

const add = command({
  name: "add",
  examples: [["a file of any kind", "sifcrypt sif add --datatype 7 image.sif notes.txt"]],
  description: "Add a file to an image, as an object",
  arguments: [changed, ["<file>", "what to add"]],
  options: {
    datatype: [
      "--datatype <n>",
      "1 definition, 2 environment, 3 labels, 4 partition, 5 signature, 6 JSON, 7 generic, 8 crypto message, 9 SBOM, 10 OCI root index, 11 OCI blob",
      count(1, 11),
      { required: true },
    ],
    parttype: [
      "--parttype <n>",
      "of a partition: 1 system, 2 primary system, 3 data, 4 overlay",
      count(1, 4),
    ],
    partfs: ["--partfs <n>", "of a partition: 1 squashfs, 2 ext3, 3 archive, 4 raw", count(1, 4)],
    partarch: [
      "--partarch <n>",
      "of a partition: 1 386, 2 amd64, 3 arm, 4 arm64, 5 ppc64, 6 ppc64le, 7 mips, 8 mipsle, 9 mips64, 10 mips64le, 11 s390x, 12 riscv64",
      count(1, 12),
    ],
    signhash: [
      "--signhash <n>",
      "of a signature: 1 SHA-256, 2 SHA-384, 3 SHA-512, 4 BLAKE2s-256, 5 BLAKE2b-256",
      count(1, 5),
    ],
    signentity: ["--signentity <fingerprint>", "of a signature: who signed", fingerprint],
    sbomformat: ["--sbomformat <name>", "of an SBOM", sbomFormats],
    groupid: ["--groupid <n>", "its group; default none", count(0, 0x0fffffff)],
    link: ["--link <id>", "the object that it is about; default none", count(0, 0x0fffffff)],
    alignment: [
      "--alignment <n>",
      "its data lies at a multiple of this; default 4096 for a partition",
      count(0, 1 << 30),
    ],
    filename: ["--filename <name>", "its name in the image; default none", objectName],
    breakSignatures,
    json: jsonRow,
  },
  run: async (flags, [path, file], command) => {
    const { datatype, groupid: group = 0, link = 0, filename: name = "", alignment } = flags
    const id = await sifs.addFile(
      path,
      {
        type: TYPES + datatype,
        group,
        link: link === 0 ? { to: "none" } : { to: "object", id: link },
        name,
        ...kindOf(flags, command),
      },
      file,
      {
        breakSignatures: flags.breakSignatures === true,
        signal: interruption,
        ...(alignment === undefined ? {} : { alignment }),
      },
    )
    if (flags.json === true) await printJson({ id })
    if (TYPES + datatype === sifs.DataType.signature) return
    await using opened = await sifs.openSif(path)
    if (opened.objects.some(({ type }) => type === sifs.DataType.signature))
      notice(`${path}: the image is signed, and no signature speaks of the new object ${id}`)
  },
})

/** A command that changes what `change` changes of one object. */
function changing(
  name: string,
  description: string,
  example: readonly [string, string],
  change: (path: string, id: number, options: sifs.ObjectChangeOptions) => Promise<void>,
): CommandRow {
  return command({
    name,
    description,
    examples: [example],
    arguments: [["<id>", "object ID", objectId], changed],
    options: { breakSignatures, json: jsonRow },
    run: async (flags, [id, path]) => {
      await change(path, id, { breakSignatures: flags.breakSignatures === true, signal: interruption })
      if (flags.json === true) await printJson({ id })
    },
  })
}

export const sif: CommandRow = {
  name: "sif",
  heading: "Make and change images",
  summary: "the objects of an image: look at them, change them; no key needed",
  description: "Shows what a SIF image is made of, and changes it. No key and no privilege is needed.",
  helpsAlone: true,
  commands: [
    listing("list", "List the objects", sifs.listText, sifs.listJson),
    listing("header", "Show the global header", sifs.headerText, sifs.headerJson),
    info,
    dump,
    create,
    add,
    changing(
      "del",
      "Take an object out of an image; its data is overwritten",
      ["object 3", "sifcrypt sif del 3 image.sif"],
      sifs.deleteObject,
    ),
    changing(
      "setprim",
      "Make a system partition the primary one",
      ["run object 4 from now on", "sifcrypt sif setprim 4 image.sif"],
      sifs.setPrimary,
    ),
  ],
}
