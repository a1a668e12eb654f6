// What a signature covers: digests over the image's identity, over descriptors and over data.
import { createHash, type Hash } from "node:crypto"
import { SignatureError } from "../errors.ts"
import type { SifObject } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"

/** Algorithms by their name in the metadata; weaker ones, and ones nobody knows, are refused (CVE-2022-39237). */
const algorithms: Readonly<Record<string, { readonly name: string; readonly size: Bytes }>> = {
  sha224: { name: "sha224", size: 28 },
  sha256: { name: "sha256", size: 32 },
  sha384: { name: "sha384", size: 48 },
  sha512: { name: "sha512", size: 64 },
  sha512_224: { name: "sha512-224", size: 28 },
  sha512_256: { name: "sha512-256", size: 32 },
}

/** A digest as the metadata states it. */
export interface Digest {
  /** In node:crypto's words. */
  readonly algorithm: string
  readonly value: Buffer
}

/** Reads `sha256:…`; the hexadecimal digits may be in upper case. */
export function parseDigest(text: string): Digest {
  const [, name = "", hex = ""] = /^([a-z0-9_]{1,16}):([0-9a-fA-F]{2,128})$/.exec(text) ?? []
  const algorithm = Object.hasOwn(algorithms, name) ? algorithms[name] : undefined
  if (algorithm === undefined || hex.length !== algorithm.size * 2)
    throw new SignatureError("ERR_SIGNATURE_FORMAT", "the signed metadata has a digest that is not accepted")
  return { algorithm: algorithm.name, value: Buffer.from(hex, "hex") }
}

const LAUNCH_SCRIPT_SIZE = 32
const MAGIC_AND_VERSION_END = 45
const ID_AT = 48
const ID_END = 64

/** The part of the global header that is signed, 61 bytes: launch script, magic, version, image ID. */
export function headerStream(header: Buffer): Buffer {
  return Buffer.concat([
    header.subarray(0, LAUNCH_SCRIPT_SIZE),
    header.subarray(LAUNCH_SCRIPT_SIZE, MAGIC_AND_VERSION_END),
    header.subarray(ID_AT, ID_END),
  ])
}

/**
 * The part of a descriptor that is signed, 557 bytes: type, used, ID relative to the group's lowest, link, size, time of
 * creation, owner, name, extra. Place, group and time of the last change are not.
 */
export function descriptorStream(record: Buffer, relativeId: number): Buffer {
  const id = Buffer.alloc(5)
  id[0] = 1 // used
  id.writeUInt32LE(relativeId, 1)
  return Buffer.concat([
    record.subarray(0, 4), // data type
    id,
    record.subarray(13, 17), // link
    record.subarray(25, 33), // size
    record.subarray(41, 49), // created
    record.subarray(57, 73), // uid, gid
    record.subarray(73), // name, extra
  ])
}

function digestOf(bytes: Buffer, { algorithm }: Digest): Buffer {
  return createHash(algorithm).update(bytes).digest()
}

/** Does the digest fit these bytes? */
export function fits(bytes: Buffer, digest: Digest): boolean {
  return digestOf(bytes, digest).equals(digest.value)
}

const PIECE: Bytes = 1 << 20

/** Digests of objects' data, each computed once for every algorithm however many signatures state it. */
export class ObjectDigests {
  readonly #image: SifImage
  readonly #signal: AbortSignal | undefined
  readonly #onProgress: ((bytes: Bytes) => void) | undefined
  readonly #known = new Map<string, Promise<Buffer>>()
  #bytes: Bytes = 0

  constructor(image: SifImage, signal?: AbortSignal, onProgress?: (bytes: Bytes) => void) {
    this.#image = image
    this.#signal = signal
    this.#onProgress = onProgress
  }

  /** Does the digest fit the object's data? */
  async fits(object: SifObject, digest: Digest): Promise<boolean> {
    const key = `${object.id} ${digest.algorithm}`
    let value = this.#known.get(key)
    if (value === undefined) this.#known.set(key, (value = this.#compute(object, digest.algorithm)))
    return (await value).equals(digest.value)
  }

  async #compute(object: SifObject, algorithm: string): Promise<Buffer> {
    const hash: Hash = createHash(algorithm)
    const read = (at: Bytes): Promise<Buffer> | undefined =>
      at < object.size ? this.#image.read(object, at, Math.min(PIECE, object.size - at)) : undefined
    // The next piece is read while this one is hashed.
    for (let at = 0, next = read(0); next !== undefined;) {
      this.#signal?.throwIfAborted()
      const piece = await next
      at += piece.length
      next = read(at)
      next?.catch(() => undefined)
      hash.update(piece)
      this.#bytes += piece.length
      this.#onProgress?.(this.#bytes)
    }
    return hash.digest()
  }
}
