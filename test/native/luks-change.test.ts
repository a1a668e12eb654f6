// Keyslots of existing headers, changed: with libcryptsetup in the addon, with cryptsetup as the other reader, and killed
// at every place.
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { copyFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs"
import { open } from "node:fs/promises"
import path from "node:path"
import { applyLuksSteps, type LuksChange, type LuksStep } from "../../lib/device/luks-change.ts"
import { parseLuksHeader, type LuksHeader, type LuksPolicy } from "../../lib/device/luks-header.ts"
import { changeKeyslots, formatLuks, RANDOM_SECRET_KDF, unlockLuks } from "../../lib/device/luks.ts"
import { LuksError } from "../../lib/errors.ts"
import type { NativeKdf } from "../../lib/native/binding.ts"
import { newFolder } from "../support/scratch.ts"

const kdf = RANDOM_SECRET_KDF
const cheapArgon: NativeKdf = { type: "argon2id", iterations: 4, memory: 32, parallel: 1 }
const MiB = 1024 * 1024
const folder = newFolder("luks-change")
const old = randomBytes(64)
const kept = randomBytes(64)
const fresh = randomBytes(64)
const headerAt = path.join(folder, "header-of-steps")
let files = 0

function secretFile(secret: Buffer): string {
  const file = path.join(folder, `${secret.toString("hex", 0, 8)}.key`)
  writeFileSync(file, secret)
  return file
}

/** `cryptsetup` on a file, which needs neither device-mapper nor root. */
function cryptsetup(argv: readonly string[]): { status: number | null; text: string } {
  const result = spawnSync("cryptsetup", ["--disable-locks", "--batch-mode", ...argv], { encoding: "utf8" })
  return { status: result.status, text: result.stdout + result.stderr }
}

/** Is this secret one of cryptsetup's? */
function peerOpens(file: string, secret: Buffer): boolean {
  const { status, text } = cryptsetup(["open", "--test-passphrase", "--key-file", secretFile(secret), file])
  assert.ok(status === 0 || status === 2, text)
  return status === 0
}

function newFile(): string {
  return path.join(folder, `${++files}.luks`)
}

/** A partition of ours: what a build makes, and a little payload. */
async function ours(
  options: { headerSize?: number; sectorSize?: number; volumeKeySize?: number } = {},
): Promise<string> {
  const made = await formatLuks({
    keyslots: [
      { secret: old, kdf },
      { secret: kept, kdf },
    ],
    ...options,
  })
  const file = newFile()
  writeFileSync(file, Buffer.concat([made.header, randomBytes(MiB)]))
  return file
}

/** A partition of cryptsetup's, with two keyslots. */
function theirs(argv: readonly string[]): string {
  const file = newFile()
  writeFileSync(file, "")
  truncateSync(file, 40 * MiB)
  const cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
  const made = cryptsetup([
    "luksFormat",
    "--type",
    "luks2",
    "--key-size",
    "512",
    ...cheap,
    ...argv,
    "--key-file",
    secretFile(old),
    file,
  ])
  assert.equal(made.status, 0, made.text)
  const added = cryptsetup(["luksAddKey", ...cheap, "--key-file", secretFile(old), file, secretFile(kept)])
  assert.equal(added.status, 0, added.text)
  return file
}

async function headerOf(file: string, policy?: LuksPolicy): Promise<LuksHeader> {
  const handle = await open(file)
  try {
    const read = async (position: number, length: number): Promise<Buffer> => {
      const bytes = Buffer.alloc(length)
      const { bytesRead } = await handle.read(bytes, 0, length, position)
      return bytes.subarray(0, bytesRead)
    }
    return await parseLuksHeader({ read }, { offset: 0, size: (await handle.stat()).size }, policy)
  } finally {
    await handle.close()
  }
}

/** The volume key; undefined when the secret opens nothing. */
async function volumeKeyOf(file: string, secret: Buffer): Promise<Buffer | undefined> {
  const header = await headerOf(file)
  const handle = await open(file)
  try {
    return (await unlockLuks({ fd: handle.fd, offset: 0, header, secret })).volumeKey
  } catch (error) {
    if (error instanceof LuksError && error.code === "ERR_LUKS_PASSPHRASE") return undefined
    throw error
  } finally {
    await handle.close()
  }
}

async function opens(file: string, secret: Buffer): Promise<boolean> {
  return (await volumeKeyOf(file, secret)) !== undefined
}

async function plan(
  file: string,
  change: { readonly add?: readonly Buffer[]; readonly remove?: readonly number[]; readonly kdf?: NativeKdf },
): Promise<LuksChange> {
  const header = await headerOf(file)
  const volumeKey = (await volumeKeyOf(file, kept)) ?? assert.fail("the kept secret opens nothing")
  const add = (change.add ?? []).map((secret) => ({ secret, kdf: change.kdf ?? kdf }))
  return await changeKeyslots({ header, volumeKey, add, remove: change.remove ?? [] })
}

async function apply(file: string, steps: readonly LuksStep[]): Promise<void> {
  const handle = await open(file, "r+")
  await applyLuksSteps(handle, 0, steps)
  await handle.close()
}

/** What a dump of cryptsetup says beside the keyslots. */
function dumped(file: string): string {
  assert.equal(cryptsetup(["isLuks", "--type", "luks2", file]).status, 0)
  const { status, text } = cryptsetup(["luksDump", file])
  assert.equal(status, 0, text)
  return text
}

const makers: readonly (readonly [string, () => string | Promise<string>])[] = [
  ["a header of ours", () => ours()],
  [
    "a header of ours with a 256-bit key and sectors of 512 bytes",
    () => ours({ volumeKeySize: 32, sectorSize: 512 }),
  ],
  ["cryptsetup's default header of 16 MiB", () => theirs([])],
  ["a header of 4 MiB", () => theirs(["--offset", "8192"])],
  ["metadata of 64 KiB", () => theirs(["--luks2-metadata-size", "64k", "--luks2-keyslots-size", "8m"])],
  ["metadata of 4 MiB", () => theirs(["--luks2-metadata-size", "4m", "--luks2-keyslots-size", "8m"])],
  [
    "sectors of 4096 bytes, a label and a subsystem",
    () => theirs(["--sector-size", "4096", "--label", "root", "--subsystem", "sub"]),
  ],
]

describe("changeKeyslots", () => {
  for (const [name, make] of makers) {
    it(`replaces a secret in ${name}, for us and for cryptsetup`, async () => {
      const file = await make()
      const before = await headerOf(file)
      const volumeKey = await volumeKeyOf(file, old)
      const dumpBefore = dumped(file)
      const [area] = [...before.stored.areas.values()]
      assert.ok(area)
      const payload = readFileSync(file).subarray(before.segment.offset)

      const change = await plan(file, { add: [fresh], remove: [0] })
      assert.deepEqual(change.added, [2])
      await apply(file, change.steps)

      assert.deepEqual(await volumeKeyOf(file, fresh), volumeKey)
      assert.deepEqual(await volumeKeyOf(file, kept), volumeKey)
      assert.equal(await opens(file, old), false)
      assert.deepEqual(
        [old, kept, fresh].map((secret) => peerOpens(file, secret)),
        [false, true, true],
      )

      const after = await headerOf(file)
      assert.deepEqual(after, change.header)
      assert.equal(after.uuid, before.uuid)
      assert.deepEqual(after.segment, before.segment)
      assert.deepEqual(after.digest, before.digest)
      assert.deepEqual(
        after.keyslots.map(({ id }) => id),
        [1, 2],
      )
      assert.deepEqual(after.stored.document.segments, before.stored.document.segments)
      assert.deepEqual(after.stored.keyslotsArea, before.stored.keyslotsArea)
      assert.equal(after.stored.sequence, before.stored.sequence + 1n)
      const bytes = readFileSync(file)
      assert.ok(bytes.subarray(area.offset, area.offset + area.size).every((byte) => byte === 0))
      assert.ok(bytes.subarray(after.segment.offset).equals(payload), "the payload is as it was")

      // What cryptsetup says of everything but the keyslots is what it said before.
      const rest = (text: string): string =>
        text.replace(/^Keyslots:.*?^(?=Tokens:)/msu, "").replace(/^Epoch:.*$/mu, "")
      assert.equal(rest(dumped(file)), rest(dumpBefore))
    })
  }

  it("adds Argon2 keyslots that cryptsetup opens", async () => {
    const file = await ours()
    await apply(file, (await plan(file, { add: [fresh], kdf: cheapArgon })).steps)
    assert.ok(peerOpens(file, fresh))
    assert.deepEqual((await headerOf(file)).keyslots[2]?.kdf, cheapArgon)
  })

  it("what cryptsetup changes afterwards, and we after it, opens", async () => {
    const file = await ours()
    await apply(file, (await plan(file, { add: [fresh], remove: [0] })).steps)
    const other = randomBytes(32)
    const cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    const added = cryptsetup([
      "luksAddKey",
      ...cheap,
      "--key-file",
      secretFile(kept),
      file,
      secretFile(other),
    ])
    assert.equal(added.status, 0, added.text)
    const killed = cryptsetup(["luksRemoveKey", file, secretFile(fresh)])
    assert.equal(killed.status, 0, killed.text)
    await apply(file, (await plan(file, { add: [old] })).steps)
    for (const [secret, expected] of [
      [old, true],
      [kept, true],
      [other, true],
      [fresh, false],
    ] as const) {
      assert.equal(await opens(file, secret), expected)
      assert.equal(peerOpens(file, secret), expected)
    }
  })

  it("keeps tokens of keyslots that stay, and flags", async () => {
    const file = theirs([])
    const token = (slots: string[]): string =>
      JSON.stringify({ type: "test", keyslots: slots, more: { deep: [1, "x"] } })
    for (const slots of [["0"], ["1"], ["0", "1"]]) {
      const result = spawnSync(
        "cryptsetup",
        ["--disable-locks", "token", "import", "--json-file", "-", file],
        {
          input: token(slots),
          encoding: "utf8",
        },
      )
      assert.equal(result.status, 0, result.stderr)
    }
    await apply(file, (await plan(file, { add: [fresh], remove: [0] })).steps)
    const exported = (id: number): unknown => {
      const { status, text } = cryptsetup(["token", "export", "--token-id", String(id), file])
      return status === 0 ? JSON.parse(text) : undefined
    }
    assert.equal(exported(0), undefined)
    assert.deepEqual(exported(1), JSON.parse(token(["1"])))
    assert.deepEqual(exported(2), JSON.parse(token(["1"])))
  })

  it("refuses another volume key, a keyslot that is not there, and to leave none", async () => {
    const file = await ours()
    const header = await headerOf(file)
    const volumeKey = randomBytes(64)
    for (const add of [[], [{ secret: fresh, kdf }]])
      await assert.rejects(changeKeyslots({ header, volumeKey, add }), {
        code: "ERR_LUKS_HEADER",
        message: "the volume key is not the one of this LUKS2 header",
      })
    await assert.rejects(plan(file, { remove: [2] }), {
      code: "ERR_LUKS_HEADER",
      message: "there is no keyslot 2",
    })
    await assert.rejects(plan(file, { remove: [0, 0] }), {
      code: "ERR_LUKS_HEADER",
      message: "there is no keyslot 0",
    })
    await assert.rejects(plan(file, { remove: [0, 1] }), { name: "RangeError" })
  })

  it("has a code for a header that libcryptsetup does not make", async () => {
    await assert.rejects(ours({ sectorSize: 777 }), { code: "ERR_LUKS_FORMAT" })
  })

  it("says so when the keyslots area is full", async () => {
    // Room for three keyslots of 252 KiB.
    const file = await ours({ headerSize: 32768 + 3 * 258048 })
    await assert.rejects(plan(file, { add: [fresh, fresh] }), {
      code: "ERR_LUKS_FULL",
      message: /has room for 1 more keyslots of 258048 bytes, not 2$/,
    })
    await apply(file, (await plan(file, { add: [fresh] })).steps)
    // The area of one that goes is in use until it is gone.
    await assert.rejects(plan(file, { add: [old], remove: [0] }), { code: "ERR_LUKS_FULL" })
    await apply(file, (await plan(file, { remove: [0] })).steps)
    await apply(file, (await plan(file, { add: [old] })).steps)
    for (const secret of [old, kept, fresh]) assert.ok(peerOpens(file, secret))
  })

  it("says so when there is no number or no metadata for another one", async () => {
    const file = await ours({ headerSize: 16 * MiB })
    await assert.rejects(plan(file, { add: Array<Buffer>(31).fill(fresh) }), {
      code: "ERR_LUKS_FULL",
      message: "the LUKS2 header has 30 free keyslots of 32, not 31",
    })
    const token = JSON.stringify({ type: "test", keyslots: ["1"], long: "x".repeat(10_000) })
    const imported = spawnSync(
      "cryptsetup",
      ["--disable-locks", "token", "import", "--json-file", "-", file],
      {
        input: token,
      },
    )
    assert.equal(imported.status, 0)
    await assert.rejects(plan(file, { add: Array<Buffer>(5).fill(fresh) }), {
      code: "ERR_LUKS_FULL",
      message: "metadata of 16384 bytes has no room for another keyslot",
    })
  })

  it("refuses what libcryptsetup puts where it does not look for it, behind an area that is not of whole blocks", async () => {
    const file = await ours()
    const bytes = readFileSync(file)
    const size = Number(bytes.readBigUInt64BE(8))
    for (const at of [0, size]) {
      const copy = bytes.subarray(at, at + size)
      const text = copy.toString("latin1")
      // Of the keyslot behind which there is room.
      const place = text.lastIndexOf('"size":"258048"')
      assert.ok(place > 0)
      copy.write("258047", place + 8, "latin1")
      copy.fill(0, 448, 512)
      createHash("sha256").update(copy).digest().copy(copy, 448)
    }
    writeFileSync(file, bytes)
    assert.ok(await volumeKeyOf(file, old))
    await assert.rejects(plan(file, { add: [fresh] }), {
      code: "ERR_LUKS_HEADER",
      message: /keyslot 2's area of 258048 bytes at \d+ is not in the keyslots area$/,
    })
    assert.deepEqual(readFileSync(file), bytes)
  })

  it("refuses what the limits would not open again", async () => {
    const file = await ours()
    const header = await headerOf(file, { limits: { memory: 16 } })
    const volumeKey = (await volumeKeyOf(file, old)) ?? assert.fail()
    await assert.rejects(changeKeyslots({ header, volumeKey, add: [{ secret: fresh, kdf: cheapArgon }] }), {
      code: "ERR_LUKS_COST",
    })
  })

  it("asks for memory before Argon2 does", async () => {
    const file = await ours()
    const costly = { ...cheapArgon, memory: 4 * 1024 * 1024 * 1024 - 1 }
    await assert.rejects(plan(file, { add: [fresh], kdf: costly }), { code: "ERR_ENV_NO_MEMORY" })
  })
})

describe("keyslots that cryptsetup changed", () => {
  const convert = (file: string, ...argv: readonly string[]): void => {
    const { status, text } = cryptsetup(["luksConvertKey", "--key-file", secretFile(old), ...argv, file])
    assert.equal(status, 0, text)
  }

  it("open", async () => {
    const file = theirs([])
    const volumeKey = await volumeKeyOf(file, kept)
    for (const argv of [
      ["--pbkdf", "argon2i", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4"],
      ["--pbkdf", "argon2id", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "20"],
      ["--pbkdf", "pbkdf2", "--hash", "sha512", "--pbkdf-force-iterations", "1000"],
    ]) {
      convert(file, ...argv)
      assert.deepEqual(await volumeKeyOf(file, old), volumeKey, argv.join(" "))
    }
  })

  it("are refused by what they ask for", async () => {
    const file = theirs([])
    convert(file, "--pbkdf", "pbkdf2", "--hash", "whirlpool", "--pbkdf-force-iterations", "1000")
    await assert.rejects(headerOf(file), { code: "ERR_LUKS_UNSUPPORTED", message: /hash "whirlpool"$/ })
  })

  it("are left alone where they are to be ignored, which is said if all are", async () => {
    const file = theirs([])
    const ignore = (slot: number): void => {
      const argv = ["config", "--priority", "ignore", "--key-slot", String(slot), file]
      assert.equal(cryptsetup(argv).status, 0)
    }
    ignore(0)
    assert.equal(await volumeKeyOf(file, old), undefined)
    assert.ok((await volumeKeyOf(file, kept)) !== undefined)
    ignore(1)
    await assert.rejects(volumeKeyOf(file, old), { code: "ERR_LUKS_UNSUPPORTED", message: /ignored/ })
  })
})

describe("a change of keyslots that is killed", () => {
  /** Bytes of a step that reached the disk: a prefix, or what is left without it. */
  function* torn(kind: LuksStep["kind"], bytes: Buffer): Generator<readonly [Buffer, number]> {
    const { length } = bytes
    const inside = kind === "metadata" ? [1, 20, 448, 512, 600, 4096, 4097, 5000] : [4096]
    const cuts = [...inside, Math.floor(length / 2), length - 1]
    for (const cut of cuts.filter((at) => at < length)) {
      yield [bytes.subarray(0, cut), 0]
      yield [bytes.subarray(cut), cut]
    }
  }

  /**
   * Kills a rotation before, within and after each of its writes; each time exactly one of the two secrets opens, the old
   * one before the commit and the new one after it, and the one that stays always.
   */
  async function killEverywhere(file: string): Promise<number> {
    const change = await plan(file, { add: [fresh], remove: [0] })
    const commit = change.steps.findIndex(({ kind }) => kind === "metadata")
    assert.ok(commit > 0)
    let places = 0
    const check = async (state: string, at: string, expected: "old" | "new" | "either"): Promise<void> => {
      places++
      const [isOld, isNew] = [await opens(state, old), await opens(state, fresh)]
      assert.notEqual(isOld, isNew, `${at}: exactly one of the secrets opens`)
      if (expected !== "either") assert.equal(isNew, expected === "new", at)
      assert.ok(await opens(state, kept), `${at}: the other secret opens`)
      // cryptsetup repairs what it finds, so it gets a copy
      if (places % 9 !== 0 && !at.includes("after")) return
      const copy = path.join(folder, "copy.luks")
      copyFileSync(state, copy)
      assert.deepEqual(
        [peerOpens(copy, old), peerOpens(copy, fresh)],
        [isOld, isNew],
        `${at}: cryptsetup sees the same`,
      )
    }
    const state = path.join(folder, "state.luks")
    copyFileSync(file, state)
    const handle = await open(state, "r+")
    await check(state, "before", "old")
    for (const [i, step] of change.steps.entries()) {
      const side = i < commit ? "old" : i > commit ? "new" : "either"
      const size = step.kind === "wipe" ? step.size : step.bytes.length
      const before = Buffer.alloc(size)
      await handle.read(before, 0, size, step.offset)
      const written = step.kind === "wipe" ? Buffer.alloc(size) : step.bytes
      for (const [bytes, at] of torn(step.kind, written)) {
        await handle.write(bytes, 0, bytes.length, step.offset + at)
        await check(state, `within step ${i} (${step.kind}), ${bytes.length} bytes at ${at}`, side)
        await handle.write(before, 0, size, step.offset)
      }
      await applyLuksSteps(handle, 0, [step])
      await check(state, `after step ${i} (${step.kind})`, i < commit ? "old" : "new")
    }
    await handle.close()
    return places
  }

  it("leaves a header of ours that opens", async () => {
    assert.ok((await killEverywhere(await ours())) > 50)
  })

  it("leaves cryptsetup's header with metadata of 32 KiB that opens", async () => {
    assert.ok(
      (await killEverywhere(theirs(["--luks2-metadata-size", "32k", "--luks2-keyslots-size", "2m"]))) > 50,
    )
  })

  for (const [name, at] of [
    ["first", 0],
    ["second", 16384],
  ] as const) {
    it(`is safe where the ${name} copy of the metadata was damaged before`, async () => {
      const file = await ours()
      const handle = await open(file, "r+")
      await handle.write(randomBytes(1), 0, 1, at + 4096 + 3)
      await handle.write(randomBytes(64), 0, 64, at + 448)
      await handle.close()
      const change = await plan(file, { add: [fresh], remove: [0] })
      const commit = change.steps.find(({ kind }) => kind === "metadata")
      assert.equal(commit?.offset, at)
      await killEverywhere(file)
    })
  }

  it("is safe after one that was killed behind its commit, and clears up what that left", async () => {
    const file = await ours()
    const first = await plan(file, { add: [fresh], remove: [0] })
    const commit = first.steps.findIndex(({ kind }) => kind === "metadata")
    await apply(file, first.steps.slice(0, commit + 1))
    const header = await headerOf(file)
    assert.equal(header.stored.current, "secondary")
    const other = randomBytes(64)
    const second = await plan(file, { add: [other] })
    assert.equal(second.steps.find(({ kind }) => kind === "metadata")?.offset, 0)
    // half of the copy that is out of force: the one in force still counts
    const metadata = second.steps.find(({ kind }) => kind === "metadata")
    assert.ok(metadata !== undefined && metadata.kind !== "wipe")
    copyFileSync(file, headerAt)
    await apply(headerAt, [{ ...metadata, bytes: metadata.bytes.subarray(0, 4500) }])
    assert.deepEqual([await opens(headerAt, old), await opens(headerAt, fresh)], [false, true])
    await apply(file, second.steps)
    for (const secret of [fresh, kept, other]) assert.ok(peerOpens(file, secret))
    assert.equal(await opens(file, old), false)
    const bytes = readFileSync(file)
    const used = [...second.header.stored.areas.values()]
    for (let at = 32768; at < second.header.segment.offset; at += 4096) {
      if (used.some((area) => at >= area.offset && at < area.offset + area.size)) continue
      assert.ok(
        bytes.subarray(at, at + 4096).every((byte) => byte === 0),
        `bytes at ${at} are left`,
      )
    }
  })
})

describe("wiping a part of a file", () => {
  it("leaves zeros and a hole, and nothing beside it is touched", async () => {
    const file = newFile()
    const bytes = randomBytes(8 * MiB)
    writeFileSync(file, bytes)
    const handle = await open(file, "r+")
    const blocks = (await handle.stat()).blocks
    await applyLuksSteps(handle, 4096, [{ kind: "wipe", offset: 4096 + 100, size: 6 * MiB }])
    const expected = Buffer.from(bytes).fill(0, 8192 + 100, 8192 + 100 + 6 * MiB)
    assert.ok(readFileSync(file).equals(expected))
    assert.ok((await handle.stat()).blocks <= blocks)
    await applyLuksSteps(handle, 0, [
      { kind: "wipe", offset: 8 * MiB - 1, size: 100 * MiB },
      { kind: "wipe", offset: 20 * MiB, size: 1 },
    ])
    assert.equal((await handle.stat()).size, 8 * MiB)
    await handle.close()
  })
})
