// OpenPGP key servers (HKP): keys are searched for, fetched and published. A server is asked only when somebody says so, and
// what it answers is trusted for nothing: a key is taken by its whole fingerprint, which is computed here.
import * as is from "../arguments.ts"
import { SignatureError } from "../errors.ts"
import { fetchOnce, type HttpResponse } from "../http/fetch-once.ts"
import { isLoopback } from "../http/proxy.ts"
import { DataType } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import { keysIn } from "./key-packets.ts"
import {
  checkRing,
  exportKeys,
  factsOf,
  fingerprintOf,
  importKeys,
  parseFingerprint,
  type Imported,
  type KeyFacts,
  type RingOptions,
} from "./key-ring.ts"

/** The server that Apptainer asks, too. */
export const DEFAULT_KEY_SERVER = "https://keys.openpgp.org"
/** How long one request may take unless another time is given. */
export const KEY_SERVER_TIMEOUT_MS = 30_000

const MAX_ANSWER: Bytes = 16 << 20
/** Keys of a search that are looked at, as many as Apptainer shows. */
const MAX_FOUND = 100
/** Of one key in a search. */
const MAX_USER_IDS = 100
/** Signers that are asked for: an image may name any number. */
const MAX_SIGNERS = 32

/** Which key server, and how it is asked. */
export interface KeyServerOptions {
  /** `https://` or `hkps://`; `http://` and `hkp://` for this machine, or with `allowHttp`. Default {@link DEFAULT_KEY_SERVER}. */
  readonly url?: string | undefined
  /** Speak without TLS to another machine: whoever is on the way can read, hide and change what is said. */
  readonly allowHttp?: boolean | undefined
  /** Milliseconds for one request as a whole; default {@link KEY_SERVER_TIMEOUT_MS}. */
  readonly timeoutMs?: number | undefined
  /** For the variables that name proxies (`HTTPS_PROXY`, `NO_PROXY`, …); default `process.env`. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined
  readonly signal?: AbortSignal | undefined
}

export const keyServerOptions: is.Check<KeyServerOptions> = is.shape<KeyServerOptions>({
  url: is.text,
  allowHttp: is.flag,
  timeoutMs: is.milliseconds,
  env: is.variables,
  signal: is.abortSignal,
})

/** A key as a server lists it: nothing of it is verified. */
export interface FoundKey {
  /** A fingerprint, or the short key ID of a server that has no more to say. Only a fingerprint can be asked for. */
  readonly id: string
  readonly algorithm: string
  readonly bits: number | undefined
  readonly created: Date | undefined
  readonly expires: Date | undefined
  /** As the server says. */
  readonly status: "good" | "expired" | "revoked" | "disabled"
  readonly userIds: readonly string[]
}

function serverError(server: URL | string, what: string, cause?: unknown): SignatureError {
  const name = typeof server === "string" ? server : server.origin
  return new SignatureError("ERR_KEYSERVER", `key server ${name}: ${what}`, { cause })
}

const HKP_PORT = 11371

/** The address as a URL of http or https, without a path. */
function parseServer({ url = DEFAULT_KEY_SERVER, allowHttp = false }: KeyServerOptions): URL {
  const text = /^[a-z]+:\/\//i.test(url) ? url : `https://${url}`
  const parsed = URL.canParse(text) ? new URL(text) : undefined
  const scheme = parsed?.protocol.slice(0, -1) ?? ""
  const secure = { https: true, hkps: true, http: false, hkp: false }[scheme]
  if (parsed === undefined || secure === undefined || parsed.host === "")
    throw serverError(url, "this is no address of a key server")
  if (parsed.username !== "" || parsed.password !== "")
    throw serverError(parsed.host, "an address does not carry a password")
  const port = parsed.port !== "" ? parsed.port : scheme === "hkp" ? String(HKP_PORT) : ""
  const base = new URL(`${secure ? "https" : "http"}://${parsed.hostname}${port === "" ? "" : `:${port}`}`)
  if (!secure && !allowHttp && !isLoopback(base))
    throw serverError(base, "without TLS anybody on the way could change the answer")
  return base
}

/** What went wrong on the way, in the system's words and without the address, which stands before it. */
function reason(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException
  const known: Readonly<Record<string, string>> = {
    ENOTFOUND: "there is no such host",
    EAI_AGAIN: "its name cannot be resolved",
    ECONNREFUSED: "the connection is refused",
    ECONNRESET: "the connection was cut",
    EHOSTUNREACH: "there is no way to it",
    ENETUNREACH: "there is no way to it",
  }
  return known[code ?? ""] ?? message
}

async function ask(
  server: URL,
  place: string,
  parameters: Readonly<Record<string, string>>,
  method: "GET" | "POST",
  options: KeyServerOptions,
): Promise<HttpResponse> {
  const { timeoutMs = KEY_SERVER_TIMEOUT_MS, signal, env = process.env } = options
  const late = AbortSignal.timeout(timeoutMs)
  const text = new URLSearchParams(parameters).toString()
  const url = new URL(method === "GET" ? `${place}?${text}` : place, server)
  try {
    const response = await fetchOnce({
      url,
      method,
      limit: MAX_ANSWER,
      signal: signal === undefined ? late : AbortSignal.any([late, signal]),
      env,
      ...(method === "POST"
        ? { body: Buffer.from(text), headers: { "content-type": "application/x-www-form-urlencoded" } }
        : {}),
    })
    if (response.status >= 300 && response.status < 400)
      throw serverError(server, `it sends us elsewhere (${String(response.headers["location"])})`)
    return response
  } catch (cause) {
    signal?.throwIfAborted()
    if (cause instanceof SignatureError) throw cause
    if (late.aborted) throw serverError(server, `no answer within ${timeoutMs / 1000} s`, cause)
    throw serverError(server, reason(cause), cause)
  }
}

function refuse(server: URL, { status, body }: HttpResponse): never {
  const [line = ""] = body.subarray(0, 200).toString("latin1").split("\n")
  throw serverError(server, `it answers with status ${status}${line === "" ? "" : `: ${line.trim()}`}`)
}

// RFC 9580, 9.1
const algorithms: Readonly<Record<string, string>> = {
  1: "RSA",
  2: "RSA",
  3: "RSA",
  17: "DSA",
  19: "ECDSA",
  22: "Ed25519",
  27: "Ed25519",
  28: "Ed448",
}

function dateOf(seconds: string | undefined): Date | undefined {
  return seconds !== undefined && /^\d{1,11}$/.test(seconds) ? new Date(Number(seconds) * 1000) : undefined
}

function statusFrom(flags: string, expires: Date | undefined): FoundKey["status"] {
  if (flags.includes("r")) return "revoked"
  if (flags.includes("e") || (expires !== undefined && expires.getTime() <= Date.now())) return "expired"
  return flags.includes("d") ? "disabled" : "good"
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text // percent signs that nobody escaped
  }
}

