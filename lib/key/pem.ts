// RSA keys from PEM files, into node:crypto's key objects: the numbers of a private key never become a string here.
import { createPrivateKey, createPublicKey, type KeyObject } from "node:crypto"
import { KeyError } from "../errors.ts"

/** Modulus bits below which nothing new is encrypted; what exists still opens. */
export const MIN_MODULUS_BITS: number = 2048
/** Larger files hold no key. */
export const MAX_PEM_SIZE: number = 1 << 20

const publicLabels: readonly string[] = ["RSA PUBLIC KEY", "PUBLIC KEY"]
const privateLabels: readonly string[] = ["RSA PRIVATE KEY", "PRIVATE KEY"]

interface PemBlock {
  readonly label: string
  /** The block's own bytes within the file. */
  readonly bytes: Buffer
}

const begin = Buffer.from("-----BEGIN ")
const dashes = Buffer.from("-----")

/** Looks at bytes, not at a string, so that a private key leaves no copy behind. A block ends before the next one begins. */
function* blocks(file: Buffer): Generator<PemBlock> {
  for (let at = file.indexOf(begin), next = at; at >= 0; at = next) {
    next = file.indexOf(begin, at + 1)
    const block = file.subarray(at, next < 0 ? file.length : next)
    const labelEnd = block.indexOf(dashes, begin.length)
    if (labelEnd < 0 || labelEnd > 80) continue
    const label = block.toString("latin1", begin.length, labelEnd)
    const end = block.indexOf(`-----END ${label}-----`, labelEnd)
    if (end >= 0) yield { label, bytes: block.subarray(0, end + label.length + 14) }
  }
}

function isProtected(block: PemBlock): boolean {
  return block.label === "ENCRYPTED PRIVATE KEY" || block.bytes.includes("Proc-Type: 4,ENCRYPTED")
}

function describeFound(file: Buffer): string {
  const labels = [...blocks(file)].map(({ label }) => label)
  return labels.length === 0 ? "no PEM block" : `PEM ${labels.join(", ")}`
}

function rsaOnly(key: KeyObject, origin: string): KeyObject {
  if (key.asymmetricKeyType !== "rsa")
    throw new KeyError(
      "ERR_KEY_FORMAT",
      `${origin}: an RSA key is needed, this is ${key.asymmetricKeyType ?? "none"}`,
    )
  return key
}

/** Bits of an RSA key's modulus. */
export function modulusBits(key: KeyObject): number {
  return key.asymmetricKeyDetails?.modulusLength ?? 0
}

/**
 * The public key to encrypt to: PKCS#1 (`RSA PUBLIC KEY`), SPKI (`PUBLIC KEY`), or the public half of a private key.
 *
 * @param origin - What to call the file in messages.
 * @throws KeyError `ERR_KEY_FORMAT`, or `ERR_KEY_WEAK` below {@link MIN_MODULUS_BITS}.
 */
export function parsePublicKey(file: Buffer, origin: string): KeyObject {
  const labels = [...publicLabels, ...privateLabels]
  const block = [...blocks(file)].find(({ label }) => labels.includes(label))
  if (block === undefined)
    throw new KeyError(
      "ERR_KEY_FORMAT",
      `${origin}: a PEM public key is needed, found ${describeFound(file)}`,
    )
  if (isProtected(block))
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: the key is protected by a password; give the public key`)
  let key: KeyObject
  try {
    key = createPublicKey({ key: block.bytes, format: "pem" })
  } catch (cause) {
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: the ${block.label} is damaged`, { cause })
  }
  rsaOnly(key, origin)
  if (modulusBits(key) < MIN_MODULUS_BITS)
    throw new KeyError(
      "ERR_KEY_WEAK",
      `${origin}: an RSA key of ${modulusBits(key)} bits is too weak, at least ${MIN_MODULUS_BITS} are needed`,
    )
  return key
}

/**
 * The private key to open with: PKCS#1 (`RSA PRIVATE KEY`) or PKCS#8 (`PRIVATE KEY`).
 *
 * @param origin - What to call the file in messages.
 * @throws KeyError `ERR_KEY_FORMAT`.
 */
export function parsePrivateKey(file: Buffer, origin: string): KeyObject {
  const all = [...blocks(file)]
  const locked = all.find(isProtected)
  const block = all.find((candidate) => privateLabels.includes(candidate.label) && !isProtected(candidate))
  if (block === undefined) {
    if (locked !== undefined)
      throw new KeyError(
        "ERR_KEY_FORMAT",
        `${origin}: the private key is protected by a password, which is not supported`,
      )
    throw new KeyError(
      "ERR_KEY_FORMAT",
      `${origin}: a PEM private key is needed, found ${describeFound(file)}`,
    )
  }
  try {
    return rsaOnly(createPrivateKey({ key: block.bytes, format: "pem" }), origin)
  } catch (cause) {
    if (cause instanceof KeyError) throw cause
    throw new KeyError("ERR_KEY_FORMAT", `${origin}: the ${block.label} is damaged`, { cause })
  }
}
