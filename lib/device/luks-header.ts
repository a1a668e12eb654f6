// The LUKS2 header as a partition of an image carries it: read once, checked, and written anew from what was checked.
//
// Nothing authenticates a LUKS2 header, so whoever can write the image chooses what it says (CVE-2021-4122,
// CVE-2025-59054). Only what a container image needs is accepted, before any key derivation runs; and what is handed to
// libcryptsetup is not the image's text but our own encoding of the values we checked, so the two parsers cannot disagree.
//
// Source of the numbers: LUKS2 On-Disk Format Specification 1.1.
import * as is from "../arguments.ts"
import { createHash } from "node:crypto"
import { LuksError } from "../errors.ts"
import { alignUp, type Bytes, type KdfLimits, type Milliseconds } from "../units.ts"
import { parseStrictJson, type JsonObject, type JsonValue } from "./strict-json.ts"

const limit = is.number(0, Infinity)
export const kdfLimits: is.Check<Partial<KdfLimits>> = is.shape<Partial<KdfLimits>>({
  memory: limit,
  work: limit,
  parallel: limit,
  iterations: limit,
})

/**
 * Passes over the memory that is allowed. cryptsetup makes as many as its machine manages in two seconds, 9 to 14 at the 1 GiB
 * that it takes at most, for each keyslot: this is 16 for all that LUKS2 can have.
 */
const PASSES = 32 * 16

/** What cryptsetup makes by itself, on any machine: memory is what may not be there, time is told before it is spent. */
export const DEFAULT_KDF_LIMITS: Omit<KdfLimits, "work"> = {
  memory: 1024 * 1024,
  parallel: 16,
  iterations: 32 * 16_000_000, // its two seconds again, with SHA-256 in hardware
}

/** The defaults, where they are not replaced: a limit that is undefined is no invitation. More memory takes longer to fill. */
export function limitsWith(replaced: Partial<KdfLimits> = {}): KdfLimits {
  const given = Object.entries(replaced).filter(([, value]) => (value as number | undefined) !== undefined)
  const limits = { ...DEFAULT_KDF_LIMITS, ...(Object.fromEntries(given) as Partial<KdfLimits>) }
  return { work: PASSES * Math.max(limits.memory, DEFAULT_KDF_LIMITS.memory), ...limits }
}

/** For a header that derives no key, or that was just made here. */
export const UNLIMITED: KdfLimits = {
  memory: Infinity,
  work: Infinity,
  parallel: Infinity,
  iterations: Infinity,
}

/** What a header may ask for. */
export interface LuksPolicy {
  /** A cipher that is accepted besides `aes-xts-plain64`, in dm-crypt's notation. Null ciphers never are. */
  readonly allowCipher?: string | undefined
  /** Replace single {@link DEFAULT_KDF_LIMITS}. */
  readonly limits?: Partial<KdfLimits> | undefined
  /** Hears how long a key derivation may take here, before one that takes seconds. */
  readonly onDerivation?: ((estimate: Milliseconds) => void) | undefined
  /** Where a process of this user holds the key already, for who has the same secret: by a name that only that gives. */
  readonly findHeldKey?: ((id: string) => Uint8Array | undefined) | undefined
}

/** How a keyslot turns its secret into a key. */
export interface LuksKdf {
  readonly type: "pbkdf2" | "argon2i" | "argon2id"
  /** Iterations of PBKDF2, passes of Argon2. */
  readonly iterations: number
  /** KiB; 0 for PBKDF2. */
  readonly memory: number
  /** Threads; 0 for PBKDF2. */
  readonly parallel: number
}

/** A way to the volume key. */
export interface LuksKeyslot {
  readonly id: number
  readonly kdf: LuksKdf
  /** For people: `256 MiB, 4 passes, 1 thread`. */
  readonly cost: string
  /** Names this keyslot and none that comes in its place: 32 hex digits, of its salt's SHA-256. */
  readonly mark: string
}

/** Where the data lies in the partition and how it is encrypted. */
export interface LuksSegment {
  /** From the start of the partition. */
  readonly offset: Bytes
  /** Whole sectors; `dynamic` in the image is resolved to what the partition has. */
  readonly size: Bytes
  /** In 512-byte units. */
  readonly ivTweak: number
  readonly sectorSize: Bytes
  /** In dm-crypt's notation. */
  readonly cipher: string
  /** Of the volume key. */
  readonly keySize: Bytes
}

/** What verifies a volume key. */
export interface LuksDigest {
  readonly id: number
  readonly hash: string
  readonly iterations: number
}

/** A header that was checked. */
export interface LuksHeader {
  /** Both copies' room: the primary one, encoded anew from what was checked, then zeros. */
  readonly metadata: Buffer
  /** The metadata and as much of the keyslots area as the keyslots use. */
  readonly areaSize: Bytes
  readonly uuid: string
  readonly segment: LuksSegment
  /** Those that lead to the segment's key. */
  readonly keyslots: readonly LuksKeyslot[]
  readonly digest: LuksDigest
  /** For whoever changes it. */
  readonly stored: LuksStored
}

