// Formats that strangers write, changed at random with a seed that is told: each result is a value or an error with a code.
import assert from "node:assert/strict"
import { generateKeyPairSync } from "node:crypto"
import { readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { encodeTrailer, readFooter, readSealed, type ObjectToSeal } from "../../lib/encryption/sealed.ts"
import { parseGocryptfsConfig } from "../../lib/device/gocryptfs.ts"
import { ContainerError } from "../../lib/errors.ts"
import { decodeRecipient, encodeCryptoMessage } from "../../lib/key/crypto-message.ts"
import { selfSigned } from "../../lib/key/certificate.ts"
import { parsePkcs12 } from "../../lib/key/pkcs12.ts"
import { openSif } from "../../lib/sif/open.ts"
import { BufferReader } from "../../lib/sif/source.ts"
import { mutate } from "../support/mutate.ts"
import { openssl } from "../support/openssl.ts"
import { newFolder } from "../support/scratch.ts"
import { vector } from "../vectors/load.ts"
import { seeded } from "../support/random.ts"

/** Parses many mutations; what is refused is refused with one of these codes, quickly and without much memory. */
async function parseMutations(
  original: Buffer,
  rounds: number,
  codes: RegExp,
  parse: (mutated: Buffer) => unknown,
): Promise<{ readonly read: number; readonly refused: number }> {
  const random = seeded()
  let refused = 0
  await parse(original)
  const before = process.memoryUsage().rss
  for (let round = 0; round < rounds; round++) {
    const mutated = mutate(original, random)
    try {
      await parse(mutated)
    } catch (error) {
      if (!(error instanceof ContainerError))
        throw new Error(`round ${round}: ${mutated.toString("base64")}`, { cause: error })
      assert.match(error.code, codes)
      refused++
    }
  }
  assert.ok(process.memoryUsage().rss - before < 512 << 20)
  return { read: rounds - refused, refused }
}

describe("mutations", () => {
  const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 })

  it("of the recipient behind a crypto message are read or refused", async () => {
    const message = encodeCryptoMessage(Buffer.alloc(256, 7), publicKey)
    const { read, refused } = await parseMutations(message, 3000, /^ERR_KEY_MESSAGE$/, decodeRecipient)
    assert.ok(read > 300 && refused > 300, `${read} read, ${refused} refused`)
  })

  it("of gocryptfs.conf are read or refused", async () => {
    const config = Buffer.from(
      JSON.stringify(
        {
          Creator: "gocryptfs 2.3",
          EncryptedKey: Buffer.alloc(64, 1).toString("base64"),
          ScryptObject: { Salt: Buffer.alloc(32, 2).toString("base64"), N: 65536, R: 8, P: 1, KeyLen: 32 },
          Version: 2,
          FeatureFlags: ["HKDF", "GCMIV128", "PlaintextNames"],
        },
        null,
        "\t",
      ),
    )
    const { read, refused } = await parseMutations(config, 5000, /^ERR_GOCRYPTFS_/, (bytes) => {
      // Whatever is accepted is payable.
      assert.ok(parseGocryptfsConfig(bytes, undefined).memory <= 1 << 20)
    })
    assert.ok(read > 100 && refused > 1000, `${read} read, ${refused} refused`)
  })

  it("of what is sealed behind a squashfs are read or refused", async () => {
    await using source = await openSif(vector("peer/plain.sif"))
    const objects: ObjectToSeal[] = []
    for (const object of source.objects.filter(({ size, partition }) => partition === undefined && size > 0))
      objects.push({
        object,
        data: await source.data(object, 1 << 20),
        place: { slot: object.slot, id: object.id, link: object.link },
      })
    assert.ok(objects.length > 0)
    const squashfsSize = 8192
    const trailer = encodeTrailer(squashfsSize, objects, 0)
    const { refused } = await parseMutations(trailer, 2000, /^ERR_SIF_SEALED$/, async (bytes) => {
      // The ciphertext has whole sectors, so the plaintext has.
      const whole = Buffer.alloc(Math.ceil(bytes.length / 4096) * 4096)
      bytes.copy(whole, whole.length - bytes.length)
      const plaintext = {
        reader: new BufferReader(Buffer.concat([Buffer.alloc(squashfsSize), whole])),
        squashfsSize,
      }
      const footer = await readFooter(plaintext, "image")
      const sealed = await readSealed(plaintext, footer, "image")
      for (const object of sealed?.objects ?? []) await sealed?.data(object, 64 << 20)
    })
    assert.ok(refused > 100, `${refused} refused`)
    // The mutations above seldom meet the footer's few numbers.
    const footerAt = trailer.length - 4096
    const numbers = await parseMutations(
      trailer.subarray(footerAt, footerAt + 48),
      2000,
      /^ERR_SIF_SEALED$/,
      async (bytes) => {
        const changed = Buffer.from(trailer)
        bytes.copy(changed, footerAt, 0, 48)
        const plaintext = {
          reader: new BufferReader(Buffer.concat([Buffer.alloc(squashfsSize), changed])),
          squashfsSize,
        }
        await readSealed(plaintext, await readFooter(plaintext, "image"), "image")
      },
    )
    assert.ok(numbers.refused > 500, `${numbers.refused} refused`)
  })

  it("S35: of PKCS#12 files are read or refused", async () => {
    const folder = newFolder("mutations")
    const [key, certificate, file] = ["key.pem", "certificate.der", "file.p12"].map((name) =>
      path.join(folder, name),
    )
    assert.ok(key !== undefined && certificate !== undefined && file !== undefined)
    writeFileSync(key, privateKey.export({ type: "pkcs8", format: "pem" }))
    const der = selfSigned({ key: privateKey, commonName: "mutations", notBefore: new Date(), days: 1 })
    const pem = `-----BEGIN CERTIFICATE-----\n${der.toString("base64").replace(/.{64}/g, "$&\n")}\n-----END CERTIFICATE-----\n`
    writeFileSync(certificate, pem)
    // As cheap as can be, so that many are tried.
    const cheap = ["pkcs12", "-export", "-iter", "1", "-passout", "pass:x"]
    openssl([...cheap, "-inkey", key, "-in", certificate, "-out", file])
    const password = Buffer.from("x")
    const { refused } = await parseMutations(readFileSync(file), 1000, /^ERR_KEY_/, (bytes) =>
      parsePkcs12(bytes, password),
    )
    assert.ok(refused > 800, `${refused} refused`)
  })
})
