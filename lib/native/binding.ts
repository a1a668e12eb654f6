// Types of the addon's exports (native/addon.cc). Internal: lib/device turns these into handles and meanings.

/** How a range of a file is encrypted. Of each the type, the key, and what else there is to it. */
export type NativeCipher = NativeXtsCipher | NativeGocryptfsCipher

/** As a LUKS2 data segment: dm-crypt's aes-xts-plain64. */
export interface NativeXtsCipher {
  readonly type: "xts"
  /** 32 or 64 bytes; the callee copies. */
  readonly key: Uint8Array
  /** Bytes, 512 to 4096. */
  readonly sectorSize: number
  /** In 512-byte units. */
  readonly ivTweak: number
}

/** As gocryptfs encrypts a file's content with AES-256-GCM. The range is a squashfs that holds the file. */
export interface NativeGocryptfsCipher {
  readonly type: "gocryptfs"
  /** 32 bytes, what is derived from the master key; the callee copies. */
  readonly key: Uint8Array
  /** The file's name in the squashfs's root. */
  readonly file: string
}

/** The same, to be written: also the squashfs around it, with the configuration as `gocryptfs.conf`. */
export interface NativeGocryptfsBuild extends NativeGocryptfsCipher {
  /** At most 64 KiB; the callee copies. */
  readonly config: Uint8Array
}

/** How a range is to be encrypted. */
export type NativeBuildCipher = NativeXtsCipher | NativeGocryptfsBuild

/** The hash tree of a part of a file, in the same file: dm-verity's, version 1, SHA-256, blocks of 4096 bytes. */
export interface NativeVerity {
  /** Bytes. */
  readonly offset: number
  readonly size: number
  /** 32 bytes each. */
  readonly salt: Uint8Array
  readonly root: Uint8Array
}

/** A part of an open file, in the order of these: verified, cut, deciphered. native/core/image_range.h is the same. */
export interface NativeRange {
  readonly fd: number
  /** Bytes. */
  readonly offset: number
  /** Bytes. */
  readonly size: number
  /** Each block of it that is read is verified first. EIO, "verity_read": it was changed. */
  readonly verity?: NativeVerity | undefined
  /** Which part of it counts, from its start; default: all. */
  readonly segment?: { readonly offset: number; readonly size: number } | undefined
  readonly cipher: NativeCipher | undefined
}

export interface NativeKdf {
  readonly type: "pbkdf2" | "argon2i" | "argon2id"
  readonly iterations: number
  /** KiB; 0 for PBKDF2. */
  readonly memory: number
  /** Threads; 0 for PBKDF2. */
  readonly parallel: number
}

export interface NativeLuksFormat {
  /** Bytes of the volume key: 32 or 64. */
  readonly volumeKeySize: number
  readonly sectorSize: number
  /** Bytes up to the data segment; the header that is returned is this long. */
  readonly headerSize: number
  readonly keyslots: readonly { readonly secret: Uint8Array; readonly kdf: NativeKdf }[]
}

export interface NativeLuksUnlock {
  readonly fd: number
  /** The partition, at the start of which is the LUKS2 header; bytes. */
  readonly offset: number
  readonly size: number
  /** As in {@link NativeRange}. */
  readonly verity?: NativeVerity | undefined
  /** Bytes of header and keyslots area together. */
  readonly areaSize: number
  /** The metadata that was checked, copied over the start of what is read; its other copy must be zeroed. */
  readonly metadata: Uint8Array
  readonly secret: Uint8Array
  /** Which keyslot to try; -1 for any. */
  readonly keyslot: number
}

export interface NativeLuksAdd {
  /** Bytes of header and keyslots area together, at most 64 MiB: new keyslots find their place in it. */
  readonly areaSize: number
  /** The metadata that was checked, as for {@link NativeLuksUnlock}. */
  readonly metadata: Uint8Array
  readonly volumeKey: Uint8Array
  readonly keyslots: readonly { readonly secret: Uint8Array; readonly kdf: NativeKdf }[]
}

