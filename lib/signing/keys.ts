// Where the keys of signers come from: PEM files and key rings.
import type { KeyObject } from "node:crypto"
import { readBounded } from "../bounded-file.ts"
import { SignatureError } from "../errors.ts"
import { pemKeys } from "../key/pem.ts"
import { Stretching } from "../key/stretching.ts"
import type { Bytes } from "../units.ts"
import { MAX_KEYRING_SIZE } from "./openpgp.ts"

const MAX_KEY_SIZE: Bytes = 1 << 20

/** A small file that is no secret. */
export async function readSignerFile(file: string, limit: Bytes, signal?: AbortSignal): Promise<Buffer> {
  try {
    return await readBounded(file, limit, { signal })
  } catch (cause) {
    signal?.throwIfAborted()
    const { code, message } = cause as NodeJS.ErrnoException
    throw new SignatureError(
      "ERR_SIGNATURE_KEYRING",
      `cannot read the signers' keys in ${file}: ${code === "ENOENT" ? "there is no such file" : message}`,
      { path: file, cause },
    )
  }
}

/** A signer's public key in PEM form: SPKI, PKCS#1 or a certificate. */
export async function readSignerKey(file: string, signal?: AbortSignal): Promise<KeyObject> {
  const bytes = await readSignerFile(file, MAX_KEY_SIZE, signal)
  try {
    if (bytes.includes("PRIVATE KEY-----")) throw new Error("it is a private key")
    const [key] = pemKeys(bytes, file, () => undefined, new Stretching(file)).keys
    if (key === undefined) throw new Error("there is none")
    return await key.read(undefined)
  } catch (cause) {
    throw SignatureError.at(
      file,
      "ERR_SIGNATURE_KEYRING",
      `a public key in PEM form is needed to verify: ${(cause as Error).message}`,
      { cause },
    )
  }
}

/** A key ring: OpenPGP public keys, armored or as packets. */
export function readKeyring(file: string, signal?: AbortSignal): Promise<Buffer> {
  return readSignerFile(file, MAX_KEYRING_SIZE, signal)
}
