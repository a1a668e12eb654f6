/**
 * Key pairs, certificates and PKCS#12 as files: made, described, turned into one another.
 *
 * @packageDocumentation
 */
import * as is from "../arguments.ts"
import { generateKeyPair, type KeyObject } from "node:crypto"
import path from "node:path"
import { promisify } from "node:util"
import { checkTarget } from "../file/output.ts"
import { writeTogether } from "../file/small-files.ts"
import { KeyError } from "../errors.ts"
import {
  byThumbprint,
  certificateFacts,
  checkCommonName,
  selfSigned,
  type CertificateFacts,
} from "../key/certificate.ts"
import { MAX_KEY_FILE_SIZE, MIN_MODULUS_BITS, parsePrivateKey, parsePublicKey } from "../key/key-file.ts"
import { decodeBase64 } from "../key/pem.ts"
import type { Secret } from "../key/secret.ts"
import { isCertifiedBy, parseCertificate } from "../key/x509.ts"
import { newPassword, readPassword } from "./password.ts"
import { readSecretFile, secretSource, type SecretSource } from "./secret-sources.ts"
import type * as writer from "../key/pkcs12-writer.ts"

// A function of its own: where TypeScript translates `using` it forgets to name the compiled file.
const pkcs12Writer = (): Promise<typeof writer> => import("../key/pkcs12-writer.ts")

export { checkCommonName, parseThumbprint } from "../key/certificate.ts"
export type { CertificateFacts } from "../key/certificate.ts"
export { add, listStored, remove } from "./certificate-store.ts"
export type { AddOptions, StoredCertificate, StoreOptions } from "./certificate-store.ts"

const PUBLIC_MODE = 0o644
const PRIVATE_MODE = 0o600

/** The least and the most that {@link create} takes. */
export const limits: Readonly<Record<"bits" | "days", readonly [number, number]>> = {
  bits: [MIN_MODULUS_BITS, 8192],
  days: [1, 36_500],
}

function inRange(what: string, value: number, [least, most]: readonly [number, number]): void {
  if (!Number.isInteger(value) || value < least || value > most)
    throw new RangeError(`${what} are ${least} to ${most}, not ${value}`)
}

/** What {@link create} makes. */
export interface CreateOptions {
  /** The files are this and `-public.pem`, `-public-pkcs1.pem`, `.pfx`. */
  readonly filePrefix: string
  /** Of the PKCS#12 file. */
  readonly password: SecretSource
  /** Of the modulus. Default 4096. */
  readonly bits?: number | undefined
  /** The certificate's common name. Default: the last part of the prefix. */
  readonly commonName?: string | undefined
  /** The certificate is valid from now and so long. Default 365. */
  readonly days?: number | undefined
  /** Encrypt the PKCS#12 file with 3DES and SHA-1, for readers from before 2019. */
  readonly legacy?: boolean | undefined
  /** Replace existing files, once all new ones are complete. */
  readonly force?: boolean | undefined
  readonly signal?: AbortSignal | undefined
}

/** {@link create} has the ranges. */
const anyNumber = is.number(-Infinity, Infinity)
const checkCreate = is.shape<CreateOptions>({
  filePrefix: is.required(is.path),
  password: is.required(secretSource),
  bits: anyNumber,
  commonName: is.text,
  days: anyNumber,
  legacy: is.flag,
  force: is.flag,
  signal: is.abortSignal,
})

/** What {@link create} made. */
export interface CreateResult {
  /** SPKI: `PUBLIC KEY`. */
  readonly publicKey: string
  /** PKCS#1: `RSA PUBLIC KEY`, the one form that the peers read. */
  readonly publicKeyPkcs1: string
  /** PKCS#12 with the private key and the certificate. */
  readonly pfx: string
  readonly certificate: CertificateFacts
}

/**
 * Makes an RSA pair: the public key as two PEM files, the private key and a self-signed certificate as a PKCS#12 file under
 * a password. All three files appear, or none.
 *
 * @throws BuildError `ERR_BUILD_EXISTS`, `ERR_BUILD_OUTPUT`; KeyError for the password; RangeError for bits, days and names
 * that cannot be had.
 */