/** The machine-readable index of draft-shaw-openpgp-hkp-00, 5.2. */
function parseIndex(text: string): FoundKey[] {
  const found: FoundKey[] = []
  for (const line of text.split(/\r?\n/)) {
    const [kind, first = "", algorithm = "", bits = "", created, expiry, flags = ""] = line.split(":")
    if (kind === "pub" && /^[0-9A-Fa-f]{8,64}$/.test(first)) {
      if (found.length >= MAX_FOUND) break
      const expires = dateOf(expiry)
      found.push({
        id: first.toUpperCase(),
        algorithm: algorithms[algorithm] ?? algorithm,
        bits: /^\d{1,6}$/.test(bits) ? Number(bits) : undefined,
        created: dateOf(created),
        expires,
        status: statusFrom(flags, expires),
        userIds: [],
      })
    } else if (kind === "uid") {
      const last = found.at(-1)
      if (last !== undefined && last.userIds.length < MAX_USER_IDS)
        found[found.length - 1] = { ...last, userIds: [...last.userIds, decoded(first)] }
    }
  }
  return found
}

/**
 * Asks a key server what keys it has for a name, an address or a fingerprint; at most 100 of them.
 *
 * @throws SignatureError `ERR_KEYSERVER`; the signal's reason.
 */
export async function search(about: string, given: KeyServerOptions = {}): Promise<FoundKey[]> {
  is.text(about, "about")
  const options = keyServerOptions(given, "options")
  const server = parseServer(options)
  const wanted = /^(?:0x)?(?:[0-9a-f]{8}|[0-9a-f]{16}|[0-9a-f]{40}|[0-9a-f]{64})$/i.test(about)
    ? `0x${about.replace(/^0x/i, "")}`
    : about
  const parameters = { op: "index", options: "mr", fingerprint: "on", search: wanted }
  const response = await ask(server, "/pks/lookup", parameters, "GET", options)
  if (response.status === 404) return []
  if (response.status !== 200) refuse(server, response)
  return parseIndex(response.body.toString("utf8"))
}

