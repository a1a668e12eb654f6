// Where an image comes from, as far as it shows: asked before any of its keys is used.
import { requireVerified, verifySif } from "../signing/verify.ts"
import type { SifPartition } from "../sif/format.ts"
import type { SifImage } from "../sif/open.ts"
import { examineExecution, requireAllowed } from "./execution-control.ts"
import type { OpenOptions } from "./image.ts"
import { checkUnsigned } from "./signature.ts"
import { Vouched } from "./vouched.ts"

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

/**
 * The same for an image that is to be mounted or run, after the execution control list was asked.
 *
 * @returns How to ask again; undefined: nothing is demanded.
 * @throws SignatureError.
 */
export async function vouch(
  image: SifImage,
  partition: SifPartition,
  options: OriginOptions,
): Promise<Vouched | undefined> {
  const { verify, onNotice, signal, ...rest } = options
  const verdict = await examineExecution(image, signal)
  requireAllowed(verdict)
  if (!verdict.active && verify === undefined) {
    await checkOrigin(image, partition, options)
    return undefined
  }
  let first = true
  return await Vouched.for(image, async () => {
    // What was to be told is told once.
    const tell = first && onNotice !== undefined ? { onNotice } : {}
    const stop = signal === undefined ? {} : { signal }
    if (!first) requireAllowed(await examineExecution(image, signal))
    first = false
    await checkOrigin(image, partition, {
      ...rest,
      ...tell,
      ...stop,
      ...(verify === undefined ? {} : { verify }),
    })
  })
}
