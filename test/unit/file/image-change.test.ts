// Changes that are killed after any of their writes, and changes that run into each other.
import assert from "node:assert/strict"
import { copyFileSync, renameSync, statSync, writeFileSync } from "node:fs"
import { open, readFile } from "node:fs/promises"
import path from "node:path"
import { lockOpenFile } from "../../../lib/native/lock.ts"
import {
  addObject,
  changeFile,
  changeSif,
  type ChangeableFile,
  type SifChange,
} from "../../../lib/file/image-change.ts"
import { cryptoMessageExtra, DataType, type SifObject } from "../../../lib/sif/format.ts"
import { openSif } from "../../../lib/sif/open.ts"
import { newFolder } from "../../support/scratch.ts"
import { vector } from "../../vectors/load.ts"

class Killed extends Error {}

/** A file in memory that dies after so many of its changes, and then does nothing any more. */
class MortalFile implements ChangeableFile {
  readonly fd = -1
  bytes: Buffer
  #left: number
  constructor(bytes: Buffer, life: number) {
    this.bytes = Buffer.from(bytes)
    this.#left = life
  }
  #live(): void {
    if (this.#left <= 0) throw new Killed()
    this.#left--
  }
  size(): Promise<number> {
    return Promise.resolve(this.bytes.length)
  }
  read(position: number, length: number): Promise<Buffer> {
    return Promise.resolve(Buffer.from(this.bytes.subarray(position, position + length)))
  }
  async write(bytes: Uint8Array, position: number): Promise<void> {
    this.#live()
    const end = position + bytes.length
    if (end > this.bytes.length)
      this.bytes = Buffer.concat([this.bytes, Buffer.alloc(end - this.bytes.length)])
    this.bytes.set(bytes, position)
  }
  async truncate(size: number): Promise<void> {
    this.#live()
    this.bytes = Buffer.from(this.bytes.subarray(0, size))
  }
  async sync(): Promise<void> {
    this.#live()
  }
}

const time = { time: 1_700_000_000 }
const secret = Buffer.from("the message that goes")

async function objectsOf(bytes: Buffer): Promise<{ objects: readonly SifObject[]; data: string[] }> {
  await using image = await openSif(bytes)
  const data: string[] = []
  for (const object of image.objects) data.push((await image.data(object, 1 << 20)).toString("latin1"))
  return { objects: image.objects, data }
}

const message = (text: string | Buffer): Parameters<SifChange["append"]>[0][number] => ({
  type: DataType.cryptoMessage,
  link: { to: "object", id: 2 },
  extra: cryptoMessageExtra(),
  data: Buffer.from(text),
})

/** Two new messages for one old one. */
async function replace(change: SifChange): Promise<void> {
  const old = change.image.objects.filter(({ type }) => type === DataType.cryptoMessage)
  const slots = await change.append([message("first"), message("second")])
  await change.switchOn(slots)
  change.commit()
  await change.remove(old)
}

async function startImage(): Promise<Buffer> {
  const file = new MortalFile(vector("sif/one-group-signed-pgp.sif"), Infinity)
  await changeFile(
    file,
    "image",
    async (change) => {
      await change.switchOn(await change.append([message(secret)]))
    },
    time,
  )
  return file.bytes
}

