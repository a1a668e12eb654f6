// OpenPGP keys of all kinds: what they sign verifies, and what is not, or no longer, bound to its owner does not.
import assert from "node:assert/strict"
import { existsSync } from "node:fs"
import path from "node:path"
import {
  config,
  encryptKey,
  enums,
  generateKey,
  PacketList,
  readKey,
  readPrivateKey,
  reformatKey,
  revokeKey,
  SignaturePacket,
  type PrivateKey,
  type SecretKeyPacket,
} from "openpgp"
import {
  clearSign,
  hashNumber,
  isLocked,
  Keyring,
  parseClearSigned,
  SecretKeyring,
  unlockSecretKey,
  wipeSecretKey,
  type ClearSignature,
} from "../../../lib/signing/openpgp.ts"
import { weaknessOf } from "../../../lib/signing/key-policy.ts"
import { factsOf, importKeys } from "../../../lib/signing/key-ring.ts"
import { openPgpSigner } from "../../../lib/signing/signer.ts"
import { newFolder } from "../../support/scratch.ts"
import { vector } from "../../vectors/load.ts"

const text = '{"version":1}'
const user = { name: "Ada", email: "ada@example.org" }
const now = (): Date => new Date()

async function newKey(options: Partial<Parameters<typeof generateKey>[0]> = {}): Promise<PrivateKey> {
  const { privateKey } = await generateKey({
    userIDs: [user],
    type: "curve25519",
    ...options,
    format: "object",
  })
  return privateKey
}

/** Signs a packet by hand; the declarations lack the last parameter. */
function sign(packet: SignaturePacket): (...args: readonly unknown[]) => Promise<void> {
  return packet.sign.bind(packet) as (...args: readonly unknown[]) => Promise<void>
}

/** The key as the code under test reads it. */
async function own(key: PrivateKey): Promise<PrivateKey> {
  const ring = new SecretKeyring()
  await ring.add(Buffer.from(key.write()), "the key")
  return await ring.select(undefined)
}

async function signed(key: PrivateKey, time: Date = now()): Promise<Buffer> {
  return await clearSign(text, await own(key), time)
}

async function ringOf(key: { write(): Uint8Array }): Promise<Keyring> {
  const ring = new Keyring()
  await ring.add(Buffer.from(key.write()), "the key")
  return ring
}

async function verified(data: Buffer, ring: Keyring): Promise<ClearSignature> {
  const message = parseClearSigned(data)
  assert.ok(message)
  return await ring.verify(message)
}

async function refused(data: Buffer, ring: Keyring, reason: RegExp): Promise<void> {
  const result = await verified(data, ring)
  assert.equal(result.status, "invalid")
  assert.match(result.reason, reason)
}

describe("openPgpSigner", () => {
  const kinds: readonly (readonly [string, number, () => Promise<PrivateKey>])[] = [
    ["RSA", 20, () => newKey({ type: "rsa", rsaBits: 2048 })],
    ["Ed25519 as GnuPG 2.2 has it", 20, () => newKey({ type: "ecc", curve: "ed25519Legacy" })],
    ["Ed25519 of RFC 9580", 20, () => newKey()],
    ["NIST P-256", 20, () => newKey({ type: "ecc", curve: "nistP256" })],
    ["a key of version 6", 32, () => newKey({ config: { v6Keys: true } })],
    ["a signing subkey", 20, () => newKey({ subkeys: [{ sign: true }] })],
  ]
  for (const [what, size, make] of kinds)
    it(`A27: signs with ${what}, and names the primary key`, async () => {
      const key = await make()
      const signer = openPgpSigner(await own(key))
      assert.equal(signer.entity.length, size)
      const { data, hash } = await signer.sign(text, now())
      assert.ok(hash >= 1 && hash <= 3)
      assert.equal(data.at(-1), "-".charCodeAt(0))
      const result = await verified(data, await ringOf(key.toPublic()))
      assert.equal(result.status, "valid")
      assert.deepEqual(result.fingerprint, signer.entity)
      assert.equal(result.name, "Ada <ada@example.org>")
      const message = parseClearSigned(data)
      assert.equal(message?.text, text)
    })

  it("signs with the subkey where there is one", async () => {
    const key = await newKey({ subkeys: [{ sign: true }] })
    const result = await verified(
      (await openPgpSigner(await own(key)).sign(text, now())).data,
      await ringOf(await newKey()),
    )
    assert.equal(result.status, "unknown-signer")
    assert.equal(result.keyId, key.subkeys[0]?.getKeyID().toHex())
  })

  it("does not sign with a key that has expired or was revoked", async () => {
    const old = await newKey({ date: new Date(Date.now() - 60_000), keyExpirationTime: 10 })
    await assert.rejects(openPgpSigner(await own(old)).sign(text, now()), { code: "ERR_SIGNATURE_KEYRING" })
    const key = await newKey()
    const { privateKey } = await revokeKey({ key, format: "object" })
    await assert.rejects(openPgpSigner(await own(privateKey)).sign(text, now()), {
      code: "ERR_SIGNATURE_KEYRING",
    })
  })
})

