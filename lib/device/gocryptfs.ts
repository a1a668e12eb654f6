// The outer squashfs of a gocryptfs image and the configuration in it: read once, checked, and the content key derived from
// it with node:crypto. Nothing authenticates the configuration but the key that it wraps, so it is checked before any key
// derivation: what it may ask for, and what that costs.
//
// Source of the numbers: gocryptfs, Documentation/file-format.md and internal/configfile, version 2.
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomFillSync, scrypt } from "node:crypto"
import { EnvironmentError, GocryptfsError } from "../errors.ts"
import type { NativeRange } from "../native/binding.ts"
import type { Bytes, KdfLimits, Milliseconds } from "../units.ts"
import { QUICK } from "./luks.ts"
import { exceeded, limitsWith } from "./luks-header.ts"
import { freeMemory, requireMemory } from "./memory.ts"
import { parseStrictJson, type JsonObject, type JsonValue } from "./strict-json.ts"
import { Tree } from "./tree.ts"

/** What scrypt is asked to do. */
export interface ScryptCost {
  /** Blocks of memory, a power of two. */
  readonly n: number
  /** Size of a block, in 128 bytes. */
  readonly r: number
  /** How often, one after the other. */
  readonly p: number
}

/** For a secret that is random itself: the least that gocryptfs accepts. */
export const RANDOM_SECRET_SCRYPT: ScryptCost = { n: 1024, r: 8, p: 1 }
/** For a passphrase: what gocryptfs takes by default. */
export const PASSPHRASE_SCRYPT: ScryptCost = { n: 65536, r: 8, p: 1 }

/** A configuration that was checked. */
export interface GocryptfsConfig {
  readonly scrypt: ScryptCost
  /** KiB that scrypt takes. */
  readonly memory: number
  readonly salt: Buffer
  /** The master key under a key that the password gives: IV, ciphertext, tag. */
  readonly encryptedKey: Buffer
  /** 32 hex digits that name this password's wrapping; another password means another one. */
  readonly mark: string
  /** Who wrote it, as it says. */
  readonly creator: string
}

function markOf(salt: Buffer): string {
  return createHash("sha256").update(salt).digest("hex").slice(0, 32)
}

/** The outer squashfs of an image. */
export interface GocryptfsLayer {
  readonly config: GocryptfsConfig
  /** The encrypted file's name in the root of the outer squashfs. */
  readonly file: string
}

/** The longest password that gocryptfs reads. */
export const MAX_PASSWORD_SIZE: Bytes = 2048
const CONFIG_NAME = "gocryptfs.conf"
const FILE_PREFIX = "squashfs-"
const MAX_CONFIG_SIZE: Bytes = 64 * 1024

const VERSION = 2
/** AES-256-GCM with IVs of 128 bits and keys from HKDF, names as they are: what Apptainer has gocryptfs use. */
const FEATURE_FLAGS: readonly string[] = ["HKDF", "GCMIV128", "PlaintextNames"]
const MEMBERS: readonly string[] = ["Creator", "EncryptedKey", "ScryptObject", "Version", "FeatureFlags"]
const SCRYPT_MEMBERS: readonly string[] = ["Salt", "N", "R", "P", "KeyLen"]
// internal/configfile/scrypt.go: less is refused there as well
const MIN_N = 1024
const MIN_R = 8
const MIN_P = 1
const MIN_SALT: Bytes = 32
const MAX_SALT: Bytes = 512
/** Beyond any limit on memory; keeps 128·N·R exact. */
const MAX_N = 2 ** 31
const MAX_R = 2 ** 20
const BLOCK_UNIT: Bytes = 128
/** scrypt fills its memory, then goes over it again. */
const PASSES = 2

const KEY_SIZE: Bytes = 32
const IV_SIZE: Bytes = 16
const TAG_SIZE: Bytes = 16
const CIPHER = "aes-256-gcm"
/** The same for the key that wraps the master key and for the content key (internal/cryptocore). */
const HKDF_INFO = "AES-GCM file content encryption"
/** Block number 0 and no file (internal/contentenc). */
const KEY_AAD: Buffer = Buffer.alloc(8)

