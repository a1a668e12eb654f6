// Names of images: a transport, a place, and which image there.
import path from "node:path"
import { OciError } from "../errors.ts"
import { parseDigest, type Digest } from "./digest.ts"

/** Which image of a layout or an archive: by name, by digest, by its place in the index, or the only one. */
export interface Selection {
  readonly name?: string
  readonly digest?: Digest
  /** From 0. */
  readonly index?: number
}

/** A repository at a registry. */
export interface RegistryReference {
  readonly transport: "docker"
  /** As the user names the registry: `docker.io`, `localhost:5000`. */
  readonly host: string
  readonly repository: string
  readonly tag: string | undefined
  readonly digest: Digest | undefined
  /** Without the transport, complete. */
  readonly text: string
}

/** A layout or an archive on disk; `store` is the layout in which images of this user are kept. */
export interface LocalReference {
  readonly transport: "oci" | "oci-archive" | "docker-archive" | "store"
  readonly path: string
  /** Of an archive: what is opened in its place, which has the same files. */
  readonly at?: string | undefined
  readonly selection: Selection
}

export type ImageReference = RegistryReference | LocalReference

/** What the peers have besides, and what takes its place here. */
const others: Readonly<Record<string, string>> = {
  library: "oras://HOST/REPOSITORY, which any registry keeps, or docker://: a library is one service's alone",
  shub: "oras://HOST/REPOSITORY or docker://: the service has been shut down",
  "docker-daemon": "`docker save -o image.tar NAME`, then docker-archive:image.tar",
  "containers-storage":
    "`skopeo copy containers-storage:NAME oci-archive:image.tar`, then oci-archive:image.tar",
  oras: "the SIF that `sifcrypt pull IMAGE oras://...` fetches",
  http: "the file that `sifcrypt pull` fetches",
  https: "the file that `sifcrypt pull` fetches",
  ipfs: "download the file, then build from it",
  dockerfile: "`docker build`, `docker save`, then docker-archive:image.tar",
  dir: "`skopeo copy dir:PATH oci:PATH`, then oci:PATH",
}

/** The same host, whatever it is called. */
const dockerHub: ReadonlySet<string> = new Set(["docker.io", "index.docker.io", "registry-1.docker.io"])

const component = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*"
const repositoryPattern = new RegExp(`^${component}(?:/${component})*$`)
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/
const hostPattern = /^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?$/

function refused(text: string, reason: string): OciError {
  return new OciError("ERR_OCI_REFERENCE", `${text}: ${reason}`)
}

const ORAS = "oras://"

/** Is it the name of a SIF at a registry? */
export function isOrasName(source: string): boolean {
  return source.startsWith(ORAS)
}

/**
 * The name of a SIF at a registry: `oras://HOST/REPOSITORY[:TAG|@DIGEST]`. What comes first is always a host.
 *
 * @throws OciError `ERR_OCI_REFERENCE`.
 */
export function parseOrasName(source: string): RegistryReference {
  if (!isOrasName(source)) throw refused(source, "it is oras://HOST/REPOSITORY[:TAG|@DIGEST]")
  return parseRegistryName(source.slice(ORAS.length), ORAS)
}

/**
 * The name of a registry alone: `HOST[:PORT]`, also with `oras://`, `docker://` or `https://` before it.
 *
 * @throws OciError `ERR_OCI_REFERENCE`.
 */
