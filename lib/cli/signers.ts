// The options that say by whom an image must be signed, where it is opened.
import { InvalidArgumentError, type Command } from "commander"
import { userKeyrings, type VerifyOptions } from "../index.ts"

export interface SignerFlags {
  readonly verify?: true
  readonly requireSigner?: string[]
  readonly signerKey?: string[]
  readonly keyring?: string[]
}

export function collect(value: string, earlier: string[] | undefined): string[] {
  return [...(earlier ?? []), value]
}

/** The ID of a group or object; the option is repeatable. */
export function parseId(text: string, earlier: number[] | undefined): number[] {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : 0
  if (value < 1) throw new InvalidArgumentError("It is a positive number.")
  return [...(earlier ?? []), value]
}

/** Adds the options of {@link SignerFlags}. */
export function addSignerOptions(command: Command): Command {
  return command
    .option("--verify", "verify the signatures first; what is not signed by a key that is known is refused")
    .option(
      "--require-signer <fingerprint>",
      "verify, and refuse what is not signed by this key (repeatable: each of them)",
      collect,
    )
    .option("--signer-key <file>", "public key of a signer, PEM (repeatable)", collect)
    .option(
      "--keyring <file>",
      "OpenPGP public keys of signers (repeatable; default: Apptainer's and Singularity's)",
      collect,
    )
}

/** A fingerprint as it stands in reports: spaces, colons and lower case are for people. */
function canonical(fingerprint: string): string {
  return fingerprint.startsWith("SHA256:") ? fingerprint : fingerprint.replaceAll(/[\s:]/g, "").toUpperCase()
}

/** Whose signatures are required; commas separate, too. */
export function requiredSigners(fingerprints: readonly string[]): readonly string[] {
  return fingerprints.flatMap((some) => some.split(",")).map(canonical)
}

/** Where OpenPGP keys are looked for. */
export function keyringPaths(keyrings: readonly string[] | undefined): readonly string[] {
  return keyrings ?? userKeyrings(process.env)
}

/** The API's options for these flags; undefined: nothing is to be verified. */
export function signerOptions(flags: SignerFlags): VerifyOptions | undefined {
  const { requireSigner } = flags
  if (flags.verify !== true && requireSigner === undefined) return undefined
  return {
    keyPaths: flags.signerKey ?? [],
    keyringPaths: keyringPaths(flags.keyring),
    require: requireSigner === undefined ? "any" : requiredSigners(requireSigner),
  }
}
