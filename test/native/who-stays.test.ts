// A removed recipient who can write the file, and has kept all that he had: whatever he writes into an image, whoever opens
// what the next change makes of it was given, listed, signed for, or shown and confirmed.
import assert from "node:assert/strict"
import { createHmac, generateKeyPairSync, randomBytes, type KeyObject } from "node:crypto"
import { copyFileSync, existsSync, readFileSync } from "node:fs"
import path from "node:path"
import {
  findConfig,
  readGocryptfsLayer,
  rewrapGocryptfs,
  RANDOM_SECRET_SCRYPT,
} from "../../lib/device/gocryptfs.ts"
import { applyLuksSteps } from "../../lib/device/luks-change.ts"
import { parseLuksHeader } from "../../lib/device/luks-header.ts"
import { changeKeyslots, RANDOM_SECRET_KDF } from "../../lib/device/luks.ts"
import { cryptoMessage } from "../../lib/encryption/encrypt.ts"
import { plainRange } from "../../lib/encryption/encryption-format.ts"
import { findCryptoMessages, openPartition } from "../../lib/encryption/unlock.ts"
import { changeSif, type SifChange } from "../../lib/file/image-change.ts"
import {
  addRecipients,
  build,
  listRecipients,
  open,
  reencrypt,
  removeRecipient,
  rotateRecipients,
  sif,
  sign,
  type CredentialSource,
  type EncryptionFormat,
  type Recipient,
  type StayOptions,
} from "../../lib/index.ts"
import { Credentials } from "../../lib/encryption/credentials.ts"
import { fingerprint } from "../../lib/key/fingerprint.ts"
import { messageMark, type SifObject } from "../../lib/sif/format.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"

interface Person {
  readonly name: string
  readonly publicKey: KeyObject
  readonly unlock: readonly CredentialSource[]
}

function person(): Person {
  const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 })
  return { name: fingerprint(publicKey), publicKey, unlock: [{ key: privateKey }] }
}

const [alice, bob, mallory, carol, dave] = [person(), person(), person(), person(), person()] as const
/** What Mallory makes up: no bytes that a passphrase could not have. */
const ownSecret = Buffer.from(randomBytes(16).toString("hex"))
/** Where version 0.1 had an HMAC of the public key with the volume key. */
const PROOF_AT = 24

const folder = newFolder("who-stays")
let count = 0
const newFile = (): string => path.join(folder, `${++count}.sif`)
function copyOf(image: string): string {
  const copy = newFile()
  copyFileSync(image, copy)
  return copy
}

async function isOpen(image: string, unlock: readonly CredentialSource[]): Promise<boolean> {
  try {
    await using opened = await open(image, { unlock })
    return (await opened.readFile("/data/hello")).toString() === "hello\n"
  } catch (error) {
    const { code = String(error) } = error as { code?: string }
    assert.match(
      code,
      /^ERR_(?:KEY_MISMATCH|LUKS_HEADER|LUKS_PASSPHRASE|GOCRYPTFS_CONFIG|GOCRYPTFS_PASSPHRASE)$/,
    )
    return false
  }
}

/** What Mallory kept. */
interface Kept {
  /** The image when she was in, and as it is now. */
  readonly before: string
  readonly now: string
  readonly secret: Buffer
  readonly volumeKey: Buffer
}

async function remember(format: EncryptionFormat): Promise<Kept> {
  const before = newFile()
  const keys = [alice, bob, mallory].map(({ publicKey }) => publicKey)
  await build({ source: makeRootTree(), output: before, format, recipients: keys.map((key) => ({ key })) })
  await using image = await sif.openSif(before)
  const opening = await openPartition(image, image.primary(), new Credentials(mallory.unlock), {})
  const kept = {
    before,
    now: copyOf(before),
    secret: Buffer.from(opening.secret.bytes),
    volumeKey: Buffer.from(opening.unlocked.dataKey.bytes),
  }
  const { unlock } = alice
  await removeRecipient(kept.now, { unlock, recipient: mallory.name, keep: [bob.name] })
  return kept
}

type Message = Pick<SifObject, "name" | "extra"> & { readonly data: Buffer }

async function plant(change: SifChange, messages: readonly Message[]): Promise<void> {
  const { id, group } = change.image.primary()
  const common = { type: sif.DataType.cryptoMessage, group, link: { to: "object", id } } as const
  await change.switchOn(await change.append(messages.map((message) => ({ ...common, ...message }))))
  change.commit()
}

/** A message with every field right that anybody can see, and the proof that version 0.1 wanted. */
function forged(whose: Person, secret: Buffer, mark: string, volumeKey: Buffer): Message {
  const message = cryptoMessage(whose.publicKey, { secret, mark }, false)
  const key = whose.publicKey.export({ type: "spki", format: "der" })
  const proof = createHmac("sha256", volumeKey).update("sifcrypt recipient\0").update(key).digest()
  proof.copy(message.extra, PROOF_AT)
  return message
}

