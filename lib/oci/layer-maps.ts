// What becomes of layers while an image is copied: encrypted ones plain, plain ones encrypted, and others' keys on encrypted ones.
import { createHash, randomFillSync } from "node:crypto"
import { KeyError, OciError } from "../errors.ts"
import { allocateSecret } from "../key/secret.ts"
import type { NativeBlob } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import {
  encryptedAnnotations,
  encryptedType,
  isEncryptedType,
  macOf,
  plainType,
  isKnownScheme,
  schemesOf,
  withoutEncryption,
  withoutWrapped,
  wrappedAnnotations,
} from "../ocicrypt/annotations.ts"
import { LayerCipher, newCipher } from "../ocicrypt/layer-cipher.ts"
import { IV_SIZE, KEY_SIZE, LayerKey } from "../ocicrypt/layer-key.ts"
import { wrapLayerKey, type LayerRecipients } from "../ocicrypt/layer-recipients.ts"
import type { Bytes } from "../units.ts"
import type { LayerPlace, MappedLayer } from "./copy.ts"
import { checkDigest, hashFor, parseDigest, type Digest } from "./digest.ts"
import { checkEncryption, EncryptedLayers, layerName, type LayerKeyring } from "./encrypted-layers.ts"
import { MAX_LAYER_BYTES, readDocument } from "./image.ts"
import {
  isConfigType,
  parseConfig,
  platformFits,
  platformText,
  type Descriptor,
  type ImageManifest,
  type Platform,
} from "./manifest.ts"
import { asArchiveError } from "./native-error.ts"
import { streamBlob } from "./store.ts"

/** Which layers are meant. */
export interface LayerChoice {
  /** From 0, the base; or from -1, the top, downwards. Default: all. */
  readonly layers?: readonly number[] | undefined
  /** Of what is for these. Default: of everything. */
  readonly platforms?: readonly Platform[] | undefined
  readonly signal?: AbortSignal | undefined
}

/** Which layers of an image are meant, and what of that was there. */
class Choice {
  readonly #options: LayerChoice
  readonly #met = new Set<Platform>()
  #isMet = false

  constructor(options: LayerChoice) {
    this.#options = options
  }

  /** @throws OciError `ERR_OCI_NOT_FOUND` of a number that no layer has. */
  has({ store, manifest, index, platform }: LayerPlace): boolean {
    const { layers, platforms } = this.#options
    if (!isFileSystem(manifest)) return false
    if (platforms !== undefined && platform !== undefined) {
      const fits = platforms.filter((one) => platformFits(platform, one))
      if (fits.length === 0) return false
      for (const one of fits) this.#met.add(one)
    }
    const count = manifest.layers.length
    const absent = layers?.find((one) => one >= count || one < -count)
    if (absent !== undefined)
      throw new OciError("ERR_OCI_NOT_FOUND", `${store.name}: there is no layer ${absent}, it has ${count}`)
    const isChosen = layers === undefined || layers.some((one) => (one < 0 ? one + count : one) === index)
    this.#isMet ||= isChosen
    return isChosen
  }

  /**
   * To be asked when all layers were looked at: who names something that is not there believes that something was done.
   *
   * @throws OciError `ERR_OCI_NOT_FOUND`.
   */
  check(name: string): void {
    const missing = this.#options.platforms?.find((one) => !this.#met.has(one))
    if (missing !== undefined)
      throw new OciError("ERR_OCI_NOT_FOUND", `${name}: there is no image for ${platformText(missing)}`)
    if (!this.#isMet) throw new OciError("ERR_OCI_NOT_FOUND", `${name}: it has no layers of a file system`)
  }
}

/** Attestations have the configuration of an image, and layers that no container is made of. */
function isFileSystem({ config, layers }: ImageManifest): boolean {
  return isConfigType(config) && layers.some(({ mediaType }) => /\btar\b/.test(mediaType))
}

/** Where a blob of an image lies, and can be read as often as need be. */
async function blobOf(layer: Descriptor, { store }: LayerPlace): Promise<NativeBlob> {
  await store.fetch?.([layer])
  return await store.open(layer)
}

interface DecryptionOptions extends LayerChoice {
  readonly keyring: LayerKeyring
  readonly allowPartial?: boolean | undefined
  readonly maxLayerBytes?: Bytes | undefined
}

/** Layers that were encrypted become what they were. Disposing forgets their keys, when everything was copied. */
export class LayerDecryption implements Disposable {
  readonly #options: DecryptionOptions
  readonly #choice: Choice
  readonly #opened: EncryptedLayers[] = []
  readonly #shared = new Map<string, Promise<MappedLayer>>()
  /** Of all contents that were looked at. */
  #content: Bytes = 0

