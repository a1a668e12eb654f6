// Requests to one repository of one registry, with whatever authorization they take.
import { once } from "node:events"
import os from "node:os"
import path from "node:path"
import tls from "node:tls"
import { madeOf } from "../disposal.ts"
import { OciError } from "../errors.ts"
import { hostOf, isLoopback, portOf } from "../http/proxy.ts"
import type { RegistryReference } from "../oci/reference.ts"
import type { Bytes } from "../units.ts"
import { Authorization, type Access } from "./authorization.ts"
import { findCredential, type CredentialSearch } from "./credentials.ts"
import {
  askForBody,
  HttpClient,
  replyError,
  type HttpOptions,
  type Reply,
  type Request,
  type Upload,
} from "./http.ts"

/** How a registry is spoken to. */
export interface ClientOptions extends CredentialSearch, Pick<HttpOptions, "retryDelayMs"> {
  /**
   * With certificates for the registry: `*.crt` are trusted, and a `*.cert` is shown with its `*.key`. For others that the registry
   * names (who gives tokens, where blobs lie) below HOST:PORT in it.
   */
  readonly certFolder?: string | undefined
  /** Speak HTTP without TLS, which anybody on the way can read and change. Loopback may do so by itself. */
  readonly noHttps?: boolean | undefined
  readonly signal?: AbortSignal | undefined
  /** Hears what somebody should know. */
  readonly onNotice?: ((text: string) => void) | undefined
}

/** Of one request: nobody, somebody, a wider token, one that has run out. */
const MAX_REFUSALS = 8
/** How long who listens may say nothing when it is asked whether it speaks TLS. */
const SILENCE_MS = 5000

/** What else the machine's containers trust. */
export function certFolders(): string[] {
  const home = os.homedir()
  const shared = ["/etc/containers/certs.d", "/etc/docker/certs.d"]
  return [path.join(home, ".config/containers/certs.d"), ...shared]
}

/** Of the API; the name that users give may be another. */
function apiHost(host: string): string {
  return host === "docker.io" ? "registry-1.docker.io" : host
}

/** Did whoever answered not speak TLS at all? */
function speaksPlain(cause: unknown): boolean {
  const { code } = (cause instanceof OciError ? cause.cause : cause) as NodeJS.ErrnoException
  return (
    code === "EPROTO" || code === "ERR_SSL_WRONG_VERSION_NUMBER" || code === "ERR_SSL_PACKET_LENGTH_TOO_LONG"
  )
}

/**
 * Does whoever listens there speak no TLS? Nobody is trusted, so Node's authorities, which take longer to load than all else of a
 * request, are not.
 */
async function isPlain(url: URL, signal: AbortSignal | undefined): Promise<boolean> {
  const socket = tls.connect({ host: hostOf(url), port: portOf(url), ca: [] })
  // What comes once it is known, or destroyed.
  socket.on("error", () => undefined)
  socket.setTimeout(SILENCE_MS, () => socket.destroy(new Error("nobody answers")))
  try {
    await once(socket, "secureConnect", { signal })
    return false
  } catch (cause) {
    return speaksPlain(cause)
  } finally {
    socket.destroy()
  }
}

/** The one place that a name stands for: with TLS unless it was said otherwise, or nobody on loopback speaks it. */
async function endpoint(client: HttpClient, host: string, options: ClientOptions): Promise<URL> {
  const api = apiHost(host)
  if (options.noHttps === true) return new URL(`http://${api}`)
  const url = new URL(`https://${api}`)
  if (!isLoopback(url)) return url
  if (await isPlain(url, options.signal)) return new URL(`http://${api}`)
  try {
    ;(await client.request(new URL("/v2/", url))).destroy()
    return url
  } catch (cause) {
    if (speaksPlain(cause)) return new URL(`http://${api}`)
    throw cause
  }
}

/** The client for a host, and where it is. */
async function connect(
  host: string,
  options: ClientOptions,
): Promise<{ readonly client: HttpClient; readonly base: URL }> {
  const client = new HttpClient({
    // As addresses have it: small, and without the usual port.
    registry: new URL(`https://${apiHost(host)}`).host,
    environment: options.environment ?? process.env,
    signal: options.signal,
    retryDelayMs: options.retryDelayMs,
    ownCertFolder: options.certFolder,
    certFolders: certFolders(),
  })
  return await madeOf(client, async () => ({ client, base: await endpoint(client, host, options) }))
}

/**
 * Shows a registry a credential.
 *
 * @returns false: it lets in everybody, and says nothing of credentials.
 * @throws OciError `ERR_OCI_CREDENTIALS` where it is refused, `ERR_OCI_REGISTRY`.
 */
