// Where the keys of signers come from: PEM files and key rings.
import type { KeyObject } from "node:crypto"
import { open } from "node:fs/promises"
import { SignatureError } from "../errors.ts"
import { pemKeys } from "../key/pem.ts"
import type { Bytes } from "../units.ts"
import { MAX_KEYRING_SIZE } from "./openpgp.ts"

const MAX_KEY_SIZE: Bytes = 1 << 20

/** A small file that is no secret. */
export async function readBounded(file: string, limit: Bytes): Promise<Buffer> {
  const fail = (why: string, cause?: unknown): SignatureError =>
    new SignatureError("ERR_SIGNATURE_KEYRING", `cannot read the signers' keys in ${file}: ${why}`, {
      path: file,
      cause,
    })
  try {
    await using handle = await open(file, "r")
    const { size } = await handle.stat()
    if (size > limit) throw fail(`it has ${size} bytes, more than ${limit}`)
    return await handle.readFile()
  } catch (cause) {
    if (cause instanceof SignatureError) throw cause
    const { code, message } = cause as NodeJS.ErrnoException
    throw fail(code === "ENOENT" ? "there is no such file" : message, cause)
  }
}

/** A signer's public key in PEM form: SPKI, PKCS#1 or a certificate. */
export async function readSignerKey(file: string): Promise<KeyObject> {
  const bytes = await readBounded(file, MAX_KEY_SIZE)
  try {
    if (bytes.includes("PRIVATE KEY-----")) throw new Error("it is a private key")
    const [key] = pemKeys(bytes, file, () => undefined).keys
    if (key === undefined) throw new Error("there is none")
    return await key.read(undefined)
  } catch (cause) {
    throw new SignatureError(
      "ERR_SIGNATURE_KEYRING",
      `${file}: a public key in PEM form is needed to verify: ${(cause as Error).message}`,
      { path: file, cause },
    )
  }
}

/** A key ring: OpenPGP public keys, armored or as packets. */
export function readKeyring(file: string): Promise<Buffer> {
  return readBounded(file, MAX_KEYRING_SIZE)
}
