// What differs between LUKS2 and gocryptfs when the secrets that open an image change.
import type { FileHandle } from "node:fs/promises"
import type { NativeKdf } from "../native/binding.ts"
import type { SifObject, SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Opening, Unlocked } from "./unlock.ts"

/** An image that was opened with a credential, and will be changed. */
export interface OpenedForChange<U extends Unlocked = Unlocked> {
  readonly image: SifImage
  /** Open for writing, and locked. */
  readonly file: FileHandle
  readonly partition: SifPartition
  readonly opening: Opening & { readonly unlocked: U }
  /** The crypto messages that count. */
  readonly messages: readonly SifObject[]
}

/** What opens an image after a change, besides the passphrases that stay. */
export interface NewLock {
  /** Is there an RSA recipient? */
  readonly rsa: boolean
  readonly passphrases: readonly Uint8Array[]
  /** Of these. */
  readonly kdf: NativeKdf
  /** Keyslots of passphrases that go. */
  readonly remove: readonly number[]
}

/** A change that was prepared in memory. Disposing forgets the secret. */
export interface PreparedChange extends Disposable {
  /** What crypto messages shall hold, and what they are marked with; of no use where there is none to write. */
  readonly secret: Uint8Array
  readonly mark: string
  /** The commit: from its first write on, the image opens as the change wants it. undefined: nothing has to be written. */
  readonly write: (() => Promise<void>) | undefined
}

/** How an encrypted partition takes and loses secrets. Nothing is written before {@link PreparedChange.write}. */
export interface LockChange {
  /** The keyslots that passphrases open. */
  readonly passphrases: readonly number[]
  /** The keyslot that the credential opened, where that was a passphrase. */
  readonly openedBy: number | undefined
  /** @throws KeyError `ERR_KEY_RECIPIENT` for a keyslot that is not a passphrase's. */
  requirePassphrase(keyslot: number): void
  /**
   * A new secret in place of every one that the RSA recipients share: whatever of it somebody kept, or wrote into the image
   * himself, opens nothing afterwards.
   *
   * @throws KeyError, GocryptfsError when the format cannot have it.
   */
  replace(wanted: NewLock): Promise<PreparedChange>
}
