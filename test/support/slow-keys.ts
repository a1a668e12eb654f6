// Key files that ask for much work before a password opens them; what they hold is no key.
import { encodeAsn1, make, type Asn1Node } from "../../lib/key/asn1.ts"

const PBES2 = "1.2.840.113549.1.5.13"
export const PBKDF2 = "1.2.840.113549.1.5.12"
export const SCRYPT = "1.3.6.1.4.1.11591.4.11"
const AES_256_CBC = "2.16.840.1.101.3.4.1.42"
const SHA1_AND_3DES = "1.2.840.113549.1.12.1.3"

export const salt: Asn1Node = make.octets(Buffer.alloc(8))
const sealed = Buffer.alloc(1024, 5)

const pkcs8 = (scheme: Asn1Node): Buffer => encodeAsn1(make.sequence(scheme, make.octets(sealed)))

export const pbes2 = (kdf: string, ...costs: readonly Asn1Node[]): Buffer =>
  pkcs8(
    make.sequence(
      make.objectId(PBES2),
      make.sequence(
        make.sequence(make.objectId(kdf), make.sequence(salt, ...costs)),
        make.sequence(make.objectId(AES_256_CBC), make.octets(Buffer.alloc(16))),
      ),
    ),
  )

/** An encrypted PKCS#8 key. */
export const pbkdf2 = (iterations: number): Buffer => pbes2(PBKDF2, make.integer(iterations))

export const pem = (label: string, der: Buffer): string =>
  `-----BEGIN ${label}-----\n${der.toString("base64")}\n-----END ${label}-----\n`

/** The same under PKCS#12's own scheme. */
export const ownScheme = (iterations: number): Buffer =>
  pkcs8(make.sequence(make.objectId(SHA1_AND_3DES), make.sequence(salt, make.integer(iterations))))

/** A container whose MAC takes so many rounds. */
export const pkcs12 = (rounds: number): Buffer => {
  const data = make.objectId("1.2.840.113549.1.7.1")
  const sha256 = make.sequence(make.objectId("2.16.840.1.101.3.4.2.1"), make.null())
  const mac = make.sequence(sha256, make.octets(Buffer.alloc(32)))
  return encodeAsn1(
    make.sequence(
      make.integer(3),
      make.sequence(data, make.explicit(0, make.octets(encodeAsn1(make.sequence())))),
      make.sequence(mac, salt, make.integer(rounds)),
    ),
  )
}

/** The body of an OpenSSH key. */
export function openssh(rounds: number): Buffer {
  const field = (bytes: Buffer | string): Buffer => {
    const size = Buffer.alloc(4)
    size.writeUInt32BE(bytes.length)
    return Buffer.concat([size, Buffer.from(bytes)])
  }
  const number = (value: number): Buffer => field(Buffer.alloc(value)).subarray(0, 4)
  const count = Buffer.alloc(4)
  count.writeUInt32BE(rounds)
  const modulus = Buffer.alloc(257, 0xff)
  modulus[0] = 0
  const blob = Buffer.concat([field("ssh-rsa"), field(Buffer.of(1, 0, 1)), field(modulus)])
  return Buffer.concat([
    Buffer.from("openssh-key-v1\0"),
    field("aes256-ctr"),
    field("bcrypt"),
    field(Buffer.concat([field(Buffer.alloc(16)), count])),
    number(1),
    field(blob),
    field(sealed),
  ])
}

/** As much of each as is allowed: seconds. */
export const slowKeys = (): Readonly<Record<string, Buffer | string>> => ({
  "pkcs8.der": pbkdf2(20_000_000),
  "openssh.pem": pem("OPENSSH PRIVATE KEY", openssh(500)),
  "file.p12": pkcs12(20_000_000),
})
