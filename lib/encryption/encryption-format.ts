// What an encryption format is. Each is one file (luks-format.ts, gocryptfs-format.ts), partition.ts lists them, and nobody
// else asks which one an image has. docs/architecture.md, "Formats", follows the data.
import type { KeyObject } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import type { LuksPolicy } from "../device/luks-header.ts"
import type { ContainerError } from "../errors.ts"
import type { Secret } from "../key/secret.ts"
import type { NativeBuildCipher, NativeCipher, NativeKdf, NativeRange } from "../native/binding.ts"
import type { SifObject, SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import type { Credential } from "./credentials.ts"

/** How an image is encrypted: LUKS2 around its squashfs, or gocryptfs as Apptainer's ordinary users have it. */
export type EncryptionFormat = "luks" | "gocryptfs"

/** An encryption format. */
export interface Format {
  /** As messages call it. */
  readonly name: string
  /** SIF's number for a root file system in it. */
  readonly fileSystem: number
  /** What stretches a passphrase where the caller has no choice. */
  readonly ownKdf?: string
  /** Is it what encrypts this partition? */
  isIn(partition: SifPartition): boolean
  /** Starts loading what opening takes, while its caller reads headers and keys. */
  prepare?(): void
  /** @throws ContainerError: it cannot have these. */
  checkRecipients?(recipients: readonly Credential[]): void
  /**
   * Draws a new data key.
   *
   * @param wrap - Called once, with what RSA recipients get.
   * @throws LuksError `ERR_LUKS_FORMAT`; EnvironmentError.
   */
  create(openers: Openers, wrap: (from: MessageSecret) => readonly CryptoMessage[]): Promise<NewPartition>
  /** Reads what a secret opens and anybody can see, and checks it before any key derivation. */
  readLock(image: SifImage, partition: SifPartition, policy: LuksPolicy): Promise<Lock>
}

/** What opens a partition. */
export interface Openers {
  /** Is there an RSA recipient? */
  readonly rsa: boolean
  readonly passphrases: readonly Uint8Array[]
  /** Of these. */
  readonly kdf: NativeKdf
}

/** What crypto messages are made of, besides their recipients. */
export interface MessageSecret {
  readonly secret: Uint8Array
  /** Names what the secret opens. */
  readonly mark: string
}

/** A crypto message object. */
export interface CryptoMessage {
  /** The recipient's fingerprint; empty for an anonymous one. */
  readonly name: string
  readonly data: Buffer
  readonly extra: Buffer
}

/** What makes an encrypted partition. */
export interface NewPartition {
  /** Stands before the encrypted data; mostly zeros, to be written with holes. */
  readonly header: Buffer
  /** With the data key, which the caller wipes. */
  readonly cipher: NativeBuildCipher
  /** One for each RSA recipient, in their order. */
  readonly messages: readonly CryptoMessage[]
}

/** A program that can open an image with a recipient's credential. The peers need root for LUKS2. */
export type Reader = "sifcrypt" | "apptainer" | "singularity" | "cryptsetup"

/** What a reader has to do for a secret. */
export interface SecretCost {
  /** In LUKS2; undefined where it cannot be told without a key. */
  readonly keyslot: number | undefined
  readonly kdf: string | undefined
  readonly cost: string | undefined
}

/** The LUKS2 side of an encrypted image; its header is readable without a key. */
export interface LuksFacts {
  /** As cryptsetup names it: `aes-xts-plain64`. */
  readonly cipher: string
  /** Bytes: 64 is AES-256-XTS. */
  readonly keySize: Bytes
  readonly sectorSize: Bytes
  readonly keyslots: readonly { readonly id: number; readonly kdf: string; readonly cost: string }[]
}

/** The gocryptfs side of an encrypted image; its configuration is readable without a key. */
export interface GocryptfsFacts {
  /** In OpenSSL's notation; 128-bit IVs, blocks of 4096 bytes, each authenticated. */
  readonly cipher: "aes-256-gcm"
  readonly kdf: "scrypt"
  readonly cost: string
}

/** What a partition's encryption makes of secrets, as it was read: a LUKS2 header, or a gocryptfs configuration. */
export interface Lock {
  readonly format: Format
  /** What the crypto messages that count are marked with: a message with another mark opens nothing. */
  readonly marks: ReadonlySet<string>
  readonly facts: { readonly luks?: LuksFacts; readonly gocryptfs?: GocryptfsFacts }
  /** Programs besides ours that open the first RSA recipient's message, and a passphrase. */
  readonly rsaReaders: readonly Reader[]
  readonly passphraseReaders: readonly Reader[]
  /** Of a message's secret. */
  messageCost(message: SifObject): SecretCost
  /** Of each passphrase, given the messages that count. */
  passphraseCosts(current: readonly SifObject[]): readonly SecretCost[]
  /**
   * How long {@link open} may take here for a secret of this mark, measured by a short derivation of the same kind; undefined: no
   * longer than what we make ourselves.
   */
  derivationTime(mark?: string): Promise<Milliseconds | undefined>
  /** Of a passphrase's keyslot, with all that it takes to open with it. */
  keyslotFingerprint(keyslot: number): Promise<string | undefined>
  /**
   * undefined: it does not open with this one.
   *
   * @param mark - Names what the secret is for, where its message says so; nothing else is tried then.
   */
  open(secret: Uint8Array, mark?: string): Promise<Unlocked | undefined>
  /**
   * The same, of what a process of this user holds that has opened it with the same secret; for a secret that is random.
   *
   * @param find - By {@link HeldKey.id}.
   */
  openHeld?(secret: Uint8Array, mark: string | undefined, find: FindHeldKey): Unlocked | undefined
  /** No passphrase opened. */
  wrongPassphrase(origins: string): ContainerError
  /** A crypto message was for the key that was given, but what it holds does not open. */
  staleMessage(message: number): ContainerError
}

/** A data key for those who have the secret that opened it, which is random: without it this says nothing. */
export interface HeldKey {
  /** Who has the secret finds it by this. */
  readonly id: string
  readonly sealed: Uint8Array
}

export type FindHeldKey = (id: string) => Uint8Array | undefined

/** An encrypted partition that was opened: what both engines need to read it. Owned by who asked for it. */
export interface Unlocked {
  readonly lock: Lock
  /** What encrypts the data. */
  readonly dataKey: Secret
  /** For others with the same secret. */
  held?: HeldKey | undefined
  /** The data key in it is borrowed. */
  readonly cipher: NativeCipher
  /** Where the data lies in the partition; undefined: all of it is data. */
  readonly segment: NativeRange["segment"]
  /** The cipher in dm-crypt's notation, where it is one that user space cannot read. */
  readonly kernelOnly: string | undefined
  /** What dm-crypt is told; undefined: no kernel reads it. */
  readonly dmCrypt: { readonly metadata: Uint8Array; readonly areaSize: Bytes } | undefined
  /** Keyslots that neither the secret nor one of these messages opened. */
  otherKeyslots(messages: readonly SifObject[]): readonly number[]
  change(opened: OpenedForChange): LockChange
}

/** An opened partition, and how it came to that. */
export interface Opening {
  readonly unlocked: Unlocked
  /** The passphrase, or what the crypto message held. Owned by who asked for it. */
  readonly secret: Secret
  /** The crypto message that held the secret, and whose it is; undefined when a passphrase opened. */
  readonly recipient: { readonly message: SifObject; readonly key: KeyObject } | undefined
}

/** How an image that will be changed was opened. */
export interface OpenedForChange extends Pick<Opening, "secret" | "recipient"> {
  /** Open for writing, and locked. */
  readonly file: FileHandle
  /** The crypto messages that count. */
  readonly messages: readonly SifObject[]
}

/** What opens an image after a change, besides the passphrases that stay. */
export interface NewLock extends Openers {
  /** Keyslots of passphrases that go. */
  readonly remove: readonly number[]
}

/** A change that was prepared in memory; of no use to messages where there is none to write. Disposing forgets the secret. */
export interface PreparedChange extends MessageSecret, Disposable {
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

/** The squashfs in a partition as the native side reads it. It borrows the key. */
export function plainRange(
  { fd }: { readonly fd: number },
  { offset, size, verity }: Pick<SifPartition, "offset" | "size" | "verity">,
  unlocked?: Unlocked,
): NativeRange {
  return { fd, offset, size, verity, segment: unlocked?.segment, cipher: unlocked?.cipher }
}
