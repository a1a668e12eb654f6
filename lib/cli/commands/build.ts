import { InvalidArgumentError, type Command } from "commander"
import {
  build,
  compressionLevels,
  passphraseKdfLimits,
  type Compression,
  type CompressionName,
  type CredentialOptions,
  type PassphraseKdf,
} from "../../index.ts"
import { addCredentialOptions, withCredentials, type CredentialFlags } from "../credentials.ts"
import { interruption } from "../interrupt.ts"
import { errors, print } from "../output.ts"
import { humanBytes, notice, printable, Progress } from "../terminal.ts"

interface BuildFlags extends CredentialFlags {
  readonly encrypt?: true
  readonly force?: true
  readonly json?: true
  readonly keepOwner?: true
  readonly compression?: Compression
  readonly sourcePemPath?: string[]
  readonly sourcePassphraseFile?: string
  readonly publicMetadata?: true
  readonly anonymous?: true
  readonly pbkdf?: PassphraseKdf
  readonly pbkdfMemory?: number
}

const collect = (value: string, earlier: string[] | undefined): string[] => [...(earlier ?? []), value]

/** Credentials for the source alone, if any are given. */
function sourceCredentials(flags: BuildFlags): CredentialOptions | undefined {
  if (flags.sourcePemPath === undefined && flags.sourcePassphraseFile === undefined) return undefined
  return {
    ...(flags.sourcePemPath === undefined ? {} : { pemPaths: flags.sourcePemPath }),
    ...(flags.sourcePassphraseFile === undefined ? {} : { passphraseFile: flags.sourcePassphraseFile }),
  }
}

function parseKdf(text: string): PassphraseKdf {
  const match = /^(argon2id|pbkdf2)(?::(\d{1,10}))?$/.exec(text)
  if (match === null)
    throw new InvalidArgumentError("It is argon2id or pbkdf2, with :ITERATIONS if you like.")
  const type = match[1] as PassphraseKdf["type"]
  if (match[2] === undefined) return { type }
  const iterations = Number(match[2])
  const [least, most] = passphraseKdfLimits[type]
  if (iterations < least || iterations > most)
    throw new InvalidArgumentError(`The iterations of ${type} are ${least} to ${most}.`)
  return { type, iterations }
}

function parseMebibytes(text: string): number {
  const most = passphraseKdfLimits.memory[1] / 1024
  const value = /^\d{1,7}$/.test(text) ? Number(text) : 0
  if (value < 1 || value > most) throw new InvalidArgumentError(`It is 1 to ${most} MiB.`)
  return value
}

/** Both options together. */
function passphraseKdf(flags: BuildFlags, command: Command): PassphraseKdf | undefined {
  if (flags.pbkdfMemory === undefined) return flags.pbkdf
  if (flags.pbkdf?.type === "pbkdf2")
    command.error("error: --pbkdf-memory is Argon2's; pbkdf2 takes no memory")
  return { ...(flags.pbkdf ?? { type: "argon2id" }), memory: flags.pbkdfMemory * 1024 }
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

export function addBuildCommand(program: Command): void {
  const command = program
    .command("build")
    .summary("build a SIF image, encrypted or plain")
    .description(
      "Builds the SIF image OUTPUT from SOURCE: a directory, a squashfs file, or another SIF (encrypted ones with " +
        "their credentials). With -e, --pem-path, --passphrase or --passphrase-file the root file system is " +
        "encrypted as LUKS2; nothing plain is written to a disk on the way. Needs no privilege.",
    )
    .argument("<output>", "the image to write")
    .argument("<source>", "directory, squashfs file or SIF image")
    .option("-e, --encrypt", "encrypt; the credential may come from the environment")
    .option("-F, --force", "replace an existing output")
    .option("--compression <name[:level]>", "zstd (default), gzip, lz4 or xz", parseCompression)
    .option("--keep-owner", "keep owners as they are (default as root; others write everything as root's)")
    .option(
      "--pbkdf <function[:iterations]>",
      "stretches a passphrase: argon2id (default) or pbkdf2",
      parseKdf,
    )
    .option("--pbkdf-memory <mib>", "memory that Argon2 takes, MiB (default 256)", parseMebibytes)
    .option("--source-pem-path <file>", "private key that opens an encrypted source", collect)
    .option("--source-passphrase-file <file>", "passphrase that opens an encrypted source")
    .option(
      "--public-metadata",
      "keep a source image's definition and labels readable beside the encrypted partition",
    )
    .option("--anonymous", "do not say in the image whose the public keys are")
    .option("--json", "print the result as JSON")
  addCredentialOptions(command).action(async (output: string, source: string, flags: BuildFlags) => {
    const opensSource = sourceCredentials(flags)
    const epoch = sourceDateEpoch(command)
    const kdf = passphraseKdf(flags, command)
    const progress = new Progress(`building ${output}`)
    const result = await withCredentials(flags, true, (credentials) =>
      build({
        output,
        source,
        credentials,
        encrypt: flags.encrypt === true,
        force: flags.force === true,
        signal: interruption,
        onProgress: (bytes) => {
          progress.update(bytes)
        },
        onNotice: notice,
        ...(flags.compression === undefined ? {} : { compression: flags.compression }),
        ...(flags.keepOwner === undefined ? {} : { keepOwner: true }),
        ...(flags.publicMetadata === undefined ? {} : { publicMetadata: true }),
        ...(flags.anonymous === undefined ? {} : { anonymous: true }),
        ...(opensSource === undefined ? {} : { sourceCredentials: opensSource }),
        ...(kdf === undefined ? {} : { passphraseKdf: kdf }),
        ...(epoch === undefined ? {} : { sourceDateEpoch: epoch }),
      }),
    ).finally(() => {
      progress.done()
    })
    if (flags.json === true) await print(`${JSON.stringify(result)}\n`)
    else if (errors().isTTY)
      notice(
        `${result.output}: ${result.encrypted ? "encrypted" : "plain"}, ${humanBytes(result.size)} from ${humanBytes(result.inputBytes)} in ${(result.milliseconds / 1000).toFixed(1)} s`,
      )
  })
}
