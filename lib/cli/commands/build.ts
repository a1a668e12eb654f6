import { InvalidArgumentError, type Command } from "commander"
import {
  build as buildImage,
  compressionLevels,
  type BuildOptions,
  type Compression,
  type CompressionName,
  type CredentialSource,
  type Owner,
  type SecretSource,
} from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { credentialRows, gaveCredentials, withCredentials, type CredentialFlags } from "../credentials.ts"
import { definitionOptions, definitionRows } from "../definition.ts"
import { encryptionOptions, encryptionRows, showMaking } from "../encryption.ts"
import { registryRows, withRegistryOptions } from "../registry.ts"
import { signerOptions, signerRows } from "../signers.ts"
import { printable } from "../terminal.ts"
import { each, flag, text } from "../values.ts"

interface KeyFlags extends CredentialFlags, Pick<BuildOptions, "encrypt" | "format" | "sandbox" | "update"> {
  readonly sourcePemPath?: readonly string[]
  readonly sourcePassphraseFile?: string
}

/**
 * For whom the image is, and what opens its source. The environment alone encrypts nothing.
 *
 * @param password - Of the source's key files, too.
 */
function keysOf(
  flags: KeyFlags,
  credentials: readonly CredentialSource[],
  password: SecretSource,
): Partial<Pick<BuildOptions, "recipients" | "unlock">> {
  const { sourcePemPath = [], sourcePassphraseFile } = flags
  const source: CredentialSource[] = [
    ...sourcePemPath.map((file) => ({ key: { file }, password })),
    ...(sourcePassphraseFile === undefined ? [] : [{ passphrase: { file: sourcePassphraseFile } }]),
  ]
  const unlock = source.length > 0 ? source : undefined
  const encrypts = flags.encrypt === true || flags.format !== undefined || gaveCredentials(flags)
  const isFolder = flags.sandbox === true || flags.update === true
  return encrypts && !isFolder ? { recipients: credentials, unlock } : { unlock: unlock ?? credentials }
}

/** As reproducible-builds.org defines it. */
function sourceDateEpoch(command: Command): number | undefined {
  const text = process.env["SOURCE_DATE_EPOCH"]
  if (text === undefined || text === "") return undefined
  if (!/^\d{1,11}$/.test(text))
    command.error(`error: SOURCE_DATE_EPOCH is a number of seconds, not ${printable(text)}`)
  return Number(text)
}

function parseCompression(text: string): Compression {
  const match = /^(zstd|gzip|lz4|xz)(?::(\d{1,2}))?$/.exec(text)
  if (match === null) throw new InvalidArgumentError("It is zstd, gzip, lz4 or xz, with :LEVEL if you like.")
  const name = match[1] as CompressionName
  if (match[2] === undefined) return { name }
  const level = Number(match[2])
  const [least, most] = compressionLevels[name]
  if (level < least || level > most)
    throw new InvalidArgumentError(`The level of ${name} is ${least} to ${most}.`)
  return { name, level }
}

function parseOwner(text: string): Owner {
  if (text === "preserve" || text === "root") return text
  const match = /^(\d{1,10}):(\d{1,10})$/.exec(text)
  const [uid, gid] = [Number(match?.[1]), Number(match?.[2])]
  if (!(uid < 2 ** 32 && gid < 2 ** 32)) throw new InvalidArgumentError("It is preserve, root or UID:GID.")
  return { uid, gid }
}

function ownerOption(
  { keepOwner, owner }: { readonly keepOwner?: true; readonly owner?: Owner },
  command: Command,
): Owner | undefined {
  if (keepOwner !== undefined && owner !== undefined && owner !== "preserve")
    command.error("error: --keep-owner and --owner say different things")
  return owner ?? (keepOwner === true ? "preserve" : undefined)
}

export const build: CommandRow = command({
  name: "build",
  summary: "build a SIF image, encrypted or plain",
  description:
    "Builds the SIF image OUTPUT from SOURCE: a definition file, a directory, a squashfs file, another SIF (encrypted ones with " +
    "their credentials), or an OCI image: oci:DIR, oci-archive:FILE, docker-archive:FILE (each with :NAME) " +
    "or docker://[HOST/]REPOSITORY[:TAG|@DIGEST]. With -e, --pem-path, --passphrase or --passphrase-file the root file system is " +
    "encrypted as LUKS2, or as gocryptfs with --format; nothing plain is written to a disk on the way. Needs no privilege.",
  arguments: [
    ["<output>", "the image to write"],
    ["<source>", "definition file, directory, squashfs file, SIF image, or name of an OCI or Docker image"],
  ],
  options: {
    encrypt: ["-e, --encrypt", "encrypt; the credential may come from the environment", flag],
    compression: ["--compression <name[:level]>", "zstd (default), gzip, lz4 or xz", parseCompression],
    owner: ["--owner <owner>", "preserve, root, or UID:GID that everything belongs to", parseOwner],
    keepOwner: [
      "--keep-owner",
      "the same as --owner preserve: the default for OCI images, and as root",
      flag,
    ],
    architecture: [
      "--arch <architecture>",
      "of the image to choose: amd64, arm64, arm32v7, ppc64le, ...",
      text,
    ],
    sourcePemPath: ["--source-pem-path <file>", "key that opens an encrypted source", each(text)],
    sourcePassphraseFile: [
      "--source-passphrase-file <file>",
      "passphrase that opens an encrypted source",
      text,
    ],
    ...definitionRows,
    ...encryptionRows,
    ...credentialRows,
    ...signerRows,
    ...registryRows,
  },
  run: async (flags, [output, source], command) => {
    const signers = signerOptions(flags)
    const sourceEpoch = sourceDateEpoch(command)
    const encryption = encryptionOptions(flags, command)
    const definition = definitionOptions(flags)
    const { compression, architecture, encrypt } = flags
    await withCredentials(flags, true, (credentials, password) =>
      withRegistryOptions(flags, source, definition.tmpFolder, (oci) =>
        showMaking(`building ${output}`, output, flags, (options) =>
          buildImage({
            ...options,
            ...encryption,
            ...definition,
            ...{ source, oci, encrypt, compression, architecture },
            ...signers,
            owner: ownerOption(flags, command),
            ...keysOf(flags, credentials, password),
            sourceDateEpoch: sourceEpoch,
          }),
        ),
      ),
    )
  },
})