  constructor(options: DecryptionOptions) {
    this.#options = options
    this.#choice = new Choice(options)
  }

  /**
   * To be asked before anything is written.
   *
   * @throws OciError `ERR_OCI_NOT_FOUND`, `ERR_OCI_PARTIAL`.
   */
  check(name: string): void {
    this.#choice.check(name)
    if (this.#opened.length === 0 && this.#options.allowPartial !== true)
      throw new OciError("ERR_OCI_PARTIAL", `${name}: no layer is encrypted`)
  }

  /** @throws OciError, KeyError. */
  readonly map = async (layer: Descriptor, place: LayerPlace): Promise<MappedLayer | undefined> => {
    const { layers, allowPartial = false } = this.#options
    if (!this.#choice.has(place)) return undefined
    const { store, manifest, index } = place
    const name = layerName(layer, index)
    const isEncrypted = isEncryptedType(layer.mediaType)
    // Another platform's may be encrypted where this one's is not.
    const isPartly = manifest.layers.some(({ mediaType }) => isEncryptedType(mediaType))
    if (!isEncrypted && layers !== undefined && !allowPartial)
      throw new OciError("ERR_OCI_PARTIAL", `${store.name}: ${name} is not encrypted`)
    if (layers === undefined && isPartly) checkEncryption(store.name, manifest, { allowPartial })
    if (!isEncrypted) return undefined
    const { diffId, count } = await this.#diffIdOf(place)
    // Whoever names a layer a thousand times has it decrypted once.
    const same = JSON.stringify([layer.digest.text, layer.mediaType, layer.annotations, diffId.text])
    let made = this.#shared.get(same)
    if (made === undefined) {
      made = this.#decrypt(layer, place, diffId)
      this.#shared.set(same, made)
    }
    const mapped = await made
    // Said last: a layer that somebody changed is told as what it is.
    if (count !== manifest.layers.length)
      throw new OciError(
        "ERR_OCI_FORMAT",
        `${store.name}: ${manifest.layers.length} layers, and its configuration names ${count}`,
      )
    return mapped
  }

  async #decrypt(layer: Descriptor, place: LayerPlace, diffId: Digest): Promise<MappedLayer> {
    const { keyring, signal } = this.#options
    const { store, index } = place
    const name = layerName(layer, index)
    const encrypted = new EncryptedLayers(store.name, keyring, signal)
    this.#opened.push(encrypted)
    await encrypted.unwrap([layer])
    const opened = await encrypted.open(layer, await blobOf(layer, place), store.isVerified)
    await this.#checkContent(opened.blob, name, store.name, diffId)
    const digest = parseDigest(`sha256:${(opened.digest ?? Buffer.alloc(0)).toString("hex")}`, name)
    const descriptor = {
      ...layer,
      digest,
      mediaType: plainType(layer.mediaType),
      annotations: withoutEncryption(layer.annotations),
      data: undefined,
    }
    return { descriptor, open: () => streamBlob(opened.blob) }
  }

  /** Whoever could encrypt can have put layers in another order: the configuration says what belongs where. */
  async #diffIdOf({
    store,
    manifest,
    index,
  }: LayerPlace): Promise<{ readonly diffId: Digest; readonly count: number }> {
    const what = `${store.name}: its configuration`
    const { diffIds } = parseConfig(await readDocument(store, manifest.config, what), what)
    const diffId = diffIds[index]
    if (diffId === undefined)
      throw new OciError(
        "ERR_OCI_FORMAT",
        `${store.name}: ${manifest.layers.length} layers, and its configuration names ${diffIds.length}`,
      )
    return { diffId, count: diffIds.length }
  }

