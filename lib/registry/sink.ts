// A repository at a registry that images are added to. What it has is not sent, and what it has got of a blob is not sent
// again, as far as it will tell.
import { OciError } from "../errors.ts"
import { parseDigest } from "../oci/digest.ts"
import type { Descriptor } from "../oci/manifest.ts"
import type { RegistryReference } from "../oci/reference.ts"
import type { Document, ImageSink, VerifiedBlob } from "../oci/sink.ts"
import type { Bytes } from "../units.ts"
import { RegistryClient, type ClientOptions } from "./client.ts"
import { isBusy, MAX_TRIES, nextPlace, replyError, retryAfter, Tries, type Reply } from "./http.ts"

export interface RegistrySinkOptions extends ClientOptions {
  /** Send blobs in requests of so many bytes, for what lies between and takes no larger ones. Default: one request for each. */
  readonly chunkSize?: Bytes | undefined
}

/** A blob that is under way. */
interface Upload {
  /** Where the next request goes; the registry changes it with every answer. */
  place: URL
  /** So much is there. */
  have: Bytes
  /** Has it been taken up again after a break? */
  resumed: boolean
  readonly leastChunk: Bytes
}

/** Why a try ended. */
interface Break {
  /** Before the next one. */
  readonly waitMs: number
  /** Nothing more can be added to it. */
  readonly isLost: boolean
}

/** How much is there, by `Range: 0-LAST`, or of the last part alone; undefined: it does not say. */
function received(reply: Reply): Bytes | undefined {
  const last = /^(?:bytes=)?\d{1,15}-(\d{1,15})$/.exec(reply.headers.range ?? "")?.[1]
  return last === undefined ? undefined : Number(last) + 1
}

/** A blob's bytes in parts, one after the other. */
class Parts {
  readonly #pieces: AsyncGenerator<Buffer, void, undefined>
  #rest: Buffer = Buffer.alloc(0)

  constructor(blob: VerifiedBlob) {
    this.#pieces = blob.read()
  }

  async *next(size: Bytes): AsyncGenerator<Buffer, void, undefined> {
    for (let left = size; left > 0;) {
      if (this.#rest.length === 0) {
        const { value, done } = await this.#pieces.next()
        if (done === true) return
        this.#rest = value
      }
      const piece = this.#rest.subarray(0, left)
      this.#rest = this.#rest.subarray(piece.length)
      left -= piece.length
      yield piece
    }
  }

  async close(): Promise<void> {
    await this.#pieces.return()
  }
}

class RegistrySink implements ImageSink {
  readonly name: string
  readonly #client: RegistryClient
  readonly #chunkSize: Bytes

  constructor(client: RegistryClient, { chunkSize = Infinity }: RegistrySinkOptions) {
    this.name = client.reference.text
    this.#client = client
    this.#chunkSize = chunkSize
  }