describe("SecretKeyring", () => {
  let first: PrivateKey
  let second: PrivateKey
  let ring: SecretKeyring

  before(async () => {
    first = await newKey()
    second = await newKey({ userIDs: [{ name: "Bob" }] })
    ring = new SecretKeyring()
    await ring.add(Buffer.from(first.write()), "one")
    await ring.add(Buffer.from(second.armor()), "two")
  })

  it("A27: finds a key by its index and by its whole fingerprint", async () => {
    assert.equal((await ring.select(1)).getFingerprint(), second.getFingerprint())
    const name = first.getFingerprint().toUpperCase()
    assert.equal((await ring.select(name)).getFingerprint(), first.getFingerprint())
    const spaced = name.replaceAll(/.{4}/g, "$& ")
    assert.equal((await ring.select(spaced)).getFingerprint(), first.getFingerprint())
    const list = await ring.list()
    assert.deepEqual(
      list.map(({ index, name: user }) => [index, user]),
      [
        [0, "Ada <ada@example.org>"],
        [1, "Bob"],
      ],
    )
  })

  const wrong: readonly (readonly [string, string | number | undefined, RegExp])[] = [
    ["nothing, where there are two", undefined, /one has to be chosen: 0: [0-9A-F]{40} Ada/],
    ["an index that is not there", 2, /there is no secret key 2/],
    ["a fingerprint that is not there", "A".repeat(40), /no secret key with the fingerprint/],
    ["S40: a short key ID", "7FF7BA84", /no whole fingerprint/],
    ["S40: a long key ID", "A20C27EE7FF7BA84", /no whole fingerprint/],
  ]
  for (const [what, which, message] of wrong)
    it(`refuses ${what}`, async () => {
      await assert.rejects(ring.select(which), { code: "ERR_SIGNATURE_KEYRING", message })
    })

  it("A27: an empty key ring is an error", async () => {
    await assert.rejects(new SecretKeyring().select(undefined), {
      code: "ERR_SIGNATURE_KEYRING",
      message: "there is no OpenPGP secret key to sign with",
    })
  })

  it("refuses what holds no secret keys", async () => {
    await assert.rejects(new SecretKeyring().add(Buffer.from(first.toPublic().write()), "ring"), {
      code: "ERR_SIGNATURE_KEYRING",
    })
    await assert.rejects(new SecretKeyring().add(Buffer.from("nonsense"), "ring"), {
      code: "ERR_SIGNATURE_KEYRING",
    })
  })

  it("unlocks a key with its password, and no other, and wipes it", async () => {
    const key = await own(await encryptKey({ privateKey: first, passphrase: "geheim" }))
    assert.equal(await isLocked(key), true)
    await assert.rejects(unlockSecretKey(key, Buffer.from("falsch"), "the key"), {
      code: "ERR_KEY_PASSPHRASE",
    })
    await unlockSecretKey(key, Buffer.from("geheim"), "the key")
    assert.equal(await isLocked(key), false)
    await openPgpSigner(key).sign(text, now())
    wipeSecretKey(key)
    assert.equal(await isLocked(key), true)
  })

  it("unlocks the part that signs, whatever the others are", async () => {
    const half = await newKey()
    await (half.keyPacket as SecretKeyPacket).encrypt("geheim", config)
    const key = await own(half)
    assert.equal(await isLocked(key), true)
    await unlockSecretKey(key, Buffer.from("geheim"), "the key")
    await openPgpSigner(key).sign(text, now())
  })
})

