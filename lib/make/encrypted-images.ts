// OCI images whose layers are encrypted: made of plain ones, turned back, and told of.
import * as is from "../arguments.ts"
import { credentialList, Credentials, type CredentialSource } from "../encryption/credentials.ts"
import { layerKeyring } from "../encryption/layer-keyring.ts"
import {
  layerRecipientList,
  resolveLayerRecipients,
  type LayerRecipient,
} from "../encryption/layer-recipients.ts"
import { OciError } from "../errors.ts"
import { isEncryptedType, schemesOf } from "../ocicrypt/annotations.ts"
import { describeRecipients } from "../ocicrypt/layer-recipients.ts"
import type { LayerMap } from "../oci/copy.ts"
import { MAX_NESTING, readDocument } from "../oci/image.ts"
import { LayerDecryption, LayerEncryption, type RecipientChange } from "../oci/layer-maps.ts"
import {
  isConfigType,
  parseConfig,
  parseDocument,
  parsePlatformName,
  platformFits,
  platformText,
  type Descriptor,
  type Platform,
} from "../oci/manifest.ts"
import { parseReference, type ImageReference } from "../oci/reference.ts"
import type { BlobStore } from "../oci/store.ts"
import type { RegistrySinkOptions } from "../registry/sink.ts"
import { copyOciImage, findOciImage, type CopyImageOptions } from "../registry/transports.ts"
import { clientRows, layerRows, type LayerOptions } from "../source/layer-options.ts"
import type { Bytes } from "../units.ts"

/** Which layers are meant. */
interface ChoiceOptions {
  /** 0 is the base, -1 the top. Default: all. */
  readonly layers?: readonly number[] | undefined
  /** Only those of what is for `linux/amd64`, `linux/arm/v7`; the rest of the image is copied as it is. Default: all. */
  readonly platforms?: readonly string[] | undefined
}

/** From where an image is copied, and to where. */
export interface PlaceOptions extends Pick<LayerOptions, "oci" | "signal" | "onNotice"> {
  /** `docker://…`, `oci:DIR[:NAME|@DIGEST|@N]`, `oci-archive:FILE[:NAME]`, `docker-archive:FILE[:NAME]` or `store:NAME`. */
  readonly source: string
  /** The same. What a layout, a registry or the store has stays there; an archive is a new one. `store:` has the source's name. */
  readonly target: string
  /** Replace an archive that is there. */
  readonly force?: boolean | undefined
  /** Of the target. */
  readonly registry?: Omit<RegistrySinkOptions, "signal" | "onNotice"> | undefined
  /** Bytes of blobs that are there, of how many. */
  readonly onProgress?: ((bytes: Bytes, total: Bytes) => void) | undefined
}

/** All that has the source's name is copied, for whatever platforms. */
interface ImageCopyOptions extends ChoiceOptions, PlaceOptions {}

/** What {@link encrypt} encrypts, and for whom. */
export interface EncryptImageOptions extends ImageCopyOptions {
  /** Whoever shall be able to decrypt the layers. */
  readonly recipients: readonly LayerRecipient[]
  /** Opens layers that are encrypted already: they get these recipients as well, and no byte of them changes. */
  readonly unlock?: readonly CredentialSource[] | undefined
}

/** What {@link decrypt} decrypts, and with what. */
export interface DecryptImageOptions extends ImageCopyOptions {
  /** Private keys. */
  readonly unlock: readonly CredentialSource[]
}

/** What {@link changeRecipients} changes. */
export interface ChangeRecipientsOptions extends ImageCopyOptions {
  /** `add`: they get the key as well. `replace`: nobody else has it any more. `rotate`: the layers are encrypted anew, for these only. */
  readonly change: RecipientChange
  readonly recipients: readonly LayerRecipient[]
  /** Opens the layers. */
  readonly unlock: readonly CredentialSource[]
  /** Not with `add`: whoever has the key in a scheme that is not known here loses it, too. Otherwise it is an error that he would. */
  readonly dropUnknown?: boolean | undefined
}

/** What was written. */
export interface ConvertedImage {
  /** Of the image where it was written. */
  readonly digest: string
  readonly mediaType: string
}

const MAX_LAYER = 100_000

const choiceRows: is.Rows<ChoiceOptions> = {
  layers: is.filled(is.list(is.whole(-MAX_LAYER, MAX_LAYER))),
  platforms: is.filled(is.list(is.text)),
}
export const placeRows: is.Rows<PlaceOptions> = {
  source: is.required(is.path),
  target: is.required(is.path),
  force: is.flag,
  registry: is.shape<NonNullable<PlaceOptions["registry"]>>({ ...clientRows, chunkSize: is.whole(1) }),
  signal: is.abortSignal,
  onNotice: is.callback,
  onProgress: is.callback,
  ...layerRows,
}
const copyRows: is.Rows<ImageCopyOptions> = { ...placeRows, ...choiceRows }
const checkEncrypt = is.shape<EncryptImageOptions>({
  ...copyRows,
  recipients: is.required(layerRecipientList),
  unlock: credentialList,
})
const checkDecrypt = is.shape<DecryptImageOptions>({ ...copyRows, unlock: is.required(credentialList) })

