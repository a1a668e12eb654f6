// Images of a job set: found at submission, where their digests are written down, and brought to a node once, whoever of its tasks comes
// first. What a task mounts was hashed on the descriptor that it mounts.
import { createHash, randomBytes } from "node:crypto"
import { constants } from "node:fs"
import {
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  stat,
  utimes,
  writeFile,
  type FileHandle,
} from "node:fs/promises"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { openPartition } from "../encryption/unlock.ts"
import type { Credentials } from "../encryption/credentials.ts"
import { encryptionOf } from "../encryption/partition.ts"
import { thenUndone } from "../disposal.ts"
import { BatchError, ContainerError } from "../errors.ts"
import { loadAddon } from "../native/load.ts"
import { cacheFolder } from "../oci/cache.ts"
import { isHeld } from "../native/private-folder.ts"
import { isOrasName } from "../oci/reference.ts"
import { descriptorPath } from "../oci/temporary-file.ts"
import type { ClientOptions } from "../registry/client.ts"
import { RemoteSif } from "../source/remote-sif.ts"
import { openSifAs } from "../sif/open.ts"
import { requireVerified, verifySif, type VerifyOptions } from "../signing/verify.ts"
import { admitPublicKey } from "../key/admission.ts"
import { readKeyring, readSignerKey } from "../signing/keys.ts"
import { userKeyrings } from "../signing/rings.ts"
import { digestOf } from "../oci/digest.ts"
import type { Secret } from "../key/secret.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import type { ImageSettings, RegistrySettings } from "./configuration.ts"
import type { ManifestImage } from "./job-set.ts"

const PIECE: Bytes = 1 << 20
const POLL_MS: Milliseconds = 100
const FORMAT = "batch-1"

/** What tells that a file is still what it was when it was hashed. */
async function stateOf(handle: FileHandle): Promise<string> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await handle.stat({ bigint: true })
  return [dev, ino, size, mtimeNs, ctimeNs].join(":")
}

/** Is an open file what has this name? */
async function isThere(name: string, handle: FileHandle): Promise<boolean> {
  const there = await stat(name).catch(() => undefined)
  const { dev, ino } = await handle.stat()
  return there?.ino === ino && there.dev === dev
}

/**
 * An image that is a file. Nothing else is waited for: a pipe would be, for ever.
 *
 * @throws BatchError `ERR_BATCH_IMAGE` for what is no file; system errors.
 */
export async function openImageFile(name: string): Promise<FileHandle> {
  const handle = await open(name, constants.O_RDONLY | constants.O_NONBLOCK)
  if ((await handle.stat()).isFile()) return handle
  await handle.close()
  throw failed(name, "it is no file")
}

/** SHA-256 of all of an open file, hexadecimal. */
export async function hashFile(handle: FileHandle, signal?: AbortSignal): Promise<string> {
  const hash = createHash("sha256")
  const buffer = Buffer.alloc(PIECE)
  for (let at = 0; ;) {
    signal?.throwIfAborted()
    const { bytesRead } = await handle.read(buffer, 0, PIECE, at)
    if (bytesRead === 0) return hash.digest("hex")
    hash.update(buffer.subarray(0, bytesRead))
    at += bytesRead
  }
}

/** What is demanded of an image's signatures. */
export function signersOf({ signer }: ManifestImage): VerifyOptions | undefined {
  if (signer === undefined) return undefined
  const keys = signer.keys.split(" ").map((one) => Buffer.from(one, "base64"))
  const require = [signer.fingerprint]
  return signer.kind === "ring"
    ? { keyrings: keys, require }
    : { keys: keys.map((der) => admitPublicKey(der, "spki", "the signer's key")), require }
}

/**
 * The public keys that a signature is verified with, as the manifest has them: nodes look at no other ring.
 *
 * @throws SignatureError `ERR_SIGNATURE_KEYRING`.
 */
export async function signerOf(
  { fingerprint, file }: NonNullable<ImageSettings["signingKey"]>,
  signal: AbortSignal | undefined,
): Promise<NonNullable<ManifestImage["signer"]>> {
  const hex = fingerprint.toUpperCase()
  if (file === undefined) {
    const rings = await Promise.all(userKeyrings(process.env).map((ring) => readKeyring(ring, signal)))
    return { fingerprint: hex, keys: rings.map((ring) => ring.toString("base64")).join(" "), kind: "ring" }
  }
  const bytes = await readKeyring(file, signal)
  if (!/-----BEGIN (?!PGP )/.test(bytes.toString("latin1")))
    return { fingerprint: hex, keys: bytes.toString("base64"), kind: "ring" }
  const der = (await readSignerKey(file, signal)).export({ type: "spki", format: "der" })
  // As reports name plain keys.
  const name =
    hex.length === 64 ? `SHA256:${Buffer.from(hex, "hex").toString("base64").replaceAll("=", "")}` : hex
  return { fingerprint: name, keys: der.toString("base64"), kind: "pem" }
}

