// Networks that several containers are in: what is known of one is a file in a folder that is its user's alone. Nothing of the kernel's is
// there until a container is in it (native/starter/network_keeper.cc).
import { createHash } from "node:crypto"
import {
  closeSync,
  constants,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs"
import { connect, isIPv4 } from "node:net"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import * as is from "../arguments.ts"
import { RunError } from "../errors.ts"
import { parseJson } from "../json.ts"
import { lockFolder, type HeldFolder } from "../native/lock.ts"
import { ownFolder, readOwn } from "../native/private-folder.ts"
import type { Bytes, Milliseconds } from "../units.ts"

/** How {@link createNetwork} makes one. */
export interface NetworkOptions {
  /** `ADDRESS/BITS`, IPv4; default: one that nobody uses. */
  readonly subnet?: string | undefined
  /** Nothing leads out of it; default false. */
  readonly internal?: boolean | undefined
  /** Words of the caller's, kept with it. */
  readonly labels?: Readonly<Record<string, string | undefined>> | undefined
}

/** A container that is in a network. */
export interface NetworkMember {
  readonly name: string
  readonly address: string
}

/** A network. */
export interface NetworkInfo {
  readonly name: string
  readonly subnet: string
  /** The machine's own address in it, at which containers find its names. */
  readonly gateway: string
  readonly internal: boolean
  readonly labels: Readonly<Record<string, string>>
  /** Those that are in it now. */
  readonly containers: readonly NetworkMember[]
}

/** What is in the file. */
type NetworkFile = Omit<NetworkInfo, "containers">

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/
/** Networks of other kinds. */
const taken: ReadonlySet<string> = new Set(["none", "host", "pasta", "bridge"])
const MAX_FILE: Bytes = 64 << 10
const MAX_NETWORKS = 1024
/** A container has left its networks a moment after it has ended. */
const LEAVE_MS: Milliseconds = 2000
const LOOK_MS: Milliseconds = 20

export function isNetworkName(name: string): boolean {
  return NAME.test(name) && !taken.has(name)
}

export function checkNetworkName(name: string): void {
  if (!isNetworkName(name))
    throw new RunError("ERR_NETWORK_NAME", `not a name for a network: ${JSON.stringify(name)}`)
}

/** Where they are. */
export function networkFolder(): string {
  return ownFolder("networks")
}

/** A range of addresses. */
export interface Subnet {
  readonly first: number
  readonly bits: number
}

/** Addresses of it. */
export function sizeOf(bits: number): number {
  return 2 ** (32 - bits)
}

export function numberOf(address: string): number {
  return address.split(".").reduce((number, part) => number * 256 + Number(part), 0)
}

function addressOf(number: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(number / 2 ** shift) % 256).join(".")
}

/** `10.89.0.0/24`. */
export function parseSubnet(text: string): Subnet {
  const [, address = "", bits = ""] = /^([\d.]+)\/(\d{1,2})$/.exec(text) ?? []
  const wrong = (why: string): RunError => new RunError("ERR_NETWORK_SUBNET", `subnet ${text}: ${why}`)
  if (!isIPv4(address)) throw wrong("not ADDRESS/BITS, of IPv4")
  if (Number(bits) < 16 || Number(bits) > 29) throw wrong("16 to 29 bits are the network's")
  const first = numberOf(address)
  if (first % sizeOf(Number(bits)) !== 0) throw wrong("the address is not the first one of it")
  const [top = 0] = address.split(".").map(Number)
  if (top === 0 || top === 127 || top >= 224) throw wrong("these are no addresses of machines")
  return { first, bits: Number(bits) }
}

export function overlaps(one: Subnet, other: Subnet): boolean {
  return one.first < other.first + sizeOf(other.bits) && other.first < one.first + sizeOf(one.bits)
}

/** What pasta has of its own in containers: 10.255.254.0/24. */
const pastas: Subnet = { first: numberOf("10.255.254.0"), bits: 24 }
/** 10.89.0.0/16. */
const pool: Subnet = { first: numberOf("10.89.0.0"), bits: 16 }

/** What this machine has routes to, but for the one to everywhere. */
export function parseRoutes(table: string): Subnet[] {
  // proc(5), /proc/net/route: addresses are numbers of the machine's, whose lowest byte is the first.
  const turned = (hex: string): number => Buffer.from(hex.padStart(8, "0"), "hex").readUInt32LE()
  return table
    .split("\n")
    .slice(1)
    .flatMap((line) => {
      const [, destination = "", , , , , , mask = ""] = line.split("\t")
      if (!/^[0-9A-F]{8}$/.test(destination) || !/^[0-9A-F]{8}$/.test(mask)) return []
      const bits = turned(mask).toString(2).replaceAll("0", "").length
      return bits === 0 ? [] : [{ first: turned(destination), bits }]
    })
}

