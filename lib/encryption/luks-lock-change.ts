// LUKS2: the RSA recipients' secret has a keyslot, and so has each passphrase.
import { randomFillSync } from "node:crypto"
import { applyLuksSteps, type LuksChange } from "../device/luks-change.ts"
import type { LuksHeader } from "../device/luks-header.ts"
import { changeKeyslots, RANDOM_SECRET_KDF, type LuksChangeOptions } from "../device/luks.ts"
import { KeyError } from "../errors.ts"
import { Secret } from "../key/secret.ts"
import { messageMark, type SifObject } from "../sif/format.ts"
import type { LockChange, OpenedForChange, PreparedChange } from "./lock-change.ts"
import type { UnlockedLuks } from "./unlock.ts"

const SECRET_SIZE = 64

/** The keyslot of a message; an unmarked one's is known if there is one only. */
export function keyslotOf(message: SifObject, { keyslots }: LuksHeader): number | undefined {
  const mark = messageMark(message.extra)
  if (mark !== undefined) return keyslots.find((keyslot) => keyslot.mark === mark)?.id
  return keyslots.length === 1 ? keyslots[0]?.id : undefined
}

/** The keyslots that the RSA recipients' secrets open. */
function rsaKeyslots({ image, messages, opening }: OpenedForChange<UnlockedLuks>): number[] {
  const { header, keyslot } = opening.unlocked
  const { keyslots } = header
  if (messages.length === 0) return []
  const known = new Set<number>(opening.recipient === undefined ? [] : [keyslot])
  const unmarked = messages.filter(({ extra }) => messageMark(extra) === undefined)
  for (const message of messages) {
    const id = keyslotOf(message, header)
    if (id !== undefined) known.add(id)
  }
  if (unmarked.length === 0 || known.size > 0) return [...known]
  // A passphrase opened, and a peer made the messages: the other keyslot is theirs if there is one only.
  const [other, another] = keyslots.filter(({ id }) => id !== keyslot)
  if (other === undefined || another !== undefined)
    throw new KeyError(
      "ERR_KEY_MISSING",
      `${image.path}: which of ${keyslots.length} keyslots is for the RSA recipients can only be told with a private key`,
      { path: image.path },
    )
  return [other.id]
}

function markOf({ keyslots }: LuksHeader, id: number | undefined): string {
  const keyslot = keyslots.find((one) => one.id === id)
  if (keyslot === undefined) throw new TypeError("no such keyslot")
  return keyslot.mark
}

function freshSecret(): Secret {
  const secret = new Secret(Buffer.alloc(SECRET_SIZE))
  randomFillSync(secret.bytes)
  return secret
}

/** Changes of a LUKS2 header. */
export function luksLockChange(opened: OpenedForChange<UnlockedLuks>): LockChange {
  const { image, file, partition, opening, messages } = opened
  const { header, volumeKey, keyslot: openedBy } = opening.unlocked
  const refuse = (what: string): never => {
    throw new KeyError("ERR_KEY_RECIPIENT", `${image.path}: ${what}`, { path: image.path })
  }
  const change = async (
    add: NonNullable<LuksChangeOptions["add"]>,
    remove: readonly number[],
  ): Promise<LuksChange> => await changeKeyslots({ header, volumeKey: volumeKey.bytes, add, remove })
  const writing =
    ({ steps }: LuksChange) =>
    async (): Promise<void> => {
      await applyLuksSteps(file, partition.offset, steps)
    }

  return {
    get hasPassphrase(): boolean {
      return header.keyslots.length > rsaKeyslots(opened).length
    },

    async add(rsa, passphrases, kdf): Promise<PreparedChange> {
      const own = rsa > 0 && opening.recipient === undefined ? freshSecret() : undefined
      const keyslots = [
        ...(own === undefined ? [] : [{ secret: own.bytes, kdf: RANDOM_SECRET_KDF }]),
        ...passphrases.map((secret) => ({ secret, kdf })),
      ]
      try {
        const changed = keyslots.length === 0 ? undefined : await change(keyslots, [])
        const unmarked = messages.some(({ extra }) => messageMark(extra) === undefined)
        const mark =
          own === undefined ? markOf(header, openedBy) : markOf(changed?.header ?? header, changed?.added[0])
        return {
          secret: (own ?? opening.secret).bytes,
          // Beside messages without a mark none may have one, unless all are for the same keyslot and get it.
          mark: unmarked && opening.recipient === undefined ? undefined : mark,
          write: changed === undefined ? undefined : writing(changed),
          [Symbol.dispose]: () => own?.wipe(),
        }
      } catch (error) {
        own?.wipe()
        throw error
      }
    },

    async replace(needed): Promise<PreparedChange> {
      const secret = freshSecret()
      try {
        const changed = await change(
          needed ? [{ secret: secret.bytes, kdf: RANDOM_SECRET_KDF }] : [],
          rsaKeyslots(opened),
        )
        return {
          secret: secret.bytes,
          mark: needed ? markOf(changed.header, changed.added[0]) : undefined,
          write: writing(changed),
          [Symbol.dispose]: () => {
            secret.wipe()
          },
        }
      } catch (error) {
        secret.wipe()
        throw error
      }
    },

    async removeKeyslot(keyslot): Promise<PreparedChange> {
      if (!header.keyslots.some(({ id }) => id === keyslot)) refuse(`there is no keyslot ${keyslot}`)
      if (rsaKeyslots(opened).includes(keyslot)) refuse(`keyslot ${keyslot} belongs to the RSA recipients`)
      if (header.keyslots.length === 1) refuse(`keyslot ${keyslot} is all that opens it`)
      return {
        secret: Buffer.alloc(0),
        mark: undefined,
        write: writing(await change([], [keyslot])),
        [Symbol.dispose]: () => undefined,
      }
    },
  }
}