/** Where bytes of the keyslots area lie, from the start of the partition. */
export interface LuksArea {
  readonly offset: Bytes
  readonly size: Bytes
}

/** What is in the image beside what opening it needs: for a change of its keyslots. */
export interface LuksStored {
  /** Of one copy of the metadata. */
  readonly headerSize: Bytes
  /** The highest of the valid copies. */
  readonly sequence: bigint
  /** The copy that is in force; the other one is older, damaged or the same. */
  readonly current: "primary" | "secondary"
  /** All of it. */
  readonly keyslotsArea: LuksArea
  /** Of each keyslot that leads to the segment's key. */
  readonly areas: ReadonlyMap<number, LuksArea>
  readonly partitionSize: Bytes
  readonly policy: LuksPolicy
  /** Label and subsystem: bytes of the binary header that mean nothing to us. */
  readonly label: Buffer
  readonly subsystem: Buffer
  /** The checked parts, encoded anew; the segment with its size as the image has it. */
  readonly document: LuksDocument
  /** As the image has them, unchecked. */
  readonly tokens: JsonValue | undefined
  readonly flags: JsonValue | undefined
}

/** The JSON of a header, as far as it was checked. */
export interface LuksDocument {
  readonly keyslots: Readonly<Record<string, object>>
  readonly tokens: object
  readonly segments: Readonly<Record<string, object>>
  readonly digests: Readonly<
    Record<string, { readonly keyslots: readonly string[]; readonly [member: string]: unknown }>
  >
  readonly config: object
}

/** Bytes of an image at a position; shorter only at its end. */
export interface LuksReader {
  read(position: Bytes, length: Bytes): Promise<Buffer>
}

const BINARY_SIZE = 4096 // 2.2: the JSON area follows
const MIN_HEADER_SIZE = 16 * 1024 // 2.1
const MAX_HEADER_SIZE = 4 * 1024 * 1024
const PRIMARY_MAGIC = Buffer.from("LUKS\xba\xbe", "latin1")
const SECONDARY_MAGIC = Buffer.from("SKUL\xba\xbe", "latin1")
// struct luks2_hdr_disk, 2.2; integers are big endian
const VERSION_AT = 6
const HEADER_SIZE_AT = 8
const SEQUENCE_AT = 16
const LABEL_AT = 24
const LABEL_SIZE = 48
const CHECKSUM_NAME_AT = 72
const CHECKSUM_NAME_SIZE = 32
const SALT_AT = 104
const SALT_SIZE = 64
const UUID_AT = 168
const UUID_SIZE = 40
const SUBSYSTEM_AT = 208
const SUBSYSTEM_SIZE = 48
const HEADER_OFFSET_AT = 256
const CHECKSUM_AT = 448
const CHECKSUM_SIZE = 64
const LUKS_VERSION = 2

export const KEYSLOT_LIMIT = 32 // LUKS2_KEYSLOTS_MAX
export const AREA_UNIT: Bytes = 4096
/** What the native side copies at most. */
export const MAX_AREA_SIZE: Bytes = 64 * 1024 * 1024
export const AF_STRIPES = 4000
const SUPPORTED_CIPHER = "aes-xts-plain64"
const KEY_SIZES: readonly number[] = [32, 64]
const SECTOR_SIZES: readonly number[] = [512, 1024, 2048, 4096]
const KDF_HASH_SIZES: Readonly<Record<string, Bytes>> = {
  sha1: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
}
/** Of a header that was LUKS1 once, whatever the hash (LUKS_DIGESTSIZE). */
const CONVERTED_DIGEST_SIZE: Bytes = 20
const HASHES: readonly string[] = [
  "sha1",
  "sha224",
  "sha256",
  "sha384",
  "sha512",
  "ripemd160",
  "whirlpool",
].concat(["sha3-224", "sha3-256", "sha3-384", "sha3-512", "blake2b-512", "blake2s-256", "sm3", "stribog512"])
const MIN_SALT: Bytes = 8
const MAX_SALT: Bytes = 512

function malformed(what: string): never {
  throw new LuksError("ERR_LUKS_HEADER", `the LUKS2 header is malformed: ${what}`)
}

function unsupported(what: string): never {
  throw new LuksError("ERR_LUKS_UNSUPPORTED", `the LUKS2 header asks for what is not supported: ${what}`)
}

/** @param needed - The limits that would allow it. */
function tooCostly(what: string, needed: Partial<KdfLimits>): never {
  throw new LuksError("ERR_LUKS_COST", what, { kdfLimits: needed })
}

