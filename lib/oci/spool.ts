// Archives are read here and there, which a pipe does not let anybody do, and in what is compressed costs all that stands before.
import { constants, createReadStream } from "node:fs"
import { open } from "node:fs/promises"
import type { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import { createGunzip } from "node:zlib"
import { madeOf } from "../disposal.ts"
import { OciError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import { TemporaryFile } from "./temporary-file.ts"

/** RFC 1952. */
const GZIP = Buffer.from("1f8b", "hex")

/** Where an archive is kept meanwhile. */
export interface SpoolOptions {
  readonly folder: string
  /** Of its bytes, uncompressed. */
  readonly limit: Bytes
  readonly signal?: AbortSignal | undefined
}

/** With the bytes that were looked at back in their place. */
async function* whole(head: Buffer, rest: AsyncIterator<Buffer>): AsyncGenerator<Buffer> {
  yield head
  for (let next = await rest.next(); next.done !== true; next = await rest.next()) yield next.value
}

async function fill(
  file: TemporaryFile,
  input: Readable,
  name: string,
  options: SpoolOptions,
): Promise<void> {
  const { limit, signal } = options
  const rest = (input as AsyncIterable<Buffer>)[Symbol.asyncIterator]()
  let head = Buffer.alloc(0)
  try {
    while (head.length < GZIP.length) {
      const next = await rest.next()
      if (next.done === true) break
      head = Buffer.concat([head, next.value])
    }
    const isCompressed = head.subarray(0, GZIP.length).equals(GZIP)
    let size: Bytes = 0
    const write = async (pieces: AsyncIterable<Buffer>): Promise<void> => {
      for await (const piece of pieces) {
        if (size + piece.length > limit)
          throw OciError.at(name, "ERR_OCI_LIMIT", `it has more than ${limit} bytes`, { limit: "layers" })
        await file.write(piece, size)
        size += piece.length
      }
    }
    const aborting = signal === undefined ? {} : { signal }
    if (isCompressed) await pipeline(whole(head, rest), createGunzip({ chunkSize: 1 << 20 }), write, aborting)
    else await pipeline(whole(head, rest), write, aborting)
  } catch (cause) {
    signal?.throwIfAborted()
    if ((cause as NodeJS.ErrnoException).code?.startsWith("Z_") !== true) throw cause
    const why = (cause as Error).message
    throw OciError.at(name, "ERR_OCI_FORMAT", `it is damaged: ${why}`, { cause })
  } finally {
    await rest.return?.()
  }
}

async function isCompressed(name: string): Promise<boolean> {
  // Not waiting for the writer of a fifo; who reads the archive says what is wrong with it.
  const file = await open(name, constants.O_RDONLY | constants.O_NONBLOCK).catch(() => undefined)
  if (file === undefined) return false
  try {
    if (!(await file.stat()).isFile()) return false
    const head = Buffer.alloc(GZIP.length)
    await file.read(head, 0, head.length, 0)
    return head.equals(GZIP)
  } finally {
    await file.close()
  }
}

/**
 * An archive as a file that is not compressed and has no name.
 *
 * @param input - A path, or the archive itself.
 * @returns undefined: the file at the path is such a one, as far as can be known here.
 * @throws OciError `ERR_OCI_LIMIT`, `ERR_OCI_FORMAT`; the signal's reason.
 */
export async function spoolArchive(
  input: string | Readable,
  name: string,
  options: SpoolOptions,
): Promise<TemporaryFile | undefined> {
  if (typeof input === "string" && !(await isCompressed(input))) return undefined
  const spooled = await TemporaryFile.create(options.folder)
  return await madeOf(spooled, async () => {
    await spooled.unlink()
    const stream = typeof input === "string" ? createReadStream(input, { highWaterMark: 1 << 20 }) : input
    await fill(spooled, stream, name, options)
    return spooled
  })
}