function malformed(what: string): never {
  throw new GocryptfsError("ERR_GOCRYPTFS_CONFIG", `the gocryptfs configuration is malformed: ${what}`)
}

function unsupported(what: string): never {
  throw new GocryptfsError(
    "ERR_GOCRYPTFS_UNSUPPORTED",
    `the gocryptfs configuration asks for what is not supported: ${what}`,
  )
}

/** A value of the image in a message: short, and without control characters. */
function show(value: JsonValue | undefined): string {
  const text = value === undefined ? "nothing" : JSON.stringify(value)
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}

/** An object with these members and no other: Go's parser would take a name in other letters for one of them. */
function object(value: JsonValue | undefined, what: string, members: readonly string[]): JsonObject {
  if (typeof value !== "object" || value === null || Array.isArray(value)) malformed(`${what} is no object`)
  for (const name of Object.keys(value)) if (!members.includes(name)) unsupported(`the member ${show(name)}`)
  return value as JsonObject
}

function integer(value: JsonValue | undefined, what: string, min: number, max: number): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < min || value > max)
    malformed(`${what} is ${show(value)}`)
  return value
}

function base64(value: JsonValue | undefined, what: string, min: Bytes, max: Bytes): Buffer {
  if (typeof value !== "string") malformed(`${what} is ${show(value)} and no string`)
  const bytes = Buffer.from(value, "base64")
  if (bytes.toString("base64") !== value) malformed(`${what} is ${show(value)} and no base64`)
  if (bytes.length < min || bytes.length > max) malformed(`${what} has ${bytes.length} bytes`)
  return bytes
}

function checkFlags(value: JsonValue | undefined): void {
  if (!Array.isArray(value)) malformed(`FeatureFlags is ${show(value)} and no list`)
  const flags = value as readonly JsonValue[]
  const unknown = flags.find((flag) => typeof flag !== "string" || !FEATURE_FLAGS.includes(flag))
  if (unknown !== undefined) unsupported(`the feature ${show(unknown)}`)
  for (const flag of FEATURE_FLAGS)
    if (!flags.includes(flag)) unsupported(`a file system without the feature ${show(flag)}`)
}

function checkCost({ n, r, p }: ScryptCost, memory: number, limits: KdfLimits): void {
  const needed = { memory, parallel: p, work: memory * PASSES * p, iterations: 0 }
  const over = exceeded(needed, limits)
  const what =
    memory > limits.memory
      ? `${memory} KiB of memory (N ${n}, R ${r}), the limit is ${limits.memory} KiB`
      : p > limits.parallel
        ? `P ${p}, the limit is ${limits.parallel}`
        : over.work !== undefined
          ? `${over.work} KiB times passes, the limit is ${limits.work}`
          : undefined
  if (what !== undefined)
    throw new GocryptfsError(
      "ERR_GOCRYPTFS_COST",
      `the gocryptfs configuration asks for scrypt with ${what}`,
      { kdfLimits: over },
    )
}

/**
 * Checks a configuration, costs included.
 *
 * @param bytes - The content of gocryptfs.conf.
 * @throws GocryptfsError `ERR_GOCRYPTFS_CONFIG`, `ERR_GOCRYPTFS_UNSUPPORTED`, `ERR_GOCRYPTFS_COST`.
 */
