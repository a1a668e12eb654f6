// Groups of objects, as signatures see them.
import { SignatureError } from "../errors.ts"
import type { SifObject } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"

/** The groups that objects are in, ascending. */
export function groupsOf(image: SifImage): number[] {
  return [...new Set(image.objects.map(({ group }) => group))]
    .filter((group) => group !== 0)
    .sort((a, b) => a - b)
}

/**
 * What is in a group, in the order of the slots. A signature from before Singularity 3.6 that lies in a group is an object of it.
 *
 * @throws SignatureError `ERR_SIGNATURE_MISSING` when there is no such group.
 */
export function groupOf(image: SifImage, group: number): readonly SifObject[] {
  const members = group === 0 ? [] : image.group(group)
  if (members.length > 0) return members
  const { path } = image
  throw SignatureError.at(path, "ERR_SIGNATURE_MISSING", `there is no group ${group}`)
}

/** What the relative IDs of a group's objects count from. */
export function lowestId(members: readonly SifObject[]): number {
  return members.reduce((lowest, { id }) => Math.min(lowest, id), Infinity)
}
