// Where an image comes from, as far as it shows: asked before any of its keys is used.
import { requireVerified, verifySif } from "../signing/verify.ts"
import type { SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import type { OpenOptions } from "./image.ts"
import { checkUnsigned } from "./signature.ts"

/** What is demanded of an image before it is opened. */
export type OriginOptions = Pick<OpenOptions, "unsigned" | "verify" | "onNotice" | "signal">

/**
 * Carries out what `unsigned` and `verify` of {@link OpenOptions} say.
 *
 * @throws SignatureError.
 */
export async function checkOrigin(
  image: SifImage,
  partition: SifPartition,
  options: OriginOptions,
): Promise<void> {
  const { unsigned = "allow", verify, onNotice, signal } = options
  const notice = await checkUnsigned(image, partition, unsigned)
  if (notice !== undefined) onNotice?.(notice)
  if (verify !== undefined)
    requireVerified(await verifySif(image, signal === undefined ? verify : { signal, ...verify }))
}