export function parseGocryptfsConfig(bytes: Buffer, limits: Partial<KdfLimits> | undefined): GocryptfsConfig {
  if (bytes.length > MAX_CONFIG_SIZE) malformed(`it has ${bytes.length} bytes`)
  let json: JsonValue
  try {
    json = parseStrictJson(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes))
  } catch (cause) {
    throw new GocryptfsError(
      "ERR_GOCRYPTFS_CONFIG",
      `the gocryptfs configuration is malformed: ${cause instanceof SyntaxError ? cause.message : "it is no UTF-8"}`,
      { cause },
    )
  }
  const root = object(json, "it", MEMBERS)
  const version = integer(root["Version"], "Version", 0, 0xffff)
  if (version !== VERSION) unsupported(`version ${version}`)
  checkFlags(root["FeatureFlags"])
  const creator = root["Creator"]
  if (creator !== undefined && typeof creator !== "string") malformed(`Creator is ${show(creator)}`)
  const kdf = object(root["ScryptObject"], "ScryptObject", SCRYPT_MEMBERS)
  const n = integer(kdf["N"], "N", MIN_N, MAX_N)
  if (!Number.isInteger(Math.log2(n))) malformed(`N is ${n} and no power of two`)
  const r = integer(kdf["R"], "R", MIN_R, MAX_R)
  const p = integer(kdf["P"], "P", MIN_P, 0xffff_ffff)
  integer(kdf["KeyLen"], "KeyLen", KEY_SIZE, KEY_SIZE)
  const cost = { n, r, p }
  const memory = (BLOCK_UNIT * n * r) / 1024
  checkCost(cost, memory, limitsWith(limits))
  const keySize = IV_SIZE + KEY_SIZE + TAG_SIZE
  const salt = base64(kdf["Salt"], "Salt", MIN_SALT, MAX_SALT)
  return {
    scrypt: cost,
    memory,
    salt,
    encryptedKey: base64(root["EncryptedKey"], "EncryptedKey", keySize, keySize),
    mark: markOf(salt),
    creator: creator ?? "",
  }
}

/** For people: `64 MiB, N 65536, R 8, P 1`. */
export function describeScrypt({ memory, scrypt: { n, r, p } }: GocryptfsConfig): string {
  return `${memory / 1024} MiB, N ${n}, R ${r}, P ${p}`
}

/**
 * Reads the outer squashfs of a partition: the configuration, and which file is the encrypted one.
 *
 * @param image - What to call it in messages.
 * @throws GocryptfsError as {@link parseGocryptfsConfig}; TreeError of the outer squashfs.
 */
export async function readGocryptfsLayer(
  range: NativeRange,
  image: string,
  limits: Partial<KdfLimits> | undefined,
): Promise<GocryptfsLayer> {
  using tree = await Tree.open(range, image)
  const broken = (what: string): never => {
    throw GocryptfsError.at(image, "ERR_GOCRYPTFS_CONFIG", what)
  }
  const entries = await tree.list("/")
  const config = entries.find(({ name }) => name.equals(Buffer.from(CONFIG_NAME)))?.stat
  if (config === undefined) return broken(`the outer file system has no ${CONFIG_NAME}`)
  if (config.type !== "file") return broken(`${CONFIG_NAME} is no file but a ${config.type}`)
  if (config.size > MAX_CONFIG_SIZE) return broken(`${CONFIG_NAME} has ${config.size} bytes`)
  const [first, second] = entries.filter(({ name }) => name.toString("latin1").startsWith(FILE_PREFIX))
  if (first === undefined) return broken(`the outer file system has no file ${FILE_PREFIX}…`)
  if (second !== undefined) return broken(`the outer file system has several files ${FILE_PREFIX}…`)
  const file = first.name.toString("latin1")
  // It goes through an argument, where not every byte can.
  if (!/^squashfs-[A-Za-z0-9._-]{0,200}$/.test(file)) return broken("the encrypted file's name is malformed")
  if (first.stat.type !== "file") return broken(`${file} is no file but a ${first.stat.type}`)
  if (first.stat.size === 0) return broken(`${file} is empty`)
  const bytes = await tree.read(`/${CONFIG_NAME}`, 0, config.size)
  return { config: parseGocryptfsConfig(bytes, limits), file }
}

function runScrypt(password: Uint8Array, salt: Buffer, { n, r, p }: ScryptCost): Promise<Buffer> {
  // What OpenSSL counts: N + 2 blocks and one for each P.
  const maxmem = BLOCK_UNIT * r * (n + p + 4)
  return new Promise((resolve, reject) => {
    scrypt(password, salt, KEY_SIZE, { N: n, r, p, maxmem }, (cause, key) => {
      // The parameters were checked: what is left is an allocation that failed.
      if (cause === null) resolve(key)
      else reject(new EnvironmentError("ERR_ENV_NO_MEMORY", "no memory for the key derivation", { cause }))
    })
  })
}

/** KiB that are measured instead of more. */
const SAMPLE_MEMORY = 32 * 1024