export async function create(given: CreateOptions): Promise<CreateResult> {
  const options = checkCreate(given, "options")
  const { filePrefix, bits = 4096, days = 365, legacy = false, force = false, signal } = options
  inRange("the bits of a modulus", bits, limits.bits)
  inRange("the days of a certificate", days, limits.days)
  const commonName = options.commonName ?? path.basename(filePrefix)
  checkCommonName(commonName)
  const publicKey = `${filePrefix}-public.pem`
  const publicKeyPkcs1 = `${filePrefix}-public-pkcs1.pem`
  const pfx = `${filePrefix}.pfx`
  for (const file of [pfx, publicKey, publicKeyPkcs1]) await checkTarget(file, force)
  using password = await newPassword(options.password, pfx)
  const pair = await promisify(generateKeyPair)("rsa", { modulusLength: bits })
  signal?.throwIfAborted()
  const certificate = selfSigned({ key: pair.privateKey, commonName, notBefore: new Date(), days })
  const { writePkcs12 } = await pkcs12Writer()
  const container = await writePkcs12({
    key: pair.privateKey,
    certificates: [certificate],
    friendlyName: commonName,
    password: password.bytes,
    legacy,
  })
  const pem = (type: "spki" | "pkcs1"): Buffer => Buffer.from(pair.publicKey.export({ type, format: "pem" }))
  // The private key first: no public key is ever there to encrypt to whose private key is not.
  await writeTogether(
    [
      { path: pfx, bytes: container, mode: PRIVATE_MODE },
      { path: publicKey, bytes: pem("spki"), mode: PUBLIC_MODE },
      { path: publicKeyPkcs1, bytes: pem("pkcs1"), mode: PUBLIC_MODE },
    ],
    force,
  )
  return { publicKey, publicKeyPkcs1, pfx, certificate: certificateFacts(certificate, pfx) }
}

const BEGIN = "-----BEGIN CERTIFICATE-----"
const END = "-----END CERTIFICATE-----"
/** A bundle of authorities has some hundred. */
const MAX_CERTIFICATES = 1024

/** The certificates of a PEM file, DER. Only they become strings: a key may lie beside them. */
function pemCertificates(file: Buffer, origin: string): Buffer[] {
  const found: Buffer[] = []
  for (let at = file.indexOf(BEGIN); at >= 0; at = file.indexOf(BEGIN, at + 1)) {
    const end = file.indexOf(END, at)
    if (end < 0 || found.length === MAX_CERTIFICATES) throw damaged(origin)
    const der = decodeBase64(file.subarray(at + BEGIN.length, end))
    if (der === undefined) throw damaged(origin)
    found.push(parseCertificate(der, origin).der)
  }
  return found
}

function damaged(origin: string): KeyError {
  return new KeyError("ERR_KEY_DAMAGED", `${origin}: the certificate is damaged or cut short`)
}

/** Runs `read` without a password, and with one if the file turns out to be locked. */
async function unlocking<T>(
  origin: string,
  source: SecretSource | undefined,
  read: (password: Buffer | undefined) => T | Promise<T>,
): Promise<T> {
  try {
    return await read(undefined)
  } catch (error) {
    if (!(error instanceof KeyError) || error.code !== "ERR_KEY_LOCKED") throw error
    using password = await readPassword(source, origin)
    if (password === undefined) throw error
    return await read(password.bytes)
  }
}

/** What {@link info} looks at. */
export interface InfoOptions {
  /** Of a PKCS#12 file. */
  readonly password?: SecretSource | undefined
  /** Tell of the one certificate that has it: SHA-256, or SHA-1 if only one has that; hexadecimal, colons or not. */
  readonly thumbprint?: string | undefined
  /** Ends the wait for a file that is a pipe. */
  readonly signal?: AbortSignal | undefined
}

const checkInfo = is.shape<InfoOptions>({
  password: secretSource,
  thumbprint: is.text,
  signal: is.abortSignal,
})

/**
 * Tells of the certificates in a file: PEM, DER or PKCS#12, the key's own first.
 *
 * @throws KeyError `ERR_KEY_FORMAT` when there is none, `ERR_KEY_LOCKED`, `ERR_KEY_PASSPHRASE`, `ERR_KEY_DAMAGED`, `ERR_KEY_UNSUPPORTED`;
 * `ERR_KEY_MISMATCH` when none or several have the thumbprint.
 */