/** A fresh message for somebody, for the lock that there is. */
function message(whose: Person): (kept: Kept) => Promise<string> {
  return async ({ now, volumeKey }) => {
    const image = copyOf(now)
    await changeSif(image, async (change) => {
      const [first] = findCryptoMessages(change.image, change.image.primary())
      const mark = messageMark(first!.extra) ?? assert.fail()
      await plant(change, [forged(whose, randomBytes(64), mark, volumeKey)])
    })
    return image
  }
}

/** A lock of Mallory's own, and messages of its secret for these. */
function ownLock(...whose: readonly Person[]): (kept: Kept) => Promise<string> {
  return async ({ before, now, secret, volumeKey }) => {
    const image = copyOf(now)
    await changeSif(image, async (change, file) => {
      const partition = change.image.primary()
      const limits = { limits: {} }
      let mark: string
      if (partition.partition.fileSystem === sif.FileSystem.gocryptfsSquashfs) {
        await using old = await sif.openSif(before)
        const { config } = await readGocryptfsLayer(plainRange(old, old.primary()), before, {})
        const place = (await findConfig(plainRange(change.image, partition), image)) ?? assert.fail()
        const made = await rewrapGocryptfs(config, secret, ownSecret, RANDOM_SECRET_SCRYPT, place.size)
        await file.write(made!.config, 0, place.size, partition.offset + place.offset)
        mark = made!.mark
      } else {
        const header = await parseLuksHeader(change.image.reader, partition, limits)
        const add = [{ secret: ownSecret, kdf: RANDOM_SECRET_KDF }]
        const changed = await changeKeyslots({ header, volumeKey, add })
        await applyLuksSteps(file, partition.offset, changed.steps)
        mark = changed.header.keyslots.find(({ id }) => id === changed.added[0])!.mark
      }
      await plant(
        change,
        whose.map((one) => forged(one, ownSecret, mark, volumeKey)),
      )
    })
    return image
  }
}

/** What Mallory writes. */
const attacks: Readonly<Record<string, (kept: Kept) => Promise<string>>> = {
  "her old message": async ({ before, now }) => {
    const image = copyOf(now)
    await using old = await sif.openSif(before)
    const own = old.objects.find(({ name }) => name === mallory.name)!
    const data = Buffer.from(await old.data(own, 1 << 16))
    await changeSif(image, (change) => plant(change, [{ name: own.name, extra: own.extra, data }]))
    return image
  },
  "a fresh message of hers": message(mallory),
  "a fresh message of somebody who never was in": message(carol),
  "a second message of somebody who is in": message(bob),
  "a lock of her own for everybody": ownLock(alice, bob, mallory),
  "a lock of her own for the others": ownLock(alice, bob),
  "the whole old header": ({ before }) => Promise.resolve(copyOf(before)),
  "the old header without her own message": async ({ before }) => {
    const image = copyOf(before)
    await changeSif(image, async (change) => {
      change.commit()
      await change.remove(change.image.objects.filter(({ name }) => name === mallory.name))
    })
    return image
  },
}
const luksAttacks = { ...attacks, "a keyslot of her own": ownLock() }

interface Change {
  /** @returns The image that came of it. */
  readonly make: (image: string, options: StayOptions) => Promise<string>
  readonly removed?: Person
  readonly added?: Person
}

const { unlock } = alice
const inPlace =
  (change: (image: string, options: StayOptions) => Promise<unknown>): Change["make"] =>
  async (image, options) => {
    await change(image, options)
    return image
  }
const changes: Readonly<Record<string, Change>> = {
  rotate: { make: inPlace((image, stay) => rotateRecipients(image, { unlock, ...stay })) },
  remove: {
    make: inPlace((image, stay) => removeRecipient(image, { unlock, recipient: bob.name, ...stay })),
    removed: bob,
  },
  add: {
    make: inPlace((image, stay) =>
      addRecipients(image, { unlock, recipients: [{ key: dave.publicKey }], ...stay }),
    ),
    added: dave,
  },
  reencrypt: {
    make: async (image, stay) => (await reencrypt({ image, output: newFile(), unlock, ...stay })).output,
  },
}

/** Who opens it, and whether a secret does that Mallory knows. */
async function openers(image: string, kept: Kept): Promise<{ people: string[]; secret: boolean }> {
  const people: string[] = []
  for (const one of [alice, bob, mallory, carol, dave])
    if (await isOpen(image, one.unlock)) people.push(one.name)
  const secrets = [kept.secret, ownSecret].map((passphrase) =>
    isOpen(image, [{ passphrase: { bytes: passphrase } }]),
  )
  return { people: people.sort(), secret: (await Promise.all(secrets)).includes(true) }
}

