// Passwords of key files, from a file, a descriptor or the terminal; never from the command line.
import { KeyError, type SecretSource } from "../index.ts"
import type { OptionRow } from "./command.ts"
import { parseDescriptor } from "./credentials.ts"
import { interruption } from "./interrupt.ts"
import { printable, promptSecret } from "./terminal.ts"
import { text } from "./values.ts"

/** The password of a file that exists: asked for once. */
export async function ask(origin: string): Promise<Buffer | undefined> {
  return await promptSecret(`Enter password for ${printable(origin)}: `, interruption)
}

/** The password of a file that is made: asked for twice. */
export async function askTwice(origin: string): Promise<Buffer | undefined> {
  const first = await promptSecret(`Enter new password for ${printable(origin)}: `, interruption)
  if (first === undefined) return undefined
  let same = false
  try {
    const again = await promptSecret("Enter it again: ", interruption)
    same = again?.equals(first) === true
    again?.fill(0)
  } finally {
    if (!same) first.fill(0)
  }
  if (!same) throw new KeyError("ERR_KEY_PASSPHRASE", "the two passwords differ")
  return first
}

/** Where a password comes from: what was named, else whoever sits at the terminal. */
export function passwordSource(
  file: string | undefined,
  fd: number | undefined,
  otherwise: (origin: string) => Promise<Buffer | undefined>,
): SecretSource {
  if (file !== undefined) return { file }
  return fd === undefined ? { ask: otherwise } : { fd }
}

/** `--NAME-file`. */
export function passwordFile(name: string, of: string): OptionRow<string> {
  return [`--${name}-file <file>`, `password of ${of} in a file (default: asked on the terminal)`, text]
}

/** `--NAME-fd`, which does not go with the option `file`. */
export function passwordFd(name: string, of: string, file: string): OptionRow<number> {
  return [
    `--${name}-fd <n>`,
    `read the password of ${of} from descriptor N`,
    parseDescriptor,
    { conflicts: [file] },
  ]
}