export async function info(file: string, given: InfoOptions = {}): Promise<CertificateFacts[]> {
  is.path(file, "file")
  const options = checkInfo(given, "options")
  const bytes = await readSecretFile(file, MAX_KEY_FILE_SIZE, options.signal)
  try {
    const found = await certificatesIn(bytes, file, options.password)
    const facts = found.map((der) => certificateFacts(der, file))
    return options.thumbprint === undefined ? facts : [byThumbprint(facts, options.thumbprint)]
  } finally {
    bytes.fill(0)
  }
}

async function certificatesIn(
  bytes: Buffer,
  origin: string,
  password: SecretSource | undefined,
): Promise<readonly Buffer[]> {
  const { isPkcs12, parsePkcs12 } = await import("../key/pkcs12.ts")
  const found = isPkcs12(bytes)
    ? (await unlocking(origin, password, (given) => parsePkcs12(bytes, given, origin))).certificates
    : bytes[0] === 0x30
      ? [parseCertificate(bytes, origin).der]
      : pemCertificates(bytes, origin)
  if (found.length === 0) throw new KeyError("ERR_KEY_FORMAT", `${origin}: there is no certificate in it`)
  return found
}

/** What {@link convert} can write. */
export const forms = ["pkcs1", "pkcs8", "pem", "pfx"] as const
/**
 * `pkcs1` and `pkcs8`: the key alone, private if there is a private one, as PEM; `pem`: the key as PKCS#8, its certificates
 * behind it; `pfx`: key and certificates as PKCS#12.
 */
export type Form = (typeof forms)[number]

/** What {@link convert} makes of what. */
export interface ConvertOptions {
  /** A key file of any form that opens or builds images. */
  readonly input: string
  readonly output: string
  readonly to: Form
  /** Of the input. */
  readonly password?: SecretSource | undefined
  /** Of the output, when a private key goes into it. */
  readonly newPassword?: SecretSource | undefined
  /** Write a private key without a password. PKCS#1 has no other way. */
  readonly plain?: boolean | undefined
  /** PEM or DER, for `pfx` when the input has no certificate. */
  readonly certificateFile?: string | undefined
  /** As for {@link create}. */
  readonly legacy?: boolean | undefined
  /** Replace an existing output. */
  readonly force?: boolean | undefined
  /** Ends the wait for an input that is a pipe. */
  readonly signal?: AbortSignal | undefined
}

const checkConvert = is.shape<ConvertOptions>({
  input: is.required(is.path),
  output: is.required(is.path),
  to: is.required(is.oneOf(...forms)),
  password: secretSource,
  newPassword: secretSource,
  plain: is.flag,
  certificateFile: is.path,
  legacy: is.flag,
  force: is.flag,
  signal: is.abortSignal,
})

/** What {@link convert} wrote. */
export interface ConvertResult {
  readonly output: string
  readonly key: "private" | "public"
  readonly certificates: number
}

interface KeyMaterial {
  readonly key: KeyObject
  readonly certificates: readonly Buffer[]
}

async function readMaterial({ input: file, password, signal }: ConvertOptions): Promise<KeyMaterial> {
  const bytes = await readSecretFile(file, MAX_KEY_FILE_SIZE, signal)
  try {
    const { isPkcs12, parsePkcs12 } = await import("../key/pkcs12.ts")
    if (isPkcs12(bytes)) return await unlocking(file, password, (given) => parsePkcs12(bytes, given, file))
    const key = await unlocking(file, password, (given) => readKey(bytes, file, given))
    return { key, certificates: bytes[0] === 0x30 ? [] : pemCertificates(bytes, file) }
  } finally {
    bytes.fill(0)
  }
}

/** The private key, or the public one of a file that has no private one. */
async function readKey(bytes: Buffer, origin: string, password: Buffer | undefined): Promise<KeyObject> {
  try {
    return await parsePrivateKey(bytes, origin, password)
  } catch (error) {
    if (!(error instanceof KeyError) || error.code !== "ERR_KEY_PUBLIC") throw error
    return await parsePublicKey(bytes, origin, password)
  }
}

