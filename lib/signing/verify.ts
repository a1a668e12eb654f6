// Verifies an image's signatures: who signed, and whether what was signed is still what the image holds.
import { createPublicKey, type KeyObject } from "node:crypto"
import { SignatureError } from "../errors.ts"
import { DataType, PartitionType, type SifObject } from "../sif/format.ts"
import { openSif, type SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import { descriptorStream, fits, headerStream, ObjectDigests } from "./digest.ts"
import { parseEnvelope, signerName, verifyEnvelopeSignature, type DsseEnvelope } from "./dsse.ts"
import { readKeyring, readSignerKey } from "./keys.ts"
import { parseMetadata, type Metadata } from "./metadata.ts"
import { Keyring, parseClearSigned, type ClearSigned } from "./openpgp.ts"

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
  readonly keys?: readonly KeyObject[]
  /** The same, in PEM files: SPKI, PKCS#1 or a certificate, which itself is not verified. */
  readonly keyPaths?: readonly string[]
  /** OpenPGP public keys, armored or as packets. */
  readonly keyrings?: readonly Uint8Array[]
  /** The same, in files; {@link userKeyrings} finds those of the peers. */
  readonly keyringPaths?: readonly string[]
  /** Groups to verify; default: every group of the image, and then nothing may be outside of one. */
  readonly groups?: readonly number[]
  /** Single objects to verify, instead of groups. */
  readonly objects?: readonly number[]
  /** Default `any`. */
  readonly require?: SignersRequired
  readonly signal?: AbortSignal
  /** Bytes hashed so far. */
  readonly onProgress?: (bytes: Bytes) => void
}

/** Why a signature does not hold. */
export interface SignatureFailure {
  /** ID of the object it is about; undefined: the signature or the image as a whole. */
  readonly object: number | undefined
  readonly reason: string
}

/** One signature object of an image. */
export interface SignatureReport {
  /** The signature object's own ID. */
  readonly id: number
  /** `legacy`: from before Singularity 3.6, which protects data only and is not verified; `unknown`: no form we know. */
  readonly kind: "openpgp" | "dsse" | "legacy" | "unknown"
  readonly group: number
  /** OpenPGP: the primary key's fingerprint, upper-case hexadecimal; DSSE: `SHA256:…`. undefined: no key that was given. */
  readonly signer: string | undefined
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
  readonly signatures: readonly SignatureReport[]
  /** Signers of good signatures that cover all that was asked for. */
  readonly signers: readonly string[]
  /** Why it is not verified. */
  readonly failures: readonly SignatureFailure[]
}

interface Task {
  readonly group: number
  readonly objects: readonly SifObject[]
  /** Of the group, signatures apart: relative IDs count from its lowest. */
  readonly members: readonly SifObject[]
}

type Parsed =
  | { readonly kind: "openpgp"; readonly message: ClearSigned }
  | { readonly kind: "dsse"; readonly envelope: DsseEnvelope }
  | { readonly kind: "legacy" }
  | { readonly kind: "unknown" }

function parseSignature(data: Buffer): Parsed {
  const envelope = parseEnvelope(data)
  if (envelope !== undefined) return { kind: "dsse", envelope }
  const message = parseClearSigned(data)
  if (message === undefined) return { kind: "unknown" }
  return message.text.startsWith("SIFHASH:\n") ? { kind: "legacy" } : { kind: "openpgp", message }
}

/** A signature whose signer is known and whose cryptography is right, before anything is compared. */
interface Signed {
  readonly signer: string
  readonly time: Date | undefined
  readonly text: Buffer
}

class Verification {
  readonly #image: SifImage
  readonly #keys: readonly { readonly name: string; readonly key: KeyObject }[]
  readonly #keyring: Keyring
  readonly #digests: ObjectDigests

