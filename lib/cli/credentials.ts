// The credential options every command shares, and the prompts behind them.
import { fstatSync } from "node:fs"
import { InvalidArgumentError } from "commander"
import * as api from "../index.ts"
import { given, under, type OptionRows } from "./command.ts"
import { interruption } from "./interrupt.ts"
import { notice, printable, promptSecret, secretFromStdin } from "./terminal.ts"
import { each, flag, text } from "./values.ts"

export interface CredentialFlags {
  readonly pemPath?: string[]
  readonly keyFd?: number
  readonly keyCommand?: string
  readonly keyPassphraseFile?: string
  readonly passphrase?: true
  readonly passphraseFile?: string
  readonly passphraseFd?: number
}

/** What opens layers: a private key's file, with where its password is if that was said; a key provider; or GnuPG's. */
export type LayerKeyWord =
  { readonly file: string; readonly password?: api.SecretSource } | api.KeyProviderSource | api.GnuPgSource

/** Of commands that open OCI images, too. */
interface LayerKeyFlags {
  readonly layerKeys?: readonly LayerKeyWord[]
}

const environmentHelp = `
Without such an option the environment is looked at: SIFCRYPT_ENCRYPTION_PEM_PATH,
SIFCRYPT_ENCRYPTION_PEM_DATA (the key itself), SIFCRYPT_ENCRYPTION_PASSPHRASE, and
the same with APPTAINER_ or SINGULARITY_ in front. A secret is never an argument.`

/** A descriptor that was passed to the command: looked at before anything is opened that could have its number. */
export function parseDescriptor(text: string): number {
  const fd = /^\d{1,6}$/.test(text) ? Number(text) : -1
  if (fd < 0 || fd === 1 || fd === 2) throw new InvalidArgumentError("It is 0, or 3 and above.")
  try {
    fstatSync(fd)
  } catch {
    throw new InvalidArgumentError(`Descriptor ${fd} is not open.`)
  }
  return fd
}

/** Secrets themselves are never arguments. */
export const credentialRows: OptionRows<CredentialFlags> = under("Keys and signatures", {
  pemPath: [
    "--pem-path <file>",
    "RSA key file of any form: public to build, private to open (repeatable)",
    each(text),
    { note: environmentHelp },
  ],
  keyFd: ["--key-fd <n>", "read such a key file from descriptor N", parseDescriptor],
  keyCommand: [
    "--key-command <command>",
    "take the standard output of a shell command for such a key file",
    text,
  ],
  keyPassphraseFile: [
    "--key-passphrase-file <file>",
    "password of a protected key file (default: asked on the terminal)",
    text,
  ],
  passphrase: ["--passphrase", "ask for a passphrase on the terminal", flag],
  passphraseFile: [
    "--passphrase-file <file>",
    "passphrase in a file; a line end at its very end is not part of it",
    text,
  ],
  passphraseFd: [
    "--passphrase-fd <n>",
    "read the passphrase from descriptor N, in the same way",
    parseDescriptor,
  ],
})

async function askPassphrase(confirm: boolean): Promise<Buffer> {
  const prompt = promptSecret("Enter encryption passphrase: ", interruption)
  const passphrase = prompt === undefined ? secretFromStdin() : await prompt
  if (passphrase.length === 0)
    throw new api.KeyError(
      "ERR_KEY_MISSING",
      "the passphrase is empty, and an empty passphrase protects nothing",
    )
  if (confirm && prompt !== undefined) {
    let same = false
    try {
      const again = await (promptSecret("Enter it again: ", interruption) ?? Promise.resolve(Buffer.alloc(0)))
      same = again.equals(passphrase)
      again.fill(0)
    } finally {
      if (!same) passphrase.fill(0)
    }
    if (!same) throw new api.KeyError("ERR_KEY_MISMATCH", "the two passphrases differ")
  }
  return passphrase
}

/** Passwords of key files as they were typed, so that nobody is asked twice for the same one. */
export class KeyPasswords implements Disposable {
  readonly #typed = new Map<string, Buffer>()

