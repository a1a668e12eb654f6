// How a registry is shown who asks: nobody first, then whoever is known there.
import { OciError } from "../errors.ts"
import { mayBeLoopback } from "../http/proxy.ts"
import { parseJson } from "../json.ts"
import { wipeCredential, type RegistryCredential } from "./credentials.ts"
import { askForBody, replyError, type HttpClient, type Reply } from "./http.ts"

/** A way of authorization that a registry offers. */
export interface Challenge {
  /** Lower case. */
  readonly scheme: string
  readonly parameters: Readonly<Record<string, string>>
}

/** Reads WWW-Authenticate, which may offer several. */
export function parseChallenges(header: string): Challenge[] {
  const challenges: { scheme: string; parameters: Record<string, string> }[] = []
  const pattern = /[\s,]*(?:([A-Za-z0-9._-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]+)|([A-Za-z0-9._-]+))/gy
  for (let match; (match = pattern.exec(header)) !== null;) {
    const [, name, value, scheme] = match
    if (scheme !== undefined) challenges.push({ scheme: scheme.toLowerCase(), parameters: {} })
    else if (name !== undefined && value !== undefined) {
      const text = value.startsWith('"') ? value.slice(1, -1).replace(/\\(.)/g, "$1") : value
      const last = challenges.at(-1)
      if (last !== undefined) last.parameters[name.toLowerCase()] = text
    }
  }
  return challenges
}

/** What is going to be done. */
export type Access = "pull" | "pull,push"

const MAX_TOKEN_REPLY = 1 << 20
const MAX_CHALLENGES = 100
/** Resources, and actions of each: whoever names them is not believed for ever. */
const MAX_SCOPES = 100
/** No token is good for a shorter time. */
const TOKEN_MS = 30_000

function basic(username: string, password: Buffer): string {
  const bytes = Buffer.concat([Buffer.from(`${username}:`), password])
  const text = bytes.toString("base64")
  bytes.fill(0)
  return `Basic ${text}`
}

/** Authorization for one repository of one registry; or for nothing but that, which nobody is not asked for. */
export class Authorization implements Disposable {
  readonly #client: HttpClient
  readonly #registry: URL
  readonly #isLogin: boolean
  /** What tokens are asked for: actions by resource. */
  readonly #scopes = new Map<string, Set<string>>()
  readonly #find: () => Promise<RegistryCredential | undefined>
  #credential: RegistryCredential | undefined
  #searched = false
  #header: string | undefined
  #level: "none" | "anonymous" | "known" = "none"
  #tokenTime = 0
  #challenges = 0
  #pending: Promise<boolean> | undefined

  constructor(
    client: HttpClient,
    registry: URL,
    wanted: { readonly repository: string; readonly access: Access } | "login",
    find: () => Promise<RegistryCredential | undefined>,
  ) {
    this.#client = client
    this.#registry = registry
    this.#isLogin = wanted === "login"
    if (wanted !== "login") this.#widen(`repository:${wanted.repository}:${wanted.access}`)
    this.#find = find
  }

  /** What to send with a request. */
  get header(): string | undefined {
    return this.#header
  }
  /** Has anybody been named? What nobody may read is not public. */
  get isKnown(): boolean {
    return this.#level === "known"
  }

