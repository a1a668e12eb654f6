// Certification path validation as RFC 5280, 6.1 has it, for signing code: from a trust anchor, whose own constraints count too
// (RFC 5937), down to a signer. The initial policies are any, and nothing is inhibited. Who signed what was found out before;
// revocation is nobody's matter here.
import type { KeyFacts } from "../key/admission.ts"
import { DerReader, DerTag } from "../key/der.ts"
import { isSameName, type Certificate } from "../key/x509.ts"
import type { Bytes } from "../units.ts"
import {
  isPermitted,
  namesOf,
  readGeneralNames,
  readNameConstraints,
  type NameConstraints,
} from "./name-constraints.ts"

const oid = {
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  nameConstraints: "2.5.29.30",
  certificatePolicies: "2.5.29.32",
  policyMappings: "2.5.29.33",
  policyConstraints: "2.5.29.36",
  extendedKeyUsage: "2.5.29.37",
  inhibitAnyPolicy: "2.5.29.54",
  anyPolicy: "2.5.29.32.0",
  anyUsage: "2.5.29.37.0",
  codeSigning: "1.3.6.1.5.5.7.3.3",
} as const

/** What the extensions of a certificate say (RFC 5280, 4.2.1), each undefined where there is none. */
export interface Profile {
  readonly basicConstraints: { readonly ca: boolean; readonly pathLength: number | undefined } | undefined
  readonly keyUsage: KeyUsage | undefined
  readonly usages: readonly string[] | undefined
  readonly alternativeNames: ReturnType<typeof readGeneralNames> | undefined
  readonly nameConstraints: NameConstraints | undefined
  readonly policies: readonly string[] | undefined
  readonly policyMappings: readonly (readonly [issuer: string, subject: string])[]
  readonly requireExplicitPolicy: number | undefined
  readonly inhibitPolicyMapping: number | undefined
  readonly inhibitAnyPolicy: number | undefined
  /** A critical extension that nothing here knows. */
  readonly unknown: string | undefined
}

interface KeyUsage {
  readonly digitalSignature: boolean
  readonly keyCertSign: boolean
}

const understood: ReadonlySet<string> = new Set(Object.values(oid))

function readBasicConstraints(bytes: Buffer): Profile["basicConstraints"] {
  const reader = DerReader.sequence(bytes)
  const ca = reader.flag()
  const pathLength = reader.isAtEnd ? undefined : reader.number()
  reader.end()
  return { ca, pathLength }
}

function readKeyUsage(bytes: Buffer): KeyUsage {
  const reader = new DerReader(bytes)
  const first = reader.bits()[0] ?? 0
  reader.end()
  return { digitalSignature: (first & 0x80) !== 0, keyCertSign: (first & 0x04) !== 0 }
}

/** What `read` gives of each element, of which there is at least one. */
function each<T>(bytes: Buffer, read: (reader: DerReader) => T): readonly T[] {
  const found: T[] = []
  const reader = DerReader.sequence(bytes)
  do found.push(read(reader))
  while (!reader.isAtEnd)
  return found
}

const REQUIRE_EXPLICIT_POLICY = 0x80
const INHIBIT_POLICY_MAPPING = 0x81

/** Reads the extensions. Throws a DerError for one that is not what it should be. */
export function profileOf({ extensions }: Certificate): Profile {
  const read = <T>(id: string, from: (bytes: Buffer) => T): T | undefined => {
    const extension = extensions.get(id)
    return extension === undefined ? undefined : from(extension.value)
  }
  const constraints = read(oid.policyConstraints, (bytes) => {
    const reader = DerReader.sequence(bytes)
    const numbers = [REQUIRE_EXPLICIT_POLICY, INHIBIT_POLICY_MAPPING].map((tag) => {
      const value = reader.optional(tag)
      return value === undefined
        ? undefined
        : new DerReader(Buffer.concat([Buffer.of(DerTag.integer), value.bytes.subarray(1)])).number()
    })
    reader.end()
    return numbers
  })
  return {
    basicConstraints: read(oid.basicConstraints, readBasicConstraints),
    keyUsage: read(oid.keyUsage, readKeyUsage),
    usages: read(oid.extendedKeyUsage, (bytes) => each(bytes, (reader) => reader.oid())),
    alternativeNames: read(oid.subjectAltName, readGeneralNames),
    nameConstraints: read(oid.nameConstraints, readNameConstraints),
    // Qualifiers are for people to read.
    policies: read(oid.certificatePolicies, (bytes) => each(bytes, (reader) => reader.sequence().oid())),
    policyMappings:
      read(oid.policyMappings, (bytes) =>
        each(bytes, (reader) => {
          const mapping = reader.sequence()
          const pair = [mapping.oid(), mapping.oid()] as const
          mapping.end()
          return pair
        }),
      ) ?? [],
    requireExplicitPolicy: constraints?.[0],
    inhibitPolicyMapping: constraints?.[1],
    inhibitAnyPolicy: read(oid.inhibitAnyPolicy, (bytes) => {
      const reader = new DerReader(bytes)
      const number = reader.number()
      reader.end()
      return number
    }),
    unknown: [...extensions].find(([id, { critical }]) => critical && !understood.has(id))?.[0],
  }
}

