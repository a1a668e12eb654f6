// gocryptfs: one password, which all RSA recipients share or which is a passphrase. Its configuration is replaced by one
// write within one block of 4096 bytes: where it lies otherwise, it is not replaced.
import { randomGocryptfsPassword } from "./encrypt.ts"
import { findConfig, RANDOM_SECRET_SCRYPT, rewrapGocryptfs, type ConfigPlace } from "../device/gocryptfs.ts"
import { GocryptfsError, KeyError } from "../errors.ts"
import { writeFully } from "../sif/write.ts"
import type { Bytes } from "../units.ts"
import type { LockChange, OpenedForChange, PreparedChange } from "./lock-change.ts"
import { plainRange, type UnlockedGocryptfs } from "./unlock.ts"

const BLOCK_SIZE: Bytes = 4096

/** Changes of a gocryptfs configuration. */
export function gocryptfsLockChange(opened: OpenedForChange<UnlockedGocryptfs>): LockChange {
  const { image, file, partition, opening } = opened
  const { path } = image
  const { config } = opening.unlocked
  // Whatever messages there are: it is the password.
  const passphrase = opening.recipient === undefined
  const impossible = (what: string): never => {
    throw new GocryptfsError("ERR_GOCRYPTFS_RECIPIENTS", `${path}: ${what}`, { path })
  }

  const findPlace = async (): Promise<ConfigPlace> => {
    const place = await findConfig(plainRange(image, partition, undefined), path)
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

    requirePassphrase(): never {
      throw new KeyError("ERR_KEY_RECIPIENT", `${path}: a gocryptfs image has no keyslots`, { path })
    },

    async replace({ rsa, passphrases }): Promise<PreparedChange> {
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
      const password = randomGocryptfsPassword()
      try {
        const written = await rewrapGocryptfs(
          config,
          opening.secret.bytes,
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
      } catch (error) {
        password.wipe()
        throw error
      }
    },
  }
}
