// Certificates for tests, made value by value: also such as no authority and no library would make.
import { createHash, createPublicKey, sign, type KeyObject } from "node:crypto"
import {
  bits,
  implicit,
  integer,
  nothing,
  octets,
  oid,
  sequence,
  set,
  tagged,
  text,
  tlv,
  truth,
} from "./der.ts"

export const extensionIds = {
  subjectKeyIdentifier: "2.5.29.14",
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  nameConstraints: "2.5.29.30",
  distributionPoints: "2.5.29.31",
  certificatePolicies: "2.5.29.32",
  policyMappings: "2.5.29.33",
  policyConstraints: "2.5.29.36",
  authorityKeyIdentifier: "2.5.29.35",
  extendedKeyUsage: "2.5.29.37",
  inhibitAnyPolicy: "2.5.29.54",
} as const

const CODE_SIGNING = "1.3.6.1.5.5.7.3.3"
const PRINTABLE = 0x13
const IA5 = 0x16
const attributeIds: Readonly<Record<string, string>> = {
  CN: "2.5.4.3",
  SN: "2.5.4.4",
  serialNumber: "2.5.4.5",
  C: "2.5.4.6",
  L: "2.5.4.7",
  ST: "2.5.4.8",
  O: "2.5.4.10",
  OU: "2.5.4.11",
  title: "2.5.4.12",
  name: "2.5.4.41",
  GN: "2.5.4.42",
  initials: "2.5.4.43",
  generation: "2.5.4.44",
  dnQualifier: "2.5.4.46",
  pseudonym: "2.5.4.65",
  DC: "0.9.2342.19200300.100.1.25",
  emailAddress: "1.2.840.113549.1.9.1",
}

/** `C=US/O=x/CN=y`; `tag` for all of its texts but those that are IA5String. */
export function distinguishedName(path: string, tag: number = PRINTABLE): Buffer {
  return sequence(
    ...path
      .split("/")
      .filter((part) => part !== "")
      .map((part) => {
        const at = part.indexOf("=")
        const type = part.slice(0, at)
        const own = type === "DC" || type === "emailAddress" ? IA5 : type === "C" ? PRINTABLE : tag
        return set(sequence(oid(attributeIds[type] ?? ""), text(own, part.slice(at + 1))))
      }),
  )
}

/** GeneralName. */
export const general = {
  mail: (address: string): Buffer => implicit(1, Buffer.from(address)),
  dns: (host: string): Buffer => implicit(2, Buffer.from(host)),
  uri: (uri: string): Buffer => implicit(6, Buffer.from(uri)),
  ip: (bytes: readonly number[]): Buffer => implicit(7, Buffer.from(bytes)),
  directory: (path: string): Buffer => tagged(4, distinguishedName(path)),
} as const

export const utcTime = (digits: string): Buffer => tlv(0x17, Buffer.from(digits))
export const generalizedTime = (digits: string): Buffer => tlv(0x18, Buffer.from(digits))

/** An extension; its value is DER. */
export function extension(id: string, value: Uint8Array, critical: boolean = false): Buffer {
  return sequence(oid(id), ...(critical ? [truth] : []), octets(value))
}

/** Signature algorithms, by what signs. */
export const algorithms: Readonly<Record<"rsa" | "ec" | "ed25519", Buffer>> = {
  rsa: sequence(oid("1.2.840.113549.1.1.11"), nothing),
  ec: sequence(oid("1.2.840.10045.4.3.2")),
  ed25519: sequence(oid("1.3.101.112")),
}

export interface KeyPair {
  readonly publicKey: KeyObject
  readonly privateKey: KeyObject
}

/** What a certificate says; what is not said stands for what most of them say. */
export interface CertificateSpec {
  readonly subject: Buffer | string
  readonly issuer: Buffer | string
  /** DER of a SubjectPublicKeyInfo, or the key. */
  readonly key: Buffer | KeyObject
  readonly signer: KeyObject
  readonly signatureAlgorithm?: Buffer
  /** Of the outer structure, where it is another. */
  readonly outerAlgorithm?: Buffer
  readonly hash?: string | null
  readonly version?: 1 | 2 | 3
  readonly serial?: Buffer
  readonly notBefore?: Buffer
  readonly notAfter?: Buffer
  readonly uniqueIds?: readonly Buffer[]
  /** Without: an authority if `ca`. */
  readonly ca?: boolean
  readonly pathLength?: number
  /** null: none. */
  readonly basicConstraints?: Buffer | null
  readonly basicConstraintsCritical?: boolean
  /** The bits of the first byte; null: none. */
  readonly keyUsage?: number | null
  readonly keyUsageCritical?: boolean
  /** null: none. Default: code signing, unless `ca`. */
  readonly usages?: readonly string[] | null
  readonly policies?: readonly string[]
  readonly qualifiers?: readonly Buffer[]
  readonly mappings?: readonly (readonly [string, string])[]
  readonly requireExplicitPolicy?: number
  readonly inhibitPolicyMapping?: number
  readonly policyConstraintsCritical?: boolean
  readonly inhibitAnyPolicy?: number
  readonly permitted?: readonly Buffer[]
  readonly excluded?: readonly Buffer[]
  readonly nameConstraintsCritical?: boolean
  readonly alternativeNames?: readonly Buffer[]
  readonly alternativeNamesCritical?: boolean
  readonly more?: readonly Buffer[]
  /** Name the keys of subject and issuer, so that who looks for the issuer finds it at once. */
  readonly keyIdentifiers?: boolean
}

const DIGITAL_SIGNATURE = 0x80
export const KEY_CERT_SIGN = 0x04
export const CRL_SIGN = 0x02

