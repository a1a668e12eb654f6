// Certificates of signers: is there a chain to a root that is trusted, for signing code? Names and signatures are compared by
// node:crypto; what it does not tell of a certificate (RFC 5280: constraints, usages, what is critical) is read from its DER.
import { X509Certificate, type KeyObject } from "node:crypto"
import { existsSync } from "node:fs"
import { SignatureError } from "../errors.ts"
import { derChildren, DerTag, oidOf, readDer, type DerValue } from "../key/der.ts"
import { decodeBase64, pemBlocks } from "../key/pem.ts"
import { certificateKeyFacts, parseCertificate } from "../key/x509.ts"
import type { Bytes } from "../units.ts"
import { readBounded } from "./keys.ts"

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
/** More certificates than any chain has between a root and a signer. */
const MAX_DEPTH = 8
/** Checks of one certificate against another in one search: bundles with many equal names are hostile. */
const MAX_CHECKS = 10_000

/** Where distributions keep the roots that they trust. */
const systemBundles = [
  "/etc/ssl/certs/ca-certificates.crt",
  "/etc/pki/tls/certs/ca-bundle.crt",
  "/etc/ssl/ca-bundle.pem",
  "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
  "/etc/ssl/cert.pem",
] as const

const oid = {
  keyUsage: "2.5.29.15",
  subjectAltName: "2.5.29.17",
  basicConstraints: "2.5.29.19",
  certificatePolicies: "2.5.29.32",
  extendedKeyUsage: "2.5.29.37",
  anyUsage: "2.5.29.37.0",
  codeSigning: "1.3.6.1.5.5.7.3.3",
} as const

const RSA_PSS = "1.2.840.113549.1.1.10"
/** Its hash is a parameter, SHA-1 where there is none (RFC 4055, 3.1): SHA-256, -384, -512. */
const pssHashes: ReadonlySet<string> = new Set([
  "2.16.840.1.101.3.4.2.1",
  "2.16.840.1.101.3.4.2.2",
  "2.16.840.1.101.3.4.2.3",
])
const PSS_HASH = 0xa0

/** RSA PKCS#1 and ECDSA with SHA-256, -384, -512; RSA-PSS; Ed25519. */
const signatureAlgorithms: ReadonlySet<string> = new Set([
  "1.2.840.113549.1.1.11",
  "1.2.840.113549.1.1.12",
  "1.2.840.113549.1.1.13",
  RSA_PSS,
  "1.2.840.10045.4.3.2",
  "1.2.840.10045.4.3.3",
  "1.2.840.10045.4.3.4",
  "1.3.101.112",
])

/** Extensions that are understood here, critical or not. */
const understood: ReadonlySet<string> = new Set([
  oid.keyUsage,
  oid.subjectAltName,
  oid.basicConstraints,
  oid.certificatePolicies,
  oid.extendedKeyUsage,
])

/** What RFC 5280 has a verifier look at. */
interface Constraints {
  readonly algorithm: string | undefined
  readonly ca: boolean
  /** Intermediates below it at most. */
  readonly pathLength: number
  /** undefined: for everything. */
  readonly usages: readonly string[] | undefined
  /** The bits of the key usage, the first one highest; undefined: for everything. */
  readonly keyUsage: number | undefined
  /** A critical extension that nothing here knows. */
  readonly unknown: string | undefined
}

const BOOLEAN = 0x01
const EXTENSIONS = 0xa3

function children(value: DerValue | undefined): readonly DerValue[] {
  const found = value === undefined ? undefined : derChildren(value.content)
  if (found === undefined) throw new Error("it is no DER throughout")
  return found
}

const sequence = (bytes: Buffer): DerValue => {
  const value = readDer(bytes)
  if (value?.tag !== DerTag.sequence) throw new Error("an extension is no sequence")
  return value
}

/** What a certificate is signed with: an object identifier, and more only of RSA-PSS with a hash that is not accepted. */
function algorithmOf(value: DerValue | undefined): string | undefined {
  const [name, parameters] = children(value)
  const id = oidOf(name)
  if (id !== RSA_PSS) return id
  const hash = parameters === undefined ? undefined : children(parameters).find(({ tag }) => tag === PSS_HASH)
  const hashId = hash === undefined ? undefined : oidOf(children(children(hash)[0])[0])
  return hashId !== undefined && pssHashes.has(hashId) ? id : `${id} with the hash ${hashId ?? "SHA-1"}`
}