/** The first one of 256 addresses that overlaps none of these. */
export function freeSubnet(used: readonly Subnet[]): Subnet {
  for (let first = pool.first; first < pool.first + sizeOf(pool.bits); first += 256) {
    const subnet = { first, bits: 24 }
    if (!used.some((other) => overlaps(subnet, other))) return subnet
  }
  throw new RunError("ERR_NETWORK_SUBNET", "no subnet of 10.89.0.0/16 is free")
}

const isNetwork = (value: unknown): value is NetworkFile => {
  const found = value as Partial<Record<keyof NetworkFile, unknown>> | null
  return (
    typeof found === "object" &&
    found !== null &&
    ["name", "subnet", "gateway"].every((key) => typeof found[key as keyof NetworkFile] === "string") &&
    typeof found.internal === "boolean" &&
    typeof found.labels === "object" &&
    isIPv4(String(found.gateway))
  )
}

const fileOf = (folder: string, name: string): string => path.join(folder, `${name}.json`)

function readNetwork(folder: string, name: string): NetworkFile | undefined {
  const found = readOwn(fileOf(folder, name), MAX_FILE)
  try {
    const network: unknown = found === undefined ? undefined : parseJson(found)
    if (!isNetwork(network) || network.name !== name) return undefined
    parseSubnet(network.subnet)
    return network
  } catch {
    return undefined
  }
}

/** Is somebody there who keeps networks? */
async function isKept(folder: string): Promise<boolean> {
  // By its folder's descriptor: the path of a socket has 107 bytes at most.
  const fd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    const socket = connect(`/proc/self/fd/${fd}/keeper`)
    const code = await new Promise<string | undefined>((resolve) => {
      socket.on("connect", () => {
        resolve("EPROTOTYPE")
      })
      socket.on("error", (error: NodeJS.ErrnoException) => {
        resolve(error.code)
      })
    })
    socket.destroy()
    // It is a socket of another kind (unix(7)): of one that somebody listens on that is told, or something else. Nobody takes it away then.
    return code !== "ENOENT" && code !== "ECONNREFUSED"
  } finally {
    closeSync(fd)
  }
}

/** Who is in which network, by its name. */
async function membersIn(folder: string): Promise<ReadonlyMap<string, readonly NetworkMember[]>> {
  const members = new Map<string, NetworkMember[]>()
  const lines = (readOwn(path.join(folder, "members"), MAX_FILE) ?? "").split("\n")
  if (lines.length < 2 || !(await isKept(folder))) return members
  for (const line of lines) {
    const [network = "", address = "", name = ""] = line.split(" ")
    if (name !== "") members.set(network, [...(members.get(network) ?? []), { name, address }])
  }
  return members
}

/** The addresses of a container in its networks, by their names. */
export async function addressesOf(container: string): Promise<ReadonlyMap<string, string>> {
  const members = await membersIn(networkFolder())
  return new Map(
    [...members].flatMap(([network, all]) =>
      all.filter(({ name }) => name === container).map(({ address }) => [network, address] as const),
    ),
  )
}

function checkLocked(held: HeldFolder | undefined, folder: string): void {
  if (held === undefined) throw RunError.at(folder, "ERR_INSTANCE_FOLDER", "another process has locked it")
}

/** What was killed while it kept networks has left its socket. Only under the folder's lock. */
async function clearUp(folder: string): Promise<void> {
  if (await isKept(folder)) return
  for (const name of ["keeper", "members", "members.new"]) rmSync(path.join(folder, name), { force: true })
}

function namesIn(folder: string): string[] {
  return readdirSync(folder)
    .flatMap((file) => (file.endsWith(".json") && NAME.test(file.slice(0, -5)) ? [file.slice(0, -5)] : []))
    .sort()
}

const networkOptions: is.Check<NetworkOptions> = is.shape<NetworkOptions>({
  subnet: is.text,
  internal: is.flag,
  labels: is.variables,
})

function none(name: string): RunError {
  return new RunError("ERR_NETWORK_NONE", `there is no network ${name}`)
}

/**
 * Makes a network for containers that find each other by their names.
 *
 * @throws RunError `ERR_NETWORK_NAME`, `ERR_NETWORK_EXISTS`, `ERR_NETWORK_SUBNET`: it is used already, or none is free.
 */
