// Headers and trees that lie, against the kernel engine: refused before anything is attached, or used as checked.
import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { closeSync, copyFileSync, openSync, readSync, writeSync } from "node:fs"
import path from "node:path"
import { build, open, unmount, type Image } from "../../lib/index.ts"
import { newFolder } from "../support/scratch.ts"
import {
  assertSettles,
  buildImage,
  describeRoot,
  kernelState,
  mountPoint,
  needsDeviceMapper,
  output,
  rootPartition,
  rootTree,
  type KernelState,
  withKey,
} from "./guest.ts"

/** LUKS2 On-Disk Format Specification 1.1, 2.2: of each copy, and of the header that we write. */
const HEADER_SIZE = 16 * 1024
const BINARY_SIZE = 4096
const SEQUENCE_AT = 16
const CHECKSUM_AT = 448
const CHECKSUM_SIZE = 64

interface Metadata {
  keyslots: Record<string, { type: string; area: Record<string, unknown>; [name: string]: unknown }>
  segments: Record<string, Record<string, unknown>>
  config: Record<string, unknown>
  [name: string]: unknown
}

/** Which copy: the primary one, or the secondary one behind it. */
type Copy = 0 | 1

/** Changes a copy of the metadata of `image`, with a checksum that is right. */
async function changeHeader(
  image: string,
  copies: readonly Copy[],
  change: (metadata: Metadata, binary: Buffer) => void,
): Promise<void> {
  const { offset } = await rootPartition(image)
  const fd = openSync(image, "r+")
  try {
    for (const copy of copies) {
      const at = offset + copy * HEADER_SIZE
      const bytes = Buffer.alloc(HEADER_SIZE)
      readSync(fd, bytes, 0, HEADER_SIZE, at)
      const text = bytes.toString("utf8", BINARY_SIZE).replace(/\0.*$/s, "")
      const metadata = JSON.parse(text) as Metadata
      change(metadata, bytes)
      bytes.fill(0, BINARY_SIZE)
      bytes.write(JSON.stringify(metadata), BINARY_SIZE)
      bytes.fill(0, CHECKSUM_AT, CHECKSUM_AT + CHECKSUM_SIZE)
      createHash("sha256").update(bytes).digest().copy(bytes, CHECKSUM_AT)
      writeSync(fd, bytes, 0, HEADER_SIZE, at)
    }
  } finally {
    closeSync(fd)
  }
}

const setSequence =
  (sequence: bigint) =>
  (_: Metadata, binary: Buffer): void => {
    binary.writeBigUInt64BE(sequence, SEQUENCE_AT)
  }

function segmentOf(metadata: Metadata): Record<string, unknown> {
  const [segment] = Object.values(metadata.segments)
  assert.ok(segment !== undefined)
  return segment
}

const setCipher =
  (cipher: string) =>
  (metadata: Metadata): void => {
    segmentOf(metadata)["encryption"] = cipher
  }