/** What has to replace limits for `needed` to be allowed. */
export function exceeded(needed: KdfLimits, limits: KdfLimits): Partial<KdfLimits> {
  const over = (Object.keys(needed) as (keyof KdfLimits)[]).filter((name) => needed[name] > limits[name])
  const found: Partial<KdfLimits> = Object.fromEntries(over.map((name) => [name, needed[name]]))
  // The one number that people give allows as much work.
  return found.work === undefined
    ? found
    : { ...found, memory: Math.max(needed.memory, Math.ceil(found.work / PASSES)) }
}

/** A value of the image in a message: short, and without control characters. */
function show(value: JsonValue | undefined): string {
  const text = value === undefined ? "nothing" : JSON.stringify(value)
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}

// ---- The binary header -------------------------------------------------------------------------------------------------

interface Copy {
  readonly headerSize: Bytes
  readonly sequence: bigint
  readonly uuid: string
  readonly binary: Buffer
  readonly json: string
}

function isHeaderSize(size: bigint): boolean {
  // a power of two
  return size >= BigInt(MIN_HEADER_SIZE) && size <= BigInt(MAX_HEADER_SIZE) && (size & (size - 1n)) === 0n
}

function cString(field: Buffer): string {
  const end = field.indexOf(0)
  return field.subarray(0, end < 0 ? field.length : end).toString("latin1")
}

/** The copy of the metadata at `at`, or why there is none. */
function readCopy(bytes: Buffer, at: Bytes, magic: Buffer): Copy | string {
  if (bytes.length < at + BINARY_SIZE) return "the partition ends before it"
  if (!bytes.subarray(at, at + magic.length).equals(magic)) return "no LUKS magic"
  const binary = Buffer.from(bytes.subarray(at, at + BINARY_SIZE))
  const version = binary.readUInt16BE(VERSION_AT)
  if (version !== LUKS_VERSION) return `version ${version} and not 2`
  const size = binary.readBigUInt64BE(HEADER_SIZE_AT)
  if (!isHeaderSize(size)) return `header size ${size}`
  const headerSize = Number(size)
  if (binary.readBigUInt64BE(HEADER_OFFSET_AT) !== BigInt(at)) return "it names another place as its own"
  if (at !== 0 && at !== headerSize) return "the second copy does not follow the first"
  if (bytes.length < at + headerSize) return "the partition ends within it"
  const hash = cString(binary.subarray(CHECKSUM_NAME_AT, CHECKSUM_NAME_AT + CHECKSUM_NAME_SIZE))
  if (hash !== "sha256") return `checksum ${JSON.stringify(hash)}`
  if (!checksum(bytes.subarray(at, at + headerSize)).equals(binary.subarray(CHECKSUM_AT, CHECKSUM_AT + 32)))
    return "the checksum does not match"
  const area = bytes.subarray(at + BINARY_SIZE, at + headerSize)
  const end = area.indexOf(0)
  if (end < 0) return "the JSON area has no end"
  // At once: a function that is called for each of twelve thousand bytes takes a millisecond.
  if (!area.subarray(end).equals(Buffer.alloc(area.length - end))) return "data after the JSON"
  const uuid = cString(binary.subarray(UUID_AT, UUID_AT + UUID_SIZE))
  // it becomes part of the mapping's and the key's name in the kernel
  if (!/^[0-9a-fA-F-]{1,36}$/.test(uuid)) return "the UUID"
  let json: string
  try {
    json = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(area.subarray(0, end))
  } catch {
    return "the JSON is no UTF-8"
  }
  return { headerSize, sequence: binary.readBigUInt64BE(SEQUENCE_AT), uuid, binary, json }
}

/** SHA-256 over a copy, its checksum field taken as zeros (2.2). */
function checksum(copy: Buffer): Buffer {
  return createHash("sha256")
    .update(copy.subarray(0, CHECKSUM_AT))
    .update(Buffer.alloc(CHECKSUM_SIZE))
    .update(copy.subarray(CHECKSUM_AT + CHECKSUM_SIZE))
    .digest()
}

/** The newest valid copy; the first one of equals. */
function findCopy(bytes: Buffer): Copy & Pick<LuksStored, "current"> {
  const primary = readCopy(bytes, 0, PRIMARY_MAGIC)
  const copies = typeof primary === "string" ? [] : [primary]
  for (let size = MIN_HEADER_SIZE; size <= MAX_HEADER_SIZE; size *= 2) {
    if (typeof primary !== "string" && size !== primary.headerSize) continue
    const secondary = readCopy(bytes, size, SECONDARY_MAGIC)
    if (typeof secondary !== "string") copies.push(secondary)
  }
  const newest = copies.reduce<Copy | undefined>(
    (best, copy) => (best === undefined || copy.sequence > best.sequence ? copy : best),
    undefined,
  )
  if (newest === undefined) malformed(typeof primary === "string" ? primary : "no valid copy")
  return { ...newest, current: newest === primary ? "primary" : "secondary" }
}

// ---- Values ------------------------------------------------------------------------------------------------------------

