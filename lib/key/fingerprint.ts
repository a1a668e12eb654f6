// What a public key is called: the fingerprint that ssh-keygen shows. Only whole fingerprints name a key, never a part.
import { createHash, createPublicKey, type KeyObject } from "node:crypto"

/** A fingerprint somebody typed, to look a key up. SHA-1 is for looking up only. */
export interface FingerprintQuery {
  readonly hash: "sha256" | "sha1"
  readonly digest: Buffer
}

function wireString(bytes: Buffer): Buffer {
  const length = Buffer.alloc(4)
  length.writeUInt32BE(bytes.length)
  return Buffer.concat([length, bytes])
}

/** RFC 4251, 5: a positive number gets a zero byte where its first bit is set. */
function wireNumber(base64url: string | undefined): Buffer {
  const bytes = Buffer.from(base64url ?? "", "base64url")
  return wireString((bytes[0] ?? 0) >= 0x80 ? Buffer.concat([Buffer.alloc(1), bytes]) : bytes)
}

/** The digest of an RSA key's SSH form (RFC 4253, 6.6): type, exponent, modulus. */
function digestOf(key: KeyObject, hash: FingerprintQuery["hash"]): Buffer {
  const { e, n } = (key.type === "public" ? key : createPublicKey(key)).export({ format: "jwk" })
  const wire = Buffer.concat([wireString(Buffer.from("ssh-rsa")), wireNumber(e), wireNumber(n)])
  return createHash(hash).update(wire).digest()
}

/** `SHA256:` and base64 without padding, as `ssh-keygen -l` prints it. Of a private key: its public half's. */
export function fingerprint(key: KeyObject): string {
  return `SHA256:${digestOf(key, "sha256").toString("base64").replaceAll("=", "")}`
}

function fromBase64(text: string, length: number): Buffer | undefined {
  const digest = Buffer.from(text, "base64")
  const same = digest.toString("base64").replaceAll("=", "") === text
  return same && digest.length === length ? digest : undefined
}

/** Reads `SHA256:…`, `SHA1:…`, 64 or 40 hex digits (colons between them or not); undefined: it is none of these. */
export function parseFingerprint(text: string): FingerprintQuery | undefined {
  const [, name, base64 = ""] = /^(SHA256|SHA1):([A-Za-z0-9+/]{1,64})=?$/.exec(text) ?? []
  if (name !== undefined) {
    const hash = name === "SHA1" ? "sha1" : "sha256"
    const digest = fromBase64(base64, hash === "sha1" ? 20 : 32)
    return digest === undefined ? undefined : { hash, digest }
  }
  const hex = text.replaceAll(":", "")
  if (!/^(?:[0-9a-fA-F]{40}|[0-9a-fA-F]{64})$/.test(hex)) return undefined
  return { hash: hex.length === 40 ? "sha1" : "sha256", digest: Buffer.from(hex, "hex") }
}

/** Does the fingerprint name this key? */
export function isNamedBy(key: KeyObject, query: FingerprintQuery): boolean {
  return digestOf(key, query.hash).equals(query.digest)
}
