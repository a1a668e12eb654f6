import path from "node:path"
import { InvalidArgumentError, type Command } from "commander"
import * as api from "../../index.ts"
import { command, type AnyOptions, type CommandRow } from "../command.ts"
import {
  credentialRows,
  gaveCredentials,
  layerCredentials,
  withCredentials,
  type CredentialFlags,
  type LayerKeyWord,
} from "../credentials.ts"
import { definitionOptions, definitionRows } from "../definition.ts"
import { encryptionOptions, encryptionRows, showMaking } from "../encryption.ts"
import { layerKeyRow } from "../layer-keys.ts"
import { costOptions, costRows, plainOptions, plainRows } from "../opening.ts"
import { architectureRows, chosenArchitecture, registryRows, withRegistryOptions } from "../registry.ts"
import { signerOptions, signerRows } from "../signers.ts"
import { interruption, waitForHelpers } from "../interrupt.ts"
import { parseMountSpec } from "../mount-spec.ts"
import { notice, printable } from "../terminal.ts"
import { each, flag, text } from "../values.ts"
import { variable } from "../variables.ts"

interface KeyFlags
  extends CredentialFlags, Pick<api.BuildOptions, "encrypt" | "format" | "sandbox" | "update"> {
  readonly sourcePemPath?: readonly string[]
  readonly keys?: readonly LayerKeyWord[]
  readonly sourcePassphraseFile?: string
}

/**
 * For whom the image is, and what opens its source. The environment alone encrypts nothing.
 *
 * @param password - Of the source's key files, too.
 */
function keysOf(
  flags: KeyFlags,
  credentials: readonly api.CredentialSource[],
  password: api.SecretSource,
): Partial<Pick<api.BuildOptions, "recipients" | "unlock">> {
  const { sourcePemPath = [], keys = [], sourcePassphraseFile } = flags
  const source: api.CredentialSource[] = [
    ...sourcePemPath.map((file) => ({ key: { file }, password })),
    ...layerCredentials(keys, password),
    ...(sourcePassphraseFile === undefined ? [] : [{ passphrase: { file: sourcePassphraseFile } }]),
  ]
  const unlock = source.length > 0 ? source : undefined
  const encrypts = flags.encrypt === true || flags.format !== undefined || gaveCredentials(flags)
  const isFolder = flags.sandbox === true || flags.update === true
  return encrypts && !isFolder ? { recipients: credentials, unlock } : { unlock: unlock ?? credentials }
}

/** An image that a machine builds, or the first of several machines that can. */
interface Made {
  readonly output: string
  readonly architecture: string | undefined
  readonly remote: readonly string[] | undefined
}

/** `image-arm64.sif` of `image.sif`. */
function outputFor(output: string, architecture: string): string {
  const { dir, name, ext } = path.parse(output)
  return path.join(dir, `${name}-${architecture}${ext}`)
}

/** With several machines and no architecture that is wanted there is an image for that of each. */
async function imagesOf(
  output: string,
  remote: readonly string[] | undefined,
  architecture: string | undefined,
): Promise<readonly Made[]> {
  if (remote === undefined || remote.length === 1 || architecture !== undefined)
    return [{ output, architecture, remote }]
  const builders = await api.remoteBuilders({ remote, signal: interruption, onNotice: notice })
  const made = new Map<string, string>()
  for (const builder of builders) {
    const other = made.get(builder.architecture)
    if (other !== undefined)
      throw new api.BuildError(
        "ERR_BUILD_REMOTE_REFUSED",
        `${other} and ${builder.remote} are both ${builder.architecture}: one of them is to be named, or --arch, with which the first builds`,
      )
    made.set(builder.architecture, builder.remote)
  }
  return [...made].map(([own, one]) => ({
    output: outputFor(output, own),
    architecture: own,
    remote: [one],
  }))
}

/** As reproducible-builds.org defines it. */
function sourceDateEpoch(command: Command): number | undefined {
  const text = process.env["SOURCE_DATE_EPOCH"]
  if (text === undefined || text === "") return undefined
  if (!/^\d{1,11}$/.test(text))
    command.error(`error: SOURCE_DATE_EPOCH is a number of seconds, not ${printable(text)}`)
  return Number(text)
}