function constraintsOf(certificate: X509Certificate): Constraints {
  const [body, algorithm] = children(readDer(certificate.raw))
  const outer = children(body).find(({ tag }) => tag === EXTENSIONS)
  const extensions = outer === undefined ? [] : children(children(outer)[0])
  let ca = false
  let pathLength = Infinity
  let usages: string[] | undefined
  let keyUsage: number | undefined
  let unknown: string | undefined
  for (const extension of extensions) {
    const [id, ...rest] = children(extension)
    const critical = rest[0]?.tag === BOOLEAN && rest[0].content[0] !== 0
    const name = oidOf(id) ?? "?"
    const value = rest.at(-1)?.content ?? Buffer.alloc(0)
    if (name === oid.basicConstraints) {
      const parts = children(sequence(value))
      ca = parts[0]?.tag === BOOLEAN && parts[0].content[0] !== 0
      const limit = parts.find(({ tag }) => tag === DerTag.integer)?.content
      if (limit !== undefined) pathLength = limit.length <= 4 ? limit.readUIntBE(0, limit.length) : 0
    } else if (name === oid.extendedKeyUsage)
      usages = children(sequence(value)).map((usage) => oidOf(usage) ?? "?")
    else if (name === oid.keyUsage) keyUsage = readDer(value)?.content[1] ?? 0
    else if (critical && !understood.has(name)) unknown = name
  }
  return { algorithm: algorithmOf(algorithm), ca, pathLength, usages, keyUsage, unknown }
}

const DIGITAL_SIGNATURE = 0x80
const KEY_CERT_SIGN = 0x04
const MIN_RSA_BITS = 2048

/** What is wrong with a certificate by itself, now. */
function troubleOf(certificate: X509Certificate, constraints: Constraints): string | undefined {
  const now = Date.now()
  if (new Date(certificate.validFrom).getTime() > now) return "is not valid yet"
  if (!(new Date(certificate.validTo).getTime() > now)) return "has expired"
  if (constraints.unknown !== undefined) return `has a critical extension ${constraints.unknown}`
  const { asymmetricKeyType, asymmetricKeyDetails } = certificate.publicKey
  if (asymmetricKeyType === "rsa" && (asymmetricKeyDetails?.modulusLength ?? 0) < MIN_RSA_BITS)
    return "has an RSA key that is too weak"
  return undefined
}

function signsCode({ usages }: Constraints): boolean {
  return usages?.some((usage) => usage === oid.codeSigning || usage === oid.anyUsage) ?? true
}

function nameOf(certificate: X509Certificate): string {
  return certificate.subject.split("\n").join(", ")
}

/** The search for a chain. What it remembers is why the last way ended. */
class Chain {
  readonly #intermediates: readonly X509Certificate[]
  readonly #roots: readonly X509Certificate[]
  #checks = 0
  reason = "no chain leads to a root that is trusted"

  constructor(intermediates: readonly X509Certificate[], roots: readonly X509Certificate[]) {
    this.#intermediates = intermediates
    this.#roots = roots
  }

