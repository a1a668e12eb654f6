// A file on the web, by its address. Nobody says what it has to be but whoever asks for it.
import type { FileHandle } from "node:fs/promises"
import { callerEnvironment } from "../caller-environment.ts"
import { madeOf } from "../disposal.ts"
import { OciError } from "../errors.ts"
import type { Digest } from "../oci/digest.ts"
import type { Bytes } from "../units.ts"
import { certFolders, type ClientOptions } from "./client.ts"
import { download, fillFile, type Download } from "./download.ts"
import { HttpClient, replyError } from "./http.ts"

/** Is it the address of a file? */
export function isWebName(source: string): boolean {
  return /^https?:\/\//.test(source)
}

/** @throws OciError `ERR_OCI_REFERENCE`. */
function parseAddress(source: string): URL {
  const url = URL.canParse(source) ? new URL(source) : undefined
  if (url === undefined) throw new OciError("ERR_OCI_REFERENCE", `${source}: it is no address`)
  if (url.username !== "" || url.password !== "")
    throw new OciError(
      "ERR_OCI_REFERENCE",
      `${url.protocol}//${url.host}${url.pathname}: a password in an address is everybody's to read`,
    )
  url.hash = ""
  return url
}

/** Its size is known, and nothing of it is here yet. */
export class WebFile implements Disposable {
  /** Without what is behind a question mark, which may be secret. */
  readonly name: string
  readonly size: Bytes
  readonly #client: HttpClient
  readonly #download: Download

  private constructor(name: string, size: Bytes, client: HttpClient, from: Download) {
    this.name = name
    this.size = size
    this.#client = client
    this.#download = from
  }

  /**
   * Asks how long it is.
   *
   * @throws OciError `ERR_OCI_REFERENCE`, `ERR_OCI_REGISTRY`, `ERR_OCI_NOT_FOUND`; the signal's reason.
   */
  static async find(source: string, options: ClientOptions): Promise<WebFile> {
    const url = parseAddress(source)
    const name = `${url.origin}${url.pathname}`
    const { environment = callerEnvironment(), signal, onNotice } = options
    const client = new HttpClient({
      registry: url.host,
      ...{ environment, signal, retryDelayMs: options.retryDelayMs },
      ownCertFolder: options.certFolder,
      certFolders: certFolders(),
    })
    return await madeOf(client, async () => {
      onNotice?.(`${name} comes from ${url.origin}`)
      // Compressed on the way, it would have another length.
      const plain = { "accept-encoding": "identity" }
      // A server that gives a file need not answer HEAD.
      const reply = await client.request(url, { headers: { ...plain, range: "bytes=0-0" } })
      if (reply.statusCode !== 200 && reply.statusCode !== 206) throw await replyError(reply, name)
      reply.destroy()
      const { headers } = reply
      const told = reply.statusCode === 206 ? headers["content-range"] : headers["content-length"]
      const size = Number(/^(?:bytes 0-0\/)?(\d{1,15})$/.exec(told ?? "")?.[1])
      if (!Number.isSafeInteger(size))
        throw new OciError("ERR_OCI_REGISTRY", `${name}: the server does not say how long it is`)
      const { etag } = headers
      const same: Readonly<Record<string, string>> =
        etag?.startsWith('"') === true ? { "if-range": etag } : {}
      return new WebFile(name, size, client, {
        ...{ what: name, size, signal },
        request: (range) =>
          client.request(url, { headers: { ...plain, ...("range" in range ? { ...range, ...same } : {}) } }),
        pause: (tries) => client.pause(tries),
      })
    })
  }

  /** Its bytes, which nobody has looked at. */
  read(): AsyncIterable<Buffer> {
    return download(this.#download, 0)
  }

  /** Fills a file from where an earlier try has left it, and checks all of it. */
  async fill(file: FileHandle, digest: Digest, onRead?: (bytes: Bytes, total: Bytes) => void): Promise<void> {
    let have: Bytes = 0
    const { size, name: what } = this
    await fillFile(
      file,
      { digest, size, what },
      (start) => download(this.#download, start),
      (bytes) => {
        have += bytes
        if (bytes >= 0) onRead?.(have, size)
      },
    )
  }

  [Symbol.dispose](): void {
    this.#client[Symbol.dispose]()
  }
}