function parseCompression(text: string): api.Compression {
  const match = /^(zstd|gzip|lz4|xz)(?::(\d{1,2}))?$/.exec(text)
  if (match === null) throw new InvalidArgumentError("It is zstd, gzip, lz4 or xz, with :LEVEL if you like.")
  const name = match[1] as api.CompressionName
  if (match[2] === undefined) return { name }
  const level = Number(match[2])
  const [least, most] = api.compressionLevels[name]
  if (level < least || level > most)
    throw new InvalidArgumentError(`The level of ${name} is ${least} to ${most}.`)
  return { name, level }
}

function parseOwner(text: string): api.Owner {
  if (text === "preserve" || text === "root") return text
  const match = /^(\d{1,10}):(\d{1,10})$/.exec(text)
  const [uid, gid] = [Number(match?.[1]), Number(match?.[2])]
  if (!(uid < 2 ** 32 && gid < 2 ** 32)) throw new InvalidArgumentError("It is preserve, root or UID:GID.")
  return { uid, gid }
}

function ownerOption(
  { keepOwner, owner }: { readonly keepOwner?: true; readonly owner?: api.Owner },
  command: Command,
): api.Owner | undefined {
  if (keepOwner !== undefined && owner !== undefined && owner !== "preserve")
    command.error("error: --keep-owner and --owner say different things")
  return owner ?? (keepOwner === true ? "preserve" : undefined)
}

/** Words for mksquashfs: what is taken from them, or that they only have it do the same faster, or tell less. */
const squashfsWords: Readonly<Record<string, "name" | "level" | "word" | "flag">> = {
  "-comp": "name",
  "-Xcompression-level": "level",
  "-processors": "word",
  "-mem": "word",
  "-mem-percent": "word",
  "-progress": "flag",
  "-no-progress": "flag",
  "-quiet": "flag",
  "-noappend": "flag",
  "-info": "flag",
}

/** Arguments for mksquashfs, which does not run here: the compression is taken from them. */
export function parseSquashfsArguments(line: string): Pick<api.BuildOptions, "compression"> {
  const words = line.split(/\s+/).filter((word) => word !== "")
  const found: { name?: string; level?: string } = {}
  while (words.length > 0) {
    const word = words.shift() ?? ""
    const kind = squashfsWords[word]
    if (kind === undefined)
      throw new InvalidArgumentError(`mksquashfs does not run here, and '${word}' has no meaning without it.`)
    if (kind === "flag") continue
    const value = words.shift()
    if (value === undefined) throw new InvalidArgumentError(`A value has to follow ${word}.`)
    if (kind !== "word") found[kind] = value
  }
  const { name = "gzip", level } = found
  if (found.name === undefined && level === undefined) return {}
  return { compression: parseCompression(level === undefined ? name : `${name}:${level}`) }
}

/** Options of the peers' that change nothing here, and what is said of them if they are given. */
const unneeded = {
  fakeroot: [
    "-f, --fakeroot",
    "accepted: building needs no privilege, and is root's inside",
    flag,
    { hidden: true },
  ],
  userns: ["--userns", "accepted: so it is for everybody but root", flag, { hidden: true }],
  writableTmpfs: ["--writable-tmpfs", "accepted: so it is while %test runs", flag, { hidden: true }],
  noCleanup: ["--no-cleanup", "accepted: nothing is left that had to be cleaned up", flag, { hidden: true }],
  ignoreFakerootCommand: ["--ignore-fakeroot-command", "accepted: it is not used", flag, { hidden: true }],
  ignoreSubuid: ["--ignore-subuid", "accepted", flag, { hidden: true }],
  ignoreUserns: ["--ignore-userns", "accepted", flag, { hidden: true }],
  library: ["--library <url>", "accepted: there are no libraries of images here", text, { hidden: true }],
  nvccli: ["--nvccli", "accepted with a notice", flag, { hidden: true }],
} as const satisfies AnyOptions

