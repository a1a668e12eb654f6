// Verifies an image's signatures: who signed, and whether what was signed is still what the image holds.
import * as is from "../arguments.ts"
import { setImmediate } from "node:timers/promises"
import { createPublicKey, type KeyObject } from "node:crypto"
import { SignatureError } from "../errors.ts"
import { DataType, PartitionType, type SifLink, type SifObject } from "../sif/format.ts"
import { grouped, openSif, type SifImage } from "../sif/open.ts"
import { isVerity } from "../sif/verity.ts"
import type { Bytes, OnProgress } from "../units.ts"
import { CertificateBudget, certifiedKey, type SignerCertificate } from "./certificate.ts"
import { descriptorStream, fits, headerStream, ObjectDigests } from "./digest.ts"
import { checkSigner, parseEnvelope, verifyEnvelopeSignature, type DsseEnvelope } from "./dsse.ts"
import { groupOf, groupsOf, lowestId } from "./groups.ts"
import { keyServerOptions, signersOf, type KeyServerOptions } from "./key-server.ts"
import { readKeyring, readSignerKey } from "./keys.ts"
import { isLegacy, legacyDigest } from "./legacy.ts"
import { parseMetadata, type Metadata } from "./metadata.ts"
import { Keyring, parseClearSigned, type ClearSigned } from "./openpgp.ts"
import { compareVerity, NOTHING_LATER, type LeftToReading, type VerifyWhenRead } from "./verity.ts"

/** What is read of a signature object at most. */
const MAX_SIGNATURE_SIZE: Bytes = 1 << 20
/** Each is verified with every key that could fit. */
const MAX_SIGNATURES = 1024

/**
 * Whose signatures must be there: `any` of the keys that are given; `all`: every signature must be by one of them and good; or
 * each of these signers, by whole fingerprint.
 */
export type SignersRequired = "any" | "all" | readonly string[]

/** How {@link verify} verifies. */
export interface VerifyOptions {
  /** Public keys of DSSE signers: RSA, ECDSA (P-256, P-384, P-521) or Ed25519. */
  readonly keys?: readonly KeyObject[] | undefined
  /** The same, in PEM files: SPKI, PKCS#1 or a certificate, which itself is not verified. */
  readonly keyPaths?: readonly string[] | undefined
  /** Certificates of DSSE signers, which are verified: their keys count like {@link keys}. */
  readonly certificates?: readonly SignerCertificate[] | undefined
  /** OpenPGP public keys, armored or as packets. */
  readonly keyrings?: readonly Uint8Array[] | undefined
  /** The same, in files; {@link userKeyrings} finds those of the peers. */
  readonly keyringPaths?: readonly string[] | undefined
  /**
   * A key server that is asked for the keys of the image's OpenPGP signers: for those that are in no ring, and for what became of
   * those that are (revocations). Default: nobody is asked. Anybody can put a key there: name the signers in `require`.
   */
  readonly keyServer?: KeyServerOptions | undefined
  /** Groups to verify; default: every group of the image, and then nothing may be outside of one. */
  readonly groups?: readonly number[] | undefined
  /** Single objects to verify, instead of groups. */
  readonly objects?: readonly number[] | undefined
  /** Default `any`. */
  readonly require?: SignersRequired | undefined
  /**
   * Count the signatures from before Singularity 3.6 and no others. They are insecure: header and descriptors may have been
   * changed. Without groups or objects: `primary`, of the primary partition, or `all` objects.
   */
  readonly legacy?: "primary" | "all" | undefined
  readonly signal?: AbortSignal | undefined
  /** Bytes hashed so far, of how many. */
  readonly onProgress?: OnProgress | undefined
}

const pathOrBytes: is.Check<string | Uint8Array> = (value, name) =>
  typeof value === "string" ? is.path(value, name) : is.bytes(value, name)

const signers: is.Check<SignersRequired> = (value, name) =>
  Array.isArray(value) ? is.list(is.text)(value, name) : is.oneOf("any", "all")(value, name)