function object(value: JsonValue | undefined, what: string): JsonObject {
  if (typeof value !== "object" || value === null || Array.isArray(value)) malformed(`${what} is no object`)
  return value as JsonObject
}

function text(value: JsonValue | undefined, what: string): string {
  return typeof value === "string" ? value : malformed(`${what} is ${show(value)} and no string`)
}

/** A number of the JSON, in bounds. */
function integer(value: JsonValue | undefined, what: string, min: number, max: number): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < min || value > max)
    malformed(`${what} is ${show(value)}`)
  return value
}

/** 64-bit numbers stand in strings (3.1); nothing here needs more than 53 bits. */
function decimal(value: JsonValue | undefined, what: string): number {
  const digits = text(value, what)
  if (!/^(?:0|[1-9][0-9]{0,15})$/.test(digits) || !Number.isSafeInteger(Number(digits)))
    malformed(`${what} is ${show(value)}`)
  return Number(digits)
}

function base64(value: JsonValue | undefined, what: string): string {
  const encoded = text(value, what)
  const bytes = Buffer.from(encoded, "base64")
  if (bytes.toString("base64") !== encoded || bytes.length < MIN_SALT || bytes.length > MAX_SALT)
    malformed(`${what} is ${show(value)}`)
  return encoded
}

/** For key derivation: what cryptsetup uses there, and none that is several times slower. */
function kdfHashName(value: JsonValue | undefined, what: string): string {
  const name = text(value, what)
  return Object.hasOwn(KDF_HASH_SIZES, name) ? name : unsupported(`${what} ${show(name)}`)
}

function hashName(value: JsonValue | undefined, what: string): string {
  const name = text(value, what)
  return HASHES.includes(name) ? name : unsupported(`${what} ${show(name)}`)
}

/** The numbered members of an object. */
function numbered(value: JsonObject, what: string): [number, JsonObject][] {
  return Object.entries(value).map(([id, member]) => {
    if (!/^(?:0|[1-9][0-9]?)$/.test(id) || Number(id) >= KEYSLOT_LIMIT)
      malformed(`${what} has the number ${show(id)}`)
    return [Number(id), object(member, `${what} ${id}`)]
  })
}

function idList(value: JsonValue | undefined, what: string): number[] {
  if (!Array.isArray(value)) malformed(`${what} is no list`)
  const ids = (value as readonly JsonValue[]).map((id) => decimal(id, what))
  if (new Set(ids).size !== ids.length) malformed(`${what} names one twice`)
  return ids
}

// ---- The parts ---------------------------------------------------------------------------------------------------------

interface Checked<T> {
  readonly value: T
  /** Our encoding of it. */
  readonly json: object
}

function checkCipher(cipher: string, what: string, policy: LuksPolicy): void {
  if (cipher === SUPPORTED_CIPHER) return
  if (cipher === policy.allowCipher && !/null/i.test(cipher)) return
  unsupported(`${what} ${show(cipher)}; only ${SUPPORTED_CIPHER} is accepted`)
}

function checkKeySize(size: number, what: string, cipher: string): number {
  const known = cipher === SUPPORTED_CIPHER ? KEY_SIZES : [16, 24, ...KEY_SIZES]
  return known.includes(size) ? size : unsupported(`${what} of ${size} bytes`)
}

function checkSegments(
  value: JsonObject,
  partitionSize: Bytes,
  policy: LuksPolicy,
): Checked<Omit<LuksSegment, "keySize">> & { readonly id: number; readonly stored: object } {
  const segments = numbered(value, "segment")
  const [first] = segments
  if (first === undefined) malformed("no segment")
  if (segments.length !== 1) unsupported(`${segments.length} segments`)
  const [id, segment] = first
  const type = text(segment["type"], "the segment's type")
  if (type !== "crypt") unsupported(`a segment of type ${show(type)}`)
  for (const name of ["integrity", "flags"] as const) {
    const extra = segment[name]
    if (extra !== undefined && !(Array.isArray(extra) && extra.length === 0))
      unsupported(`a segment with ${name}`)
  }
  const cipher = text(segment["encryption"], "the segment's cipher")
  checkCipher(cipher, "the cipher", policy)
  const sectorSize = integer(segment["sector_size"], "the sector size", 0, Number.MAX_SAFE_INTEGER)
  if (!SECTOR_SIZES.includes(sectorSize)) unsupported(`sectors of ${sectorSize} bytes`)
  const offset = decimal(segment["offset"], "the segment's offset")
  const ivTweak = decimal(segment["iv_tweak"], "the segment's iv_tweak")
  if (offset % sectorSize !== 0 || offset === 0) malformed(`the segment's offset is ${offset}`)
  if (offset >= partitionSize)
    malformed(`the segment starts at ${offset}, the partition has ${partitionSize} bytes`)
  const room = partitionSize - offset
  const dynamic = segment["size"] === "dynamic"
  const size = dynamic ? room - (room % sectorSize) : decimal(segment["size"], "the segment's size")
  if (size > room) malformed(`the segment has ${size} bytes, the partition ${room} for it`)
  if (size === 0 || size % sectorSize !== 0) malformed(`the segment has ${size} bytes`)
  const json = {
    type: "crypt",
    offset: String(offset),
    // dm-crypt then gets what we resolved, not what the device happens to have
    size: String(size),
    iv_tweak: String(ivTweak),
    encryption: cipher,
    sector_size: sectorSize,
  }
  return {
    id,
    value: { offset, size, ivTweak, sectorSize, cipher },
    json,
    stored: dynamic ? { ...json, size: "dynamic" } : json,
  }
}

