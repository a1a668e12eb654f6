// Which network a payload has: the machine's, one of its own with the loopback alone, one that is there already, one of its own that
// pasta (of the passt project) connects to the machine's (native/starter/network.cc), or those of a name, with other containers.
import { statfsSync } from "node:fs"
import { isIPv4 } from "node:net"
import path from "node:path"
import { RunError } from "../errors.ts"
import { bridgeOf, findNetwork, networkFolder, numberOf, parseSubnet, sizeOf } from "./networks.ts"
import type { ExecOptions, NetworkSpec } from "./options.ts"
import { findProgram } from "./program.ts"
import { idMapArguments, type IdMaps } from "./subordinate-ids.ts"

/** What of the options says which. */
export type NetworkChoice = Pick<
  ExecOptions,
  "net" | "network" | "networkAlias" | "networkArgs" | "netnsPath" | "publish" | "hostname"
>

/** Ports of the machine that lead to as many of the container's. */
export interface Publication {
  readonly protocol: "tcp" | "udp"
  /** Of the machine. */
  readonly address: string
  readonly machinePort: number
  readonly containerPort: number
  readonly count: number
}

/** One of those that other containers are in as well. */
export interface JoinedNetwork {
  readonly name: string
  readonly subnet: string
  readonly gateway: string
  readonly internal: boolean
  readonly aliases: readonly string[]
  readonly address: string | undefined
}

/** One that has a way out, or others in it. */
export interface ConnectedNetwork {
  readonly published: readonly Publication[]
  readonly joined: readonly JoinedNetwork[]
}

export interface PayloadNetwork {
  /** For the OCI runtime to make or to join. */
  readonly namespaces: readonly { readonly type: "network"; readonly path?: string }[]
  /** The starter makes it. */
  readonly connected?: ConnectedNetwork
}

/** Where such a container finds the machine's name servers. */
export const RESOLVER = "169.254.1.53"

const NSFS_MAGIC = 0x6e736673 // linux/magic.h
const MAX_PORT = 65535
const everywhere = "0.0.0.0"
const MAX_PUBLICATIONS = 256

function refuse(what: string): never {
  throw new RunError("ERR_RUN_OPTION", what)
}

/** `8080` or `8000-8010`. */
function portsOf(text: string, what: string): { readonly first: number; readonly count: number } {
  const [, start = "", end = start] = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text) ?? []
  const first = Number(start)
  const last = Number(end)
  if (start === "" || first < 1 || last > MAX_PORT || last < first)
    refuse(`${what}: ${text === "" ? "there" : text} is no port, nor FIRST-LAST`)
  return { first, count: last - first + 1 }
}

/** `[ADDRESS:]PORT:PORT[/PROTOCOL]`. */
export function parsePublication(text: string): Publication {
  const what = `publish ${text}`
  const [ports = "", protocol = "tcp", ...more] = text.split("/")
  if ((protocol !== "tcp" && protocol !== "udp") || more.length > 0)
    refuse(`${what}: it ends in /tcp or /udp`)
  if (ports.includes("[")) refuse(`${what}: only IPv4 is there`)
  const parts = ports.split(":")
  const container = parts.pop() ?? ""
  const machine = parts.pop()
  const [address = everywhere, ...rest] = parts
  if (machine === undefined || rest.length > 0)
    refuse(`${what}: not [ADDRESS:]PORT:PORT, the machine's and the container's`)
  if (!isIPv4(address)) refuse(`${what}: ${address} is no IPv4 address of this machine`)
  const outside = portsOf(machine, what)
  const inside = portsOf(container, what)
  if (outside.count !== inside.count) refuse(`${what}: there are more ports on one side than on the other`)
  return {
    ...{ protocol, address, count: outside.count },
    ...{ machinePort: outside.first, containerPort: inside.first },
  }
}

/** What the peers' networks take, `portmap=8080:80/tcp`, as a publication. */
function argumentOf(text: string): string {
  const [, ports] = /^portmap=(.*)$/s.exec(text) ?? []
  return ports ?? refuse(`network argument ${text}: there is only portmap=PORT:PORT[/PROTOCOL]`)
}

/** A port cannot lead to two places. */
function checkApart(published: readonly Publication[]): void {
  for (const [at, one] of published.entries())
    for (const other of published.slice(0, at)) {
      const sameAddress = one.address === other.address || [one.address, other.address].includes(everywhere)
      const port = Math.max(one.machinePort, other.machinePort)
      const shared = Math.min(one.machinePort + one.count, other.machinePort + other.count) > port
      if (one.protocol === other.protocol && sameAddress && shared)
        refuse(`publish: ${one.protocol} port ${port} is published twice`)
    }
}

function toJoin(netnsPath: string): PayloadNetwork {
  let type: number | undefined
  try {
    ;({ type } = statfsSync(netnsPath))
  } catch (cause) {
    throw new RunError("ERR_RUN_OPTION", `network namespace ${netnsPath}: it cannot be opened`, {
      path: netnsPath,
      cause,
    })
  }
  if (type !== NSFS_MAGIC) refuse(`${netnsPath} is no network namespace`)
  return { namespaces: [{ type: "network", path: path.resolve(netnsPath) }] }
}

const MAX_JOINED = 16
const MAX_ALIASES = 64
// Of DNS, and what the starter may write down as it is.
const alias = /^[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9_])?$/

/** What has a meaning of its own, alone. */
const kinds: ReadonlySet<string> = new Set(["none", "host", "pasta", "bridge"])