  async ask(origin: string, attempt: number): Promise<Uint8Array | undefined> {
    if (attempt > 1) notice("this is not the password of the key file: try again")
    let password = attempt === 1 ? this.#typed.get(origin) : undefined
    if (password === undefined) {
      password = await promptSecret(`Enter passphrase for ${printable(origin)}: `, interruption)
      if (password === undefined) return undefined
      this.#typed.get(origin)?.fill(0)
      this.#typed.set(origin, password)
    }
    // Whoever asked wipes what it gets.
    const copy = api.allocateSecret(password.length)
    password.copy(copy)
    return copy
  }
  [Symbol.dispose](): void {
    for (const password of this.#typed.values()) password.fill(0)
  }
}

/** Where the password of key files comes from. */
export function keyPassword(file: string | undefined, passwords: KeyPasswords): api.SecretSource {
  return file === undefined ? { ask: (origin, attempt) => passwords.ask(origin, attempt) } : { file }
}

/** @param password - Of those that do not say where theirs is. */
export function layerCredentials(
  words: readonly LayerKeyWord[],
  password: api.SecretSource,
): api.CredentialSource[] {
  return words.map((word) =>
    "file" in word ? { key: { file: word.file }, password: word.password ?? password } : word,
  )
}

/** The API's list for these flags; `typed` is a passphrase that was or will be asked for. */
function credentialSources(
  flags: CredentialFlags & LayerKeyFlags,
  password: api.SecretSource,
  typed: api.SecretSource | undefined,
): api.CredentialSource[] {
  const keys: (api.SecretSource | undefined)[] = [
    ...(flags.pemPath ?? []).map((file) => ({ file })),
    flags.keyFd === undefined ? undefined : { fd: flags.keyFd },
    flags.keyCommand === undefined ? undefined : { command: flags.keyCommand },
  ]
  const passphrases = [
    typed,
    flags.passphraseFile === undefined ? undefined : { file: flags.passphraseFile },
    flags.passphraseFd === undefined ? undefined : { fd: flags.passphraseFd },
  ]
  return [
    ...layerCredentials(flags.layerKeys ?? [], password),
    ...keys.flatMap((key) => (key === undefined ? [] : [{ key, password }])),
    ...passphrases.flatMap((passphrase) => (passphrase === undefined ? [] : [{ passphrase }])),
  ]
}

/** Was a credential given, rather than left to the environment? */
export function gaveCredentials(flags: CredentialFlags & LayerKeyFlags): boolean {
  if (flags.layerKeys !== undefined) return true
  return Object.keys(given(credentialRows, flags)).some((key) => key !== "keyPassphraseFile")
}

/**
 * Runs `use` with the credentials that flags and environment name, and where passwords of key files come from, prompting where
 * asked to; wipes what was typed.
 *
 * @param confirm - Ask twice, as for a new image.
 * @param environment - Where to look when no flag names one.
 */
export async function withCredentials<T>(
  flags: CredentialFlags & LayerKeyFlags,
  confirm: boolean,
  use: (credentials: readonly api.CredentialSource[], password: api.SecretSource) => Promise<T>,
  environment: NodeJS.ProcessEnv = process.env,
): Promise<T> {
  api.forbidDumps()
  using passwords = new KeyPasswords()
  // For a new image at once; an image that exists may be refused first.
  let typed = flags.passphrase === true && confirm ? await askPassphrase(true) : undefined
  const password = keyPassword(flags.keyPassphraseFile, passwords)
  const sources = (passphrase: api.SecretSource | undefined): api.CredentialSource[] => [
    ...credentialSources(flags, password, passphrase),
    { environment, password },
    { keysFile: api.keyConfigurationFile(environment), password },
  ]
  try {
    const asked = typed === undefined ? { ask: () => askPassphrase(false) } : { bytes: typed }
    return await use(sources(flags.passphrase === true ? asked : undefined), password)
  } catch (error) {
    // Somebody at a terminal who gave nothing is asked, as cryptsetup and ssh do.
    const missing = error instanceof api.KeyError && error.code === "ERR_KEY_MISSING"
    if (!missing || confirm || gaveCredentials(flags) || !process.stdin.isTTY) throw error
    notice(error.message)
    typed = await askPassphrase(false)
    return await use(sources({ bytes: typed }), password)
  } finally {
    typed?.fill(0)
  }
}