function checkDigests(
  value: JsonObject,
  segmentId: number,
): Omit<Checked<LuksDigest>, "json"> & {
  readonly keyslots: readonly number[]
  readonly json: LuksDocument["digests"][string]
} {
  const ours = numbered(value, "digest").filter(([id, digest]) =>
    idList(digest["segments"], `digest ${id}'s segments`).includes(segmentId),
  )
  const [first] = ours
  if (first === undefined) malformed("no digest for the segment")
  if (ours.length !== 1) malformed("two digests for the segment")
  const [id, digest] = first
  const type = text(digest["type"], "the digest's type")
  if (type !== "pbkdf2") unsupported(`a digest of type ${show(type)}`)
  const keyslots = idList(digest["keyslots"], "the digest's keyslots")
  const hash = kdfHashName(digest["hash"], "the digest's hash")
  const iterations = integer(digest["iterations"], "the digest's iterations", 1, 0xffff_ffff)
  const segments = idList(digest["segments"], "the digest's segments")
  if (segments.length !== 1) malformed("a digest for segments that are not there")
  const bytes = base64(digest["digest"], "the digest")
  const size = Buffer.byteLength(bytes, "base64")
  // libcryptsetup 2.6 takes a digest of any other size for one that every key has: whatever the passphrase, a keyslot opens.
  if (size !== CONVERTED_DIGEST_SIZE && size !== KDF_HASH_SIZES[hash])
    malformed(`the digest has ${size} bytes, which ${hash} does not give`)
  return {
    keyslots,
    value: { id, hash, iterations },
    json: {
      type,
      keyslots: keyslots.map(String),
      segments: [String(segmentId)],
      hash,
      iterations,
      salt: base64(digest["salt"], "the digest's salt"),
      digest: bytes,
    },
  }
}

function checkKdf(value: JsonObject, what: string): Checked<LuksKdf> & { readonly mark: string } {
  const type = text(value["type"], `${what}'s KDF`)
  const salt = base64(value["salt"], `${what}'s salt`)
  const mark = createHash("sha256").update(Buffer.from(salt, "base64")).digest("hex").slice(0, 32)
  if (type === "pbkdf2") {
    const hash = kdfHashName(value["hash"], `${what}'s hash`)
    const iterations = integer(value["iterations"], `${what}'s iterations`, 1, 0xffff_ffff)
    return {
      mark,
      value: { type, iterations, memory: 0, parallel: 0 },
      json: { type, hash, iterations, salt },
    }
  }
  if (type !== "argon2i" && type !== "argon2id") unsupported(`the KDF ${show(type)}`)
  const time = integer(value["time"], `${what}'s Argon2 passes`, 1, 0xffff_ffff)
  const memory = integer(value["memory"], `${what}'s Argon2 memory`, 8, 0xffff_ffff)
  const cpus = integer(value["cpus"], `${what}'s Argon2 threads`, 1, 0xff_ffff)
  return {
    mark,
    value: { type, iterations: time, memory, parallel: cpus },
    json: { type, time, memory, cpus, salt },
  }
}

/** The cost in words. */
function describeCost(kdf: LuksKdf): string {
  if (kdf.type === "pbkdf2") return `${kdf.iterations} iterations`
  const memory = kdf.memory % 1024 === 0 ? `${kdf.memory / 1024} MiB` : `${kdf.memory} KiB`
  const plural = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? "" : "s"}`
  return `${memory}, ${kdf.iterations} ${kdf.iterations === 1 ? "pass" : "passes"}, ${plural(kdf.parallel, "thread")}`
}

function checkArea(
  value: JsonObject,
  what: string,
  keyslotsArea: LuksArea,
  policy: LuksPolicy,
): Checked<LuksArea> {
  const type = text(value["type"], `${what}'s area type`)
  if (type !== "raw") unsupported(`${what} with an area of type ${show(type)}`)
  const encryption = text(value["encryption"], `${what}'s cipher`)
  checkCipher(encryption, `${what}'s cipher`, policy)
  const keySize = checkKeySize(
    integer(value["key_size"], `${what}'s area key`, 0, 512),
    `${what}'s area key`,
    encryption,
  )
  const offset = decimal(value["offset"], `${what}'s area offset`)
  const size = decimal(value["size"], `${what}'s area size`)
  const inside =
    offset >= keyslotsArea.offset && offset + size <= keyslotsArea.offset + keyslotsArea.size && size > 0
  if (!inside || offset % AREA_UNIT !== 0)
    malformed(`${what}'s area of ${size} bytes at ${offset} is not in the keyslots area`)
  return {
    value: { offset, size },
    json: { type, offset: String(offset), size: String(size), encryption, key_size: keySize },
  }
}

