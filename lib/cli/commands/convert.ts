import type { Command } from "commander"
import { decrypt, encrypt, reencrypt, type TrustOptions } from "../../index.ts"
import { addCredentialOptions, withCredentials, type CredentialFlags } from "../credentials.ts"
import {
  addEncryptionOptions,
  addOutputOptions,
  encryptionOptions,
  showMaking,
  type EncryptionFlags,
  type OutputFlags,
} from "../encryption.ts"
import { addOpenOptions, openOptions, type OpenFlags } from "../opening.ts"
import {
  addRecipientOptions,
  addStayOptions,
  stayOptions,
  withRecipients,
  type RecipientFlags,
  type StayFlags,
} from "../recipients.ts"
import { addSignerOptions, signerOptions, type SignerFlags } from "../signers.ts"

/** How far the image is trusted. */
function trust(flags: OpenFlags): TrustOptions {
  const { kdfLimits, unsigned, verify } = openOptions(flags, [])
  return {
    kdfLimits,
    unsigned,
    ...(verify === undefined ? {} : { verify }),
  }
}

function addEncrypt(program: Command): void {
  const command = program
    .command("encrypt")
    .summary("encrypt a plain image")
    .description(
      "Makes the encrypted image OUTPUT of the plain image IMAGE, for everybody whose public key or passphrase is given. " +
        "Every other object comes along; definition, labels and the like are kept inside the encryption. " +
        "`sifcrypt decrypt` gives the same image back. Nothing plain is written on the way.",
    )
    .argument("<image>", "the plain image")
    .argument("<output>", "the image to write")
  addSignerOptions(addCredentialOptions(addEncryptionOptions(command))).action(
    async (image: string, output: string, flags: CredentialFlags & EncryptionFlags & SignerFlags) => {
      const verify = signerOptions(flags)
      const encryption = encryptionOptions(flags, command)
      await withCredentials(flags, true, (credentials) =>
        showMaking(`encrypting ${output}`, output, flags, (options) =>
          encrypt({
            ...options,
            ...encryption,
            ...(verify === undefined ? {} : { verify }),
            image,
            recipients: credentials,
          }),
        ),
      )
    },
  )
}

function addDecrypt(program: Command): void {
  const command = program
    .command("decrypt")
    .summary("make a plain image of an encrypted one")
    .description(
      "Makes the plain image OUTPUT of the encrypted image IMAGE: the root file system as it was before it was encrypted, " +
        "with every other object. Whoever can read OUTPUT can read everything in it.",
    )
    .argument("<image>", "the encrypted image")
    .argument("<output>", "the image to write")
  addOpenOptions(addOutputOptions(command)).action(
    async (image: string, output: string, flags: OpenFlags & OutputFlags) => {
      await withCredentials(flags, false, (credentials) =>
        showMaking(`decrypting ${image}`, output, flags, (options) =>
          decrypt({ ...options, ...trust(flags), image, unlock: credentials }),
        ),
      )
    },
  )
}

function addReencrypt(program: Command): void {
  const command = program
    .command("reencrypt")
    .summary("encrypt an image anew, with a new volume key")
    .description(
      "Makes the encrypted image OUTPUT of the encrypted image IMAGE, with a new volume key: what opened IMAGE opens " +
        "nothing of OUTPUT. With --recipient or a new passphrase OUTPUT is for these alone; with --keep for whoever opens IMAGE " +
        "and those of its recipients (and new ones, if named); otherwise for all its RSA recipients, once they are confirmed, " +
        "and the passphrase that opened it.",
    )
    .argument("<image>", "the encrypted image")
    .argument("<output>", "the image to write")
  addStayOptions(addOpenOptions(addRecipientOptions(addEncryptionOptions(command)))).action(
    async (
      image: string,
      output: string,
      flags: OpenFlags & RecipientFlags & StayFlags & EncryptionFlags,
    ) => {
      const encryption = { ...encryptionOptions(flags, command), ...trust(flags), ...stayOptions(flags) }
      await withRecipients(flags, (recipients) =>
        withCredentials(flags, false, (credentials) =>
          showMaking(`encrypting ${output}`, output, flags, (options) =>
            reencrypt({
              ...options,
              ...encryption,
              image,
              unlock: credentials,
              ...(recipients === undefined ? {} : { recipients }),
            }),
          ),
        ),
      )
    },
  )
}

export function addConvertCommands(program: Command): void {
  addEncrypt(program)
  addDecrypt(program)
  addReencrypt(program)
}
