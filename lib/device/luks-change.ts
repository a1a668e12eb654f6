// Keyslots of an image changed in place: what is written, and in which order, so that the header opens after every write
// and within every write.
//
// A LUKS2 header has two copies of its metadata, each with a checksum and a sequence number; readers take the valid copy
// with the higher number, the first one of equals (cryptsetup and we alike). The copy that is in force is overwritten last:
//
//   1  the areas of new keyslots, where nothing that is in use lies          a reader sees no difference
//   2  the copy that is not in force, with a higher sequence number          the commit; half of it is a wrong checksum
//   3  the other copy                                                        half of it again: the first copy counts
//   4  zeros over all that no keyslot uses                                   also over what a killed change left behind
import { randomBytes } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import { LuksError } from "../errors.ts"
import type { NativeLuksKeyslot } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import { alignUp, type Bytes } from "../units.ts"
import {
  AF_STRIPES,
  AREA_UNIT,
  decodeAddedKeyslots,
  decodeLuksHeader,
  encodeLuksCopy,
  KEYSLOT_LIMIT,
  MAX_AREA_SIZE,
  type LuksArea,
  type LuksDocument,
  type LuksHeader,
  type LuksStored,
} from "./luks-header.ts"
import type { JsonObject, JsonValue } from "./strict-json.ts"

/** One write to the partition, on the disk before the next one begins. Offsets are from the start of the partition. */
export type LuksStep =
  | { readonly kind: "keyslot" | "metadata"; readonly offset: Bytes; readonly bytes: Buffer }
  | { readonly kind: "wipe"; readonly offset: Bytes; readonly size: Bytes }

/** A change of keyslots, made in memory. */
export interface LuksChange {
  /** The numbers of the keyslots that were added, in their order. */
  readonly added: readonly number[]
  /** In their order; the first of kind `metadata` is the commit. */
  readonly steps: readonly LuksStep[]
  /** What the image's header will be. */
  readonly header: LuksHeader
}

const SALT_SIZE: Bytes = 64
const MAX_SEQUENCE = 2n ** 64n - 1n

function overlaps(a: LuksArea, b: LuksArea): boolean {
  return a.offset < b.offset + b.size && b.offset < a.offset + a.size
}

/** What of the keyslots area no keyslot uses, as far as keyslots are ever put there. */
function unusedAreas(stored: LuksStored): LuksArea[] {
  const { keyslotsArea } = stored
  const end = Math.min(keyslotsArea.offset + keyslotsArea.size, MAX_AREA_SIZE)
  const unused: LuksArea[] = []
  let at = keyslotsArea.offset
  for (const { offset, size } of [...stored.areas.values()].sort((a, b) => a.offset - b.offset)) {
    if (offset > at) unused.push({ offset: at, size: offset - at })
    at = Math.max(at, offset + size)
  }
  if (end > at) unused.push({ offset: at, size: end - at })
  return unused
}

/** @throws LuksError `ERR_LUKS_FULL` when the header cannot take `count` keyslots more. */
export function requireRoom(header: LuksHeader, count: number): void {
  const { stored, segment } = header
  const ids = KEYSLOT_LIMIT - stored.areas.size
  if (count > ids)
    throw new LuksError(
      "ERR_LUKS_FULL",
      `the LUKS2 header has ${ids} free keyslots of ${KEYSLOT_LIMIT}, not ${count}`,
    )
  const size = alignUp(segment.keySize * AF_STRIPES, AREA_UNIT)
  const areas = unusedAreas(stored).reduce(
    // an area in the image may end anywhere
    (sum, area) =>
      sum + Math.max(0, Math.floor((area.offset + area.size - alignUp(area.offset, AREA_UNIT)) / size)),
    0,
  )
  if (count > areas)
    throw new LuksError(
      "ERR_LUKS_FULL",
      `the keyslots area of ${stored.keyslotsArea.size} bytes has room for ${areas} more keyslots of ${size} bytes, not ${count}`,
    )
}

/** Tokens of keyslots that stay, for those keyslots only. What is no token is left behind. */
function carriedTokens(tokens: JsonValue | undefined, kept: ReadonlySet<string>): object {
  if (typeof tokens !== "object" || tokens === null || Array.isArray(tokens)) return {}
  const carried = Object.entries(tokens as JsonObject).flatMap(([id, token]) => {
    if (!/^(?:0|[1-9][0-9]?)$/.test(id) || Number(id) >= KEYSLOT_LIMIT) return []
    if (typeof token !== "object" || token === null || Array.isArray(token)) return []
    const { type, keyslots, ...rest } = token as JsonObject
    if (typeof type !== "string" || !Array.isArray(keyslots)) return []
    const left = (keyslots as readonly JsonValue[]).filter(
      (slot) => typeof slot === "string" && kept.has(slot),
    )
    return left.length === 0 ? [] : [[id, { type, keyslots: left, ...rest }] as const]
  })
  return Object.fromEntries(carried)
}

