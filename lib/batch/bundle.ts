// The secrets of a set's images, encrypted for the nodes that may open them. It lies beside the manifest for as long as jobs wait, so that
// no process has to. What it is about (whose it is, which images, until when) is said in the clear and bound to what is encrypted: a node
// that is told something else cannot open it.
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createPublicKey,
  hkdfSync,
  randomBytes,
  type KeyObject,
} from "node:crypto"
import { readdir } from "node:fs/promises"
import path from "node:path"
import { count, list, oneOf, required, shape, text, type Check } from "../arguments.ts"
import { readBounded } from "../bounded-file.ts"
import { BatchError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { parseRecipientCertificate } from "../key/key-file.ts"
import { unwrapSecret, wrapSecret } from "../key/rsa-oaep.ts"
import { allocateSecret, decipherSecret } from "../key/secret.ts"
import { MAX_CERTIFICATE_SIZE, parseCertificate } from "../key/x509.ts"
import { isHeld } from "../native/private-folder.ts"
import type { Bytes } from "../units.ts"
import { MAX_SECRETS } from "./secret-table.ts"

/** Where a node opens them, unless somebody says otherwise. */
export const NODE_SOCKET = "/run/sifcrypt-node/socket"

const INFO = "sifcrypt batch bundle 1"
const CIPHER = "aes-256-gcm"
const KEY_SIZE: Bytes = 32
const NONCE_SIZE: Bytes = 12
const TAG_SIZE: Bytes = 16

/** What a bundle is about. */
export interface BundleHead {
  readonly version: 1
  /** Of the job set. */
  readonly set: string
  /** Whose jobs may have what is in it. */
  readonly uid: number
  /** Milliseconds since 1970. */
  readonly expires: number
  /** Of the images, hexadecimal. */
  readonly digests: readonly string[]
}

/** A node that can open a bundle. */
export interface BundleNode {
  /** As Slurm calls it. */
  readonly node: string
  /** SHA-256 of its public key, SPKI, hexadecimal. */
  readonly fingerprint: string
  /** What the secrets are encrypted with, for this node; base64. */
  readonly key: string
}

/** As it is kept. */
export interface Bundle {
  readonly version: 1
  /** A {@link BundleHead} as JSON: these very bytes are what the secrets are bound to. */
  readonly head: string
  /** The secrets, base64. */
  readonly sealed: string
  readonly nodes: readonly BundleNode[]
}

/** What one node needs of it. */
export type BundlePart = Pick<Bundle, "head" | "sealed"> & Pick<BundleNode, "fingerprint" | "key">

export const checkBundle: Check<Bundle> = shape<Bundle>({
  version: required(oneOf(1)),
  head: required(text),
  sealed: required(text),
  nodes: required(
    list(shape<BundleNode>({ node: required(text), fingerprint: required(text), key: required(text) })),
  ),
})

export const checkPart: Check<BundlePart> = shape<BundlePart>({
  head: required(text),
  sealed: required(text),
  fingerprint: required(text),
  key: required(text),
})

const checkHead: Check<BundleHead> = shape<BundleHead>({
  version: required(oneOf(1)),
  set: required(text),
  uid: required(count),
  expires: required(count),
  digests: required(list(text)),
})

/** @throws SyntaxError, TypeError, RangeError. */
export function parseHead(head: string): BundleHead {
  return checkHead(parseJson(head), "the bundle")
}

/** By which a node finds its own key. */
export function keyFingerprint(key: KeyObject): string {
  const half = key.type === "private" ? createPublicKey(key) : key
  return createHash("sha256")
    .update(half.export({ type: "spki", format: "der" }))
    .digest("hex")
}

/** For these secrets only: a key that is unwrapped from something else seals nothing here. The caller wipes it. */
function sealingKey(contentKey: Uint8Array, head: string): Buffer {
  const salt = createHash("sha256").update(head).digest()
  return Buffer.from(hkdfSync("sha256", contentKey, salt, INFO, KEY_SIZE))
}

/** The public key of a node. */
export interface NodeKey {
  readonly node: string
  readonly key: KeyObject
}

/** Encrypts secrets, as SecretTable writes them. */
export function sealBundle(
  about: Omit<BundleHead, "version">,
  secrets: Uint8Array,
  nodes: readonly NodeKey[],
): Bundle {
  const head = JSON.stringify({ version: 1, ...about } satisfies BundleHead)
  const contentKey = allocateSecret(KEY_SIZE)
  let key: Buffer | undefined
  try {
    contentKey.set(randomBytes(KEY_SIZE))
    key = sealingKey(contentKey, head)
    const nonce = randomBytes(NONCE_SIZE)
    const cipher = createCipheriv(CIPHER, key, nonce).setAAD(Buffer.from(head))
    const sealed = Buffer.concat([nonce, cipher.update(secrets), cipher.final(), cipher.getAuthTag()])
    return {
      ...{ version: 1, head, sealed: sealed.toString("base64") },
      nodes: nodes.map(({ node, key: publicKey }) => ({
        ...{ node, fingerprint: keyFingerprint(publicKey) },
        key: wrapSecret(publicKey, contentKey).toString("base64"),
      })),
    }
  } finally {
    contentKey.fill(0)
    key?.fill(0)
  }
}

/**
 * Opens what {@link sealBundle} made.
 *
 * @returns What SecretTable reads, which the caller wipes; undefined: it is for another key, or is not as it was made.
 */
export function openBundle(
  { head, sealed, key: wrapped }: BundlePart,
  privateKey: KeyObject,
): Buffer | undefined {
  const bytes = Buffer.from(sealed, "base64")
  if (bytes.length < NONCE_SIZE + TAG_SIZE || bytes.length > MAX_SECRETS + NONCE_SIZE + TAG_SIZE)
    return undefined
  const contentKey = unwrapSecret(privateKey, Buffer.from(wrapped, "base64"))
  let key: Buffer | undefined
  try {
    if (contentKey?.length !== KEY_SIZE) return undefined
    key = sealingKey(contentKey, head)
    const decipher = createDecipheriv(CIPHER, key, bytes.subarray(0, NONCE_SIZE), { authTagLength: TAG_SIZE })
    decipher.setAAD(Buffer.from(head)).setAuthTag(bytes.subarray(-TAG_SIZE))
    return decipherSecret(decipher, bytes.subarray(NONCE_SIZE, -TAG_SIZE))
  } catch {
    return undefined
  } finally {
    contentKey?.fill(0)
    key?.fill(0)
  }
}

function refused(file: string, why: string, cause?: unknown): BatchError {
  return new BatchError("ERR_BATCH_KEY", `${file}: ${why}`, { path: file, cause })
}

/**
 * The certificates of nodes: files NODE.pem or NODE.cer in a folder that nobody else may write to.
 *
 * @returns Of these nodes, the ones that have one.
 * @throws BatchError `ERR_BATCH_KEY`; KeyError.
 */
export async function nodeCertificates(folder: string, nodes: readonly string[]): Promise<NodeKey[]> {
  const names = new Set(
    await readdir(folder).catch((cause: unknown) => {
      throw refused(folder, `the certificates of nodes cannot be read: ${(cause as Error).message}`, cause)
    }),
  )
  const now = new Date()
  const found: NodeKey[] = []
  for (const node of nodes) {
    const name = [`${node}.pem`, `${node}.cer`].find((one) => names.has(one))
    if (name === undefined) continue
    const file = path.join(folder, name)
    if (!(await isHeld(file))) throw refused(file, "others may put another certificate there")
    const bytes = await readBounded(file, MAX_CERTIFICATE_SIZE).catch((cause: unknown) => {
      throw refused(file, (cause as Error).message, cause)
    })
    const { certificate, key } = await parseRecipientCertificate(bytes, file)
    const { notBefore, notAfter } = parseCertificate(certificate, file)
    if (now < notBefore || now > notAfter)
      throw refused(
        file,
        `the certificate is valid from ${notBefore.toISOString()} to ${notAfter.toISOString()}`,
      )
    found.push({ node, key })
  }
  return found
}
