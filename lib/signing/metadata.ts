// The text that is signed: JSON that states digests of the image's identity and of each object.
import { parseStrictJson, type JsonValue } from "../device/strict-json.ts"
import { SignatureError } from "../errors.ts"
import { parseDigest, type Digest } from "./digest.ts"

/** What one signature states about one object. */
export interface SignedObject {
  /** The object's ID less the lowest of its group. */
  readonly relativeId: number
  readonly descriptor: Digest
  readonly data: Digest
}

/** What one signature states. */
export interface Metadata {
  readonly header: Digest
  readonly objects: readonly SignedObject[]
}

function malformed(what: string, cause?: unknown): SignatureError {
  return new SignatureError("ERR_SIGNATURE_FORMAT", `the signed metadata ${what}`, { cause })
}

function member(value: JsonValue | undefined, name: string): JsonValue | undefined {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return undefined
  const object = value as Readonly<Record<string, JsonValue>>
  return Object.hasOwn(object, name) ? object[name] : undefined
}

function digest(value: JsonValue | undefined, name: string): Digest {
  const text = member(value, name)
  if (typeof text !== "string") throw malformed(`has no ${name}`)
  return parseDigest(text)
}

/**
 * Parses the very bytes that were signed. Stricter than the peers: version 1, and each object once.
 *
 * @throws SignatureError `ERR_SIGNATURE_FORMAT`.
 */
export function parseMetadata(signed: Buffer): Metadata {
  let value: JsonValue
  try {
    value = parseStrictJson(new TextDecoder("utf-8", { fatal: true }).decode(signed))
  } catch (cause) {
    throw malformed("is no JSON", cause)
  }
  if (member(value, "version") !== 1) throw malformed("has another version than 1")
  const list = member(value, "objects")
  if (!Array.isArray(list) || list.length === 0) throw malformed("lists no objects")
  const seen = new Set<number>()
  const objects = (list as readonly JsonValue[]).map((item): SignedObject => {
    const relativeId = member(item, "relativeId")
    if (
      typeof relativeId !== "number" ||
      !Number.isInteger(relativeId) ||
      relativeId < 0 ||
      relativeId > 0xffff_ffff
    )
      throw malformed("has an object without a relativeId")
    if (seen.has(relativeId)) throw malformed(`lists the object ${relativeId} twice`)
    seen.add(relativeId)
    return { relativeId, descriptor: digest(item, "descriptorDigest"), data: digest(item, "objectDigest") }
  })
  return { header: digest(member(value, "header"), "digest"), objects }
}

/** An object as it is signed; the digests as the metadata has them. */
export interface ObjectStatement {
  readonly relativeId: number
  readonly descriptorDigest: string
  readonly objectDigest: string
}

/** The text to sign, as every writer has it: compact, members in this order, objects by ascending ID. */
export function metadataText(headerDigest: string, objects: readonly ObjectStatement[]): string {
  return JSON.stringify({
    version: 1,
    header: { digest: headerDigest },
    objects: [...objects]
      .sort((a, b) => a.relativeId - b.relativeId)
      .map(({ relativeId, descriptorDigest, objectDigest }) => ({
        relativeId,
        descriptorDigest,
        objectDigest,
      })),
  })
}
