import { Option, type Command } from "commander"
import { createOverlay, MIN_OVERLAY_SIZE } from "../../index.ts"
import {
  addCredentialOptions,
  gaveCredentials,
  withCredentials,
  type CredentialFlags,
} from "../credentials.ts"
import { interruption } from "../interrupt.ts"
import { collect, MEBIBYTES, size } from "../values.ts"

interface Flags extends CredentialFlags {
  readonly size: number
  readonly sparse?: true
  readonly createDir?: string[]
  readonly encrypt?: true
}

// MiB.
const LEAST = MIN_OVERLAY_SIZE / MEBIBYTES.worth
const MAX = 1 << 24

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
    .addOption(
      new Option("-s, --size <size>", "size of the file system, in MiB or with a unit")
        .argParser(size(MEBIBYTES, LEAST, MAX, MEBIBYTES.worth))
        .default(MIN_OVERLAY_SIZE, `${LEAST}`),
    )
    .option("-S, --sparse", "take room on the disk only when it is written")
    .option("--create-dir <dir>", "a folder that it has from the start (repeatable)", collect)
    .option("-e, --encrypt", "encrypt it, for everybody whose public key or passphrase is given")
  addCredentialOptions(create).action(async (output: string, flags: Flags) => {
    const { sparse, createDir, encrypt } = flags
    const options = {
      output,
      size: flags.size,
      signal: interruption,
      sparse,
      folders: createDir,
    }
    // A key that would protect nothing is a mistake.
    if (encrypt === undefined && !gaveCredentials(flags)) await createOverlay(options)
    else
      await withCredentials(flags, true, (credentials) =>
        createOverlay({ ...options, encrypt: true, recipients: credentials }),
      )
  })
}
