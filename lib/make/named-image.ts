// The image behind a name, docker://, oci:, oci-archive: or docker-archive:. It is built once, into the cache, and used from there. Of
// encrypted layers a copy is kept that opens for whoever can open all of them: its passphrase is derived from their keys. Nor is there
// ever a plain copy of what took a credential to get: it is kept encrypted for whom the caller names, or else not kept, and encrypted
// under a passphrase that only this process has.
import { randomBytes } from "node:crypto"
import { existsSync } from "node:fs"
import { mkdir } from "node:fs/promises"
import os from "node:os"
import type { OpenOptions } from "../container/image.ts"
import {
  Credentials,
  resolveRecipients,
  wipeCredentials,
  type Credential,
} from "../encryption/credentials.ts"
import { layerKeyring } from "../encryption/layer-keyring.ts"
import { KeyError } from "../errors.ts"
import { hexSecret } from "../key/secret.ts"
import { cacheFolder } from "../oci/cache.ts"
import type { Digest } from "../oci/digest.ts"
import { openImageCache, type ImageCache, type ImageVariant } from "../oci/image-cache.ts"
import type { OciImage } from "../oci/image.ts"
import { architectureOf } from "../oci/manifest.ts"
import type { ImageReference } from "../oci/reference.ts"
import { descriptorPath } from "../oci/temporary-file.ts"
import { openOciImage } from "../registry/transports.ts"
import { ociOptions, ociSource } from "../source/oci-source.ts"
import type { LayerOptions } from "../source/layer-options.ts"
import type { BuildSource } from "../source/source.ts"
import { makeImage, writeUnnamedImage } from "./write-image.ts"

/** How the image that a name stands for is found; of no effect on a path. */
export type NameOptions = Pick<LayerOptions, "oci" | "architecture">

/** Does something with an image file, given what opens it. */
export type Use<T, O> = (file: string, options: O, credentials: Credentials, shown?: string) => Promise<T>

export type NamedOptions = OpenOptions & NameOptions

/** Stretching would protect nothing more: the passphrase has 256 bits that nobody guesses. */
const NO_STRETCHING = { type: "pbkdf2", iterations: 1000 } as const

/** Layers are opened with keys of other kinds, too. */
function isOtherKind(error: unknown): boolean {
  return error instanceof KeyError && (error.code === "ERR_KEY_TYPE" || error.code === "ERR_KEY_FORMAT")
}

/** What is opened says that none of the credentials fits. */
function isLockedOut(error: unknown): boolean {
  const { code } = error as { readonly code?: unknown }
  const isWrong = code === "ERR_KEY_MISSING" || code === "ERR_KEY_MISMATCH" || code === "ERR_LUKS_PASSPHRASE"
  return isWrong || isOtherKind(error)
}

/** One use of the image behind a name. */
export class NamedImage<T, O extends NamedOptions> {
  readonly #name: string
  readonly #reference: ImageReference
  readonly #options: O
  readonly #use: Use<T, O>
  readonly #credentials: Credentials
  readonly #folder: string
  #cache: ImageCache | undefined
  /** As the cache names it. */
  readonly #architecture: string

  constructor(name: string, reference: ImageReference, options: O, use: Use<T, O>, credentials: Credentials) {
    this.#name = name
    this.#reference = reference
    this.#options = options
    this.#use = use
    this.#credentials = credentials
    const { oci = {}, architecture } = options
    this.#folder = oci.cacheFolder ?? cacheFolder(oci.environment)
    this.#architecture = architectureOf(architecture)
  }

