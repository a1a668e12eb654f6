// How a secret gets from a broker to a task: sealed for a key that the task has made for this one request, by a key that only the
// broker of this job set has. Who listens in has neither; who answers in the broker's place has no key that the task would take.
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  diffieHellman,
  generateKeyPairSync,
  hkdfSync,
  randomBytes,
  type KeyObject,
} from "node:crypto"
import { oneOf, required, shape, text, whole } from "../arguments.ts"
import { admitPublicKey } from "../key/admission.ts"
import { decipherSecret } from "../key/secret.ts"
import type { Bytes } from "../units.ts"

const INFO = "sifcrypt batch key 1"
/** What is sealed: what opens an image, or why a task does not get it. Neither can be taken for the other. */
export type Sealed = "key" | "refusal"
const CIPHER = "aes-256-gcm"
const KEY_SIZE: Bytes = 32
const NONCE_SIZE: Bytes = 12
const TAG_SIZE: Bytes = 16
/** X25519's SubjectPublicKeyInfo is these 12 bytes and the key (RFC 8410, 4). */
const SPKI_HEAD = Buffer.from("302a300506032b656e032100", "hex")

/** A pair for X25519. */
export interface ExchangePair {
  readonly privateKey: KeyObject
  /** 32 bytes. */
  readonly publicKey: Buffer
}

export function newPair(): ExchangePair {
  const { privateKey, publicKey } = generateKeyPairSync("x25519")
  return {
    privateKey,
    publicKey: publicKey.export({ type: "spki", format: "der" }).subarray(SPKI_HEAD.length),
  }
}

/** What a task says of itself. */
export interface KeyRequest {
  readonly version: 1
  /** Of the job set. */
  readonly set: string
  readonly slurmJob: number
  readonly array: number
  readonly element: number
  readonly node: string
  /** Of the image, hexadecimal. */
  readonly digest: string
  /** Base64. */
  readonly publicKey: string
  /** Base64; no two requests are the same. */
  readonly nonce: string
}

const checkRequest = shape<KeyRequest>({
  version: required(oneOf(1)),
  set: required(text),
  slurmJob: required(whole(1)),
  array: required(whole(1)),
  element: required(whole(0)),
  node: required(text),
  digest: required(text),
  publicKey: required(text),
  nonce: required(text),
})

/** Longer than any request. */
export const MAX_REQUEST: Bytes = 4096

/** @throws SyntaxError, TypeError, RangeError. */
export function parseRequest(bytes: Buffer): KeyRequest {
  if (bytes.length > MAX_REQUEST) throw new RangeError("the request is too long")
  return checkRequest(JSON.parse(bytes.toString("utf8")), "the request")
}

function rawKey(base64: string): Buffer {
  const bytes = Buffer.from(base64, "base64")
  if (bytes.length !== KEY_SIZE) throw new RangeError("a public key of X25519 has 32 bytes")
  return bytes
}

/** Of what both know and nobody else; the caller wipes it. `diffieHellman` refuses keys of small order. */
function sharedKey(
  own: ExchangePair,
  other: Buffer,
  { task, broker, request, what }: Readonly<Record<"task" | "broker" | "request", Buffer>> & { what: Sealed },
): Buffer {
  const publicKey = admitPublicKey(Buffer.concat([SPKI_HEAD, other]), "spki", "the key of the other side")
  const secret = diffieHellman({ privateKey: own.privateKey, publicKey })
  try {
    const salt = createHash("sha256").update(request).digest()
    const info = Buffer.concat([Buffer.from(`${INFO} ${what}`), task, broker])
    return Buffer.from(hkdfSync("sha256", secret, salt, info, KEY_SIZE))
  } finally {
    secret.fill(0)
  }
}

/** Seals a secret for the task that has sent `request`, whose key is `taskKey`, base64. */
export function seal(
  secret: Uint8Array,
  broker: ExchangePair,
  taskKey: string,
  request: Buffer,
  what: Sealed = "key",
): Buffer {
  const task = rawKey(taskKey)
  const key = sharedKey(broker, task, { task, broker: broker.publicKey, request, what })
  try {
    const nonce = randomBytes(NONCE_SIZE)
    const cipher = createCipheriv(CIPHER, key, nonce)
    const sealed = Buffer.concat([cipher.update(secret), cipher.final()])
    return Buffer.concat([nonce, sealed, cipher.getAuthTag()])
  } finally {
    key.fill(0)
  }
}

/**
 * Opens what was sealed for this request. The caller wipes it.
 *
 * @returns undefined: it was not this broker who sealed it, or not for this request.
 */
export function unseal(
  sealed: Buffer,
  task: ExchangePair,
  brokerKey: string,
  request: Buffer,
  what: Sealed = "key",
): Buffer | undefined {
  if (sealed.length < NONCE_SIZE + TAG_SIZE) return undefined
  const broker = rawKey(brokerKey)
  const key = sharedKey(task, broker, { task: task.publicKey, broker, request, what })
  try {
    const decipher = createDecipheriv(CIPHER, key, sealed.subarray(0, NONCE_SIZE), {
      authTagLength: TAG_SIZE,
    })
    decipher.setAuthTag(sealed.subarray(-TAG_SIZE))
    return decipherSecret(decipher, sealed.subarray(NONCE_SIZE, -TAG_SIZE))
  } catch {
    return undefined
  } finally {
    key.fill(0)
  }
}