export async function tryCredential(
  host: string,
  options: ClientOptions & { readonly credentials: NonNullable<ClientOptions["credentials"]> },
): Promise<boolean> {
  const { client, base } = await connect(host, options)
  using http = client
  using authorization = new Authorization(http, base, "login", () => findCredential(options, host, ""))
  const door = new URL("/v2/", base)
  options.onNotice?.(`${host} is asked at ${base.origin}`)
  for (let refusals = 0; ; refusals++) {
    const { header } = authorization
    const reply = await http.request(door, { authorization: header })
    if (reply.statusCode === 200) {
      reply.destroy()
      return authorization.isKnown
    }
    const asks = reply.statusCode === 401 && !http.isFromElsewhere(reply)
    if (!asks || refusals === MAX_REFUSALS || !(await authorization.advance(reply, header)))
      throw await replyError(reply, host)
    reply.destroy()
  }
}

export class RegistryClient implements Disposable {
  readonly reference: RegistryReference
  readonly origin: string
  readonly #http: HttpClient
  readonly #base: URL
  readonly #authorization: Authorization

  private constructor(
    reference: RegistryReference,
    client: HttpClient,
    base: URL,
    authorization: Authorization,
  ) {
    this.reference = reference
    this.origin = base.origin
    this.#http = client
    this.#base = new URL(`/v2/${reference.repository}/`, base)
    this.#authorization = authorization
  }

  /** @throws OciError `ERR_OCI_REGISTRY`. */
  static async open(
    reference: RegistryReference,
    options: ClientOptions,
    access: Access,
  ): Promise<RegistryClient> {
    const { client, base } = await connect(reference.host, options)
    const { host, repository } = reference
    const authorization = new Authorization(client, base, { repository, access }, () =>
      findCredential(options, host, repository),
    )
    return new RegistryClient(reference, client, base, authorization)
  }

  /** Has anybody been named, or had a certificate to show? What not everybody may read is not public. */
  get isKnown(): boolean {
    return this.#authorization.isKnown || this.#http.hasCertificate
  }

  /** What a path below the repository, or what the registry has answered, stands for. */
  url(place: string): URL {
    return new URL(place, this.#base)
  }

  /** Another host is somebody else: who we are is not its business. */
  #header(url: URL): string | undefined {
    return url.origin === this.origin ? this.#authorization.header : undefined
  }

  async request(url: URL, request: Omit<Request, "authorization"> = {}): Promise<Reply> {
    for (let refusals = 0; ; refusals++) {
      const authorization = this.#header(url)
      const reply = await this.#http.request(url, { ...request, authorization })
      const status = reply.statusCode ?? 0
      // Some say "not found" to whom they do not know. Who only asks whether it is there has that answer.
      const hidden = status === 404 && request.method !== "HEAD" && !this.#authorization.isKnown
      const refused = [401, 403, 429].includes(status) || hidden
      if (!refused || url.origin !== this.origin || this.#http.isFromElsewhere(reply)) return reply
      const before = this.#authorization.header
      // A token may run out meanwhile; who refuses each new one does not mean to let us in.
      if (refusals === MAX_REFUSALS || !(await this.#authorization.advance(reply, authorization)))
        return reply
      reply.destroy()
      if (status === 404 && before === this.#authorization.header)
        return await this.#http.request(url, { ...request, authorization })
    }
  }

  /**
   * Fetches what is small, all of it.
   *
   * @returns No body where the status is another than 200.
   */
  async fetch(
    url: URL,
    request: Omit<Request, "authorization">,
    limit: Bytes,
    what: string,
  ): Promise<{ readonly reply: Reply; readonly body: Buffer | undefined }> {
    const pause = (tries: number): Promise<void> => this.#http.pause(tries)
    return await askForBody(() => this.request(url, request), pause, limit, what)
  }

  /**
   * Sends a body once, as it comes.
   *
   * @returns undefined: not all of it got through, and another try may be worth it.
   */
  async upload(url: URL, request: Omit<Upload, "authorization">): Promise<Reply | undefined> {
    const authorization = this.#header(url)
    const reply = await this.#http.upload(url, { ...request, authorization })
    if (reply?.statusCode !== 401 || url.origin !== this.origin) return reply
    if (!(await this.#authorization.advance(reply, authorization))) return reply
    reply.destroy()
    return undefined
  }

  /** Did a redirect lead to somebody else, who answered? */
  isFromElsewhere(reply: Reply): boolean {
    return this.#http.isFromElsewhere(reply)
  }

  /** Before another try. */
  async pause(tries: number, atLeastMs = 0): Promise<void> {
    await this.#http.pause(tries, atLeastMs)
  }

  [Symbol.dispose](): void {
    this.#authorization[Symbol.dispose]()
    this.#http[Symbol.dispose]()
  }
}
