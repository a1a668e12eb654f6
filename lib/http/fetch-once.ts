// One request, bounded in time and size. Redirects are not followed: whoever is asked answers.
import type { Bytes } from "../units.ts"
import { Connections } from "./connections.ts"
import type { Environment } from "./proxy.ts"

/** What is asked. */
export interface HttpRequest {
  readonly url: URL
  readonly method: "GET" | "POST"
  readonly body?: Buffer
  readonly headers?: Readonly<Record<string, string>>
  /** More of an answer is an error. */
  readonly limit: Bytes
  /** Ends it, at any time. */
  readonly signal: AbortSignal
  /** For the variables that name proxies. */
  readonly env: Environment
}

/** What is answered. */
export interface HttpResponse {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: Buffer
}

/** Asks once. Throws whatever keeps it from being answered. */
export async function fetchOnce(asked: HttpRequest): Promise<HttpResponse> {
  const { url, limit, env, headers, ...request } = asked
  using connections = new Connections({ environment: env, keepAlive: false })
  const response = await connections.request(url, { ...request, headers: { accept: "*/*", ...headers } })
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > limit) throw new Error(`the answer has more than ${limit} bytes`)
    chunks.push(chunk)
  }
  return { status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) }
}