export async function createNetwork(name: string, asked: NetworkOptions = {}): Promise<NetworkInfo> {
  checkNetworkName(is.text(name, "name"))
  const { subnet: wanted, internal = false, labels = {} } = networkOptions(asked, "options")
  const folder = networkFolder()
  await using held = await lockFolder(folder)
  checkLocked(held, folder)
  await clearUp(folder)
  const names = namesIn(folder)
  if (names.includes(name)) throw new RunError("ERR_NETWORK_EXISTS", `there is a network ${name} already`)
  if (names.length >= MAX_NETWORKS)
    throw new RunError("ERR_NETWORK_SUBNET", `there are ${MAX_NETWORKS} networks already`)
  const used = [
    ...parseRoutes(readFileSync("/proc/net/route", "latin1")).map((route) => ({
      of: "a route of this machine",
      route,
    })),
    ...names.flatMap((other) => {
      const known = readNetwork(folder, other)
      return known === undefined ? [] : [{ of: `the network ${other}`, route: parseSubnet(known.subnet) }]
    }),
    { of: "what pasta uses", route: pastas },
  ]
  const subnet = wanted === undefined ? freeSubnet(used.map(({ route }) => route)) : parseSubnet(wanted)
  const clash = used.find(({ route }) => overlaps(route, subnet))
  if (clash !== undefined)
    throw new RunError("ERR_NETWORK_SUBNET", `subnet ${wanted ?? ""}: it overlaps ${clash.of}`)
  const made: NetworkFile = {
    name,
    subnet: `${addressOf(subnet.first)}/${subnet.bits}`,
    gateway: addressOf(subnet.first + 1),
    internal,
    labels: Object.fromEntries(
      Object.entries(labels).map(([key, value]) => [key, is.text(value, `options.labels.${key}`)]),
    ),
  }
  const file = fileOf(folder, name)
  const content = JSON.stringify(made)
  if (Buffer.byteLength(content) > MAX_FILE)
    throw new RunError("ERR_RUN_OPTION", `network ${name}: its labels come to more than ${MAX_FILE} bytes`)
  writeFileSync(`${file}.new`, content, { mode: 0o600 })
  renameSync(`${file}.new`, file)
  return { ...made, containers: [] }
}

/** This user's networks, by name. */
export async function listNetworks(): Promise<NetworkInfo[]> {
  const folder = networkFolder()
  const members = await membersIn(folder)
  return namesIn(folder).flatMap((name) => {
    const found = readNetwork(folder, name)
    return found === undefined ? [] : [{ ...found, containers: members.get(name) ?? [] }]
  })
}

/**
 * The network of a name.
 *
 * @throws RunError `ERR_NETWORK_NONE`, `ERR_NETWORK_NAME`.
 */
export async function openNetwork(name: string): Promise<NetworkInfo> {
  const found = findNetwork(is.text(name, "name"))
  const members = await membersIn(networkFolder())
  return { ...found, containers: members.get(name) ?? [] }
}

/** The same without who is in it. */
export function findNetwork(name: string): NetworkFile {
  checkNetworkName(name)
  const found = readNetwork(networkFolder(), name)
  if (found === undefined) throw none(name)
  return found
}

/** Removes a network that nobody is in, and tells who is. */
async function removeUnused(name: string): Promise<readonly NetworkMember[]> {
  const folder = networkFolder()
  await using held = await lockFolder(folder)
  checkLocked(held, folder)
  await clearUp(folder)
  if (!namesIn(folder).includes(name)) throw none(name)
  const members = (await membersIn(folder)).get(name) ?? []
  if (members.length === 0) rmSync(fileOf(folder, name), { force: true })
  return members
}

/**
 * Removes a network.
 *
 * @throws RunError `ERR_NETWORK_NONE`, `ERR_NETWORK_NAME`; `ERR_NETWORK_BUSY`: containers are in it.
 */
export async function removeNetwork(name: string): Promise<void> {
  checkNetworkName(is.text(name, "name"))
  for (const late = performance.now() + LEAVE_MS; ;) {
    const members = await removeUnused(name)
    if (members.length === 0) return
    if (performance.now() > late) {
      const names = members.map((member) => member.name).join(", ")
      throw new RunError("ERR_NETWORK_BUSY", `the network ${name} is in use: ${names}`)
    }
    // Not under the lock: whoever is in it needs that to leave.
    await sleep(LOOK_MS)
  }
}

/** What the starter calls its bridge: fifteen letters at most. */
export function bridgeOf(name: string): string {
  return `sc${createHash("sha256").update(name).digest("hex").slice(0, 12)}`
}
