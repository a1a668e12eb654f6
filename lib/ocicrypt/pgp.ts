// Layer keys in OpenPGP messages, by the package openpgp, which takes a while to load: only when there is one.
import type { Message, PrivateKey, PublicKey } from "openpgp"
import { KeyError, OciError } from "../errors.ts"
import { allocateSecret } from "../key/secret.ts"
import type { Attempts } from "./attempts.ts"

const MAX_RECIPIENTS = 256
const AES_256_KEY_SIZE = 32
/** What is wrapped has some 200 bytes. */
const MAX_CONTENT_SIZE = 1 << 20

/**
 * Unwraps a layer's key.
 *
 * @returns What was wrapped, which the caller wipes; undefined: for none of these keys.
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_LIMIT`, `ERR_OCI_WORK`.
 */
export async function unwrapPgp(
  binaryMessage: Buffer,
  keys: readonly PrivateKey[],
  attempts: Attempts,
  what: string,
): Promise<Buffer | undefined> {
  if (keys.length === 0) return undefined
  const { decrypt } = await import("openpgp")
  const message = await readMessage(binaryMessage, what)
  const count = message.getEncryptionKeyIDs().length
  attempts.take(count * keys.length, what)
  try {
    const { data } = (await decrypt({
      message,
      decryptionKeys: [...keys],
      format: "binary",
      config: { maxDecompressedMessageSize: MAX_CONTENT_SIZE, allowUnauthenticatedMessages: false },
    })) as { readonly data: Uint8Array }
    return Buffer.from(data.buffer, data.byteOffset, data.byteLength)
  } catch {
    return undefined
  }
}

async function readMessage(binaryMessage: Buffer, what: string): Promise<Message<Uint8Array<ArrayBuffer>>> {
  const { readMessage: read } = await import("openpgp")
  let message
  try {
    message = await read({ binaryMessage: new Uint8Array(binaryMessage) })
  } catch (cause) {
    throw new OciError("ERR_OCI_FORMAT", `${what}: its key wrapped by PGP is broken`, { cause })
  }
  if (message.getEncryptionKeyIDs().length > MAX_RECIPIENTS)
    throw new OciError("ERR_OCI_LIMIT", `${what}: more than ${MAX_RECIPIENTS} recipients`)
  return message
}

/** Wraps a layer's key for public keys. */
export async function wrapPgp(secret: Buffer, keys: readonly PublicKey[]): Promise<Buffer> {
  const { createMessage, encrypt, enums } = await import("openpgp")
  const data = allocateSecret(AES_256_KEY_SIZE)
  crypto.getRandomValues(data)
  const binary = new Uint8Array(secret)
  try {
    // A session key of our own keeps to the packets that ocicrypt reads, whatever a key says that its owner could read.
    const bytes = (await encrypt({
      message: await createMessage({ binary }),
      encryptionKeys: [...keys],
      sessionKey: { algorithm: "aes256", data },
      format: "binary",
      config: { preferredCompressionAlgorithm: enums.compression.uncompressed, aeadProtect: false },
    })) as Uint8Array
    const written = Buffer.from(bytes)
    const message = await readMessage(written, "a message for PGP")
    const sealed = message.packets.at(-1) as unknown as { readonly version: number } | undefined
    if (sealed?.version !== 1) throw new Error("the OpenPGP library wrote a message of another version")
    return written
  } finally {
    data.fill(0)
    binary.fill(0)
  }
}

/** Whom a message is for: IDs of keys. */
export async function pgpRecipients(message: Buffer, what: string): Promise<string[]> {
  return (await readMessage(message, what)).getEncryptionKeyIDs().map((id) => `0x${id.toHex()}`)
}

/** The private keys in a file, armored or not; undefined: it is of another kind. Protected ones are locked. */
export async function readPgpKeys(file: Buffer, origin: string): Promise<PrivateKey[] | undefined> {
  if (!isPgpFile(file)) return undefined
  const { readPrivateKeys } = await import("openpgp")
  try {
    return isArmored(file)
      ? await readPrivateKeys({ armoredKeys: file.toString("latin1") })
      : await readPrivateKeys({ binaryKeys: new Uint8Array(file) })
  } catch (cause) {
    throw new KeyError("ERR_KEY_DAMAGED", `${origin} holds no OpenPGP private keys that can be read`, {
      cause,
    })
  }
}

/** The public keys in a file, armored or not, as far as something can be encrypted for them. */
export async function readPgpRecipients(file: Buffer, origin: string): Promise<PublicKey[]> {
  const { readKeys } = await import("openpgp")
  try {
    const keys = isArmored(file)
      ? await readKeys({ armoredKeys: file.toString("latin1") })
      : await readKeys({ binaryKeys: new Uint8Array(file) })
    // What has expired, or was revoked, or only signs, says so here.
    for (const key of keys) await key.getEncryptionKey()
    return keys.map((key) => key.toPublic())
  } catch (cause) {
    throw new KeyError(
      "ERR_KEY_FORMAT",
      `${origin} holds no OpenPGP keys that something can be encrypted for: ${(cause as Error).message}`,
      { cause },
    )
  }
}

function isArmored(file: Buffer): boolean {
  return file.subarray(0, 4096).includes("-----BEGIN PGP ")
}

/** A secret or a public key packet comes first (RFC 9580, 4.2): no DER and no text begins like that. */
export function isPgpFile(file: Buffer): boolean {
  const first = file[0] ?? 0
  const tag = (first & 0xc0) === 0xc0 ? first & 0x3f : (first & 0xc0) === 0x80 ? (first >> 2) & 0xf : 0
  return tag === 5 || tag === 6 || isArmored(file)
}