function checkKeyslot(
  id: number,
  keyslot: JsonObject,
  keyslotsArea: LuksArea,
  policy: LuksPolicy,
): Checked<LuksKeyslot> & { readonly keySize: Bytes; readonly area: LuksArea } {
  const what = `keyslot ${id}`
  const type = text(keyslot["type"], `${what}'s type`)
  if (type !== "luks2") unsupported(`${what} of type ${show(type)}`)
  const keySize = integer(keyslot["key_size"], `${what}'s key size`, 1, 512)
  const af = object(keyslot["af"], `${what}'s splitter`)
  if (af["type"] !== "luks1") unsupported(`${what} with the splitter ${show(af["type"])}`)
  if (af["stripes"] !== AF_STRIPES) unsupported(`${what} with ${show(af["stripes"])} stripes`)
  const afHash = hashName(af["hash"], `${what}'s splitter hash`)
  const area = checkArea(object(keyslot["area"], `${what}'s area`), what, keyslotsArea, policy)
  if (area.value.size < keySize * AF_STRIPES) malformed(`${what}'s area has ${area.value.size} bytes`)
  const kdf = checkKdf(object(keyslot["kdf"], `${what}'s KDF`), what)
  const priority = keyslot["priority"]
  return {
    keySize,
    area: area.value,
    value: { id, kdf: kdf.value, cost: describeCost(kdf.value), mark: kdf.mark },
    json: {
      type,
      key_size: keySize,
      af: { type: "luks1", stripes: AF_STRIPES, hash: afHash },
      area: area.json,
      kdf: kdf.json,
      ...(priority === undefined ? {} : { priority: integer(priority, `${what}'s priority`, 0, 2) }),
    },
  }
}

function checkOverlap(areas: readonly LuksArea[]): void {
  const sorted = [...areas].sort((a, b) => a.offset - b.offset)
  sorted.forEach((area, i) => {
    const next = sorted[i + 1]
    if (next !== undefined && area.offset + area.size > next.offset) malformed("keyslot areas overlap")
  })
}

/** What trying every keyslot once would cost, at most. */
function checkCost(keyslots: readonly LuksKeyslot[], digest: LuksDigest, limits: KdfLimits): void {
  const needed = {
    memory: Math.max(...keyslots.map(({ kdf }) => kdf.memory)),
    parallel: Math.max(...keyslots.map(({ kdf }) => kdf.parallel)),
    ...derivationCost(keyslots),
  }
  // the digest verifies each key that a keyslot gives
  needed.iterations += digest.iterations * keyslots.length
  const over = exceeded(needed, limits)
  for (const { id, kdf } of keyslots) {
    if (kdf.memory > limits.memory)
      tooCostly(`keyslot ${id} asks for ${kdf.memory} KiB of memory; the limit is ${limits.memory} KiB`, over)
    if (kdf.parallel > limits.parallel)
      tooCostly(`keyslot ${id} asks for ${kdf.parallel} threads; the limit is ${limits.parallel}`, over)
  }
  if (over.work !== undefined)
    tooCostly(`the keyslots ask for ${over.work} KiB times passes; the limit is ${limits.work}`, over)
  if (over.iterations !== undefined)
    tooCostly(
      `the header asks for ${over.iterations} PBKDF2 iterations; the limit is ${limits.iterations}`,
      over,
    )
}

/** A pass of Argon2 starts each thread four times, however little there is to fill: as much time as filling this, KiB. */
const LEAST_OF_THREAD = 1024

/** KiB that count for a pass. */
export function passCost({ memory, parallel }: Pick<LuksKdf, "memory" | "parallel">): number {
  return Math.max(memory, parallel * LEAST_OF_THREAD)
}

/** Of all these keyslots together. */
export function derivationCost(keyslots: readonly LuksKeyslot[]): Pick<KdfLimits, "work" | "iterations"> {
  let work = 0
  let iterations = 0
  for (const { kdf } of keyslots)
    if (kdf.type === "pbkdf2") iterations += kdf.iterations
    else work += passCost(kdf) * kdf.iterations
  return { work, iterations }
}

function checkRequirements(config: JsonObject): void {
  const value = config["requirements"]
  if (value === undefined) return
  const requirements = object(value, "the requirements")
  const mandatory = requirements["mandatory"]
  if (mandatory === undefined) return
  if (!Array.isArray(mandatory)) malformed("the mandatory requirements are no list")
  if (mandatory.length > 0) unsupported(`the requirement ${show((mandatory as JsonValue[])[0])}`)
}