  #isRoot(certificate: X509Certificate): boolean {
    return this.#roots.some((root) => root.raw.equals(certificate.raw))
  }

  /** Does a chain go on from this certificate, of which `below` intermediates were passed? */
  leads(certificate: X509Certificate, below: number, passed: readonly X509Certificate[]): boolean {
    if (this.#isRoot(certificate)) return true
    if (below > MAX_DEPTH) return false
    const { algorithm } = constraintsOf(certificate)
    if (algorithm === undefined || !signatureAlgorithms.has(algorithm)) {
      this.reason = `${nameOf(certificate)} is signed by the algorithm ${algorithm ?? "?"}, which is not accepted`
      return false
    }
    for (const issuer of [...this.#roots, ...this.#intermediates]) {
      if (++this.#checks > MAX_CHECKS) return false
      if (passed.includes(issuer) || !certificate.checkIssued(issuer)) continue
      if (!certificate.verify(issuer.publicKey)) continue
      if (this.#mayIssue(issuer, below) && this.leads(issuer, below + 1, [...passed, issuer])) return true
    }
    return false
  }

  #mayIssue(issuer: X509Certificate, below: number): boolean {
    const constraints = constraintsOf(issuer)
    const trouble =
      troubleOf(issuer, constraints) ??
      (!constraints.ca
        ? "is no authority"
        : constraints.keyUsage !== undefined && (constraints.keyUsage & KEY_CERT_SIGN) === 0
          ? "signs no certificates"
          : constraints.pathLength < below
            ? "has too many authorities below it"
            : signsCode(constraints)
              ? undefined
              : "is not for signing code")
    if (trouble !== undefined) this.reason = `${nameOf(issuer)} ${trouble}`
    return trouble === undefined
  }
}

async function certificatesIn(given: string | Uint8Array, what: string): Promise<X509Certificate[]> {
  const origin = typeof given === "string" ? given : what
  const bytes =
    typeof given === "string"
      ? await readBounded(given, MAX_BUNDLE_SIZE)
      : Buffer.from(given.buffer, given.byteOffset, given.byteLength)
  const refuse = (why: string, cause?: unknown): SignatureError =>
    new SignatureError("ERR_SIGNATURE_CERTIFICATE", `${origin}: ${why}`, { path: origin, cause })
  const blocks = [...pemBlocks(bytes)].filter(({ label }) => /^(?:X509 )?CERTIFICATE$/.test(label))
  if (blocks.length > MAX_CERTIFICATES) throw refuse(`${blocks.length} certificates are too many`)
  try {
    const [first] = blocks
    if (first === undefined) certificateKeyFacts(parseCertificate(bytes, origin), origin)
    for (const { body } of blocks)
      certificateKeyFacts(parseCertificate(decodeBase64(body) ?? body, origin), origin)
    return blocks.length > 0
      ? blocks.map(({ bytes: block }) => new X509Certificate(block))
      : [new X509Certificate(bytes)]
  } catch (cause) {
    throw refuse("there is no certificate that can be read", cause)
  }
}

async function systemRoots(): Promise<X509Certificate[]> {
  const named = process.env["SSL_CERT_FILE"]
  const bundle = named ?? systemBundles.find((file) => existsSync(file))
  if (bundle === undefined)
    throw new SignatureError("ERR_SIGNATURE_CERTIFICATE", "this system has no bundle of trusted roots")
  return await certificatesIn(bundle, bundle)
}

/**
 * The key in a signer's certificate, when a chain of certificates for signing code leads from it to a root that is trusted. The
 * certificate itself must say that it is for signing code.
 *
 * @throws SignatureError `ERR_SIGNATURE_CERTIFICATE`; `ERR_SIGNATURE_KEYRING` for files that cannot be read.
 */
export async function certifiedKey(
  given: SignerCertificate,
): Promise<{ readonly key: KeyObject; readonly subject: string }> {
  const [leaf, ...others] = await certificatesIn(given.certificate, "the certificate")
  const intermediates =
    given.intermediates === undefined
      ? []
      : await certificatesIn(given.intermediates, "the intermediate certificates")
  const roots =
    given.roots === undefined
      ? await systemRoots()
      : await certificatesIn(given.roots, "the root certificates")
  if (leaf === undefined) throw new Error("a list of certificates is never empty")
  const subject = nameOf(leaf)
  const refuse = (why: string, cause?: unknown): SignatureError =>
    new SignatureError("ERR_SIGNATURE_CERTIFICATE", `the certificate of ${subject} is not good: ${why}`, {
      cause,
    })
  let reason: string | undefined
  try {
    const constraints = constraintsOf(leaf)
    const trouble = troubleOf(leaf, constraints)
    if (trouble !== undefined) reason = `it ${trouble}`
    else if (constraints.usages === undefined || !signsCode(constraints))
      reason = "it is not for signing code"
    else if (constraints.keyUsage !== undefined && (constraints.keyUsage & DIGITAL_SIGNATURE) === 0)
      reason = "its key is not for signatures"
    else {
      const chain = new Chain([...others, ...intermediates], roots)
      if (!chain.leads(leaf, 0, [leaf])) ({ reason } = chain)
    }
  } catch (cause) {
    throw refuse(cause instanceof Error ? cause.message : String(cause), cause)
  }
  if (reason !== undefined) throw refuse(reason)
  return { key: leaf.publicKey, subject }
}
