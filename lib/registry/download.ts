// The bytes of something that a server has, whatever happens to the connection on the way.
import type { FileHandle } from "node:fs/promises"
import { OciError } from "../errors.ts"
import { checkDigest, hashFor, type Digest } from "../oci/digest.ts"
import { writeAll, writePieces } from "../oci/temporary-file.ts"
import type { Bytes } from "../units.ts"
import { MAX_TRIES, replyError, Tries, type Reply } from "./http.ts"

/** What is fetched. */
export interface Download {
  /** For messages. */
  readonly what: string
  readonly size: Bytes
  /** Asks for it, or for a part of it by `range`. */
  readonly request: (headers: Readonly<Record<string, string>>) => Promise<Reply>
  /** Before another try. */
  readonly pause: (tries: number) => Promise<void>
  readonly signal?: AbortSignal | undefined
}

const PIECE: Bytes = 1 << 20

/**
 * The bytes from `start` on; a connection that breaks is taken up where it broke.
 *
 * @throws OciError `ERR_OCI_REGISTRY`, `ERR_OCI_DIGEST` where there are more of them; the signal's reason.
 */
export async function* download(from: Download, start: Bytes): AsyncGenerator<Buffer, void, undefined> {
  const { what, size, request, pause, signal } = from
  let have = start
  // The network's pieces are small, and each costs a turn of the loop.
  let gathered: Buffer[] = []
  let used: Bytes = 0
  const gather = (): Buffer => {
    const piece = Buffer.concat(gathered, used)
    gathered = []
    used = 0
    return piece
  }
  let ranges = true
  const breaks = new Tries(size, have)
  while (have < size) {
    const reply = await request(have === 0 || !ranges ? {} : { range: `bytes=${have}-` })
    let skip = 0
    if (reply.statusCode === 206) {
      const from = /^bytes (\d+)-/.exec(reply.headers["content-range"] ?? "")?.[1]
      if (Number(from) !== have) {
        reply.destroy()
        throw new OciError(
          "ERR_OCI_REGISTRY",
          `${what}: asked from byte ${have} on, it sends from ${String(from)}`,
        )
      }
    } else if (reply.statusCode === 200) {
      // It does not know ranges: what is here already is passed by.
      skip = have
    } else if (reply.statusCode === 416 && ranges && have > 0) {
      // It knows them and not this one, which lies within the blob: all of it, then.
      reply.destroy()
      ranges = false
      continue
    } else {
      throw await replyError(reply, what)
    }
    try {
      for await (const piece of reply as AsyncIterable<Buffer>) {
        const fresh = piece.subarray(Math.min(skip, piece.length))
        skip -= piece.length - fresh.length
        if (fresh.length === 0) continue
        if (have + fresh.length > size)
          throw new OciError("ERR_OCI_DIGEST", `${what}: more than the ${size} bytes that are promised`)
        have += fresh.length
        gathered.push(fresh)
        used += fresh.length
        if (used >= PIECE) yield gather()
      }
      if (have === size) break
      throw Object.assign(new Error("the answer ended early"), { code: "ECONNRESET" })
    } catch (cause) {
      reply.destroy()
      signal?.throwIfAborted()
      const { code } = cause as NodeJS.ErrnoException
      const broken =
        code === "ECONNRESET" ||
        code === "ETIMEDOUT" ||
        code === "EPIPE" ||
        code === "ERR_STREAM_PREMATURE_CLOSE"
      if (!broken) throw cause
      const tries = breaks.broken(have)
      // What is here is for the next time.
      if (tries >= MAX_TRIES && used > 0) yield gather()
      if (tries >= MAX_TRIES)
        throw new OciError(
          "ERR_OCI_REGISTRY",
          `${what}: the connection broke ${tries} times, after ${have} of ${size} bytes`,
          { cause },
        )
      await pause(tries)
    }
  }
  if (used > 0) yield gather()
}

/**
 * Fills a file from where an earlier try has left it, and checks all of it.
 *
 * @param bytesFrom - What is to be written from there on.
 * @param advance - Hears how many bytes more are there; fewer where they turned out to be wrong.
 * @throws OciError `ERR_OCI_DIGEST`, and what `bytesFrom` throws.
 */
export async function fillFile(
  file: FileHandle,
  { digest, size, what }: { readonly digest: Digest; readonly size: Bytes; readonly what: string },
  bytesFrom: (start: Bytes) => AsyncIterable<Buffer>,
  advance: (bytes: Bytes) => void,
): Promise<void> {
  for (let tries = 0; ; tries++) {
    let have = (await file.stat()).size
    if (have > size || tries > 0) {
      await file.truncate(0)
      have = 0
    }
    const hash = hashFor(digest)
    const piece = Buffer.allocUnsafe(PIECE)
    for (let at = 0; at < have;) {
      const { bytesRead } = await file.read(piece, 0, Math.min(piece.length, have - at), at)
      hash.update(piece.subarray(0, bytesRead))
      at += bytesRead
    }
    advance(have)
    let position = have
    async function* counted(): AsyncGenerator<Buffer, void, undefined> {
      for await (const bytes of bytesFrom(have)) {
        hash.update(bytes)
        yield bytes
        position += bytes.length
        advance(bytes.length)
      }
    }
    try {
      await writePieces(counted(), (bytes, at) => writeAll(file, bytes, at), have)
      checkDigest(hash, digest, what)
      return
    } catch (error) {
      advance(-position)
      if (!(error instanceof OciError) || error.code !== "ERR_OCI_DIGEST") throw error
      // What was left may have been wrong; what came now is what there is.
      await file.truncate(0)
      if (have === 0) throw error
    }
  }
}
