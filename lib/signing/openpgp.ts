// Clear-signed OpenPGP messages around metadata, and the keys that verify them.
//
// A cleartext message has many ways of showing a reader other text than was signed (CVE-2023-41037, CVE-2025-68972). So only
// one shape is taken, the one that signers write, and what is verified is the very text that is used.
import type { Key, PublicKey, SignaturePacket } from "openpgp"
import { SignatureError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** What is read of a key ring at most. */
export const MAX_KEYRING_SIZE: Bytes = 64 << 20

const begin = "-----BEGIN PGP SIGNED MESSAGE-----"
const beginSignature = "-----BEGIN PGP SIGNATURE-----"
const endSignature = "-----END PGP SIGNATURE-----"

/** SHA-224, -256, -384, -512 (RFC 9580, 9.5). */
const acceptedHashes: readonly number[] = [8, 9, 10, 11]
const TEXT_SIGNATURE = 1

/** A message, taken apart. */
export interface ClearSigned {
  /** As it was signed: no blanks at the ends of lines, LF between them and none at the end. */
  readonly text: string
  readonly armoredSignature: string
}

/** Who signed, when a key is there for it. */
export type ClearSignature =
  | { readonly status: "valid"; readonly fingerprint: Buffer; readonly time: Date | undefined }
  | { readonly status: "unknown-signer"; readonly keyId: string }
  | { readonly status: "invalid"; readonly fingerprint: Buffer; readonly reason: string }

function malformed(what: string, cause?: unknown): SignatureError {
  return new SignatureError("ERR_SIGNATURE_FORMAT", `the clear-signed message ${what}`, { cause })
}

/**
 * Reads a message.
 *
 * @returns undefined when the data does not start like one.
 * @throws SignatureError `ERR_SIGNATURE_FORMAT` for anything but one message with `Hash` headers only.
 */
export function parseClearSigned(data: Buffer): ClearSigned | undefined {
  if (!data.subarray(0, begin.length).equals(Buffer.from(begin, "latin1"))) return undefined
  if (data.some((byte) => byte > 0x7e || (byte < 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09)))
    throw malformed("holds bytes that are no text")
  const lines = data.toString("latin1").replaceAll("\r\n", "\n").split("\n")
  if (lines.at(-1) === "") lines.pop()
  const blank = lines.indexOf("")
  if (lines[0] !== begin || blank < 1) throw malformed("has no end of its headers")
  if (!lines.slice(1, blank).every((line) => /^Hash: [A-Za-z0-9, -]{1,80}$/.test(line)))
    throw malformed("has other headers than Hash")
  const signature = lines.indexOf(beginSignature)
  if (signature < 0 || lines.indexOf(endSignature) !== lines.length - 1 || signature < blank)
    throw malformed("does not end with its signature")
  const text = lines.slice(blank + 1, signature)
  if (text.length === 0 || text.some((line) => line.startsWith("-")))
    throw malformed("has no text, or lines that are escaped")
  const armor = lines.slice(signature)
  if (armor.slice(1, -1).some((line) => line.startsWith("-")))
    throw malformed("has more than one signature block")
  return {
    text: text.map((line) => line.replace(/[ \t]+$/, "")).join("\n"),
    armoredSignature: `${armor.join("\n")}\n`,
  }
}

/** OpenPGP public keys, to verify with. Loads the OpenPGP library, which takes a while, when there is something to do. */
export class Keyring {
  readonly #keys: PublicKey[] = []

  /**
   * Adds the keys in a file: a packet stream, as key rings are, or armored. Of private keys only the public half is kept.
   *
   * @throws SignatureError `ERR_SIGNATURE_KEYRING`.
   */
  async add(file: Buffer, origin: string): Promise<void> {
    if (file.length === 0) return
    const { readKeys } = await import("openpgp")
    const armored = file.subarray(0, 4096).includes("-----BEGIN PGP ")
    try {
      const keys: Key[] = armored
        ? await readKeys({ armoredKeys: file.toString("latin1") })
        : await readKeys({ binaryKeys: file })
      this.#keys.push(...keys.map((key) => key.toPublic()))
    } catch (cause) {
      throw new SignatureError("ERR_SIGNATURE_KEYRING", `${origin} holds no OpenPGP keys that can be read`, {
        cause,
        path: origin,
      })
    }
  }

  get isEmpty(): boolean {
    return this.#keys.length === 0
  }

  /** Verifies a message. Whether a key is good is judged now: an expired or revoked one verifies nothing. */
  async verify({ text, armoredSignature }: ClearSigned): Promise<ClearSignature> {
    const { createMessage, readSignature, verify } = await import("openpgp")
    let packet: SignaturePacket | undefined
    let signature
    try {
      signature = await readSignature({ armoredSignature })
      packet = signature.packets.length === 1 ? signature.packets[0] : undefined
    } catch (cause) {
      throw malformed("has a signature that cannot be read", cause)
    }
    if (packet === undefined) throw malformed("has not exactly one signature")
    if (Number(packet.signatureType) !== TEXT_SIGNATURE) throw malformed("has a signature of another kind")
    const keyId = packet.issuerKeyID.toHex()
    // All that could have made it: key IDs of 64 bits can be forged, so more than one key may have this one.
    const candidates = this.#keys.filter((key) => key.getKeys(packet.issuerKeyID).length > 0)
    let refused: ClearSignature | undefined
    for (const key of candidates) {
      const fingerprint = Buffer.from(key.getFingerprint(), "hex")
      if (!acceptedHashes.includes(packet.hashAlgorithm ?? 0))
        return { status: "invalid", fingerprint, reason: "its hash algorithm is not accepted" }
      try {
        const { signatures } = await verify({
          message: await createMessage({ text }),
          signature,
          verificationKeys: key,
          // A key whose self-signature was renewed since (a longer validity, say) still verifies what it signed before.
          config: { allowInsecureVerificationWithReformattedKeys: true },
        })
        await Promise.all(signatures.map(({ verified }) => verified))
        if (signatures.length !== 1) throw new Error("no signature was verified")
        const trouble = await this.#trouble(key)
        if (trouble === undefined) return { status: "valid", fingerprint, time: packet.created ?? undefined }
        refused = { status: "invalid", fingerprint, reason: trouble }
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error)
        refused ??= { status: "invalid", fingerprint, reason }
      }
    }
    return refused ?? { status: "unknown-signer", keyId }
  }

  async #trouble(key: PublicKey): Promise<string | undefined> {
    if (await key.isRevoked()) return "the key was revoked"
    const expires = await key.getExpirationTime()
    return expires instanceof Date && expires.getTime() <= Date.now() ? "the key has expired" : undefined
  }
}