describe("the kernel engine and hostile images", function () {
  let good: string
  let state: KernelState

  before(async function () {
    needsDeviceMapper(this)
    good = await buildImage(["rsa"])
    state = kernelState()
  })
  afterEach(async () => {
    await assertSettles(state)
  })

  function copyOf(image: string): string {
    const copy = path.join(newFolder("hostile"), "image.sif")
    copyFileSync(image, copy)
    return copy
  }

  async function assertShowsTree(opened: Image): Promise<void> {
    const point = mountPoint()
    await opened.mount(point, { engine: "kernel", detached: true })
    try {
      const [mapping] = kernelState().mappings
      const table = output("dmsetup", ["table", mapping?.split(" ")[1] ?? ""])
      assert.match(table, / crypt aes-xts-plain64 /)
      assert.deepEqual(describeRoot(point), describeRoot(rootTree()))
    } finally {
      await unmount(point)
    }
  }

  const keyslot = (metadata: Metadata): Metadata["keyslots"][string] => {
    const [first] = Object.values(metadata.keyslots)
    assert.ok(first !== undefined)
    return first
  }

  for (const [what, change, code] of [
    ["S25: a null cipher", setCipher("cipher_null-ecb"), "ERR_LUKS_UNSUPPORTED"],
    ["S25: a null cipher by another name", setCipher("null"), "ERR_LUKS_UNSUPPORTED"],
    ["S25: ECB", setCipher("aes-ecb"), "ERR_LUKS_UNSUPPORTED"],
    ["S25: an unknown cipher", setCipher("rot13-xts-plain64"), "ERR_LUKS_UNSUPPORTED"],
    ["S25: dm-crypt's own notation", setCipher("capi:xts(aes)-plain64"), "ERR_LUKS_UNSUPPORTED"],
    [
      "S25: a keyslot with a null cipher",
      (metadata: Metadata) => {
        keyslot(metadata).area["encryption"] = "cipher_null-ecb"
      },
      "ERR_LUKS_UNSUPPORTED",
    ],
    [
      "S25: two segments",
      (metadata: Metadata) => {
        metadata.segments["1"] = { ...segmentOf(metadata) }
      },
      "ERR_LUKS_UNSUPPORTED",
    ],
    [
      "S25: a segment that is not encrypted",
      (metadata: Metadata) => {
        segmentOf(metadata)["type"] = "linear"
      },
      "ERR_LUKS_UNSUPPORTED",
    ],
    [
      "S25: a segment with integrity",
      (metadata: Metadata) => {
        segmentOf(metadata)["integrity"] = {
          type: "hmac(sha256)",
          journal_encryption: "none",
          journal_integrity: "none",
        }
      },
      "ERR_LUKS_UNSUPPORTED",
    ],
    [
      "S25: a requirement that nobody knows",
      (metadata: Metadata) => {
        metadata.config["requirements"] = { mandatory: ["teleport"] }
      },
      "ERR_LUKS_UNSUPPORTED",
    ],
    [
      "S27: online re-encryption required",
      (metadata: Metadata) => {
        metadata.config["requirements"] = { mandatory: ["online-reencrypt-v2"] }
      },
      "ERR_LUKS_UNSUPPORTED",
    ],
    [
      "S27: a keyslot of re-encryption",
      (metadata: Metadata) => {
        const { area } = keyslot(metadata)
        metadata.keyslots["5"] = {
          type: "reencrypt",
          mode: "decrypt",
          direction: "forward",
          key_size: 1,
          area: { type: "none", offset: area["offset"], size: area["size"] },
        }
      },
      "ERR_LUKS_UNSUPPORTED",
    ],
    [
      "a segment beyond the partition",
      (metadata: Metadata) => {
        segmentOf(metadata)["size"] = String(1 << 30)
      },
      "ERR_LUKS_HEADER",
    ],
    [
      "a segment over the header",
      (metadata: Metadata) => {
        segmentOf(metadata)["offset"] = "4096"
      },
      "ERR_LUKS_HEADER",
    ],
  ] as const)
    it(`${what} is refused before anything is attached`, async () => {
      const image = copyOf(good)
      await changeHeader(image, [0, 1], change)
      await assert.rejects(open(image, withKey), { code })
      assert.deepEqual(kernelState(), state)
    })

  it("S25: a null cipher stays refused when it is allowed by name", async () => {
    const image = copyOf(good)
    await changeHeader(image, [0, 1], setCipher("cipher_null-ecb"))
    await assert.rejects(open(image, { ...withKey, allowCipher: "cipher_null-ecb" }), {
      code: "ERR_LUKS_UNSUPPORTED",
    })
  })

  it("S26: an older second copy that says something else is not looked at", async () => {
    const image = copyOf(good)
    await changeHeader(image, [0], setSequence(9n))
    await changeHeader(image, [1], (metadata, binary) => {
      setCipher("cipher_null-ecb")(metadata)
      setSequence(8n)(metadata, binary)
    })
    await using opened = await open(image, withKey)
    await assertShowsTree(opened)
  })

  it("S26: a newer second copy is what is checked", async () => {
    const image = copyOf(good)
    await changeHeader(image, [0], setSequence(8n))
    await changeHeader(image, [1], (metadata, binary) => {
      setCipher("cipher_null-ecb")(metadata)
      setSequence(9n)(metadata, binary)
    })
    await assert.rejects(open(image, withKey), { code: "ERR_LUKS_UNSUPPORTED" })
  })

  it("S26: of a damaged first copy the second is used", async () => {
    const image = copyOf(good)
    const { offset } = await rootPartition(image)
    const fd = openSync(image, "r+")
    writeSync(fd, Buffer.alloc(HEADER_SIZE, 0x55), 0, HEADER_SIZE, offset)
    closeSync(fd)
    await using opened = await open(image, withKey)
    await assertShowsTree(opened)
  })

  it("S26: a header that changes after it was read changes nothing", async () => {
    const image = copyOf(good)
    await using opened = await open(image, withKey)
    await changeHeader(image, [0, 1], (metadata, binary) => {
      setCipher("cipher_null-ecb")(metadata)
      setSequence(99n)(metadata, binary)
    })
    await assertShowsTree(opened)
  })

  it("S26: an image that is exchanged after it was opened changes nothing", async () => {
    const image = copyOf(good)
    const other = await buildImage(["rsa"], { compression: { name: "gzip" } })
    await using opened = await open(image, withKey)
    output("cp", ["--remove-destination", other, image])
    await assertShowsTree(opened)
  })

  it("S7: never hands the kernel another file system than squashfs", async () => {
    const folder = newFolder("ext")
    const image = path.join(folder, "image.sif")
    await build({ output: image, source: rootTree() })
    const { offset, size } = await rootPartition(image)
    // What romfs and ext4 look for.
    const fd = openSync(image, "r+")
    const bytes = Buffer.alloc(size)
    bytes.write("-rom1fs-", 0, "latin1")
    bytes.writeUInt16LE(0xef53, 1024 + 56)
    writeSync(fd, bytes, 0, size, offset)
    closeSync(fd)
    await using opened = await open(image)
    await assert.rejects(opened.mount(mountPoint(), { engine: "kernel" }), { code: "ERR_MOUNT" })
  })

  it("refuses a squashfs that the kernel refuses, and leaves nothing", async () => {
    const image = copyOf(await buildImage([]))
    const { offset } = await rootPartition(image)
    const fd = openSync(image, "r+")
    writeSync(fd, Buffer.alloc(4, 0xff), 0, 4, offset + 12) // block size
    closeSync(fd)
    await using opened = await open(image)
    await assert.rejects(opened.mount(mountPoint(), { engine: "kernel" }), { code: "ERR_MOUNT" })
  })
})
