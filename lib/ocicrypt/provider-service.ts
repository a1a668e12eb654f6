// One call of a key provider that is a service: gRPC, which is a message in a frame over HTTP/2 (gRPC over HTTP2, PROTOCOL-HTTP2.md).
import type { ClientHttp2Session, ClientHttp2Stream, IncomingHttpHeaders } from "node:http2"
import { connect as netConnect } from "node:net"
import type { SecureContextOptions } from "node:tls"
import { readBounded } from "../bounded-file.ts"
import { ProgramFailure } from "../outside-program.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import { fieldHead, ProtobufError, readFields } from "./protobuf.ts"
import type { ProviderEntry, ServiceTls } from "./provider-config.ts"

const SERVICE = "/keyprovider.KeyProviderService/"
/** Of the one field that both messages have. */
const JSON_FIELD = 1
const MAX_PEM: Bytes = 1 << 20
const MAX_TOLD = 200

export type ServiceEntry = Exclude<ProviderEntry, { readonly path: string }>

/** How a service is called. */
export interface CallOptions {
  readonly limit: Bytes
  readonly timeoutMs: Milliseconds
  readonly signal?: AbortSignal | undefined
}

async function tlsOptions({ rootCaFile, certFile, keyFile }: ServiceTls): Promise<SecureContextOptions> {
  const read = async (file: string | undefined): Promise<Buffer | undefined> => {
    try {
      return file === undefined ? undefined : await readBounded(file, MAX_PEM)
    } catch (cause) {
      throw new ProgramFailure(`needs ${file ?? ""}: ${(cause as Error).message}`, { cause })
    }
  }
  return { ca: await read(rootCaFile), cert: await read(certFile), key: await read(keyFile) }
}

async function openSession(entry: ServiceEntry): Promise<ClientHttp2Session> {
  const { connect } = await import("node:http2")
  // What a service may make this process keep.
  const settings = { maxSessionMemory: 10, settings: { enablePush: false } }
  if ("socket" in entry)
    return connect("http://localhost", { ...settings, createConnection: () => netConnect(entry.socket) })
  const { host, port, tls } = entry
  const authority = `${host.includes(":") ? `[${host}]` : host}:${port}`
  if (tls === undefined) return connect(`http://${authority}`, settings)
  const name = tls.serverName === undefined ? {} : { servername: tls.serverName }
  return connect(`https://${authority}`, {
    ...settings,
    ...(await tlsOptions(tls)),
    ...name,
    rejectUnauthorized: true,
  })
}

/** The one message of an answer. */
function messageOf(frames: Buffer): Buffer {
  const size = frames.length < 5 ? -1 : frames.readUInt32BE(1)
  if (frames[0] !== 0 || frames.length !== 5 + size)
    throw new ProgramFailure("gave an answer that is no message of gRPC")
  try {
    return readFields(frames.subarray(5)).get(JSON_FIELD) ?? Buffer.alloc(0)
  } catch (cause) {
    if (!(cause instanceof ProtobufError)) throw cause
    throw new ProgramFailure(`gave an answer that is no Protocol Buffers: ${cause.message}`, { cause })
  }
}

function told(headers: IncomingHttpHeaders): string {
  const text = String(headers["grpc-message"] ?? "").slice(0, MAX_TOLD)
  try {
    return text === "" ? "" : `: ${decodeURIComponent(text)}`
  } catch {
    return `: ${text}`
  }
}

async function exchange(
  stream: ClientHttp2Stream,
  session: ClientHttp2Session,
  frame: Buffer,
  limit: Bytes,
): Promise<Buffer> {
  const chunks: Buffer[] = []
  let size = 0
  let headers: IncomingHttpHeaders = {}
  const failed = new Promise<never>((_, reject) => {
    session.once("error", reject)
  })
  const done = new Promise<void>((resolve, reject) => {
    stream.on("response", (given) => {
      headers = { ...headers, ...given }
    })
    stream.on("trailers", (given: IncomingHttpHeaders) => {
      headers = { ...headers, ...given }
    })
    stream.on("data", (chunk: Buffer) => {
      chunks.push(chunk)
      size += chunk.length
      if (size > limit) reject(new ProgramFailure(`gave more than ${limit} bytes`))
    })
    stream.once("error", reject)
    stream.once("close", resolve)
  })
  stream.end(frame)
  try {
    await Promise.race([done, failed])
    const { ":status": status, "grpc-status": outcome } = headers
    if (Number(status) !== 200)
      throw new ProgramFailure(
        status === undefined ? "gave no answer" : `answers with HTTP status ${String(status)}`,
      )
    if (outcome !== "0")
      throw new ProgramFailure(`refuses, with gRPC status ${String(outcome ?? "none")}${told(headers)}`)
    // A copy, so that its parts can be wiped.
    return Buffer.from(messageOf(Buffer.concat(chunks)))
  } finally {
    for (const chunk of chunks) chunk.fill(0)
  }
}

/**
 * Calls a service once.
 *
 * @returns The JSON of its answer, which the caller wipes.
 * @throws {@link ProgramFailure}; the signal's reason.
 */
export async function callService(
  entry: ServiceEntry,
  operation: "WrapKey" | "UnWrapKey",
  input: Buffer,
  { limit, timeoutMs, signal }: CallOptions,
): Promise<Buffer> {
  signal?.throwIfAborted()
  const session = await openSession(entry)
  const head = fieldHead(JSON_FIELD, input.length)
  const frame = Buffer.alloc(5 + head.length + input.length)
  frame.writeUInt32BE(head.length + input.length, 1)
  head.copy(frame, 5)
  input.copy(frame, 5 + head.length)
  const deadline = AbortSignal.timeout(timeoutMs)
  const ended = AbortSignal.any([deadline, ...(signal === undefined ? [] : [signal])])
  const stop = (): void => {
    session.destroy(ended.reason as Error)
  }
  ended.addEventListener("abort", stop, { once: true })
  try {
    // While it was being opened nobody listened.
    signal?.throwIfAborted()
    const stream = session.request({
      ":method": "POST",
      ":path": `${SERVICE}${operation}`,
      te: "trailers",
      "content-type": "application/grpc",
      "grpc-timeout": `${timeoutMs}m`,
    })
    return await exchange(stream, session, frame, limit)
  } catch (cause) {
    signal?.throwIfAborted()
    if (deadline.aborted) throw new ProgramFailure(`gave no answer within ${timeoutMs / 1000} s`, { cause })
    if (cause instanceof ProgramFailure) throw cause
    throw new ProgramFailure(`cannot be reached: ${(cause as Error).message}`, { cause })
  } finally {
    ended.removeEventListener("abort", stop)
    session.on("error", () => undefined)
    session.destroy()
    frame.fill(0)
  }
}
