// The configuration of a gocryptfs image: what is accepted, what it may cost, and the keys that come of it.
import assert from "node:assert/strict"
import { createDecipheriv } from "node:crypto"
import {
  makeGocryptfs,
  parseGocryptfsConfig,
  RANDOM_SECRET_SCRYPT,
  unlockGocryptfs,
} from "../../../lib/device/gocryptfs.ts"
import type { KdfLimits } from "../../../lib/units.ts"
import { GocryptfsError, type ErrorCode } from "../../../lib/errors.ts"

// Made by `gocryptfs -init -plaintextnames -deterministic-names -scryptn 10`, version 2.3, password `password`, with a file
// of 13 bytes written through its mount.
const theirs = `{
	"Creator": "gocryptfs 2.3",
	"EncryptedKey": "WzHG2QdNm55vFKxRZs40/OzNWqQjE+Np0u52RcuEfgzCyQK6bgjToYdkf2RzB2cMu/4toZMlphgGCny4dzaxKg==",
	"ScryptObject": {
		"Salt": "xWkbfoiYRZEICAUModeirK77iw1+LLupFa3pzw8n3J8=",
		"N": 1024,
		"R": 8,
		"P": 1,
		"KeyLen": 32
	},
	"Version": 2,
	"FeatureFlags": [
		"HKDF",
		"GCMIV128",
		"PlaintextNames"
	]
}
`
const theirFile = "AAJXL65Z4GUMtbwOu7ExA9vfOk8VlLD7HNuzxECBT6GsfN8cQcd6X6krsT1NKHWW7UceH+bnXaxooQEMeVhZ"
const password = Buffer.from("password")

interface Members {
  [name: string]: unknown
}

function members(): Members & { ScryptObject: Members; FeatureFlags: unknown[] } {
  return JSON.parse(theirs) as Members & { ScryptObject: Members; FeatureFlags: unknown[] }
}

const parse = (
  text: string | Buffer,
  limits: Partial<KdfLimits> = {},
): ReturnType<typeof parseGocryptfsConfig> => parseGocryptfsConfig(Buffer.from(text), limits)

function refused(
  text: string | Buffer,
  code: ErrorCode,
  says: RegExp,
  limits: Partial<KdfLimits> = {},
): void {
  assert.throws(
    () => parse(text, limits),
    (error: unknown) => {
      assert.ok(error instanceof GocryptfsError, String(error))
      assert.equal(error.code, code, error.message)
      assert.match(error.message, says)
      return true
    },
  )
}

/** One block of a file, by the format's rules alone. */
function openBlock(file: Buffer, contentKey: Buffer): Buffer {
  const block = file.subarray(18)
  const decipher = createDecipheriv("aes-256-gcm", contentKey, block.subarray(0, 16), { authTagLength: 16 })
  decipher.setAAD(Buffer.concat([Buffer.alloc(8), file.subarray(2, 18)]))
  decipher.setAuthTag(block.subarray(block.length - 16))
  return Buffer.concat([decipher.update(block.subarray(16, block.length - 16)), decipher.final()])
}

