// OpenSSH's own forms: the line of a public key, and the container of private keys (PROTOCOL.key in its sources).
import {
  createDecipheriv,
  createHash,
  createPublicKey,
  type CipherGCMTypes,
  type KeyObject,
} from "node:crypto"
import { admitPrivateKey, admitPublicKey } from "./admission.ts"
import { encodeIntegers } from "./der.ts"
import { damaged, unsupported, wrongPassword, wrongType, type FoundKey, type FoundKeys } from "./found-key.ts"
import { allocateSecret, decipherSecret } from "./secret.ts"
import { Stretch, type Stretching } from "./stretching.ts"

/** Reads the fields of SSH's encoding; each throws a RangeError past the end. */
class Fields {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }
  uint32(): number {
    this.#at += 4
    return this.#bytes.readUInt32BE(this.#at - 4)
  }
  /** Length and bytes; not a copy. */
  bytes(): Buffer {
    return this.take(this.uint32())
  }
  text(): string {
    return this.bytes().toString("latin1")
  }
  take(length: number): Buffer {
    if (length > this.#bytes.length - this.#at) throw new RangeError("past the end")
    this.#at += length
    return this.#bytes.subarray(this.#at - length, this.#at)
  }
}

const RSA = "ssh-rsa"
const keyTypes = /^(?:ssh-(?:rsa|dss|ed25519|ed448)|ecdsa-sha2-\S+|sk-\S+|\S+-cert-v\d+@openssh\.com)$/

const LINE = "an OpenSSH public key"

function publicFromBlob(blob: Buffer, what: string, origin: string): KeyObject {
  try {
    const fields = new Fields(blob)
    const type = fields.text()
    if (type !== RSA) throw wrongType(origin, `${what} of type ${keyTypes.test(type) ? type : "unknown"}`)
    const exponent = fields.bytes()
    const modulus = fields.bytes()
    return admitPublicKey(encodeIntegers([modulus, exponent]), "pkcs1", origin, what)
  } catch (cause) {
    if (cause instanceof Error && cause.name === "KeyError") throw cause
    throw damaged(origin, what, cause)
  }
}

/** The keys in the lines of a `.pub` or `authorized_keys` file, options and comments ignored. */
export function opensshLines(file: Buffer, origin: string): FoundKeys {
  const keys: FoundKey[] = []
  for (const line of file.toString("latin1").split("\n")) {
    const words = line.trim().split(/[ \t]+/, 64)
    if (line.startsWith("#")) continue
    const at = words.findIndex((word) => keyTypes.test(word))
    const type = words[at]
    if (type === undefined) continue
    const blob = Buffer.from(words[at + 1] ?? "", "base64")
    const what = type === RSA ? LINE : `${LINE} of type ${type}`
    keys.push({
      what,
      half: "public",
      locked: false,
      read: () => {
        if (type !== RSA) throw wrongType(origin, what)
        return publicFromBlob(blob, what, origin)
      },
    })
  }
  return { keys, others: [] }
}

const MAGIC = Buffer.from("openssh-key-v1\0", "latin1")
const PRIVATE = "an OpenSSH private key"

interface Cipher {
  /** node:crypto's name. */
  readonly name: string
  readonly keySize: number
  readonly ivSize: number
  readonly tagSize: number
}

function cipherFor(name: string): Cipher | undefined {
  const [, bits, mode] = /^aes(128|192|256)-(ctr|cbc|gcm@openssh\.com)$/.exec(name) ?? []
  if (bits === undefined || mode === undefined) return undefined
  const gcm = mode !== "ctr" && mode !== "cbc"
  return {
    name: `aes-${bits}-${gcm ? "gcm" : mode}`,
    keySize: Number(bits) / 8,
    ivSize: gcm ? 12 : 16,
    tagSize: gcm ? 16 : 0,
  }
}

interface Container {
  readonly cipher: string
  readonly kdf: string
  readonly kdfOptions: Buffer
  readonly publicBlob: Buffer
  readonly sealed: Buffer
  readonly tag: Buffer
}