/** The key with this fingerprint, as packets; undefined: the server has none. */
async function fetchKey(fingerprint: string, options: KeyServerOptions): Promise<Buffer | undefined> {
  const server = parseServer(options)
  const parameters = { op: "get", options: "mr", search: `0x${fingerprint}` }
  const response = await ask(server, "/pks/lookup", parameters, "GET", options)
  if (response.status === 404) return undefined
  if (response.status !== 200) refuse(server, response)
  // Servers that are CGI programs say so in words.
  if (!response.body.includes("-----BEGIN PGP PUBLIC KEY BLOCK-----")) return undefined
  const { readKey } = await import("openpgp")
  for (const bytes of keysIn(response.body, `the answer of ${server.origin}`)) {
    try {
      const key = await readKey({ binaryKey: bytes })
      if (fingerprintOf(key) === fingerprint) return Buffer.from(key.toPublic().write())
    } catch {
      // Some other key, of a kind that is not known: not what was asked for.
    }
  }
  throw serverError(server, `it answers with another key than ${fingerprint}`)
}

/**
 * Fetches a key from a key server and adds it, or what is new in it, to a ring. Adding it means to trust it: compare the
 * fingerprint with its owner's first.
 *
 * @param fingerprint - A full one.
 * @throws SignatureError `ERR_KEYRING_NO_KEY` for a short key ID, and where the server has no such key; `ERR_KEYSERVER`; or
 * what {@link importKeys} throws; the signal's reason.
 */
export async function pull(
  fingerprint: string,
  given: KeyServerOptions = {},
  ring: RingOptions = {},
): Promise<{ readonly imported: Imported; readonly key: KeyFacts }> {
  const server = keyServerOptions(given, "server")
  checkRing(ring, "ring")
  const wanted = parseFingerprint(fingerprint)
  const bytes = await fetchKey(wanted, server)
  const { origin } = parseServer(server)
  if (bytes === undefined)
    throw new SignatureError("ERR_KEYRING_NO_KEY", `key server ${origin} has no key ${wanted}`)
  const [imported] = await importKeys(bytes, `the answer of ${origin}`, ring)
  const { readKey } = await import("openpgp")
  if (imported === undefined) throw serverError(origin, `it answers with another key than ${wanted}`)
  return { imported, key: await factsOf(await readKey({ binaryKey: bytes })) }
}

/**
 * Publishes a public key of a ring on a key server, for everybody and for good: most servers forget nothing.
 *
 * @param fingerprint - A full one.
 * @throws SignatureError `ERR_KEYRING_NO_KEY`, `ERR_KEYRING_INSECURE`, `ERR_KEYSERVER`; the signal's reason.
 */
export async function push(
  fingerprint: string,
  given: KeyServerOptions = {},
  ring: RingOptions = {},
): Promise<void> {
  const options = keyServerOptions(given, "server")
  checkRing(ring, "ring")
  const server = parseServer(options)
  const keytext = (await exportKeys([fingerprint], { ...ring, armor: true })).toString("latin1")
  const response = await ask(server, "/pks/add", { keytext }, "POST", options)
  if (response.status < 200 || response.status > 299) refuse(server, response)
}

/** In the extra area of a signature's descriptor, behind the hash type: the signer's fingerprint, or zeros. */
const ENTITY_AT: Bytes = 4
const ENTITY_SIZE: Bytes = 20

/**
 * The keys of an image's OpenPGP signers that a server has, newest revocations included, to verify with. Nothing is stored.
 *
 * @throws SignatureError `ERR_KEYSERVER`; the signal's reason.
 */
export async function signersOf(image: SifImage, options: KeyServerOptions): Promise<Buffer[]> {
  const wanted = new Set(
    image.objects
      .filter(({ type }) => type === DataType.signature)
      .map(({ extra }) => extra.subarray(ENTITY_AT, ENTITY_AT + ENTITY_SIZE))
      .filter((entity) => entity.some((byte) => byte !== 0))
      .map((entity) => entity.toString("hex").toUpperCase()),
  )
  if (wanted.size > MAX_SIGNERS)
    throw new SignatureError("ERR_KEYSERVER", `${wanted.size} signers are too many to ask a key server for`)
  const keys: Buffer[] = []
  for (const fingerprint of wanted) {
    const key = await fetchKey(fingerprint, options)
    if (key !== undefined) keys.push(key)
  }
  return keys
}
