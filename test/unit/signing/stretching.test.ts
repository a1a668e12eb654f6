// OpenPGP keys choose how long it takes to check a password: what asks for too much is refused before that is done.
import assert from "node:assert/strict"
import { encryptKey, enums, generateKey, type PrivateKey } from "openpgp"
import { KeyError } from "../../../lib/errors.ts"
import { changePassword } from "../../../lib/signing/key-ring.ts"
import { KeyStretching, SecretKeyring, unlockSecretKey } from "../../../lib/signing/openpgp.ts"

const password = "as cheap as can be"

interface Specifier {
  t: number
  encodedM: number
  c: number
}

/** A key under a password, of which each part asks for what `change` sets. */
async function lockedKey(
  kind: "argon2" | "iterated",
  change: (specifier: Specifier) => void,
): Promise<PrivateKey> {
  const { privateKey } = await generateKey({
    userIDs: [{ name: "Ada" }],
    type: "curve25519",
    format: "object",
  })
  const key = await encryptKey({
    privateKey,
    passphrase: password,
    config: {
      aeadProtect: kind === "argon2",
      s2kType: enums.s2k[kind],
      s2kArgon2Params: { passes: 1, parallelism: 1, memoryExponent: 10 },
      s2kIterationCountByte: 0,
    },
  })
  for (const { keyPacket } of key.getKeys()) change((keyPacket as unknown as { s2k: Specifier }).s2k)
  return key
}

async function refusal(act: () => Promise<unknown>): Promise<string> {
  try {
    await act()
  } catch (error) {
    assert.ok(error instanceof KeyError, String(error))
    assert.equal(error.code, "ERR_KEY_UNSUPPORTED")
    return error.message
  }
  assert.fail("it was unlocked")
}

const ways: Readonly<Record<string, (key: PrivateKey) => Promise<unknown>>> = {
  "to sign": async (key) => {
    const ring = new SecretKeyring()
    await ring.add(Buffer.from(key.write()), "a.key")
    await unlockSecretKey(await ring.select(undefined), Buffer.from(password), "a.key")
  },
  "to be put under another password": async (key) =>
    await changePassword(key.write(), "a.key", Buffer.from(password), Buffer.from("another")),
}

describe("an OpenPGP key that is unlocked", () => {
  for (const [why, unlock] of Object.entries(ways)) {
    it(`S35: ${why} may cost what keys cost`, async () => {
      await unlock(await lockedKey("argon2", () => undefined))
      await unlock(await lockedKey("iterated", () => undefined))
    })

    it(`S35: ${why} is refused before it takes too much memory`, async () => {
      const key = await lockedKey("argon2", (specifier) => (specifier.encodedM = 21))
      assert.match(
        await refusal(() => unlock(key)),
        /^a\.key: .*Argon2 with 2147483648 bytes of memory \(at most 1073741824 in a file\)$/,
      )
    })

    it(`S35: ${why} is refused before it takes too long`, async () => {
      const key = await lockedKey("argon2", (specifier) => {
        specifier.t = 255
        specifier.encodedM = 16
      })
      assert.match(
        await refusal(() => unlock(key)),
        /255 passes of Argon2 over 67108864 bytes \(at most 8589934592 in a file\)$/,
      )
    })
  }

  it("S35: is refused where many of them take too long together", async () => {
    const key = await lockedKey("iterated", (specifier) => (specifier.c = 255))
    const stretching = new KeyStretching("a.key")
    const most = Math.floor(2 ** 33 / 65_011_712)
    for (let count = 0; count < most; count++) stretching.spend(key.keyPacket)
    assert.throws(
      () => {
        stretching.spend(key.keyPacket)
      },
      {
        code: "ERR_KEY_UNSUPPORTED",
        message: /65011712 bytes to be hashed \(at most 8589934592 in a file\)$/,
      },
    )
  })
})