function carriedFlags(flags: JsonValue | undefined): object {
  return Array.isArray(flags) && flags.length > 0 && flags.every((flag) => typeof flag === "string")
    ? { flags }
    : {}
}

function changedDocument(
  stored: LuksStored,
  removed: ReadonlySet<string>,
  added: readonly { readonly id: number; readonly json: object }[],
): LuksDocument {
  const { document } = stored
  const stays = ([id]: readonly [string, unknown]): boolean => !removed.has(id)
  const kept = Object.fromEntries(Object.entries(document.keyslots).filter(stays))
  const keyslots = { ...kept, ...Object.fromEntries(added.map(({ id, json }) => [id, json])) }
  return {
    keyslots,
    tokens: carriedTokens(stored.tokens, new Set(Object.keys(kept))),
    segments: document.segments,
    digests: Object.fromEntries(
      Object.entries(document.digests).map(([id, digest]) => [
        id,
        { ...digest, keyslots: Object.keys(keyslots) },
      ]),
    ),
    config: { ...document.config, ...carriedFlags(stored.flags) },
  }
}

/**
 * What has to be written.
 *
 * @param made - What libcryptsetup made of `encodeForChange(header)`.
 * @param remove - Keyslots that are there.
 * @throws LuksError `ERR_LUKS_FULL` when the metadata gets too long; as `decodeLuksHeader` for a header that could not be
 * opened afterwards.
 */
export function planLuksChange(
  header: LuksHeader,
  made: { readonly metadata: Buffer; readonly keyslots: readonly NativeLuksKeyslot[] },
  remove: readonly number[],
): LuksChange {
  const { stored } = header
  const ids = made.keyslots.map(({ keyslot }) => keyslot)
  const added = decodeAddedKeyslots(header, made.metadata, ids)
  const steps: LuksStep[] = added.map(({ id, area }, i) => {
    const bytes = made.keyslots[i]?.area
    if (bytes?.length !== area.size || made.keyslots[i]?.offset !== area.offset)
      throw new LuksError("ERR_LUKS_FORMAT", `libcryptsetup's keyslot ${id} is not where its metadata says`)
    // Until the commit, the keyslots that go are in use as well.
    if (stored.areas.has(id) || [...stored.areas.values()].some((used) => overlaps(used, area)))
      throw new LuksError("ERR_LUKS_FORMAT", `libcryptsetup put keyslot ${id} over another one`)
    return { kind: "keyslot", offset: area.offset, bytes }
  })

  if (stored.sequence >= MAX_SEQUENCE)
    throw new LuksError(
      "ERR_LUKS_HEADER",
      "the LUKS2 header is malformed: no sequence number follows its own",
    )
  const document = changedDocument(stored, new Set(remove.map(String)), added)
  const { headerSize, label, subsystem } = stored
  const copy = (which: LuksStored["current"]): Buffer => {
    const salt = randomBytes(SALT_SIZE)
    const binary = { headerSize, sequence: stored.sequence + 1n, uuid: header.uuid, label, subsystem, salt }
    const bytes = encodeLuksCopy(which, binary, document)
    if (bytes === undefined)
      throw new LuksError("ERR_LUKS_FULL", `metadata of ${headerSize} bytes has no room for another keyslot`)
    return bytes
  }
  const primary = { kind: "metadata", offset: 0, bytes: copy("primary") } as const
  const secondary = { kind: "metadata", offset: headerSize, bytes: copy("secondary") } as const
  steps.push(...(stored.current === "primary" ? [secondary, primary] : [primary, secondary]))

  const metadata = Buffer.concat([primary.bytes, secondary.bytes])
  const changed = decodeLuksHeader(metadata, stored.partitionSize, stored.policy)
  for (const area of unusedAreas(changed.stored)) steps.push({ kind: "wipe", ...area })
  return { added: ids, steps, header: changed }
}

/**
 * Does it: each step is on the disk before the next one begins. After a failure, the header is the old one or the new one.
 *
 * @param file - The image, open for reading and writing.
 * @param offset - Where the partition starts in it.
 * @throws The system's errors as they are.
 */
export async function applyLuksSteps(
  file: FileHandle,
  offset: Bytes,
  steps: readonly LuksStep[],
): Promise<void> {
  for (const step of steps) {
    const at = offset + step.offset
    if (step.kind === "wipe") {
      await loadAddon().wipeRange({ fd: file.fd, offset: at, size: step.size })
      continue
    }
    for (let done = 0; done < step.bytes.length;)
      done += (await file.write(step.bytes, done, step.bytes.length - done, at + done)).bytesWritten
    await file.datasync()
  }
}
