// What is wrapped for each recipient of an encrypted layer: its key, where the counter begins, and what was encrypted. JSON, of
// which the key never becomes a string: nobody could wipe that.
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { takeSecret, writeSecret } from "../key/secret-json.ts"
import type { Bytes } from "../units.ts"

export const KEY_SIZE: Bytes = 32
export const IV_SIZE: Bytes = 16
/** Some 200 bytes are usual. */
const MAX_SIZE: Bytes = 16 << 10

/** The key of one layer, for AES-256-CTR and for HMAC-SHA-256. Disposing wipes it. */
export class LayerKey implements Disposable {
  readonly key: Buffer
  /** The first counter block. */
  readonly iv: Buffer
  /** Of what was encrypted, or of what that is when it is decompressed, `sha256:…`; undefined: nobody says. */
  readonly digest: string | undefined

  /** @param key - Becomes this one's. */
  constructor(key: Buffer, iv: Buffer, digest: string | undefined) {
    this.key = key
    this.iv = iv
    this.digest = digest
  }

  [Symbol.dispose](): void {
    this.key.fill(0)
  }
}

function malformed(what: string, why: string): OciError {
  return new OciError("ERR_OCI_FORMAT", `${what}: what was wrapped for its recipients ${why}`)
}

/**
 * Reads what was unwrapped; it is overwritten.
 *
 * @throws OciError `ERR_OCI_FORMAT`.
 */
export function readLayerKey(json: Buffer, what: string): LayerKey {
  try {
    if (json.length > MAX_SIZE) throw malformed(what, `has more than ${MAX_SIZE} bytes`)
    const key = takeSecret(json, ["symkey"])
    try {
      if (key?.length !== KEY_SIZE) throw malformed(what, `has no key of ${KEY_SIZE} bytes`)
      return new LayerKey(key, ...readRest(json, what))
    } catch (error) {
      key?.fill(0)
      throw error
    }
  } finally {
    json.fill(0)
  }
}

/** What is no secret in it. */
function readRest(json: Buffer, what: string): [iv: Buffer, digest: string | undefined] {
  let value: unknown
  try {
    value = parseJson(json.toString("utf8"))
  } catch {
    throw malformed(what, "is no JSON")
  }
  const { digest, cipheroptions } = value as Readonly<Record<string, unknown>>
  const { nonce } = (cipheroptions ?? {}) as Readonly<Record<string, unknown>>
  const iv = typeof nonce === "string" ? Buffer.from(nonce, "base64") : undefined
  if (iv?.length !== IV_SIZE) throw malformed(what, `has no initial counter of ${IV_SIZE} bytes`)
  if (digest !== undefined && digest !== null && typeof digest !== "string")
    throw malformed(what, "has a digest that is none")
  return [iv, digest === "" || digest === null ? undefined : digest]
}

/** What is wrapped for recipients, as Go writes it. The caller wipes it. */
export function writeLayerKey({ key, iv, digest = "" }: LayerKey): Buffer {
  const nonce = iv.toString("base64")
  return writeSecret(
    '{"symkey":',
    key,
    `,"digest":${JSON.stringify(digest)},"cipheroptions":{"nonce":"${nonce}"}}`,
  )
}
