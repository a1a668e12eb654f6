import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { LuksError, type ErrorCode } from "../../../lib/errors.ts"
import {
  decodeLuksHeader,
  kdfLimits,
  parseLuksHeader,
  type LuksHeader,
  type LuksPolicy,
} from "../../../lib/device/luks-header.ts"
import { openSif } from "../../../lib/sif/open.ts"
import { generator, vector } from "../../vectors/load.ts"
import { processorMs } from "../../support/processor-time.ts"

const copySize = 16384
const partitionSize = 17821696
/** Both copies of the metadata in the peer's image. */
const metadata = vector("peer/luks-rsa2048.sif").subarray(36864, 36864 + 2 * copySize)

// eslint-disable-next-line @typescript-eslint/no-explicit-any -- evil documents have no type
type Json = any

function peerJson(): Json {
  const area = metadata.subarray(4096, copySize)
  return JSON.parse(area.toString("utf8", 0, area.indexOf(0)))
}

/** Makes the checksum of the copy at `at` right again. */
function seal(bytes: Buffer, at: number, size: number): void {
  bytes.fill(0, at + 448, at + 512)
  createHash("sha256")
    .update(bytes.subarray(at, at + size))
    .digest()
    .copy(bytes, at + 448)
}

interface Encoding {
  /** Instead of the JSON of a document. */
  readonly text?: string | Buffer
  readonly size?: number
  /** Changes a copy's binary part before its checksum is made. */
  readonly patch?: (bytes: Buffer, at: number) => void
}

/** A header with both copies of the metadata, made from the peer's by replacing its JSON. */
function encode(document: Json, { text, size = copySize, patch }: Encoding = {}): Buffer {
  const bytes = Buffer.alloc(2 * size)
  for (const [at, from] of [
    [0, 0],
    [size, copySize],
  ] as const) {
    metadata.copy(bytes, at, from, from + 4096)
    bytes.writeBigUInt64BE(BigInt(size), at + 8)
    bytes.writeBigUInt64BE(BigInt(at), at + 256)
    const json = Buffer.from(text ?? JSON.stringify(document))
    assert.ok(json.length <= size - 4096, "the document does not fit")
    json.copy(bytes, at + 4096)
    patch?.(bytes, at)
    seal(bytes, at, size)
  }
  return bytes
}

/** The peer's document, changed. */
function changed(change: (json: Json) => unknown): Buffer {
  const json = peerJson()
  change(json)
  return encode(json)
}

function refuses(
  bytes: Buffer,
  code: ErrorCode,
  says: RegExp,
  policy?: LuksPolicy,
  size = partitionSize,
): void {
  assert.throws(
    () => decodeLuksHeader(bytes, size, policy),
    (error: unknown) => {
      assert.ok(error instanceof LuksError, String(error))
      assert.equal(error.code, code, error.message)
      assert.match(error.message, says)
      assert.doesNotMatch(error.message, /\p{Cc}/u)
      assert.ok(error.message.length < 300)
      return true
    },
  )
}

/** What our encoding for libcryptsetup says. */
function encoded(header: LuksHeader): Json {
  const size = Number(header.metadata.readBigUInt64BE(8))
  const area = header.metadata.subarray(4096, size)
  return JSON.parse(area.toString("utf8", 0, area.indexOf(0)))
}

