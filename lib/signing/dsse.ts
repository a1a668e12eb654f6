// DSSE envelopes: the metadata with signatures by plain keys beside it.
import { createHash, createPublicKey, sign, verify, type KeyObject } from "node:crypto"
import { parseStrictJson, type JsonValue } from "../device/strict-json.ts"
import { KeyError, SignatureError } from "../errors.ts"
import { admitKey } from "../key/admission.ts"

const PAYLOAD_TYPE = "application/vnd.sylabs.sif-metadata+json"
/** Each signature may be tried with each key. */
const MAX_SIGNATURES = 64

/** One signature in an envelope. */
export interface DsseSignature {
  /** As the signer states it; "" if it does not. */
  readonly keyId: string
  readonly value: Buffer
}

/** An envelope around metadata. */
export interface DsseEnvelope {
  readonly payload: Buffer
  readonly signatures: readonly DsseSignature[]
}

function string(value: JsonValue | undefined, name: string): string | undefined {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return undefined
  const found = Object.hasOwn(value, name) ? (value as Readonly<Record<string, JsonValue>>)[name] : undefined
  return typeof found === "string" ? found : undefined
}

/** Standard base64, padded or not; Buffer.from would leave out what it does not know. */
function base64(text: string | undefined): Buffer | undefined {
  if (text === undefined || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return undefined
  return Buffer.from(text, "base64")
}

/**
 * Reads an envelope.
 *
 * @returns undefined when the data is none of this payload type.
 * @throws SignatureError `ERR_SIGNATURE_FORMAT`.
 */
export function parseEnvelope(data: Buffer): DsseEnvelope | undefined {
  if (data[0] !== 0x7b) return undefined
  let value: JsonValue
  try {
    value = parseStrictJson(new TextDecoder("utf-8", { fatal: true }).decode(data))
  } catch {
    return undefined
  }
  if (string(value, "payloadType") !== PAYLOAD_TYPE) return undefined
  const payload = base64(string(value, "payload"))
  const list = (value as Readonly<Record<string, JsonValue>>)["signatures"]
  if (payload === undefined || !Array.isArray(list) || list.length === 0 || list.length > MAX_SIGNATURES)
    throw new SignatureError("ERR_SIGNATURE_FORMAT", "the DSSE envelope has no payload or no signatures")
  const signatures = (list as readonly JsonValue[]).map((item) => ({
    keyId: string(item, "keyid") ?? "",
    value: base64(string(item, "sig")) ?? Buffer.alloc(0),
  }))
  return { payload, signatures }
}

/** What is signed: DSSE's pre-authentication encoding. */
export function encoding(payload: Buffer): Buffer {
  return Buffer.concat([
    Buffer.from(`DSSEv1 ${PAYLOAD_TYPE.length} ${PAYLOAD_TYPE} ${payload.length} `, "latin1"),
    payload,
  ])
}

function wire(...parts: readonly (Buffer | string)[]): Buffer {
  return Buffer.concat(
    parts.flatMap((part) => {
      const bytes = typeof part === "string" ? Buffer.from(part, "latin1") : part
      const length = Buffer.alloc(4)
      length.writeUInt32BE(bytes.length)
      return [length, bytes]
    }),
  )
}

/** RFC 4251, 5: a positive number gets a zero byte where its first bit is set. */
function positive(base64url: string | undefined): Buffer {
  const bytes = Buffer.from(base64url ?? "", "base64url")
  return (bytes[0] ?? 0) >= 0x80 ? Buffer.concat([Buffer.alloc(1), bytes]) : bytes
}

const curves: Readonly<Record<string, string>> = {
  "P-256": "nistp256",
  "P-384": "nistp384",
  "P-521": "nistp521",
}

/** The SSH form of a key that can sign; undefined for any other kind. */
function sshForm(key: KeyObject): Buffer | undefined {
  if (key.asymmetricKeyType === "rsa") {
    const { e, n } = key.export({ format: "jwk" })
    return wire("ssh-rsa", positive(e), positive(n))
  }
  if (key.asymmetricKeyType === "ed25519")
    return wire("ssh-ed25519", Buffer.from(key.export({ format: "jwk" }).x ?? "", "base64url"))
  if (key.asymmetricKeyType !== "ec") return undefined
  const { crv = "", x = "", y = "" } = key.export({ format: "jwk" })
  const curve = curves[crv]
  if (curve === undefined) return undefined
  const point = Buffer.concat([Buffer.from([4]), Buffer.from(x, "base64url"), Buffer.from(y, "base64url")])
  return wire(`ecdsa-sha2-${curve}`, curve, point)
}

/**
 * What a signer's key is called: `SHA256:` and base64, as `ssh-keygen -l` prints it.
 *
 * @returns undefined for a kind of key that signs no images.
 */
export function signerName(key: KeyObject): string | undefined {
  const form = sshForm(key.type === "public" ? key : createPublicKey(key))
  if (form === undefined) return undefined
  return `SHA256:${createHash("sha256").update(form).digest("base64").replaceAll("=", "")}`
}

/** Modulus bits below which a signature proves nothing any more. */
const MIN_RSA_BITS = 2048

/**
 * Is it a key that signs images: RSA, ECDSA P-256, P-384, P-521, or Ed25519?
 *
 * @returns What it is called, as {@link signerName}.
 * @throws SignatureError `ERR_SIGNATURE_KEYRING`.
 */
export function checkSigner(key: KeyObject, origin: string): string {
  const refuse = (what: string): SignatureError =>
    new SignatureError("ERR_SIGNATURE_KEYRING", `${origin}: ${what}`)
  if (key.type === "secret") throw refuse("a key of type secret signs no images")
  try {
    admitKey(key, origin)
  } catch (cause) {
    if (!(cause instanceof KeyError)) throw cause
    throw new SignatureError("ERR_SIGNATURE_KEYRING", cause.message, { cause })
  }
  const bits = key.asymmetricKeyType === "rsa" ? key.asymmetricKeyDetails?.modulusLength : undefined
  if (bits !== undefined && bits < MIN_RSA_BITS)
    throw refuse(`an RSA key of ${bits} bits is too weak, at least ${MIN_RSA_BITS} are needed`)
  const name = signerName(key)
  if (name === undefined) throw refuse(`a key of type ${key.asymmetricKeyType ?? "unknown"} signs no images`)
  return name
}

/** RSA: PKCS#1 v1.5 with SHA-256; ECDSA: SHA-256 on every curve, DER; Ed25519: as it is. */
function hashFor(key: KeyObject): string | null {
  return key.asymmetricKeyType === "ed25519" ? null : "sha256"
}

/** A signature over the payload by a private key. */
export function signPayload(payload: Buffer, key: KeyObject): Buffer {
  return sign(hashFor(key), encoding(payload), key)
}

/** An envelope as every writer has it: compact, without a line end. */
export function envelopeText(payload: Buffer, signatures: readonly DsseSignature[]): string {
  return JSON.stringify({
    payloadType: PAYLOAD_TYPE,
    payload: payload.toString("base64"),
    signatures: signatures.map(({ keyId, value }) => ({ keyid: keyId, sig: value.toString("base64") })),
  })
}

/** Is it a signature over the payload by this key? */
export function verifyEnvelopeSignature(payload: Buffer, signature: DsseSignature, key: KeyObject): boolean {
  try {
    return verify(hashFor(key), encoding(payload), key, signature.value)
  } catch {
    return false // a signature of the wrong shape for this kind of key
  }
}
