// The crypto message: a wrapped secret as PEM around a DER octet string. It is ciphertext, no secret itself.
// Behind it may stand whom it is for: the recipient's public key, so that another secret can be wrapped for the same one.
// The parts that are needed: all of it takes as long to load as opening an image takes.
import type { KeyObject } from "node:crypto"
import asn1 from "node-forge/lib/asn1.js"
import pem from "node-forge/lib/pem.js"
import util from "node-forge/lib/util.js"
import { KeyError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { admitPublicKey } from "./admission.ts"
import { decodeBase64, pemBlocks } from "./pem.ts"

/** What a reader takes into memory at most. */
export const MAX_MESSAGE_SIZE: Bytes = 64 * 1024

/**
 * The PEM text of a wrapped secret: label MESSAGE, 64 columns, LF.
 *
 * @param recipient - Whose public key stands behind it; none for an anonymous recipient.
 */
export function encodeCryptoMessage(wrapped: Uint8Array, recipient?: KeyObject): Buffer {
  const octets = asn1.create(
    asn1.Class.UNIVERSAL,
    asn1.Type.OCTETSTRING,
    false,
    Buffer.from(wrapped).toString("latin1"),
  )
  const text = pem.encode({ type: "MESSAGE", body: asn1.toDer(octets).getBytes() }, { maxline: 64 })
  const key = recipient?.export({ type: "spki", format: "pem" }) ?? ""
  return Buffer.from(`${text.replaceAll("\r\n", "\n")}${key.toString()}`, "latin1")
}

/**
 * The public key of whom the message is for; undefined: it has none. Nothing vouches for it: compare its fingerprint.
 *
 * @throws KeyError `ERR_KEY_MESSAGE`.
 */
export function decodeRecipient(message: Buffer): KeyObject | undefined {
  if (message.length > MAX_MESSAGE_SIZE)
    throw new KeyError("ERR_KEY_MESSAGE", "the crypto message is malformed")
  const first = message.indexOf("-----END ")
  const begin = first < 0 ? -1 : message.indexOf("-----BEGIN PUBLIC KEY-----", first)
  if (begin < 0) return undefined
  const malformed = (cause?: unknown): KeyError =>
    new KeyError("ERR_KEY_MESSAGE", "the public key in the crypto message is malformed", { cause })
  try {
    const [block] = pemBlocks(message.subarray(begin))
    const der = block === undefined ? undefined : decodeBase64(block.body)
    if (der === undefined) throw malformed()
    const key = admitPublicKey(der, "spki", "the crypto message")
    if (key.asymmetricKeyType !== "rsa") throw malformed()
    return key
  } catch (cause) {
    throw malformed(cause)
  }
}

/**
 * The wrapped secret in a message. As with the peers the label does not matter, nor what follows the octet string.
 *
 * @throws KeyError `ERR_KEY_MESSAGE`.
 */
export function decodeCryptoMessage(message: Buffer): Buffer {
  const malformed = (cause?: unknown): KeyError =>
    new KeyError("ERR_KEY_MESSAGE", "the crypto message is malformed", { cause })
  if (message.length > MAX_MESSAGE_SIZE) throw malformed()
  let value: unknown
  let isOctets: boolean
  try {
    const block = pem.decode(message.toString("latin1"))[0]
    if (block === undefined) throw malformed()
    const der = asn1.fromDer(util.createBuffer(block.body), {
      strict: true,
      parseAllBytes: false,
      decodeBitStrings: false,
    } as never)
    value = der.value
    isOctets = der.type === asn1.Type.OCTETSTRING
  } catch (cause) {
    throw cause instanceof KeyError ? cause : malformed(cause)
  }
  if (!isOctets || typeof value !== "string" || value.length === 0) throw malformed()
  return Buffer.from(value, "latin1")
}
