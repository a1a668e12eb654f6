// Layers that are encrypted: who may read them, and that they are what was encrypted. All of a ciphertext is verified before the first
// byte of it is deciphered for anybody, and what is deciphered then has to be what was verified.
import { hkdfSync } from "node:crypto"
import { OciError } from "../errors.ts"
import { allocateSecret } from "../key/secret.ts"
import type { NativeBlob, NativeLayer } from "../native/binding.ts"
import { isEncryptedType, macOf } from "../ocicrypt/annotations.ts"
import { checkLayer } from "../ocicrypt/layer-cipher.ts"
import { KEY_SIZE, type LayerKey } from "../ocicrypt/layer-key.ts"
import { LayerKeys } from "../ocicrypt/layer-keys.ts"
import { wrongContent, type Digest } from "./digest.ts"
import type { Descriptor } from "./manifest.ts"

/** Keys, which are read when an image needs some. */
export interface LayerKeyring {
  /** Did somebody name them for this image? Then he takes it for encrypted. */
  readonly isNamed: boolean
  open(): Promise<LayerKeys>
}

/** What is demanded of an image's layers. */
export interface EncryptionDemand {
  /** What opens those that are encrypted. */
  readonly layerKeys?: LayerKeyring | undefined
  /** Layers may be plain where others are encrypted, or keys were named: anybody can have put them there. */
  readonly allowPartial?: boolean | undefined
  /** None of them may be plain, whatever else is allowed. */
  readonly requireEncrypted?: boolean | undefined
}

/** Counted up when something else is made of the same keys. */
const SECRET_INFO = "sifcrypt secret of the image that is built of encrypted layers, version 1"
const SECRET_SIZE = 32

export function layerName(layer: Descriptor, index: number): string {
  return `layer ${index} (${layer.digest.text})`
}

/**
 * Nobody authenticates which layers an image has: a plain one among encrypted ones, or instead of them, can be anybody's.
 *
 * @throws OciError `ERR_OCI_PARTIAL`.
 */
export function checkEncryption(
  name: string,
  { layers }: { readonly layers: readonly Pick<Descriptor, "mediaType">[] },
  { layerKeys, allowPartial = false, requireEncrypted = false }: EncryptionDemand,
): void {
  if (allowPartial && !requireEncrypted) return
  const plain = layers.flatMap(({ mediaType }, i) => (isEncryptedType(mediaType) ? [] : [i]))
  if (plain.length === 0 && layers.length > 0) return
  if (plain.length === layers.length) {
    if (requireEncrypted) throw new OciError("ERR_OCI_PARTIAL", `${name}: no layer is encrypted`)
    if (layerKeys?.isNamed !== true) return
    throw new OciError("ERR_OCI_PARTIAL", `${name}: a key was given, and no layer is encrypted`)
  }
  throw new OciError(
    "ERR_OCI_PARTIAL",
    `${name}: of ${layers.length} layers ${plain.length} are plain: ${plain.join(", ")}`,
  )
}

/** Those of one image. Disposing forgets their keys. */
export class EncryptedLayers implements Disposable {
  readonly #name: string
  readonly #keyring: LayerKeyring | undefined
  readonly #signal: AbortSignal | undefined
  readonly #keys = new Map<Descriptor, LayerKey>()

  constructor(name: string, keyring: LayerKeyring | undefined, signal: AbortSignal | undefined) {
    this.#name = name
    this.#keyring = keyring
    this.#signal = signal
  }

  /**
   * Unwraps the keys of those that are encrypted.
   *
   * @throws OciError; KeyError `ERR_KEY_MISSING`, `ERR_KEY_MISMATCH`.
   */
  async unwrap(layers: readonly Descriptor[]): Promise<void> {
    let keys: LayerKeys | undefined
    for (const [i, layer] of layers.entries()) {
      if (!isEncryptedType(layer.mediaType)) continue
      this.#signal?.throwIfAborted()
      const what = `${this.#name}: ${layerName(layer, i)}`
      macOf(layer.annotations, what)
      keys ??= (await this.#keyring?.open()) ?? new LayerKeys({})
      this.#keys.set(layer, await keys.unwrap(layer.annotations, what))
    }
  }

  /**
   * What everybody knows who can unwrap the keys of all of them, and nobody else. They were unwrapped.
   *
   * @param digest - Of the image: those of another one with the same keys know nothing of this one.
   * @returns undefined: none is encrypted. The caller wipes it.
   * @see RFC 5869
   */
  secret(layers: readonly Descriptor[], digest: Digest): Buffer | undefined {
    const keys = layers.flatMap((layer) => this.#keys.get(layer) ?? [])
    if (keys.length === 0) return undefined
    const material = allocateSecret(keys.length * KEY_SIZE)
    for (const [i, { key }] of keys.entries()) key.copy(material, i * KEY_SIZE)
    try {
      return Buffer.from(hkdfSync("sha256", material, digest.bytes, SECRET_INFO, SECRET_SIZE))
    } finally {
      material.fill(0)
    }
  }

  /**
   * A layer that reads as it was before it was encrypted.
   *
   * @param blob - Its ciphertext.
   * @param isVerified - Its digest was compared already.
   * @throws OciError `ERR_OCI_DIGEST`, `ERR_OCI_MAC`.
   */
  async open(
    layer: Descriptor,
    blob: NativeBlob,
    isVerified = false,
  ): Promise<Pick<NativeLayer, "blob" | "digest">> {
    const key = this.#keys.get(layer)
    if (key === undefined) throw new Error("the layer's key was not unwrapped")
    const what = `${this.#name}: ${layer.digest.text}`
    const mac = macOf(layer.annotations, what)
    const { isAuthentic, matches, plainDigest } = await checkLayer(blob, key, mac, {
      digest: isVerified ? undefined : layer.digest.bytes,
      signal: this.#signal,
    })
    if (!matches) throw wrongContent(layer.digest, what)
    if (!isAuthentic)
      throw new OciError(
        "ERR_OCI_MAC",
        `${what}: it is not what was encrypted with this key: its MAC is another one`,
      )
    return { blob: { ...blob, counter: { key: key.key, iv: key.iv } }, digest: plainDigest }
  }

  [Symbol.dispose](): void {
    for (const key of this.#keys.values()) key[Symbol.dispose]()
  }
}