  /**
   * It is nobody's but ours: what the caller says of encrypted images without a signature, and of plain ones, is about what it was
   * built of.
   */
  #useFile(file: string, credentials: Credentials, shown?: string): Promise<T> {
    const own = { unsigned: "allow", requireEncrypted: false } as const
    return this.#use(file, { ...this.#options, ...own }, credentials, shown)
  }

  /** From the cache, by the digest of a manifest, or of an index that one was chosen from. */
  async #cached(
    digest: Digest,
    encrypted: ImageVariant["encrypted"],
    credentials = this.#credentials,
  ): Promise<{ readonly value: T } | undefined> {
    const file =
      (await this.#cache?.find(digest, { encrypted })) ??
      (await this.#cache?.find(digest, { encrypted, architecture: this.#architecture }))
    if (file === undefined) return undefined
    try {
      return { value: await this.#useFile(file, credentials) }
    } catch (error) {
      // Encrypted for somebody else, or gone meanwhile.
      const isGone = (error as NodeJS.ErrnoException).code === "ENOENT" && !existsSync(file)
      if (isGone || (encrypted !== false && isLockedOut(error))) return undefined
      throw error
    }
  }

  async run(): Promise<T> {
    const { signal, onNotice, oci, requireEncrypted } = this.#options
    const { keeps, cache } =
      oci?.disableCache === true
        ? { keeps: false, cache: undefined }
        : await openImageCache(this.#folder, onNotice)
    this.#cache = cache
    const pinned = this.#reference.transport === "docker" ? this.#reference.digest : undefined
    if (pinned !== undefined && requireEncrypted !== true) {
      // Whatever a registry would send is the same.
      const found = (await this.#cached(pinned, false)) ?? (await this.#cached(pinned, true))
      if (found !== undefined) return found.value
    }
    const options = ociOptions(this.#options)
    const layerKeys = layerKeyring(this.#credentials, { isNamed: this.#hasNamedKey(), signal })
    await using image = await openOciImage(this.#reference, { ...options, layerKeys, disableCache: !keeps })
    const secret = await image.secret()
    if (secret !== undefined) return await this.#useEncrypted(image, secret)
    const found = await this.#cached(image.digest, false)
    if (found !== undefined) return found.value
    if (!image.isPublic) {
      const own = await this.#cached(image.digest, true)
      if (own !== undefined) return own.value
    }
    const source = await this.#source(image)
    if (image.isPublic && this.#cache !== undefined)
      return await this.#useFile(
        await this.#build(this.#cache, image, source, { recipients: [], encrypted: false, anew: false }),
        this.#credentials,
      )
    const recipients = this.#cache === undefined ? [] : await this.#recipients()
    try {
      if (this.#cache !== undefined && recipients.length > 0)
        return await this.#useFile(
          // One that is there already is not for the caller.
          await this.#build(this.#cache, image, source, { recipients, encrypted: true, anew: true }),
          this.#credentials,
        )
    } finally {
      wipeCredentials(recipients)
    }
    if (this.#cache !== undefined)
      onNotice?.(
        `${image.name} ${this.#reference.transport === "docker" ? "took a credential to get" : "is not for others to read"}: without a key or a passphrase to encrypt it with it is not kept`,
      )
    return await this.#useOnce(source)
  }

  /**
   * Is a key given for this image? One of the environment is for any, a passphrase opens no layer, and what a digest names has the
   * layers that it had for whoever wrote that down.
   */
  #hasNamedKey(): boolean {
    const { digest } = this.#reference.transport === "docker" ? this.#reference : this.#reference.selection
    return digest === undefined && this.#credentials.sources.some((source) => "key" in source)
  }

  /** @param secret - Of its layers; wiped. */
  async #useEncrypted(image: OciImage, secret: Buffer): Promise<T> {
    const passphrase = hexSecret(secret)
    secret.fill(0)
    using credentials = new Credentials([{ passphrase: { bytes: passphrase } }])
    try {
      const found = await this.#cached(image.digest, "layers", credentials)
      if (found !== undefined) return found.value
      const source = await this.#source(image)
      if (this.#cache === undefined) return await this.#useOnce(source)
      const recipients = await resolveRecipients(credentials, () => undefined)
      try {
        const made = { recipients, encrypted: "layers", passphraseKdf: NO_STRETCHING } as const
        // One that is there already did not open.
        const anew = (await this.#cache.find(image.digest, { encrypted: "layers" })) !== undefined
        const file = await this.#build(this.#cache, image, source, { ...made, anew })
        return await this.#useFile(file, credentials)
      } finally {
        wipeCredentials(recipients)
      }
    } finally {
      passphrase.fill(0)
    }
  }

  /** Whom what is kept is encrypted for. */
  async #recipients(): Promise<Credential[]> {
    const { signal, onNotice } = this.#options
    try {
      return await resolveRecipients(this.#credentials, onNotice ?? (() => undefined), signal)
    } catch (error) {
      if (isOtherKind(error)) return []
      throw error
    }
  }

  async #source(image: OciImage): Promise<BuildSource> {
    return {
      ...(await ociSource(image, this.#reference, this.#options)),
      async [Symbol.asyncDispose](): Promise<void> {
        // The image is open longer.
      },
    }
  }

  #making(source: BuildSource): Pick<LayerOptions, "architecture" | "signal" | "onNotice"> {
    const { signal, onNotice } = this.#options
    const chosen = source.architecture === undefined ? {} : { architecture: source.architecture }
    return { ...chosen, signal, onNotice }
  }

  async #build(
    cache: ImageCache,
    image: OciImage,
    source: BuildSource,
    made: {
      readonly recipients: readonly Credential[]
      readonly encrypted: ImageVariant["encrypted"]
      readonly passphraseKdf?: typeof NO_STRETCHING
      readonly anew: boolean
    },
  ): Promise<string> {
    const { digest } = image
    const { signal } = this.#options
    const { recipients, encrypted, passphraseKdf, anew } = made
    const build = async (output: string): Promise<void> => {
      const making = { ...this.#making(source), output, force: true, passphraseKdf }
      await makeImage(making, recipients, source)
    }
    const file = await cache.make(digest, { encrypted }, build, { anew, signal })
    // What is encrypted for its layers' keys is asked for by the digest that they are of.
    if (encrypted === "layers") return file
    const index = this.#reference.transport === "docker" ? this.#reference.digest : undefined
    if (index !== undefined && index.text !== digest.text)
      await cache.alias(digest, index, { encrypted, architecture: this.#architecture })
    return file
  }

  /** From an unnamed file, under a passphrase that nobody else has. */
  async #useOnce(source: BuildSource): Promise<T> {
    const random = randomBytes(32)
    const bytes = hexSecret(random)
    random.fill(0)
    using credentials = new Credentials([{ passphrase: { bytes } }])
    const recipients = await resolveRecipients(credentials, () => undefined)
    try {
      const folder = this.#options.oci?.tmpFolder ?? (this.#cache === undefined ? os.tmpdir() : this.#folder)
      await mkdir(folder, { recursive: true, mode: 0o700 })
      const options = { ...this.#making(source), passphraseKdf: NO_STRETCHING }
      await using output = await writeUnnamedImage(options, recipients, source, folder)
      return await this.#useFile(descriptorPath(output), credentials, this.#name)
    } finally {
      wipeCredentials(recipients)
      bytes.fill(0)
    }
  }
}
