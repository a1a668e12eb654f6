// PEM: the blocks of a file as DER. Works on bytes, not on strings, so that a private key leaves no copy behind.
import { KeyError } from "../errors.ts"
import { unlockPrivateKey } from "./admission.ts"
import { derKey } from "./der-key.ts"
import {
  codeOf,
  damaged,
  unsupported,
  wrongPassword,
  wrongType,
  type FoundKey,
  type FoundKeys,
} from "./found-key.ts"
import { opensshPrivate } from "./openssh.ts"
import { allocateSecret } from "./secret.ts"
import type { Stretching } from "./stretching.ts"

/** A block of a PEM file. */
export interface PemBlock {
  readonly label: string
  /** The block's own bytes within the file, both of its lines included. */
  readonly bytes: Buffer
  /** What stands between them. */
  readonly body: Buffer
}

const begin = Buffer.from("-----BEGIN ")
const dashes = Buffer.from("-----")
const MAX_LABEL_SIZE = 80

/** The blocks of a file; one ends before the next one begins. A block without an end has an undefined body. */
function* pieces(file: Buffer): Generator<Omit<PemBlock, "body"> & { readonly body: Buffer | undefined }> {
  for (let at = file.indexOf(begin), next = at; at >= 0; at = next) {
    next = file.indexOf(begin, at + 1)
    const block = file.subarray(at, next < 0 ? file.length : next)
    const labelEnd = block.indexOf(dashes, begin.length)
    if (labelEnd < 0 || labelEnd > MAX_LABEL_SIZE) continue
    const label = block.toString("latin1", begin.length, labelEnd)
    const end = block.indexOf(`-----END ${label}-----`, labelEnd)
    const start = labelEnd + dashes.length
    if (end < start) yield { label, bytes: block, body: undefined }
    else yield { label, bytes: block.subarray(0, end + label.length + 14), body: block.subarray(start, end) }
  }
}

/** The whole blocks of a file, in order. */
export function* pemBlocks(file: Buffer): Generator<PemBlock> {
  for (const { body, ...block } of pieces(file)) if (body !== undefined) yield { ...block, body }
}

/** The value of a base64 digit; 64: white space; 65: padding; 255: none of these. */
const digits = Buffer.alloc(256, 255)
const alphabet = Buffer.from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
for (const [value, digit] of alphabet.entries()) digits[digit] = value
for (const space of [0x09, 0x0a, 0x0d, 0x20]) digits[space] = 64
digits["=".charCodeAt(0)] = 65

/** Base64 to bytes in a buffer of their own, which the caller wipes; undefined when it is no base64. */
export function decodeBase64(text: Buffer): Buffer | undefined {
  const bytes = allocateSecret(Math.ceil((text.length * 3) / 4))
  let size = 0
  let count = 0
  let word = 0
  let padding = 0
  for (const character of text) {
    const digit = digits[character] ?? 255
    if (digit === 64) continue
    if (digit === 65) padding++
    if (digit === 255 || (digit !== 65 && padding > 0)) return undefined
    word = ((word << 6) | (digit & 63)) & 0xff_ffff
    if (++count % 4 === 0) size = bytes.writeUIntBE(word, size, 3)
  }
  if (count % 4 !== 0 || padding > 2) return undefined
  const result = allocateSecret(size - padding)
  bytes.copy(result, 0, 0, result.length)
  bytes.fill(0)
  return result
}

const keyLabels: ReadonlySet<string> = new Set([
  "RSA PUBLIC KEY",
  "PUBLIC KEY",
  "CERTIFICATE",
  "X509 CERTIFICATE",
  "RSA PRIVATE KEY",
  "PRIVATE KEY",
  "ENCRYPTED PRIVATE KEY",
  "EC PRIVATE KEY",
  "DSA PRIVATE KEY",
])

/** RFC 1421's encryption, as OpenSSL used it: `Proc-Type: 4,ENCRYPTED` above the base64. */
function lockedKey(block: PemBlock, origin: string): FoundKey {
  const what = `an encrypted ${block.label}`
  return {
    what,
    half: "private",
    locked: block.label === "RSA PRIVATE KEY",
    read: (password = Buffer.alloc(0)) => {
      if (block.label !== "RSA PRIVATE KEY") throw wrongType(origin, what)
      const headers = /\r?\n[ \t]*\r?\n/.exec(block.body.toString("latin1", 0, 400))
      const sealed = headers === null ? undefined : decodeBase64(block.body.subarray(headers.index))
      // All ciphers that are used there have blocks of 8 or 16 bytes.
      if (sealed === undefined || sealed.length === 0 || sealed.length % 8 !== 0) throw damaged(origin, what)
      try {
        return unlockPrivateKey(block.bytes, { format: "pem" }, password, origin)
      } catch (cause) {
        if (cause instanceof KeyError) throw cause
        const code = codeOf(cause)
        if (code.includes("UNSUPPORTED_ENCRYPTION") || code === "ERR_OSSL_EVP_UNSUPPORTED") {
          const cipher = /DEK-Info: ([\w-]{1,40})/.exec(block.body.toString("latin1", 0, 400))?.[1]
          throw unsupported(origin, `${what} under ${cipher ?? "an unknown cipher"}`, cause)
        }
        if (code.startsWith("ERR_OSSL_PEM_")) throw damaged(origin, what, cause)
        throw wrongPassword(origin, what, cause)
      }
    },
  }
}

/** A key that cannot be read at all. */
function brokenKey(label: string, origin: string): FoundKey {
  return {
    what: `PEM ${label}`,
    half: label.includes("PRIVATE") ? "private" : "public",
    locked: false,
    read: () => {
      throw damaged(origin, `the PEM ${label}`)
    },
  }
}

/**
 * The keys in a PEM file.
 *
 * @param wipe - Takes what must be wiped when the keys were read.
 */
export function pemKeys(
  file: Buffer,
  origin: string,
  wipe: (bytes: Buffer) => void,
  stretching: Stretching,
): FoundKeys {
  const keys: FoundKey[] = []
  const others: string[] = []
  for (const { label, bytes, body } of pieces(file)) {
    const openssh = label === "OPENSSH PRIVATE KEY"
    if (!openssh && !keyLabels.has(label)) {
      others.push(`PEM ${label}`)
      continue
    }
    if (body?.includes("Proc-Type: 4,ENCRYPTED") === true) {
      keys.push(lockedKey({ label, bytes, body }, origin))
      continue
    }
    const decoded = body === undefined ? undefined : decodeBase64(body)
    if (decoded !== undefined) wipe(decoded)
    const key = decoded && (openssh ? opensshPrivate : derKey)(decoded, origin, stretching)
    keys.push(key ?? brokenKey(label, origin))
  }
  return { keys, others }
}
