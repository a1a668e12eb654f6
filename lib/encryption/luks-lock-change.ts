// LUKS2: the RSA recipients' secret has a keyslot, and so has each passphrase.
import { randomFillSync } from "node:crypto"
import { applyLuksSteps } from "../device/luks-change.ts"
import type { LuksHeader } from "../device/luks-header.ts"
import { changeKeyslots, RANDOM_SECRET_KDF } from "../device/luks.ts"
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

/** The keyslots that the RSA recipients' secrets open. Never the one that a passphrase opened, whatever a message says. */
function rsaKeyslots({ image, messages, opening }: OpenedForChange<UnlockedLuks>): number[] {
  const { header, keyslot } = opening.unlocked
  if (messages.length === 0) return []
  const others = header.keyslots.flatMap(({ id }) => (id === keyslot ? [] : [id]))
  const known = new Set<number>(opening.recipient === undefined ? [] : [keyslot])
  for (const message of messages) {
    const id = keyslotOf(message, header)
    if (id !== undefined && others.includes(id)) known.add(id)
  }
  const isUnmarked = ({ extra }: SifObject): boolean => messageMark(extra) === undefined
  if (!messages.some(isUnmarked) || known.size > 0) return [...known]
  // A passphrase opened, and a peer made the messages: the other keyslot is theirs if there is one only.
  if (others.length > 1)
    throw new KeyError(
      "ERR_KEY_MISSING",
      `${image.path}: which of ${header.keyslots.length} keyslots is for the RSA recipients can only be told with a private key`,
      { path: image.path },
    )
  return others
}

function freshSecret(): Secret {
  const secret = new Secret(Buffer.alloc(SECRET_SIZE))
  randomFillSync(secret.bytes)
  return secret
}

/** Changes of a LUKS2 header. */
export function luksLockChange(opened: OpenedForChange<UnlockedLuks>): LockChange {
  const { image, file, partition, opening } = opened
  const { header, volumeKey, keyslot: openedBy } = opening.unlocked
  const ofRsa = rsaKeyslots(opened)
  const refuse = (what: string): never => {
    throw new KeyError("ERR_KEY_RECIPIENT", `${image.path}: ${what}`, { path: image.path })
  }

  return {
    passphrases: header.keyslots.flatMap(({ id }) => (ofRsa.includes(id) ? [] : [id])),
    openedBy: opening.recipient === undefined ? openedBy : undefined,

    requirePassphrase(keyslot): void {
      if (!header.keyslots.some(({ id }) => id === keyslot)) refuse(`there is no keyslot ${keyslot}`)
      if (ofRsa.includes(keyslot)) refuse(`keyslot ${keyslot} belongs to the RSA recipients`)
    },

    async replace({ rsa, passphrases, kdf, remove }): Promise<PreparedChange> {
      const secret = freshSecret()
      try {
        const add = [
          ...(rsa ? [{ secret: secret.bytes, kdf: RANDOM_SECRET_KDF }] : []),
          ...passphrases.map((passphrase) => ({ secret: passphrase, kdf })),
        ]
        const gone = [...ofRsa, ...remove]
        const changed =
          add.length + gone.length === 0
            ? undefined
            : await changeKeyslots({ header, volumeKey: volumeKey.bytes, add, remove: gone })
        const added = changed?.header.keyslots.find(({ id }) => id === changed.added[0])
        return {
          secret: secret.bytes,
          mark: added?.mark ?? "",
          write:
            changed &&
            (async (): Promise<void> => {
              await applyLuksSteps(file, partition.offset, changed.steps)
            }),
          [Symbol.dispose]: () => {
            secret.wipe()
          },
        }
      } catch (error) {
        secret.wipe()
        throw error
      }
    },
  }
}
