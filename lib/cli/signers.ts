// The options that say by whom an image must be signed, where it is opened.
import { InvalidArgumentError } from "commander"
import { userKeyrings, type VerifyOptions } from "../index.ts"
import { under, type OptionRows } from "./command.ts"
import { count, each, eachOf, flag, text, type Repeated } from "./values.ts"

export interface SignerFlags {
  readonly verify?: true
  readonly requireSigner?: string[]
  readonly signerKey?: string[]
  readonly keyring?: string[]
  readonly keyserver?: string
}

/** The ID of a group or object; the option is repeatable. */
export const ids: Repeated<number> = each(count(1, 999_999_999))

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

export const signerRows: OptionRows<SignerFlags> = under("Keys and signatures", {
  verify: [
    "--verify",
    "refuse what is not signed by a key that is known; --verify=FINGERPRINT: as --require-signer",
    flag,
    { valued: "--require-signer" },
  ],
  requireSigner: [
    "--require-signer <fingerprint>",
    "verify, and refuse what is not signed by this key (repeatable, or separated by commas: each of them)",
    parseSigners,
  ],
  signerKey: ["--signer-key <file>", "public key of a signer, PEM (repeatable)", each(text)],
  keyring: [
    "--keyring <file>",
    "OpenPGP public keys of signers (repeatable; default: your own, the system's, Apptainer's and Singularity's)",
    each(text),
  ],
  keyserver: [
    "--keyserver <url>",
    "with --verify: ask this key server for the signers' keys and revocations",
    text,
  ],
})

/** Whose signatures are required; commas separate, too. */
export function requiredSigners(fingerprints: readonly string[]): readonly string[] {
  return fingerprints.flatMap((some) => parseSigners(some, undefined))
}

/** Where OpenPGP keys are looked for. */
export function keyringPaths(keyrings: readonly string[] | undefined): readonly string[] {
  return keyrings ?? userKeyrings(process.env)
}

/** The API's option for these flags; none where nothing is to be verified. */
export function signerOptions(flags: SignerFlags): { readonly verify?: VerifyOptions } {
  const { requireSigner } = flags
  if (flags.verify !== true && requireSigner === undefined) return {}
  const verify: VerifyOptions = {
    keyPaths: flags.signerKey ?? [],
    keyringPaths: keyringPaths(flags.keyring),
    require: requireSigner ?? "any",
    ...keyServerOption(flags.keyserver),
  }
  return { verify }
}

/** The option of the API for `--keyserver`. */
export function keyServerOption(url: string | undefined): Pick<VerifyOptions, "keyServer"> {
  return url === undefined ? {} : { keyServer: { url, env: process.env } }
}