const expected = (...people: readonly (Person | string | undefined)[]): string[] =>
  [...new Set(people.flatMap((one) => (typeof one === "object" ? one.name : (one ?? []))))].sort()

for (const format of ["luks", "gocryptfs"] as const)
  describe(`who stays in a ${format} image that a removed recipient wrote to`, function () {
    this.timeout(60_000)
    let kept: Kept
    const images = new Map<string, string>()
    const all = format === "luks" ? luksAttacks : attacks

    before(async () => {
      kept = await remember(format)
      for (const [name, attack] of Object.entries(all)) images.set(name, await attack(kept))
    })

    it("is anybody's guess: she does open what she wrote", async () => {
      assert.deepEqual(await openers(kept.now, kept), { people: expected(alice, bob), secret: false })
      const opened: string[] = []
      for (const [name, image] of images) {
        const { people, secret } = await openers(image, kept)
        if (secret || people.includes(mallory.name)) opened.push(name)
      }
      const idle = [
        "her old message",
        "a fresh message of hers",
        "a fresh message of somebody who never was in",
        "a second message of somebody who is in",
      ]
      assert.deepEqual(
        opened,
        Object.keys(all).filter((name) => !idle.includes(name)),
      )
    })

    for (const [name, { make, removed, added }] of Object.entries(changes)) {
      it(`${name}: nobody, where the answer is no`, async () => {
        for (const [attack, image] of images) {
          const copy = copyOf(image)
          let result: string | undefined
          try {
            result = await make(copy, { onConfirm: () => Promise.resolve(false) })
          } catch (error) {
            const { code, message: text } = error as { code?: string; message: string }
            assert.equal(code, "ERR_KEY_UNCONFIRMED", String(error))
            assert.match(text, /SHA256:/)
            assert.deepEqual(readFileSync(copy), readFileSync(image), attack)
          }
          if (result === undefined) continue
          const wanted = { people: expected(alice, added), secret: false }
          assert.deepEqual(await openers(result, kept), wanted, attack)
        }
      })

      it(`${name}: those who are listed`, async () => {
        const listed = removed === bob ? [] : [bob]
        for (const [attack, image] of images) {
          const heard: string[] = []
          const result = await make(copyOf(image), {
            keep: listed.map((one) => one.name),
            onNotice: (text) => heard.push(text),
          })
          const wanted = { people: expected(alice, added, ...listed), secret: false }
          assert.deepEqual(await openers(result, kept), wanted, attack)
          if (attack === "the whole old header")
            assert.match(heard.join("\n"), new RegExp(`not kept: .*${mallory.name.replaceAll("+", "\\+")}`))
        }
      })

      it(`${name}: those who were shown and confirmed`, async () => {
        for (const [attack, image] of images) {
          const shown: Recipient[] = []
          const result = await make(copyOf(image), {
            onConfirm: (unknown) => {
              shown.push(...unknown)
              return Promise.resolve(true)
            },
          })
          const wanted = {
            people: expected(alice, added, ...shown.map((one) => one.fingerprint)),
            secret: shown.some(({ keyslotFingerprint }) => keyslotFingerprint !== undefined),
          }
          assert.deepEqual(await openers(result, kept), wanted, attack)
        }
      })
    }

    it("build from the image: those who are given", async () => {
      for (const [attack, source] of images) {
        const { output } = await build({
          source,
          output: newFile(),
          recipients: [{ key: dave.publicKey }],
          unlock,
        })
        assert.deepEqual(await openers(output, kept), { people: [dave.name], secret: false }, attack)
      }
    })

    describe("and whom a signer signed for", () => {
      const owner = generateKeyPairSync("ed25519")
      const former = generateKeyPairSync("ed25519")
      let signed: string
      let ownerName: string
      const keys = [owner, former].map(({ publicKey }) => publicKey)

      before(async () => {
        signed = copyOf(kept.now)
        ownerName = (await sign(signed, { key: owner.privateKey })).signer
      })

      it("stays if that signer is required", async () => {
        for (const { make, removed, added } of Object.values(changes)) {
          const result = await make(copyOf(signed), { verify: { keys, require: [ownerName] } })
          const wanted = expected(alice, added, removed === bob ? undefined : bob)
          assert.deepEqual((await openers(result, kept)).people, wanted)
        }
      })

      it("not if it is somebody's whom the caller happens to know, as she is", async () => {
        const image = copyOf(images.get("the whole old header")!)
        await sign(image, { key: former.privateKey })
        for (const { make } of Object.values(changes)) {
          await assert.rejects(make(copyOf(image), { verify: { keys } }), { code: "ERR_KEY_UNCONFIRMED" })
          await assert.rejects(make(copyOf(image), { verify: { keys, require: [ownerName] } }), {
            code: "ERR_SIGNATURE_INVALID",
          })
        }
      })

      it("not with what was written beside the signature", async () => {
        const image = copyOf(signed)
        const { group } = await sif.openSif(image).then(async (opened) => {
          await using closing = opened
          return closing.primary()
        })
        await changeSif(image, async (change) => {
          const primary = change.image.primary()
          const [first] = findCryptoMessages(change.image, primary)
          const fresh = forged(mallory, randomBytes(64), messageMark(first!.extra)!, kept.volumeKey)
          const place = { group: group + 1, link: { to: "object", id: primary.id } } as const
          const slots = await change.append([{ type: sif.DataType.cryptoMessage, ...place, ...fresh }])
          await change.switchOn(slots)
          change.commit()
        })
        const verify = { keys, require: [ownerName], groups: [group] }
        await assert.rejects(changes["rotate"]!.make(copyOf(image), { verify }), {
          code: "ERR_KEY_UNCONFIRMED",
          message: new RegExp(`these are to stay: ${mallory.name.replaceAll("+", "\\+")} \\(object \\d+\\)$`),
        })
      })
    })
  })