/** A keyslot as libcryptsetup made it. */
export interface NativeLuksKeyslot {
  readonly keyslot: number
  /** Where its area starts, from the start of the header, bytes. */
  readonly offset: number
  /** What belongs there. */
  readonly area: Buffer
}

/** What an inode is. */
export type TreeEntryType =
  "file" | "directory" | "symlink" | "block-device" | "character-device" | "fifo" | "socket"

/** One inode. */
export interface NativeStat {
  readonly inode: number
  readonly type: TreeEntryType
  /** Permission bits and setuid, setgid, sticky: 0 to 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly nlink: number
  /** Seconds since 1970. */
  readonly mtime: number
  /** Bytes of a file, length of a symlink's target. */
  readonly size: number
  readonly rdev: number
  /** Of a symlink. */
  readonly target?: Buffer
}

/** One of a folder. */
export interface NativeTreeEntry {
  /** Bytes; they need not be UTF-8. */
  readonly name: Buffer
  readonly stat: NativeStat
}

/** A folder with what is in it. */
export interface NativeFolder {
  /** From where the walk started, without a slash at either end; bytes. */
  readonly path: Buffer
  readonly entries: readonly NativeTreeEntry[]
}

/** A squashfs opened for reading. Every promise may reject with a system error (errno, code, syscall). */
export interface NativeTree {
  /** Follows symbolic links inside the image (at most 40, never out of it) except the last one unless `follow`. */
  stat(path: string | Buffer, follow: boolean): Promise<NativeStat>
  /** Entries in directory order. */
  list(path: string | Buffer): Promise<NativeTreeEntry[]>
  /**
   * The folders at and below `path`, one for each call, a folder before what is in it.
   * undefined: that was all. What no real tree has is EBADMSG, as in `extract`.
   */
  walk(path: string | Buffer): () => Promise<NativeFolder | undefined>
  /** At most `length` bytes at `position`; shorter only at the end. */
  read(path: string | Buffer, position: number, length: number): Promise<Buffer>
  /** Where in the range a file's content lies, decrypted, if all of it is stored as it is and in one piece. */
  storedAt(path: string | Buffer): Promise<number | undefined>
  /** Bytes that the range has, decrypted. */
  readonly plainSize: number
  /** Bytes that the squashfs itself says it has, padded to 4096; more than `plainSize` where the padding is missing. */
  readonly squashfsSize: number
  /** At most `length` (16 MiB) of the plaintext, also behind the squashfs; shorter only at its end. */
  readPlain(position: number, length: number): Promise<Buffer>
  xattrs(path: string): Promise<{ readonly name: string; readonly value: Buffer }[]>
  /**
   * Writes `path` and all below it into the folder `target`, which exists. `onProgress` gets bytes written so far;
   * returning false stops it (ECANCELED).
   */
  extract(
    options: {
      readonly path: Buffer
      readonly target: string
      /** Keep owners and device nodes (root only). */
      readonly preserveOwner: boolean
      /** An empty target becomes the folder, with its attributes. */
      readonly fill: boolean
      /** Keep setuid and setgid bits also where owners are not kept. */
      readonly keepModes?: boolean
    },
    onProgress: (bytes: number) => boolean,
  ): Promise<{ readonly entries: number; readonly bytes: number }>
  /** Idempotent; forgets the key. */
  close(): void
}

/** What is written into a tree besides what its source has. Root's. */
export interface NativeAddedEntry {
  /** Without a leading slash. Folders come before what is in them. */
  readonly path: string
  readonly type: "file" | "directory" | "symlink"
  /** Permission bits. */
  readonly mode: number
  /** Seconds since 1970. */
  readonly mtime: number
  /** Of a file. */
  readonly content?: Uint8Array
  /** Of a symlink. */
  readonly target?: string
  /** What the source has by this name stays; else it is replaced. A folder over a folder adds to it in either case. */
  readonly keep: boolean
}