describe("parseGocryptfsConfig", () => {
  it("accepts what gocryptfs writes", () => {
    const { scrypt, memory, salt, encryptedKey } = parse(theirs)
    assert.deepEqual(scrypt, { n: 1024, r: 8, p: 1 })
    assert.equal(memory, 1024)
    assert.equal(salt.length, 32)
    assert.equal(encryptedKey.length, 64)
  })

  for (const flag of [
    "AESSIV",
    "XChaCha20Poly1305",
    "EMENames",
    "DirIV",
    "LongNames",
    "LongNameMax",
    "Raw64",
    "FIDO2",
    "hkdf",
    "Something\u001b[2J",
  ])
    it(`refuses the feature ${JSON.stringify(flag)} by name`, () => {
      const config = members()
      config.FeatureFlags.push(flag)
      const shown = JSON.stringify(flag).replace(/[\\[\]]/g, "\\$&")
      refused(JSON.stringify(config), "ERR_GOCRYPTFS_UNSUPPORTED", new RegExp(`the feature ${shown}$`))
    })

  for (const flag of ["HKDF", "GCMIV128", "PlaintextNames"])
    it(`refuses a file system without the feature ${flag}`, () => {
      const config = members()
      config.FeatureFlags = config.FeatureFlags.filter((one) => one !== flag)
      refused(
        JSON.stringify(config),
        "ERR_GOCRYPTFS_UNSUPPORTED",
        new RegExp(`without the feature "${flag}"`),
      )
    })

  const hostile: readonly [string, unknown, ErrorCode][] = [
    ["N 512", { N: 512 }, "ERR_GOCRYPTFS_CONFIG"],
    ["N 0", { N: 0 }, "ERR_GOCRYPTFS_CONFIG"],
    ["N below 0", { N: -1024 }, "ERR_GOCRYPTFS_CONFIG"],
    ["N that is no power of two", { N: 1025 }, "ERR_GOCRYPTFS_CONFIG"],
    ["N that is a fraction", { N: 2048.5 }, "ERR_GOCRYPTFS_CONFIG"],
    ["N as text", { N: "1024" }, "ERR_GOCRYPTFS_CONFIG"],
    ["N 2^53", { N: 2 ** 53 }, "ERR_GOCRYPTFS_CONFIG"],
    ["N 2^31", { N: 2 ** 31 }, "ERR_GOCRYPTFS_COST"],
    ["2 GiB of memory", { N: 2 ** 21 }, "ERR_GOCRYPTFS_COST"],
    ["2 GiB of memory by R", { R: 16384 }, "ERR_GOCRYPTFS_COST"],
    ["R 7", { R: 7 }, "ERR_GOCRYPTFS_CONFIG"],
    ["R 2^32", { R: 2 ** 32 }, "ERR_GOCRYPTFS_CONFIG"],
    ["P 0", { P: 0 }, "ERR_GOCRYPTFS_CONFIG"],
    ["P 17", { P: 17 }, "ERR_GOCRYPTFS_COST"],
    ["P 2^32 - 1", { P: 2 ** 32 - 1 }, "ERR_GOCRYPTFS_COST"],
    ["a key of 16 bytes", { KeyLen: 16 }, "ERR_GOCRYPTFS_CONFIG"],
    ["a key of 64 bytes", { KeyLen: 64 }, "ERR_GOCRYPTFS_CONFIG"],
    ["a salt of 31 bytes", { Salt: Buffer.alloc(31).toString("base64") }, "ERR_GOCRYPTFS_CONFIG"],
    ["a salt of 513 bytes", { Salt: Buffer.alloc(513).toString("base64") }, "ERR_GOCRYPTFS_CONFIG"],
    [
      "a salt with a line end in it",
      { Salt: `${Buffer.alloc(33).toString("base64")}\n` },
      "ERR_GOCRYPTFS_CONFIG",
    ],
    ["a salt that is a number", { Salt: 1 }, "ERR_GOCRYPTFS_CONFIG"],
    ["another member", { Hash: "sha1" }, "ERR_GOCRYPTFS_UNSUPPORTED"],
    ["a member in other letters", { n: 2 ** 30 }, "ERR_GOCRYPTFS_UNSUPPORTED"],
  ]
  for (const [what, change, code] of hostile)
    it(`refuses scrypt with ${what}`, () => {
      const config = members()
      Object.assign(config.ScryptObject, change)
      refused(JSON.stringify(config), code, /gocryptfs configuration/)
    })

  for (const [what, change, code] of [
    ["version 1", { Version: 1 }, "ERR_GOCRYPTFS_UNSUPPORTED"],
    ["version 3", { Version: 3 }, "ERR_GOCRYPTFS_UNSUPPORTED"],
    ["a version that is text", { Version: "2" }, "ERR_GOCRYPTFS_CONFIG"],
    ["a version that is a fraction", { Version: 2.5 }, "ERR_GOCRYPTFS_CONFIG"],
    ["a key of 63 bytes", { EncryptedKey: Buffer.alloc(63).toString("base64") }, "ERR_GOCRYPTFS_CONFIG"],
    ["a key of 65 bytes", { EncryptedKey: Buffer.alloc(65).toString("base64") }, "ERR_GOCRYPTFS_CONFIG"],
    ["no key", { EncryptedKey: "" }, "ERR_GOCRYPTFS_CONFIG"],
    ["a key that is no text", { EncryptedKey: null }, "ERR_GOCRYPTFS_CONFIG"],
    ["no list of features", { FeatureFlags: {} }, "ERR_GOCRYPTFS_CONFIG"],
    ["a feature that is a number", { FeatureFlags: [7] }, "ERR_GOCRYPTFS_UNSUPPORTED"],
    ["no scrypt", { ScryptObject: [] }, "ERR_GOCRYPTFS_CONFIG"],
    ["a creator that is a number", { Creator: 7 }, "ERR_GOCRYPTFS_CONFIG"],
    ["FIDO2 parameters", { FIDO2: {} }, "ERR_GOCRYPTFS_UNSUPPORTED"],
    ["a version in other letters", { version: 3 }, "ERR_GOCRYPTFS_UNSUPPORTED"],
  ] as const)
    it(`refuses ${what}`, () => {
      refused(JSON.stringify({ ...members(), ...change }), code, /gocryptfs configuration/)
    })

  for (const name of ["EncryptedKey", "ScryptObject", "Version", "FeatureFlags"])
    it(`refuses a configuration without ${name}`, () => {
      const entries = Object.entries(members()).filter(([one]) => one !== name)
      refused(JSON.stringify(Object.fromEntries(entries)), "ERR_GOCRYPTFS_CONFIG", new RegExp(name))
    })

  for (const [what, text] of [
    ["empty", ""],
    ["no JSON", "hello"],
    ["a list", "[]"],
    ["cut", theirs.slice(0, 100)],
    ["followed by something", `${theirs}x`],
    ["one with a name twice", theirs.replace('"Version": 2', '"Version": 2, "Version": 2')],
    ["no UTF-8", Buffer.concat([Buffer.from(theirs), Buffer.from([0xff])])],
    ["too long", theirs + " ".repeat(64 * 1024)],
    ["too deep", `${"[".repeat(1000)}${"]".repeat(1000)}`],
  ] as const)
    it(`refuses a text that is ${what}`, () => {
      refused(text, "ERR_GOCRYPTFS_CONFIG", /malformed/)
    })

  it("takes limits of the caller in place of its own", () => {
    const config = members()
    config.ScryptObject["N"] = 2 ** 16
    const text = JSON.stringify(config)
    assert.equal(parse(text).memory, 64 * 1024)
    refused(text, "ERR_GOCRYPTFS_COST", /65536 KiB .* the limit is 65535 KiB/, { memory: 65535 })
    refused(text, "ERR_GOCRYPTFS_COST", /131072 KiB times passes/, { work: 131071 })
    config.ScryptObject["N"] = 2 ** 21
    const limits = { memory: 2 ** 21, work: 2 ** 22 }
    assert.equal(parse(JSON.stringify(config), limits).memory, 2 ** 21)
  })
})

