// Which proxy the environment names for an address, as curl chooses it.
import { BlockList, isIP } from "node:net"

/** Variables by their names. */
export type Environment = Readonly<Record<string, string | undefined>>

/** The name or the address, without the brackets of IPv6. */
export function hostOf(url: URL): string {
  return url.hostname.replace(/^\[|\]$/g, "")
}

export function portOf(url: URL): number {
  return url.port !== "" ? Number(url.port) : url.protocol === "https:" ? 443 : 80
}

/** Is it this machine? */
export function isLoopback(url: URL): boolean {
  const host = hostOf(url)
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."))
}

let ownAddresses: BlockList | undefined

/** Of this machine; those of IPv4 also where they are written as IPv6. */
function addressesOfOwn(): BlockList {
  if (ownAddresses !== undefined) return ownAddresses
  ownAddresses = new BlockList()
  for (const network of ["127.0.0.0", "0.0.0.0"]) ownAddresses.addSubnet(network, 8, "ipv4")
  for (const address of ["::", "::1"]) ownAddresses.addAddress(address, "ipv6")
  return ownAddresses
}

/** May it be this machine? Whoever sends others there has more ways to write it than whoever means his own. */
export function mayBeLoopback(url: URL): boolean {
  const host = hostOf(url).replace(/\.$/, "")
  const version = isIP(host)
  if (version === 0) return /^(?:.*\.)?localhost$/.test(host)
  return addressesOfOwn().check(host, version === 4 ? "ipv4" : "ipv6")
}

/** Is it an address in such a network: `10.0.0.0/8`? */
function isInNetwork(host: string, network: string): boolean {
  const [, address = "", bits = ""] = /^(.+)\/(\d{1,3})$/.exec(network) ?? []
  const version = isIP(address)
  if (version === 0 || isIP(host) !== version || Number(bits) > (version === 4 ? 32 : 128)) return false
  const family = version === 4 ? "ipv4" : "ipv6"
  const addresses = new BlockList()
  addresses.addSubnet(address, Number(bits), family)
  return addresses.check(host, family)
}

function excluded(url: URL, list: string): boolean {
  const host = hostOf(url).toLowerCase()
  return list
    .toLowerCase()
    .split(/[\s,]+/)
    .filter((entry) => entry !== "")
    .some((entry) => {
      if (entry === "*" || isInNetwork(host, entry)) return true
      const [, name = "", port] = /^(.*?)(?::(\d+))?$/.exec(entry) ?? []
      if (port !== undefined && isIP(entry) === 0 && Number(port) !== portOf(url)) return false
      const bare = (isIP(entry) === 6 ? entry : name).replace(/^\*?\.|^\[|\]$/g, "")
      return host === bare || host.endsWith(`.${bare}`)
    })
}

/**
 * The proxy for an address by `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not; this machine is always
 * asked directly.
 *
 * @throws Error for a proxy of another kind than HTTP.
 */
export function proxyFor(url: URL, environment: Environment): URL | undefined {
  const value = (name: string): string | undefined => {
    const found = environment[name.toLowerCase()] ?? environment[name]
    return found === "" ? undefined : found
  }
  if (isLoopback(url) || excluded(url, value("NO_PROXY") ?? "")) return undefined
  const proxy = value(url.protocol === "https:" ? "HTTPS_PROXY" : "HTTP_PROXY") ?? value("ALL_PROXY")
  if (proxy === undefined) return undefined
  const text = /^[a-z][a-z0-9]*:\/\//i.test(proxy) ? proxy : `http://${proxy}`
  if (!URL.canParse(text)) throw new Error("the proxy that the environment names is no address")
  const parsed = new URL(text)
  if (parsed.protocol !== "http:" && parsed.protocol !== "https:")
    throw new Error(`the proxy ${parsed.protocol}//${parsed.host} is of a kind that is not supported`)
  try {
    for (const part of [parsed.username, parsed.password]) decodeURIComponent(part)
  } catch (cause) {
    throw new Error(`the name or password for the proxy ${parsed.host} is wrongly encoded`, { cause })
  }
  return parsed
}

/** Shown to the proxy alone. */
export function proxyHeaders(proxy: URL): Record<string, string> {
  if (proxy.username === "") return {}
  const user = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`
  return { "proxy-authorization": `Basic ${Buffer.from(user).toString("base64")}` }
}
