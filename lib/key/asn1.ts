// Reading and writing the ASN.1 of key containers. node-forge cuts the structure; what is in it goes through node:crypto.
import type forge from "node-forge"
import asn1 from "node-forge/lib/asn1.js"
import type { Bytes } from "../units.ts"

export type Asn1Node = forge.asn1.Asn1
type UniversalType = keyof typeof asn1.Type

/** Larger containers of keys are not taken in. */
export const MAX_CONTAINER_SIZE: Bytes = 1 << 20
/** PKCS#12 and X.509 nest half as deep at most. */
const MAX_DEPTH = 32

/** Cuts one value, and nothing behind it, into nodes. Throws whatever node-forge throws: the caller gives it a code. */
export function parseAsn1(der: Buffer): Asn1Node {
  if (der.length > MAX_CONTAINER_SIZE) throw new Error(`more than ${MAX_CONTAINER_SIZE} bytes`)
  return asn1.fromDer(der.toString("latin1"), {
    strict: true,
    parseAllBytes: true,
    decodeBitStrings: false,
    maxDepth: MAX_DEPTH,
  } as never)
}

function unexpected(wanted: string): never {
  throw new Error(`${wanted} expected`)
}

/** What a SEQUENCE or SET holds. */
export function elements(
  node: Asn1Node | undefined,
  type: "SEQUENCE" | "SET" = "SEQUENCE",
): readonly Asn1Node[] {
  if (node?.tagClass !== asn1.Class.UNIVERSAL || node.type !== asn1.Type[type] || !Array.isArray(node.value))
    return unexpected(type)
  return node.value
}

/** What `[number] EXPLICIT` holds. */
export function explicit(node: Asn1Node | undefined, number: number): Asn1Node {
  const inner = isTagged(node, number) && Array.isArray(node.value) ? node.value[0] : undefined
  return inner ?? unexpected(`[${number}]`)
}

/** Is it `[number]`? */
export function isTagged(node: Asn1Node | undefined, number: number): node is Asn1Node {
  // The declarations have numbers of universal types only.
  return node?.tagClass === asn1.Class.CONTEXT_SPECIFIC && (node.type as number) === number
}

/** Is it of this universal type? */
export function isUniversal(node: Asn1Node | undefined, type: UniversalType): node is Asn1Node {
  return node?.tagClass === asn1.Class.UNIVERSAL && node.type === asn1.Type[type]
}

/** The bytes of an OCTET STRING, which BER may have cut into pieces; `[0] IMPLICIT` ones too. */
export function octets(node: Asn1Node | undefined): Buffer {
  if (!isUniversal(node, "OCTETSTRING") && !isTagged(node, 0)) return unexpected("OCTET STRING")
  if (typeof node.value === "string") return Buffer.from(node.value, "latin1")
  return Buffer.concat(
    node.value.map((piece) =>
      isUniversal(piece, "OCTETSTRING") && typeof piece.value === "string"
        ? Buffer.from(piece.value, "latin1")
        : unexpected("OCTET STRING"),
    ),
  )
}

/** The bytes of a BIT STRING that has no unused bits. */
export function octetsOfBits(node: Asn1Node | undefined): Buffer {
  if (!isUniversal(node, "BITSTRING") || typeof node.value !== "string") return unexpected("BIT STRING")
  return Buffer.from(node.value.slice(1), "latin1")
}

/** An object identifier in dots. */
export function objectId(node: Asn1Node | undefined): string {
  if (!isUniversal(node, "OID") || typeof node.value !== "string") return unexpected("OBJECT IDENTIFIER")
  return asn1.derToOid(node.value)
}

/** A number that is not negative and not absurd. */
export function integer(node: Asn1Node | undefined): number {
  if (!isUniversal(node, "INTEGER") || typeof node.value !== "string") return unexpected("INTEGER")
  const bytes = Buffer.from(node.value, "latin1")
  if (bytes.length === 0 || (bytes[0] ?? 0) >= 0x80) return unexpected("a number that is not negative")
  return bytes.length > 6 ? Number.MAX_SAFE_INTEGER : bytes.readUIntBE(0, bytes.length)
}

/** A node as it stood in the file, or as it is to stand there. */
export function encodeAsn1(node: Asn1Node): Buffer {
  return Buffer.from(asn1.toDer(node).getBytes(), "latin1")
}

function value(type: UniversalType, bytes: Uint8Array | string): Asn1Node {
  const text = typeof bytes === "string" ? bytes : Buffer.from(bytes).toString("latin1")
  return asn1.create(asn1.Class.UNIVERSAL, asn1.Type[type], false, text)
}

/** What is written. Undefined elements are left out. */
export const make = {
  sequence: (...inner: (Asn1Node | undefined)[]): Asn1Node =>
    asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SEQUENCE, true, inner as Asn1Node[]),
  set: (...inner: Asn1Node[]): Asn1Node => asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SET, true, inner),
  /** `[number] EXPLICIT`. */
  explicit: (number: number, inner: Asn1Node): Asn1Node =>
    asn1.create(asn1.Class.CONTEXT_SPECIFIC, number, true, [inner]),
  /** `[number] IMPLICIT` of a primitive type. */
  implicit: (number: number, bytes: Uint8Array): Asn1Node =>
    asn1.create(asn1.Class.CONTEXT_SPECIFIC, number, false, Buffer.from(bytes).toString("latin1")),
  objectId: (dotted: string): Asn1Node => value("OID", asn1.oidToDer(dotted).getBytes()),
  octets: (bytes: Uint8Array): Asn1Node => value("OCTETSTRING", bytes),
  /** A bit string of whole bytes. */
  bits: (bytes: Uint8Array): Asn1Node => value("BITSTRING", Buffer.concat([Buffer.of(0), bytes])),
  /** A bit string as it stands in DER, the count of unused bits in front. */
  rawBits: (bytes: Uint8Array): Asn1Node => value("BITSTRING", bytes),
  integer: (number: number): Asn1Node => value("INTEGER", asn1.integerToDer(number).getBytes()),
  /** Big-endian two's complement. */
  bigInteger: (bytes: Uint8Array): Asn1Node => value("INTEGER", bytes),
  boolean: (yes: boolean): Asn1Node => value("BOOLEAN", Buffer.of(yes ? 0xff : 0)),
  null: (): Asn1Node => value("NULL", ""),
  utf8: (text: string): Asn1Node => value("UTF8", Buffer.from(text)),
  /** node-forge encodes this type by itself. */
  bmp: (text: string): Asn1Node => value("BMPSTRING", text),
  /** As RFC 5280 4.1.2.5 has it: two digits for the year until 2049. */
  time: (date: Date): Asn1Node => {
    const digits = date
      .toISOString()
      .replace(/\.\d+Z$/, "Z")
      .replace(/[-:T]/g, "")
    return date.getUTCFullYear() < 2050 ? value("UTCTIME", digits.slice(2)) : value("GENERALIZEDTIME", digits)
  },
} as const