/** What a copy of the metadata says outside of its JSON. */
export interface LuksBinaryHeader {
  readonly headerSize: Bytes
  readonly sequence: bigint
  readonly uuid: string
  readonly label?: Buffer
  readonly subsystem?: Buffer
  /** Makes copies of one document differ; meaningless. */
  readonly salt?: Buffer
}

/** A copy of the metadata; undefined when the document is too long for it. */
export function encodeLuksCopy(
  which: LuksStored["current"],
  binary: LuksBinaryHeader,
  document: LuksDocument,
): Buffer | undefined {
  const json = Buffer.from(JSON.stringify(document))
  const { headerSize, sequence, uuid, label, subsystem, salt } = binary
  if (json.length >= headerSize - BINARY_SIZE) return undefined
  const copy = Buffer.alloc(headerSize)
  const primary = which === "primary"
  const magic = primary ? PRIMARY_MAGIC : SECONDARY_MAGIC
  magic.copy(copy)
  copy.writeUInt16BE(LUKS_VERSION, VERSION_AT)
  copy.writeBigUInt64BE(BigInt(headerSize), HEADER_SIZE_AT)
  copy.writeBigUInt64BE(sequence, SEQUENCE_AT)
  label?.copy(copy, LABEL_AT, 0, LABEL_SIZE)
  copy.write("sha256", CHECKSUM_NAME_AT, "latin1")
  salt?.copy(copy, SALT_AT, 0, SALT_SIZE)
  copy.write(uuid, UUID_AT, "latin1")
  subsystem?.copy(copy, SUBSYSTEM_AT, 0, SUBSYSTEM_SIZE)
  copy.writeBigUInt64BE(primary ? 0n : BigInt(headerSize), HEADER_OFFSET_AT)
  json.copy(copy, BINARY_SIZE)
  checksum(copy).copy(copy, CHECKSUM_AT)
  return copy
}

/** Both copies' room: the primary one, then zeros. */
function encode(binary: LuksBinaryHeader, document: LuksDocument): Buffer {
  const primary = encodeLuksCopy("primary", binary, document) ?? malformed("the JSON area is too small")
  return Buffer.concat([primary, Buffer.alloc(binary.headerSize)])
}

/** The keyslots area as libcryptsetup gets it whole; `keyslots_size` is all that a change may add to. */
export function encodeForChange(header: LuksHeader): { readonly metadata: Buffer; readonly areaSize: Bytes } {
  const { headerSize, sequence, keyslotsArea, document } = header.stored
  const areaSize = Math.min(keyslotsArea.offset + keyslotsArea.size, MAX_AREA_SIZE)
  const size = String(areaSize - keyslotsArea.offset)
  const metadata = encode(
    { headerSize, sequence, uuid: header.uuid },
    { ...document, config: { ...document.config, keyslots_size: size } },
  )
  return { metadata, areaSize }
}

/** The keyslots that libcryptsetup added to what {@link encodeForChange} gave it, encoded anew. */
export function decodeAddedKeyslots(
  header: LuksHeader,
  metadata: Buffer,
  ids: readonly number[],
): { readonly id: number; readonly area: LuksArea; readonly json: object }[] {
  const { keyslotsArea, policy } = header.stored
  const root = parseJson(findCopy(metadata).json)
  const all = numbered(object(root["keyslots"], "the list of keyslots"), "keyslot")
  return ids.map((id) => {
    const [, keyslot] = all.find(([other]) => other === id) ?? malformed(`there is no keyslot ${id}`)
    const { area, json, keySize } = checkKeyslot(id, keyslot, keyslotsArea, policy)
    if (keySize !== header.segment.keySize) malformed("keyslots with keys of different sizes")
    return { id, area, json }
  })
}

function parseJson(json: string): JsonObject {
  try {
    return object(parseStrictJson(json), "the JSON")
  } catch (cause) {
    if (cause instanceof LuksError) throw cause
    throw new LuksError("ERR_LUKS_HEADER", `the LUKS2 header is malformed: ${(cause as Error).message}`, {
      cause,
    })
  }
}

/**
 * Checks the LUKS2 header at the start of a partition. Pure: no key, no KDF, no library.
 *
 * @param bytes - The first bytes of the partition: all of the metadata, at most 8 MiB.
 * @param partitionSize - Size of the whole partition, which bounds the data segment.
 * @throws LuksError `ERR_LUKS_HEADER` when no copy of it is well-formed, `ERR_LUKS_UNSUPPORTED` when it asks for what is not
 * accepted (and names it), `ERR_LUKS_COST` when deriving a key would cost more than the limits.
 */
