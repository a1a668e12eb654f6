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

/** A change that was prepared in memory. Disposing forgets the secret. */
export interface PreparedChange extends Disposable {
  /** What crypto messages shall hold; empty where there is none to write. */
  readonly secret: Uint8Array
  /** What they are marked with; undefined beside messages of a peer for another keyslot, which have no mark. */
  readonly mark: string | undefined
  /** The commit: from its first write on, the image opens as the change wants it. undefined: nothing has to be written. */
  readonly write: (() => Promise<void>) | undefined
}

/** How an encrypted partition takes and loses secrets. Nothing is written before {@link PreparedChange.write}. */
export interface LockChange {
  /** Does a passphrase open the image? */
  readonly hasPassphrase: boolean
  /**
   * For new recipients: that many RSA keys, and these passphrases.
   *
   * @throws KeyError, GocryptfsError when the format cannot have them.
   */
  add(rsa: number, passphrases: readonly Uint8Array[], kdf: NativeKdf): Promise<PreparedChange>
  /** A new secret in place of the one that the RSA recipients share; with `needed` false, none. */
  replace(needed: boolean): Promise<PreparedChange>
  /** @throws KeyError `ERR_KEY_RECIPIENT`. */
  removeKeyslot(keyslot: number): Promise<PreparedChange>
}