export function parseRegistryHost(source: string): string {
  const host = source.replace(/^(?:oras|docker|https):\/\//, "").replace(/\/$/, "")
  if (!hostPattern.test(host) || !URL.canParse(`https://${host}`))
    throw refused(source, "it is HOST[:PORT] of a registry")
  return dockerHub.has(host) ? "docker.io" : host
}

/** @throws OciError `ERR_OCI_REFERENCE`. */
export function parseRegistryName(name: string, transport = "docker://"): RegistryReference {
  const shown = `${transport}${name}`
  const [beforeDigest = "", digestText, ...more] = name.split("@")
  if (more.length > 0) throw refused(shown, "more than one @")
  const digest = digestText === undefined ? undefined : parseDigest(digestText, shown)
  const slash = beforeDigest.indexOf("/")
  const first = slash < 0 ? "" : beforeDigest.slice(0, slash)
  const named = transport === ORAS || first.includes(".") || first.includes(":") || first === "localhost"
  const host = named ? first : "docker.io"
  let rest = named ? beforeDigest.slice(slash + 1) : beforeDigest
  const colon = rest.lastIndexOf(":")
  const tag = colon > rest.lastIndexOf("/") ? rest.slice(colon + 1) : undefined
  if (tag !== undefined) rest = rest.slice(0, colon)
  const hub = dockerHub.has(host)
  const repository = hub && rest !== "" && !rest.includes("/") ? `library/${rest}` : rest
  if (!hostPattern.test(host) || !URL.canParse(`https://${host}`))
    throw refused(shown, `${JSON.stringify(host)} is no host`)
  if (!repositoryPattern.test(repository) || repository.length > 255)
    throw refused(shown, `${JSON.stringify(repository)} is no repository`)
  if (tag !== undefined && !tagPattern.test(tag)) throw refused(shown, `${JSON.stringify(tag)} is no tag`)
  const chosen = digest === undefined ? (tag ?? "latest") : tag
  const canonical = hub ? "docker.io" : host
  return {
    transport: "docker",
    host: canonical,
    repository,
    tag: chosen,
    digest,
    text: `${canonical}/${repository}${chosen === undefined ? "" : `:${chosen}`}${digest === undefined ? "" : `@${digest.text}`}`,
  }
}

function selectionOf(text: string | undefined, shown: string): Selection {
  if (text === undefined) return {}
  if (!text.startsWith("@")) {
    if (text === "") throw refused(shown, "no name follows the colon")
    return { name: text }
  }
  const value = text.slice(1)
  return /^\d{1,6}$/.test(value) ? { index: Number(value) } : { digest: parseDigest(value, shown) }
}

/** Where this user's images are kept, by the environment. */
export function storeFolder(environment: Readonly<Record<string, string | undefined>> = process.env): string {
  const own = environment["SIFCRYPT_STOREDIR"]
  if (own !== undefined && own !== "") return own
  const home = environment["HOME"] ?? "/"
  return path.join(environment["XDG_DATA_HOME"] ?? path.join(home, ".local", "share"), "sifcrypt", "images")
}

/**
 * The name of an image that this user keeps: as at a registry, so `alpine` is `docker.io/library/alpine:latest`; or `@DIGEST`.
 *
 * @throws OciError `ERR_OCI_REFERENCE`.
 */
export function parseStoreName(name: string): LocalReference {
  const shown = `store:${name}`
  const place = { transport: "store", path: storeFolder() } as const
  if (name === "" || name.startsWith("@"))
    return { ...place, selection: name === "" ? {} : { digest: parseDigest(name.slice(1), shown) } }
  const { text, digest } = parseRegistryName(name, "store:")
  if (digest !== undefined) throw refused(shown, "it is NAME[:TAG] or @DIGEST")
  return { ...place, selection: { name: text } }
}

/** By what name an image that is called so elsewhere is kept; undefined: by none but its digest. */
export function storeName(name: string): string | undefined {
  try {
    const { host, repository, tag } = parseRegistryName(name, "")
    return tag === undefined ? undefined : `${host}/${repository}:${tag}`
  } catch (error) {
    if (error instanceof OciError) return undefined
    throw error
  }
}

/** `alpine` is `docker.io/library/alpine:latest`. */
export function fullName(name: string): string {
  const first = name.split("/")[0] ?? ""
  const host = name.includes("/") && (/[.:]/.test(first) || first === "localhost")
  const full = host ? name : `docker.io/${name.includes("/") ? "" : "library/"}${name}`
  return full.lastIndexOf(":") > full.lastIndexOf("/") ? full : `${full}:latest`
}

function parseLocal(transport: LocalReference["transport"], text: string, shown: string): LocalReference {
  // As the peers write it, and programs that call them: docker-archive://image.tar.
  const rest = text.replace(/^\/\//, "")
  // The path ends at the first colon, as with skopeo; what could stand there are a name, @N and @DIGEST.
  const at = /^([^:]+):?@(sha(?:256|512):.*|\d+)$/.exec(rest)
  if (at?.[1] !== undefined)
    return { transport, path: at[1], selection: selectionOf(`@${at[2] ?? ""}`, shown) }
  const colon = rest.indexOf(":")
  const place = colon < 0 ? rest : rest.slice(0, colon)
  if (place === "") throw refused(shown, "no path is given")
  return {
    transport,
    path: place,
    selection: selectionOf(colon < 0 ? undefined : rest.slice(colon + 1), shown),
  }
}

/**
 * Is it the name of an image, and which?
 *
 * @returns undefined: it is a path.
 * @throws OciError `ERR_OCI_REFERENCE` for a transport that is not known here, or a malformed name.
 */
export function parseReference(source: string): ImageReference | undefined {
  const match = /^([a-z][a-z0-9-]*):(.*)$/s.exec(source)
  if (match === null) return undefined
  const [, transport = "", rest = ""] = match
  if (transport === "docker") {
    if (!rest.startsWith("//")) throw refused(source, "it is docker://[HOST/]REPOSITORY[:TAG|@DIGEST]")
    return parseRegistryName(rest.slice(2))
  }
  if (transport === "store") return parseStoreName(rest)
  if (transport === "oci" || transport === "oci-archive" || transport === "docker-archive")
    return parseLocal(transport, rest, source)
  const instead = others[transport]
  if (instead !== undefined) throw refused(source, `${transport}: is not read here; instead: ${instead}`)
  if (rest.startsWith("//"))
    throw refused(
      source,
      `${transport}: is not known; docker://, oras://, oci:, oci-archive:, docker-archive: and store: are`,
    )
  return undefined
}