export const verifyRows: is.Rows<VerifyOptions> = {
  keys: is.list(is.keyObject),
  keyPaths: is.list(is.path),
  certificates: is.list(
    is.shape<SignerCertificate>({
      certificate: is.required(pathOrBytes),
      intermediates: pathOrBytes,
      roots: pathOrBytes,
    }),
  ),
  keyrings: is.list(is.bytes),
  keyringPaths: is.list(is.path),
  keyServer: keyServerOptions,
  groups: is.list(is.count),
  objects: is.list(is.count),
  require: signers,
  legacy: is.oneOf("primary", "all"),
  signal: is.abortSignal,
  onProgress: is.callback,
}
export const verifyOptions: is.Check<VerifyOptions> = is.shape(verifyRows)

/** Why a signature does not hold. */
export interface SignatureFailure {
  /** ID of the object it is about; undefined: the signature or the image as a whole. */
  readonly object: number | undefined
  readonly reason: string
}

/** One signature of an image. A DSSE object may hold several; each has a report. */
export interface SignatureReport {
  /** The signature object's own ID. */
  readonly id: number
  /** `legacy`: from before Singularity 3.6, which protects data only; `unknown`: no form we know. */
  readonly kind: "openpgp" | "dsse" | "legacy" | "unknown"
  /** The group that it is about, or that its object is in. */
  readonly group: number
  /** OpenPGP: the primary key's fingerprint, upper-case hexadecimal; DSSE: `SHA256:…`. undefined: no key that was given. */
  readonly signer: string | undefined
  /** What that key says of its owner: an OpenPGP user ID, or the subject of a certificate. */
  readonly name: string | undefined
  /** The key that the signature itself says it is by: a hint where the signer is not known, and never more. */
  readonly keyId: string | undefined
  /** When it was made, as the signer says. */
  readonly time: Date | undefined
  /** IDs of the objects that it covers, unchanged. */
  readonly objects: readonly number[]
  /** `unknown-signer`: made by somebody whose key was not given; it says nothing, good or bad. */
  readonly status: "valid" | "invalid" | "unknown-signer"
  readonly failures: readonly SignatureFailure[]
}

/** The answer of {@link verify}. */
export interface VerifyReport {
  readonly path: string
  /** Everything that was asked for is signed as required, and unchanged. */
  readonly verified: boolean
  /** It was verified by signatures that protect data only: {@link VerifyOptions.legacy}. */
  readonly insecure: boolean
  readonly signatures: readonly SignatureReport[]
  /** Signers of good signatures that cover all that was asked for. */
  readonly signers: readonly string[]
  /** IDs of the objects that were asked for and that no good signature by a known signer covers. */
  readonly uncovered: readonly number[]
  /** Why it is not verified. */
  readonly failures: readonly SignatureFailure[]
}

/** Something that must be signed: by one signature all of it. */
interface Unit {
  readonly name: string
  readonly group: number
  readonly objects: readonly SifObject[]
  /** Nothing may have been signed that is not there any more. */
  readonly whole: boolean
}

type Parsed =
  | { readonly kind: "openpgp"; readonly message: ClearSigned }
  | { readonly kind: "dsse"; readonly envelope: DsseEnvelope }
  | { readonly kind: "legacy"; readonly message: ClearSigned }
  | { readonly kind: "unknown" }

function parseSignature(data: Buffer): Parsed {
  const envelope = parseEnvelope(data)
  if (envelope !== undefined) return { kind: "dsse", envelope }
  const message = parseClearSigned(data)
  if (message === undefined) return { kind: "unknown" }
  return { kind: isLegacy(message) ? "legacy" : "openpgp", message }
}

/** A signature by a key that was given, and the text it is over. */
interface Signed {
  readonly signer: string
  readonly name: string | undefined
  readonly time: Date | undefined
  readonly text: Buffer
}

/** What comparing a signature with the image gave. */
interface Comparison {
  /** It is about this image. */
  readonly sound: boolean
  readonly objects: readonly number[]
  readonly failures: readonly SignatureFailure[]
}

/** A signature whose cryptography was looked at; what it states is compared when the digests are there. */
interface Finding {
  readonly report: Omit<SignatureReport, "objects" | "failures" | "status">
  /** The object that a legacy signature is linked to; undefined: a group. */
  readonly about?: number
  /** It is nobody's whose key was given. */
  readonly stranger?: true
  readonly failure?: string
  readonly compare?: () => Comparison
}