/** Bytes in a file; with `archive`, in the content of a compressed file. */
export interface NativeBlob {
  readonly fd: number
  readonly offset: number
  readonly size: number
  /** How `storedSize` bytes are encrypted, of which `size` count. */
  readonly cipher?: NativeXtsCipher
  readonly storedSize?: number
  /** `fileSize` bytes that hold `size` bytes. */
  readonly archive?: { readonly fileSize: number; readonly size: number }
  /** All of it is deciphered with AES-256-CTR, as layers of OCI images are encrypted. 32 and 16 bytes; the callee copies. */
  readonly counter?: { readonly key: Uint8Array; readonly iv: Uint8Array }
}

/** A layer of an image: tar, plain, gzip or zstd. */
export interface NativeLayer {
  readonly blob: NativeBlob
  /** For messages. */
  readonly name: string
  /** Of the blob; undefined where nobody says. 32 bytes are SHA-256, 64 are SHA-512. */
  readonly digest: Uint8Array | undefined
  /** Of its content uncompressed. */
  readonly diffId: Uint8Array
}

/** A tar archive's content. */
export interface NativeArchive {
  readonly compressed: boolean
  /** Uncompressed. */
  readonly size: number
  readonly members: readonly {
    readonly path: string
    readonly type: "file" | "link" | "symlink" | "other"
    /** Of both kinds of links. */
    readonly target: string
    /** In the uncompressed archive. */
    readonly offset: number
    readonly size: number
  }[]
}

export interface NativeBuild {
  /**
   * A folder's path; the layers of an image, which are verified before anything is written; or a range that holds a squashfs
   * to be copied as it is: `length` bytes of plaintext (not fewer than it has); default: what it has itself. Or any range
   * whose size is a multiple of 4096, copied as it is.
   */
  readonly source:
    | { readonly directory: string; readonly added: readonly NativeAddedEntry[] }
    | {
        /** Base first. */
        readonly layers: readonly NativeLayer[]
        readonly limits: {
          /** Of all files in the layers. */
          readonly bytes: number
          /** Of names, links and attributes. */
          readonly memory: number
        }
        readonly added: readonly NativeAddedEntry[]
      }
    | { readonly squashfs: NativeRange; readonly length?: number }
    | { readonly bytes: NativeRange }
  /** Open for reading and writing. */
  readonly fd: number
  /** Where the data starts in `fd`, bytes. */
  readonly offset: number
  readonly cipher: NativeBuildCipher | undefined
  readonly compression: "gzip" | "zstd" | "lz4" | "xz"
  /** -1: the compressor's default. */
  readonly level: number
  /** Bytes, a power of two. */
  readonly blockSize: number
  /** Worker threads; 0: one for each processor. */
  readonly threads: number
  /** Whom everything belongs to; undefined: owners are kept as they are. */
  readonly owner: { readonly uid: number; readonly gid: number } | undefined
  /** Seconds since 1970 that no time exceeds, and the image's own time; -1: none, now. */
  readonly sourceDateEpoch: number
  /** Paths inside the folder (no leading slash) that are left out. */
  readonly exclude: readonly string[]
  /** Of a folder: tell `onProgress` how much is in it, once that is known; it is added up meanwhile. */
  readonly countContent?: boolean
  /** Written behind the squashfs, which ends at a multiple of 4096; padded so itself. */
  readonly trailer?: Uint8Array | undefined
  /** Where in the trailer the length of the squashfs is put, 8 bytes, little endian. */
  readonly trailerLengthAt?: readonly number[]
}

