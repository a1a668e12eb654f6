// Keys in PKCS#11 tokens, as key files name them.
import { callerEnvironment } from "../caller-environment.ts"
import { madeOf } from "../disposal.ts"
import { KeyError } from "../errors.ts"
import { findModule, parseTokenFile, readPin } from "../ocicrypt/token-file.ts"
import { TokenKey } from "../ocicrypt/token-key.ts"
import type { KeyPassword } from "./credentials.ts"
import { copyOf } from "./secret-sources.ts"

/**
 * What a key file leads to. The caller disposes it.
 *
 * @param typed - The PIN, where the file leads to none.
 * @throws KeyError `ERR_KEY_FORMAT`, `ERR_KEY_TOKEN`, `ERR_KEY_MISSING`.
 */
async function open(
  file: Buffer,
  origin: string,
  typed: Buffer | undefined,
  signal: AbortSignal | undefined,
): Promise<{ readonly token: TokenKey; readonly hasPin: boolean }> {
  const { key, env, pin: written, pinFile, ...named } = await parseTokenFile(file, origin)
  const pin = written ?? (pinFile === undefined ? typed && copyOf(typed) : await readPin(pinFile))
  try {
    const module = await findModule(named, callerEnvironment(), origin)
    return { token: new TokenKey({ key, module, env }, pin, origin, signal), hasPin: pin !== undefined }
  } catch (error) {
    pin?.fill(0)
    throw error
  }
}

/**
 * The private key that a file names, with the PIN of the file, or else a password that there is.
 *
 * @throws KeyError, EnvironmentError.
 */
export async function openTokenKey(
  file: Buffer,
  origin: string,
  password: KeyPassword,
  signal: AbortSignal | undefined,
): Promise<TokenKey> {
  return await password.unlock(origin, async (typed) => {
    const { token, hasPin } = await open(file, origin, typed, signal)
    return await madeOf(token, async () => {
      if (!hasPin)
        throw new KeyError("ERR_KEY_LOCKED", `${origin}: the PIN of the token is needed and none was given`)
      await token.check()
      return token
    })
  })
}

/**
 * The public half of the key that a file names.
 *
 * @throws KeyError, EnvironmentError.
 */
export async function readTokenRecipient(
  file: Buffer,
  origin: string,
  signal: AbortSignal | undefined,
): ReturnType<TokenKey["publicKey"]> {
  using token = (await open(file, origin, undefined, signal)).token
  return await token.publicKey()
}