/** How long it takes here, from a short one; undefined: it is {@link QUICK}. */
export async function scryptTime({
  memory,
  scrypt: cost,
}: GocryptfsConfig): Promise<Milliseconds | undefined> {
  if (memory * PASSES * cost.p <= QUICK.work) return undefined
  const share = 2 ** Math.ceil(Math.log2(Math.max(1, memory / SAMPLE_MEMORY)))
  const start = performance.now()
  await runScrypt(Buffer.alloc(1), Buffer.alloc(MIN_SALT), {
    n: Math.max(2, cost.n / share),
    r: cost.r,
    p: 1,
  })
  return (performance.now() - start) * share * cost.p
}

function runHkdf(key: Buffer): Buffer {
  return Buffer.from(hkdfSync("sha256", key, "", HKDF_INFO, KEY_SIZE))
}

/** The key that wraps the master key. */
async function unlockKey(password: Uint8Array, salt: Buffer, cost: ScryptCost): Promise<Buffer> {
  const stretched = await runScrypt(password, salt, cost)
  try {
    return runHkdf(stretched)
  } finally {
    stretched.fill(0)
  }
}

/** For a key of ours, outside of V8's heap, where its garbage collector would leave copies. */
function emptyKey(): Buffer {
  return Buffer.from(new ArrayBuffer(KEY_SIZE))
}

/** What gocryptfs takes of a secret: up to the first line end. undefined: nothing that it would accept. */
function passwordOf(secret: Uint8Array): Uint8Array | undefined {
  const end = secret.indexOf(0x0a)
  const password = secret.subarray(0, end < 0 ? secret.length : end)
  return password.length === 0 || password.length > MAX_PASSWORD_SIZE ? undefined : password
}

/** The master key, which the caller wipes; undefined: the secret is not the one. */
async function openMasterKey(config: GocryptfsConfig, secret: Uint8Array): Promise<Buffer | undefined> {
  const password = passwordOf(secret)
  if (password === undefined) return undefined
  requireMemory(config.memory, "the gocryptfs configuration", freeMemory())
  const { encryptedKey } = config
  const key = await unlockKey(password, config.salt, config.scrypt)
  const masterKey = emptyKey()
  try {
    const decipher = createDecipheriv(CIPHER, key, encryptedKey.subarray(0, IV_SIZE), {
      authTagLength: TAG_SIZE,
    })
    decipher.setAAD(KEY_AAD).setAuthTag(encryptedKey.subarray(IV_SIZE + KEY_SIZE))
    const sealed = encryptedKey.subarray(IV_SIZE, IV_SIZE + KEY_SIZE)
    // In two pieces: Node frees the first place of an output unwiped, and the second piece takes it again.
    for (const half of [0, KEY_SIZE / 2]) {
      const opened = decipher.update(sealed.subarray(half, half + KEY_SIZE / 2))
      opened.copy(masterKey, half)
      opened.fill(0)
    }
    try {
      decipher.final()
    } catch {
      masterKey.fill(0)
      return undefined // the tag does not match: another password
    }
    return masterKey
  } finally {
    key.fill(0)
  }
}

/**
 * Recovers the key that encrypts the file's content. scrypt cannot be interrupted; memory is checked before.
 *
 * @returns The content key, which the caller wipes, or undefined when the secret is not the one.
 * @throws EnvironmentError `ERR_ENV_NO_MEMORY`.
 */
export async function unlockGocryptfs(
  config: GocryptfsConfig,
  secret: Uint8Array,
): Promise<Buffer | undefined> {
  const masterKey = await openMasterKey(config, secret)
  if (masterKey === undefined) return undefined
  try {
    return runHkdf(masterKey)
  } finally {
    masterKey.fill(0)
  }
}

/** A configuration as it is written. */
export interface WrittenConfig {
  /** The bytes of gocryptfs.conf. */
  readonly config: Buffer
  /** As in {@link GocryptfsConfig}. */
  readonly mark: string
}

/**
 * Wraps a master key for a password.
 *
 * @param size - Of the configuration in bytes, if it has to fit a place.
 */