  async #checkContent(blob: NativeBlob, name: string, where: string, diffId: Digest): Promise<void> {
    const limit = this.#options.maxLayerBytes ?? MAX_LAYER_BYTES
    const size = await loadAddon()
      .checkLayer({ blob, name, diffId: diffId.bytes, limit: Math.max(0, limit - this.#content) })
      .catch((cause: unknown) => {
        throw asArchiveError(where, cause)
      })
    // Others were read at the same time.
    this.#content += size
    if (this.#content > limit)
      throw new OciError("ERR_OCI_LIMIT", `${where}: its layers have more than ${limit} bytes uncompressed`, {
        limit: "layers",
      })
  }

  [Symbol.dispose](): void {
    for (const one of this.#opened) one[Symbol.dispose]()
  }
}

/** What becomes of layers that are encrypted already. */
export type RecipientChange =
  /** They get recipients; of what is plain as well, if that is to be encrypted. */
  | "add"
  /** Nobody else has their key any more; it stays the same. */
  | "replace"
  /** They are encrypted anew, under another key. */
  | "rotate"

interface EncryptionOptions extends LayerChoice {
  readonly recipients: LayerRecipients
  /** Opens layers that are encrypted already. */
  readonly keyring?: LayerKeyring | undefined
  /** Default: `add`. */
  readonly change?: RecipientChange | undefined
  /** Plain layers stay plain. */
  readonly onlyEncrypted?: boolean | undefined
  /** Whoever has the key in a scheme that is not known here loses it, too. */
  readonly dropUnknown?: boolean | undefined
}

/** Layers become encrypted, each under a key of its own. Disposing forgets the keys, when everything was copied. */
export class LayerEncryption implements Disposable {
  readonly #options: EncryptionOptions
  readonly #choice: Choice
  readonly #made: Disposable[] = []
  /** Digests of layers that were encrypted, and of those that stay as they are. */
  readonly #encrypted = new Set<string>()
  readonly #kept = new Set<string>()
  readonly #shared = new Map<string, Promise<MappedLayer>>()
  #changed = 0

  constructor(options: EncryptionOptions) {
    this.#options = options
    this.#choice = new Choice(options)
  }

  /**
   * To be asked before anything is written.
   *
   * @throws OciError `ERR_OCI_NOT_FOUND`, `ERR_OCI_PARTIAL`.
   */
  check(name: string): void {
    this.#choice.check(name)
    if (this.#changed === 0) throw new OciError("ERR_OCI_PARTIAL", `${name}: no layer is encrypted`)
  }

  /** @throws OciError, KeyError. */
  readonly map = async (layer: Descriptor, place: LayerPlace): Promise<MappedLayer | undefined> => {
    const { change = "add", onlyEncrypted = false } = this.#options
    const isEncrypted = isEncryptedType(layer.mediaType)
    if (!this.#choice.has(place) || (onlyEncrypted && !isEncrypted)) {
      this.#kept.add(layer.digest.text)
      return undefined
    }
    if (!isEncrypted && encryptedType(layer.mediaType) === undefined)
      throw new OciError(
        "ERR_OCI_UNSUPPORTED",
        `${place.store.name}: ${layerName(layer, place.index)} of type ${layer.mediaType} cannot be encrypted`,
      )
    this.#changed++
    if (!isEncrypted) this.#encrypted.add(layer.digest.text)
    // What platforms share they go on sharing; and whoever names a layer a thousand times has it changed once.
    const same = JSON.stringify([layer.digest.text, layer.mediaType, layer.annotations])
    let made = this.#shared.get(same)
    if (made === undefined) {
      if (!isEncrypted) made = this.#encryptPlain(layer, place)
      else made = change === "rotate" ? this.#rotate(layer, place) : this.#wrap(layer, place)
      this.#shared.set(same, made)
    }
    return await made
  }

  async #encryptPlain(layer: Descriptor, place: LayerPlace): Promise<MappedLayer> {
    return await this.#encrypt(layer, await blobOf(layer, place), layer.digest, place.store.name)
  }

  /** Digests of layers that were encrypted in one place and are plain in another one: whoever has that needs no key. */
  get alsoPlain(): readonly string[] {
    return [...this.#encrypted].filter((digest) => this.#kept.has(digest))
  }

  /** @param digest - Of what is in the blob. */
  async #encrypt(layer: Descriptor, blob: NativeBlob, digest: Digest, where: string): Promise<MappedLayer> {
    const { recipients, signal } = this.#options
    const [key, iv] = [allocateSecret(KEY_SIZE), allocateSecret(IV_SIZE)]
    randomFillSync(key)
    randomFillSync(iv)
    const fresh = new LayerKey(key, iv, undefined)
    this.#made.push(fresh)
    // What it encrypts is what the digest says, now and when it is encrypted once more to be written: the same bytes under the same key.
    const [source, hash] = [hashFor(digest), createHash("sha256")]
    // Of the same bytes, where it is not of the same kind.
    const plain = digest.algorithm === "sha256" ? undefined : createHash("sha256")
    const cipher = new LayerCipher(fresh)
    for await (const piece of streamBlob(blob)) {
      signal?.throwIfAborted()
      source.update(piece)
      plain?.update(piece)
      hash.update(cipher.encrypt(piece))
    }
    checkDigest(source, digest, `${where}: ${layer.digest.text}`)
    const layerKey = new LayerKey(key, iv, `sha256:${plain?.digest("hex") ?? digest.hex}`)
    const wrapped = await wrapLayerKey(layerKey, recipients)
    const descriptor = {
      ...layer,
      mediaType: encryptedType(plainType(layer.mediaType)) ?? layer.mediaType,
      digest: parseDigest(`sha256:${hash.digest("hex")}`, layer.digest.text),
      annotations: {
        ...withoutEncryption(layer.annotations),
        ...encryptedAnnotations(cipher.mac(), wrapped),
      },
      data: undefined,
    }
    return { descriptor, open: () => encrypted(blob, layerKey) }
  }

  #keyringFor(layer: Descriptor, place: LayerPlace, what: string): LayerKeyring {
    const { keyring, change = "add", dropUnknown = false } = this.#options
    if (keyring === undefined)
      throw new KeyError(
        "ERR_KEY_MISSING",
        `${what} is encrypted: a key that opens it is needed to ${change} recipients`,
      )
    const unknown = schemesOf(layer.annotations).filter((scheme) => !isKnownScheme(scheme))
    if (change !== "add" && unknown.length > 0 && !dropUnknown)
      throw new OciError(
        "ERR_OCI_UNSUPPORTED",
        `${what}: its key is wrapped by ${unknown.join(", ")}, too, for whom cannot be seen`,
      )
    return keyring
  }

  /** Messages for recipients, one more for each scheme, or these only. No byte of the layer changes. */
  async #wrap(layer: Descriptor, place: LayerPlace): Promise<MappedLayer> {
    const { store, index } = place
    const what = `${store.name}: ${layerName(layer, index)}`
    macOf(layer.annotations, what)
    const keys = await this.#keyringFor(layer, place, what).open()
    using key = await keys.unwrap(layer.annotations, what)
    const wrapped = await wrapLayerKey(key, this.#options.recipients)
    const earlier = this.#options.change === "replace" ? withoutWrapped(layer.annotations) : layer.annotations
    const descriptor = { ...layer, annotations: wrappedAnnotations(earlier, wrapped) }
    return { descriptor, open: () => (layer.data === undefined ? store.stream(layer) : [layer.data]) }
  }

  /** Through memory: nothing plain is written. */
  async #rotate(layer: Descriptor, place: LayerPlace): Promise<MappedLayer> {
    const { store, index } = place
    const what = `${store.name}: ${layerName(layer, index)}`
    const opened = new EncryptedLayers(store.name, this.#keyringFor(layer, place, what), this.#options.signal)
    this.#made.push(opened)
    await opened.unwrap([layer])
    const { blob, digest = Buffer.alloc(0) } = await opened.open(layer, await blobOf(layer, place))
    const plain = parseDigest(`sha256:${Buffer.from(digest).toString("hex")}`, what)
    return await this.#encrypt(layer, blob, plain, store.name)
  }

  [Symbol.dispose](): void {
    for (const one of this.#made) one[Symbol.dispose]()
  }
}

async function* encrypted(blob: NativeBlob, key: LayerKey): AsyncGenerator<Buffer, void, undefined> {
  // Its MAC is known.
  const cipher = newCipher(key)
  for await (const piece of streamBlob(blob)) yield cipher.update(piece)
}