describe("decodeLuksHeader", () => {
  describe("accepted", () => {
    it("reads the peer's header", () => {
      const header = decodeLuksHeader(metadata, partitionSize)
      assert.match(header.uuid, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
      assert.deepEqual(header.segment, {
        offset: 16777216,
        size: 1044480,
        ivTweak: 0,
        sectorSize: 512,
        cipher: "aes-xts-plain64",
        keySize: 64,
      })
      assert.deepEqual(header.keyslots, [
        {
          id: 0,
          kdf: { type: "argon2id", iterations: 4, memory: 65536, parallel: 1 },
          cost: "64 MiB, 4 passes, 1 thread", // of its salt
          mark: "f3a5703e0417412104665ec613d45311",
        },
      ])
      assert.deepEqual(header.digest, { id: 0, hash: "sha256", iterations: 444311 })
      assert.equal(header.areaSize, 32768 + 258048)
    })

    it("reads it from an image, through a reader", async () => {
      await using image = await openSif(vector("peer/luks-rsa2048.sif"))
      const header = await parseLuksHeader(image.reader, image.primary())
      assert.deepEqual(header, decodeLuksHeader(metadata, partitionSize))
    })

    const accepted: readonly (readonly [string, (json: Json) => unknown])[] = [
      ["argon2i", (json) => (json.keyslots[0].kdf.type = "argon2i")],
      [
        "PBKDF2",
        (json) =>
          (json.keyslots[0].kdf = {
            type: "pbkdf2",
            hash: "sha512",
            iterations: 1000,
            salt: json.keyslots[0].kdf.salt,
          }),
      ],
      [
        "a 256-bit key",
        (json) => {
          json.keyslots[0].key_size = 32
          json.keyslots[0].area.key_size = 32
        },
      ],
      ["sectors of 4096 bytes", (json) => (json.segments[0].sector_size = 4096)],
      [
        "data from 4 MiB on",
        (json) => {
          json.segments[0].offset = "4194304"
          json.config.keyslots_size = "4161536"
        },
      ],
      ["a fixed size", (json) => (json.segments[0].size = "4096")],
      ["an iv_tweak", (json) => (json.segments[0].iv_tweak = "8")],
      ["a priority", (json) => (json.keyslots[0].priority = 2)],
      ["no tokens", (json) => delete json.tokens],
      ["a token", (json) => (json.tokens = { 0: { type: "systemd-tpm2", keyslots: ["0"] } })],
      ["flags that only guide activation", (json) => (json.config.flags = ["allow-discards"])],
      ["an empty list of requirements", (json) => (json.config.requirements = { mandatory: [] })],
      [
        "a second digest that is for nothing",
        (json) => {
          json.digests[1] = { ...json.digests[0], segments: [] }
        },
      ],
    ]
    for (const [what, change] of accepted)
      it(`reads a header with ${what}`, () => {
        assert.equal(decodeLuksHeader(changed(change), partitionSize).keyslots.length, 1)
      })

    it("resolves a dynamic size by the partition's size, in whole sectors", () => {
      for (const [size, sector, expected] of [
        [16777216 + 512, 512, 512],
        [16777216 + 1023, 512, 512],
        [16777216 + 8191, 4096, 4096],
        [partitionSize, 4096, 1044480],
      ] as const) {
        const bytes = changed((json) => (json.segments[0].sector_size = sector))
        assert.equal(decodeLuksHeader(bytes, size).segment.size, expected)
      }
    })

    it("reads a header of any size that LUKS2 has", () => {
      for (let size = copySize; size <= 4 * 1024 * 1024; size *= 2) {
        const json = peerJson()
        json.config.json_size = String(size - 4096)
        json.config.keyslots_size = String(16777216 - 2 * size)
        json.keyslots[0].area.offset = String(2 * size)
        const header = decodeLuksHeader(encode(json, { size }), partitionSize)
        assert.equal(header.areaSize, 2 * size + 258048)
        assert.equal(header.metadata.length, 2 * size)
      }
    })

    it("leaves out keyslots that do not lead to the data, whatever they ask for", () => {
      const bytes = changed((json) => {
        json.keyslots[1] = { type: "luks2", key_size: 1, kdf: { type: "argon2id", memory: 2 ** 32 - 1 } }
      })
      const header = decodeLuksHeader(bytes, partitionSize)
      assert.deepEqual(
        header.keyslots.map(({ id }) => id),
        [0],
      )
      assert.deepEqual(Object.keys(encoded(header).keyslots), ["0"])
    })

    it("accepts a cipher that the caller allows by name", () => {
      const bytes = changed((json) => {
        json.segments[0].encryption = "serpent-xts-plain64"
        json.keyslots[0].area.encryption = "serpent-xts-plain64"
      })
      const { segment } = decodeLuksHeader(bytes, partitionSize, { allowCipher: "serpent-xts-plain64" })
      assert.equal(segment.cipher, "serpent-xts-plain64")
    })
  })

  describe("what libcryptsetup gets", () => {
    it("S26: is encoded anew from what was checked, and nothing else of the image's text", () => {
      const bytes = changed((json) => {
        json.tokens = { 0: { type: "evil", keyslots: ["0"] } }
        json.unknown = "evil"
        json.config.flags = ["evil"]
        json.config.extra = "evil"
        json.segments[0].extra = "evil"
        json.keyslots[0].extra = "evil"
        json.keyslots[0].kdf.extra = "evil"
        json.keyslots[0].area.extra = "evil"
        json.keyslots[0].af.extra = "evil"
        json.digests[0].extra = "evil"
      })
      const header = decodeLuksHeader(bytes, partitionSize)
      const document = encoded(header)
      const expected = peerJson()
      expected.segments[0].size = "1044480"
      expected.config.keyslots_size = "258048"
      assert.deepEqual(document, expected)
    })

    it("S26: is one sealed copy, the second one's place zeros", () => {
      const { metadata: ours } = decodeLuksHeader(metadata, partitionSize)
      assert.equal(ours.length, 2 * copySize)
      assert.ok(ours.subarray(copySize).every((byte) => byte === 0))
      const sealed = Buffer.from(ours)
      seal(sealed, 0, copySize)
      assert.deepEqual(ours.subarray(448, 512), sealed.subarray(448, 512))
      assert.equal(ours.toString("hex", 0, 8), "4c554b53babe0002")
      // label, subsystem and salt of the binary header are not carried over
      assert.ok(ours.subarray(24, 72).every((byte) => byte === 0))
      assert.ok(ours.subarray(104, 168).every((byte) => byte === 0))
    })

    it("S26: decodes to the same header", () => {
      const header = decodeLuksHeader(metadata, partitionSize)
      const again = decodeLuksHeader(header.metadata, partitionSize)
      // What is stored is not what libcryptsetup gets: its keyslots area is longer, and its segment has no fixed size.
      assert.deepEqual({ ...again, stored: undefined }, { ...header, stored: undefined })
    })

    it("S26: does not change when the image's bytes change afterwards", () => {
      const bytes = Buffer.from(metadata)
      const header = decodeLuksHeader(bytes, partitionSize)
      const before = Buffer.from(header.metadata)
      bytes.fill(0xff)
      assert.deepEqual(header.metadata, before)
    })
  })

  describe("ciphers and segments", () => {
    const cases: readonly (readonly [string, (json: Json) => unknown, ErrorCode, RegExp])[] = [
      ...[
        "null",
        "cipher_null",
        "cipher_null-ecb",
        "cipher_null-cbc-plain",
        "aes-ecb",
        "aes-cbc-essiv:sha256",
        "aes-cbc-plain64",
        "serpent-xts-plain64",
        "aes-xts-plain",
        "aes-xts-plain64be",
        "aes-xts-benbi",
        "AES-XTS-PLAIN64",
        "capi:xts(aes)-plain64",
        "aes-xts-plain64 ",
        "",
      ].map(
        (cipher) =>
          [
            `the cipher ${JSON.stringify(cipher)}`,
            (json: Json) => (json.segments[0].encryption = cipher),
            "ERR_LUKS_UNSUPPORTED",
            new RegExp(`the cipher ${JSON.stringify(cipher).replace(/[()]/g, "\\$&")}; only aes-xts-plain64`),
          ] as const,
      ),
      [
        "a null cipher in a keyslot",
        (json) => (json.keyslots[0].area.encryption = "cipher_null-ecb"),
        "ERR_LUKS_UNSUPPORTED",
        /keyslot 0's cipher "cipher_null-ecb"/,
      ],
      [
        "AES-CBC in a keyslot",
        (json) => (json.keyslots[0].area.encryption = "aes-cbc-plain64"),
        "ERR_LUKS_UNSUPPORTED",
        /keyslot 0's cipher "aes-cbc-plain64"/,
      ],
      [
        "a cipher that is no string",
        (json) => (json.segments[0].encryption = ["aes-xts-plain64"]),
        "ERR_LUKS_HEADER",
        /cipher is \["aes-xts-plain64"\] and no string/,
      ],
      [
        "no cipher",
        (json) => delete json.segments[0].encryption,
        "ERR_LUKS_HEADER",
        /cipher is nothing and no string/,
      ],
      ...[1, 16, 24, 33, 48, 65, 128, 512].map(
        (size) =>
          [
            `a volume key of ${size} bytes`,
            (json: Json) => {
              json.keyslots[0].key_size = size
              json.keyslots[0].area.size = String(size * 4096)
            },
            "ERR_LUKS_UNSUPPORTED",
            new RegExp(`a volume key of ${size} bytes`),
          ] as const,
      ),
      ...[0, 1, 16, 48, 128].map(
        (size) =>
          [
            `a keyslot key of ${size} bytes`,
            (json: Json) => (json.keyslots[0].area.key_size = size),
            "ERR_LUKS_UNSUPPORTED",
            new RegExp(`keyslot 0's area key of ${size} bytes`),
          ] as const,
      ),
      [
        "a linear segment",
        (json) => (json.segments[0].type = "linear"),
        "ERR_LUKS_UNSUPPORTED",
        /of type "linear"/,
      ],
      [
        "two segments",
        (json) => {
          json.segments[1] = json.segments[0]
        },
        "ERR_LUKS_UNSUPPORTED",
        /2 segments/,
      ],
      [
        "a backup segment",
        (json) => (json.segments[0].flags = ["backup-final"]),
        "ERR_LUKS_UNSUPPORTED",
        /a segment with flags/,
      ],
      [
        "integrity",
        (json) => (json.segments[0].integrity = { type: "hmac(sha256)" }),
        "ERR_LUKS_UNSUPPORTED",
        /a segment with integrity/,
      ],
      ["no segment", (json) => (json.segments = {}), "ERR_LUKS_HEADER", /no segment/],
      ["no list of segments", (json) => delete json.segments, "ERR_LUKS_HEADER", /segments is no object/],
      [
        "segments in an array",
        (json) => {
          json.segments = [json.segments[0]]
        },
        "ERR_LUKS_HEADER",
        /no object/,
      ],
      [
        "a segment of an odd number",
        (json) => (json.segments = { "00": json.segments[0] }),
        "ERR_LUKS_HEADER",
        /segment has the number "00"/,
      ],
      [
        "a segment of no number",
        (json) => (json.segments = { __proto__x: json.segments[0] }),
        "ERR_LUKS_HEADER",
        /segment has the number "__proto__x"/,
      ],
      ...[0, 256, 513, 8192, 2 ** 53 - 1].map(
        (size) =>
          [
            `sectors of ${size} bytes`,
            (json: Json) => (json.segments[0].sector_size = size),
            "ERR_LUKS_UNSUPPORTED",
            new RegExp(`sectors of ${size} bytes`),
          ] as const,
      ),
      [
        "a sector size in a string",
        (json) => (json.segments[0].sector_size = "512"),
        "ERR_LUKS_HEADER",
        /sector size is "512"/,
      ],
      [
        "a segment at the start",
        (json) => (json.segments[0].offset = "0"),
        "ERR_LUKS_HEADER",
        /segment's offset is 0/,
      ],
      [
        "a segment in the header",
        (json) => (json.segments[0].offset = "512"),
        "ERR_LUKS_HEADER",
        /the data segment overlaps the header/,
      ],
      [
        "a segment in the keyslots area",
        (json) => (json.segments[0].offset = "16776704"),
        "ERR_LUKS_HEADER",
        /the data segment overlaps the header/,
      ],
      [
        "a segment that starts in the middle of a sector",
        (json) => (json.segments[0].offset = "16777217"),
        "ERR_LUKS_HEADER",
        /segment's offset is 16777217/,
      ],
      [
        "a segment at the partition's end",
        (json) => (json.segments[0].offset = String(partitionSize)),
        "ERR_LUKS_HEADER",
        /starts at 17821696, the partition has 17821696 bytes/,
      ],
      [
        "a segment beyond the partition",
        (json) => (json.segments[0].offset = "4503599627370496"),
        "ERR_LUKS_HEADER",
        /starts at 4503599627370496/,
      ],
      [
        "a segment that ends beyond the partition",
        (json) => (json.segments[0].size = "1044992"),
        "ERR_LUKS_HEADER",
        /1044992 bytes, the partition 1044480 for it/,
      ],
      ["an empty segment", (json) => (json.segments[0].size = "0"), "ERR_LUKS_HEADER", /segment has 0 bytes/],
      [
        "a segment of half a sector",
        (json) => (json.segments[0].size = "256"),
        "ERR_LUKS_HEADER",
        /segment has 256 bytes/,
      ],
      ...[
        "-512",
        "+512",
        "0512",
        "0x200",
        "512 ",
        " 512",
        "5e2",
        "512.0",
        "",
        "Dynamic",
        "9007199254740992",
        "99999999999999999999",
      ].map(
        (size) =>
          [
            `a segment of ${JSON.stringify(size)} bytes`,
            (json: Json) => (json.segments[0].size = size),
            "ERR_LUKS_HEADER",
            /the segment's size is/,
          ] as const,
      ),
      [
        "an offset that is a number",
        (json) => (json.segments[0].offset = 16777216),
        "ERR_LUKS_HEADER",
        /segment's offset is 16777216 and no string/,
      ],
      [
        "an iv_tweak below 0",
        (json) => (json.segments[0].iv_tweak = "-1"),
        "ERR_LUKS_HEADER",
        /iv_tweak is "-1"/,
      ],
    ]
    for (const [what, change, code, says] of cases)
      it(`S25: refuses ${what} before any key derivation`, () => {
        refuses(changed(change), code, says)
      })

    it("S25: refuses null ciphers even if the caller allows them by name", () => {
      for (const cipher of ["null", "cipher_null-ecb", "CIPHER_NULL-ecb", "cipher_null-xts-plain64"]) {
        const bytes = changed((json) => (json.segments[0].encryption = cipher))
        refuses(bytes, "ERR_LUKS_UNSUPPORTED", /cipher/i, { allowCipher: cipher })
      }
    })

    it("S25: refuses another cipher than the one that the caller allows", () => {
      const bytes = changed((json) => (json.segments[0].encryption = "twofish-xts-plain64"))
      refuses(bytes, "ERR_LUKS_UNSUPPORTED", /twofish/, { allowCipher: "serpent-xts-plain64" })
    })

    it("S6: bounds a dynamic segment by the partition, not by what follows it in the file", () => {
      refuses(metadata, "ERR_LUKS_HEADER", /starts at 16777216, the partition has 16777216/, {}, 16777216)
      refuses(metadata, "ERR_LUKS_HEADER", /segment has 0 bytes/, {}, 16777216 + 511)
      refuses(metadata, "ERR_LUKS_HEADER", /the partition has 32768/, {}, 32768)
    })
  })

  describe("re-encryption and requirements", () => {
    const cases: readonly (readonly [string, (json: Json) => unknown, ErrorCode, RegExp])[] = [
      [
        "the requirement of online re-encryption",
        (json) => (json.config.requirements = { mandatory: ["online-reencrypt"] }),
        "ERR_LUKS_UNSUPPORTED",
        /requirement "online-reencrypt"/,
      ],
      [
        "its second version",
        (json) => (json.config.requirements = { mandatory: ["online-reencrypt-v2"] }),
        "ERR_LUKS_UNSUPPORTED",
        /requirement "online-reencrypt-v2"/,
      ],
      [
        "the requirement of offline re-encryption",
        (json) => (json.config.requirements = { mandatory: ["offline-reencrypt"] }),
        "ERR_LUKS_UNSUPPORTED",
        /requirement "offline-reencrypt"/,
      ],
      [
        "an unknown requirement",
        (json) => (json.config.requirements = { mandatory: ["from-the-future"] }),
        "ERR_LUKS_UNSUPPORTED",
        /requirement "from-the-future"/,
      ],
      [
        "a requirement that is no text",
        (json) => (json.config.requirements = { mandatory: [{}] }),
        "ERR_LUKS_UNSUPPORTED",
        /requirement \{\}/,
      ],
      [
        "requirements that are no list",
        (json) => (json.config.requirements = { mandatory: "online-reencrypt" }),
        "ERR_LUKS_HEADER",
        /mandatory requirements are no list/,
      ],
      [
        "requirements that are no object",
        (json) => (json.config.requirements = ["online-reencrypt"]),
        "ERR_LUKS_HEADER",
        /requirements is no object/,
      ],
      [
        "a keyslot that describes a re-encryption",
        (json) =>
          (json.keyslots[1] = {
            type: "reencrypt",
            mode: "reencrypt",
            direction: "forward",
            key_size: 1,
            area: { type: "checksum", offset: "290816", size: "4096", hash: "sha256", sector_size: 4096 },
          }),
        "ERR_LUKS_UNSUPPORTED",
        /keyslot 1 of type "reencrypt"/,
      ],
      [
        "segments in re-encryption",
        (json) => {
          json.segments[0].flags = ["in-reencryption"]
        },
        "ERR_LUKS_UNSUPPORTED",
        /a segment with flags/,
      ],
      [
        "a decryption that leaves a linear segment",
        (json) => {
          json.segments[1] = { type: "linear", offset: "0", size: "dynamic" }
        },
        "ERR_LUKS_UNSUPPORTED",
        /2 segments/,
      ],
    ]
    for (const [what, change, code, says] of cases)
      it(`S27: refuses ${what}`, () => {
        refuses(changed(change), code, says)
      })
  })

  describe("keyslots and digests", () => {
    const cases: readonly (readonly [string, (json: Json) => unknown, ErrorCode, RegExp])[] = [
      [
        "no keyslot",
        (json) => (json.keyslots = {}),
        "ERR_LUKS_HEADER",
        /digest names keyslot 0, which is not there/,
      ],
      [
        "no keyslot that leads to the data",
        (json) => (json.digests[0].keyslots = []),
        "ERR_LUKS_HEADER",
        /no keyslot leads to the data/,
      ],
      [
        "keyslot 32",
        (json) => {
          json.keyslots[32] = json.keyslots[0]
        },
        "ERR_LUKS_HEADER",
        /number "32"/,
      ],
      [
        "a keyslot that is no object",
        (json) => (json.keyslots[0] = 1),
        "ERR_LUKS_HEADER",
        /keyslot 0 is no object/,
      ],
      [
        "a keyslot of unknown type",
        (json) => (json.keyslots[0].type = "luks3"),
        "ERR_LUKS_UNSUPPORTED",
        /"luks3"/,
      ],
      [
        "an area before the keyslots area",
        (json) => (json.keyslots[0].area.offset = "28672"),
        "ERR_LUKS_HEADER",
        /not in the keyslots area/,
      ],
      [
        "an area in the JSON",
        (json) => (json.keyslots[0].area.offset = "0"),
        "ERR_LUKS_HEADER",
        /not in the keyslots area/,
      ],
      [
        "an area that ends after the keyslots area",
        (json) => (json.keyslots[0].area.offset = "16523264"),
        "ERR_LUKS_HEADER",
        /not in the keyslots area/,
      ],
      [
        "an area in the data",
        (json) => (json.keyslots[0].area.offset = "16777216"),
        "ERR_LUKS_HEADER",
        /not in the keyslots area/,
      ],
      [
        "an area at an odd offset",
        (json) => (json.keyslots[0].area.offset = "32769"),
        "ERR_LUKS_HEADER",
        /not in the keyslots area/,
      ],
      [
        "an empty area",
        (json) => (json.keyslots[0].area.size = "0"),
        "ERR_LUKS_HEADER",
        /not in the keyslots area/,
      ],
      [
        "an area that is too small for its key",
        (json) => (json.keyslots[0].area.size = "253952"),
        "ERR_LUKS_HEADER",
        /area has 253952 bytes/,
      ],
      [
        "an area that is no raw one",
        (json) => (json.keyslots[0].area.type = "journal"),
        "ERR_LUKS_UNSUPPORTED",
        /area of type "journal"/,
      ],
      [
        "overlapping areas",
        (json) => {
          json.keyslots[1] = structuredClone(json.keyslots[0])
          json.keyslots[1].area.offset = "286720"
          json.digests[0].keyslots = ["0", "1"]
        },
        "ERR_LUKS_HEADER",
        /keyslot areas overlap/,
      ],
      [
        "keys of different sizes",
        (json) => {
          json.keyslots[1] = structuredClone(json.keyslots[0])
          json.keyslots[1].area.offset = "290816"
          json.keyslots[1].key_size = 32
          json.digests[0].keyslots = ["0", "1"]
        },
        "ERR_LUKS_HEADER",
        /keys of different sizes/,
      ],
      [
        "an unknown splitter",
        (json) => (json.keyslots[0].af.type = "luks2"),
        "ERR_LUKS_UNSUPPORTED",
        /splitter "luks2"/,
      ],
      [
        "a single stripe",
        (json) => (json.keyslots[0].af.stripes = 1),
        "ERR_LUKS_UNSUPPORTED",
        /with 1 stripes/,
      ],
      [
        "an absurd number of stripes",
        (json) => (json.keyslots[0].af.stripes = 2 ** 40),
        "ERR_LUKS_UNSUPPORTED",
        /stripes/,
      ],
      [
        "an unknown splitter hash",
        (json) => (json.keyslots[0].af.hash = "md5"),
        "ERR_LUKS_UNSUPPORTED",
        /hash "md5"/,
      ],
      [
        "an unknown KDF",
        (json) => (json.keyslots[0].kdf.type = "scrypt"),
        "ERR_LUKS_UNSUPPORTED",
        /KDF "scrypt"/,
      ],
      ["no KDF", (json) => delete json.keyslots[0].kdf, "ERR_LUKS_HEADER", /KDF is no object/],
      [
        "a salt that is no base64",
        (json) => (json.keyslots[0].kdf.salt = "!!!"),
        "ERR_LUKS_HEADER",
        /salt is "!!!"/,
      ],
      ["an empty salt", (json) => (json.keyslots[0].kdf.salt = ""), "ERR_LUKS_HEADER", /salt is ""/],
      [
        "an absurdly long salt",
        (json) => (json.keyslots[0].kdf.salt = Buffer.alloc(600).toString("base64")),
        "ERR_LUKS_HEADER",
        /salt is "AAAA/,
      ],
      ["a priority of 3", (json) => (json.keyslots[0].priority = 3), "ERR_LUKS_HEADER", /priority is 3/],
      ["no digest", (json) => (json.digests = {}), "ERR_LUKS_HEADER", /no digest for the segment/],
      [
        "a digest for another segment",
        (json) => (json.digests[0].segments = ["1"]),
        "ERR_LUKS_HEADER",
        /no digest for the segment/,
      ],
      [
        "a digest for a segment that is not there",
        (json) => (json.digests[0].segments = ["0", "1"]),
        "ERR_LUKS_HEADER",
        /segments that are not there/,
      ],
      [
        "two digests for the segment",
        (json) => {
          json.digests[1] = json.digests[0]
        },
        "ERR_LUKS_HEADER",
        /two digests for the segment/,
      ],
      [
        "a digest that names a keyslot twice",
        (json) => (json.digests[0].keyslots = ["0", "0"]),
        "ERR_LUKS_HEADER",
        /names one twice/,
      ],
      [
        "a digest that names keyslots by number",
        (json) => (json.digests[0].keyslots = [0]),
        "ERR_LUKS_HEADER",
        /keyslots is 0 and no string/,
      ],
      [
        "a digest of unknown type",
        (json) => (json.digests[0].type = "argon2"),
        "ERR_LUKS_UNSUPPORTED",
        /digest of type "argon2"/,
      ],
      ["a digest by MD5", (json) => (json.digests[0].hash = "md5"), "ERR_LUKS_UNSUPPORTED", /"md5"/],
      [
        "a digest of no iterations",
        (json) => (json.digests[0].iterations = 0),
        "ERR_LUKS_HEADER",
        /iterations is 0/,
      ],
      ...[8, 19, 31, 33, 64].map((size): readonly [string, (json: Json) => unknown, ErrorCode, RegExp] => [
        `a digest of ${size} bytes, which libcryptsetup finds right for any passphrase`,
        (json) => (json.digests[0].digest = Buffer.alloc(size).toString("base64")),
        "ERR_LUKS_HEADER",
        new RegExp(`the digest has ${size} bytes`),
      ]),
      ["an empty digest", (json) => (json.digests[0].digest = ""), "ERR_LUKS_HEADER", /the digest is ""/],
      [
        "a wrong json_size",
        (json) => (json.config.json_size = "12289"),
        "ERR_LUKS_HEADER",
        /json_size is 12289/,
      ],
      ["no config", (json) => delete json.config, "ERR_LUKS_HEADER", /config is no object/],
      [
        "an odd keyslots_size",
        (json) => (json.config.keyslots_size = "16744447"),
        "ERR_LUKS_HEADER",
        /keyslots_size/,
      ],
      [
        "a keyslots area that reaches into the data",
        (json) => (json.config.keyslots_size = "16748544"),
        "ERR_LUKS_HEADER",
        /the data segment overlaps the header/,
      ],
      [
        "an absurd keyslots_size",
        (json) => (json.config.keyslots_size = "9007199254736896"),
        "ERR_LUKS_HEADER",
        /the data segment overlaps the header/,
      ],
    ]
    for (const [what, change, code, says] of cases)
      it(`S6: refuses ${what}`, () => {
        refuses(changed(change), code, says)
      })

    it("S6: refuses to copy an absurdly large keyslots area into memory", () => {
      const large = 2 ** 40
      const bytes = changed((json) => {
        json.segments[0].offset = String(large)
        json.config.keyslots_size = String(large - 2 * copySize)
        json.keyslots[0].area.offset = String(large - 2 ** 20)
      })
      refuses(bytes, "ERR_LUKS_UNSUPPORTED", /keyslots area of/, {}, large + 4096)
    })
  })

  describe("cost", () => {
    const cost = (change: (kdf: Json, json: Json) => unknown): Buffer =>
      changed((json) => {
        change(json.keyslots[0].kdf, json)
      })
    const pbkdf2 = (iterations: number): Buffer =>
      changed((json) => {
        const { salt } = json.keyslots[0].kdf
        json.keyslots[0].kdf = { type: "pbkdf2", hash: "sha256", iterations, salt }
      })

    it("S29: refuses Argon2 memory above 1 GiB", () => {
      refuses(
        cost((kdf) => (kdf.memory = 1024 * 1024 + 1)),
        "ERR_LUKS_COST",
        /keyslot 0 asks for 1048577 KiB of memory; the limit is 1048576 KiB/,
      )
      decodeLuksHeader(
        cost((kdf) => (kdf.memory = 1024 * 1024)),
        partitionSize,
      )
    })

    it("S29: refuses the largest Argon2 memory, passes and threads that LUKS2 can write", () => {
      refuses(
        cost((kdf) => (kdf.memory = 0xffff_ffff)),
        "ERR_LUKS_COST",
        /4294967295 KiB of memory/,
      )
      refuses(
        cost((kdf) => (kdf.time = 0xffff_ffff)),
        "ERR_LUKS_COST",
        /KiB times passes; the limit is/,
      )
      refuses(
        cost((kdf) => (kdf.cpus = 0xff_ffff)),
        "ERR_LUKS_COST",
        /asks for 16777215 threads; the limit is 16/,
      )
    })

    for (const [name, value] of [
      ["memory", 7],
      ["memory", 2 ** 32],
      ["memory", -1],
      ["memory", 1.5],
      ["memory", "65536"],
      ["time", 0],
      ["time", 2 ** 32],
      ["time", null],
      ["cpus", 0],
      ["cpus", 2 ** 24],
      ["cpus", []],
    ] as const)
      it(`S29: refuses an Argon2 ${name} of ${JSON.stringify(value)}, which is none`, () => {
        refuses(
          cost((kdf) => (kdf[name] = value)),
          "ERR_LUKS_HEADER",
          /keyslot 0's Argon2/,
        )
      })

    it("S29: counts the passes of all keyslots together", () => {
      const bytes = changed((json) => {
        for (let id = 0; id < 32; id++) {
          json.keyslots[id] = structuredClone(json.keyslots[0])
          json.keyslots[id].area.offset = String(32768 + id * 258048)
          json.keyslots[id].kdf.memory = 1024 * 1024
          json.keyslots[id].kdf.time = 17
        }
        json.digests[0].keyslots = Object.keys(json.keyslots as object)
        json.digests[0].iterations = 1000
        delete json.tokens
      })
      refuses(bytes, "ERR_LUKS_COST", /570425344 KiB times passes; the limit is 536870912/)
      assert.equal(
        decodeLuksHeader(bytes, partitionSize, { limits: { work: 570425344 } }).keyslots.length,
        32,
      )
    })

    it("S29: refuses absurd PBKDF2 iterations of a keyslot and of the digest", () => {
      refuses(pbkdf2(0xffff_ffff), "ERR_LUKS_COST", /PBKDF2 iterations; the limit is 512000000/)
      refuses(pbkdf2(512_000_000), "ERR_LUKS_COST", /512444311 PBKDF2 iterations/)
      refuses(
        cost((_, json) => (json.digests[0].iterations = 0xffff_ffff)),
        "ERR_LUKS_COST",
        /4294967295 PBKDF2 iterations/,
      )
      refuses(pbkdf2(2 ** 32), "ERR_LUKS_HEADER", /iterations is 4294967296/)
      refuses(pbkdf2(0), "ERR_LUKS_HEADER", /iterations is 0/)
      refuses(pbkdf2(1e400), "ERR_LUKS_HEADER", /iterations is null/)
    })

    it("S29: can be adjusted by the caller, up and down", () => {
      decodeLuksHeader(
        cost((kdf) => (kdf.memory = 2 ** 21)),
        partitionSize,
        { limits: { memory: 2 ** 21 } },
      )
      refuses(metadata, "ERR_LUKS_COST", /65536 KiB of memory; the limit is 65535/, {
        limits: { memory: 65535 },
      })
      refuses(metadata, "ERR_LUKS_COST", /444311 PBKDF2/, { limits: { iterations: 444310 } })
    })

    it("S29: stays as it is where the caller replaces something else", () => {
      const limits = kdfLimits({ memory: 2 ** 22 }, "kdfLimits")
      refuses(
        cost((kdf) => (kdf.time = 2 ** 31)),
        "ERR_LUKS_COST",
        /KiB times passes; the limit is 2147483648/,
        { limits },
      )
    })

    it("opens what cryptsetup makes by itself on a fast machine, also in each of its keyslots", () => {
      decodeLuksHeader(
        cost((kdf) => Object.assign(kdf, { memory: 1024 * 1024, time: 64 })),
        partitionSize,
      )
      decodeLuksHeader(pbkdf2(100_000_000), partitionSize)
      const full = (kdf: object): Buffer =>
        changed((json) => {
          const { salt } = json.keyslots[0].kdf
          for (let id = 0; id < 32; id++) {
            json.keyslots[id] = structuredClone(json.keyslots[0])
            json.keyslots[id].area.offset = String(32768 + id * 258048)
            json.keyslots[id].kdf = { ...kdf, salt }
          }
          json.digests[0].keyslots = Object.keys(json.keyslots as object)
          delete json.tokens
        })
      for (const kdf of [
        { type: "argon2id", memory: 1024 * 1024, time: 14, cpus: 4 },
        { type: "pbkdf2", hash: "sha256", iterations: 14_000_000 },
      ])
        assert.equal(decodeLuksHeader(full(kdf), partitionSize).keyslots.length, 32)
    })

    it("S29: counts what a pass costs over however little memory", () => {
      refuses(
        cost((kdf) => Object.assign(kdf, { memory: 8, time: 1_000_000, cpus: 4 })),
        "ERR_LUKS_COST",
        /4096000000 KiB times passes; the limit is/,
      )
    })

    it("allows as much work as belongs to the memory that a caller allows", () => {
      const bytes = cost((kdf) => Object.assign(kdf, { memory: 4 * 1024 * 1024, time: 512 }))
      refuses(bytes, "ERR_LUKS_COST", /4194304 KiB of memory/)
      decodeLuksHeader(bytes, partitionSize, { limits: { memory: 4 * 1024 * 1024 } })
      decodeLuksHeader(metadata, partitionSize, { limits: { memory: 65536 } })
    })

    it("tells a program which limits would allow it", () => {
      for (const [bytes, kdfLimits] of [
        [cost((kdf) => (kdf.memory = 2 ** 21)), { memory: 2 ** 21 }],
        [
          cost((kdf) => Object.assign(kdf, { memory: 2 ** 20, time: 513 })),
          { work: 2 ** 20 * 513, memory: 2 ** 11 * 513 },
        ],
        [cost((kdf) => (kdf.cpus = 17)), { parallel: 17 }],
        [pbkdf2(600_000_000), { iterations: 600_444_311 }],
      ] as const) {
        assert.throws(() => decodeLuksHeader(bytes, partitionSize), { code: "ERR_LUKS_COST", kdfLimits })
        decodeLuksHeader(bytes, partitionSize, { limits: kdfLimits })
        if ("memory" in kdfLimits)
          decodeLuksHeader(bytes, partitionSize, { limits: { memory: kdfLimits.memory } })
      }
    })
  })

  describe("hostile JSON", () => {
    const peer = JSON.stringify(peerJson())
    const cases: readonly (readonly [string, string | Buffer, RegExp])[] = [
      ["no JSON", "", /no value at character 0/],
      ["text", "hello", /no value/],
      ["a bare number", "1", /no object/],
      ["an array", "[]", /no object/],
      ["null", "null", /no object/],
      ["an empty object", "{}", /config is no object/],
      ["JSON that is cut", peer.slice(0, -1), /no end of the object/],
      ["JSON that is cut in a string", peer.slice(0, 30), /no well-formed string|no end/],
      ["text after the JSON", `${peer}x`, /text after the value/],
      ["two documents", `${peer}${peer}`, /text after the value/],
      [
        "a name twice",
        peer.replace('"sector_size":512', '"encryption":"cipher_null-ecb","sector_size":512'),
        /a second \\?"encryption\\?"/,
      ],
      [
        "a name twice, once escaped",
        peer.replace('"sector_size":512', '"\\u0065ncryption":"cipher_null-ecb","sector_size":512'),
        /a second \\?"encryption\\?"/,
      ],
      ["objects nested deeply", '{"a":'.repeat(2000) + "1" + "}".repeat(2000), /too deep a nesting/],
      ["arrays nested deeply", "[".repeat(12000), /too deep a nesting/],
      ["a trailing comma", peer.replace("}}}", "},}}"), /no well-formed string/],
      ["a comment", `/**/${peer}`, /no value/],
      ["single quotes", peer.replaceAll('"', "'"), /no well-formed string/],
      ["NaN", peer.replace("512", "NaN"), /no value/],
      ["a hexadecimal number", peer.replace(":512", ":0x200"), /no end of the object/],
      ["a number with a leading zero", peer.replace(":512", ":0512"), /no end of the object/],
      ["a byte order mark", `\ufeff${peer}`, /no value/],
      [
        "no UTF-8",
        Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0xff, 0xfe]), Buffer.from('"}')]),
        /no UTF-8/,
      ],
      ["control characters in a string", peer.replace("luks1", "luks\n1"), /no well-formed string/],
      ["an unknown escape", peer.replace("luks1", "luks\\x31"), /no well-formed string/],
    ]
    for (const [what, text, says] of cases)
      it(`S6: refuses ${what}`, () => {
        refuses(encode(undefined, { text }), "ERR_LUKS_HEADER", says)
      })

    it("S6: shows a hostile value short and without control characters", () => {
      const bytes = changed((json) => (json.segments[0].encryption = "\u001b[2J\u0007".repeat(500)))
      refuses(bytes, "ERR_LUKS_UNSUPPORTED", /^[ -~…]{1,200}$/)
    })

    const size = 4 * 1024 * 1024
    for (const [what, text] of [
      ["a string of 4 MiB", `"${"a".repeat(size - 5000)}"`],
      ["a string of escapes", `"${"\\n".repeat(size / 2 - 5000)}"`],
      ["an unterminated string of 4 MiB", `"${"a".repeat(size - 5000)}`],
      ["millions of values", `[${"1,".repeat(size / 2 - 5000)}1]`],
      ["millions of names", `{${Array.from({ length: 200_000 }, (_, i) => `"${i}":1`).join(",")}}`],
      ["4 MiB of white space", " ".repeat(size - 5000)],
      ["a number of 4 MiB", "1".repeat(size - 5000)],
      ["4 MiB of opening brackets", "[".repeat(size - 5000)],
    ] as const)
      it(`S6: refuses a header of 4 MiB with ${what}, soon`, () => {
        const bytes = encode(undefined, { text, size })
        const started = processorMs()
        refuses(bytes, "ERR_LUKS_HEADER", /malformed/)
        assert.ok(processorMs() - started < 3000)
      })
  })

  describe("the binary header", () => {
    const broken = (patch: (bytes: Buffer, at: number) => void, document: Json = peerJson()): Buffer =>
      encode(document, { patch })
    const cases: readonly (readonly [string, (bytes: Buffer, at: number) => void, RegExp])[] = [
      ["LUKS1", (bytes, at) => bytes.writeUInt16BE(1, at + 6), /version 1 and not 2/],
      ["version 3", (bytes, at) => bytes.writeUInt16BE(3, at + 6), /version 3 and not 2/],
      ["a header size of 0", (bytes, at) => bytes.writeBigUInt64BE(0n, at + 8), /header size 0/],
      [
        "a header size below the least",
        (bytes, at) => bytes.writeBigUInt64BE(8192n, at + 8),
        /header size 8192/,
      ],
      ["an odd header size", (bytes, at) => bytes.writeBigUInt64BE(16385n, at + 8), /header size 16385/],
      [
        "a header size above the largest",
        (bytes, at) => bytes.writeBigUInt64BE(8n * 1024n * 1024n, at + 8),
        /header size 8388608/,
      ],
      [
        "the largest number as header size",
        (bytes, at) => bytes.writeBigUInt64BE(2n ** 64n - 1n, at + 8),
        /header size 18446744073709551615/,
      ],
      [
        "a header that is larger than the partition",
        (bytes, at) => bytes.writeBigUInt64BE(65536n, at + 8),
        /ends within it/,
      ],
      [
        "an offset of its own that is wrong",
        (bytes, at) => bytes.writeBigUInt64BE(4096n, at + 256),
        /another place/,
      ],
      ["an unknown checksum", (bytes, at) => bytes.write("md5\0\0\0", at + 72), /checksum "md5"/],
      ["no checksum", (bytes, at) => bytes.fill(0, at + 72, at + 104), /checksum ""/],
      ["data after the JSON", (bytes, at) => (bytes[at + copySize - 1] = 1), /data after the JSON/],
      ["a JSON area without an end", (bytes, at) => bytes.fill(0x20, at + 4096, at + copySize), /no end/],
      ["a UUID that is a path", (bytes, at) => bytes.write("../../etc/passwd\0", at + 168), /the UUID/],
      ["a UUID with control characters", (bytes, at) => bytes.write("\u001b[2J\0", at + 168), /the UUID/],
      ["an empty UUID", (bytes, at) => bytes.fill(0, at + 168, at + 208), /the UUID/],
    ]
    for (const [what, patch, says] of cases)
      it(`S6: refuses ${what}`, () => {
        refuses(broken(patch), "ERR_LUKS_HEADER", says)
      })

    it("S6: refuses what is no LUKS at all", () => {
      refuses(Buffer.alloc(0), "ERR_LUKS_HEADER", /ends before it/)
      refuses(Buffer.alloc(32768), "ERR_LUKS_HEADER", /no LUKS magic/)
      refuses(Buffer.alloc(8 * 1024 * 1024, 0xff), "ERR_LUKS_HEADER", /no LUKS magic/)
      refuses(Buffer.from("hsqs".padEnd(32768, "x")), "ERR_LUKS_HEADER", /no LUKS magic/)
    })

    it("A16: refuses a header that is cut anywhere in its first copy", () => {
      for (let length = 0; length < copySize; length += 37)
        refuses(metadata.subarray(0, length), "ERR_LUKS_HEADER", /ends (before|within) it/)
    })

    it("reads the second copy when the first one is damaged", () => {
      const bytes = Buffer.from(metadata)
      for (const at of [0, 7, 300, 4096, 5000]) {
        bytes[at] = (bytes[at] ?? 0) ^ 0xff
        assert.equal(decodeLuksHeader(bytes, partitionSize).segment.offset, 16777216)
      }
    })

    it("finds the second copy of a larger header whose first one is gone", () => {
      const size = 1024 * 1024
      const json = peerJson()
      json.config.json_size = String(size - 4096)
      json.config.keyslots_size = String(16777216 - 2 * size)
      json.keyslots[0].area.offset = String(2 * size)
      const bytes = encode(json, { size })
      bytes.fill(0, 0, size)
      assert.equal(decodeLuksHeader(bytes, partitionSize).areaSize, 2 * size + 258048)
    })

    it("reads the first copy when the second one is damaged", () => {
      const bytes = Buffer.from(metadata)
      bytes.fill(0, copySize)
      assert.equal(decodeLuksHeader(bytes, partitionSize).segment.offset, 16777216)
    })

    it("refuses two damaged copies and names the first one's flaw", () => {
      const bytes = Buffer.from(metadata)
      bytes[5000] = 1
      bytes[copySize + 5000] = 1
      refuses(bytes, "ERR_LUKS_HEADER", /the checksum does not match/)
    })

    it("S26: takes the newer of two valid copies, and only that", () => {
      const evil = peerJson()
      evil.segments[0].encryption = "cipher_null-ecb"
      const mixed = (first: Buffer, second: Buffer, sequence: bigint): Buffer => {
        const bytes = Buffer.concat([first.subarray(0, copySize), second.subarray(copySize)])
        bytes.writeBigUInt64BE(sequence, copySize + 16)
        seal(bytes, copySize, copySize)
        return bytes
      }
      refuses(mixed(encode(peerJson()), encode(evil), 4n), "ERR_LUKS_UNSUPPORTED", /cipher_null-ecb/)
      const old = decodeLuksHeader(mixed(encode(peerJson()), encode(evil), 2n), partitionSize)
      assert.equal(encoded(old).segments[0].encryption, "aes-xts-plain64")
      refuses(mixed(encode(evil), encode(peerJson()), 2n), "ERR_LUKS_UNSUPPORTED", /cipher_null-ecb/)
    })
  })

  it("S6: decodes or refuses mutated metadata with a right checksum, and does nothing else", () => {
    const random = generator(2048)
    const json = JSON.stringify(peerJson())
    const pieces = [
      '"',
      "{",
      "}",
      "[",
      "]",
      ",",
      ":",
      "0",
      "9",
      "-",
      "1e9",
      "null",
      "true",
      "\\u0000",
      '"0"',
      "é",
    ]
    let refused = 0
    for (let round = 0; round < 2000; round++) {
      let text = json
      for (let count = 1 + random(3); count > 0; count--) {
        const at = random(text.length)
        const piece = random(2) === 0 ? (pieces[random(pieces.length)] ?? "") : ""
        text = text.slice(0, at) + piece + text.slice(at + random(4))
      }
      try {
        const header = decodeLuksHeader(encode(undefined, { text }), partitionSize)
        assert.equal(header.segment.cipher, "aes-xts-plain64")
        assert.ok(header.segment.offset + header.segment.size <= partitionSize)
        assert.ok(header.areaSize <= header.segment.offset)
      } catch (error) {
        if (!(error instanceof LuksError)) throw error
        refused++
      }
    }
    assert.ok(refused > 1000 && refused < 2000, `${refused} of 2000 refused`)
  })
})

