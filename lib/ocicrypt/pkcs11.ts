// Layer keys as they are wrapped for a key in a PKCS#11 token: RSA-OAEP. Whoever has the key itself in a file unwraps them as well;
// no token is asked.
import { constants, privateDecrypt, type KeyObject } from "node:crypto"
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { allocateSecret } from "../key/secret.ts"
import type { Attempts } from "./attempts.ts"

const MAX_RECIPIENTS = 256

/**
 * Unwraps a layer's key.
 *
 * @returns What was wrapped, which the caller wipes; undefined: for none of these keys.
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_LIMIT`, `ERR_OCI_WORK`.
 */
export function unwrapPkcs11(
  message: Buffer,
  keys: readonly KeyObject[],
  attempts: Attempts,
  what: string,
): Buffer | undefined {
  let value: unknown
  try {
    value = parseJson(message.toString("utf8"))
  } catch {
    throw new OciError("ERR_OCI_FORMAT", `${what}: its key wrapped by PKCS#11 is no JSON`)
  }
  const { recipients } = (value ?? {}) as { readonly recipients?: unknown }
  const list: unknown[] = Array.isArray(recipients) ? recipients : []
  if (list.length > MAX_RECIPIENTS)
    throw new OciError("ERR_OCI_LIMIT", `${what}: more than ${MAX_RECIPIENTS} recipients`)
  for (const key of keys) {
    if (key.asymmetricKeyType !== "rsa") continue
    for (const recipient of list) {
      const { blob, hash = "sha1" } = (recipient ?? {}) as Readonly<Record<string, unknown>>
      if (typeof blob !== "string" || (hash !== "" && hash !== "sha1" && hash !== "sha256")) continue
      attempts.take(1, what)
      const scheme = { padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: hash === "" ? "sha1" : hash }
      try {
        const bytes = privateDecrypt({ key, ...scheme }, Buffer.from(blob, "base64"))
        const secret = allocateSecret(bytes.length)
        bytes.copy(secret)
        bytes.fill(0)
        return secret
      } catch {
        // Another's.
      }
    }
  }
  return undefined
}
