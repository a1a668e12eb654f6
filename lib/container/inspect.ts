// What an image is, as far as anyone can tell who has no key.
import * as is from "../arguments.ts"
import { DataType } from "../sif/format.ts"
import { SifImage } from "../sif/open.ts"
import { architectureName, dataTypeName } from "../sif/names.ts"
import type { Bytes } from "../units.ts"
import type { GocryptfsFacts, LuksFacts } from "../encryption/encryption-format.ts"
import { encryptionOf, partitionKind } from "../encryption/partition.ts"
import { openImagePath, type ImageKind } from "./image-root.ts"
import { isUnsigned } from "./signature.ts"
import { findCryptoMessages } from "../encryption/unlock.ts"

/** The answer of {@link inspect}. */
export interface ImageFacts {
  readonly path: string
  readonly kind: ImageKind
  /** Go's name: `amd64`; `unknown` of what is no SIF, which does not say. */
  readonly architecture: string
  /** Where in the file; of a folder nothing. */
  readonly partition: { readonly offset: Bytes; readonly size: Bytes }
  readonly luks: LuksFacts | undefined
  readonly gocryptfs: GocryptfsFacts | undefined
  /** RSA recipients. */
  readonly cryptoMessages: number
  /** Signature objects, none of them verified. */
  readonly signatures: number
  /** Encrypted, and no signature that today's programs look at is there for the root. */
  readonly unsigned: boolean
  /** The objects whose content is readable without a key, by type and name. */
  readonly readable: readonly string[]
}

/**
 * Reads what can be known about an image without a key.
 *
 * @throws SifError when it is not a well-formed SIF; LuksError or GocryptfsError when the header or configuration of its
 * encrypted partition is malformed, or asks for what would not be opened either.
 */
export async function inspect(path: string): Promise<ImageFacts> {
  is.path(path, "image")
  await using image = await openImagePath(path)
  if (!(image instanceof SifImage)) {
    const { kind, offset, size } = image
    const none = { luks: undefined, gocryptfs: undefined, cryptoMessages: 0, signatures: 0, unsigned: false }
    const readable = ["the root file system"]
    return { path, kind, architecture: "unknown", partition: { offset, size }, ...none, readable }
  }
  const primary = image.primary()
  const kind = partitionKind(primary)
  const lock = await encryptionOf(primary)?.readLock(image, primary, {})
  return {
    path,
    kind,
    architecture: architectureName(primary.partition.arch),
    partition: { offset: primary.offset, size: primary.size },
    luks: undefined,
    gocryptfs: undefined,
    ...lock?.facts,
    cryptoMessages: findCryptoMessages(image, primary).length,
    signatures: image.objects.filter(({ type }) => type === DataType.signature).length,
    unsigned: await isUnsigned(image, primary),
    readable: image.objects
      .filter((object) => object !== primary && object.size > 0)
      .map((object) =>
        object.name === "" ? dataTypeName(object.type) : `${dataTypeName(object.type)} ${object.name}`,
      )
      .concat(kind === "squashfs" ? ["the root file system"] : []),
  }
}
