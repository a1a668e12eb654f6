// Layer keys as they are wrapped for a key in a PKCS#11 token: RSA-OAEP. Whoever has the key itself in a file unwraps them as well.
import { constants, privateDecrypt, publicEncrypt, type KeyObject } from "node:crypto"
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { allocateSecret } from "../key/secret.ts"
import type { Bytes } from "../units.ts"
import type { Attempts } from "./attempts.ts"
import type { TokenKey } from "./token-key.ts"

const MAX_RECIPIENTS = 256

/**
 * Unwraps a layer's key.
 *
 * @returns What was wrapped, which the caller wipes; undefined: for none of these keys.
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_LIMIT`, `ERR_OCI_WORK`; what a token throws.
 */
export async function unwrapPkcs11(
  message: Buffer,
  keys: readonly KeyObject[],
  tokens: readonly TokenKey[],
  attempts: Attempts,
  what: string,
): Promise<Buffer | undefined> {
  if (keys.length + tokens.length === 0) return undefined
  let value: unknown
  try {
    value = parseJson(message.toString("utf8"))
  } catch {
    throw new OciError("ERR_OCI_FORMAT", `${what}: its key wrapped by PKCS#11 is no JSON`)
  }
  const { recipients } = asObject(value)
  const list: unknown[] = Array.isArray(recipients) ? recipients : []
  if (list.length > MAX_RECIPIENTS)
    throw new OciError("ERR_OCI_LIMIT", `${what}: more than ${MAX_RECIPIENTS} recipients`)
  for (const recipient of list) {
    const { blob, hash = "" } = asObject(recipient)
    if (typeof blob !== "string" || (hash !== "" && hash !== "sha1" && hash !== "sha256")) continue
    const wrapped = Buffer.from(blob, "base64")
    const oaepHash = hash === "" ? "sha1" : hash
    for (const key of keys) {
      if (key.asymmetricKeyType !== "rsa") continue
      attempts.take(1, what)
      const secret = decrypt(key, wrapped, oaepHash)
      if (secret !== undefined) return secret
    }
    for (const token of tokens) {
      attempts.take(1, what)
      const secret = await token.decrypt(wrapped, oaepHash)
      if (secret !== undefined) return secret
    }
  }
  return undefined
}

/** Of what an image says; what is no object says nothing. */
function asObject(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>) : {}
}

function decrypt(key: KeyObject, wrapped: Buffer, oaepHash: string): Buffer | undefined {
  try {
    const bytes = privateDecrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash }, wrapped)
    const secret = allocateSecret(bytes.length)
    bytes.copy(secret)
    bytes.fill(0)
    return secret
  } catch {
    return undefined // another's
  }
}

/** What OAEP takes of a key: two hashes and two bytes. */
const SHA256_ROOM: Bytes = 2 * 32 + 2

/**
 * Wraps a layer's key for RSA keys, as the peers do: with SHA-256 where the key is large enough for what is wrapped, else with SHA-1, which
 * OAEP is as safe with.
 */
export function wrapPkcs11(secret: Buffer, keys: readonly KeyObject[]): Buffer {
  const recipients = keys.map((key) => {
    const size = Math.ceil((key.asymmetricKeyDetails?.modulusLength ?? 0) / 8)
    const hash = size - SHA256_ROOM >= secret.length ? "sha256" : "sha1"
    const blob = publicEncrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: hash }, secret)
    return { version: 0, blob: blob.toString("base64"), hash }
  })
  return Buffer.from(JSON.stringify({ version: 0, recipients }))
}
