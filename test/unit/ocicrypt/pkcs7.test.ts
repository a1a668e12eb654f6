// Messages of PKCS#7 that were made to do harm.
import assert from "node:assert/strict"
import {
  constants,
  createCipheriv,
  createPrivateKey,
  createPublicKey,
  publicEncrypt,
  randomBytes,
} from "node:crypto"
import { readFileSync } from "node:fs"
import { OciError } from "../../../lib/errors.ts"
import { Attempts } from "../../../lib/ocicrypt/attempts.ts"
import { pkcs7Recipients, unwrapPkcs7 } from "../../../lib/ocicrypt/pkcs7.ts"
import { implicit, integer, octets, oid, sequence, set, tagged } from "../../support/der.ts"
import { testKeys } from "../../support/keys.ts"

const AUTHENTICATED = "1.2.840.113549.1.9.16.1.23"
const ENVELOPED = "1.2.840.113549.1.7.3"
const DATA = "1.2.840.113549.1.7.1"
const GCM = "2.16.840.1.101.3.4.1.46"
const RSA = "1.2.840.113549.1.1.1"
const CBC = "2.16.840.1.101.3.4.1.42"

/** For nobody, by a cipher with these parameters. */
function message(type: string, cipher: string, parameters: Buffer): Buffer {
  const content = sequence(oid(DATA), sequence(oid(cipher), parameters), implicit(0, Buffer.alloc(32)))
  const tag = type === AUTHENTICATED ? [octets(Buffer.alloc(16))] : []
  return sequence(oid(type), tagged(0, sequence(integer(0), set(), content, ...tag)))
}

describe("a hostile message of PKCS#7", () => {
  // CVE-2025-15467: more of these than its reader had room for.
  for (const [what, right, read] of [
    [
      "GCM",
      12,
      (size: number) => message(AUTHENTICATED, GCM, sequence(octets(Buffer.alloc(size)), integer(16))),
    ],
    ["CBC", 16, (size: number) => message(ENVELOPED, CBC, octets(Buffer.alloc(size)))],
  ] as const)
    it(`has another IV than ${what} has`, () => {
      assert.deepEqual(pkcs7Recipients(read(right), "x"), [])
      for (const size of [0, right - 1, right + 1, 17, 64, 5000])
        assert.throws(
          () => pkcs7Recipients(read(size), "x"),
          (error) =>
            error instanceof OciError &&
            error.code === "ERR_OCI_FORMAT" &&
            /parameters of its cipher/.test(error.message),
          `${size} bytes`,
        )
    })

  it("is authenticated by less than a whole tag", () => {
    const nonce = octets(Buffer.alloc(12))
    // CVE-2026-57062 of GnuPG took four bytes; where no size is said, it is twelve.
    for (const size of [0, 4, 8, 12, 15, 17, undefined])
      assert.throws(
        () =>
          pkcs7Recipients(
            message(AUTHENTICATED, GCM, sequence(nonce, ...(size === undefined ? [] : [integer(size)]))),
            "x",
          ),
        { name: "OciError", code: "ERR_OCI_FORMAT" },
        `${size} bytes`,
      )
  })
})

describe("a key that PKCS#1 v1.5 has padded", () => {
  const key = createPrivateKey(readFileSync(testKeys().privateKey))
  const contentKey = Buffer.alloc(32, 0xa5)
  const secret = Buffer.from('{"symkey":"x"}')

  /** For whoever decrypts this block: with what `contentKey` encrypts. */
  function wrapped(block: Buffer): Buffer {
    const raw = { key: createPublicKey(key), padding: constants.RSA_NO_PADDING }
    const identifier = sequence(sequence(), integer(1))
    const recipient = sequence(
      ...[integer(0), identifier, sequence(oid(RSA)), octets(publicEncrypt(raw, block))],
    )
    const nonce = randomBytes(12)
    const cipher = createCipheriv("aes-256-gcm", contentKey, nonce)
    const encrypted = Buffer.concat([cipher.update(secret), cipher.final(), cipher.getAuthTag()])
    const algorithm = sequence(oid(GCM), sequence(octets(nonce), integer(16)))
    const content = sequence(oid(DATA), algorithm, implicit(0, encrypted))
    return sequence(oid(ENVELOPED), tagged(0, sequence(integer(0), set(recipient), content)))
  }
  const unwrap = (block: Buffer): Buffer | undefined =>
    unwrapPkcs7(wrapped(block), [key], new Attempts(), "x")

  /** As RFC 8017, 7.2.1 has it: 0, 2, 221 bytes that are not 0, 0, the key. */
  function padded(change: (block: Buffer) => void = () => undefined): Buffer {
    const block = Buffer.alloc(256, 0xff)
    block.writeUInt16BE(2)
    block[223] = 0
    contentKey.copy(block, 224)
    change(block)
    return block
  }

  it("opens what it has encrypted", () => {
    assert.deepEqual(unwrap(padded()), secret)
    assert.deepEqual(unwrap(padded((block) => block.fill(1, 2, 223))), secret)
  })

  const bad: Readonly<Record<string, (block: Buffer) => void>> = {
    "does not begin with 0": (block) => (block[0] = 1),
    "is a signature's": (block) => (block[1] = 1),
    "has no type": (block) => (block[1] = 0),
    "has the type 3": (block) => (block[1] = 3),
    "has a type of which one bit is right": (block) => (block[1] = 0x82),
    "has no 0 before the key": (block) => (block[223] = 1),
    "has a 0 at its begin": (block) => (block[2] = 0),
    "has a 0 among its first eight bytes": (block) => (block[9] = 0),
    "has a 0 in its middle": (block) => (block[100] = 0),
    "has a 0 at its end, as of a key that is longer by a byte": (block) => (block[222] = 0),
    "ends a byte later, as of a key that is shorter": (block) => {
      block[223] = 0xff
      block[224] = 0
    },
    "is nothing but zeros": (block) => block.fill(0, 2, 223),
    "is nothing": (block) => block.fill(0, 0, 224),
  }
  // Of the right key: were the padding not looked at, it would open. Nothing tells it from a wrong key (RFC 3218, 2.3.2).
  for (const [what, change] of Object.entries(bad))
    it(`is not opened where the padding ${what}, like one for somebody else`, () => {
      assert.equal(unwrap(padded(change)), undefined)
    })

  it("is not opened by a wrong key, however it is padded", () => {
    assert.equal(unwrap(padded((block) => block.fill(0x5a, 224))), undefined)
  })
})