/** How the registry is spoken to. Nothing is kept besides: the file is what is kept. */
function registryOptions({
  authFile,
  certFolder,
  noHttps,
}: RegistrySettings): ClientOptions & { disableCache: true } {
  return {
    ...(authFile === undefined ? {} : { authFile }),
    ...(certFolder === undefined ? {} : { certFolder }),
    ...(noHttps === undefined ? {} : { noHttps }),
    disableCache: true,
  }
}

function failed(name: string, what: string, cause?: unknown): BatchError {
  return new BatchError("ERR_BATCH_IMAGE", `${name}: ${what}`, { path: name, cause })
}

/** Is there an image that its users keep open? They have it locked. */
const IN_USE = { start: 0, length: 0 } as const

/**
 * Images of a node, or of whoever submits: files named by their digests, in a folder of this user's alone. A file `.used` beside each
 * says when that was last.
 */
export class NodeCache {
  readonly folder: string
  readonly #limit: Bytes

  private constructor(folder: string, limit: Bytes) {
    this.folder = folder
    this.#limit = limit
  }

  /** @throws BatchError `ERR_BATCH_IMAGE` where others could put something there. */
  static async open(folder: string, limit: Bytes): Promise<NodeCache> {
    try {
      await mkdir(path.join(folder, FORMAT), { recursive: true, mode: 0o700 })
      const real = await realpath(path.join(folder, FORMAT))
      const info = await lstat(real)
      if (info.uid !== process.geteuid?.() || (info.mode & 0o077) !== 0)
        throw failed(real, "the cache is not yours alone (mode 0700)")
      if (!(await isHeld(real))) throw failed(real, "others may write to what the cache lies in")
      return new NodeCache(real, limit)
    } catch (cause) {
      if (cause instanceof BatchError) throw cause
      throw failed(folder, `the cache cannot be used: ${(cause as Error).message}`, cause)
    }
  }