export interface NativeAddon {
  /** Loads libcryptsetup, which the other two would do at their first call. */
  luksPrepare(): Promise<void>
  luksFormat(options: NativeLuksFormat): Promise<{ readonly header: Buffer; readonly volumeKey: Buffer }>
  luksUnlock(options: NativeLuksUnlock): Promise<{ readonly volumeKey: Buffer; readonly keyslot: number }>
  /**
   * Adds keyslots to metadata, and says what has to be written where; nothing is read from the image. Without any to add,
   * verifies the volume key. EPERM: it is another one.
   */
  luksAddKeyslots(options: NativeLuksAdd): Promise<{
    /** As long as the one given: both copies, as libcryptsetup wrote them. */
    readonly metadata: Buffer
    readonly keyslots: readonly NativeLuksKeyslot[]
  }>
  /** RFC 7292, B.2. The caller wipes what it returns. */
  derivePkcs12(options: {
    /** node:crypto's name. */
    readonly hash: string
    /** UTF-16BE with its end. */
    readonly password: Uint8Array
    readonly salt: Uint8Array
    /** 1 a key, 2 an IV, 3 a MAC's key. */
    readonly purpose: number
    readonly iterations: number
    readonly size: number
  }): Promise<Buffer>
  /** Writes a squashfs and its trailer; `size` is what all takes in `fd`, padded to 4096 bytes. `onProgress` as in extract. */
  buildTree(
    options: NativeBuild,
    onProgress: (bytes: number, total: number | undefined) => boolean,
  ): Promise<{
    readonly size: number
    readonly inputBytes: number
    readonly entries: number
    /** Extended attributes of layers that a squashfs cannot hold. */
    readonly skippedXattrs: number
  }>
  /** What is in a tar archive, compressed or not; more than `limit` bytes uncompressed are EFBIG. */
  listArchive(options: {
    readonly fd: number
    readonly size: number
    readonly limit: number
  }): Promise<NativeArchive>
  /** A part of a blob, at most 16 MiB. */
  readBlob(blob: NativeBlob, part: { readonly offset: number; readonly size: number }): Promise<Buffer>
  /**
   * Reads all of an encrypted layer's ciphertext: is it what `digest` says (true without one), and is `mac` its HMAC-SHA-256? With the
   * SHA-256 of what it deciphers to. `onProgress` gets bytes read, as in extract.
   */
  checkCiphertext(
    layer: {
      readonly blob: NativeBlob
      readonly counter: NonNullable<NativeBlob["counter"]>
      readonly mac: Uint8Array
      readonly digest: Uint8Array | undefined
    },
    onProgress: (bytes: number) => boolean,
  ): Promise<{ readonly isAuthentic: boolean; readonly matches: boolean; readonly plainDigest: Buffer }>
  /** Reads all of a layer; EBADMSG "layer_digest" if its content is not what `diffId` says, EFBIG if it has more than `limit` bytes. How many it has. */
  checkLayer(layer: Omit<NativeLayer, "digest"> & { readonly limit: number }): Promise<number>
  openTree(range: NativeRange): Promise<NativeTree>
  /** At most 16 MiB of a range as they lie in the file, verified where there is verity. */
  readStored(range: NativeRange, position: number, length: number): Promise<Buffer>
  /** Hashes a part of `fd`, writes its hash tree at `verityOffset` and returns the root. `onProgress` gets bytes hashed, as in extract. */
  writeVerity(
    options: {
      /** Open for reading and writing. */
      readonly fd: number
      readonly offset: number
      readonly size: number
      readonly verityOffset: number
      /** 32 bytes. */
      readonly salt: Uint8Array
    },
    onProgress: (bytes: number) => boolean,
  ): Promise<Buffer>
  /** Does the hash tree of a range belong to it, every block of both? */
  checkVerity(range: NativeRange, onProgress: (bytes: number) => boolean): Promise<boolean>
  /**
   * Has the server of a scratch make a tree in an empty folder there; it gets it through a file that lies beside that. Both are open.
   * False: the folder is on another file system. `onProgress` is as that of buildTree.
   */
  fillScratch(
    options: Pick<NativeBuild, "owner" | "exclude"> & {
      readonly folder: number
      readonly pieces: number
      readonly source: Exclude<
        NativeBuild["source"],
        { readonly squashfs: unknown } | { readonly bytes: unknown }
      >
    },
    onProgress: (bytes: number) => boolean,
  ): Promise<boolean>
  /** Gives an O_TMPFILE descriptor a name; an existing one is EEXIST unless `replace`. */
  publishFile(options: {
    readonly fd: number
    readonly path: string
    readonly replace: boolean
  }): Promise<void>
  /** Takes the exclusive lock (flock) of an open file; false: somebody else has it. It goes when the file is closed. */
  lockFile(fd: number): Promise<boolean>
  /**
   * Takes the lock (F_OFD_SETLK) of a range of an open file, up to any end for a `length` of 0; says who keeps it from us: a
   * writer, or nobody but `readers`, who need no write permission. `exclusive` needs a file that is open for writing.
   */
  lockRange(options: {
    readonly fd: number
    readonly start: number
    readonly length: number
    readonly exclusive: boolean
  }): Promise<"none" | "writer" | "readers">
  /** Overwrites what is not a hole in a part of a file with zeros, syncs it, and makes it a hole where that can be. */
  wipeRange(options: { readonly fd: number; readonly offset: number; readonly size: number }): Promise<void>
  unmountPath(options: { readonly path: string; readonly lazy: boolean }): Promise<void>
  /** No core dump of this process, and no look into its memory for other processes of the user. */
  forbidDumps(): void
  /**
   * Pages of their own, locked where the limit (RLIMIT_MEMLOCK) allows it, that are in no core dump and in no child. Wiped when nobody has
   * them any more.
   */
  secretMemory(options: { readonly size: number }): Buffer
  /**
   * Who has connected a socket of the machine's own (unix(7), SO_PEERCRED): as it was then, in this process's namespaces; pid 0: one that
   * is not seen from here.
   */
  peerOf(options: { readonly fd: number }): { readonly uid: number; readonly pid: number }
  /** A connection to who listens at a socket of this name in an open folder (SOCK_SEQPACKET); undefined: nobody does. */
  connectIn(options: { readonly folder: number; readonly name: string }): number | undefined
  /** _exit(2): waits for no thread, as every other way out does. */
  exitNow(options: { readonly status: number }): never
  /** Numbers of signals; patience 0: never. Those that have no handler are left alone. */
  endAfterSignals(options: {
    readonly signals: readonly number[]
    readonly patienceMs: number
    readonly withChildrenMs: number
  }): void
  /** Has free() write over what it frees, where the C library can. */
  overwriteFreed(options: { readonly on: boolean }): void
  /** The descriptor of a file in memory with these bytes, at its start. Not for secrets. */
  memoryFile(options: { readonly name: string; readonly bytes: Uint8Array }): number
  /** The descriptor of a pipe that gives these bytes (at most 4096), then its end. */
  filledPipe(options: { readonly bytes: Uint8Array }): number
  /** The descriptors of a pipe's two ends. */
  openPipe(): { readonly reader: number; readonly writer: number }
  /**
   * posix_spawn(3), with the signals' default actions; `inherited` are descriptors that the child gets besides those that were
   * never to be closed. Somebody has to wait for it.
   *
   * @returns Its process id, once it is that program.
   */
  startProgram(options: {
    readonly file: string
    readonly arguments: readonly string[]
    /** `NAME=VALUE`. */
    readonly environment: readonly string[]
    readonly inherited: readonly number[]
  }): Promise<number>
  /** Resolves when that child has ended. */
  waitForProgram(options: { readonly pid: number }): Promise<void>
  /** Signals wait from here on; the program that this process becomes gets them. */
  holdSignals(): void
  /**
   * Signals the process of this number if it started at this time (field 22 of /proc/PID/stat), and no other that has the
   * number by now. False: it has ended.
   */
  signalProcess(options: {
    readonly pid: number
    readonly startTime: string
    readonly signal: number
  }): boolean
  /**
   * execve(2), with the signals' default actions; `kept` are descriptors that stay open besides inherited ones. It comes
   * back only by throwing.
   */
  becomeProgram(options: {
    readonly file: string
    readonly arguments: readonly string[]
    /** `NAME=VALUE`. */
    readonly environment: readonly string[]
    readonly kept: readonly number[]
  }): void
  /** A pair of descriptors: a pseudo terminal in raw mode, and the end that controls it. */
  openTerminal(options: { readonly columns: number; readonly rows: number }): {
    readonly controller: number
    readonly terminal: number
  }
  setTerminalSize(options: { readonly fd: number; readonly columns: number; readonly rows: number }): void
}