/** A certificate whose extensions were read. */
export interface Candidate {
  readonly certificate: Certificate
  readonly profile: Profile
  /** For messages. */
  readonly name: string
}

/** 6.1: "self-issued" is who has the same name as issuer and as subject. */
const isSelfIssued = ({ certificate: { issuer, subject } }: Candidate): boolean => isSameName(issuer, subject)

/** Policies that are valid at one depth, each with those that are expected below it. RFC 9618 has why no tree is needed. */
type ValidPolicies = Map<string, ReadonlySet<string>>

/** What is wrong with a path. */
export class PathError extends Error {}

/** 6.1.2: state variables. "undefined" stands for a valid policy tree that is NULL, Infinity for "more than the path is long". */
interface State {
  policies: ValidPolicies | undefined
  readonly constraints: NameConstraints[]
  explicitPolicy: number
  inhibitAnyPolicy: number
  policyMapping: number
  maxPathLength: number
}

/** 6.1.3 (d), (e) */
function followPolicies(state: State, { profile }: Candidate, anyPolicyCounts: boolean): void {
  const { policies: above } = state
  const { policies: stated } = profile
  if (above === undefined || stated === undefined) {
    state.policies = undefined // (e)
    return
  }
  const expected = new Set([...above.values()].flatMap((set) => [...set]))
  const next: ValidPolicies = new Map()
  for (const policy of stated)
    if (policy !== oid.anyPolicy && (expected.has(policy) || above.has(oid.anyPolicy)))
      next.set(policy, new Set([policy])) // (d)(1)
  if (stated.includes(oid.anyPolicy) && anyPolicyCounts)
    for (const policy of expected) if (!next.has(policy)) next.set(policy, new Set([policy])) // (d)(2)
  state.policies = next.size > 0 ? next : undefined // (d)(3)
}

/** 6.1.4 (a), (b) */
function mapPolicies(state: State, { profile: { policyMappings }, name }: Candidate): void {
  const mapped = new Map<string, Set<string>>()
  for (const [issuer, subject] of policyMappings) {
    if (issuer === oid.anyPolicy || subject === oid.anyPolicy) throw new PathError(`${name} maps any policy`) // (a)
    mapped.set(issuer, (mapped.get(issuer) ?? new Set()).add(subject))
  }
  if (state.policies === undefined) return
  for (const [issuer, subjects] of mapped)
    if (state.policyMapping > 0) {
      if (state.policies.has(issuer) || state.policies.has(oid.anyPolicy))
        state.policies.set(issuer, subjects) // (b)(1)
    } else state.policies.delete(issuer) // (b)(2)
  if (state.policies.size === 0) state.policies = undefined
}

const tighten = (now: number, given: number | undefined): number => Math.min(now, given ?? Infinity)
const countDown = (now: number): number => Math.max(0, now - 1)

/** 6.1.4: what an issuer demands of what is below it. */
function prepare(state: State, issuer: Candidate, isAnchor: boolean): void {
  const { profile, name } = issuer
  mapPolicies(state, issuer) // (a), (b)
  if (profile.nameConstraints !== undefined) state.constraints.push(profile.nameConstraints) // (g)
  // An anchor is no part of the path (6.1).
  if (!isAnchor && !isSelfIssued(issuer)) {
    state.explicitPolicy = countDown(state.explicitPolicy) // (h)
    state.policyMapping = countDown(state.policyMapping)
    state.inhibitAnyPolicy = countDown(state.inhibitAnyPolicy)
    if (state.maxPathLength === 0) throw new PathError(`${name} is one authority too many`) // (l)
    state.maxPathLength--
  }
  state.explicitPolicy = tighten(state.explicitPolicy, profile.requireExplicitPolicy) // (i)
  state.policyMapping = tighten(state.policyMapping, profile.inhibitPolicyMapping)
  state.inhibitAnyPolicy = tighten(state.inhibitAnyPolicy, profile.inhibitAnyPolicy) // (j)
  state.maxPathLength = tighten(state.maxPathLength, profile.basicConstraints?.pathLength) // (m)
}