const nameOf = (name: Buffer | string): Buffer => (typeof name === "string" ? distinguishedName(name) : name)
/** As the content of an `[n] IMPLICIT` integer. */
const number = (value: number): Buffer => integer(value).subarray(2)

/** The usual extensions of a spec. */
export function extensionsOf(spec: CertificateSpec): readonly Buffer[] {
  const { ca = false, policies, mappings, permitted = [], excluded = [], alternativeNames } = spec
  const ids = extensionIds
  const found: Buffer[] = []
  const constraints =
    spec.basicConstraints === undefined && ca
      ? sequence(truth, ...(spec.pathLength === undefined ? [] : [integer(spec.pathLength)]))
      : spec.basicConstraints
  if (constraints)
    found.push(extension(ids.basicConstraints, constraints, spec.basicConstraintsCritical ?? true))
  const usage =
    spec.keyUsage === undefined ? (ca ? KEY_CERT_SIGN | CRL_SIGN : DIGITAL_SIGNATURE) : spec.keyUsage
  if (usage !== null) {
    const unused = Math.clz32(usage & -usage) === 32 ? 0 : 31 - Math.clz32(usage & -usage)
    found.push(extension(ids.keyUsage, bits(Buffer.of(usage), unused), spec.keyUsageCritical ?? true))
  }
  const usages = spec.usages === undefined ? (ca ? null : [CODE_SIGNING]) : spec.usages
  if (usages !== null) found.push(extension(ids.extendedKeyUsage, sequence(...usages.map(oid))))
  if (policies !== undefined)
    found.push(
      extension(
        ids.certificatePolicies,
        sequence(
          ...policies.map((policy, at) =>
            sequence(oid(policy), ...(spec.qualifiers?.slice(at, at + 1) ?? [])),
          ),
        ),
      ),
    )
  if (mappings !== undefined)
    found.push(
      extension(ids.policyMappings, sequence(...mappings.map(([from, to]) => sequence(oid(from), oid(to))))),
    )
  if (spec.requireExplicitPolicy !== undefined || spec.inhibitPolicyMapping !== undefined)
    found.push(
      extension(
        ids.policyConstraints,
        sequence(
          ...(spec.requireExplicitPolicy === undefined
            ? []
            : [implicit(0, number(spec.requireExplicitPolicy))]),
          ...(spec.inhibitPolicyMapping === undefined
            ? []
            : [implicit(1, number(spec.inhibitPolicyMapping))]),
        ),
        spec.policyConstraintsCritical ?? true,
      ),
    )
  if (spec.inhibitAnyPolicy !== undefined)
    found.push(extension(ids.inhibitAnyPolicy, integer(spec.inhibitAnyPolicy), true))
  if (permitted.length + excluded.length > 0) {
    const trees = (bases: readonly Buffer[], at: number): Buffer[] =>
      bases.length === 0 ? [] : [tagged(at, ...bases.map((base) => sequence(base)))]
    found.push(
      extension(
        ids.nameConstraints,
        sequence(...trees(permitted, 0), ...trees(excluded, 1)),
        spec.nameConstraintsCritical ?? true,
      ),
    )
  }
  if (alternativeNames !== undefined)
    found.push(
      extension(ids.subjectAltName, sequence(...alternativeNames), spec.alternativeNamesCritical ?? false),
    )
  if (spec.keyIdentifiers === true) {
    const own = Buffer.isBuffer(spec.key) ? spec.key : spec.key.export({ type: "spki", format: "der" })
    const above = createPublicKey(spec.signer).export({ type: "spki", format: "der" })
    const name = (spki: Buffer): Buffer => createHash("sha256").update(spki).digest().subarray(0, 20)
    found.push(
      extension(ids.subjectKeyIdentifier, octets(name(own))),
      extension(ids.authorityKeyIdentifier, sequence(implicit(0, name(above)))),
    )
  }
  return [...found, ...(spec.more ?? [])]
}

let serials = 0

/** The certificate, DER. */
export function certificate(spec: CertificateSpec): Buffer {
  const { signer, version = 3 } = spec
  const type = signer.asymmetricKeyType as keyof typeof algorithms
  const algorithm = spec.signatureAlgorithm ?? algorithms[type]
  const spki = Buffer.isBuffer(spec.key) ? spec.key : spec.key.export({ type: "spki", format: "der" })
  const extensions = extensionsOf(spec)
  const tbs = sequence(
    ...(version === 1 ? [] : [tagged(0, integer(version - 1))]),
    spec.serial ??
      integer(BigInt(`0x40${createHash("sha256").update(`${++serials}`).digest("hex").slice(0, 14)}`)),
    algorithm,
    nameOf(spec.issuer),
    sequence(spec.notBefore ?? utcTime("200101000000Z"), spec.notAfter ?? generalizedTime("20991231235959Z")),
    nameOf(spec.subject),
    spki,
    ...(spec.uniqueIds ?? []),
    ...(extensions.length > 0 ? [tagged(3, sequence(...extensions))] : []),
  )
  const hash = spec.hash === undefined ? (type === "ed25519" ? null : "sha256") : spec.hash
  return sequence(tbs, spec.outerAlgorithm ?? algorithm, bits(sign(hash, tbs, signer)))
}

/** As a PEM file has it. */
export function pemOf(...ders: readonly Uint8Array[]): Buffer {
  return Buffer.from(
    ders
      .map(
        (der) =>
          `-----BEGIN CERTIFICATE-----\n${(
            Buffer.from(der)
              .toString("base64")
              .match(/.{1,64}/g) ?? []
          ).join("\n")}\n-----END CERTIFICATE-----\n`,
      )
      .join(""),
  )
}
