// The crypto message: a wrapped secret as PEM around a DER octet string. It is ciphertext, no secret itself.
import forge from "node-forge"
import { KeyError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** What a reader takes into memory at most. */
export const MAX_MESSAGE_SIZE: Bytes = 64 * 1024

/** The PEM text of a wrapped secret: label MESSAGE, 64 columns, LF. */
export function encodeCryptoMessage(wrapped: Uint8Array): Buffer {
  const octets = forge.asn1.create(
    forge.asn1.Class.UNIVERSAL,
    forge.asn1.Type.OCTETSTRING,
    false,
    Buffer.from(wrapped).toString("latin1"),
  )
  const text = forge.pem.encode(
    { type: "MESSAGE", body: forge.asn1.toDer(octets).getBytes() },
    { maxline: 64 },
  )
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
    const block = forge.pem.decode(message.toString("latin1"))[0]
    if (block === undefined) throw malformed()
    const der = forge.asn1.fromDer(forge.util.createBuffer(block.body), {
      strict: true,
      parseAllBytes: false,
      decodeBitStrings: false,
    } as never)
    value = der.value
    isOctets = der.type === forge.asn1.Type.OCTETSTRING
  } catch (cause) {
    throw cause instanceof KeyError ? cause : malformed(cause)
  }
  if (!isOctets || typeof value !== "string" || value.length === 0) throw malformed()
  return Buffer.from(value, "latin1")
}
