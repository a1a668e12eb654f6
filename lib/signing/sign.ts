// Adds signatures to an image: states what it holds, has that signed, and puts the signature objects in, all at once.
import { SignatureError } from "../errors.ts"
import { changeSif, type SifChange } from "../file/image-change.ts"
import { DataType, signatureExtra, type SifObject } from "../sif/format.ts"
import { grouped, type SifImage } from "../sif/open.ts"
import { veritySize } from "../sif/verity.ts"
import { accumulated, type Bytes, type OnProgress } from "../units.ts"
import { descriptorStream, headerStream, ObjectDigests, sha256Text } from "./digest.ts"
import { groupOf, groupsOf, lowestId } from "./groups.ts"
import { metadataText } from "./metadata.ts"
import type { Signer } from "./signer.ts"
import { appendVerity, veritiesOf } from "./verity.ts"

/** What is signed. */
export interface SignTargets {
  /** Groups to sign, each by a signature of its own; default: every group of the image. */
  readonly groups?: readonly number[]
  /** Single objects to sign instead; those of one group by one signature. */
  readonly objects?: readonly number[]
  /**
   * Give the root file system a signed hash tree, a 127th of its size, so that opening the image with `verify` need not read all
   * of it; one that is there and right stays. Its group must be signed as a whole.
   */
  readonly tree?: boolean
  /** Seconds since 1970 that signatures and objects are stamped with; default now. */
  readonly time?: number
  readonly signal?: AbortSignal
  /** Bytes hashed so far, of how many. */
  readonly onProgress?: OnProgress
}

/** A signature that was added. */
export interface AddedSignature {
  /** The signature object's ID. */
  readonly id: number
  readonly group: number
  /** IDs of the objects that it covers. */
  readonly objects: readonly number[]
}

/** What signing did. */
export interface SignReport {
  readonly path: string
  readonly kind: "openpgp" | "dsse"
  /** OpenPGP: the primary key's fingerprint, upper-case hexadecimal; DSSE: `SHA256:…`. */
  readonly signer: string
  readonly signatures: readonly AddedSignature[]
  /** IDs of objects that are in no group: nothing can sign them, and an image with such objects does not verify as a whole. */
  readonly ungrouped: readonly number[]
}

/** Whoever signs a large image takes as long as hashing it does. */
const PATIENCE_MS = 600_000

interface Target {
  readonly group: number
  readonly objects: readonly SifObject[]
}

function targetsOf(image: SifImage, { groups, objects }: SignTargets): Target[] {
  const { path } = image
  if (objects === undefined) {
    const wanted = groups === undefined ? groupsOf(image) : [...new Set(groups)]
    if (wanted.length === 0)
      throw SignatureError.at(path, "ERR_SIGNATURE_MISSING", "nothing in the image can be signed")
    return wanted.map((group) => ({ group, objects: groupOf(image, group) }))
  }
  const chosen = [...new Set(objects)].map((id) => {
    const object = image.object(id)
    if (object.group === 0 || object.type === DataType.signature)
      throw SignatureError.at(
        path,
        "ERR_SIGNATURE_MISSING",
        `object ${id} is in no group, so nothing can sign it`,
      )
    return object
  })
  return [...grouped(chosen, ({ group }) => group)].map(([group, members]) => ({ group, objects: members }))
}

/** The text that states what the image holds. The digests must have been computed. */
function statement(image: SifImage, { group, objects }: Target, digests: ObjectDigests): string {
  const lowest = lowestId(groupOf(image, group))
  return metadataText(
    sha256Text(headerStream(image.headerBytes)),
    objects.map((object) => ({
      relativeId: object.id - lowest,
      descriptorDigest: sha256Text(descriptorStream(image.descriptorBytes(object), object.id - lowest)),
      objectDigest: `sha256:${digests.value([object], "sha256").toString("hex")}`,
    })),
  )
}

/** A hash tree of the root file system, to be switched on with the signatures; undefined: the right one is there. */
async function appendRootVerity(change: SifChange, targets: SignTargets): Promise<number | undefined> {
  const { image } = change
  const partition = image.primary()
  const chosen = targetsOf(image, targets)
  if (targets.objects !== undefined || !chosen.some(({ group }) => group === partition.group))
    throw SignatureError.at(
      image.path,
      "ERR_SIGNATURE_TREE",
      `a hash tree is signed with all of its group, and group ${partition.group} is not signed as a whole`,
    )
  const { signal, onProgress } = targets
  // What comes next reads what is signed, with the new tree instead of those that are there.
  const old = veritiesOf(image, partition)
  const signed = new Set(chosen.flatMap(({ objects }) => objects.filter((object) => !old.includes(object))))
  const next = [...signed].reduce((sum, { size }) => sum + size, veritySize(partition.size) ?? 0)
  return await appendVerity(change, partition, chosen.length, {
    signal,
    onProgress:
      onProgress &&
      ((done) => {
        onProgress(done, partition.size + next)
      }),
  })
}

/**
 * Signs an image in place. Whatever stops it, the image has all of the new signatures or none; those of more than seven groups
 * appear one after the other.
 *
 * @throws SignatureError `ERR_SIGNATURE_MISSING` for a group or object that is not there, `ERR_SIGNATURE_KEYRING`,
 * `ERR_SIGNATURE_SIGN`, `ERR_SIGNATURE_TREE`; SifError of a malformed or full image, `ERR_SIF_BUSY`; the signal's reason; system errors.
 */
export async function signSif(path: string, signer: Signer, targets: SignTargets = {}): Promise<SignReport> {
  const { signal, onProgress, time = Math.floor(Date.now() / 1000) } = targets
  return await changeSif(
    path,
    async (change) => {
      let hashed: Bytes = 0
      const ofTree = accumulated((done, total) => {
        hashed = done
        onProgress?.(done, total)
      })
      const tree =
        targets.tree === true ? await appendRootVerity(change, { ...targets, onProgress: ofTree }) : undefined
      const added = tree === undefined ? [] : [tree]
      const image = await change.preview(added)
      const chosen = targetsOf(image, targets)
      const digests = new ObjectDigests(image, signal, (done, total) => {
        onProgress?.(hashed + done, total === undefined ? undefined : hashed + total)
      })
      for (const { objects } of chosen) for (const object of objects) digests.want([object], "sha256")
      await digests.compute()
      const made = []
      for (const target of chosen) {
        const { data, hash } = await signer.sign(
          statement(image, target, digests),
          new Date(time * 1000),
          signal,
        )
        made.push({
          type: DataType.signature,
          extra: signatureExtra(hash, signer.entity),
          link: { to: "group", group: target.group } as const,
          data,
        })
      }
      signal?.throwIfAborted()
      const slots = await change.append(made, tree, true)
      await change.switchOn([...added, ...slots])
      change.commit()
      return {
        path,
        kind: signer.kind,
        signer: signer.name,
        signatures: chosen.map(({ group, objects }, index) => ({
          id: (slots[index] ?? 0) + 1,
          group,
          objects: objects.map(({ id }) => id),
        })),
        ungrouped: image.objects
          .filter(({ type, group }) => type !== DataType.signature && group === 0)
          .map(({ id }) => id),
      }
    },
    { time, patienceMs: PATIENCE_MS, signal },
  )
}
