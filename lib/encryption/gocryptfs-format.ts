// gocryptfs: one password, which all RSA recipients share or which is a passphrase. Its configuration is replaced by one
// write within one block of 4096 bytes: where it lies otherwise, it is not replaced.
import { randomFillSync } from "node:crypto"
import {
  describeScrypt,
  findConfig,
  makeGocryptfs,
  MAX_PASSWORD_SIZE,
  PASSPHRASE_SCRYPT,
  RANDOM_SECRET_SCRYPT,
  readGocryptfsLayer,
  rewrapGocryptfs,
  scryptTime,
  unlockGocryptfs,
  type ConfigPlace,
  type GocryptfsLayer,
} from "../device/gocryptfs.ts"
import { madeOf } from "../disposal.ts"
import { GocryptfsError, KeyError } from "../errors.ts"
import { Secret } from "../key/secret.ts"
import { FileSystem, type SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { writeFully } from "../sif/write.ts"
import type { Bytes } from "../units.ts"
import {
  plainRange,
  type Format,
  type Lock,
  type LockChange,
  type OpenedForChange,
} from "./encryption-format.ts"

const BLOCK_SIZE: Bytes = 4096
/** Random bytes behind the hexadecimal digits that the peers use as password. */
const PASSWORD_ENTROPY: Bytes = 16
const LINE_END = 0x0a

export const gocryptfs: Format = {
  name: "gocryptfs",
  fileSystem: FileSystem.gocryptfsSquashfs,
  ownKdf: "scrypt",

  isIn({ partition }): boolean {
    return partition.fileSystem === FileSystem.gocryptfsSquashfs
  },

  checkRecipients(recipients): void {
    const passphrases = recipients.flatMap((one) => (one.kind === "passphrase" ? [one] : []))
    const refuse = (what: string): never => {
      throw new GocryptfsError("ERR_GOCRYPTFS_RECIPIENTS", what)
    }
    if (passphrases.length > 1) refuse("gocryptfs has one password: two passphrases cannot open one image")
    if (passphrases.length > 0 && passphrases.length < recipients.length)
      refuse("gocryptfs has one password: RSA keys and a passphrase cannot open one image")
    for (const { passphrase, origin } of passphrases) {
      if (passphrase.bytes.includes(LINE_END))
        refuse(
          `${origin}: gocryptfs takes a passphrase up to its first line end, and this one has one inside`,
        )
      if (passphrase.length > MAX_PASSWORD_SIZE)
        refuse(`${origin}: gocryptfs takes at most ${MAX_PASSWORD_SIZE} bytes of passphrase`)
    }
  },

  async create({ passphrases: [passphrase] }, wrap) {
    using password = passphrase === undefined ? randomPassword() : new Secret(passphrase)
    const cost = passphrase === undefined ? RANDOM_SECRET_SCRYPT : PASSPHRASE_SCRYPT
    const { config, mark, contentKey, file } = await makeGocryptfs(password.bytes, cost)
    try {
      const messages = wrap({ secret: password.bytes, mark })
      return {
        header: Buffer.alloc(0),
        cipher: { type: "gocryptfs", key: contentKey, file, config },
        messages,
      }
    } catch (error) {
      contentKey.fill(0)
      throw error
    }
  },

  async readLock(image, partition, { limits }) {
    const layer = await readGocryptfsLayer(plainRange(image, partition), image.path, limits)
    return gocryptfsLock({ image, partition, layer })
  },
}

/** 32 lower-case hexadecimal digits: what the peers wrap. Never a string, which could not be wiped. */
function randomPassword(): Secret {
  using entropy = new Secret(new Uint8Array(PASSWORD_ENTROPY))
  randomFillSync(entropy.bytes)
  const digits = Buffer.from("0123456789abcdef", "latin1")
  const password = new Secret(new Uint8Array(2 * PASSWORD_ENTROPY))
  for (const [i, byte] of entropy.bytes.entries()) {
    password.bytes[2 * i] = digits[byte >> 4] ?? 0
    password.bytes[2 * i + 1] = digits[byte & 15] ?? 0
  }
  return password
}

/** An outer squashfs and where it lies. */
interface Place {
  readonly image: SifImage
  readonly partition: SifPartition
  readonly layer: GocryptfsLayer
}

function gocryptfsLock(place: Place): Lock {
  const { config, file } = place.layer
  const { path } = place.image
  const cost = { keyslot: undefined, kdf: "scrypt", cost: describeScrypt(config) } as const
  const lock: Lock = {
    format: gocryptfs,
    marks: new Set([config.mark]),
    facts: { gocryptfs: { cipher: "aes-256-gcm", kdf: cost.kdf, cost: cost.cost } },
    rsaReaders: ["apptainer"],
    passphraseReaders: ["apptainer"],
    messageCost: () => cost,
    // One password: a passphrase where it is not the RSA recipients'.
    passphraseCosts: (current) => (current.length === 0 ? [cost] : []),
    derivationTime: () => scryptTime(config),
    keyslotFingerprint: () => Promise.resolve(undefined),

    async open(secret, mark) {
      if (mark !== undefined && mark !== config.mark) return undefined
      const contentKey = await unlockGocryptfs(config, secret)
      if (contentKey === undefined) return undefined
      let dataKey: Secret
      try {
        dataKey = new Secret(contentKey)
      } finally {
        contentKey.fill(0)
      }
      return {
        lock,
        dataKey,
        segment: undefined,
        kernelOnly: undefined,
        dmCrypt: undefined,
        get cipher() {
          return { type: "gocryptfs", key: dataKey.bytes, file } as const
        },
        otherKeyslots: () => [],
        change: (opened) => gocryptfsChange(place, opened),
      }
    },

    wrongPassphrase: (origins) =>
      GocryptfsError.at(path, "ERR_GOCRYPTFS_PASSPHRASE", `wrong passphrase (${origins})`),
    staleMessage: (message) =>
      GocryptfsError.at(
        path,
        "ERR_GOCRYPTFS_CONFIG",
        `the secret in crypto message ${message} does not open the configuration: one of the two was replaced`,
      ),
  }
  return lock
}

function gocryptfsChange(
  { image, partition, layer }: Place,
  { file, secret, recipient }: OpenedForChange,
): LockChange {
  const { path } = image
  // Whatever messages there are: it is the password.
  const passphrase = recipient === undefined
  const impossible = (what: string): never => {
    throw GocryptfsError.at(path, "ERR_GOCRYPTFS_RECIPIENTS", what)
  }

  const findPlace = async (): Promise<ConfigPlace> => {
    const place = await findConfig(plainRange(image, partition), path)
    if (place === undefined)
      return impossible("its gocryptfs.conf is compressed with other data, and cannot be replaced in place")
    const offset = partition.offset + place.offset
    if (Math.floor(offset / BLOCK_SIZE) !== Math.floor((offset + place.size - 1) / BLOCK_SIZE))
      return impossible("its gocryptfs.conf lies across two blocks, and cannot be replaced in one write")
    return { offset, size: place.size }
  }

  return {
    passphrases: passphrase ? [0] : [],
    openedBy: passphrase ? 0 : undefined,

    requirePassphrase() {
      throw KeyError.at(path, "ERR_KEY_RECIPIENT", "a gocryptfs image has no keyslots")
    },

    async replace({ rsa, passphrases }) {
      if (passphrases.length > 0)
        impossible("a gocryptfs image has one password: a passphrase cannot be added to it")
      if (passphrase) {
        if (rsa)
          impossible(
            "a gocryptfs image has one password, here a passphrase: an RSA recipient would have to be told it",
          )
        return { secret: Buffer.alloc(0), mark: "", write: undefined, [Symbol.dispose]: () => undefined }
      }
      const place = await findPlace()
      const password = randomPassword()
      return await madeOf(password, async () => {
        const written = await rewrapGocryptfs(
          layer.config,
          secret.bytes,
          password.bytes,
          RANDOM_SECRET_SCRYPT,
          place.size,
        )
        if (written === undefined)
          return impossible(`its gocryptfs.conf has ${place.size} bytes, and another one needs more`)
        return {
          secret: password.bytes,
          mark: written.mark,
          write: async () => {
            await writeFully(file, written.config, place.offset)
            await file.sync()
          },
          [Symbol.dispose]: () => {
            password.wipe()
          },
        }
      })
    },
  }
}