function readContainer(bytes: Buffer): Container {
  const fields = new Fields(bytes)
  if (!fields.take(MAGIC.length).equals(MAGIC)) throw new RangeError("no OpenSSH key")
  const cipher = fields.text()
  const kdf = fields.text()
  const kdfOptions = fields.bytes()
  if (fields.uint32() !== 1) throw new RangeError("not one key")
  const publicBlob = fields.bytes()
  const sealed = fields.bytes()
  return { cipher, kdf, kdfOptions, publicBlob, sealed, tag: fields.take(cipherFor(cipher)?.tagSize ?? 0) }
}

/** value mod modulus, bit by bit in bytes that can be wiped, which a BigInt's cannot. The caller wipes it. */
function remainder(value: Buffer, modulus: Buffer): Buffer {
  const size = modulus.length + 1
  const divisor = allocateSecret(size)
  modulus.copy(divisor, 1)
  const rest = allocateSecret(size)
  for (const byte of value)
    for (let bit = 7; bit >= 0; bit--) {
      let carry = (byte >> bit) & 1
      for (let at = size - 1; at >= 0; at--) {
        const doubled = ((rest[at] ?? 0) << 1) | carry
        rest[at] = doubled & 0xff
        carry = doubled >> 8
      }
      if (rest.compare(divisor) < 0) continue
      let borrow = 0
      for (let at = size - 1; at >= 0; at--) {
        const difference = (rest[at] ?? 0) - (divisor[at] ?? 0) - borrow
        rest[at] = difference & 0xff
        borrow = difference < 0 ? 1 : 0
      }
    }
  divisor.fill(0)
  return rest
}

/** A prime less one. The caller wipes it. */
function lessOne(prime: Buffer): Buffer {
  const result = allocateSecret(prime.length)
  prime.copy(result)
  const last = result.length - 1
  if (((result[last] ?? 0) & 1) === 0) throw new RangeError("an even prime")
  result[last] = (result[last] ?? 0) & 0xfe
  return result
}

/** Larger numbers belong to no modulus that is supported, and would take long to reduce. */
const MAX_NUMBER_SIZE = 16384 / 8 + 1

/** The RSA key in decrypted content. */
function rsaFromFields(fields: Fields, origin: string): KeyObject {
  const numbers = [1, 2, 3, 4, 5, 6].map(() => fields.bytes())
  const [n, e, d, inverse, p, q] = numbers
  if (n === undefined || e === undefined || d === undefined) throw new RangeError("numbers are missing")
  if (inverse === undefined || p === undefined || q === undefined) throw new RangeError("numbers are missing")
  if (numbers.some(({ length }) => length === 0 || length > MAX_NUMBER_SIZE))
    throw new RangeError("no RSA numbers")
  const made: Buffer[] = []
  try {
    const keep = (bytes: Buffer): Buffer => {
      made.push(bytes)
      return bytes
    }
    const exponents = [p, q].map((prime) => keep(remainder(d, keep(lessOne(prime)))))
    const der = keep(encodeIntegers([Buffer.alloc(1), n, e, d, p, q, ...exponents, inverse]))
    return admitPrivateKey(der, "pkcs1", origin, PRIVATE)
  } finally {
    for (const bytes of made) bytes.fill(0)
  }
}

const HASH_SIZE = 32

function sha512(...parts: readonly Uint8Array[]): Buffer {
  const hash = createHash("sha512")
  for (const part of parts) hash.update(part)
  return hash.digest()
}

/**
 * bcrypt_pbkdf(3) of OpenBSD over the package's bcrypt: the package's own loop leaves the password in arrays that nobody can
 * wipe. The caller wipes the result.
 */
