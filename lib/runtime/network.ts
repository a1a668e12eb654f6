// Which network a payload has: the machine's, one of its own with the loopback alone, one that is there already, or one of
// its own that pasta (of the passt project) connects to the machine's (native/starter/network.cc).
import { statfsSync } from "node:fs"
import { isIPv4 } from "node:net"
import path from "node:path"
import { RunError } from "../errors.ts"
import type { ExecOptions } from "./options.ts"

/** What of the options says which. */
export type NetworkChoice = Pick<ExecOptions, "net" | "network" | "networkArgs" | "netnsPath" | "publish">

/** Ports of the machine that lead to as many of the container's. */
export interface Publication {
  readonly protocol: "tcp" | "udp"
  /** Of the machine. */
  readonly address: string
  readonly machinePort: number
  readonly containerPort: number
  readonly count: number
}

/** One that has a way out. */
export interface ConnectedNetwork {
  readonly published: readonly Publication[]
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

/**
 * Which network is asked for.
 *
 * @throws RunError `ERR_RUN_OPTION`.
 */
export function networkOf(options: NetworkChoice): PayloadNetwork {
  const { net = false, network, netnsPath, networkArgs = [], publish = [] } = options
  const ports = [...publish, ...networkArgs.map(argumentOf)]
  if (ports.length > MAX_PUBLICATIONS) refuse(`publish: more than ${MAX_PUBLICATIONS}`)
  const published = ports.map(parsePublication)
  checkApart(published)
  if (netnsPath !== undefined) {
    if (net || network !== undefined)
      refuse("a network namespace to join and one of its own exclude each other")
    if (published.length > 0) refuse(`publish: who made ${netnsPath} says what leads there`)
    return toJoin(netnsPath)
  }
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
      return { namespaces: [], connected: { published } }
    default:
      return refuse(`network ${network ?? ""} is not there: there are none, host, pasta and bridge`)
  }
}