/** Spends from what may be spent, or throws. */
export type Spend = (comparisons: number) => void
/** Bytes of a certificate that cost as much as one comparison. */
const BYTES: Bytes = 32

/**
 * Does the path hold? That each certificate may be where it is by itself ({@link issuerTrouble}, {@link signerTrouble}), that names chain and that
 * signatures hold (6.1.3 (a), 6.1.4 (k), (n), (o)) was looked at when the path was found.
 *
 * @param anchor - The trust anchor.
 * @param path - The certificates below it, the signer's last.
 * @throws PathError.
 */
export function validatePath(anchor: Candidate, path: readonly Candidate[], spend: Spend): void {
  const state: State = {
    policies: new Map([[oid.anyPolicy, new Set([oid.anyPolicy])]]),
    constraints: [],
    explicitPolicy: Infinity,
    inhibitAnyPolicy: Infinity,
    policyMapping: Infinity,
    maxPathLength: Infinity,
  }
  spend(anchor.certificate.der.length / BYTES)
  prepare(state, anchor, true)
  for (const [index, candidate] of path.entries()) {
    const isLast = index === path.length - 1
    const { certificate, profile, name } = candidate
    spend(certificate.der.length / BYTES + (state.policies?.size ?? 0)) // what is linear in these
    if (isLast || !isSelfIssued(candidate))
      for (const certified of namesOf(certificate.subject, profile.alternativeNames))
        if (!isPermitted(certified, state.constraints, spend))
          throw new PathError(`${name} has a name that an authority above it may not certify`) // 6.1.3 (b), (c)
    followPolicies(state, candidate, state.inhibitAnyPolicy > 0 || (!isLast && isSelfIssued(candidate)))
    if (state.explicitPolicy === 0 && state.policies === undefined)
      throw new PathError(`${name} is under no policy that is valid, and one is required`) // 6.1.3 (f)
    if (!isLast) prepare(state, candidate, false)
    // 6.1.5 (a), (b), (g)
    else if (
      (countDown(state.explicitPolicy) === 0 || profile.requireExplicitPolicy === 0) &&
      state.policies === undefined
    )
      throw new PathError(`${name} is under no policy that is valid, and one is required`)
  }
}

const MIN_RSA_BITS = 2048

/** What is wrong with a certificate by itself, now, wherever in a path it is. */
function troubleOf({ certificate, profile }: Candidate, key: KeyFacts, now: number): string | undefined {
  // 6.1.3 (a)(2). No date that cannot be compared gets here; if one did, it would be refused.
  if (!(certificate.notBefore.getTime() <= now)) return "is not valid yet"
  if (!(now <= certificate.notAfter.getTime())) return "has expired"
  if (profile.unknown !== undefined) return `has a critical extension ${profile.unknown}` // 6.1.4 (o), 6.1.5 (f)
  if (key.modulusBits > 0 && key.modulusBits < MIN_RSA_BITS) return "has an RSA key that is too weak"
  return undefined
}

const signsCode = (usages: readonly string[]): boolean =>
  usages.includes(oid.codeSigning) || usages.includes(oid.anyUsage)

/** Why it may be nobody's issuer. */
export function issuerTrouble(
  candidate: Candidate,
  key: KeyFacts,
  now: number,
  isAnchor: boolean,
): string | undefined {
  const { certificate, profile } = candidate
  const trouble = troubleOf(candidate, key, now)
  if (trouble !== undefined) return trouble
  if (certificate.subject.relativeNames.length === 0) return "has no name" // 4.1.2.6
  // 6.1.4 (k). Of a version without extensions, only who trusts it can say that it is one.
  const isAuthority = profile.basicConstraints?.ca ?? (isAnchor && certificate.version < 3)
  if (!isAuthority) return "is no authority"
  if (profile.keyUsage?.keyCertSign === false) return "signs no certificates" // 6.1.4 (n)
  return profile.usages !== undefined && !signsCode(profile.usages) ? "is not for signing code" : undefined
}

/** Why it is no signer's: it must say that it is for signing code. */
export function signerTrouble(candidate: Candidate, key: KeyFacts, now: number): string | undefined {
  const { certificate, profile } = candidate
  const trouble = troubleOf(candidate, key, now)
  if (trouble !== undefined) return `it ${trouble}`
  const alternatives = certificate.extensions.get(oid.subjectAltName)
  if (certificate.subject.relativeNames.length === 0 && alternatives?.critical !== true)
    return "it names nobody" // 4.1.2.6
  if (profile.usages === undefined || !signsCode(profile.usages)) return "it is not for signing code"
  return profile.keyUsage?.digitalSignature === false ? "its key is not for signatures" : undefined
}
