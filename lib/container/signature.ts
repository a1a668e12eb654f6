// Whether an encrypted image carries a signature. Nothing is verified here: who may write the file may write that, too.
import { SignatureError } from "../errors.ts"
import { DataType, type SifObject, type SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { Bytes } from "../units.ts"
import { encryptionOf } from "../encryption/partition.ts"

/** What to do about an encrypted image that carries no signature: nothing, tell, or refuse. */
export type UnsignedPolicy = "allow" | "warn" | "error"

/** Of a signature this much is looked at; the text that is signed stands at its start. */
const START_OF_SIGNATURE: Bytes = 4096

/** Signatures from before Singularity 3.6 cover data only, neither header nor descriptors, and start like this. */
const legacyText = Buffer.from("\nSIFHASH:", "latin1")

async function isLegacy(image: SifImage, object: SifObject): Promise<boolean> {
  const start = await image.read(object, 0, Math.min(object.size, START_OF_SIGNATURE))
  return start.includes(legacyText)
}

/**
 * Has a partition's group a signature of the current format, whoever made it and whether it is good or not?
 *
 * @throws SifError `ERR_SIF_TRUNCATED`.
 */
export async function hasSignature(image: SifImage, partition: SifPartition): Promise<boolean> {
  // Signers link to the group, whatever of it they sign; what is in no group cannot be signed.
  for (const object of image.objects)
    if (
      object.type === DataType.signature &&
      object.size > 0 &&
      partition.group !== 0 &&
      object.link.to === "group" &&
      object.link.group === partition.group &&
      !(await isLegacy(image, object))
    )
      return true
  return false
}

/** Is the root encrypted and without a signature? A plain image is not what this is about. */
export async function isUnsigned(image: SifImage, partition: SifPartition): Promise<boolean> {
  return encryptionOf(partition) !== undefined && !(await hasSignature(image, partition))
}

/** The fact, for an error or a notice. */
function fact(image: SifImage): string {
  return `${image.path} is encrypted but carries no signature: who made or changed it cannot be known`
}

/**
 * Applies the policy before any key is used.
 *
 * @returns What to tell; undefined: nothing.
 * @throws SignatureError `ERR_UNSIGNED`.
 */
export async function checkUnsigned(
  image: SifImage,
  partition: SifPartition,
  policy: UnsignedPolicy,
): Promise<string | undefined> {
  if (policy === "allow" || !(await isUnsigned(image, partition))) return undefined
  if (policy === "error") throw new SignatureError("ERR_UNSIGNED", fact(image), { path: image.path })
  return fact(image)
}
