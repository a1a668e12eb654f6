// Who signs: an OpenPGP key, a plain key, or another program that has the key. Each makes the data of a signature object, and
// verifies it before anybody else sees it: a key that has expired, or a program that signs something else, leaves no trace.
import { createPublicKey, type KeyObject } from "node:crypto"
import type { PrivateKey } from "openpgp"
import { SignatureError } from "../errors.ts"
import { checkSigner, encoding, envelopeText, signPayload, verifyEnvelopeSignature } from "./dsse.ts"
import { clearSign, hashNumber, Keyring, parseClearSigned } from "./openpgp.ts"
import { runSigner } from "./program.ts"

/** A signature, as it is stored. */
export interface MadeSignature {
  readonly data: Buffer
  /** What the descriptor says of it (SIF specification, signature hash). */
  readonly hash: number
}

/** Whoever signs. */
export interface Signer {
  readonly kind: "openpgp" | "dsse"
  /** OpenPGP: the primary key's fingerprint, upper-case hexadecimal; DSSE: `SHA256:…`. */
  readonly name: string
  /** For the descriptor: the fingerprint's bytes, none for DSSE. */
  readonly entity: Buffer
  /** Signs the text. */
  sign(text: string, time: Date, signal?: AbortSignal): Promise<MadeSignature>
}

const SHA256 = 1

function notWhatWasAsked(who: string, what: string): SignatureError {
  return new SignatureError("ERR_SIGNATURE_SIGN", `${who} made a signature that is not good: ${what}`)
}

/** @internal Is the message one that {@link Keyring} accepts, over this very text and by this key? */
export async function checkClearSigned(
  data: Buffer,
  text: string,
  keyring: Keyring,
  fingerprint: string,
): Promise<MadeSignature> {
  const message = parseClearSigned(data)
  if (message?.text !== text) throw notWhatWasAsked(fingerprint, "it is over another text")
  const result = await keyring.verify(message)
  if (result.status !== "valid")
    throw notWhatWasAsked(fingerprint, result.status === "invalid" ? result.reason : "it is by another key")
  if (result.fingerprint.toString("hex").toUpperCase() !== fingerprint)
    throw notWhatWasAsked(fingerprint, "it is by another key")
  return { data, hash: await hashNumber(message) }
}

/** @internal Signs with an OpenPGP key that is unlocked: with its signing subkey if it has one. */
export function openPgpSigner(key: PrivateKey): Signer {
  const name = key.getFingerprint().toUpperCase()
  return {
    kind: "openpgp",
    name,
    entity: Buffer.from(name, "hex"),
    async sign(text, time): Promise<MadeSignature> {
      const keyring = new Keyring()
      await keyring.add(Buffer.from(key.toPublic().write()), name)
      return await checkClearSigned(await clearSign(text, key, time), text, keyring, name)
    },
  }
}

/** One signature in an envelope. `make` gets what is to be signed. */
function dsseSignerBy(
  given: KeyObject,
  origin: string,
  make: (payload: Buffer, signal: AbortSignal | undefined) => Promise<Buffer>,
): Signer {
  const name = checkSigner(given, origin)
  const key = given.type === "private" ? createPublicKey(given) : given
  return {
    kind: "dsse",
    name,
    entity: Buffer.alloc(0),
    async sign(text, _time, signal): Promise<MadeSignature> {
      const payload = Buffer.from(text)
      const signature = { keyId: name, value: await make(payload, signal) }
      if (!verifyEnvelopeSignature(payload, signature, key))
        throw notWhatWasAsked(origin, "it is not by this key")
      return { data: Buffer.from(envelopeText(payload, [signature])), hash: SHA256 }
    },
  }
}

/**
 * Signs with a private key: RSA, ECDSA P-256, P-384, P-521, or Ed25519.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING` for another kind.
 */
export function keySigner(key: KeyObject, origin: string): Signer {
  if (key.type !== "private")
    throw new SignatureError("ERR_SIGNATURE_KEYRING", `${origin}: a private key is needed to sign`)
  return dsseSignerBy(key, origin, (payload) => Promise.resolve(signPayload(payload, key)))
}

/** No signature is longer: RSA with 16384 bits. */
const MAX_SIGNATURE_SIZE = 2048

/**
 * Signs with a key that a shell command has the use of: a token's, say. It gets on its standard input what is to be signed and
 * answers on its standard output with the bare signature: RSA PKCS#1 v1.5 with SHA-256, ECDSA with SHA-256 as DER, Ed25519.
 *
 * @param key - The public half.
 */
export function commandSigner(key: KeyObject, origin: string, command: string): Signer {
  return dsseSignerBy(key, origin, async (payload, signal) => {
    const what = "the signing command"
    const argv = ["/bin/sh", "-c", command] as const
    return await runSigner(argv, what, encoding(payload), MAX_SIGNATURE_SIZE, signal)
  })
}
