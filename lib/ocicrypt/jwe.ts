// Layer keys in JSON Web Encryption (RFC 7516), by the package jose: RSA-OAEP, or ECDH-ES with AES key wrap.
import type { GeneralJWE, JWEHeaderParameters } from "jose"
import { createHash, type KeyObject } from "node:crypto"
import { OciError } from "../errors.ts"
import { parseJson } from "../json.ts"
import type { Attempts } from "./attempts.ts"

const MAX_RECIPIENTS = 256

const rsaAlgorithms = ["RSA-OAEP", "RSA-OAEP-256"]
const ecAlgorithms = ["ECDH-ES+A256KW", "ECDH-ES+A192KW", "ECDH-ES+A128KW"]
const contentAlgorithms = [
  ...["A256GCM", "A192GCM", "A128GCM"],
  ...["A256CBC-HS512", "A192CBC-HS384", "A128CBC-HS256"],
]

/** How keys of this kind are agreed on or wrapped for; none where JWE has no use for them here. */
function algorithmsOf({ asymmetricKeyType }: KeyObject): readonly string[] {
  return asymmetricKeyType === "rsa" ? rsaAlgorithms : asymmetricKeyType === "ec" ? ecAlgorithms : []
}

interface JsonJwe {
  readonly recipients?: unknown
}

/** Compact or JSON, with one recipient or several. */
function parse(message: Buffer, what: string): string | JsonJwe {
  const text = message.toString("utf8").trim()
  if (!text.startsWith("{")) return text
  try {
    return parseJson(text) as JsonJwe
  } catch {
    throw new OciError("ERR_OCI_FORMAT", `${what}: its key wrapped by JWE is no JSON`)
  }
}

/**
 * Unwraps a layer's key.
 *
 * @returns What was wrapped, which the caller wipes; undefined: for none of these keys.
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_LIMIT`, `ERR_OCI_WORK`.
 */
export async function unwrapJwe(
  message: Buffer,
  keys: readonly KeyObject[],
  attempts: Attempts,
  what: string,
): Promise<Buffer | undefined> {
  if (keys.length === 0) return undefined
  const jwe = parse(message, what)
  const list = typeof jwe === "string" ? undefined : jwe.recipients
  const count = Array.isArray(list) ? list.length : 1
  if (count > MAX_RECIPIENTS)
    throw new OciError("ERR_OCI_LIMIT", `${what}: more than ${MAX_RECIPIENTS} recipients`)
  const { compactDecrypt, flattenedDecrypt, generalDecrypt } = await import("jose")
  for (const key of keys) {
    const keyManagementAlgorithms = [...algorithmsOf(key)]
    if (keyManagementAlgorithms.length === 0) continue
    const options = { keyManagementAlgorithms, contentEncryptionAlgorithms: contentAlgorithms }
    attempts.take(count, what)
    try {
      const { plaintext } = await (typeof jwe === "string"
        ? compactDecrypt(jwe, key, options)
        : Array.isArray(list)
          ? generalDecrypt(jwe as GeneralJWE, key, options)
          : flattenedDecrypt(jwe as never, key, options))
      return Buffer.from(plaintext.buffer, plaintext.byteOffset, plaintext.byteLength)
    } catch {
      // Another's, or broken: nobody can tell, and nobody is told.
    }
  }
  return undefined
}

/** Names a key (RFC 7638), the same in every image. */
export function jwkThumbprint(key: KeyObject): string {
  const jwk = key.export({ format: "jwk" }) as Readonly<Record<string, string>>
  const names = jwk["kty"] === "RSA" ? ["e", "kty", "n"] : ["crv", "kty", "x", "y"]
  const canonical = JSON.stringify(Object.fromEntries(names.map((name) => [name, jwk[name]])))
  return createHash("sha256").update(canonical).digest("base64url")
}

/** Wraps a layer's key for public keys, RSA or EC. */
export async function wrapJwe(secret: Buffer, keys: readonly KeyObject[]): Promise<Buffer> {
  const { FlattenedEncrypt, GeneralEncrypt } = await import("jose")
  const headerOf = (key: KeyObject): JWEHeaderParameters => ({
    alg: algorithmsOf(key)[0] ?? "",
    kid: jwkThumbprint(key),
  })
  const [first] = keys
  if (first !== undefined && keys.length === 1) {
    const header = { ...headerOf(first), enc: "A256GCM" } as JWEHeaderParameters & {
      alg: string
      enc: string
    }
    const jwe = await new FlattenedEncrypt(secret).setProtectedHeader(header).encrypt(first)
    return Buffer.from(JSON.stringify(jwe))
  }
  const all = new GeneralEncrypt(secret).setProtectedHeader({ enc: "A256GCM" })
  for (const key of keys) all.addRecipient(key).setUnprotectedHeader(headerOf(key))
  return Buffer.from(JSON.stringify(await all.encrypt()))
}

type Header = Readonly<Record<string, unknown>>

/** Of what an image says; what is no object says nothing. */
function asHeader(value: unknown): Header {
  return typeof value === "object" && value !== null ? (value as Header) : {}
}

function encodedHeader(text: unknown): Header {
  try {
    return typeof text === "string"
      ? asHeader(parseJson(Buffer.from(text, "base64url").toString("utf8")))
      : {}
  } catch {
    return {}
  }
}

/** Names of keys are shown, each up to here. */
const MAX_KID = 128

/** Whom a message is for, as far as it says. */
export function jweRecipients(message: Buffer, what: string): string[] {
  const jwe = parse(message, what)
  const name = (...headers: readonly Header[]): string => {
    const kid = headers.map((header) => header["kid"]).find((one) => typeof one === "string")
    return kid === undefined ? "[jwe]" : `kid ${kid.slice(0, MAX_KID)}`
  }
  if (typeof jwe === "string") return [name(encodedHeader(jwe.split(".", 1)[0]))]
  const { protected: common, header, recipients } = asHeader(jwe)
  const shared = [asHeader(header), encodedHeader(common)]
  if (!Array.isArray(recipients)) return [name(...shared)]
  return recipients
    .slice(0, MAX_RECIPIENTS)
    .map((one: unknown) => name(asHeader(asHeader(one)["header"]), ...shared))
}