const checkChange = is.shape<ChangeRecipientsOptions>({
  ...copyRows,
  change: is.required(is.oneOf("add", "replace", "rotate")),
  recipients: is.required(layerRecipientList),
  unlock: is.required(credentialList),
  dropUnknown: is.flag,
})

/** @throws OciError `ERR_OCI_REFERENCE`. */
export function referenceOf(name: string): ImageReference {
  const reference = parseReference(name)
  if (reference !== undefined) return reference
  throw new OciError(
    "ERR_OCI_REFERENCE",
    `${name}: it names no image: docker://, oci:, oci-archive:, docker-archive: and store: do`,
  )
}

export async function copyAs(
  { source, target, force: replace, oci, registry, signal, onNotice, onProgress }: PlaceOptions,
  what: Omit<CopyImageOptions, "signal" | "onNotice" | "onProgress">,
): Promise<ConvertedImage> {
  const { digest, mediaType } = await copyOciImage(referenceOf(source), referenceOf(target), {
    ...{ ...what, signal, onNotice, onProgress },
    source: oci,
    target: { ...registry, replace },
  })
  return { digest: digest.text, mediaType }
}

async function convert(
  options: ImageCopyOptions,
  change: { readonly map: LayerMap; check(name: string): void },
): Promise<ConvertedImage> {
  const onMapped = (): void => {
    change.check(options.source)
  }
  return await copyAs(options, { all: true, mapLayer: change.map, onMapped })
}

/**
 * Copies an image and encrypts layers on the way, each under a key of its own. Configuration and its digest stay as they are, and so does
 * what everybody can read there: the digests of the layers' contents, commands, variables.
 *
 * @throws KeyError before anything is read when a key is missing or unusable; OciError; BuildError `ERR_BUILD_OUTPUT`,
 * `ERR_BUILD_EXISTS`; the signal's reason.
 */
export async function encrypt(given: EncryptImageOptions): Promise<ConvertedImage> {
  const options = checkEncrypt(given, "options")
  const { layers, signal, unlock } = options
  signal?.throwIfAborted()
  const recipients = await resolveLayerRecipients(options.recipients, signal)
  using credentials = new Credentials(unlock)
  const keyring = unlock === undefined ? undefined : layerKeyring(credentials, { isNamed: true, signal })
  const platforms = options.platforms?.map(parsePlatformName)
  using encryption = new LayerEncryption({ layers, platforms, signal, recipients, keyring })
  const reference = parseReference(options.target)
  if (reference?.transport === "docker-archive")
    throw new OciError(
      "ERR_OCI_UNSUPPORTED",
      `${options.target}: archives of Docker have no encrypted layers, those of OCI have`,
    )
  const made = await convert(options, encryption)
  for (const digest of encryption.alsoPlain)
    options.onNotice?.(`${digest} was encrypted, and is plain where another part of the image has it`)
  return made
}

/**
 * Changes for whom the encrypted layers of an image are; those that are plain stay so. Source and target may be the same name. Whoever
 * was able to decrypt an image can go on doing so with what he has of it: only `rotate` keeps him out of what is written here.
 *
 * @throws KeyError; OciError, `ERR_OCI_UNSUPPORTED` where somebody would lose the key of whom nothing is known; BuildError
 * `ERR_BUILD_OUTPUT`, `ERR_BUILD_EXISTS`; the signal's reason.
 */
export async function changeRecipients(given: ChangeRecipientsOptions): Promise<ConvertedImage> {
  const options = checkChange(given, "options")
  const { layers, signal, change, dropUnknown, source, target } = options
  signal?.throwIfAborted()
  const reference = referenceOf(target)
  if (source === target && reference.transport === "oci" && reference.selection.name === undefined)
    throw new OciError("ERR_OCI_REFERENCE", `${target}: what is replaced is named, as in oci:DIR:NAME`)
  const recipients = await resolveLayerRecipients(options.recipients, signal)
  using credentials = new Credentials(options.unlock)
  const keyring = layerKeyring(credentials, { isNamed: true, signal })
  const platforms = options.platforms?.map(parsePlatformName)
  const work = { layers, platforms, signal, recipients, keyring, change, dropUnknown, onlyEncrypted: true }
  using encryption = new LayerEncryption(work)
  return await convert(options, encryption)
}