describe("parseClearSigned", () => {
  // CVE-2025-68972 and others of GnuPG: what is shown beside a text that was signed, and was not.
  it("refuses whatever stands around or between a text and its signature", () => {
    const begin = "-----BEGIN PGP SIGNED MESSAGE-----"
    const signature = ["-----BEGIN PGP SIGNATURE-----", "", "AAAA", "-----END PGP SIGNATURE-----"]
    const good = [begin, "Hash: SHA256", "", "text", ...signature].join("\n")
    assert.equal(parseClearSigned(Buffer.from(good))?.text, "text")
    for (const [what, message] of Object.entries({
      "text behind it": `${good}\nunsigned`,
      "a line behind it": `${good}\n\n\n`,
      "another message": `${good}\n${good}`,
      "another signature": [good, ...signature].join("\n"),
      "a form feed": good.replace("text", "text\f\nunsigned"),
      "a NUL": good.replace("text", "text\0\nunsigned"),
      "a header that is text": good.replace("Hash: SHA256", "Hash: SHA256\nunsigned"),
      "a hash with more behind it": good.replace("SHA256", "SHA256\\unsigned"),
      "headers that only look ended": good.replace("SHA256\n\n", "SHA256\n \n"),
      "text without headers' end": [begin, "text", ...signature].join("\n"),
      "a line that is escaped": good.replace("text", "- -----END PGP SIGNATURE-----\ntext"),
      "a signature's end alone": good.replace("text", "-----END PGP SIGNATURE-----\ntext"),
    }))
      assert.throws(
        () => parseClearSigned(Buffer.from(message)),
        { name: "SignatureError", code: "ERR_SIGNATURE_FORMAT" },
        what,
      )
    assert.equal(parseClearSigned(Buffer.from(`unsigned\n${good}`)), undefined)
  })

  // Within mocha's patience, which quadratic time exceeds by far.
  it("ends soon for a line of many blanks", () => {
    const line = `${" ".repeat(900_000)}x`
    const message = [
      "-----BEGIN PGP SIGNED MESSAGE-----",
      "Hash: SHA256",
      "",
      `${line} \t`,
      "-----BEGIN PGP SIGNATURE-----",
      "",
      "-----END PGP SIGNATURE-----",
    ]
    assert.equal(parseClearSigned(Buffer.from(message.join("\n")))?.text, line)
  })
})

