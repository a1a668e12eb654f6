// The crypto message: a wrapped secret as PEM around a DER octet string. It is ciphertext, no secret itself.
// The parts that are needed: all of it takes as long to load as opening an image takes.
import asn1 from "node-forge/lib/asn1.js"
import pem from "node-forge/lib/pem.js"
import util from "node-forge/lib/util.js"
import { KeyError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** What a reader takes into memory at most. */
export const MAX_MESSAGE_SIZE: Bytes = 64 * 1024

/** The PEM text of a wrapped secret: label MESSAGE, 64 columns, LF. */
export function encodeCryptoMessage(wrapped: Uint8Array): Buffer {
  const octets = asn1.create(
    asn1.Class.UNIVERSAL,
    asn1.Type.OCTETSTRING,
    false,
    Buffer.from(wrapped).toString("latin1"),
  )
  const text = pem.encode({ type: "MESSAGE", body: asn1.toDer(octets).getBytes() }, { maxline: 64 })
  return Buffer.from(text.replaceAll("\r\n", "\n"), "latin1")
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