describe("parseLuksHeader", () => {
  const reader = (
    bytes: Buffer,
  ): { reads: number[]; read: (at: number, length: number) => Promise<Buffer> } => {
    const reads: number[] = []
    return {
      reads,
      read: (at, length) => {
        reads.push(length)
        return Promise.resolve(bytes.subarray(at, at + length))
      },
    }
  }

  it("S26: reads the usual header once, and no more than both copies", async () => {
    const source = reader(Buffer.concat([Buffer.alloc(100), metadata, Buffer.alloc(100)]))
    await parseLuksHeader(source, { offset: 100, size: partitionSize })
    assert.deepEqual(source.reads, [2 * copySize])
  })

  it("S6: reads 8 MiB at most, and never beyond the partition", async () => {
    const bytes = Buffer.alloc(32 * 1024 * 1024)
    for (const size of [0, 1, 4096, 32768, 1024 * 1024, bytes.length]) {
      const source = reader(bytes)
      await assert.rejects(parseLuksHeader(source, { offset: 0, size }), {
        name: "LuksError",
        code: "ERR_LUKS_HEADER",
      })
      assert.ok(source.reads.every((length) => length <= Math.min(size, 8 * 1024 * 1024)))
    }
  })

  it("S6: does not look for a header behind the partition", async () => {
    await assert.rejects(parseLuksHeader(reader(metadata), { offset: 0, size: copySize - 1 }), {
      code: "ERR_LUKS_HEADER",
    })
  })
})
