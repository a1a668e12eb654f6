import type { Command } from "commander"
import {
  addRecipients,
  listRecipients,
  removeRecipient,
  rotateRecipients,
  type RecipientChange,
  type RecipientChangeOptions,
  type RemoveRecipientOptions,
} from "../../index.ts"
import { withCredentials } from "../credentials.ts"
import { addKdfOptions, passphraseKdf, type KdfFlags } from "../kdf.ts"
import { addOpenOptions, openOptions, type OpenFlags } from "../opening.ts"
import { print } from "../output.ts"
import {
  addRecipientOptions,
  addStayOptions,
  recipientTable,
  stayOptions,
  withRecipients,
  type RecipientFlags,
  type StayFlags,
} from "../recipients.ts"
import { notice, printable } from "../terminal.ts"
import { collect, count } from "../values.ts"

interface ChangeFlags extends OpenFlags, RecipientFlags, StayFlags {
  readonly removeSignatures?: true
  readonly json?: true
}

interface AddFlags extends ChangeFlags, KdfFlags {
  readonly anonymous?: true
}

interface RemoveFlags extends ChangeFlags {
  readonly keyslot?: number
}

async function report(change: RecipientChange, flags: ChangeFlags): Promise<void> {
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

/** What all changes take. */
function changeOptions(
  flags: ChangeFlags,
  credentials: Parameters<typeof openOptions>[1],
): RecipientChangeOptions {
  const { unlock, kdfLimits, signal } = openOptions(flags, credentials)
  return {
    ...{ unlock, kdfLimits, signal },
    ...stayOptions(flags),
    onNotice: (text) => {
      notice(printable(text))
    },
    removeSignatures: flags.removeSignatures,
  }
}

export function addRecipientCommands(program: Command): void {
  const command = program
    .command("recipient")
    .summary("who may open an image: list, add, remove, rotate")
    .description(
      "Shows and changes who may open an image, in place and without touching its payload: that takes the same time " +
        "whatever the image's size. A change that is killed leaves an image that opens.",
    )

  command
    .command("list")
    .description("List who may open IMAGE, and with which program. No key is needed.")
    .argument("<image>", "the image to look at")
    .option("--json", "print JSON")
    .action(async (image: string, flags: { json?: true }) => {
      const recipients = await listRecipients(image)
      await print(
        flags.json === true ? `${JSON.stringify(recipients, null, 2)}\n` : recipientTable(recipients),
      )
    })

  const changing = (name: string, text: string): Command =>
    addStayOptions(
      addOpenOptions(
        command.command(name).description(text).argument("<image>", "the image to change, in place"),
      ),
    )
      .option("--remove-signatures", "remove the signatures that the change breaks")
      .option("--json", "print the result as JSON")

  const add = changing(
    "add",
    "Lets new recipients open IMAGE: --recipient names a public key, --recipient-passphrase asks for a passphrase. " +
      "The other credentials are those that open it now.",
  ).option("--anonymous", "do not say in the image whose the public keys are")
  addKdfOptions(addRecipientOptions(add)).action(async (image: string, flags: AddFlags) => {
    const kdf = passphraseKdf(flags, add)
    const change = await withRecipients(flags, (recipients = []) =>
      withCredentials(flags, false, (credentials) =>
        addRecipients(image, {
          ...changeOptions(flags, credentials),
          recipients,
          anonymous: flags.anonymous,
          passphraseKdf: kdf,
        }),
      ),
    )
    await report(change, flags)
  })

  const remove = changing(
    "remove",
    "Takes a recipient out of IMAGE and replaces the secret of those who stay, so that what the removed one kept of " +
      "it opens nothing. RECIPIENT is a fingerprint, the ID of a crypto message, or a file with the key.",
  )
    .argument("[recipient]", "whom to remove")
    .option("--keyslot <n>", "the keyslot of a passphrase to remove", count(0, 99))
  addKeysOfThoseWhoStay(remove).action(
    async (image: string, recipient: string | undefined, flags: RemoveFlags) => {
      if ((recipient === undefined) === (flags.keyslot === undefined))
        remove.error("error: name either a RECIPIENT or a --keyslot")
      const whom = ((): RemoveRecipientOptions => {
        if (recipient === undefined) return { keyslot: flags.keyslot ?? 0 }
        return /^\d+$|^SHA(?:1|256):|^[0-9a-fA-F:]{40,}$/.test(recipient)
          ? { recipient }
          : { recipientFile: recipient }
      })()
      const change = await withRecipients(flags, (recipients) =>
        withCredentials(flags, false, (credentials) =>
          removeRecipient(image, {
            ...changeOptions(flags, credentials),
            ...(recipients && { recipients }),
            ...whom,
          }),
        ),
      )
      await report(change, flags)
    },
  )

  const rotate = changing(
    "rotate",
    "Replaces the secret that IMAGE's RSA recipients share. All of them stay, and so do passphrases, or those that are listed.",
  )
  addKeysOfThoseWhoStay(rotate).action(async (image: string, flags: ChangeFlags) => {
    const change = await withRecipients(flags, (recipients) =>
      withCredentials(flags, false, (credentials) =>
        rotateRecipients(image, { ...changeOptions(flags, credentials), ...(recipients && { recipients }) }),
      ),
    )
    await report(change, flags)
  })
}

function addKeysOfThoseWhoStay(command: Command): Command {
  return command.option(
    "--recipient <file>",
    "public key of a recipient who stays, as with --keep (repeatable)",
    collect,
  )
}
