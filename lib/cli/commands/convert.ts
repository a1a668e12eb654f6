import * as api from "../../index.ts"
import { command, type CommandRow } from "../command.ts"
import { credentialRows, withCredentials } from "../credentials.ts"
import { encryptionOptions, encryptionRows, outputRows, showMaking } from "../encryption.ts"
import { openOptions, openRows, type OpenFlags } from "../opening.ts"
import { recipientRows, stayOptions, stayRows, withRecipients } from "../recipients.ts"
import { signerOptions, signerRows } from "../signers.ts"

/** How far the image is trusted. */
function trust(flags: OpenFlags): api.TrustOptions {
  const { kdfLimits, onDerivation, unsigned } = openOptions(flags, [])
  return { kdfLimits, onDerivation, unsigned, ...signerOptions(flags) }
}

export const encrypt: CommandRow = command({
  name: "encrypt",
  examples: [
    [
      "a plain image, for two people",
      "sifcrypt encrypt --pem-path alice.pem --pem-path bob.pem plain.sif image.sif",
    ],
  ],
  heading: "Make and change images",
  summary: "encrypt a plain image",
  description:
    "Makes the encrypted image OUTPUT of the plain image IMAGE, for everybody whose public key or passphrase is given. " +
    "Every other object comes along; definition, labels and the like are kept inside the encryption. " +
    "`sifcrypt decrypt` gives the same image back. Nothing plain is written on the way.",
  arguments: [
    ["<image>", "the plain image"],
    ["<output>", "the image to write"],
  ],
  options: { ...encryptionRows, ...credentialRows, ...signerRows },
  run: async (flags, [image, output], command) => {
    const signers = signerOptions(flags)
    const encryption = encryptionOptions(flags, command)
    await withCredentials(flags, true, (credentials) =>
      showMaking(`encrypting ${output}`, output, flags, (options) =>
        api.encrypt({
          ...options,
          ...encryption,
          ...signers,
          image,
          recipients: credentials,
        }),
      ),
    )
  },
})

export const decrypt: CommandRow = command({
  name: "decrypt",
  examples: [["with a key", "sifcrypt decrypt --pem-path key.pem image.sif plain.sif"]],
  heading: "Make and change images",
  summary: "make a plain image of an encrypted one",
  description:
    "Makes the plain image OUTPUT of the encrypted image IMAGE: the root file system as it was before it was encrypted, " +
    "with every other object. Whoever can read OUTPUT can read everything in it.",
  arguments: [
    ["<image>", "the encrypted image"],
    ["<output>", "the image to write"],
  ],
  options: { ...outputRows, ...openRows },
  run: async (flags, [image, output]) => {
    await withCredentials(flags, false, (credentials) =>
      showMaking(`decrypting ${image}`, output, flags, (options) =>
        api.decrypt({ ...options, ...trust(flags), image, unlock: credentials }),
      ),
    )
  },
})

export const reencrypt: CommandRow = command({
  name: "reencrypt",
  examples: [
    [
      "for a new key, with a new volume key",
      "sifcrypt reencrypt --pem-path old.pem --recipient new-public.pem image.sif new.sif",
    ],
  ],
  heading: "Make and change images",
  summary: "encrypt an image anew, with a new volume key",
  description:
    "Makes the encrypted image OUTPUT of the encrypted image IMAGE, with a new volume key: what opened IMAGE opens " +
    "nothing of OUTPUT. With --recipient or a new passphrase OUTPUT is for these alone; with --keep for whoever opens IMAGE " +
    "and those of its recipients (and new ones, if named); otherwise for all its RSA recipients, once they are confirmed, " +
    "and the passphrase that opened it.",
  arguments: [
    ["<image>", "the encrypted image"],
    ["<output>", "the image to write"],
  ],
  options: { ...encryptionRows, ...recipientRows, ...openRows, ...stayRows },
  run: async (flags, [image, output], command) => {
    const encryption = { ...encryptionOptions(flags, command), ...trust(flags), ...stayOptions(flags) }
    await withRecipients(flags, (named) =>
      withCredentials(flags, false, (credentials) =>
        showMaking(`encrypting ${output}`, output, flags, (options) =>
          api.reencrypt({
            ...options,
            ...encryption,
            image,
            unlock: credentials,
            ...named,
          }),
        ),
      ),
    )
  },
})