  /**
   * After a refusal.
   *
   * @param sent - What the request that was refused had.
   * @returns Is it worth another try?
   */
  async advance(reply: Reply, sent: string | undefined): Promise<boolean> {
    // Another request has been through this meanwhile.
    if (sent !== this.#header) return true
    this.#pending ??= this.#advance(reply.headers["www-authenticate"]).finally(() => {
      this.#pending = undefined
    })
    return await this.#pending
  }

  /** Adds to what tokens are asked for. Is it more than before? */
  #widen(scopes: string): boolean {
    let more = false
    for (const scope of scopes.split(" ").filter((one) => one !== "")) {
      const [, resource = scope, actions] = /^(.+):([^:]*)$/.exec(scope) ?? []
      if (!this.#scopes.has(resource) && this.#scopes.size >= MAX_SCOPES) continue
      const known = this.#scopes.get(resource) ?? new Set()
      more ||= !this.#scopes.has(resource)
      for (const action of actions?.split(",") ?? []) {
        if (known.size >= MAX_SCOPES) break
        more ||= !known.has(action)
        known.add(action)
      }
      this.#scopes.set(resource, known)
    }
    return more
  }

  async #advance(header: string | undefined): Promise<boolean> {
    let challenges = parseChallenges(header ?? "")
    if (challenges.length === 0) {
      // Some only say at the door how to get in.
      const reply = await this.#client.request(new URL("/v2/", this.#registry))
      if (!this.#client.isFromElsewhere(reply))
        challenges = parseChallenges(reply.headers["www-authenticate"] ?? "")
      reply.destroy()
    }
    if (challenges.length === 0) return false
    const bearer = challenges.find(({ scheme }) => scheme === "bearer")
    // It takes more than was asked for. A registry that always wants yet another is not followed for ever.
    const more = this.#challenges++ < MAX_CHALLENGES && this.#widen(bearer?.parameters["scope"] ?? "")
    // A token that was good for a while has run out.
    const expired = this.#header?.startsWith("Bearer ") === true && Date.now() - this.#tokenTime > TOKEN_MS
    const again = bearer !== undefined && (more || expired)
    if (bearer !== undefined && this.#level === "none" && !this.#isLogin) {
      this.#level = "anonymous"
      if (await this.#token(bearer, undefined)) return true
    } else if (again && this.#level === "anonymous" && (await this.#token(bearer, undefined))) return true
    if (this.#level === "known" && (!again || this.#credential?.kind === "bearer")) return false
    const credential = await this.#search()
    if (credential === undefined) return false
    this.#level = "known"
    if (credential.kind === "bearer") {
      this.#header = `Bearer ${credential.token.toString("latin1")}`
      return true
    }
    if (bearer !== undefined) return await this.#token(bearer, credential)
    if (challenges.some(({ scheme }) => scheme === "basic") && credential.kind === "password") {
      this.#header = basic(credential.username, credential.password)
      return true
    }
    return false
  }

  async #search(): Promise<RegistryCredential | undefined> {
    if (!this.#searched) this.#credential = await this.#find()
    this.#searched = true
    return this.#credential
  }

  #realm(bearer: Challenge, withSecret: boolean): URL {
    const { realm = "" } = bearer.parameters
    const url = URL.canParse(realm) ? new URL(realm) : undefined
    const host = this.#registry.host
    if (url === undefined || !/^https?:$/.test(url.protocol))
      throw new OciError("ERR_OCI_REGISTRY", `${host}: it names ${JSON.stringify(realm)} to ask for tokens`)
    if (mayBeLoopback(url) && !mayBeLoopback(this.#registry))
      throw new OciError("ERR_OCI_REGISTRY", `${host}: tokens are given on this machine, at ${url.origin}`)
    if (url.protocol === "http:" && this.#registry.protocol !== "http:")
      throw new OciError("ERR_OCI_REGISTRY", `${host}: tokens are given without TLS, at ${url.origin}`)
    if (url.protocol === "http:" && withSecret && url.hostname !== this.#registry.hostname)
      throw new OciError(
        "ERR_OCI_CREDENTIALS",
        `${host}: it asks for the password without TLS, at ${url.origin}`,
      )
    return url
  }

  async #token(bearer: Challenge, credential: RegistryCredential | undefined): Promise<boolean> {
    const url = this.#realm(bearer, credential !== undefined)
    const { service } = bearer.parameters
    const scopes = [...this.#scopes].map(([resource, actions]) =>
      [resource, [...actions].join(",")].filter(Boolean).join(":"),
    )
    const { reply, body } = await askForBody(
      () => this.#ask(url, service, scopes, credential),
      (tries) => this.#client.pause(tries),
      MAX_TOKEN_REPLY,
      url.host,
    )
    if (body === undefined) {
      if (credential === undefined && [400, 401, 403, 404].includes(reply.statusCode ?? 0)) {
        reply.destroy()
        return false
      }
      throw await replyError(reply, url.host)
    }
    let answer: { readonly token?: unknown; readonly access_token?: unknown } | null
    try {
      answer = parseJson(body.toString("utf8")) as typeof answer
    } catch (cause) {
      throw new OciError("ERR_OCI_REGISTRY", `${url.host}: a token that is no JSON`, { cause })
    }
    const token = answer?.token ?? answer?.access_token
    if (typeof token !== "string" || !/^[\x21-\x7e]+$/.test(token))
      throw new OciError("ERR_OCI_REGISTRY", `${url.host}: an answer without a token`)
    this.#header = `Bearer ${token}`
    this.#tokenTime = Date.now()
    return true
  }

  async #ask(
    url: URL,
    service: string | undefined,
    scopes: readonly string[],
    credential: RegistryCredential | undefined,
  ): Promise<Reply> {
    if (credential?.kind === "identity") {
      const form = new URLSearchParams({
        grant_type: "refresh_token",
        refresh_token: credential.token.toString("utf8"),
        client_id: "sifcrypt",
        scope: scopes.join(" "),
        ...(service === undefined ? {} : { service }),
      })
      const headers = { "content-type": "application/x-www-form-urlencoded" }
      const reply = await this.#client.request(url, { method: "POST", headers, body: form.toString() })
      if (reply.statusCode !== 404 && reply.statusCode !== 405) return reply
      reply.destroy()
    }
    const query = new URL(url)
    if (service !== undefined) query.searchParams.set("service", service)
    for (const scope of scopes) query.searchParams.append("scope", scope)
    if (credential?.kind === "password") query.searchParams.set("account", credential.username)
    const authorization =
      credential?.kind === "password"
        ? basic(credential.username, credential.password)
        : credential?.kind === "identity"
          ? basic("<token>", credential.token)
          : undefined
    return await this.#client.request(query, { authorization })
  }

  [Symbol.dispose](): void {
    wipeCredential(this.#credential)
    this.#header = undefined
  }
}