export function decodeLuksHeader(bytes: Buffer, partitionSize: Bytes, policy: LuksPolicy = {}): LuksHeader {
  const copy = findCopy(bytes)
  const root = parseJson(copy.json)
  const config = object(root["config"], "the config")
  checkRequirements(config)
  const jsonSize = decimal(config["json_size"], "json_size")
  if (jsonSize !== copy.headerSize - BINARY_SIZE) malformed(`json_size is ${jsonSize}`)
  const keyslotsArea: LuksArea = {
    offset: 2 * copy.headerSize,
    size: decimal(config["keyslots_size"], "keyslots_size"),
  }
  const segment = checkSegments(object(root["segments"], "the list of segments"), partitionSize, policy)
  if (keyslotsArea.size % AREA_UNIT !== 0) malformed(`keyslots_size is ${keyslotsArea.size}`)
  if (keyslotsArea.offset + keyslotsArea.size > segment.value.offset)
    malformed("the data segment overlaps the header")
  const digest = checkDigests(object(root["digests"], "the list of digests"), segment.id)

  const all = numbered(object(root["keyslots"], "the list of keyslots"), "keyslot")
  const reencryption = all.find(([, keyslot]) => keyslot["type"] === "reencrypt")
  if (reencryption !== undefined) unsupported(`keyslot ${reencryption[0]} of type "reencrypt"`)
  for (const id of digest.keyslots) {
    if (!all.some(([other]) => other === id)) malformed(`the digest names keyslot ${id}, which is not there`)
  }
  // Those that are bound to no segment do not lead to the data.
  const keyslots = all
    .filter(([id]) => digest.keyslots.includes(id))
    .map(([id, keyslot]) => ({ id, ...checkKeyslot(id, keyslot, keyslotsArea, policy) }))
  const [first] = keyslots
  if (first === undefined) malformed("no keyslot leads to the data")
  if (keyslots.some(({ keySize }) => keySize !== first.keySize))
    malformed("keyslots with keys of different sizes")
  checkOverlap(keyslots.map(({ area }) => area))
  const keySize = checkKeySize(first.keySize, "a volume key", segment.value.cipher)
  const slots = keyslots.map(({ value }) => value)
  checkCost(slots, digest.value, limitsWith(policy.limits))

  // Nobody needs the part of the keyslots area that no keyslot uses: 16 MiB in what cryptsetup makes.
  const used = alignUp(Math.max(...keyslots.map(({ area }) => area.offset + area.size)), AREA_UNIT)
  if (used > MAX_AREA_SIZE) unsupported(`a keyslots area of ${keyslotsArea.size} bytes`)
  const document: LuksDocument = {
    keyslots: Object.fromEntries(keyslots.map(({ id, json }) => [id, json])),
    tokens: {},
    segments: { [segment.id]: segment.json },
    digests: { [digest.value.id]: digest.json },
    config: { json_size: String(jsonSize), keyslots_size: String(used - keyslotsArea.offset) },
  }
  const metadata = encode(copy, document)
  const stored: LuksStored = {
    headerSize: copy.headerSize,
    sequence: copy.sequence,
    current: copy.current,
    keyslotsArea,
    areas: new Map(keyslots.map(({ id, area }) => [id, area])),
    partitionSize,
    policy,
    label: copy.binary.subarray(LABEL_AT, LABEL_AT + LABEL_SIZE),
    subsystem: copy.binary.subarray(SUBSYSTEM_AT, SUBSYSTEM_AT + SUBSYSTEM_SIZE),
    document: {
      ...document,
      segments: { [segment.id]: segment.stored },
      config: { json_size: String(jsonSize), keyslots_size: String(keyslotsArea.size) },
    },
    tokens: root["tokens"],
    flags: config["flags"],
  }
  return {
    stored,
    metadata,
    areaSize: used,
    uuid: copy.uuid,
    segment: { ...segment.value, keySize },
    keyslots: slots,
    digest: digest.value,
  }
}

/**
 * Reads and checks the LUKS2 header of a partition, once: what is in the returned object is used from then on, whatever
 * becomes of the file.
 *
 * @param partition - Where it lies in what `reader` reads.
 * @throws LuksError as {@link decodeLuksHeader}.
 */
export async function parseLuksHeader(
  reader: LuksReader,
  partition: { readonly offset: Bytes; readonly size: Bytes },
  policy: LuksPolicy = {},
): Promise<LuksHeader> {
  const read = async (length: Bytes): Promise<Buffer> =>
    reader.read(partition.offset, Math.min(length, partition.size))
  const start = await read(2 * MIN_HEADER_SIZE)
  const primary = readCopy(start, 0, PRIMARY_MAGIC)
  // the usual header is here already; else the second copy, which may be all that is left, lies within the largest one
  const usual = typeof primary !== "string" && primary.headerSize === MIN_HEADER_SIZE
  return decodeLuksHeader(usual ? start : await read(2 * MAX_HEADER_SIZE), partition.size, policy)
}
