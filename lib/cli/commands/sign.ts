import { InvalidArgumentError, Option, type Command } from "commander"
import { forbidDumps, sign, userSecretKeyrings, type SigningKey } from "../../index.ts"
import { keyPassword, KeyPasswords, parseDescriptor } from "../credentials.ts"
import { interruption } from "../interrupt.ts"
import { print } from "../output.ts"
import { parseId } from "../signers.ts"
import { keepHeapSmall } from "../small-heap.ts"
import { notice, printable, Progress } from "../terminal.ts"
import { collect } from "../values.ts"

interface SignFlags {
  readonly keyidx?: number | string
  readonly key?: string
  readonly secretKeyring?: string[]
  readonly gpg?: true
  readonly signCommand?: string
  readonly groupId?: number[]
  readonly sifId?: number[]
  readonly keyPassphraseFile?: string
  readonly keyPassphraseFd?: number
  readonly tree?: true
  readonly json?: true
}

/** Whole fingerprints only: what is shorter can be forged. */
function parseKey(text: string): number | string {
  if (/^\d{1,6}$/.test(text)) return Number(text)
  const digits = text.replaceAll(/[\s:]/g, "")
  if (/^(?:[0-9a-fA-F]{40}|[0-9a-fA-F]{64})$/.test(digits)) return digits.toUpperCase()
  throw new InvalidArgumentError("It is an index or a whole fingerprint: 40 or 64 hexadecimal digits.")
}

function signingKey(flags: SignFlags, command: Command): SigningKey {
  const { key, keyidx, signCommand, secretKeyring } = flags
  if (key !== undefined)
    return signCommand === undefined ? { keyPath: key } : { publicKeyPath: key, command: signCommand }
  if (signCommand !== undefined) command.error("error: --sign-command takes the public key as --key")
  if (flags.gpg === true) return { gpg: true, select: keyidx }
  return { secretKeyrings: secretKeyring ?? userSecretKeyrings(process.env), select: keyidx }
}

export function addSignCommand(program: Command): void {
  const command = program
    .command("sign")
    .summary("sign an image")
    .description(
      "Adds a signature to IMAGE for each of its groups, in place: with an OpenPGP key of your key rings, with gpg, or with a plain " +
        "key (DSSE). Apptainer and SingularityCE verify them. Of an encrypted image the ciphertext is signed, which takes no key of it.",
    )
    .argument("<image>", "the image to sign")
    .option(
      "-k, --keyidx <key>",
      "OpenPGP key to sign with: its index in the key rings, or its fingerprint (default: the only one)",
      parseKey,
    )
    .addOption(
      new Option(
        "--key <file>",
        "private key to sign with: RSA, ECDSA, Ed25519; PKCS#8, PKCS#1, SEC 1",
      ).conflicts(["keyidx", "gpg", "secretKeyring"]),
    )
    .option(
      "--secret-keyring <file>",
      "OpenPGP secret keys (repeatable; default: those that your programs keep for you)",
      collect,
    )
    .addOption(
      new Option("--gpg", "sign with a key of your gpg-agent, through gpg").conflicts("secretKeyring"),
    )
    .option(
      "--sign-command <command>",
      "a shell command that signs its standard input with the private half of --key, which is public then",
    )
    .option("-g, --group-id <group>", "sign this group only (repeatable)", parseId)
    .addOption(
      new Option("-i, --sif-id <id>", "sign this object only (repeatable)")
        .argParser(parseId)
        .conflicts("groupId"),
    )
    .addOption(
      new Option(
        "--tree",
        "add a hash tree of the root file system: opening with --verify checks each block when it is read",
      ).conflicts("sifId"),
    )
    .option("--key-passphrase-file <file>", "password of the key in a file (default: asked on the terminal)")
    .addOption(
      new Option("--key-passphrase-fd <n>", "read the password of the key from descriptor N")
        .argParser(parseDescriptor)
        .conflicts("keyPassphraseFile"),
    )
    .option("--json", "print the result as JSON")
  command.action(async (image: string, flags: SignFlags) => {
    const by = signingKey(flags, command)
    forbidDumps()
    keepHeapSmall()
    using passwords = new KeyPasswords()
    const progress = new Progress(`signing ${image}`)
    const report = await sign(image, by, {
      password:
        flags.keyPassphraseFd === undefined
          ? keyPassword(flags.keyPassphraseFile, passwords)
          : { fd: flags.keyPassphraseFd },
      signal: interruption,
      onProgress: (bytes) => {
        progress.update(bytes)
      },
      ...(flags.tree === true ? { tree: true } : {}),
      groups: flags.groupId,
      objects: flags.sifId,
    }).finally(() => {
      progress.done()
    })
    if (report.kind === "openpgp" && report.signer.length > 40)
      notice("this is a key of OpenPGP version 6: Apptainer and SingularityCE cannot verify its signatures")
    for (const id of report.ungrouped)
      notice(`object ${id} is in no group and is not signed: the image as a whole does not verify`)
    if (flags.json === true) {
      await print(`${JSON.stringify(report)}\n`)
      return
    }
    const lines = report.signatures.map(
      ({ id, group, objects }) =>
        `Signature ${id} (${report.kind}) of group ${group}: objects ${objects.join(", ")}`,
    )
    await print(
      `${[...lines, `  Fingerprint: ${report.signer}`, `Signed: ${printable(image)}`].join("\n")}\n`,
    )
  })
}