describe("keys that verify", () => {
  let key: PrivateKey
  let data: Buffer

  before(async () => {
    key = await newKey()
    data = await signed(key)
  })

  it("A26: an expired key verifies nothing, whenever it signed", async () => {
    const old = new Date(Date.now() - 60_000)
    const expired = await newKey({ date: old, keyExpirationTime: 10 })
    const message = await signed(expired, old)
    await refused(message, await ringOf(expired.toPublic()), /the key has expired/)
  })

  it("A26: a revoked key verifies nothing", async () => {
    const { publicKey } = await revokeKey({ key, format: "object" })
    await refused(data, await ringOf(publicKey), /revoked/)
  })

  it("A26: a signing subkey that has expired verifies nothing", async () => {
    const old = new Date(Date.now() - 60_000)
    const made = await newKey({ date: old, subkeys: [{ sign: true, keyExpirationTime: 10 }] })
    const message = await signed(made, old)
    await refused(message, await ringOf(made.toPublic()), /does not sign any more/)
  })

  /** What a packet has of its key; the declarations lack it. */
  type Numbers = Record<string, Uint8Array>
  /** 1.3.36.3.3.2.8.1.1.7 */
  const brainpoolP256r1 = Buffer.of(0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x07)

  /** The key with other numbers in its packet, which is another key. */
  async function changed(key: PrivateKey, change: (numbers: Numbers) => void): Promise<PrivateKey> {
    const { publicParams, privateParams } = key.keyPacket as SecretKeyPacket & { privateParams: Numbers }
    change(publicParams as Numbers)
    change(privateParams)
    return await readPrivateKey({ binaryKey: key.write() })
  }

  const rsa = (bits = 2048): Promise<PrivateKey> =>
    newKey({ type: "rsa", rsaBits: bits, subkeys: [], config: { minRSABits: bits } })
  const set =
    (name: string, value: Uint8Array) =>
    (numbers: Numbers): void => {
      if (name in numbers) numbers[name] = value
    }
  const weakKeys: readonly (readonly [string, RegExp, () => Promise<PrivateKey>])[] = [
    ["an RSA key of 1024 bits", /1024 bits is too weak/, () => rsa(1024)],
    [
      "an RSA key whose exponent is 1",
      /exponent 1/,
      async () => await changed(await rsa(), set("e", Buffer.of(1))),
    ],
    [
      "an RSA key whose exponent is huge",
      /exponent of more than 64 bits/,
      async () => await changed(await rsa(), set("e", Buffer.alloc(256, 0xff))),
    ],
    [
      "an RSA key whose modulus is even",
      /RSA key/,
      async () => await changed(await rsa(), set("n", Buffer.alloc(256, 0xfe))),
    ],
    [
      "an EC key that is no point of its curve",
      /no point of its curve/,
      async () =>
        await changed(
          await newKey({ type: "ecc", curve: "nistP256" }),
          set("Q", Buffer.concat([Buffer.of(4), Buffer.alloc(64, 1)])),
        ),
    ],
    [
      "a key on a curve that is not accepted",
      /brainpoolP256r1/,
      async () =>
        await changed(await newKey({ type: "ecc", curve: "nistP256" }), ({ oid }) => {
          if (oid !== undefined) Object.assign(oid, { oid: brainpoolP256r1 })
        }),
    ],
  ]
  for (const [what, reason, make] of weakKeys)
    it(`${what} is not imported`, async () => {
      const folder = path.join(newFolder("ring"), "keys")
      const strange = Buffer.from((await make()).toPublic().write())
      await assert.rejects(importKeys(strange, "a stranger's", { folder }), {
        code: "ERR_SIGNATURE_KEYRING",
        message: reason,
      })
      assert.equal(existsSync(folder), false)
    })

  it("a weak subkey has signed nothing that is believed, and condemns nothing that others have", async () => {
    const weak = { sign: true, type: "rsa", rsaBits: 1024 } as const
    const other = await newKey({ subkeys: [weak], config: { minRSABits: 1024 } })
    const signer = other.subkeys[0]?.getKeyID()
    assert.match(weaknessOf(other.toPublic(), signer) ?? "", /1024 bits is too weak/)
    assert.equal(weaknessOf(other.toPublic(), other.getKeyID()), undefined)

    const owner = await newKey({ subkeys: [] })
    const message = await signed(owner)
    const subkey = other.toPublic().toPacketList().filterByTag(enums.packet.publicSubkey).write()
    const extended = Buffer.concat([owner.toPublic().write(), subkey])
    const folder = path.join(newFolder("ring"), "keys")
    await importKeys(extended, "a key server", { folder })
    const key = await readKey({ binaryKey: extended })
    assert.equal((await verified(message, await ringOf(key))).status, "valid")
    assert.equal((await factsOf(key)).status, "good")
  })

  // Who knows nothing but the public key signs with it: the private exponent is 1, too.
  it("what anybody can sign with a key whose exponent is 1 is not verified, in whatever ring it lies", async () => {
    const forged = await changed(await rsa(), (numbers) => {
      for (const name of ["e", "d"]) set(name, Buffer.of(1))(numbers)
    })
    const { privateKey } = await reformatKey({ privateKey: forged, userIDs: [user], format: "object" })
    await refused(await signed(privateKey), await ringOf(privateKey.toPublic()), /exponent 1/)
    assert.equal((await factsOf(privateKey)).status, "unusable")
  })

  /** A key of which the only subkey is bound by `change`d signatures. */
  async function boundBy(
    change: (owner: PrivateKey, subkey: PrivateKey["subkeys"][number]) => Promise<void>,
  ): Promise<{ readonly ring: Keyring; readonly message: Buffer }> {
    const owner = await newKey({ subkeys: [{ sign: true }] })
    const message = await signed(owner)
    const [subkey] = owner.subkeys
    assert.ok(subkey)
    await change(owner, subkey)
    return { ring: await ringOf(owner.toPublic()), message }
  }

  it("S39: a signing subkey without a back-signature verifies nothing", async () => {
    const { ring, message } = await boundBy(async (owner, subkey) => {
      const binding = new SignaturePacket()
      binding.signatureType = enums.signature.subkeyBinding
      binding.publicKeyAlgorithm = owner.keyPacket.algorithm
      binding.hashAlgorithm = enums.hash.sha256
      binding.keyFlags = new Uint8Array([enums.keyFlags.signData])
      await sign(binding)(
        owner.keyPacket,
        { key: owner.keyPacket, bind: subkey.keyPacket },
        now(),
        false,
        config,
      )
      subkey.bindingSignatures = [binding]
    })
    await refused(message, ring, /[Mm]issing embedded signature|back-?signature/)
  })

  it("S39: a subkey of somebody else, put beside another's primary key, verifies nothing", async () => {
    const victim = await newKey({ subkeys: [{ sign: true }] })
    const attacker = await newKey({ subkeys: [{ sign: true }] })
    const message = await signed(victim)
    // The attacker's key, and behind it the victim's subkey with the victim's binding signature.
    const packets = attacker.toPublic().toPacketList()
    const others = victim.toPublic().toPacketList()
    const at = others.findIndex((packet) => (packet.constructor as { tag?: number }).tag === 14)
    const glued = new PacketList()
    glued.push(...packets, ...others.slice(at))
    const ring = await ringOf(await readKey({ binaryKey: glued.write() }))
    const result = await verified(message, ring)
    assert.notEqual(result.status, "valid")
  })

  it("S39: a signing subkey that is bound both ways verifies", async () => {
    const { ring, message } = await boundBy(async () => undefined)
    assert.equal((await verified(message, ring)).status, "valid")
  })

  it("S4: a signature with SHA-1 verifies nothing", async () => {
    const armored = vector("sif/pgp-private.asc")
    const rsa = await readPrivateKey({ armoredKey: armored.toString() })
    const signature = new SignaturePacket()
    signature.signatureType = enums.signature.text
    signature.publicKeyAlgorithm = rsa.keyPacket.algorithm
    signature.hashAlgorithm = enums.hash.sha1
    signature.issuerKeyID = rsa.getKeyID()
    const { LiteralDataPacket, armor } = await import("openpgp")
    const literal = new LiteralDataPacket()
    Object.assign(literal, { text })
    await sign(signature)(rsa.keyPacket, literal, now(), true, {
      ...config,
      nonDeterministicSignaturesViaNotation: false,
    })
    const packets = new PacketList()
    packets.push(signature)
    const block = armor(enums.armor.signature, packets.write()).replaceAll("\r\n", "\n").trim()
    const message = `-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\n${text}\n${block}`
    await refused(Buffer.from(message), await ringOf(rsa.toPublic()), /hash algorithm is not accepted/)
  })

  it("a key ring of several keys verifies what any of them signed", async () => {
    const ring = new Keyring()
    await ring.add(vector("sif/pgp-private.asc"), "one")
    await ring.add(Buffer.concat([(await newKey()).toPublic().write(), key.toPublic().write()]), "two")
    assert.equal((await verified(data, ring)).status, "valid")
  })

  it("says which hash a signature is over", async () => {
    const message = parseClearSigned(data)
    assert.ok(message)
    assert.ok([1, 3].includes(await hashNumber(message)))
  })

  it("takes passwords as UTF-8", async () => {
    const locked = await own(await encryptKey({ privateKey: key, passphrase: "pässwörd" }))
    await unlockSecretKey(locked, Buffer.from("pässwörd"), "the key")
    assert.equal(await isLocked(locked), false)
  })
})
