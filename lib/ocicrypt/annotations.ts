// What the descriptor of an encrypted layer says: how it was encrypted, for everybody to read, and its key, wrapped for each
// recipient in whatever scheme.
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import type { Bytes } from "../units.ts"

const PREFIX = "org.opencontainers.image.enc."
const PUBLIC_OPTIONS = `${PREFIX}pubopts`
const KEYS = `${PREFIX}keys.`
const CIPHER = "AES_256_CTR_HMAC_SHA256"
const MAC_SIZE: Bytes = 32
/** Of one scheme: one is added each time that somebody adds recipients. */
const MAX_MESSAGES = 64
/** Of one. */
const MAX_MESSAGE_SIZE: Bytes = 1 << 20

export type Annotations = Readonly<Record<string, string>>

const ENCRYPTED = "+encrypted"

/** Is it the type of a layer that is encrypted? */
export function isEncryptedType(mediaType: string): boolean {
  return mediaType.endsWith(ENCRYPTED)
}

/** Of the layer before it was encrypted. */
export function plainType(mediaType: string): string {
  return isEncryptedType(mediaType) ? mediaType.slice(0, -ENCRYPTED.length) : mediaType
}

/** Docker's types of layers, as OCI calls them. */
export const ociLayerTypes: Readonly<Record<string, string>> = {
  "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
  "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
  "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}

/** Of the layer when it is encrypted: OCI's, Docker has none; undefined: layers of this type are never encrypted. */
export function encryptedType(mediaType: string): string | undefined {
  const type = ociLayerTypes[mediaType] ?? mediaType
  return /^application\/vnd\.oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+(?:gzip|zstd))?$/.test(
    type,
  )
    ? `${type}${ENCRYPTED}`
    : undefined
}

/** The names of the schemes in which a layer's key is wrapped, sorted: `jwe`, `pkcs7`, `pgp`, `pkcs11`, `provider.NAME`, and others. */
export function schemesOf(annotations: Annotations): string[] {
  return Object.keys(annotations)
    .filter((name) => name.startsWith(KEYS))
    .map((name) => name.slice(KEYS.length))
    .sort()
}

/** Strictly: what Go refuses is refused. */
function fromBase64(text: string, what: string): Buffer {
  const bytes = Buffer.from(text, "base64")
  if (bytes.length === 0 || bytes.toString("base64") !== text)
    throw new OciError("ERR_OCI_FORMAT", `${what} is no base64`)
  return bytes
}

/**
 * The messages in which a layer's key is wrapped in one scheme.
 *
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_LIMIT`.
 */
export function messagesOf(annotations: Annotations, scheme: string, what: string): Buffer[] {
  const list = annotations[`${KEYS}${scheme}`]
  if (list === undefined) return []
  const messages = list.split(",")
  if (messages.length > MAX_MESSAGES)
    throw new OciError("ERR_OCI_LIMIT", `${what}: more than ${MAX_MESSAGES} messages for its recipients`)
  return messages.map((text) => {
    const bytes = fromBase64(text, `${what}: its key wrapped by ${scheme}`)
    if (bytes.length > MAX_MESSAGE_SIZE)
      throw new OciError("ERR_OCI_LIMIT", `${what}: its key wrapped in more than ${MAX_MESSAGE_SIZE} bytes`)
    return bytes
  })
}

/**
 * The MAC over a layer's ciphertext. Where the counter begins is not everybody's to say: whatever else stands here is authenticated by
 * nothing.
 *
 * @throws OciError `ERR_OCI_FORMAT`; `ERR_OCI_UNSUPPORTED` for another cipher.
 */
export function macOf(annotations: Annotations, what: string): Buffer {
  const text = annotations[PUBLIC_OPTIONS]
  if (text === undefined) throw new OciError("ERR_OCI_FORMAT", `${what}: it does not say how it is encrypted`)
  const about = `${what}: how it is encrypted`
  let value: unknown
  try {
    value = parseJson(fromBase64(text, about).toString("utf8"))
  } catch (cause) {
    if (cause instanceof OciError) throw cause
    throw new OciError("ERR_OCI_FORMAT", `${about} is no JSON`)
  }
  const { cipher, hmac, cipheroptions } = (value ?? {}) as Readonly<Record<string, unknown>>
  if (typeof cipher !== "string") throw new OciError("ERR_OCI_FORMAT", `${about}: no cipher is named`)
  if (cipher !== CIPHER)
    throw new OciError("ERR_OCI_UNSUPPORTED", `${about}: the cipher ${JSON.stringify(cipher.slice(0, 64))}`)
  if (typeof cipheroptions === "object" && cipheroptions !== null && "nonce" in cipheroptions)
    throw new OciError(
      "ERR_OCI_FORMAT",
      `${about}: an initial counter where everybody may write it, which decrypts to something else`,
    )
  const mac = typeof hmac === "string" ? fromBase64(hmac, `${about}: its MAC`) : undefined
  if (mac?.length !== MAC_SIZE) throw new OciError("ERR_OCI_FORMAT", `${about}: no MAC of ${MAC_SIZE} bytes`)
  return mac
}

/** Without what is about encryption. */
export function withoutEncryption(annotations: Annotations): Annotations {
  return Object.fromEntries(Object.entries(annotations).filter(([name]) => !name.startsWith(PREFIX)))
}

/** Of a layer that was encrypted now. */
export function encryptedAnnotations(
  mac: Buffer,
  wrapped: ReadonlyMap<string, readonly Buffer[]>,
): Annotations {
  const options = { cipher: CIPHER, hmac: mac.toString("base64"), cipheroptions: {} }
  return {
    [PUBLIC_OPTIONS]: Buffer.from(JSON.stringify(options)).toString("base64"),
    ...wrappedAnnotations({}, wrapped),
  }
}

/** With more messages for recipients behind those that there are, which stay as they are, known or not. */
export function wrappedAnnotations(
  annotations: Annotations,
  wrapped: ReadonlyMap<string, readonly Buffer[]>,
): Annotations {
  const added = [...wrapped].map(([scheme, messages]): [string, string] => {
    const name = `${KEYS}${scheme}`
    const earlier = annotations[name]
    const texts = messages.map((message) => message.toString("base64"))
    return [name, [...(earlier === undefined ? [] : [earlier]), ...texts].join(",")]
  })
  return { ...annotations, ...Object.fromEntries(added) }
}

/** Without what is wrapped for anybody. */
export function withoutWrapped(annotations: Annotations): Annotations {
  return Object.fromEntries(Object.entries(annotations).filter(([name]) => !name.startsWith(KEYS)))
}

/** Is it known whom this scheme wraps keys for? */
export function isKnownScheme(scheme: string): boolean {
  return ["jwe", "pkcs7", "pgp", "pkcs11"].includes(scheme) || scheme.startsWith("provider.")
}
