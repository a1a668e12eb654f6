// Certificates of signers: does a path lead to a root that is trusted, for signing code? This file reads them and looks for paths;
// path-validation.ts says which of them hold.
import { constants, verify, type KeyObject } from "node:crypto"
import { existsSync } from "node:fs"
import { setImmediate } from "node:timers/promises"
import { KeyError, SignatureError } from "../errors.ts"
import { hasNoParameters, pssParameters, type Algorithm, type KeyFacts } from "../key/admission.ts"
import { subjectText } from "../key/certificate.ts"
import { DerError } from "../key/der.ts"
import { decodeBase64, pemBlocks } from "../key/pem.ts"
import {
  certificateKey,
  certificateKeyFacts,
  nameKey,
  parseCertificate,
  type Certificate,
} from "../key/x509.ts"
import type { Bytes } from "../units.ts"
import { readSignerFile } from "./keys.ts"
import {
  issuerTrouble,
  PathError,
  profileOf,
  signerTrouble,
  validatePath,
  type Candidate,
  type Profile,
} from "./path-validation.ts"

/** A signer's certificate, and what it is trusted for. Each a path, or PEM or DER itself. */
export interface SignerCertificate {
  /** The certificate; those behind it in the same file count as intermediates. */
  readonly certificate: string | Uint8Array
  /** Certificates between it and a root. */
  readonly intermediates?: string | Uint8Array
  /** Certificates that are trusted; default: those of the system, of `SSL_CERT_FILE` if that is set. */
  readonly roots?: string | Uint8Array
}

/** The bundles of roots of a system have some hundred KiB. */
const MAX_BUNDLE_SIZE: Bytes = 8 << 20
const MAX_CERTIFICATES = 2000
/** Of all that is read for one verification. */
const MAX_BUNDLES_SIZE: Bytes = 64 << 20
/** As OpenSSL has it. */
const MAX_INTERMEDIATES = 100

/** Where distributions keep the roots that they trust. */
const systemBundles = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
  "/etc/ssl/cert.pem",
] as const

/** How a certificate is signed, as node:crypto is told. */
interface Scheme {
  readonly keys: readonly KeyFacts["type"][]
  readonly hash: string | null
  readonly padding?: number
  readonly saltLength?: number
}

const RSA_PSS = "1.2.840.113549.1.1.10"

/** RSA PKCS#1 (RFC 4055, 5: with NULL) and ECDSA with SHA-256, -384, -512; Ed25519. */
const schemes: Readonly<Record<string, Scheme & { readonly hasNull: boolean }>> = {
  "1.2.840.113549.1.1.11": { keys: ["rsa"], hash: "sha256", hasNull: true },
  "1.2.840.113549.1.1.12": { keys: ["rsa"], hash: "sha384", hasNull: true },
  "1.2.840.113549.1.1.13": { keys: ["rsa"], hash: "sha512", hasNull: true },
  "1.2.840.10045.4.3.2": { keys: ["ec"], hash: "sha256", hasNull: false },
  "1.2.840.10045.4.3.3": { keys: ["ec"], hash: "sha384", hasNull: false },
  "1.2.840.10045.4.3.4": { keys: ["ec"], hash: "sha512", hasNull: false },
  "1.3.101.112": { keys: ["ed25519"], hash: null, hasNull: false },
}

/** undefined: signatures of this kind are not accepted. */
function schemeOf(algorithm: Algorithm): Scheme | undefined {
  if (algorithm.id !== RSA_PSS) {
    const scheme = schemes[algorithm.id]
    return scheme !== undefined && hasNoParameters(algorithm, scheme.hasNull) ? scheme : undefined
  }
  const found = algorithm.parameters === undefined ? undefined : pssParameters(algorithm.parameters)
  if (found === undefined) return undefined
  const { hash, saltLength } = found
  return { keys: ["rsa", "rsa-pss"], hash, saltLength, padding: constants.RSA_PKCS1_PSS_PADDING }
}

/** A certificate of which nothing is asked before it is needed: most of a bundle never is. */
class Lazy implements Candidate {
  readonly certificate: Certificate
  #profile: Profile | undefined
  #key: KeyObject | undefined
  #facts: KeyFacts | undefined
  #name: string | undefined

  constructor(certificate: Certificate) {
    this.certificate = certificate
  }

