// What a signature covers: digests over the image's identity, over descriptors and over data.
import { createHash, type Hash } from "node:crypto"
import { read } from "node:fs"
import { promisify } from "node:util"
import { SignatureError } from "../errors.ts"
import type { SifObject } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { accumulated, type Bytes, type OnProgress } from "../units.ts"

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

/** SHA-256, as every writer of signatures has it. */
export function sha256Text(bytes: Buffer): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`
}

const PIECE: Bytes = 1 << 18
const readAt = promisify(read)

/** Reads objects' data, a piece ahead of whoever hashes it, into the same two buffers again and again. */
class Pieces {
  readonly #image: SifImage
  readonly #buffers: readonly [Buffer, Buffer] = [Buffer.alloc(PIECE), Buffer.alloc(PIECE)]

  constructor(image: SifImage) {
    this.#image = image
  }

  async *of(object: SifObject): AsyncGenerator<Buffer, void, undefined> {
    let turn = 0
    const next = (at: Bytes): Promise<Buffer> | undefined => {
      if (at >= object.size) return undefined
      const reading = this.#read(object, at, this.#buffers[turn === 0 ? 0 : 1])
      turn = 1 - turn
      reading.catch(() => undefined) // whoever takes the piece hears of it
      return reading
    }
    for (let at = 0, coming = next(0); coming !== undefined;) {
      const piece = await coming
      at += piece.length
      coming = next(at)
      yield piece
    }
  }

  async #read(object: SifObject, at: Bytes, buffer: Buffer): Promise<Buffer> {
    const wanted = Math.min(PIECE, object.size - at)
    const { fd } = this.#image.reader
    if (fd === undefined) return await this.#image.read(object, at, wanted)
    const { bytesRead } = await readAt(fd, buffer, 0, wanted, object.offset + at)
    // Fewer only at the end of the file, and there it is an error that read() knows.
    return bytesRead > 0 ? buffer.subarray(0, bytesRead) : await this.#image.read(object, at, wanted)
  }
}

interface Wanted {
  readonly objects: readonly SifObject[]
  readonly hash: Hash
  value: Buffer | undefined
}

/** Digests of objects' data. What is wanted is collected first, so that each object is read once for all of them. */
export class ObjectDigests {
  readonly #image: SifImage
  readonly #signal: AbortSignal | undefined
  readonly #onProgress: OnProgress | undefined
  readonly #wanted = new Map<string, Wanted>()

  constructor(image: SifImage, signal?: AbortSignal, onProgress?: OnProgress) {
    this.#image = image
    this.#signal = signal
    this.#onProgress = onProgress && accumulated(onProgress)
  }

  /** @param objects - In the order of their slots; of several, the digest is over all their data, one after the other. */
  want(objects: readonly SifObject[], algorithm: string): void {
    const key = keyOf(objects, algorithm)
    if (!this.#wanted.has(key))
      this.#wanted.set(key, { objects, hash: createHash(algorithm), value: undefined })
  }

  /** Reads what is wanted. */
  async compute(): Promise<void> {
    const open = [...this.#wanted.values()].filter(({ value }) => value === undefined)
    const hashesOf = new Map<SifObject, Hash[]>()
    for (const { objects, hash } of open)
      for (const object of objects) {
        const hashes = hashesOf.get(object)
        if (hashes === undefined) hashesOf.set(object, [hash])
        else hashes.push(hash)
      }
    const pieces = new Pieces(this.#image)
    const read = this.#image.objects.flatMap((object) => {
      const hashes = hashesOf.get(object)
      return hashes === undefined ? [] : [{ object, hashes }]
    })
    const total = read.reduce((sum, { object }) => sum + object.size, 0)
    let bytes = 0
    for (const { object, hashes } of read) {
      for await (const piece of pieces.of(object)) {
        this.#signal?.throwIfAborted()
        for (const hash of hashes) hash.update(piece)
        bytes += piece.length
        this.#onProgress?.(bytes, total)
      }
    }
    for (const wanted of open) wanted.value = wanted.hash.digest()
  }

  /** One that was wanted and is computed. */
  value(objects: readonly SifObject[], algorithm: string): Buffer {
    const value = this.#wanted.get(keyOf(objects, algorithm))?.value
    if (value === undefined) throw new Error("the digest was not computed")
    return value
  }

  /** Does the digest fit the objects' data? */
  fits(objects: readonly SifObject[], digest: Digest): boolean {
    return this.value(objects, digest.algorithm).equals(digest.value)
  }
}

function keyOf(objects: readonly SifObject[], algorithm: string): string {
  return `${algorithm} ${objects.map(({ slot }) => slot).join(" ")}`
}