  #path(digest: string): string {
    return path.join(this.folder, digest)
  }

  /** Opens one, and locks it against being removed. undefined: it is not there. */
  async #find(digest: string): Promise<FileHandle | undefined> {
    const name = this.#path(digest)
    const handle = await open(name, constants.O_RDONLY | constants.O_NOFOLLOW).catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined
      throw error
    })
    if (handle === undefined) return undefined
    await loadAddon().lockRange({ fd: handle.fd, ...IN_USE, exclusive: false })
    // Whoever removes one has it locked for itself, and may have been faster.
    if (!(await isThere(name, handle))) {
      await handle.close()
      return undefined
    }
    await writeFile(`${name}.used`, "", { mode: 0o600 })
    const now = new Date()
    await utimes(`${name}.used`, now, now).catch(() => undefined)
    return handle
  }

  /**
   * An image, fetched by one process of this node at a time; the others wait, and find it.
   *
   * @param fetch - Writes it; what it writes is hashed here.
   */
  async use(
    image: Pick<ManifestImage, "digest" | "name">,
    fetch: (target: FileHandle) => Promise<void>,
    signal?: AbortSignal,
  ): Promise<FileHandle> {
    const name = this.#path(image.digest)
    for (;;) {
      signal?.throwIfAborted()
      const found = await this.#find(image.digest)
      if (found !== undefined) return found
      await using lock = await this.#lock(`${name}.lock`)
      if (lock === undefined) {
        await sleep(POLL_MS, undefined, { signal }).catch(() => undefined)
        continue
      }
      const made = await this.#find(image.digest)
      if (made !== undefined) return made
      await this.#fetch(image, fetch, signal)
    }
  }

  async #fetch(
    { digest, name }: Pick<ManifestImage, "digest" | "name">,
    fetch: (target: FileHandle) => Promise<void>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    await this.#removeBroken(digest)
    const temporary = path.join(this.folder, `.${digest}.${randomBytes(8).toString("hex")}`)
    const fetched = async (): Promise<void> => {
      await using target = await open(
        temporary,
        constants.O_RDWR | constants.O_CREAT | constants.O_EXCL,
        0o600,
      )
      await fetch(target)
      const found = await hashFile(target, signal)
      if (found !== digest) throw failed(name, `it came as sha256:${found}, and is sha256:${digest}`)
      await target.sync()
      await rename(temporary, this.#path(digest))
    }
    try {
      await thenUndone(fetched, () => rm(temporary, { force: true }))
    } catch (cause) {
      if (!(cause instanceof Error && "syscall" in cause)) throw cause
      throw failed(this.folder, `the image cannot be kept there: ${cause.message}`, cause)
    }
    await this.shrink(this.#limit, digest)
  }

  /** What a fetch left that was killed: nobody else fetches this one now. */
  async #removeBroken(digest: string): Promise<void> {
    for (const entry of await readdir(this.folder))
      if (entry.startsWith(`.${digest}.`)) await rm(path.join(this.folder, entry), { force: true })
  }

  /** undefined: somebody else has it. It goes with its process. */
  async #lock(name: string): Promise<FileHandle | undefined> {
    const handle = await open(name, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
    // Who removed an image had its lock, and took that away as well: what was opened before locks nobody out.
    if ((await loadAddon().lockFile(handle.fd)) && (await isThere(name, handle))) return handle
    await handle.close()
    return undefined
  }

  /** What is there, the one that was used last first. */
  async list(): Promise<{ digest: string; size: Bytes; lastUsed: number }[]> {
    const found: { digest: string; size: Bytes; lastUsed: number }[] = []
    for (const digest of await readdir(this.folder)) {
      if (!/^[0-9a-f]{64}$/.test(digest)) continue
      const info = await stat(this.#path(digest)).catch(() => undefined)
      if (info === undefined) continue
      const used = await stat(`${this.#path(digest)}.used`).catch(() => info)
      found.push({ digest, size: info.size, lastUsed: used.mtimeMs })
    }
    return found.sort((a, b) => b.lastUsed - a.lastUsed)
  }

  /**
   * Removes what was not used for longest, until no more than `limit` is left, and nothing that is in use.
   *
   * @param kept - Stays.
   * @returns What was removed.
   */
  async shrink(limit: Bytes, kept?: string): Promise<{ digest: string; size: Bytes }[]> {
    const removed: { digest: string; size: Bytes }[] = []
    let left = limit
    for (const one of await this.list()) {
      left -= one.size
      if (left >= 0 || one.digest === kept) continue
      if (await this.#remove(one.digest)) {
        removed.push({ digest: one.digest, size: one.size })
        left += one.size
      }
    }
    return removed
  }

  async #remove(digest: string): Promise<boolean> {
    const name = this.#path(digest)
    await using lock = await this.#lock(`${name}.lock`)
    if (lock === undefined) return false
    const handle = await open(name, constants.O_RDWR | constants.O_NOFOLLOW).catch(() => undefined)
    if (handle === undefined) return false
    try {
      if ((await loadAddon().lockRange({ fd: handle.fd, ...IN_USE, exclusive: true })) !== "none")
        return false
      await rm(name)
      for (const beside of [".used", ".lock", ".checked"]) await rm(name + beside, { force: true })
      return true
    } finally {
      await handle.close()
    }
  }

  /**
   * Is this open file what its digest says, and signed by whom it has to be? It is read, unless that was done here before and the file is
   * still the same.
   *
   * @returns What to compare with later: the file is still what was checked.
   * @throws BatchError `ERR_BATCH_IMAGE`; SignatureError; SifError.
   */
  async check(handle: FileHandle, image: ManifestImage, signal?: AbortSignal): Promise<string> {
    const { digest, name, signer } = image
    const note = `${this.#path(digest)}.checked`
    const state = await stateOf(handle)
    const checked = `${state} ${signer?.fingerprint ?? ""} ${digestOf(Buffer.from(signer?.keys ?? "")).hex}`
    if ((await readFile(note, "utf8").catch(() => "")) === checked) return state
    const found = await hashFile(handle, signal)
    if (found !== digest)
      throw failed(name, `it is sha256:${found}, and was sha256:${digest} when it was submitted`)
    await verifyFile(handle, image, signal)
    if ((await stateOf(handle)) !== state) throw failed(name, "it is being written to")
    // Times have the grain of the kernel's clock: what was written to just now may be written to again without moving them.
    const { ctimeMs } = await handle.stat()
    if (Date.now() - ctimeMs < 1000) return state
    const temporary = `${note}.${randomBytes(8).toString("hex")}`
    await writeFile(temporary, checked, { mode: 0o600 })
    await rename(temporary, note)
    return state
  }
}