describe("unlockGocryptfs", () => {
  it("gives the key that opens a file of gocryptfs", async () => {
    const contentKey = await unlockGocryptfs(parse(theirs), password)
    assert.ok(contentKey !== undefined)
    assert.equal(openBlock(Buffer.from(theirFile, "base64"), contentKey).toString(), "hello, block\n")
  })

  it("takes a secret up to its first line end, as gocryptfs does", async () => {
    const plain = await unlockGocryptfs(parse(theirs), password)
    assert.deepEqual(await unlockGocryptfs(parse(theirs), Buffer.from("password\nand more")), plain)
  })

  for (const secret of ["passwor", "Password", "password\r", "", "\npassword", "password".repeat(257)])
    it(`is undefined for the secret ${JSON.stringify(secret.slice(0, 20))} of ${secret.length} bytes`, async () => {
      assert.equal(await unlockGocryptfs(parse(theirs), Buffer.from(secret)), undefined)
    })

  it("is undefined whatever bit of the wrapped key was changed", async () => {
    const config = parse(theirs)
    for (let byte = 0; byte < config.encryptedKey.length; byte++) {
      const encryptedKey = Buffer.from(config.encryptedKey)
      encryptedKey[byte]! ^= 1 << (byte % 8)
      assert.equal(await unlockGocryptfs({ ...config, encryptedKey }, password), undefined, `byte ${byte}`)
    }
  })
})

describe("makeGocryptfs", () => {
  it("writes a configuration as gocryptfs writes it, which the password opens", async () => {
    const { config, contentKey, file } = await makeGocryptfs(password, RANDOM_SECRET_SCRYPT)
    const text = config.toString("latin1")
    const shape = (json: string): string =>
      json
        .replace(/"Creator": "[^"]*"/, "C")
        .replace(/"[A-Za-z0-9+/]+={0,2}"(,?)$/gm, (all, comma: string) =>
          all.length > 40 ? `B${comma}` : all,
        )
    assert.equal(shape(text), shape(theirs))
    assert.match(text, /"Creator": "sifcrypt"/)
    assert.match(file, /^squashfs-[0-9]+$/)
    assert.deepEqual(await unlockGocryptfs(parse(config), password), contentKey)
    assert.equal(await unlockGocryptfs(parse(config), Buffer.from("another")), undefined)
  })

  it("never makes the same keys twice", async () => {
    const [one, two] = await Promise.all([
      makeGocryptfs(password, RANDOM_SECRET_SCRYPT),
      makeGocryptfs(password, RANDOM_SECRET_SCRYPT),
    ])
    assert.notDeepEqual(one.contentKey, two.contentKey)
    assert.notDeepEqual(one.config, two.config)
  })

  for (const [what, secret] of [
    ["an empty password", ""],
    ["a password with a line end", "one\ntwo"],
    ["a password of 2049 bytes", "x".repeat(2049)],
  ] as const)
    it(`refuses ${what}`, async () => {
      await assert.rejects(makeGocryptfs(Buffer.from(secret), RANDOM_SECRET_SCRYPT), RangeError)
    })
})