/** A finding that was compared. */
interface Judged {
  readonly report: SignatureReport
  /** The report's objects. */
  readonly covered: ReadonlySet<number>
  readonly about: number | undefined
  readonly sound: boolean
}

interface NamedKey {
  readonly name: string
  readonly subject: string | undefined
  readonly key: KeyObject
}

function linkKey(link: SifLink): string {
  return link.to === "object" ? `object ${link.id}` : link.to === "group" ? `group ${link.group}` : ""
}

class Verification {
  readonly #image: SifImage
  readonly #keys: readonly NamedKey[]
  readonly #keyring: Keyring
  readonly #legacy: boolean
  readonly #later: VerifyWhenRead | undefined
  readonly #signal: AbortSignal | undefined
  /** Signature objects by what they are linked to. */
  readonly #linked: ReadonlyMap<string, readonly SifObject[]>
  readonly digests: ObjectDigests

  constructor(
    image: SifImage,
    keys: readonly NamedKey[],
    keyring: Keyring,
    options: VerifyOptions,
    later: VerifyWhenRead | undefined,
  ) {
    this.#image = image
    this.#later = later
    this.#keyring = keyring
    this.#keys = keys
    this.#legacy = options.legacy !== undefined
    this.#signal = options.signal
    this.#linked = grouped(
      image.objects.filter(({ type }) => type === DataType.signature),
      ({ link }) => linkKey(link),
    )
    this.digests = new ObjectDigests(image, options.signal, options.onProgress)
  }

  /** All signatures that are linked to the group, or from before Singularity 3.6 to one of its objects. */
  async find(group: number, wanted: readonly SifObject[]): Promise<Finding[]> {
    const ids = new Set(wanted.map(({ id }) => id))
    const toGroup = this.#linked.get(linkKey({ to: "group", group })) ?? []
    const toObjects = this.#legacy
      ? wanted.flatMap(({ id }) => this.#linked.get(linkKey({ to: "object", id })) ?? [])
      : []
    const linked = [...toGroup, ...toObjects].sort((one, other) => one.slot - other.slot)
    if (linked.length > MAX_SIGNATURES)
      throw SignatureError.at(
        this.#image.path,
        "ERR_SIGNATURE_FORMAT",
        `${linked.length} signatures are too many`,
      )
    const findings: Finding[] = []
    for (const object of linked) {
      this.#signal?.throwIfAborted()
      findings.push(...(await this.#findingsOf(object, group, ids)))
    }
    return findings
  }

  async #findingsOf(object: SifObject, group: number, wanted: ReadonlySet<number>): Promise<Finding[]> {
    const base = {
      id: object.id,
      group,
      signer: undefined,
      name: undefined,
      keyId: undefined,
      time: undefined,
    }
    let kind: SignatureReport["kind"] = "unknown"
    if (object.size > MAX_SIGNATURE_SIZE)
      return [{ report: { ...base, kind }, failure: `${object.size} bytes are no signature` }]
    try {
      const parsed = parseSignature(await this.#image.data(object, MAX_SIGNATURE_SIZE))
      kind = parsed.kind
      switch (parsed.kind) {
        case "dsse":
          return this.#dsse(parsed.envelope, { ...base, kind }, wanted)
        case "unknown":
          return [{ report: { ...base, kind }, stranger: true, failure: "its form is not known" }]
        default:
          return [await this.#openpgp(parsed, object, { ...base, kind }, wanted)]
      }
    } catch (error) {
      if (!(error instanceof SignatureError)) throw error
      return [{ report: { ...base, kind }, failure: error.message }]
    }
  }

  #dsse(
    { payload, signatures }: DsseEnvelope,
    base: Finding["report"],
    wanted: ReadonlySet<number>,
  ): Finding[] {
    return signatures.map((signature) => {
      const { keyId } = signature
      const report = { ...base, keyId: keyId === "" ? undefined : keyId }
      // A key that was not meant is not tried.
      const candidates = this.#keys.filter(({ name }) => keyId === "" || keyId === name)
      const by = candidates.find(({ key }) => verifyEnvelopeSignature(payload, signature, key))
      if (by !== undefined)
        return this.#stated(
          report,
          { signer: by.name, name: by.subject, time: undefined, text: payload },
          wanted,
        )
      if (keyId === "" || candidates.length === 0) return { report, stranger: true }
      return { report, failure: `the signature is not by the key it names, ${keyId}` }
    })
  }

  async #openpgp(
    { kind, message }: Extract<Parsed, { readonly message: ClearSigned }>,
    object: SifObject,
    base: Finding["report"],
    wanted: ReadonlySet<number>,
  ): Promise<Finding> {
    if (kind === "legacy" && !this.#legacy)
      return { report: base, stranger: true, failure: "legacy signatures protect data only" }
    if (this.#keyring.isEmpty) return { report: base, stranger: true }
    const result = await this.#keyring.verify(message)
    if (result.status === "unknown-signer")
      return { report: { ...base, keyId: result.keyId.toUpperCase() }, stranger: true }
    const signer = result.fingerprint.toString("hex").toUpperCase()
    const report = { ...base, keyId: signer }
    if (result.status === "invalid")
      return { report, failure: `the signature by ${signer} is not valid: ${result.reason}` }
    // The descriptor names the signer, and nothing signs the descriptor.
    if (!object.extra.subarray(4, 4 + result.fingerprint.length).equals(result.fingerprint))
      return { report, failure: `the descriptor names another signer than ${signer}` }
    const { name, time } = result
    const signed = { signer, name, time, text: Buffer.from(message.text, "latin1") }
    return kind === "legacy"
      ? this.#legacyStated(report, signed, object, message)
      : this.#stated(report, signed, wanted)
  }

  /** From here on the signer is known: what is wrong now is his or her signature, or the image. */
  #stated(base: Finding["report"], signed: Signed, wanted: ReadonlySet<number>): Finding {
    const { signer, name, time, text } = signed
    const report = { ...base, signer, name, time }
    try {
      const metadata = parseMetadata(text)
      const members = groupOf(this.#image, report.group)
      const lowest = lowestId(members)
      const byId = new Map(members.filter(({ id }) => wanted.has(id)).map((member) => [member.id, member]))
      const stated = metadata.objects.flatMap(({ relativeId, descriptor, data }) => {
        const object = byId.get(lowest + relativeId)
        return object === undefined ? [] : [{ object, relativeId, descriptor, data }]
      })
      const intact = stated.filter(({ object, relativeId, descriptor }) =>
        fits(descriptorStream(this.#image.descriptorBytes(object), relativeId), descriptor),
      )
      const later = this.#later?.take(new Set(intact.map(({ object: { id } }) => id))) ?? NOTHING_LATER
      for (const { object, data } of stated)
        if (!later.objects.includes(object.id)) this.digests.want([object], data.algorithm)
      return { report, compare: () => this.#compare(metadata, members, wanted, later) }
    } catch (error) {
      if (!(error instanceof SignatureError)) throw error
      return { report, failure: error.message }
    }
  }

  #compare(
    metadata: Metadata,
    members: readonly SifObject[],
    wanted: ReadonlySet<number>,
    later: LeftToReading,
  ): Comparison {
    const failures: SignatureFailure[] = [...later.failures]
    const objects: number[] = []
    const sound = fits(headerStream(this.#image.headerBytes), metadata.header)
    if (!sound) failures.push({ object: undefined, reason: "the image's header was changed" })
    const lowest = lowestId(members)
    const byId = new Map(members.map((member) => [member.id, member]))
    for (const { relativeId, descriptor, data } of metadata.objects) {
      const id = lowest + relativeId
      const object = byId.get(id)
      if (object === undefined) failures.push({ object: id, reason: "it was signed and is not there" })
      else if (!wanted.has(id)) continue
      else if (!fits(descriptorStream(this.#image.descriptorBytes(object), relativeId), descriptor))
        failures.push({ object: id, reason: "its descriptor was changed" })
      else if (!later.objects.includes(id) && !this.digests.fits([object], data))
        failures.push({ object: id, reason: "its data was changed" })
      else objects.push(id)
    }
    return { sound, objects: sound ? objects : [], failures }
  }

  #legacyStated(base: Finding["report"], signed: Signed, object: SifObject, message: ClearSigned): Finding {
    const { link } = object
    const about = link.to === "object" ? { about: link.id } : {}
    const covered = link.to === "object" ? [this.#image.object(link.id)] : groupOf(this.#image, base.group)
    const { signer, name, time } = signed
    const report = { ...base, signer, name, time }
    const digest = legacyDigest(message, object)
    if (digest === undefined)
      return { report, ...about, failure: "its digest is not in a form that is taken" }
    this.digests.want(covered, digest.algorithm)
    return {
      report,
      ...about,
      compare: () => {
        if (this.digests.fits(covered, digest))
          return { sound: true, objects: covered.map(({ id }) => id), failures: [] }
        const one = covered.length === 1 ? covered[0]?.id : undefined
        return { sound: true, objects: [], failures: [{ object: one, reason: "data was changed" }] }
      },
    }
  }
}

function judged({ report, about, stranger, failure, compare }: Finding): Judged {
  const {
    sound = false,
    objects = [],
    failures,
  } = compare?.() ?? { failures: failure === undefined ? [] : [{ object: undefined, reason: failure }] }
  const status = stranger === true ? "unknown-signer" : failures.length === 0 ? "valid" : "invalid"
  return { report: { ...report, objects, status, failures }, covered: new Set(objects), about, sound }
}

function unitsOf(image: SifImage, options: VerifyOptions): Unit[] {
  const { path } = image
  const group = (number: number): Unit => ({
    name: `group ${number}`,
    group: number,
    objects: groupOf(image, number),
    whole: true,
  })
  const single = (object: SifObject): Unit => ({
    name: `object ${object.id}`,
    group: object.group,
    objects: [object],
    whole: false,
  })
  if (options.objects !== undefined)
    return [...new Set(options.objects)].map((id) => {
      const object = image.object(id)
      if (object.group === 0 || object.type === DataType.signature)
        throw SignatureError.at(
          path,
          "ERR_SIGNATURE_MISSING",
          `object ${id} is in no group, so nothing signs it`,
        )
      return single(object)
    })
  if (options.groups !== undefined) return [...new Set(options.groups)].map(group)
  if (options.legacy === undefined) return groupsOf(image).map(group)
  return options.legacy === "primary"
    ? [single(image.primary())]
    : image.objects.filter((object) => object.type !== DataType.signature && object.group !== 0).map(single)
}

/** Is the whole of the unit covered? */
function covers({ report, covered, sound }: Judged, unit: Unit): boolean {
  return (
    sound && (!unit.whole || report.status === "valid") && unit.objects.every(({ id }) => covered.has(id))
  )
}

/** What keeps a unit from being verified; nothing: it is. */
function judge(
  unit: Unit,
  found: readonly Judged[],
  signers: ReadonlySet<string>,
  required: SignersRequired,
): SignatureFailure[] {
  const failure = (reason: string): SignatureFailure => ({
    object: undefined,
    reason: `${unit.name}: ${reason}`,
  })
  if (found.length === 0) return [failure("no signature")]
  const broken = found.flatMap(({ report: { id, status, failures } }) =>
    status === "invalid"
      ? failures.map(({ object, reason }) => ({ object, reason: `signature ${id}: ${reason}` }))
      : [],
  )
  const failures: SignatureFailure[] = []
  if (typeof required !== "string")
    failures.push(
      ...required
        .filter((signer) => !signers.has(signer))
        .map((signer) => failure(`no good signature by ${signer}`)),
    )
  if (signers.size === 0 && broken.length === 0 && failures.length === 0)
    failures.push(
      found.every(({ report }) => report.status === "unknown-signer")
        ? failure("no signature by a key that was given")
        : failure("no signature covers all of it"),
    )
  const strangers =
    required === "all"
      ? found
          .filter(({ report }) => report.status === "unknown-signer")
          .map(({ report: { id } }) => failure(`signature ${id} is by no key that was given`))
      : []
  // A broken signature is told where it matters: one good signature is enough unless all must be.
  const matters = failures.length > 0 || signers.size === 0 || required === "all"
  return [...(matters ? broken : []), ...failures, ...strangers]
}

async function keysOf(options: VerifyOptions): Promise<NamedKey[]> {
  const { keys = [], keyPaths = [], certificates = [] } = options
  const plain = [
    ...keys.map((key, index) => ({ key, origin: `key ${index + 1}` })),
    ...(await Promise.all(
      keyPaths.map(async (origin) => ({ key: await readSignerKey(origin, options.signal), origin })),
    )),
  ].map(({ key, origin }) => ({
    name: checkSigner(key, origin),
    subject: undefined,
    key: key.type === "private" ? createPublicKey(key) : key,
  }))
  const certified: NamedKey[] = []
  const budget = new CertificateBudget()
  for (const certificate of certificates) {
    const { key, subject } = await certifiedKey(certificate, options.signal, budget)
    certified.push({ name: checkSigner(key, subject), subject, key })
  }
  return [...plain, ...certified]
}

async function keyringOf(
  image: SifImage,
  { keyrings = [], keyringPaths = [], keyServer, signal }: VerifyOptions,
): Promise<Keyring> {
  const keyring = new Keyring()
  for (const [index, ring] of keyrings.entries())
    await keyring.add(Buffer.from(ring.buffer, ring.byteOffset, ring.byteLength), `key ring ${index + 1}`)
  for (const path of keyringPaths) await keyring.add(await readKeyring(path, signal), path)
  if (keyServer !== undefined)
    for (const key of await signersOf(image, signal === undefined ? keyServer : { signal, ...keyServer }))
      await keyring.add(key, "the key server's answer")
  return keyring
}

/** What is wrong with the image itself, whoever signed it. */
function imageFailures(image: SifImage, options: VerifyOptions, units: readonly Unit[]): SignatureFailure[] {
  const failures: SignatureFailure[] = []
  if (units.length === 0) failures.push({ object: undefined, reason: "nothing in the image can be signed" })
  if (options.groups === undefined && options.objects === undefined)
    for (const { id } of image.objects.filter(isUngrouped))
      failures.push({ object: id, reason: "it is in no group, so nothing signs it" })
  const primary = image.objects.find(({ partition }) => partition?.type === PartitionType.primarySystem)
  // The header's own word is not signed, the partition's is.
  if (primary?.partition !== undefined && primary.partition.arch !== image.header.arch)
    failures.push({ object: primary.id, reason: "the header names another architecture than this partition" })
  return failures
}

/** Does the signature count for the unit? Old ones count for the very object or group that they are linked to. */
function counts({ report, about }: Judged, unit: Unit, { legacy }: VerifyOptions): boolean {
  if (legacy === undefined) return report.kind !== "legacy"
  return report.kind === "legacy" && about === (unit.whole ? undefined : unit.objects[0]?.id)
}

function isUngrouped({ type, group }: SifObject): boolean {
  return type !== DataType.signature && group === 0
}

/** Of what signatures cover, the hash trees that are not what their partitions hash to. */
async function wrongTrees(
  image: SifImage,
  reports: readonly SignatureReport[],
  { signal }: VerifyOptions,
): Promise<SignatureFailure[]> {
  const covered = new Set(reports.flatMap(({ objects }) => objects))
  const failures: SignatureFailure[] = []
  for (const object of image.objects.filter((tree) => isVerity(tree) && covered.has(tree.id))) {
    const reason = await compareVerity(image, object, { signal })
    if (reason !== undefined) failures.push({ object: object.id, reason })
  }
  return failures
}

const STEPS_AT_ONCE = 1024

/**
 * Verifies an opened image; through its descriptor, so what is verified is what is read from it later.
 *
 * @param later - Leaves to reading what can be verified then; default: everything is verified now.
 */
export async function verifySif(
  image: SifImage,
  options: VerifyOptions,
  later?: VerifyWhenRead,
): Promise<VerifyReport> {
  const { path } = image
  const { require: required = "any", legacy, signal } = options
  signal?.throwIfAborted()
  const verification = new Verification(
    image,
    await keysOf(options),
    await keyringOf(image, options),
    options,
    later,
  )
  const units = unitsOf(image, options)
  const found = new Map<number, Finding[]>()
  const wanted = grouped(
    units.flatMap(({ objects }) => objects),
    ({ group }) => group,
  )
  // An image may have 65,535 groups: who wants it to end is heard meanwhile.
  let steps = 0
  const giveWay = async (): Promise<void> => {
    if (++steps % STEPS_AT_ONCE !== 0) return
    await setImmediate()
    signal?.throwIfAborted()
  }
  for (const [group, objects] of wanted) {
    found.set(group, await verification.find(group, objects))
    await giveWay()
  }
  await verification.digests.compute()
  const results = new Map([...found].map(([group, findings]) => [group, findings.map(judged)]))
  const failures = imageFailures(image, options, units)
  const all = options.groups === undefined && options.objects === undefined
  const uncovered = new Set(all ? image.objects.filter(isUngrouped).map(({ id }) => id) : [])
  const signers: Set<string>[] = []
  for (const unit of units) {
    await giveWay()
    const counting = (results.get(unit.group) ?? []).filter((one) => counts(one, unit, options))
    const complete = counting.filter((one) => covers(one, unit))
    const by = new Set(complete.flatMap(({ report: { signer } }) => signer ?? []))
    signers.push(by)
    failures.push(...judge(unit, counting, by, required))
    const accepted = ({ signer }: SignatureReport): boolean =>
      typeof required === "string" || (signer !== undefined && required.includes(signer))
    const covering = counting.filter(({ report }) => accepted(report))
    for (const { id } of unit.objects) if (!covering.some(({ covered }) => covered.has(id))) uncovered.add(id)
  }
  const reports = [...results.values()].flat().map(({ report }) => report)
  if (later === undefined && failures.length === 0)
    failures.push(...(await wrongTrees(image, reports, options)))
  const [first, ...others] = signers
  const unique = new Map(failures.map((failure) => [`${failure.object ?? ""} ${failure.reason}`, failure]))
  return {
    path,
    verified: failures.length === 0,
    insecure: legacy !== undefined,
    signatures: reports,
    signers: [...(first ?? [])].filter((signer) => others.every((other) => other.has(signer))),
    uncovered: [...uncovered].sort((a, b) => a - b),
    failures: [...unique.values()],
  }
}

/**
 * Verifies the signatures of an image. Those from before Singularity 3.6 count for nothing, unless
 * {@link VerifyOptions.legacy} asks for them.
 *
 * @returns A report; look at {@link VerifyReport.verified}.
 * @throws SifError of a malformed image; SignatureError `ERR_SIGNATURE_KEYRING` for keys that cannot be used,
 * `ERR_SIGNATURE_CERTIFICATE` for a certificate that is not good, `ERR_SIGNATURE_MISSING` for a group or object that is not
 * there; the signal's reason.
 */
export async function verify(path: string, options: VerifyOptions): Promise<VerifyReport> {
  is.path(path, "path")
  const checked = verifyOptions(options, "options")
  await using image = await openSif(path)
  return await verifySif(image, checked)
}

/**
 * What {@link verify} reports, as an error where it is not verified.
 *
 * @throws SignatureError `ERR_SIGNATURE_MISSING`: nothing signs it; `ERR_SIGNATURE_SIGNER`: nobody whose key was given does;
 * `ERR_SIGNATURE_INVALID`: what was signed was changed.
 */
export function requireVerified(report: VerifyReport): void {
  if (report.verified) return
  const { path, signatures, failures } = report
  const [first] = failures
  const about = first?.object === undefined ? "" : `object ${first.object}: `
  const text = `${path} is not verified: ${about}${first?.reason ?? "nothing was verified"}`
  const counting = signatures.filter(({ kind }) => kind !== "legacy")
  if (counting.length === 0) throw new SignatureError("ERR_SIGNATURE_MISSING", text, { path })
  const unknown = counting.every(({ status }) => status === "unknown-signer")
  throw new SignatureError(unknown ? "ERR_SIGNATURE_SIGNER" : "ERR_SIGNATURE_INVALID", text, { path })
}