describe("who stays", () => {
  it("is named in an error where nobody can be asked", async () => {
    const image = newFile()
    const output = newFile()
    const keys = [alice, bob].map(({ publicKey }) => publicKey)
    const passphrase = Buffer.from("a passphrase")
    const passphraseKdf = { type: "pbkdf2", iterations: 1000 } as const
    await build({
      source: makeRootTree(),
      output: image,
      recipients: [...keys.map((key) => ({ key })), { passphrase: { bytes: passphrase } }],
      passphraseKdf,
    })
    const before = readFileSync(image)
    const keyslot = (await listRecipients(image))[2]?.keyslotFingerprint ?? assert.fail()
    const who = `nothing but the image says that these are to stay: ${bob.name} (object 3)`
    const code = "ERR_KEY_UNCONFIRMED"
    for (const change of [rotateRecipients, addDave])
      await assert.rejects(change(image, { unlock }), {
        code,
        message: `${image}: ${who}, passphrase ${keyslot} (keyslot 1)`,
      })
    await assert.rejects(reencrypt({ image, output, unlock }), { code, message: `${image}: ${who}` })
    assert.deepEqual(readFileSync(image), before)
    assert.ok(!existsSync(output))
    await rotateRecipients(image, { unlock, keep: [bob.name, keyslot] })
    const [first, second, third] = await listRecipients(image)
    assert.deepEqual([first?.fingerprint, second?.fingerprint], [alice.name, bob.name])
    assert.equal(third?.keyslotFingerprint, keyslot)
    assert.ok(await isOpen(image, [{ passphrase: { bytes: passphrase } }]))
  })

  it("is refused as a list when it names nobody who is there, or a part of a fingerprint", async () => {
    const image = newFile()
    const keys = [alice, bob].map(({ publicKey }) => publicKey)
    await build({ source: makeRootTree(), output: image, recipients: keys.map((key) => ({ key })) })
    const before = readFileSync(image)
    for (const [keep, what] of [
      [carol.name, /is no recipient who stays$/],
      [bob.name.slice(0, 30), /is no whole SHA-256 fingerprint$/],
    ] as const)
      for (const change of [rotateRecipients, addDave])
        await assert.rejects(change(image, { unlock, keep: [keep] }), {
          code: "ERR_KEY_RECIPIENT",
          message: what,
        })
    assert.deepEqual(readFileSync(image), before)
    const output = newFile()
    await assert.rejects(reencrypt({ image, output, unlock, keep: [carol.name] }), {
      code: "ERR_KEY_RECIPIENT",
    })
    assert.ok(!existsSync(output))
  })

  it("does not lock a passphrase out whose keyslot somebody's message claims", async () => {
    const image = newFile()
    const passphrase = Buffer.from("a passphrase")
    const passphraseKdf = { type: "pbkdf2", iterations: 1000 } as const
    await build({
      source: makeRootTree(),
      output: image,
      recipients: [{ passphrase: { bytes: passphrase } }],
      passphraseKdf,
    })
    await changeSif(image, async (change) => {
      const header = await parseLuksHeader(change.image.reader, change.image.primary(), {})
      await plant(change, [forged(mallory, randomBytes(64), header.keyslots[0]!.mark, randomBytes(64))])
    })
    await rotateRecipients(image, { unlock: [{ passphrase: { bytes: passphrase } }], keep: [] })
    assert.ok(await isOpen(image, [{ passphrase: { bytes: passphrase } }]))
    assert.deepEqual(
      (await listRecipients(image)).map(({ kind }) => kind),
      ["passphrase"],
    )
  })
})

async function addDave(
  image: string,
  options: StayOptions & { unlock: readonly CredentialSource[] },
): Promise<unknown> {
  return await addRecipients(image, { recipients: [{ key: dave.publicKey }], ...options })
}