async function wrapMasterKey(
  masterKey: Buffer,
  password: Uint8Array,
  cost: ScryptCost,
  creator: string,
  size?: Bytes,
): Promise<WrittenConfig> {
  if (passwordOf(password)?.length !== password.length)
    throw new RangeError(`a password of gocryptfs has 1 to ${MAX_PASSWORD_SIZE} bytes and no line end`)
  const { n, r, p } = cost
  requireMemory((BLOCK_UNIT * n * r) / 1024, "a gocryptfs configuration", freeMemory())
  const salt = randomFillSync(Buffer.alloc(MIN_SALT))
  const iv = randomFillSync(Buffer.alloc(IV_SIZE))
  const key = await unlockKey(password, salt, cost)
  try {
    const cipher = createCipheriv(CIPHER, key, iv, { authTagLength: TAG_SIZE })
    cipher.setAAD(KEY_AAD)
    const wrapped = cipher.update(masterKey)
    cipher.final()
    // In gocryptfs's own form and order.
    const json = {
      Creator: creator,
      EncryptedKey: Buffer.concat([iv, wrapped, cipher.getAuthTag()]).toString("base64"),
      ScryptObject: { Salt: salt.toString("base64"), N: n, R: r, P: p, KeyLen: KEY_SIZE },
      Version: VERSION,
      FeatureFlags: FEATURE_FLAGS,
    }
    const indented = JSON.stringify(json, null, "\t")
    const text = size === undefined || indented.length < size ? indented : JSON.stringify(json)
    return { config: Buffer.from(`${text.padEnd((size ?? 0) - 1)}\n`, "utf8"), mark: markOf(salt) }
  } finally {
    key.fill(0)
  }
}

/** What {@link makeGocryptfs} makes. */
export interface NewGocryptfs extends WrittenConfig {
  /** The caller wipes it. */
  readonly contentKey: Buffer
  /** A name for the encrypted file, as the peers make them up. */
  readonly file: string
}

/**
 * Draws a new master key and wraps it for this password.
 *
 * @param password - 1 to {@link MAX_PASSWORD_SIZE} bytes without a line end, which would cut it.
 * @throws EnvironmentError `ERR_ENV_NO_MEMORY`.
 */
export async function makeGocryptfs(password: Uint8Array, cost: ScryptCost): Promise<NewGocryptfs> {
  const masterKey = randomFillSync(emptyKey())
  try {
    return {
      ...(await wrapMasterKey(masterKey, password, cost, "sifcrypt")),
      contentKey: runHkdf(masterKey),
      file: `${FILE_PREFIX}${randomFillSync(new Uint32Array(1))[0] ?? 0}`,
    }
  } finally {
    masterKey.fill(0)
  }
}

/** Where a configuration lies, in its partition. */
export interface ConfigPlace {
  readonly offset: Bytes
  readonly size: Bytes
}

/**
 * Where gocryptfs.conf lies in a partition; undefined: it is compressed, and cannot be replaced.
 *
 * @throws TreeError of the outer squashfs.
 */
export async function findConfig(range: NativeRange, image: string): Promise<ConfigPlace | undefined> {
  using tree = await Tree.open(range, image)
  const { size } = await tree.stat(`/${CONFIG_NAME}`, false)
  const offset = await tree.storedAt(`/${CONFIG_NAME}`)
  return offset === undefined ? undefined : { offset, size }
}

/**
 * The configuration for another password: the same master key, so that the data stays as it is.
 *
 * @param secret - What opens it now.
 * @param size - Of the place it has to fit, in bytes.
 * @returns undefined: it does not fit.
 * @throws EnvironmentError `ERR_ENV_NO_MEMORY`.
 */
export async function rewrapGocryptfs(
  config: GocryptfsConfig,
  secret: Uint8Array,
  password: Uint8Array,
  cost: ScryptCost,
  size: Bytes,
): Promise<WrittenConfig | undefined> {
  const masterKey = await openMasterKey(config, secret)
  if (masterKey === undefined) throw new TypeError("the secret does not open the configuration")
  try {
    const written = await wrapMasterKey(masterKey, password, cost, config.creator, size)
    return written.config.length === size ? written : undefined
  } finally {
    masterKey.fill(0)
  }
}