/** @throws BatchError `ERR_BATCH_IMAGE` where the file is not what it was when `state` was taken. */
export async function requireUnchanged(
  handle: FileHandle,
  state: string,
  { name }: ManifestImage,
): Promise<void> {
  if ((await stateOf(handle)) !== state) throw failed(name, "it was written to while it was being used")
}

/** @throws SignatureError. */
async function verifyFile(
  handle: FileHandle,
  image: ManifestImage,
  signal: AbortSignal | undefined,
): Promise<void> {
  const verify = signersOf(image)
  if (verify === undefined) return
  await using sif = await openSifAs(image.name, descriptorPath({ file: handle }))
  requireVerified(await verifySif(sif, { ...verify, ...(signal && { signal }) }))
}

/** The folder of a node's cache. */
export function cacheOf(folder: string | undefined): string {
  return (folder ?? cacheFolder()).replaceAll("%N", process.env["SLURMD_NODENAME"] ?? "submit")
}

/** Fetches an image at a registry into a file. */
export async function fetchImage(
  source: string,
  target: FileHandle,
  registry: RegistrySettings,
  onNotice: ((text: string) => void) | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  const oci = registryOptions(registry)
  await using remote = await RemoteSif.find(source, { oci, onNotice, signal })
  await remote.write(async (piece, position) => {
    for (let at = 0; at < piece.length;) {
      const { bytesWritten } = await target.write(piece, at, piece.length - at, position + at)
      at += bytesWritten
    }
  })
}

/** An image of the configuration, as it is now. */
export interface FoundImage extends AsyncDisposable {
  readonly handle: FileHandle
  readonly source: string
  readonly digest: string
  readonly size: Bytes
}

/**
 * Finds an image at submission: from now on it is what its digest says.
 *
 * @throws OciError; BatchError `ERR_BATCH_IMAGE`; the signal's reason.
 */
export async function findImage(
  name: string,
  cache: () => Promise<NodeCache>,
  registry: RegistrySettings,
  onNotice: ((text: string) => void) | undefined,
  signal: AbortSignal | undefined,
): Promise<FoundImage> {
  if (!isOrasName(name)) {
    const handle = await openImageFile(name).catch((cause: unknown) => {
      if (cause instanceof BatchError) throw cause
      const { code, message } = cause as NodeJS.ErrnoException
      throw failed(name, code === "ENOENT" ? "there is no such file" : message, cause)
    })
    const { size } = await handle.stat()
    const digest = await hashFile(handle, signal)
    return { handle, source: name, digest, size, [Symbol.asyncDispose]: () => handle.close() }
  }
  const oci = registryOptions(registry)
  await using remote = await RemoteSif.find(name, { oci, onNotice, signal })
  if (!remote.isPublic && !(await remote.seemsEncrypted()))
    throw failed(
      name,
      "it took a credential to get and is not encrypted: it would lie on every node for its disk's owner to read",
    )
  const source = `oras://${remote.reference.host}/${remote.reference.repository}@${remote.digest.text}`
  const { hex: digest } = remote.blob.digest
  if (remote.blob.digest.algorithm !== "sha256") throw failed(name, "images are named by SHA-256 here")
  const handle = await (
    await cache()
  ).use({ digest, name }, (target) => fetchImage(source, target, registry, onNotice, signal), signal)
  return { handle, source, digest, size: remote.blob.size, [Symbol.asyncDispose]: () => handle.close() }
}

/**
 * Looks at an image that was found: its signatures, and the secret that opens it. The caller wipes the secret.
 *
 * @returns The secret; undefined: it is not encrypted.
 * @throws SignatureError; KeyError; SifError.
 */
export async function examineImage(
  { handle }: FoundImage,
  image: ManifestImage,
  credentials: Credentials,
  signal: AbortSignal | undefined,
): Promise<Secret | undefined> {
  await verifyFile(handle, image, signal)
  await using sif = await openSifAs(image.name, descriptorPath({ file: handle }))
  const partition = sif.primary()
  if (encryptionOf(partition) === undefined) return undefined
  const { secret, unlocked } = await openPartition(sif, partition, credentials, {}, signal)
  unlocked.dataKey.wipe()
  return secret
}

/** What kept an image from being there, as a task says it. */
export function isUnobtainable(error: unknown): boolean {
  if (error instanceof ContainerError)
    return error instanceof BatchError && error.code === "ERR_BATCH_IMAGE"
      ? isUnobtainable(error.cause)
      : error.code.startsWith("ERR_OCI_") && error.code !== "ERR_OCI_DIGEST"
  return error instanceof Error && "syscall" in error
}