  /** What the registry says that it has has to be what was meant. */
  #checkAnnounced(reply: Reply, { digest }: Descriptor): void {
    const announced = reply.headers["docker-content-digest"]
    if (typeof announced !== "string") return
    const found = parseDigest(announced, this.name)
    if (found.algorithm === digest.algorithm && found.text !== digest.text)
      throw new OciError("ERR_OCI_DIGEST", `${this.name}: what is ${digest.text} is ${found.text} there`)
  }

  async has(blob: Descriptor): Promise<boolean> {
    const reply = await this.#client.request(this.#client.url(`blobs/${blob.digest.text}`), {
      method: "HEAD",
    })
    reply.resume()
    const refused = reply.statusCode === 401 || reply.statusCode === 403
    // Where blobs lie one may not be allowed to ask.
    if (refused && !this.#client.isFromElsewhere(reply)) throw await replyError(reply, this.name)
    if (reply.statusCode !== 200) return false
    this.#checkAnnounced(reply, blob)
    const size = reply.headers["content-length"]
    return size === undefined || size === String(blob.size)
  }

  /** undefined: there is nothing to send, the registry has taken it from another of its repositories. */
  async #start({ descriptor, origin }: VerifiedBlob, mayMount: boolean): Promise<Upload | undefined> {
    const url = this.#client.url("blobs/uploads/")
    const { host, repository } = this.#client.reference
    let reply: Reply | undefined
    if (mayMount && origin?.host === host && origin.repository !== repository) {
      const from = new URL(url)
      from.search = `?mount=${descriptor.digest.text}&from=${origin.repository}`
      reply = await this.#client.request(from, { method: "POST", body: "" })
      if (reply.statusCode === 201) {
        reply.resume()
        this.#checkAnnounced(reply, descriptor)
        return undefined
      }
      // There may be no right to read there; then it is sent.
      if (reply.statusCode !== 202) {
        reply.destroy()
        reply = undefined
      }
    }
    reply ??= await this.#client.request(url, { method: "POST", body: "" })
    if (reply.statusCode !== 202) throw await replyError(reply, this.name)
    reply.resume()
    const place = this.#placeOf(reply, url)
    if (place === undefined)
      throw new OciError("ERR_OCI_REGISTRY", `${this.name}: it does not say where blobs are sent to`)
    const least = Number(reply.headers["oci-chunk-min-length"] ?? 0)
    return { place, have: 0, resumed: false, leastChunk: Number.isSafeInteger(least) ? least : 0 }
  }

  #placeOf(reply: Reply, from: URL): URL | undefined {
    const { location } = reply.headers
    return location === undefined ? undefined : nextPlace(from, location)
  }

  /** Why it cannot go on; an answer that does not let it is thrown. */
  async #broken(reply: Reply | undefined, upload: Upload): Promise<Break> {
    if (reply === undefined) return { waitMs: 0, isLost: false }
    if (isBusy(reply)) {
      reply.destroy()
      return { waitMs: retryAfter(reply), isLost: false }
    }
    const status = reply.statusCode ?? 0
    // What came is not what comes now: it is asked for how much that is.
    if (status === 416) {
      reply.destroy()
      return { waitMs: 0, isLost: false }
    }
    // It knows nothing of it any more, or of another one than was meant.
    if (status === 404 || (status === 400 && upload.resumed)) {
      reply.destroy()
      return { waitMs: 0, isLost: true }
    }
    const error = await replyError(reply, this.name)
    reply.destroy()
    throw error
  }

  /** Sends what is missing, and finishes. undefined: the blob is there. */
  async #send(blob: VerifiedBlob, upload: Upload): Promise<Break | undefined> {
    const { digest, size } = blob.descriptor
    const parts = new Parts(blob)
    try {
      // What is there is read for the digest of all.
      // eslint-disable-next-line @typescript-eslint/no-unused-vars
      for await (const _ of parts.next(upload.have));
      while (upload.have < size) {
        const rest = size - upload.have
        const length = Math.min(rest, Math.max(this.#chunkSize, upload.leastChunk))
        const end = upload.have + length
        const reply = await this.#client.upload(upload.place, {
          method: "PATCH",
          headers: {
            "content-type": "application/octet-stream",
            ...(length < size ? { "content-range": `${upload.have}-${end - 1}` } : {}),
          },
          size: length,
          body: parts.next(length),
        })
        if (reply?.statusCode !== 202) return await this.#broken(reply, upload)
        reply.resume()
        upload.place = this.#placeOf(reply, upload.place) ?? upload.place
        const have = received(reply) ?? end
        if (have > end)
          throw new OciError(
            "ERR_OCI_REGISTRY",
            `${this.name}: ${digest.text}: ${end} bytes were sent, and the registry has ${have}`,
          )
        if (have < end) return { waitMs: 0, isLost: false }
        upload.have = end
      }
      return await this.#commit(blob.descriptor, upload)
    } finally {
      await parts.close()
    }
  }

  async #commit(descriptor: Descriptor, upload: Upload): Promise<Break | undefined> {
    const place = new URL(upload.place)
    // The registry's own text stays as it is.
    place.search += `${place.search === "" ? "?" : "&"}digest=${encodeURIComponent(descriptor.digest.text)}`
    const reply = await this.#client.request(place, { method: "PUT", body: "" })
    if (reply.statusCode !== 201) return await this.#broken(reply, upload)
    reply.resume()
    this.#checkAnnounced(reply, descriptor)
    return undefined
  }

  /** Where it broke, as the registry sees it; undefined: from the start. */
  async #resume(upload: Upload): Promise<Upload | undefined> {
    const reply = await this.#client.request(upload.place)
    reply.resume()
    const have = received(reply)
    // "0-0" stands for nothing as well as for one byte.
    if (reply.statusCode !== 204 || have === undefined || have === 1) return undefined
    return { ...upload, place: this.#placeOf(reply, upload.place) ?? upload.place, have, resumed: true }
  }

  async write(blob: VerifiedBlob): Promise<void> {
    const { digest, size } = blob.descriptor
    let upload = await this.#start(blob, true)
    const breaks = new Tries(size, 0)
    while (upload !== undefined) {
      const broken = await this.#send(blob, upload)
      if (broken === undefined) return
      const tries = breaks.broken(upload.have)
      if (tries === MAX_TRIES)
        throw new OciError(
          "ERR_OCI_REGISTRY",
          `${this.name}: ${digest.text}: sending it broke off ${tries} times, the last time after ${upload.have} of ${size} bytes`,
        )
      await this.#client.pause(tries, broken.waitMs)
      // What was lost may have been the answer to the last step.
      if (upload.have === size && (await this.has(blob.descriptor))) return
      upload = broken.isLost ? undefined : await this.#resume(upload)
      if (upload !== undefined && upload.have > size) upload = undefined
      upload ??= await this.#start(blob, false)
    }
  }

  async #putManifest({ descriptor, bytes }: Document, reference: string): Promise<void> {
    const reply = await this.#client.request(this.#client.url(`manifests/${reference}`), {
      method: "PUT",
      headers: { "content-type": descriptor.mediaType },
      body: bytes,
    })
    if (reply.statusCode !== 201) throw await replyError(reply, this.name)
    reply.resume()
    this.#checkAnnounced(reply, descriptor)
  }

  async put(document: Document): Promise<void> {
    await this.#putManifest(document, document.descriptor.digest.text)
  }

  async finish(document: Document, name: string | undefined): Promise<void> {
    await this.#putManifest(document, name ?? document.descriptor.digest.text)
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- as a folder does it
  async [Symbol.asyncDispose](): Promise<void> {
    this.#client[Symbol.dispose]()
  }
}

/**
 * Opens a repository to add images to it.
 *
 * @throws OciError `ERR_OCI_REGISTRY`.
 */
export async function openRegistrySink(
  reference: RegistryReference,
  options: RegistrySinkOptions = {},
): Promise<ImageSink> {
  const { chunkSize = Infinity } = options
  if (!(chunkSize >= 1)) throw new RangeError(`chunkSize is ${chunkSize}`)
  const client = await RegistryClient.open(reference, options, "pull,push")
  options.onNotice?.(`${reference.text} goes to ${client.origin}`)
  return new RegistrySink(client, options)
}