describe("changeFile", () => {
  it("A6: is well-formed after each write of a change, with the old objects, the new ones or both", async () => {
    const before = await startImage()
    const seen = new Set<string>()
    for (let life = 0; ; life++) {
      const file = new MortalFile(before, life)
      let done = true
      try {
        await changeFile(file, "image", replace, time)
      } catch (error) {
        assert.ok(error instanceof AggregateError || error instanceof Killed)
        done = false
      }
      const { objects, data } = await objectsOf(file.bytes)
      const messages = data.filter((_, index) => objects[index]?.type === DataType.cryptoMessage)
      seen.add(messages.join())
      assert.equal(objects.length - messages.length, 3)
      // What a killed change left is nobody's object, and goes with the next change.
      const next = new MortalFile(file.bytes, Infinity)
      await changeFile(
        next,
        "image",
        async (change) => {
          await change.remove(
            change.image.objects.filter(
              ({ type, slot }) => type === DataType.cryptoMessage && (slot === 3 || messages.length < 3),
            ),
          )
          await change.switchOn(await change.append([message("last")]))
        },
        time,
      )
      const after = await objectsOf(next.bytes)
      assert.ok(after.data.includes("last"))
      assert.ok(!next.bytes.includes(secret), `the old message is still there after ${life} writes`)
      if (done) break
    }
    assert.deepEqual([...seen], [secret.toString(), `${secret.toString()},first,second`, "first,second"])
  })

  it("takes back what it added when the change fails, and leaves the file as it was", async () => {
    const before = await startImage()
    for (const switchOn of [false, true]) {
      const file = new MortalFile(before, Infinity)
      await assert.rejects(
        changeFile(file, "image", async (change) => {
          const slots = await change.append([message("new")])
          if (switchOn) await change.switchOn(slots)
          throw new Error("no luck")
        }),
        { message: "no luck" },
      )
      assert.ok(file.bytes.equals(before))
    }
  })

  it("wipes what it removes, cuts the file and counts", async () => {
    const file = new MortalFile(await startImage(), Infinity)
    await changeFile(file, "image", replace, time)
    assert.ok(!file.bytes.includes(secret))
    await using image = await openSif(file.bytes)
    assert.deepEqual(
      image.objects.map(({ slot, id, size }) => [slot, id, size]),
      [
        [0, 1, 4],
        [1, 2, 4096],
        [2, 3, 1048],
        [4, 5, 5],
        [5, 6, 6],
      ],
    )
    assert.equal(image.header.free, 43)
    assert.equal(image.header.modified, time.time)
    assert.equal(file.bytes.length, 42008 + secret.length + 11)
    assert.equal(image.header.dataSize, file.bytes.length - 32176)
  })

  it("says how many descriptors it lacks, before it writes", async () => {
    const before = await startImage()
    before.writeBigInt64LE(5n, 88)
    const file = new MortalFile(before, Infinity)
    await assert.rejects(changeFile(file, "image", replace), {
      code: "ERR_SIF_FULL",
      message: "image: 2 free descriptors are needed, and of 5 there are 1",
    })
    assert.ok(file.bytes.equals(before))
  })

  it("S6: wipes nothing that belongs to somebody because a free record claims it", async () => {
    const before = await startImage()
    const claim = (offset: bigint, size: bigint): Buffer => {
      const bytes = Buffer.from(before)
      const record = bytes.subarray(4096 + 10 * 585, 4096 + 11 * 585)
      record.writeBigInt64LE(offset, 17)
      record.writeBigInt64LE(size, 25)
      return bytes
    }
    for (const [offset, size] of [
      [0n, 42008n],
      [-1n, 100n],
      [36864n, 4096n],
      [32176n, 1n << 62n],
      [1n << 62n, 1n << 62n],
    ] as const) {
      const file = new MortalFile(claim(offset, size), Infinity)
      await changeFile(file, "image", async (change) => {
        await change.switchOn(await change.append([message("new")]))
      })
      const [was, is] = [await objectsOf(before), await objectsOf(file.bytes)]
      assert.deepEqual(is.data.slice(0, was.data.length), was.data)
      assert.ok(file.bytes.subarray(4096 + 10 * 585, 4096 + 11 * 585).equals(Buffer.alloc(585)))
    }
  })
})

describe("changeSif", () => {
  const newImage = (): string => {
    const file = path.join(newFolder("change"), "image.sif")
    writeFileSync(file, vector("sif/one-group-signed-pgp.sif"))
    return file
  }

  it("lets several changes of one image happen one after the other", async () => {
    const file = newImage()
    const texts = Array.from({ length: 12 }, (_, index) => `object ${index}`)
    await Promise.all(texts.map((text) => addObject(file, { type: DataType.generic }, Buffer.from(text))))
    const { data } = await objectsOf(await readFile(file))
    assert.deepEqual(data.slice(3).sort(), [...texts].sort())
  })

  it("says that somebody else does not finish", async function () {
    this.timeout(20_000)
    const file = newImage()
    const other = await open(file, "r+")
    const lock = await lockOpenFile(other.fd, true)
    try {
      assert.ok(lock)
      const before = await readFile(file)
      await assert.rejects(addObject(file, { type: DataType.generic }, Buffer.alloc(1)), {
        name: "SifError",
        code: "ERR_SIF_BUSY",
        message: `${file}: somebody else is changing it`,
      })
      assert.ok((await readFile(file)).equals(before))
    } finally {
      await other.close()
      await lock?.[Symbol.asyncDispose]()
    }
    await addObject(file, { type: DataType.generic }, Buffer.alloc(1))
  })

  it("changes the image that has the name when its turn comes", async () => {
    const file = newImage()
    const holder = await open(file, "r+")
    const lock = await lockOpenFile(holder.fd, true)
    assert.ok(lock)
    const waiting = addObject(file, { type: DataType.generic }, Buffer.from("x"))
    copyFileSync(file, `${file}.new`)
    renameSync(`${file}.new`, file)
    const old = statSync(`/proc/self/fd/${holder.fd}`).size
    assert.equal(statSync(`/proc/self/fd/${holder.fd}`).nlink, 0)
    const oldContent = await holder.readFile()
    await holder.close()
    await lock[Symbol.asyncDispose]()
    await waiting
    assert.equal(oldContent.length, old)
    await using image = await openSif(file)
    assert.equal(image.objects.length, 4)
  })

  it("refuses what is no regular file", async () => {
    await assert.rejects(
      changeSif("/dev/null", () => Promise.resolve()),
      { code: "ERR_SIF_MAGIC", message: /not a regular file/ },
    )
  })
})