/** The certificates with the key's own first, which must be among them. */
function ownFirst(key: KeyObject, certificates: readonly Buffer[], origin: string): readonly Buffer[] {
  const own = certificates.find((der) => isCertifiedBy(key, der))
  if (own === undefined)
    throw new KeyError(
      "ERR_KEY_MISSING",
      `${origin}: a certificate of the private key is needed for PKCS#12, and is not there`,
    )
  return [own, ...certificates.filter((der) => der !== own)]
}

function pemBlock(label: string, der: Buffer): Buffer {
  const lines = der.toString("base64").match(/.{1,64}/g) ?? []
  return Buffer.from(`-----BEGIN ${label}-----\n${lines.join("\n")}\n-----END ${label}-----\n`)
}

function certificatesPem(certificates: readonly Buffer[]): Buffer {
  return Buffer.concat(certificates.map((der) => pemBlock("CERTIFICATE", der)))
}

/**
 * Writes a key in another form. A private key is written under a password, unless `plain`; its file is readable by its owner
 * only.
 *
 * @throws KeyError as reading keys does; `ERR_KEY_MISSING` without what the output needs; `ERR_KEY_UNSUPPORTED` for a private key as PKCS#1
 * without `plain`; BuildError; TypeError for PKCS#12 with it.
 */
export async function convert(given: ConvertOptions): Promise<ConvertResult> {
  const options = checkConvert(given, "options")
  const { input, output, to, plain = false, legacy = false, force = false } = options
  await checkTarget(output, force)
  const { key, certificates } = await readMaterial(options)
  if (key.type === "public") {
    if (to === "pem" || to === "pfx")
      throw new KeyError(
        "ERR_KEY_PUBLIC",
        `${input}: a private key is needed for ${to}, this is a public one`,
      )
    const text = key.export({ type: to === "pkcs1" ? "pkcs1" : "spki", format: "pem" })
    await writeTogether([{ path: output, bytes: Buffer.from(text), mode: PUBLIC_MODE }], force)
    return { output, key: "public", certificates: 0 }
  }
  if (to === "pkcs1" && !plain)
    throw new KeyError(
      "ERR_KEY_UNSUPPORTED",
      `${output}: PKCS#1 keeps a private key in the clear, and that was not asked for`,
    )
  if (to === "pfx" && plain) throw new TypeError("PKCS#12 keeps a private key under a password")
  const extra =
    to === "pfx" && options.certificateFile !== undefined
      ? await readCertificates(options.certificateFile)
      : []
  const kept =
    to === "pfx" ? ownFirst(key, [...extra, ...certificates], input) : to === "pem" ? certificates : []
  using password = plain ? undefined : await newPassword(options.newPassword, output)
  const bytes = await privateFile(key, kept, to, password, legacy)
  try {
    await writeTogether([{ path: output, bytes, mode: PRIVATE_MODE }], force)
  } finally {
    bytes.fill(0)
  }
  return { output, key: "private", certificates: kept.length }
}

async function readCertificates(file: string): Promise<readonly Buffer[]> {
  return await certificatesIn(await readSecretFile(file, MAX_KEY_FILE_SIZE), file, undefined)
}

/** A private key with its certificates. Without a password its PEM is a string for a moment: node:crypto has no other. */
async function privateFile(
  key: KeyObject,
  certificates: readonly Buffer[],
  to: Form,
  password: Secret | undefined,
  legacy: boolean,
): Promise<Buffer> {
  const { encryptPkcs8, writePkcs12 } = await pkcs12Writer()
  if (password === undefined) {
    const text = key.export({ type: to === "pkcs1" ? "pkcs1" : "pkcs8", format: "pem" })
    return Buffer.concat([Buffer.from(text), certificatesPem(certificates)])
  }
  if (to !== "pfx")
    return Buffer.concat([
      pemBlock("ENCRYPTED PRIVATE KEY", await encryptPkcs8(key, password.bytes)),
      certificatesPem(certificates),
    ])
  const [own] = certificates
  const commonName = own && /^CN=(.*)$/m.exec(certificateFacts(own, "the certificate").subject)?.[1]
  return await writePkcs12({
    key,
    certificates,
    friendlyName: commonName ?? "",
    password: password.bytes,
    legacy,
  })
}
