// The options that name new recipients where others open the image, and those that say who stays.
import type { CredentialSource, Recipient, StayOptions } from "../index.ts"
import type { OptionRows } from "./command.ts"
import { parseDescriptor, withCredentials } from "./credentials.ts"
import { interruption } from "./interrupt.ts"
import { columns } from "./output.ts"
import { printable, promptLine } from "./terminal.ts"
import { each, eachOf, flag, text } from "./values.ts"

export interface RecipientFlags {
  readonly recipient?: string[]
  readonly recipientPassphrase?: true
  readonly recipientPassphraseFile?: string
  readonly recipientPassphraseFd?: number
}

export const recipientRows: OptionRows<RecipientFlags> = {
  recipient: ["--recipient <file>", "public RSA key of a new recipient (repeatable)", each(text)],
  recipientPassphrase: ["--recipient-passphrase", "ask for a new passphrase on the terminal", flag],
  recipientPassphraseFile: ["--recipient-passphrase-file <file>", "new passphrase in a file", text],
  recipientPassphraseFd: [
    "--recipient-passphrase-fd <n>",
    "read the new passphrase from descriptor N",
    parseDescriptor,
  ],
}

/**
 * Runs `use` with the new recipients, or without where none were named. Wipes what was typed. The environment names whoever
 * opens, never a recipient.
 */
export async function withRecipients<T>(
  flags: RecipientFlags,
  use: (named: { readonly recipients?: readonly CredentialSource[] }) => Promise<T>,
): Promise<T> {
  const { recipient, recipientPassphrase, recipientPassphraseFile, recipientPassphraseFd } = flags
  const named = [recipient, recipientPassphrase, recipientPassphraseFile, recipientPassphraseFd]
  if (named.every((one) => one === undefined)) return await use({})
  const given = {
    pemPath: recipient,
    passphrase: recipientPassphrase,
    passphraseFile: recipientPassphraseFile,
    passphraseFd: recipientPassphraseFd,
  }
  return await withCredentials(given, true, (recipients) => use({ recipients }), {})
}

const headings = ["KIND", "OBJECT", "KEYSLOT", "KEY", "COST", "READABLE BY"] as const

function row(recipient: Recipient): readonly string[] {
  const { kind, id, fingerprint, modulusBits, keyslot, keyslotFingerprint, kdf, cost, stale, readableBy } =
    recipient
  const bits = modulusBits === undefined ? "" : ` (${modulusBits} bits)`
  return [
    kind,
    id === undefined ? "-" : String(id),
    keyslot === undefined ? "-" : String(keyslot),
    kind === "passphrase" ? (keyslotFingerprint ?? "-") : `${fingerprint ?? "anonymous"}${bits}`,
    kdf === undefined ? "-" : `${kdf}, ${cost ?? ""}`,
    stale ? "nobody: left by a change that was killed" : readableBy.join(", "),
  ]
}

/** For people. */
export function recipientTable(recipients: readonly Recipient[]): string {
  const rows = [headings, ...recipients.map(row)].map((cells) => cells.map(printable))
  return `${columns(rows).join("\n")}\n`
}

export type StayFlags = Pick<StayOptions, "keep">

export const stayRows: OptionRows<StayFlags> = {
  keep: [
    "--keep <fingerprint>",
    "who stays besides you, and nobody else: fingerprints as `recipient list` shows them, or files with public keys " +
      "(repeatable, or separated by commas; default: everybody whom --require-signer or you at the terminal confirm)",
    eachOf(text),
  ],
}

/** Shows who would stay, and asks; without a terminal nobody says yes. */
async function confirmStaying(unknown: readonly Recipient[]): Promise<boolean> {
  const answer = await promptLine(
    "Nothing but the image says that these are its recipients; whoever was one can write that himself:\n\n" +
      `${recipientTable(unknown)}\n${unknown.length === 1 ? "Is this one" : `Are these ${unknown.length}`} to stay? [y/N]: `,
    interruption,
  )
  return /^\s*y(?:es)?\s*$/i.test(answer ?? "")
}

/** The API's options for these flags. */
export function stayOptions({ keep }: StayFlags): Pick<StayOptions, "keep" | "onConfirm"> {
  return { onConfirm: confirmStaying, keep }
}