async function stretch(password: Buffer, salt: Buffer, rounds: number, size: number): Promise<Buffer> {
  const { default: bcrypt } = await import("bcrypt-pbkdf")
  const derived = allocateSecret(size)
  const blocks = Math.ceil(size / HASH_SIZE)
  const hashed = sha512(password)
  const round = allocateSecret(HASH_SIZE)
  const block = allocateSecret(HASH_SIZE)
  try {
    for (let count = 1; count <= blocks; count++) {
      const number = Buffer.alloc(4)
      number.writeUInt32BE(count)
      bcrypt.hash(hashed, sha512(salt, number), round)
      round.copy(block)
      for (let done = 1; done < rounds; done++) {
        bcrypt.hash(hashed, sha512(round), round)
        for (const [at, byte] of round.entries()) block[at] = (block[at] ?? 0) ^ byte
      }
      // Each block's bytes are spread over the whole of the key.
      for (const [at, byte] of block.entries()) {
        const to = at * blocks + count - 1
        if (to < size) derived[to] = byte
      }
    }
    return derived
  } finally {
    for (const bytes of [hashed, round, block]) bytes.fill(0)
  }
}

/** The bytes behind the password. The caller wipes them. */
async function decrypt(
  container: Container,
  password: Buffer,
  origin: string,
  stretching: Stretching,
): Promise<Buffer> {
  const cipher = cipherFor(container.cipher)
  if (cipher === undefined || container.kdf !== "bcrypt")
    throw unsupported(origin, `${PRIVATE} under ${container.cipher} and ${container.kdf}`)
  const options = new Fields(container.kdfOptions)
  const salt = options.bytes()
  const rounds = options.uint32()
  if (rounds < 1 || salt.length === 0 || salt.length > 1024) throw new RangeError("bad options")
  if (password.length === 0) throw wrongPassword(origin, PRIVATE)
  stretching.spend(rounds, Stretch.bcrypt, PRIVATE)
  const derived = await stretch(password, salt, rounds, cipher.keySize + cipher.ivSize)
  try {
    const key = derived.subarray(0, cipher.keySize)
    const iv = derived.subarray(cipher.keySize)
    if (cipher.tagSize > 0) {
      const decipher = createDecipheriv(cipher.name as CipherGCMTypes, key, iv, {
        authTagLength: cipher.tagSize,
      })
      return decipherSecret(decipher.setAuthTag(container.tag), container.sealed)
    }
    if (container.sealed.length % 16 !== 0) throw new RangeError("no whole blocks")
    return decipherSecret(createDecipheriv(cipher.name, key, iv).setAutoPadding(false), container.sealed)
  } catch (cause) {
    // GCM's tag: the one thing that tells before the numbers do.
    if (cause instanceof RangeError) throw cause
    throw wrongPassword(origin, PRIVATE, cause)
  } finally {
    derived.fill(0)
  }
}

function readPrivate(container: Container, plain: Buffer, locked: boolean, origin: string): KeyObject {
  const fields = new Fields(plain)
  if (fields.uint32() !== fields.uint32()) {
    if (locked) throw wrongPassword(origin, PRIVATE)
    throw new RangeError("the two check numbers differ")
  }
  const type = fields.text()
  if (type !== RSA) throw wrongType(origin, `${PRIVATE} of type ${keyTypes.test(type) ? type : "unknown"}`)
  const key = rsaFromFields(fields, origin)
  if (!createPublicKey(key).equals(publicFromBlob(container.publicBlob, PRIVATE, origin)))
    throw new RangeError("the two halves differ")
  return key
}

/** The key in the body of an `OPENSSH PRIVATE KEY` block. */
export function opensshPrivate(body: Buffer, origin: string, stretching: Stretching): FoundKey {
  let container: Container
  try {
    container = readContainer(body)
  } catch (cause) {
    throw damaged(origin, PRIVATE, cause)
  }
  const locked = container.cipher !== "none"
  const readPublic = (): KeyObject => publicFromBlob(container.publicBlob, PRIVATE, origin)
  return {
    what: PRIVATE,
    half: "private",
    locked,
    readPublic,
    read: async (password = Buffer.alloc(0)) => {
      readPublic() // what is not RSA, and what is damaged there, needs no password to say so
      let plain: Buffer | undefined
      try {
        plain = locked ? await decrypt(container, password, origin, stretching) : container.sealed
        return readPrivate(container, plain, locked, origin)
      } catch (cause) {
        if (cause instanceof Error && cause.name === "KeyError") throw cause
        throw damaged(origin, PRIVATE, cause)
      } finally {
        if (locked) plain?.fill(0)
      }
    },
  }
}
