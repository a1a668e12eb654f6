// Digests as image manifests write them: parsed whole before they name a file or a URL.
import { createHash, timingSafeEqual, type Hash } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import { OciError } from "../errors.ts"
import type { Bytes } from "../units.ts"

/** A digest of an algorithm that is known. */
export interface Digest {
  readonly algorithm: "sha256" | "sha512"
  /** Lower-case hexadecimal. */
  readonly hex: string
  /** `sha256:…` */
  readonly text: string
  readonly bytes: Buffer
}

const lengths: Readonly<Record<Digest["algorithm"], number>> = { sha256: 64, sha512: 128 }

/**
 * @param what - Whose digest, for the message.
 * @throws OciError `ERR_OCI_FORMAT`, `ERR_OCI_UNSUPPORTED` for another algorithm.
 */
export function parseDigest(text: unknown, what: string): Digest {
  const match =
    typeof text === "string" ? /^([a-z0-9]+(?:[.+_-][a-z0-9]+)*):([A-Za-z0-9=_-]+)$/.exec(text) : null
  if (match === null) throw new OciError("ERR_OCI_FORMAT", `${what}: ${JSON.stringify(text)} is no digest`)
  const [, algorithm = "", hex = ""] = match
  if (algorithm !== "sha256" && algorithm !== "sha512")
    throw new OciError(
      "ERR_OCI_UNSUPPORTED",
      `${what}: digests by ${algorithm} are not known (sha256 and sha512 are)`,
    )
  if (hex.length !== lengths[algorithm] || !/^[0-9a-f]+$/.test(hex))
    throw new OciError("ERR_OCI_FORMAT", `${what}: ${JSON.stringify(text)} is no digest`)
  return { algorithm, hex, text: `${algorithm}:${hex}`, bytes: Buffer.from(hex, "hex") }
}

export function digestOf(bytes: Uint8Array): Digest {
  const hex = createHash("sha256").update(bytes).digest("hex")
  return { algorithm: "sha256", hex, text: `sha256:${hex}`, bytes: Buffer.from(hex, "hex") }
}

/** A hash for what a digest is of. */
export function hashFor(digest: Digest): Hash {
  return createHash(digest.algorithm)
}

export function wrongContent(digest: Digest, what: string): OciError {
  return new OciError("ERR_OCI_DIGEST", `${what}: its content is not what ${digest.text} says`)
}

/** @throws OciError `ERR_OCI_DIGEST`. */
export function checkDigest(hash: Hash, digest: Digest, what: string): void {
  if (!timingSafeEqual(hash.digest(), digest.bytes)) throw wrongContent(digest, what)
}

/**
 * Checks what was read at once.
 *
 * @throws OciError `ERR_OCI_DIGEST`.
 */
export function checkBytes(bytes: Buffer, digest: Digest, size: Bytes | undefined, what: string): void {
  if (size !== undefined && bytes.length !== size)
    throw new OciError("ERR_OCI_DIGEST", `${what}: ${bytes.length} bytes where ${size} are promised`)
  checkDigest(hashFor(digest).update(bytes), digest, what)
}

const PIECE: Bytes = 1 << 20

/** Is it the content of a file, all of it? */
export async function contentFits(file: FileHandle, digest: Digest, size: Bytes): Promise<boolean> {
  const info = await file.stat()
  if (!info.isFile() || info.size !== size) return false
  const hash = hashFor(digest)
  const piece = Buffer.allocUnsafe(PIECE)
  for (let at = 0; ;) {
    const { bytesRead } = await file.read(piece, 0, piece.length, at)
    if (bytesRead === 0) return hash.digest().equals(digest.bytes)
    hash.update(piece.subarray(0, bytesRead))
    at += bytesRead
  }
}
