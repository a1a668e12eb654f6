// The options that say by whom an image must be signed, where it is opened.
import { InvalidArgumentError, type Command } from "commander"
import { userKeyrings, type VerifyOptions } from "../index.ts"
import { collect, count, each, eachOf } from "./values.ts"

export interface SignerFlags {
  readonly verify?: true
  readonly requireSigner?: string[]
  readonly signerKey?: string[]
  readonly keyring?: string[]
  readonly keyserver?: string
}

/** The ID of a group or object; the option is repeatable. */
export const parseId: (text: string, earlier: readonly number[] | undefined) => number[] = each(
  count(1, 999_999_999),
)

/** A whole fingerprint of a signer, as reports have it: short key IDs can be forged, so they name nobody. */
function parseSigner(text: string): string {
  const digits = text.replaceAll(/[\s:]/g, "").toUpperCase()
  if (/^(?:[0-9A-F]{40}|[0-9A-F]{64})$/.test(digits)) return digits
  if (/^SHA256:[A-Za-z0-9+/]{43}$/.test(text)) return text
  throw new InvalidArgumentError(
    "It is no whole fingerprint: 40 or 64 hexadecimal digits, or SHA256: and 43 characters.",
  )
}

/** Fingerprints with commas between them; the option is repeatable. */
const parseSigners = eachOf(parseSigner)

/**
 * Lets `--verify=FINGERPRINT` stand for `--require-signer FINGERPRINT`. As an option with a value of its own, `--verify` would
 * take the image's name, which comes next, for that value.
 */
function takeFingerprintOfVerify(command: Command): void {
  const parse = command.parseOptions.bind(command)
  command.parseOptions = (args) => {
    const rewritten = [...args]
    const passesOn = command.registeredArguments.some(({ variadic }) => variadic)
    for (let i = 0; i < rewritten.length; i++) {
      const arg = rewritten[i] ?? ""
      // From the image on, a command's arguments are the payload's.
      if (arg === "--" || (passesOn && !arg.startsWith("-"))) break
      if (arg.startsWith("--verify=")) rewritten[i] = arg.replace("--verify=", "--require-signer=")
      else if (
        command.options.some(({ required, short, long }) => required && (short === arg || long === arg))
      )
        i++
    }
    return parse(rewritten)
  }
}

/** Adds the options of {@link SignerFlags}. */
export function addSignerOptions(command: Command): Command {
  takeFingerprintOfVerify(command)
  return command
    .option(
      "--verify",
      "verify the signatures first; what is not signed by a key that is known is refused. --verify=FINGERPRINT: as --require-signer",
    )
    .option(
      "--require-signer <fingerprint>",
      "verify, and refuse what is not signed by this key (repeatable, or separated by commas: each of them)",
      parseSigners,
    )
    .option("--signer-key <file>", "public key of a signer, PEM (repeatable)", collect)
    .option(
      "--keyring <file>",
      "OpenPGP public keys of signers (repeatable; default: your own, the system's, Apptainer's and Singularity's)",
      collect,
    )
    .option("--keyserver <url>", "with --verify: ask this key server for the signers' keys and revocations")
}

/** Whose signatures are required; commas separate, too. */
export function requiredSigners(fingerprints: readonly string[]): readonly string[] {
  return fingerprints.flatMap((some) => parseSigners(some, undefined))
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
    require: requireSigner ?? "any",
    ...keyServerOption(flags.keyserver),
  }
}

/** The option of the API for `--keyserver`. */
export function keyServerOption(url: string | undefined): Pick<VerifyOptions, "keyServer"> {
  return url === undefined ? {} : { keyServer: { url, env: process.env } }
}
