// Key files choose how long it takes to check a password. Each kind that asks for too much is refused before that is done.
import assert from "node:assert/strict"
import { KeyError } from "../../../lib/errors.ts"
import { encodeAsn1, make } from "../../../lib/key/asn1.ts"
import { parsePrivateKey } from "../../../lib/key/key-file.ts"
import { pemKeys } from "../../../lib/key/pem.ts"
import { Stretching } from "../../../lib/key/stretching.ts"
import { openssh, ownScheme, pbes2, pbkdf2, PBKDF2, pem, SCRYPT, salt } from "../../support/slow-keys.ts"

/** The same in BER: a sequence of indefinite length around what this finds in it. */
function indefinite(der: Buffer, inner: Buffer): Buffer {
  const at = der.indexOf(inner)
  const content = inner.subarray(2)
  assert.ok(at > 0 && inner[0] === 0x30 && inner[1] === content.length)
  const ber = Buffer.concat([Buffer.of(0x30, 0x80), content, Buffer.alloc(2)])
  const changed = Buffer.concat([der.subarray(0, at), ber, der.subarray(at + inner.length)])
  // The lengths around it: of one byte each, save the outermost, which has two.
  for (let start = 0; start < at; start++)
    if (der[start] === 0x30) {
      const long = der[start + 1] === 0x82
      const end = long ? start + 4 + der.readUInt16BE(start + 2) : start + 2 + (der[start + 1] ?? 0)
      if (end < at + inner.length) continue
      if (long) changed.writeUInt16BE(der.readUInt16BE(start + 2) + 2, start + 2)
      else changed[start + 1] = (der[start + 1] ?? 0) + 2
    }
  return changed
}

async function refusal(file: Buffer | string): Promise<KeyError> {
  try {
    await parsePrivateKey(Buffer.from(file), "a.key", Buffer.from("password"))
  } catch (error) {
    assert.ok(error instanceof KeyError, String(error))
    return error
  }
  assert.fail("it was read")
}

describe("a key file that asks for", () => {
  const most = 20_000_000
  const inner = encodeAsn1(make.sequence(salt, make.integer(30_000_000)))
  const costly: Readonly<Record<string, readonly [file: Buffer | string, says: RegExp]>> = {
    "2^31 - 1 iterations of PBKDF2": [pbkdf2(0x7fff_ffff), /2147483647 iterations \(at most 20000000 /],
    "one iteration too many": [pbkdf2(most + 1), /20000001 iterations \(at most 20000000 /],
    "2^60 iterations": [
      pbes2(PBKDF2, make.bigInteger(Buffer.alloc(8, 0x10))),
      /Infinity iterations \(at most 20000000 /,
    ],
    "iterations in a PEM file": [pem("ENCRYPTED PRIVATE KEY", pbkdf2(most + 1)), /20000001 iterations/],
    "scrypt's N": [
      pbes2(SCRYPT, make.integer(1 << 25), make.integer(1), make.integer(1)),
      /33554432 blocks of scrypt \(at most 20000000 /,
    ],
    "scrypt's p": [
      pbes2(SCRYPT, make.integer(1 << 12), make.integer(8), make.integer(4096)),
      /134217728 blocks of scrypt/,
    ],
    "iterations of PKCS#12's own scheme": [ownScheme(7_000_000), /7000000 iterations \(at most 6666666 /],
    "rounds of bcrypt": [
      pem("OPENSSH PRIVATE KEY", openssh(501)),
      /501 rounds of bcrypt \(at most 500 in a file\), which is not supported$/,
    ],
    "iterations that only BER's readers see": [indefinite(pbkdf2(30_000_000), inner), /written in BER/],
  }
  for (const [what, [file, says]] of Object.entries(costly))
    it(`S35: ${what} is refused before that is done`, async () => {
      const error = await refusal(file)
      assert.equal(error.code, "ERR_KEY_UNSUPPORTED", error.message)
      assert.match(error.message, /^a\.key: /)
      assert.match(error.message, says)
    })

  it("S35: a little less in each of its keys is refused where it is too much together", async () => {
    // OpenSSL refuses it at once, for the memory: what it was paid is gone all the same.
    const key = pem("ENCRYPTED PRIVATE KEY", pbes2(SCRYPT, ...[1 << 24, 1, 1].map(make.integer)))
    const messages: string[] = []
    const file = Buffer.from(key.repeat(2))
    for (const found of pemKeys(file, "a.key", () => undefined, new Stretching("a.key")).keys)
      try {
        await found.read(Buffer.from("password"))
      } catch (error) {
        messages.push((error as Error).message)
      }
    assert.doesNotMatch(messages[0] ?? "", /blocks of scrypt/)
    assert.match(messages[1] ?? "", /16777216 blocks of scrypt \(at most 20000000 in a file\)/)
  })
})
