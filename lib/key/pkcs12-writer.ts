// Writes PKCS#12 with what its readers agree on: OpenSSL 3, Java, and Windows from Server 2019 on; older ones with `legacy`.
// A private key is bytes until it is ciphertext; node-forge puts together nothing but that.
import { createCipheriv, createHash, createHmac, pbkdf2, randomBytes, type KeyObject } from "node:crypto"
import { promisify } from "node:util"
import type { Bytes } from "../units.ts"
import { encodeAsn1, make, type Asn1Node } from "./asn1.ts"
import { derive, oid, Password, Purpose } from "./pkcs12.ts"

/** Windows takes 600000 in a file and no more; MAC, key and certificates each have theirs. */
const ITERATIONS = 150_000
/** As slow to guess with, there being three times as much to derive for the cipher, and half of it with SHA-1. */
const LEGACY_ITERATIONS = 50_000
const SALT_SIZE: Bytes = 16

const AES_256_CBC = "2.16.840.1.101.3.4.1.42"
const HMAC_SHA256 = "1.2.840.113549.2.9"
const SHA256 = "2.16.840.1.101.3.4.2.1"
const SHA1 = "1.3.14.3.2.26"
const PBE_SHA1_3DES = "1.2.840.113549.1.12.1.3"

/** What {@link writePkcs12} wraps up. */
export interface Pkcs12Content {
  readonly key: KeyObject
  /** DER, the key's own first. */
  readonly certificates: readonly Buffer[]
  /** What Windows and Java show as the entry's name. */
  readonly friendlyName: string
  /** UTF-8. */
  readonly password: Buffer
  /** 3DES and SHA-1, for readers from before 2019. */
  readonly legacy: boolean
}

interface Sealed {
  readonly algorithm: Asn1Node
  readonly bytes: Buffer
}

function encryptWith(cipher: string, key: Buffer, iv: Buffer, plain: Buffer): Buffer {
  const encryption = createCipheriv(cipher, key, iv)
  const sealed = Buffer.concat([encryption.update(plain), encryption.final()])
  key.fill(0)
  return sealed
}

async function seal(plain: Buffer, password: Password, legacy: boolean): Promise<Sealed> {
  const salt = randomBytes(SALT_SIZE)
  if (legacy) {
    const own = (purpose: 1 | 2, size: Bytes): Promise<Buffer> =>
      derive("sha1", password.wide, salt, purpose, LEGACY_ITERATIONS, size)
    return {
      algorithm: make.sequence(
        make.objectId(PBE_SHA1_3DES),
        make.sequence(make.octets(salt), make.integer(LEGACY_ITERATIONS)),
      ),
      bytes: encryptWith("des-ede3-cbc", await own(Purpose.key, 24), await own(Purpose.iv, 8), plain),
    }
  }
  const iv = randomBytes(16)
  const derivation = make.sequence(
    make.octets(salt),
    make.integer(ITERATIONS),
    make.sequence(make.objectId(HMAC_SHA256), make.null()),
  )
  return {
    algorithm: make.sequence(
      make.objectId(oid.pbes2),
      make.sequence(
        make.sequence(make.objectId(oid.pbkdf2), derivation),
        make.sequence(make.objectId(AES_256_CBC), make.octets(iv)),
      ),
    ),
    bytes: encryptWith(
      "aes-256-cbc",
      await promisify(pbkdf2)(password.bytes, salt, ITERATIONS, 32, "sha256"),
      iv,
      plain,
    ),
  }
}

async function sealKey(key: KeyObject, password: Password, legacy: boolean): Promise<Asn1Node> {
  const plain = key.export({ type: "pkcs8", format: "der" })
  try {
    const { algorithm, bytes } = await seal(plain, password, legacy)
    return make.sequence(algorithm, make.octets(bytes))
  } finally {
    plain.fill(0)
  }
}

/** A private key as encrypted PKCS#8, DER, which is what lies in a PKCS#12 file too. */
export async function encryptPkcs8(key: KeyObject, password: Buffer): Promise<Buffer> {
  using secret = new Password(password)
  return encodeAsn1(await sealKey(key, secret, false))
}

function bag(kind: string, content: Asn1Node, attributes: Asn1Node | undefined): Asn1Node {
  return make.sequence(make.objectId(kind), make.explicit(0, content), attributes)
}

const data = (content: Asn1Node): Asn1Node =>
  make.sequence(make.objectId(oid.data), make.explicit(0, make.octets(encodeAsn1(content))))

/** The file's bytes. It takes a part of a second, as guessing the password shall. */
export async function writePkcs12(content: Pkcs12Content): Promise<Buffer> {
  const { key, certificates, legacy } = content
  using password = new Password(content.password)
  const [own] = certificates
  const attribute = (name: string, of: Asn1Node): Asn1Node => make.sequence(make.objectId(name), make.set(of))
  // Tells readers which certificate is the key's.
  const attributes =
    own &&
    make.set(
      attribute(oid.friendlyName, make.bmp(content.friendlyName)),
      attribute(oid.localKeyId, make.octets(createHash("sha1").update(own).digest())),
    )
  const certificateBags = certificates.map((der) =>
    bag(
      oid.certBag,
      make.sequence(make.objectId(oid.x509Certificate), make.explicit(0, make.octets(der))),
      der === own ? attributes : undefined,
    ),
  )
  const sealed = await seal(encodeAsn1(make.sequence(...certificateBags)), password, legacy)
  const encrypted = make.sequence(
    make.integer(0),
    make.sequence(make.objectId(oid.data), sealed.algorithm, make.implicit(0, sealed.bytes)),
  )
  const keyBag = bag(oid.shroudedKeyBag, await sealKey(key, password, legacy), attributes)
  const safe = make.sequence(
    make.sequence(make.objectId(oid.encryptedData), make.explicit(0, encrypted)),
    data(make.sequence(keyBag)),
  )
  return encodeAsn1(
    make.sequence(make.integer(3), data(safe), await macOver(encodeAsn1(safe), password, legacy)),
  )
}

async function macOver(content: Buffer, password: Password, legacy: boolean): Promise<Asn1Node> {
  const salt = randomBytes(SALT_SIZE)
  const hash = legacy ? "sha1" : "sha256"
  const iterations = legacy ? LEGACY_ITERATIONS : ITERATIONS
  const key = await derive(hash, password.wide, salt, Purpose.mac, iterations, legacy ? 20 : 32)
  const mac = createHmac(hash, key).update(content).digest()
  key.fill(0)
  const algorithm = make.sequence(make.objectId(legacy ? SHA1 : SHA256), make.null())
  return make.sequence(
    make.sequence(algorithm, make.octets(mac)),
    make.octets(salt),
    make.integer(iterations),
  )
}
