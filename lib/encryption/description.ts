// Which objects say what an image is: one choice, for whoever reads them and for whoever copies them. Beside an encrypted
// partition anybody who can write the file can put such objects, so where others are sealed, those are no alternative.
import { SifError } from "../errors.ts"
import { DataType, type SifObject, type SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { isVerity } from "../sif/verity.ts"
import { isMetadata } from "./sealed.ts"

/** As the peers name it. */
export const INSPECT_NAME = "inspect-metadata.json"

/** The objects that describe a root file system. */
export interface Description {
  readonly inspect: SifObject | undefined
  readonly definition: SifObject | undefined
}

/** @throws SifError `ERR_SIF_AMBIGUOUS` when there are several. */
function onlyOne(image: SifImage, what: string, objects: readonly SifObject[]): SifObject | undefined {
  const [found, second] = objects
  if (found === undefined || second === undefined) return found
  throw SifError.at(
    image.path,
    "ERR_SIF_AMBIGUOUS",
    `objects ${found.id} and ${second.id} are both ${what} of the root file system`,
  )
}

function describe(
  image: SifImage,
  choose: (objects: readonly SifObject[]) => readonly SifObject[],
): Description {
  const { objects } = image
  const inspect = objects.filter(({ type, name }) => type === DataType.json && name === INSPECT_NAME)
  const definition = objects.filter(({ type }) => type === DataType.definition)
  return {
    inspect: onlyOne(image, INSPECT_NAME, choose(inspect)),
    definition: onlyOne(image, "the definition", choose(definition)),
  }
}

/**
 * The objects of the root's group, as {@link overlaysOf} takes overlays.
 *
 * @param counts - Which are looked at; default: all.
 * @throws SifError `ERR_SIF_AMBIGUOUS` when there are several.
 */
export function descriptionOf(
  image: SifImage,
  root: SifPartition,
  counts: (object: SifObject) => boolean = () => true,
): Description {
  return describe(image, (objects) => objects.filter((one) => one.group === root.group && counts(one)))
}

/** The sealed ones. The root's group is written outside, so it chooses among several and nothing else. */
export function sealedDescription(sealed: SifImage, root: SifPartition): Description {
  return describe(sealed, (objects) =>
    objects.length < 2 ? objects : objects.filter(({ group }) => group === root.group),
  )
}

/** What lies beside the partitions and says something about them. Hash trees are signed or worth nothing. */
export function metadataOutside(image: SifImage): readonly SifObject[] {
  return image.objects.filter((object) => isMetadata(object) && !isVerity(object))
}

/** These have no name that tells them apart. */
const singular: ReadonlySet<number> = new Set([DataType.definition, DataType.environment, DataType.labels])

function saysTheSame(a: SifObject, b: SifObject): boolean {
  return a.type === b.type && (singular.has(a.type) || a.name === b.name)
}

/**
 * Sees to it that what is copied of an image means one thing, so that no copy makes more of an object than it was.
 *
 * @throws SifError `ERR_SIF_AMBIGUOUS`.
 */
export function checkDescription(image: SifImage, root: SifPartition, sealed: SifImage | undefined): void {
  descriptionOf(image, root)
  if (sealed === undefined) return
  sealedDescription(sealed, root)
  for (const object of metadataOutside(image))
    if (sealed.objects.some((inside) => saysTheSame(inside, object)))
      throw new SifError(
        "ERR_SIF_AMBIGUOUS",
        `${image.path}: object ${object.id} lies outside of the encryption, where anybody may have put it, and stands for ` +
          "one that is sealed inside",
        { path: image.path },
      )
}