  get name(): string {
    return (this.#name ??= subjectText(this.certificate.der))
  }

  /** Throws a DerError. */
  get profile(): Profile {
    return (this.#profile ??= profileOf(this.certificate))
  }

  /** Throws a KeyError. */
  get facts(): KeyFacts {
    return (this.#facts ??= certificateKeyFacts(this.certificate, "its key"))
  }

  /** Throws a KeyError. */
  get key(): KeyObject {
    return (this.#key ??= certificateKey(this.certificate, "its key"))
  }
}

/** What one search may cost; a unit is some 25 microseconds. */
const MAX_COST = 50_000
/** After so much of it others get their turn, and whoever wants to end it. */
const TURN = 400
/** Comparisons of names, or policies followed, for one unit. */
const COMPARISONS = 32
/** Bytes that are hashed for one unit. */
const HASHED: Bytes = 8192

/** What looking at a key costs, and verifying with it. The sizes of RSA keys are bounded, and those of exponents. */
function costOf({ certificate: { spki } }: Lazy): number {
  // Of the whole SubjectPublicKeyInfo, so that it can be spent before anything of that is looked at. A P-521 key has 158 bytes.
  return Math.ceil((spki.length / 64) ** 2)
}

class TooCostly extends Error {}

/** By the name of the subject: what others are called costs nothing. */
type Issuers = ReadonlyMap<string, readonly Lazy[]>

function byName(certificates: readonly Lazy[]): Issuers {
  const found = new Map<string, Lazy[]>()
  for (const one of certificates) {
    const name = nameKey(one.certificate.subject)
    const same = found.get(name)
    if (same === undefined) found.set(name, [one])
    else same.push(one)
  }
  return found
}

/** The search for a path. What it remembers is why the last way ended. */
class Search {
  readonly #intermediates: Issuers
  readonly #roots: Issuers
  readonly #now: number
  readonly #signal: AbortSignal | undefined
  readonly #verified = new Map<Lazy, Map<Lazy, boolean>>()
  #cost = 0
  #turn = 0
  reason = "no chain leads to a root that is trusted"

  constructor(intermediates: Issuers, roots: Issuers, now: number, signal: AbortSignal | undefined) {
    this.#intermediates = intermediates
    this.#roots = roots
    this.#now = now
    this.#signal = signal
  }

  #spend(cost: number): void {
    this.#cost += cost
    if (this.#cost > MAX_COST) throw new TooCostly()
  }

  async #turnOver(): Promise<void> {
    if (this.#cost - this.#turn < TURN) return
    this.#turn = this.#cost
    await setImmediate()
    this.#signal?.throwIfAborted()
  }

  /** Is there a path from a root to this certificate? */
  async leadsTo(leaf: Lazy): Promise<boolean> {
    const { subject, der } = leaf.certificate
    if (this.#roots.get(nameKey(subject))?.some(({ certificate }) => certificate.der.equals(der))) return true
    try {
      return await this.#goOn([leaf])
    } catch (error) {
      if (!(error instanceof TooCostly)) throw error
      this.reason = "there are too many ways to follow"
      return false
    }
  }

  /** Is there one that ends with these? */
  async #goOn(path: readonly [Lazy, ...Lazy[]]): Promise<boolean> {
    const [first] = path
    const { certificate } = first
    if (schemeOf(certificate.signatureAlgorithm) === undefined) {
      const { id } = certificate.signatureAlgorithm
      const how = id === RSA_PSS ? "with parameters that are" : "which is"
      this.reason = `${first.name} is signed by the algorithm ${id}, ${how} not accepted`
      return false
    }
    const name = nameKey(certificate.issuer) // 6.1.3 (a)(4)
    for (const issuer of this.#roots.get(name) ?? [])
      if ((await this.#issued(issuer, first, true)) && this.#holds(issuer, path)) return true
    if (path.length > MAX_INTERMEDIATES) return false
    for (const issuer of this.#intermediates.get(name) ?? [])
      if (
        !path.includes(issuer) &&
        (await this.#issued(issuer, first, false)) &&
        (await this.#goOn([issuer, ...path]))
      )
        return true
    return false
  }

  /** Did it, and might it? What cannot be read, and what is not accepted, did not. */
  async #issued(issuer: Lazy, subject: Lazy, isAnchor: boolean): Promise<boolean> {
    this.#spend(1)
    await this.#turnOver()
    let known = this.#verified.get(subject)
    if (known === undefined) this.#verified.set(subject, (known = new Map<Lazy, boolean>()))
    let holds = known.get(issuer)
    if (holds === undefined) known.set(issuer, (holds = this.#verify(issuer, subject, isAnchor)))
    return holds
  }

  #verify(issuer: Lazy, subject: Lazy, isAnchor: boolean): boolean {
    this.#spend(costOf(issuer) + subject.certificate.tbs.length / HASHED)
    try {
      const trouble = issuerTrouble(issuer, issuer.facts, this.#now, isAnchor)
      if (trouble === undefined) return isSignedBy(subject.certificate, issuer)
      this.reason = `${issuer.name} ${trouble}`
    } catch (error) {
      if (!(error instanceof KeyError) && !(error instanceof DerError)) throw error
      this.reason = `${issuer.name} cannot be used: ${error.message}`
    }
    return false
  }

  #holds(anchor: Lazy, path: readonly Lazy[]): boolean {
    try {
      validatePath(anchor, path, (comparisons) => {
        this.#spend(comparisons / COMPARISONS)
      })
      return true
    } catch (error) {
      if (!(error instanceof PathError)) throw error
      this.reason = error.message
      return false
    }
  }
}

/** 6.1.3 (a)(1) */
function isSignedBy({ tbs, signature, signatureAlgorithm }: Certificate, { facts, key }: Lazy): boolean {
  const scheme = schemeOf(signatureAlgorithm)
  if (scheme === undefined || !scheme.keys.includes(facts.type)) return false
  const { hash, padding, saltLength } = scheme
  try {
    return verify(
      hash,
      tbs,
      {
        key,
        padding,
        saltLength,
      },
      signature,
    )
  } catch {
    return false // a signature of the wrong shape for this kind of key, or an RSA-PSS key for another hash
  }
}

/** What may still be read for one verification. */
export class CertificateBudget {
  #left: Bytes = MAX_BUNDLES_SIZE

  /** @throws SignatureError `ERR_SIGNATURE_CERTIFICATE`. */
  spend(size: Bytes, origin: string): void {
    const limit = size > MAX_BUNDLE_SIZE ? MAX_BUNDLE_SIZE : MAX_BUNDLES_SIZE
    if (size > MAX_BUNDLE_SIZE || (this.#left -= size) < 0)
      throw SignatureError.at(origin, "ERR_SIGNATURE_CERTIFICATE", `more than ${limit} bytes of certificates`)
  }
}

/** The certificates of a file, each once. One that cannot be read is left out, unless it is the first and `needsFirst`. */
async function certificatesIn(
  given: string | Uint8Array,
  what: string,
  needsFirst: boolean,
  budget: CertificateBudget,
  signal?: AbortSignal,
): Promise<[Lazy, ...Lazy[]]> {
  const origin = typeof given === "string" ? given : what
  const bytes =
    typeof given === "string"
      ? await readSignerFile(given, MAX_BUNDLE_SIZE, signal)
      : Buffer.from(given.buffer, given.byteOffset, given.byteLength)
  budget.spend(bytes.length, origin)
  const refuse = (why: string, cause?: unknown): SignatureError =>
    SignatureError.at(origin, "ERR_SIGNATURE_CERTIFICATE", why, { cause })
  const blocks = [...pemBlocks(bytes)].filter(({ label }) => /^(?:X509 )?CERTIFICATE$/.test(label))
  if (blocks.length > MAX_CERTIFICATES) throw refuse(`${blocks.length} certificates are too many`)
  const ders = blocks.length > 0 ? blocks.map(({ body }) => decodeBase64(body) ?? body) : [bytes]
  const found = new Map<string, Lazy>()
  let failure: unknown
  for (const [index, der] of ders.entries()) {
    // The largest one takes a tenth of a second.
    await setImmediate()
    signal?.throwIfAborted()
    try {
      found.set(der.toString("latin1"), new Lazy(parseCertificate(der, origin)))
    } catch (cause) {
      failure ??= cause
      if (needsFirst && index === 0) break
    }
  }
  const [first, ...others] = found.values()
  if (first !== undefined) return [first, ...others]
  const why = failure instanceof Error ? failure.message.replace(`${origin}: `, "") : ""
  throw refuse(`there is no certificate that can be read: ${why}`, failure)
}

async function systemRoots(budget: CertificateBudget): Promise<Lazy[]> {
  const named = process.env["SSL_CERT_FILE"]
  const bundle = named ?? systemBundles.find((file) => existsSync(file))
  if (bundle === undefined)
    throw new SignatureError("ERR_SIGNATURE_CERTIFICATE", "this system has no bundle of trusted roots")
  return await certificatesIn(bundle, bundle, false, budget)
}

/**
 * The key in a signer's certificate, when a chain of certificates for signing code leads from it to a root that is trusted. The
 * certificate itself must say that it is for signing code.
 *
 * @throws SignatureError `ERR_SIGNATURE_CERTIFICATE`; `ERR_SIGNATURE_KEYRING` for files that cannot be read; the signal's reason.
 */
export async function certifiedKey(
  given: SignerCertificate,
  signal?: AbortSignal,
  budget: CertificateBudget = new CertificateBudget(),
): Promise<{ readonly key: KeyObject; readonly subject: string }> {
  const [leaf, ...others] = await certificatesIn(given.certificate, "the certificate", true, budget, signal)
  const intermediates =
    given.intermediates === undefined
      ? []
      : await certificatesIn(given.intermediates, "the intermediate certificates", false, budget, signal)
  const roots =
    given.roots === undefined
      ? await systemRoots(budget)
      : await certificatesIn(given.roots, "the root certificates", false, budget, signal)
  const subject = leaf.name
  const refuse = (why: string, cause?: unknown): SignatureError =>
    new SignatureError("ERR_SIGNATURE_CERTIFICATE", `the certificate of ${subject} is not good: ${why}`, {
      cause,
    })
  const now = Date.now()
  try {
    const trouble = signerTrouble(leaf, leaf.facts, now)
    if (trouble !== undefined) throw refuse(trouble)
    const search = new Search(byName([...others, ...intermediates]), byName(roots), now, signal)
    if (!(await search.leadsTo(leaf))) throw refuse(search.reason)
    return { key: leaf.key, subject }
  } catch (cause) {
    if (!(cause instanceof KeyError) && !(cause instanceof DerError)) throw cause
    throw refuse(cause.message, cause)
  }
}
