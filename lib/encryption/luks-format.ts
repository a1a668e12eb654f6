// LUKS2: the RSA recipients' secret has a keyslot, and so has each passphrase.
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  randomBytes,
  randomFillSync,
} from "node:crypto"
import { applyLuksSteps } from "../device/luks-change.ts"
import { decodeLuksHeader, parseLuksHeader, UNLIMITED, type LuksHeader } from "../device/luks-header.ts"
import {
  changeKeyslots,
  derivationTime,
  formatLuks,
  prepareLuks,
  RANDOM_SECRET_KDF,
  unlockLuks,
} from "../device/luks.ts"
import { readStored } from "../device/verity.ts"
import { madeOf } from "../disposal.ts"
import { KeyError, LuksError } from "../errors.ts"
import { decipherSecret, Secret } from "../key/secret.ts"
import { FileSystem, messageMark, PartitionType, type SifObject, type SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { ByteReader } from "../sif/source.ts"
import type { Bytes } from "../units.ts"
import {
  plainRange,
  type Format,
  type HeldKey,
  type Lock,
  type LockChange,
  type OpenedForChange,
  type Openers,
  type SecretCost,
  type Unlocked,
} from "./encryption-format.ts"

const SECRET_SIZE = 64 // what the peers use as LUKS key file
/** The cipher of the userspace engine, and the one that is written. */
const USERSPACE_CIPHER = "aes-xts-plain64"

export const luks: Format = {
  name: "LUKS2",
  fileSystem: FileSystem.encryptedSquashfs,

  isIn({ partition: { fileSystem, type } }): boolean {
    // What `overlay create --encrypt` makes: LUKS2 around ext3, for which SIF has no name of its own.
    return (
      fileSystem === FileSystem.encryptedSquashfs ||
      (fileSystem === FileSystem.raw && type === PartitionType.overlay)
    )
  },

  prepare: prepareLuks,

  async create(openers, wrap) {
    using secret = freshSecret()
    const { header, volumeKey } = await formatLuks({ keyslots: keyslotsFor(secret, openers) })
    try {
      const [first] = decodeLuksHeader(header, 2 * header.length, { limits: UNLIMITED }).keyslots
      const messages = wrap({ secret: secret.bytes, mark: first?.mark ?? "" })
      return { header, cipher: { type: "xts", key: volumeKey, sectorSize: 4096, ivTweak: 0 }, messages }
    } catch (error) {
      volumeKey.fill(0)
      throw error
    }
  },

  async readLock(image, partition, policy) {
    const header = await parseLuksHeader(readerOf(image, partition), partition, policy)
    return luksLock({ image, partition, header })
  },
}

/** Reads of a partition what has no cipher, by offsets in the file. */
function readerOf(image: SifImage, partition: SifPartition): Pick<ByteReader, "read"> {
  if (partition.verity === undefined) return image.reader
  const range = plainRange(image, partition)
  return { read: (offset, size) => readStored(range, offset - range.offset, size, image.path) }
}

function freshSecret(): Secret {
  const secret = new Secret(Buffer.alloc(SECRET_SIZE))
  randomFillSync(secret.bytes)
  return secret
}

/** That of the RSA recipients is the first. */
function keyslotsFor(
  secret: Secret,
  { rsa, passphrases, kdf }: Openers,
): Parameters<typeof formatLuks>[0]["keyslots"] {
  return [
    ...(rsa ? [{ secret: secret.bytes, kdf: RANDOM_SECRET_KDF }] : []),
    ...passphrases.map((passphrase) => ({ secret: passphrase, kdf })),
  ]
}

const SEAL = "aes-256-gcm"
const SEAL_IV: Bytes = 12
const SEAL_TAG: Bytes = 16

/** What comes of a recipients' secret, which is random, for one header: names and keys for others of this user who have it. */
class HeldKeys {
  readonly #secret: Uint8Array
  readonly #header: string

  constructor(secret: Uint8Array, { header }: Place) {
    this.#secret = secret
    this.#header = JSON.stringify(header.stored.document)
  }

  #derive(use: string): Buffer {
    return createHmac("sha256", this.#secret).update(`sifcrypt held ${use}\0`).update(this.#header).digest()
  }

  get id(): string {
    return this.#derive("id").toString("hex")
  }

  seal(key: Uint8Array): HeldKey {
    const sealing = this.#derive("key")
    const iv = randomBytes(SEAL_IV)
    const cipher = createCipheriv(SEAL, sealing, iv)
    sealing.fill(0)
    const text = Buffer.concat([cipher.update(key), cipher.final()])
    return { id: this.id, sealed: Buffer.concat([iv, cipher.getAuthTag(), text]) }
  }

  /** undefined: it is not what was sealed. The caller wipes it. */
  unseal(sealed: Uint8Array, size: Bytes): Buffer | undefined {
    if (sealed.length !== SEAL_IV + SEAL_TAG + size) return undefined
    const bytes = Buffer.from(sealed)
    const sealing = this.#derive("key")
    const decipher = createDecipheriv(SEAL, sealing, bytes.subarray(0, SEAL_IV), { authTagLength: SEAL_TAG })
    sealing.fill(0)
    decipher.setAuthTag(bytes.subarray(SEAL_IV, SEAL_IV + SEAL_TAG))
    try {
      return decipherSecret(decipher, bytes.subarray(SEAL_IV + SEAL_TAG))
    } catch {
      return undefined
    }
  }
}

/** A header and where it lies. */
interface Place {
  readonly image: SifImage
  readonly partition: SifPartition
  readonly header: LuksHeader
}

/** The keyslot of a message; an unmarked one's is known if there is one only. */
function keyslotOf({ extra }: SifObject, { keyslots }: LuksHeader): number | undefined {
  const mark = messageMark(extra)
  if (mark !== undefined) return keyslots.find((keyslot) => keyslot.mark === mark)?.id
  return keyslots.length === 1 ? keyslots[0]?.id : undefined
}

function luksLock(place: Place): Lock {
  const { image, partition, header } = place
  const { segment, keyslots, stored } = header
  const { path } = image
  const costOf = (id: number | undefined): SecretCost => {
    const keyslot = keyslots.find((one) => one.id === id)
    return { keyslot: keyslot?.id, kdf: keyslot?.kdf.type, cost: keyslot?.cost }
  }
  const { cipher, keySize, sectorSize } = segment
  const facts = keyslots.map(({ id, kdf, cost }) => ({ id, kdf: kdf.type, cost }))
  const lock: Lock = {
    format: luks,
    marks: new Set(keyslots.map(({ mark }) => mark)),
    facts: { luks: { cipher, keySize, sectorSize, keyslots: facts } },
    rsaReaders: ["apptainer", "singularity"],
    passphraseReaders: ["apptainer", "singularity", "cryptsetup"],
    messageCost: (message) => costOf(keyslotOf(message, header)),

    passphraseCosts(current) {
      const taken = new Set(current.map((message) => keyslotOf(message, header)))
      return keyslots.filter(({ id }) => !taken.has(id)).map(({ id }) => costOf(id))
    },

    derivationTime: (mark) =>
      derivationTime(mark === undefined ? keyslots : keyslots.filter((keyslot) => keyslot.mark === mark)),

    async keyslotFingerprint(keyslot) {
      const area = stored.areas.get(keyslot)
      if (area === undefined) return undefined
      const hash = createHash("sha256").update("sifcrypt keyslot\0")
      hash.update(`${JSON.stringify(stored.document.keyslots[String(keyslot)])}\0`)
      hash.update(await image.reader.read(partition.offset + area.offset, area.size))
      return `SHA256:${hash.digest("base64").replaceAll("=", "")}`
    },

    openHeld(secret, mark, find) {
      const named = mark === undefined ? undefined : keyslots.find((keyslot) => keyslot.mark === mark)
      if (named === undefined) return undefined
      const held = new HeldKeys(secret, place)
      const sealed = find(held.id)
      const key = sealed && held.unseal(sealed, segment.keySize)
      if (sealed === undefined || key === undefined) return undefined
      try {
        const unlocked = unlockedLuks(lock, place, new Secret(key), named.id)
        unlocked.held = { id: held.id, sealed }
        return unlocked
      } finally {
        key.fill(0)
      }
    },

    async open(secret, mark) {
      const named = mark === undefined ? undefined : keyslots.find((keyslot) => keyslot.mark === mark)
      if (mark !== undefined && named === undefined) return undefined
      try {
        const range = plainRange(image, partition)
        const opened = await unlockLuks({ ...range, header, secret, path, keyslot: named?.id })
        try {
          const unlocked = unlockedLuks(lock, place, new Secret(opened.volumeKey), opened.keyslot)
          // Messages with a mark have a secret that is random; a passphrase could be tried.
          if (named !== undefined) unlocked.held = new HeldKeys(secret, place).seal(opened.volumeKey)
          return unlocked
        } finally {
          opened.volumeKey.fill(0)
        }
      } catch (error) {
        if (error instanceof LuksError && error.code === "ERR_LUKS_PASSPHRASE") return undefined
        throw error
      }
    },

    wrongPassphrase: (origins) => LuksError.at(path, "ERR_LUKS_PASSPHRASE", `wrong passphrase (${origins})`),
    staleMessage: (message) =>
      LuksError.at(
        path,
        "ERR_LUKS_HEADER",
        `the secret in crypto message ${message} opens no keyslot: one of the two was replaced`,
      ),
  }
  return lock
}

/** @param keyslot - The one that the secret opened. */
function unlockedLuks(lock: Lock, place: Place, dataKey: Secret, keyslot: number): Unlocked {
  const { header } = place
  const { cipher, offset, size, sectorSize, ivTweak } = header.segment
  return {
    lock,
    dataKey,
    segment: { offset, size },
    kernelOnly: cipher === USERSPACE_CIPHER ? undefined : cipher,
    dmCrypt: header,
    get cipher() {
      return { type: "xts", key: dataKey.bytes, sectorSize, ivTweak } as const
    },
    otherKeyslots(messages) {
      const marks = messages.map(({ extra }) => messageMark(extra))
      return header.keyslots.flatMap(({ id, mark }) => (id === keyslot || marks.includes(mark) ? [] : [id]))
    },
    change: (opened) => luksChange(place, opened, dataKey, keyslot),
  }
}

/** The keyslots that the RSA recipients' secrets open. Never the one that a passphrase opened, whatever a message says. */
function rsaKeyslots(
  { image, header }: Place,
  { messages, recipient }: OpenedForChange,
  keyslot: number,
): number[] {
  if (messages.length === 0) return []
  const others = header.keyslots.flatMap(({ id }) => (id === keyslot ? [] : [id]))
  const known = new Set<number>(recipient === undefined ? [] : [keyslot])
  for (const message of messages) {
    const id = keyslotOf(message, header)
    if (id !== undefined && others.includes(id)) known.add(id)
  }
  const isUnmarked = ({ extra }: SifObject): boolean => messageMark(extra) === undefined
  if (!messages.some(isUnmarked) || known.size > 0) return [...known]
  // A passphrase opened, and a peer made the messages: the other keyslot is theirs if there is one only.
  if (others.length > 1)
    throw KeyError.at(
      image.path,
      "ERR_KEY_MISSING",
      `which of ${header.keyslots.length} keyslots is for the RSA recipients can only be told with a private key`,
    )
  return others
}

function luksChange(place: Place, opened: OpenedForChange, dataKey: Secret, openedBy: number): LockChange {
  const { image, partition, header } = place
  const ofRsa = rsaKeyslots(place, opened, openedBy)
  const refuse = (what: string): never => {
    throw KeyError.at(image.path, "ERR_KEY_RECIPIENT", what)
  }
  return {
    passphrases: header.keyslots.flatMap(({ id }) => (ofRsa.includes(id) ? [] : [id])),
    openedBy: opened.recipient === undefined ? openedBy : undefined,

    requirePassphrase(keyslot) {
      if (!header.keyslots.some(({ id }) => id === keyslot)) refuse(`there is no keyslot ${keyslot}`)
      if (ofRsa.includes(keyslot)) refuse(`keyslot ${keyslot} belongs to the RSA recipients`)
    },

    async replace({ remove, ...openers }) {
      const secret = freshSecret()
      return await madeOf(secret, async () => {
        const add = keyslotsFor(secret, openers)
        const gone = [...ofRsa, ...remove]
        const changed =
          add.length + gone.length === 0
            ? undefined
            : await changeKeyslots({ header, volumeKey: dataKey.bytes, add, remove: gone })
        const added = changed?.header.keyslots.find(({ id }) => id === changed.added[0])
        return {
          secret: secret.bytes,
          mark: added?.mark ?? "",
          write:
            changed &&
            (async (): Promise<void> => {
              await applyLuksSteps(opened.file, partition.offset, changed.steps)
            }),
          [Symbol.dispose]: () => {
            secret.wipe()
          },
        }
      })
    },
  }
}
