// The options that name new recipients where others open the image.
import type { Command } from "commander"
import type { CredentialOptions } from "../index.ts"
import { parseDescriptor, withCredentials } from "./credentials.ts"

export interface RecipientFlags {
  readonly recipient?: string[]
  readonly recipientPassphrase?: true
  readonly recipientPassphraseFile?: string
  readonly recipientPassphraseFd?: number
}

const collect = (value: string, earlier: string[] | undefined): string[] => [...(earlier ?? []), value]

/** Adds the options of {@link RecipientFlags}. */
export function addRecipientOptions(command: Command): Command {
  return command
    .option("--recipient <file>", "public RSA key of a new recipient (repeatable)", collect)
    .option("--recipient-passphrase", "ask for a new passphrase on the terminal")
    .option("--recipient-passphrase-file <file>", "new passphrase in a file")
    .option("--recipient-passphrase-fd <n>", "read the new passphrase from descriptor N", parseDescriptor)
}

/**
 * Runs `use` with the new recipients; undefined: none were named. Wipes what was typed. The environment names whoever
 * opens, never a recipient.
 */
export async function withRecipients<T>(
  flags: RecipientFlags,
  use: (recipients: CredentialOptions | undefined) => Promise<T>,
): Promise<T> {
  const { recipient, recipientPassphrase, recipientPassphraseFile, recipientPassphraseFd } = flags
  const named = [recipient, recipientPassphrase, recipientPassphraseFile, recipientPassphraseFd]
  if (named.every((one) => one === undefined)) return await use(undefined)
  const given = {
    ...(recipient === undefined ? {} : { pemPath: recipient }),
    ...(recipientPassphrase === undefined ? {} : { passphrase: recipientPassphrase }),
    ...(recipientPassphraseFile === undefined ? {} : { passphraseFile: recipientPassphraseFile }),
    ...(recipientPassphraseFd === undefined ? {} : { passphraseFd: recipientPassphraseFd }),
  }
  return await withCredentials(given, true, (recipients) => use({ ...recipients, env: {} }))
}