export const build: CommandRow = command({
  name: "build",
  common: [
    ...["encrypt", "force", "json", "sandbox", "update", "noTest", "buildArguments", "binds", "compression"],
    ...["owner", "architecture", "remote", "format", "pemPath", "passphrase", "passphraseFile", "verify"],
  ],
  examples: [
    [
      "from a definition file, encrypted for a key",
      "sifcrypt build --pem-path key-public.pem image.sif image.def",
    ],
    ["from an image at a registry", "sifcrypt build alpine.sif docker://alpine:3.20"],
    [
      "on another machine, encrypted here",
      "sifcrypt build --remote ssh://builder --pem-path key-public.pem image.sif image.def",
    ],
  ],
  heading: "Make and change images",
  summary: "build a SIF image, encrypted or plain",
  description:
    "Builds the SIF image OUTPUT from SOURCE: a definition file, a directory, a squashfs file, another SIF (encrypted ones with " +
    "their credentials), or an OCI image: oci:DIR, oci-archive:FILE, docker-archive:FILE (each with :NAME), store:NAME " +
    "or docker://[HOST/]REPOSITORY[:TAG|@DIGEST]. With -e, --pem-path, --passphrase or --passphrase-file the root file system is " +
    "encrypted as LUKS2, or as gocryptfs with --format; nothing plain is written to a disk on the way. Needs no privilege.",
  arguments: [
    ["<output>", "the image to write"],
    ["<source>", "definition file, directory, squashfs file, SIF image, or name of an OCI or Docker image"],
  ],
  options: {
    encrypt: ["-e, --encrypt", "encrypt; the credential may come from the environment", flag],
    compression: [
      "--compression <name[:level]>",
      "zstd (default), gzip, lz4 or xz",
      parseCompression,
      { suggested: Object.keys(api.compressionLevels) },
    ],
    owner: [
      "--owner <owner>",
      "preserve, root, or UID:GID that everything belongs to",
      parseOwner,
      { suggested: ["preserve", "root"] },
    ],
    keepOwner: [
      "--keep-owner",
      "the same as --owner preserve: the default for OCI images, and as root",
      flag,
    ],
    ...architectureRows,
    remote: [
      "--remote <ssh://[user@]host[:port]>",
      "build on that machine (repeatable: the one of --arch, or an image for each)",
      each(text),
    ],
    allowUnconfined: [
      "--allow-unconfined",
      "with --remote: have root build there, too, whose scripts may do anything on that machine",
      flag,
    ],
    data: ["--data", "a partition for data instead of a root, to be bound with image-src", flag],
    reproducible: [
      "--reproducible",
      "the same image from the same files: SOURCE_DATE_EPOCH, or 0 where it is not set",
      flag,
    ],
    mksquashfsArguments: [
      "--mksquashfs-args <args>",
      "the compression as mksquashfs is told: -comp, -Xcompression-level",
      parseSquashfsArguments,
    ],
    mounts: [
      "--mount <spec>",
      "the same as --bind: type=bind,source=SRC,destination=DST[,ro]",
      each(parseMountSpec),
    ],
    sourcePemPath: [
      "--source-pem-path <file>",
      "key that opens an encrypted source: a SIF, or the layers of an OCI image (repeatable)",
      each(text),
    ],
    keys: layerKeyRow("--key <key>"),
    sourcePassphraseFile: [
      "--source-passphrase-file <file>",
      "passphrase that opens an encrypted source",
      text,
    ],
    ...definitionRows,
    ...encryptionRows,
    ...credentialRows,
    ...signerRows,
    ...costRows,
    ...plainRows,
    ...registryRows,
    ...unneeded,
  },
  run: async (flags, [output, source], command) => {
    const signers = signerOptions(flags)
    const sourceEpoch = sourceDateEpoch(command) ?? (flags.reproducible === true ? 0 : undefined)
    const encryption = encryptionOptions(flags, command)
    const binds = [...(flags.binds ?? []), ...(flags.mounts ?? [])]
    const definition = definitionOptions(binds.length === 0 ? flags : { ...flags, binds })
    const { encrypt } = flags
    const packing = flags.mksquashfsArguments ?? parseSquashfsArguments(variable("MKSQUASHFS_ARGS") ?? "")
    const compression = flags.compression ?? packing.compression
    const architecture = chosenArchitecture(flags)
    if (flags.nvccli === true) notice("--nvccli changes nothing: --nv shows %post and %test the same files")
    const { remote } = flags
    await withCredentials(flags, true, (credentials, password) =>
      withRegistryOptions(flags, source, definition.tmpFolder, async (oci) => {
        if (remote !== undefined) waitForHelpers()
        for (const made of await imagesOf(output, remote, architecture))
          await showMaking(`building ${made.output}`, made.output, flags, (options) =>
            api.build({
              ...options,
              ...encryption,
              ...definition,
              ...{ source, oci, encrypt, compression },
              ...made,
              data: flags.data,
              allowUnconfined: flags.allowUnconfined,
              ...signers,
              ...costOptions(flags),
              ...plainOptions(flags),
              owner: ownerOption(flags, command),
              ...keysOf(flags, credentials, password),
              sourceDateEpoch: sourceEpoch,
            }),
          )
      }),
    )
  },
})
