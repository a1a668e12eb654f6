// Where an image comes from, as far as it shows: asked before any of its keys is used.
import { encryptionOf, overlaysOf, refusePlain } from "../encryption/partition.ts"
import { SignatureError } from "../errors.ts"
import { requireVerified, verifySif, type VerifyOptions } from "../signing/verify.ts"
import { VerifyWhenRead } from "../signing/verity.ts"
import { PartitionType, type SifObject, type SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { examineExecution, requireAllowed } from "./execution-control.ts"
import type { OpenOptions } from "./image.ts"
import { checkUnsigned } from "./signature.ts"
import { Vouched } from "../file/vouched.ts"

/** Is it among what is to be verified? */
export function isVerified(
  { id, group, partition }: SifObject,
  { groups, objects, legacy }: VerifyOptions,
): boolean {
  if (objects !== undefined) return objects.includes(id)
  if (groups !== undefined) return groups.includes(group)
  return legacy !== "primary" || partition?.type === PartitionType.primarySystem
}

/** What is verified has to be what is read. */
function checkScope(image: SifImage, partition: SifPartition, verify: VerifyOptions): void {
  if (isVerified(partition, verify)) return
  const { id, group } = partition
  throw SignatureError.at(
    image.path,
    "ERR_SIGNATURE_MISSING",
    `partition ${id} of group ${group} is not among what is to be verified`,
  )
}

/** Nothing plain is used of it: what is not verified is left aside where that is asked for. */
function checkEncrypted(image: SifImage, partition: SifPartition, verify: VerifyOptions | undefined): void {
  if (encryptionOf(partition) === undefined) refusePlain(image.path, "its root file system")
  for (const overlay of overlaysOf(image.objects, partition))
    if (verify === undefined || isVerified(overlay, verify))
      refusePlain(image.path, `its overlay ${overlay.id}`)
}

/** What is demanded of an image before it is opened. */
export type OriginOptions = Pick<
  OpenOptions,
  "unsigned" | "verify" | "requireEncrypted" | "onNotice" | "signal"
>

/**
 * Carries out what `requireEncrypted`, `unsigned` and `verify` of {@link OpenOptions} say.
 *
 * @returns The partition to go on with: where its signed hash tree vouches for what is read of it, with that.
 * @throws SifError `ERR_SIF_PLAIN`; SignatureError.
 */
export async function checkOrigin(
  image: SifImage,
  partition: SifPartition,
  options: OriginOptions,
): Promise<SifPartition> {
  const { unsigned = "allow", verify, requireEncrypted = false, onNotice, signal } = options
  if (requireEncrypted) checkEncrypted(image, partition, verify)
  const notice = await checkUnsigned(image, partition, unsigned)
  if (notice !== undefined) onNotice?.(notice)
  if (verify === undefined) return partition
  checkScope(image, partition, verify)
  const later = await VerifyWhenRead.of(image, partition)
  requireVerified(await verifySif(image, signal === undefined ? verify : { signal, ...verify }, later))
  return later.verity === undefined ? partition : { ...partition, verity: later.verity }
}

/** What passed, and how to ask again; undefined: nothing is demanded. */
export interface VouchedPartition {
  readonly partition: SifPartition
  readonly vouched: Vouched | undefined
}

/**
 * The same for an image that is to be mounted, run or copied, whose file is looked at again then.
 *
 * @param runs - The execution control list is asked first: not where it is copied.
 * @throws SignatureError.
 */
export async function vouch(
  image: SifImage,
  partition: SifPartition,
  options: OriginOptions,
  runs = true,
): Promise<VouchedPartition> {
  const { verify, onNotice, signal, ...rest } = options
  /** Is there a list? */
  const isAllowed = async (): Promise<boolean> => {
    if (!runs) return false
    const verdict = await examineExecution(image, signal)
    requireAllowed(verdict)
    return verdict.active
  }
  if (!(await isAllowed()) && verify === undefined)
    return { partition: await checkOrigin(image, partition, options), vouched: undefined }
  let first = true
  let passed = partition
  const vouched = await Vouched.for(image, async () => {
    // What was to be told is told once.
    const tell = first ? onNotice : undefined
    if (!first) await isAllowed()
    first = false
    passed = await checkOrigin(image, partition, {
      ...rest,
      onNotice: tell,
      signal,
      verify,
    })
  })
  return { partition: passed, vouched }
}