  constructor(image: SifImage, keys: readonly KeyObject[], keyring: Keyring, options: VerifyOptions) {
    this.#image = image
    this.#keyring = keyring
    this.#keys = keys.map((given) => {
      const key = given.type === "private" ? createPublicKey(given) : given
      const name = signerName(key)
      if (name === undefined)
        throw new SignatureError(
          "ERR_SIGNATURE_KEYRING",
          `a ${key.asymmetricKeyType ?? "secret"} key signs no images`,
        )
      return { name, key }
    })
    this.#digests = new ObjectDigests(image, options.signal, options.onProgress)
  }

  /** All signature objects that are linked to the group. */
  async signatures(task: Task): Promise<SignatureReport[]> {
    const { group } = task
    const linked = this.#image.objects.filter(
      ({ type, link }) => type === DataType.signature && link.to === "group" && link.group === group,
    )
    if (linked.length > MAX_SIGNATURES)
      throw new SignatureError(
        "ERR_SIGNATURE_FORMAT",
        `${this.#image.path}: ${linked.length} signatures are too many`,
        {
          path: this.#image.path,
        },
      )
    const reports: SignatureReport[] = []
    for (const object of linked) reports.push(await this.#report(task, object))
    return reports
  }

  async #report(task: Task, object: SifObject): Promise<SignatureReport> {
    const base = { id: object.id, group: task.group, signer: undefined, time: undefined, objects: [] }
    let kind: SignatureReport["kind"] = "unknown"
    let signer: string | undefined
    try {
      const parsed = parseSignature(await this.#image.data(object, MAX_SIGNATURE_SIZE))
      kind = parsed.kind
      if (parsed.kind === "legacy" || parsed.kind === "unknown") {
        const reason =
          parsed.kind === "legacy" ? "legacy signatures protect data only" : "its form is not known"
        return { ...base, kind, status: "unknown-signer", failures: [{ object: undefined, reason }] }
      }
      const signed =
        parsed.kind === "dsse" ? this.#dsse(parsed.envelope) : await this.#openpgp(parsed.message, object)
      if (signed === undefined) return { ...base, kind, status: "unknown-signer", failures: [] }
      ;({ signer } = signed)
      const { objects, failures } = await this.#compare(task, parseMetadata(signed.text))
      const status = failures.length === 0 ? "valid" : "invalid"
      return { ...base, kind, signer, time: signed.time, objects, status, failures }
    } catch (error) {
      if (!(error instanceof SignatureError)) throw error
      const failures = [{ object: undefined, reason: error.message }]
      return { ...base, kind, signer, status: "invalid", failures }
    }
  }

  #dsse({ payload, signatures }: DsseEnvelope): Signed | undefined {
    for (const signature of signatures)
      for (const { name, key } of this.#keys)
        if (
          (signature.keyId === "" || signature.keyId === name) &&
          verifyEnvelopeSignature(payload, signature, key)
        )
          return { signer: name, time: undefined, text: payload }
    const claimed = this.#keys.find(({ name }) => signatures.some(({ keyId }) => keyId === name))
    if (claimed !== undefined)
      throw new SignatureError(
        "ERR_SIGNATURE_INVALID",
        `the signature is not by the key it names, ${claimed.name}`,
      )
    return undefined
  }

  async #openpgp(message: ClearSigned, object: SifObject): Promise<Signed | undefined> {
    if (this.#keyring.isEmpty) return undefined
    const result = await this.#keyring.verify(message)
    if (result.status === "unknown-signer") return undefined
    const signer = result.fingerprint.toString("hex").toUpperCase()
    if (result.status === "invalid")
      throw new SignatureError(
        "ERR_SIGNATURE_INVALID",
        `the signature by ${signer} is not valid: ${result.reason}`,
      )
    // The descriptor names the signer, and nothing signs the descriptor.
    const entity = object.extra.subarray(4, 4 + result.fingerprint.length)
    if (!entity.equals(result.fingerprint))
      throw new SignatureError("ERR_SIGNATURE_INVALID", `the descriptor names another signer than ${signer}`)
    return { signer, time: result.time, text: Buffer.from(message.text, "latin1") }
  }

  async #compare(
    task: Task,
    metadata: Metadata,
  ): Promise<{ readonly objects: number[]; readonly failures: SignatureFailure[] }> {
    const failures: SignatureFailure[] = []
    const objects: number[] = []
    if (!fits(headerStream(this.#image.headerBytes), metadata.header))
      failures.push({ object: undefined, reason: "the image's header was changed" })
    const lowest = Math.min(...task.members.map(({ id }) => id))
    const byId = new Map(task.members.map((member) => [member.id, member]))
    const wanted = new Set(task.objects.map(({ id }) => id))
    for (const { relativeId, descriptor, data } of metadata.objects) {
      const id = lowest + relativeId
      const object = byId.get(id)
      if (object === undefined) failures.push({ object: id, reason: "it was signed and is not there" })
      else if (!wanted.has(id)) continue
      else if (!fits(descriptorStream(this.#image.descriptorBytes(object), relativeId), descriptor))
        failures.push({ object: id, reason: "its descriptor was changed" })
      else if (!(await this.#digests.fits(object, data)))
        failures.push({ object: id, reason: "its data was changed" })
      else objects.push(id)
    }
    return { objects, failures }
  }
}

function membersOf(image: SifImage, group: number): SifObject[] {
  return image.objects.filter((object) => object.type !== DataType.signature && object.group === group)
}

function tasksOf(image: SifImage, options: VerifyOptions): Task[] {
  const { path } = image
  const task = (group: number): Task => {
    const members = membersOf(image, group)
    if (members.length === 0)
      throw new SignatureError("ERR_SIGNATURE_MISSING", `${path}: there is no group ${group}`, { path })
    return { group, objects: members, members }
  }
  if (options.objects !== undefined)
    return options.objects.map((id) => {
      const object = image.object(id)
      if (object.group === 0 || object.type === DataType.signature)
        throw new SignatureError(
          "ERR_SIGNATURE_MISSING",
          `${path}: object ${id} is in no group, so nothing signs it`,
          {
            path,
          },
        )
      return { ...task(object.group), objects: [object] }
    })
  if (options.groups !== undefined) return options.groups.map(task)
  const groups = image.objects.filter(({ type }) => type !== DataType.signature).map(({ group }) => group)
  return [...new Set(groups)]
    .filter((group) => group !== 0)
    .sort((a, b) => a - b)
    .map(task)
}

/** Which signers' good signatures cover the whole task. */
function signersOf(task: Task, reports: readonly SignatureReport[]): Set<string> {
  const complete = reports.filter(
    ({ status, objects }) => status === "valid" && task.objects.every(({ id }) => objects.includes(id)),
  )
  return new Set(complete.flatMap(({ signer }) => (signer === undefined ? [] : [signer])))
}

/** What keeps a task from being verified; nothing: it is. */
function judge(
  task: Task,
  reports: readonly SignatureReport[],
  signers: ReadonlySet<string>,
  required: SignersRequired,
): SignatureFailure[] {
  const what = `group ${task.group}`
  const failure = (reason: string): SignatureFailure => ({ object: undefined, reason: `${what}: ${reason}` })
  const current = reports.filter(({ kind }) => kind !== "legacy")
  if (current.length === 0) return [failure("no signature")]
  const failures: SignatureFailure[] = []
  // Whoever's key was given signed something else than this: somebody changed it.
  for (const { id, status, failures: reasons } of current)
    if (status === "invalid")
      failures.push(
        ...reasons.map(({ object, reason }) => ({ object, reason: `signature ${id}: ${reason}` })),
      )
  const missing = typeof required === "string" ? [] : required.filter((signer) => !signers.has(signer))
  if (missing.length > 0) failures.push(...missing.map((signer) => failure(`no good signature by ${signer}`)))
  else if (signers.size === 0 && failures.length === 0)
    failures.push(
      current.every(({ status }) => status === "unknown-signer")
        ? failure("no signature by a key that was given")
        : failure("no signature covers all of it"),
    )
  if (required === "all")
    for (const { id, status } of current)
      if (status === "unknown-signer") failures.push(failure(`signature ${id} is by no key that was given`))
  return failures
}

async function keysOf({ keys = [], keyPaths = [] }: VerifyOptions): Promise<KeyObject[]> {
  return [...keys, ...(await Promise.all(keyPaths.map(readSignerKey)))]
}

async function keyringOf({ keyrings = [], keyringPaths = [] }: VerifyOptions): Promise<Keyring> {
  const keyring = new Keyring()
  for (const [index, ring] of keyrings.entries())
    await keyring.add(Buffer.from(ring.buffer, ring.byteOffset, ring.byteLength), `key ring ${index + 1}`)
  for (const path of keyringPaths) await keyring.add(await readKeyring(path), path)
  return keyring
}

/** Verifies an opened image; through its descriptor, so what is verified is what is read from it later. */
export async function verifySif(image: SifImage, options: VerifyOptions): Promise<VerifyReport> {
  const { path } = image
  const { require: required = "any", signal } = options
  signal?.throwIfAborted()
  const verification = new Verification(image, await keysOf(options), await keyringOf(options), options)
  const failures: SignatureFailure[] = []
  const tasks = tasksOf(image, options)
  if (tasks.length === 0) failures.push({ object: undefined, reason: "nothing in the image can be signed" })
  if (options.groups === undefined && options.objects === undefined)
    for (const { id, type, group } of image.objects)
      if (type !== DataType.signature && group === 0)
        failures.push({ object: id, reason: "it is in no group, so nothing signs it" })
  const primary = image.objects.find(({ partition }) => partition?.type === PartitionType.primarySystem)
  // The header's own word is not signed, the partition's is.
  if (primary?.partition !== undefined && primary.partition.arch !== image.header.arch)
    failures.push({ object: primary.id, reason: "the header names another architecture than this partition" })
  const reports = new Map<number, SignatureReport>()
  let signers: Set<string> | undefined
  for (const task of tasks) {
    const found = await verification.signatures(task)
    for (const report of found) reports.set(report.id, report)
    const complete = signersOf(task, found)
    failures.push(...judge(task, found, complete, required))
    signers = new Set(
      signers === undefined ? complete : [...signers].filter((signer) => complete.has(signer)),
    )
  }
  return {
    path,
    verified: failures.length === 0,
    signatures: [...reports.values()],
    signers: [...(signers ?? [])],
    failures,
  }
}

/**
 * Verifies the signatures of an image. Legacy signatures, from before Singularity 3.6, count for nothing.
 *
 * @returns A report; look at {@link VerifyReport.verified}.
 * @throws SifError of a malformed image; SignatureError `ERR_SIGNATURE_KEYRING` for keys that cannot be used,
 * `ERR_SIGNATURE_MISSING` for a group or object that is not there; the signal's reason.
 */
export async function verify(path: string, options: VerifyOptions): Promise<VerifyReport> {
  await using image = await openSif(path)
  return await verifySif(image, options)
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