/**
 * Copies an image and decrypts layers on the way. Of a layer nothing is written before all of it was verified: digest, MAC, and that
 * its content is what the configuration says.
 *
 * @throws KeyError `ERR_KEY_MISSING`, `ERR_KEY_MISMATCH` and others; OciError `ERR_OCI_MAC`, `ERR_OCI_PARTIAL` and others; BuildError
 * `ERR_BUILD_OUTPUT`, `ERR_BUILD_EXISTS`; the signal's reason.
 */
export async function decrypt(given: DecryptImageOptions): Promise<ConvertedImage> {
  const options = checkDecrypt(given, "options")
  const { layers, signal, oci } = options
  signal?.throwIfAborted()
  using credentials = new Credentials(options.unlock)
  const keyring = layerKeyring(credentials, { isNamed: true, signal })
  const platforms = options.platforms?.map(parsePlatformName)
  const { allowPartial, maxLayerBytes } = oci ?? {}
  using decryption = new LayerDecryption({ layers, platforms, signal, keyring, allowPartial, maxLayerBytes })
  return await convert(options, decryption)
}

/** Of which image {@link layerInfo} tells. */
export interface LayerInfoOptions extends ChoiceOptions, Pick<LayerOptions, "oci" | "signal" | "onNotice"> {
  readonly source: string
}

/** A layer, as everybody can see it. */
export interface LayerInfo {
  /** 0 is the base. */
  readonly index: number
  readonly digest: string
  readonly platform: string
  readonly size: Bytes
  readonly mediaType: string
  readonly encrypted: boolean
  /** The schemes in which its key is wrapped: `jwe`, `pkcs7`, `pgp`, `pkcs11`, `provider.NAME`. */
  readonly schemes: readonly string[]
  /** As far as they are named: `kid …`, `serial …`, `0x…` of an OpenPGP key; else their scheme in brackets. */
  readonly recipients: readonly string[]
}

const checkLayerInfo = is.shape<LayerInfoOptions>({
  source: is.required(is.path),
  signal: is.abortSignal,
  onNotice: is.callback,
  ...choiceRows,
  ...layerRows,
})

/** More of an index are not looked at. */
const MAX_MANIFESTS = 1000

/** Each image that a descriptor leads to. */
async function* manifestsOf(
  store: BlobStore,
  root: Descriptor,
): AsyncGenerator<{ readonly layers: readonly Descriptor[]; readonly platform: Platform }> {
  const waiting = [{ descriptor: root, depth: 0 }]
  for (let count = 0, next; (next = waiting.shift()) !== undefined; count++) {
    const { descriptor, depth } = next
    const what = `${store.name}: ${descriptor.digest.text}`
    if (depth > MAX_NESTING || count >= MAX_MANIFESTS)
      throw new OciError(
        "ERR_OCI_LIMIT",
        `${what}: more manifests than ${MAX_MANIFESTS}, or deeper than ${MAX_NESTING}`,
      )
    const document = parseDocument(await readDocument(store, descriptor, what), descriptor.mediaType, what)
    if (document.kind === "index")
      waiting.unshift(...document.manifests.map((one) => ({ descriptor: one, depth: depth + 1 })))
    else if (isConfigType(document.config)) {
      const { layers, config } = document
      const platform =
        descriptor.platform ?? parseConfig(await readDocument(store, config, what), what).platform
      yield { layers, platform }
    }
  }
}

/**
 * Tells of the layers of an image, and for whom they are encrypted. No key is needed and no layer is read.
 *
 * @throws OciError.
 */
export async function layerInfo(given: LayerInfoOptions): Promise<LayerInfo[]> {
  const options = checkLayerInfo(given, "options")
  const { source, oci, signal, onNotice, layers: wanted } = options
  const platforms = options.platforms?.map(parsePlatformName)
  await using found = await findOciImage(referenceOf(source), { ...oci, signal, onNotice })
  const told: LayerInfo[] = []
  for await (const { layers, platform } of manifestsOf(found.store, found.descriptor)) {
    if (platforms !== undefined && !platforms.some((one) => platformFits(platform, one))) continue
    for (const [index, { digest, size, mediaType, annotations }] of layers.entries()) {
      if (wanted !== undefined && !wanted.some((one) => (one < 0 ? one + layers.length : one) === index))
        continue
      const encrypted = isEncryptedType(mediaType)
      const what = `${found.store.name}: ${digest.text}`
      told.push({
        ...{ index, digest: digest.text, platform: platformText(platform), size, mediaType, encrypted },
        schemes: encrypted ? schemesOf(annotations) : [],
        recipients: encrypted ? await describeRecipients(annotations, what) : [],
      })
    }
  }
  return told
}