function join(spec: NetworkSpec, more: readonly string[]): JoinedNetwork {
  const { name, subnet, gateway, internal } = findNetwork(spec.name)
  const { address } = spec
  const aliases = [...new Set([...(spec.aliases ?? []), ...more])]
  if (aliases.length > MAX_ALIASES) refuse(`network ${name}: more than ${MAX_ALIASES} aliases`)
  const wrong = aliases.find((one) => !alias.test(one))
  if (wrong !== undefined) refuse(`network ${name}: ${wrong} is no name of a machine`)
  if (address !== undefined) {
    const { first, bits } = parseSubnet(subnet)
    const at = isIPv4(address) ? numberOf(address) - first : -1
    if (at <= 0 || at >= sizeOf(bits) - 1) refuse(`network ${name}: ${address} is no address of ${subnet}`)
  }
  return { name, subnet, gateway, internal, aliases, address }
}

/** Networks by their names. */
function joinAll(specs: readonly NetworkSpec[], options: NetworkChoice): readonly JoinedNetwork[] {
  const { networkAlias = [], hostname } = options
  if (specs.length > MAX_JOINED) refuse(`network: more than ${MAX_JOINED}`)
  const twice = specs.find(({ name }, at) => specs.findIndex((other) => other.name === name) !== at)
  if (twice !== undefined) refuse(`network ${twice.name} is given twice`)
  const more = [...networkAlias, ...(hostname === undefined ? [] : [hostname])]
  return specs.map((spec) => join(spec, more))
}

/**
 * Which network is asked for.
 *
 * @throws RunError `ERR_RUN_OPTION`.
 */
export function networkOf(options: NetworkChoice): PayloadNetwork {
  const { net = false, netnsPath, networkArgs = [], networkAlias = [], publish = [] } = options
  const asked = options.network ?? []
  const specs = (typeof asked === "string" ? [asked] : asked).map((one) =>
    typeof one === "string" ? { name: one } : one,
  )
  const [only] = specs
  const network = only !== undefined && specs.length === 1 && kinds.has(only.name) ? only.name : undefined
  const ports = [...publish, ...networkArgs.map(argumentOf)]
  if (ports.length > MAX_PUBLICATIONS) refuse(`publish: more than ${MAX_PUBLICATIONS}`)
  const published = ports.map(parsePublication)
  checkApart(published)
  if (netnsPath !== undefined) {
    if (net || specs.length > 0) refuse("a network namespace to join and one of its own exclude each other")
    if (published.length > 0) refuse(`publish: who made ${netnsPath} says what leads there`)
    return toJoin(netnsPath)
  }
  if (specs.length > 0 && network === undefined) {
    const mixed = specs.find(({ name }) => kinds.has(name))
    if (mixed !== undefined) refuse(`network ${mixed.name}: it has no others beside it`)
    const joined = joinAll(specs, options)
    if (published.length > 0 && joined.every(({ internal }) => internal))
      refuse("publish: nothing leads into a network that is internal")
    return { namespaces: [], connected: { published, joined } }
  }
  if (networkAlias.length > 0 || only?.aliases !== undefined || only?.address !== undefined)
    refuse("network-alias: only networks that have a name have names in them")
  switch (network ?? (net || published.length > 0 ? "pasta" : "host")) {
    case "none":
      if (published.length > 0) refuse('publish: nothing leads into the network "none"')
      return { namespaces: [{ type: "network" }] }
    case "host":
      if (net) refuse('a network of its own is not "host", the machine\'s')
      if (published.length > 0)
        refuse('publish: in the network "host" a payload listens on the machine itself')
      return { namespaces: [] }
    // The peers' word for one that has a way out.
    case "bridge":
    case "pasta":
      return { namespaces: [], connected: { published, joined: [] } }
    default:
      return refuse(`network ${network ?? ""} is not there`)
  }
}

/** What the starter is told of one: the programs, and where this user's networks are. */
export function networkArguments(
  { published, joined }: ConnectedNetwork,
  container: string,
  ids: IdMaps | undefined,
  dns: readonly string[] = [],
): string[] {
  const pasta = findProgram("pasta", "it connects the container's network (package passt)")
  return [
    ...[`--pasta=${pasta}`, `--resolver=${RESOLVER}`],
    ...published.map(
      ({ protocol, address, machinePort, containerPort, count }) =>
        `--publish=${[protocol, address, machinePort, containerPort, count].join(",")}`,
    ),
    ...(joined.length === 0 ? [] : joinArguments(joined, container, ids, dns)),
  ]
}

const podmans = "/usr/lib/podman"

function joinArguments(
  joined: readonly JoinedNetwork[],
  container: string,
  ids: IdMaps | undefined,
  dns: readonly string[],
): string[] {
  const other = dns.find((server) => !isIPv4(server))
  if (other !== undefined) refuse(`dns: ${other} is no IPv4 address, and networks have no others`)
  const what = "it makes networks that have a name; --network pasta and host do without"
  const netavark = findProgram("netavark", `${what} (package netavark)`, [podmans])
  const aardvark = findProgram("aardvark-dns", `${what} (package aardvark-dns)`, [podmans])
  // Version 1 of netavark knows no other way.
  findProgram("iptables", `netavark calls it (package iptables)`)
  return [
    ...[`--networks=${networkFolder()}`, `--netavark=${netavark}`, `--aardvark=${aardvark}`],
    `--container-name=${container}`,
    ...dns.map((server) => `--dns=${server}`),
    ...(ids === undefined ? [] : idMapArguments(ids, "networks-")),
    ...joined.map(
      ({ name, subnet, gateway, internal, address, aliases }) =>
        `--join=${[name, bridgeOf(name), subnet, gateway, internal ? "internal" : "", address ?? "", ...aliases].join(",")}`,
    ),
  ]
}
