// Passwords of key files: where they come from, and what one must be like.
import { KeyError } from "../errors.ts"
import { Secret } from "../key/secret.ts"
import { readDescriptor, readSecretFile } from "./secret-sources.ts"

/** Where the password of a key file comes from. A line end at the very end of a file or descriptor is not part of it. */
export type PasswordSource =
  | { readonly file: string }
  | { readonly fd: number }
  /** Copied; the caller wipes its own. */
  | { readonly bytes: Uint8Array }
  /** Asked only if one is needed; the answer is wiped. Undefined: there is nobody to ask. */
  | { readonly ask: (origin: string) => Promise<Uint8Array | undefined> }

/** Longest password, bytes. */
const MAX_PASSWORD_SIZE = 1024

/** The password that a source gives; undefined: nobody has one. */
export async function readPassword(
  source: PasswordSource | undefined,
  origin: string,
): Promise<Secret | undefined> {
  if (source === undefined) return undefined
  let bytes: Uint8Array | undefined
  if ("file" in source) bytes = await readSecretFile(source.file, MAX_PASSWORD_SIZE + 2)
  else if ("fd" in source) bytes = await readDescriptor(source.fd, MAX_PASSWORD_SIZE + 2)
  else if ("ask" in source) bytes = await source.ask(origin)
  else return new Secret(source.bytes)
  if (bytes === undefined) return undefined
  try {
    let end = bytes.length
    if (!("ask" in source) && bytes[end - 1] === 0x0a) end -= bytes[end - 2] === 0x0d ? 2 : 1
    return new Secret(bytes.subarray(0, end))
  } finally {
    bytes.fill(0)
  }
}

/** The password for a new file, which an empty one would not protect. */
export async function newPassword(source: PasswordSource | undefined, output: string): Promise<Secret> {
  const password = await readPassword(source, output)
  if (password === undefined)
    throw new KeyError("ERR_KEY_MISSING", `${output}: a password is needed for the private key`, {
      path: output,
    })
  if (password.length > 0 && password.length <= MAX_PASSWORD_SIZE) return password
  const { length } = password
  password.wipe()
  throw length === 0
    ? new KeyError(
        "ERR_KEY_MISSING",
        `${output}: the password is empty, and an empty password protects nothing`,
      )
    : new KeyError("ERR_KEY_FORMAT", `${output}: a password has at most ${MAX_PASSWORD_SIZE} bytes`)
}
