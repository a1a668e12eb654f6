import { InvalidArgumentError, Option, type Command } from "commander"
import {
  build,
  compressionLevels,
  type Compression,
  type CompressionName,
  type BuildOptions,
  type CredentialSource,
  type SecretSource,
  type Owner,
} from "../../index.ts"
import {
  addCredentialOptions,
  gaveCredentials,
  withCredentials,
  type CredentialFlags,
} from "../credentials.ts"
import { addDefinitionOptions, definitionOptions, type DefinitionFlags } from "../definition.ts"
import { addEncryptionOptions, encryptionOptions, showMaking, type EncryptionFlags } from "../encryption.ts"
import { addRegistryOptions, withRegistryOptions, type RegistryFlags } from "../registry.ts"
import { addSignerOptions, signerOptions, type SignerFlags } from "../signers.ts"
import { printable } from "../terminal.ts"
import { collect } from "../values.ts"

interface BuildFlags
  extends CredentialFlags, Omit<EncryptionFlags, "json">, DefinitionFlags, SignerFlags, RegistryFlags {
  readonly encrypt?: true
  readonly keepOwner?: true
  readonly owner?: Owner
  readonly arch?: string
  readonly compression?: Compression
  readonly sourcePemPath?: string[]
  readonly sourcePassphraseFile?: string
}

/**
 * For whom the image is, and what opens its source. The environment alone encrypts nothing.
 *
 * @param password - Of the source's key files, too.
 */
function keysOf(
  flags: BuildFlags,
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

function ownerOption(flags: BuildFlags, command: Command): Owner | undefined {
  if (flags.keepOwner !== undefined && flags.owner !== undefined && flags.owner !== "preserve")
    command.error("error: --keep-owner and --owner say different things")
  return flags.owner ?? (flags.keepOwner === true ? "preserve" : undefined)
}

export function addBuildCommand(program: Command): void {
  const command = program
    .command("build")
    .summary("build a SIF image, encrypted or plain")
    .description(
      "Builds the SIF image OUTPUT from SOURCE: a definition file, a directory, a squashfs file, another SIF (encrypted ones with " +
        "their credentials), or an image of layers: oci:DIR, oci-archive:FILE, docker-archive:FILE (each with :NAME) " +
        "or docker://[HOST/]REPOSITORY[:TAG|@DIGEST]. With -e, --pem-path, --passphrase or --passphrase-file the root file system is " +
        "encrypted as LUKS2, or as gocryptfs with --format; nothing plain is written to a disk on the way. Needs no privilege.",
    )
    .argument("<output>", "the image to write")
    .argument(
      "<source>",
      "definition file, directory, squashfs file, SIF image, or name of an OCI or Docker image",
    )
    .option("-e, --encrypt", "encrypt; the credential may come from the environment")
    .option("--compression <name[:level]>", "zstd (default), gzip, lz4 or xz", parseCompression)
    .addOption(
      new Option("--owner <owner>", "preserve, root, or UID:GID that everything belongs to").argParser(
        parseOwner,
      ),
    )
    .option("--keep-owner", "the same as --owner preserve: the default for OCI images, and as root")
    .option("--arch <architecture>", "of the image to choose: amd64, arm64, arm32v7, ppc64le, ...")
    .option("--source-pem-path <file>", "key that opens an encrypted source", collect)
    .option("--source-passphrase-file <file>", "passphrase that opens an encrypted source")
  addRegistryOptions(
    addSignerOptions(addCredentialOptions(addEncryptionOptions(addDefinitionOptions(command)))),
  ).action(async (output: string, source: string, flags: BuildFlags) => {
    const verify = signerOptions(flags)
    const epoch = sourceDateEpoch(command)
    const encryption = encryptionOptions(flags, command)
    const definition = definitionOptions(flags)
    await withCredentials(flags, true, (credentials, password) =>
      withRegistryOptions(flags, source, definition.tmpFolder, (oci) =>
        showMaking(`building ${output}`, output, flags, (options) =>
          build({
            ...options,
            ...encryption,
            ...definition,
            source,
            ...(verify === undefined ? {} : { verify }),
            oci,
            encrypt: flags.encrypt === true,
            compression: flags.compression,
            owner: ownerOption(flags, command),
            architecture: flags.arch,
            ...keysOf(flags, credentials, password),
            sourceDateEpoch: epoch,
          }),
        ),
      ),
    )
  })
}
