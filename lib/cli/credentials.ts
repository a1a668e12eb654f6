// The credential options every command shares, and the prompts behind them.
import type { Command } from "commander"
import { forbidDumps, KeyError, type CredentialOptions } from "../index.ts"
import { interruption } from "./interrupt.ts"
import { notice, promptSecret, secretFromStdin } from "./terminal.ts"

export interface CredentialFlags {
  readonly pemPath?: string[]
  readonly passphrase?: true
  readonly passphraseFile?: string
}

function collect(value: string, earlier: string[] | undefined): string[] {
  return [...(earlier ?? []), value]
}

const environmentHelp = `
Without such an option the environment is looked at: SIFCRYPT_ENCRYPTION_PEM_PATH,
SIFCRYPT_ENCRYPTION_PEM_DATA (the key itself), SIFCRYPT_ENCRYPTION_PASSPHRASE, and
the same with APPTAINER_ or SINGULARITY_ in front. A secret is never an argument.`

/** Adds `--pem-path`, `--passphrase` and `--passphrase-file`. Secrets themselves are never arguments. */
export function addCredentialOptions(command: Command): Command {
  return command
    .option(
      "--pem-path <file>",
      "RSA key in PEM form: public to build, private to open (repeatable)",
      collect,
    )
    .option("--passphrase", "ask for a passphrase on the terminal")
    .option("--passphrase-file <file>", "passphrase in a file; a line end at its very end is not part of it")
    .addHelpText("after", environmentHelp)
}

async function askPassphrase(confirm: boolean): Promise<Buffer> {
  const prompt = promptSecret("Enter encryption passphrase: ", interruption)
  const passphrase = prompt === undefined ? secretFromStdin() : await prompt
  if (passphrase.length === 0)
    throw new KeyError("ERR_KEY_MISSING", "the passphrase is empty, and an empty passphrase protects nothing")
  if (confirm && prompt !== undefined) {
    let same = false
    try {
      const again = await (promptSecret("Enter it again: ", interruption) ?? Promise.resolve(Buffer.alloc(0)))
      same = again.equals(passphrase)
      again.fill(0)
    } finally {
      if (!same) passphrase.fill(0)
    }
    if (!same) throw new KeyError("ERR_LUKS_PASSPHRASE", "the two passphrases differ")
  }
  return passphrase
}

/**
 * Runs `use` with the credentials that flags and environment name, prompting where asked to; wipes what was typed.
 *
 * @param confirm - Ask twice, as for a new image.
 */
export async function withCredentials<T>(
  flags: CredentialFlags,
  confirm: boolean,
  use: (credentials: CredentialOptions) => Promise<T>,
): Promise<T> {
  forbidDumps()
  let typed = flags.passphrase === true ? await askPassphrase(confirm) : undefined
  const given = (): CredentialOptions => ({
    env: process.env,
    ...(flags.pemPath === undefined ? {} : { pemPaths: flags.pemPath }),
    ...(flags.passphraseFile === undefined ? {} : { passphraseFile: flags.passphraseFile }),
    ...(typed === undefined ? {} : { passphrase: typed }),
  })
  try {
    return await use(given())
  } catch (error) {
    // Somebody at a terminal who gave nothing is asked, as cryptsetup and ssh do.
    const missing = error instanceof KeyError && error.code === "ERR_KEY_MISSING"
    const gave = typed !== undefined || flags.pemPath !== undefined || flags.passphraseFile !== undefined
    if (!missing || confirm || gave || !process.stdin.isTTY) throw error
    notice(error.message)
    typed = await askPassphrase(false)
    return await use(given())
  } finally {
    typed?.fill(0)
  }
}
