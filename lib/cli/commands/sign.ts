import { InvalidArgumentError, type Command } from "commander"
import { forbidDumps, sign as signImage, userSecretKeyrings, type SigningKey } from "../../index.ts"
import { command, type CommandRow, type FlagsOf } from "../command.ts"
import { keyPassword, KeyPasswords } from "../credentials.ts"
import { interruption } from "../interrupt.ts"
import { jsonRow, printResult } from "../output.ts"
import { passwordFd, passwordFile } from "../passwords.ts"
import { ids } from "../signers.ts"
import { keepHeapSmall } from "../small-heap.ts"
import { progressRow, withProgress } from "../progress.ts"
import { notice } from "../terminal.ts"
import { each, flag, text } from "../values.ts"

/** Whole fingerprints only: what is shorter can be forged. */
function parseKey(text: string): number | string {
  if (/^\d{1,6}$/.test(text)) return Number(text)
  const digits = text.replaceAll(/[\s:]/g, "")
  if (/^(?:[0-9a-fA-F]{40}|[0-9a-fA-F]{64})$/.test(digits)) return digits.toUpperCase()
  throw new InvalidArgumentError("It is an index or a whole fingerprint: 40 or 64 hexadecimal digits.")
}

/** What it is signed with. */
const keyRows = {
  keyidx: [
    "-k, --keyidx <key>",
    "OpenPGP key to sign with: its index in the key rings, or its fingerprint (default: the only one)",
    parseKey,
  ],
  key: [
    "--key <file>",
    "private key to sign with: RSA, ECDSA, Ed25519; PKCS#8, PKCS#1, SEC 1",
    text,
    { conflicts: ["keyidx", "gpg", "secretKeyring"] },
  ],
  secretKeyring: [
    "--secret-keyring <file>",
    "OpenPGP secret keys (repeatable; default: those that your programs keep for you)",
    each(text),
  ],
  gpg: ["--gpg", "sign with a key of your gpg-agent, through gpg", flag, { conflicts: ["secretKeyring"] }],
  signCommand: [
    "--sign-command <command>",
    "a shell command that signs its standard input with the private half of --key, which is public then",
    text,
  ],
} as const

function signingKey(flags: FlagsOf<typeof keyRows>, command: Command): SigningKey {
  const { key, keyidx, signCommand, secretKeyring } = flags
  if (key !== undefined)
    return signCommand === undefined ? { keyPath: key } : { publicKeyPath: key, command: signCommand }
  if (signCommand !== undefined) command.error("error: --sign-command takes the public key as --key")
  if (flags.gpg === true) return { gpg: true, select: keyidx }
  return { secretKeyrings: secretKeyring ?? userSecretKeyrings(process.env), select: keyidx }
}

export const sign: CommandRow = command({
  name: "sign",
  examples: [
    ["with the only key of your key ring", "sifcrypt sign image.sif"],
    ["with a hash tree, to verify while reading", "sifcrypt sign --tree image.sif"],
  ],
  heading: "Signatures",
  summary: "sign an image",
  description:
    "Adds a signature to IMAGE for each of its groups, in place: with an OpenPGP key of your key rings, with gpg, or with a plain " +
    "key (DSSE). Apptainer and SingularityCE verify them. Of an encrypted image the ciphertext is signed, which takes no key of it.",
  arguments: [["<image>", "the image to sign"]],
  options: {
    ...keyRows,
    groups: ["-g, --group-id <group>", "sign this group only (repeatable)", ids],
    objects: ["-i, --sif-id <id>", "sign this object only (repeatable)", ids, { conflicts: ["groups"] }],
    tree: [
      "--tree",
      "add a hash tree of the root file system: opening with --verify checks each block when it is read",
      flag,
      { conflicts: ["objects"] },
    ],
    keyPassphraseFile: passwordFile("key-passphrase", "the key"),
    keyPassphraseFd: passwordFd("key-passphrase", "the key", "keyPassphraseFile"),
    json: jsonRow,
    progress: progressRow,
  },
  run: async (flags, [image], command) => {
    const by = signingKey(flags, command)
    forbidDumps()
    keepHeapSmall()
    using passwords = new KeyPasswords()
    const report = await withProgress(
      `signing ${image}`,
      (onProgress) =>
        signImage(image, by, {
          password:
            flags.keyPassphraseFd === undefined
              ? keyPassword(flags.keyPassphraseFile, passwords)
              : { fd: flags.keyPassphraseFd },
          signal: interruption,
          onProgress,
          tree: flags.tree,
          groups: flags.groups,
          objects: flags.objects,
        }),
      `signed ${image}`,
    )
    if (report.kind === "openpgp" && report.signer.length > 40)
      notice("this is a key of OpenPGP version 6: Apptainer and SingularityCE cannot verify its signatures")
    for (const id of report.ungrouped)
      notice(`object ${id} is in no group and is not signed: the image as a whole does not verify`)
    const lines = report.signatures.map(
      ({ id, group, objects }) =>
        `Signature ${id} (${report.kind}) of group ${group}: objects ${objects.join(", ")}`,
    )
    const end = [`  Fingerprint: ${report.signer}`, `Signed: ${image}`]
    await printResult(flags, report, () => [...lines, ...end])
  },
})
