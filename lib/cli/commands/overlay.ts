import { InvalidArgumentError, type Command } from "commander"
import { createOverlay, MIN_OVERLAY_SIZE } from "../../index.ts"
import {
  addCredentialOptions,
  gaveCredentials,
  withCredentials,
  type CredentialFlags,
} from "../credentials.ts"
import { interruption } from "../interrupt.ts"

interface Flags extends CredentialFlags {
  /** MiB. */
  readonly size: number
  readonly sparse?: true
  readonly createDir?: string[]
  readonly encrypt?: true
}

const MEBIBYTE = 1 << 20
const MAX_SIZE = 1 << 24

function parseSize(text: string): number {
  const size = /^\d{1,8}$/.test(text) ? Number(text) : 0
  const least = MIN_OVERLAY_SIZE / MEBIBYTE
  if (size < least || size > MAX_SIZE) throw new InvalidArgumentError(`It is ${least} to ${MAX_SIZE} MiB.`)
  return size
}

export function addOverlayCommands(program: Command): void {
  const overlay = program
    .command("overlay")
    .summary("make file systems that keep changes")
    .description("Overlays keep what payloads write: `sifcrypt exec --overlay FILE IMAGE ...`.")
  const create = overlay
    .command("create")
    .summary("make an empty overlay")
    .description(
      "Makes an empty overlay in FILE: an ext3 file system or, with --encrypt, the same inside LUKS2, for root. What a payload " +
        "writes over an encrypted image is kept in an encrypted overlay only.",
    )
    .argument("<file>", "the file to write")
    .option("-s, --size <mib>", "size of the file system in MiB", parseSize, MIN_OVERLAY_SIZE / MEBIBYTE)
    .option("-S, --sparse", "take room on the disk only when it is written")
    .option(
      "--create-dir <dir>",
      "a folder that it has from the start (repeatable)",
      (value: string, earlier: string[] | undefined) => [...(earlier ?? []), value],
    )
    .option("-e, --encrypt", "encrypt it, for everybody whose public key or passphrase is given")
  addCredentialOptions(create).action(async (output: string, flags: Flags) => {
    const { size, sparse, createDir, encrypt } = flags
    const options = {
      output,
      size: size * MEBIBYTE,
      signal: interruption,
      ...(sparse === undefined ? {} : { sparse }),
      ...(createDir === undefined ? {} : { folders: createDir }),
    }
    // A key that would protect nothing is a mistake.
    if (encrypt === undefined && !gaveCredentials(flags)) await createOverlay(options)
    else
      await withCredentials(flags, true, (credentials) =>
        createOverlay({ ...options, encrypt: true, recipients: credentials }),
      )
  })
}
