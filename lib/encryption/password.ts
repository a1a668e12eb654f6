// Passwords of key files: what one must be like.
import { KeyError } from "../errors.ts"
import { MAX_PASSWORD_SIZE } from "../key/der-key.ts"
import { Secret } from "../key/secret.ts"
import { readSecret, type SecretSource } from "./secret-sources.ts"

/** The password that a source gives; undefined: nobody has one. */
export async function readPassword(
  source: SecretSource | undefined,
  origin: string,
): Promise<Secret | undefined> {
  if (source === undefined) return undefined
  const found = await readSecret(source, { limit: MAX_PASSWORD_SIZE, what: origin, text: true })
  if (found === undefined) return undefined
  try {
    return new Secret(found.bytes)
  } finally {
    found.bytes.fill(0)
  }
}

/** The password for a new file, which an empty one would not protect. */
export async function newPassword(source: SecretSource | undefined, output: string): Promise<Secret> {
  const password = await readPassword(source, output)
  if (password === undefined)
    throw KeyError.at(output, "ERR_KEY_MISSING", "a password is needed for the private key")
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
