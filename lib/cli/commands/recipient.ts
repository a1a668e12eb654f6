import * as api from "../../index.ts"
import { command, type CommandRow, type OptionRows } from "../command.ts"
import { withCredentials } from "../credentials.ts"
import { kdfRows, passphraseKdf } from "../kdf.ts"
import { openOptions, openRows, type OpenFlags } from "../opening.ts"
import { jsonRow, print } from "../output.ts"
import {
  recipientRows,
  recipientTable,
  stayOptions,
  stayRows,
  withRecipients,
  type RecipientFlags,
  type StayFlags,
} from "../recipients.ts"
import { notice } from "../terminal.ts"
import { count, each, flag, text } from "../values.ts"

type ChangeFlags = OpenFlags &
  StayFlags &
  Pick<api.RecipientChangeOptions, "removeSignatures"> & { readonly json?: true }

/** What all changes take. */
const changeRows: OptionRows<ChangeFlags> = {
  ...openRows,
  ...stayRows,
  removeSignatures: ["--remove-signatures", "remove the signatures that the change breaks", flag],
  json: jsonRow,
}

const keptRows: OptionRows<Pick<RecipientFlags, "recipient">> = {
  recipient: [
    "--recipient <file>",
    "public key of a recipient who stays, as with --keep (repeatable)",
    each(text),
  ],
}

/** Runs `work` with who is named and how the image is opened, and tells what came of it. */
async function changing(
  flags: ChangeFlags & Partial<RecipientFlags>,
  work: (
    options: api.RecipientChangeOptions & { readonly recipients?: readonly api.CredentialSource[] },
  ) => Promise<api.RecipientChange>,
): Promise<void> {
  const change = await withRecipients(flags, (named) =>
    withCredentials(flags, false, (credentials) => {
      const { unlock, kdfLimits, onDerivation, signal } = openOptions(flags, credentials)
      return work({
        ...{ unlock, kdfLimits, onDerivation, signal, onNotice: notice, ...stayOptions(flags), ...named },
        removeSignatures: flags.removeSignatures,
      })
    }),
  )
  const { brokenSignatures, signaturesRemoved, recipients } = change
  if (brokenSignatures.length > 0) {
    const which = `${brokenSignatures.length === 1 ? "signature" : "signatures"} ${brokenSignatures.join(", ")}`
    notice(
      signaturesRemoved
        ? `removed the ${which}, which did not fit any more`
        : `the ${which} did not survive the change: sign the image again (--remove-signatures takes them out)`,
    )
  }
  await print(flags.json === true ? `${JSON.stringify(change, null, 2)}\n` : recipientTable(recipients))
}

const list = command({
  name: "list",
  examples: [["who may open it", "sifcrypt recipient list image.sif"]],
  description: "List who may open IMAGE, and with which program. No key is needed.",
  arguments: [["<image>", "the image to look at"]],
  options: { json: jsonRow },
  run: async ({ json }, [image]) => {
    const recipients = await api.listRecipients(image)
    await print(json === true ? `${JSON.stringify(recipients, null, 2)}\n` : recipientTable(recipients))
  },
})

const changed = ["<image>", "the image to change, in place"] as const

const add = command({
  name: "add",
  examples: [
    [
      "with the key that opens it now",
      "sifcrypt recipient add --pem-path key.pem --recipient colleague-public.pem image.sif",
    ],
  ],
  description:
    "Lets new recipients open IMAGE: --recipient names a public key, --recipient-passphrase asks for a passphrase. " +
    "The other credentials are those that open it now.",
  arguments: [changed],
  options: {
    ...changeRows,
    anonymous: ["--anonymous", "do not say in the image whose the public keys are", flag],
    ...recipientRows,
    ...kdfRows,
  },
  run: async (flags, [image], command) => {
    const kdf = passphraseKdf(flags, command)
    await changing(flags, ({ recipients = [], ...options }) =>
      api.addRecipients(image, { ...options, recipients, anonymous: flags.anonymous, passphraseKdf: kdf }),
    )
  },
})

const remove = command({
  name: "remove",
  examples: [
    [
      "whose public key this is",
      "sifcrypt recipient remove --pem-path key.pem image.sif colleague-public.pem",
    ],
  ],
  description:
    "Takes a recipient out of IMAGE and replaces the secret of those who stay, so that what the removed one kept of " +
    "it opens nothing. RECIPIENT is a fingerprint, the ID of a crypto message, or a file with the key.",
  arguments: [changed, ["[recipient]", "whom to remove"]],
  options: {
    ...changeRows,
    keyslot: ["--keyslot <n>", "the keyslot of a passphrase to remove", count(0, 99)],
    ...keptRows,
  },
  run: async (flags, [image, recipient], command) => {
    if ((recipient === undefined) === (flags.keyslot === undefined))
      command.error("error: name either a RECIPIENT or a --keyslot")
    const whom = ((): api.RemoveRecipientOptions => {
      if (recipient === undefined) return { keyslot: flags.keyslot ?? 0 }
      return /^\d+$|^SHA(?:1|256):|^[0-9a-fA-F:]{40,}$/.test(recipient)
        ? { recipient }
        : { recipientFile: recipient }
    })()
    await changing(flags, (options) => api.removeRecipient(image, { ...options, ...whom }))
  },
})

const rotate = command({
  name: "rotate",
  examples: [["a new secret for all of them", "sifcrypt recipient rotate --pem-path key.pem image.sif"]],
  description:
    "Replaces the secret that IMAGE's RSA recipients share. All of them stay, and so do passphrases, or those that are listed.",
  arguments: [changed],
  options: { ...changeRows, ...keptRows },
  run: (flags, [image]) => changing(flags, (options) => api.rotateRecipients(image, options)),
})

export const recipient: CommandRow = {
  name: "recipient",
  heading: "Make and change images",
  summary: "who may open an image: list, add, remove, rotate",
  description:
    "Shows and changes who may open an image, in place and without touching its payload: that takes the same time " +
    "whatever the image's size. A change that is killed leaves an image that opens.",
  commands: [list, add, remove, rotate],
}
