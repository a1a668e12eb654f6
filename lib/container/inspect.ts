// What an image is, as far as anyone can tell who has no key.
import { describeScrypt, readGocryptfsLayer } from "../device/gocryptfs.ts"
import { parseLuksHeader } from "../device/luks-header.ts"
import { DataType } from "../sif/format.ts"
import { openSif } from "../sif/open.ts"
import { architectureName, dataTypeName } from "../sif/names.ts"
import type { Bytes } from "../units.ts"
import { partitionKind, type PartitionKind } from "../encryption/partition.ts"
import { isUnsigned } from "./signature.ts"
import { findCryptoMessages, plainRange } from "../encryption/unlock.ts"

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

/** The answer of {@link inspect}. */
export interface ImageFacts {
  readonly path: string
  readonly kind: PartitionKind
  /** Go's name: `amd64`. */
  readonly architecture: string
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
  await using image = await openSif(path)
  const primary = image.primary()
  const kind = partitionKind(primary)
  const header = kind === "luks" ? await parseLuksHeader(image.reader, primary) : undefined
  const layer =
    kind === "gocryptfs"
      ? await readGocryptfsLayer(plainRange(image, primary, undefined), path, {})
      : undefined
  return {
    path,
    kind,
    architecture: architectureName(primary.partition.arch),
    partition: { offset: primary.offset, size: primary.size },
    luks:
      header === undefined
        ? undefined
        : {
            cipher: header.segment.cipher,
            keySize: header.segment.keySize,
            sectorSize: header.segment.sectorSize,
            keyslots: header.keyslots.map((slot) => ({ id: slot.id, kdf: slot.kdf.type, cost: slot.cost })),
          },
    gocryptfs:
      layer === undefined
        ? undefined
        : { cipher: "aes-256-gcm", kdf: "scrypt", cost: describeScrypt(layer.config) },
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
