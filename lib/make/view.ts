// An encrypted image as a plain one, for programs that know no other: files that are made while they are read, and lie nowhere.
import { abortSignal, callback, flag, notUndefined, path as filePath, required, shape } from "../arguments.ts"
import { unsignedPolicy, type OpenOptions } from "../container/image.ts"
import { mountPoint, startMount, type Mount, type MountOptions } from "../container/mount.ts"
import { kdfLimits } from "../device/luks-header.ts"
import { credentialList, Credentials, type CredentialSource } from "../encryption/credentials.ts"
import { verifyOptions } from "../signing/verify.ts"
import { openImageSource } from "../source/source.ts"
import { planPlainImage } from "./write-image.ts"

/** How {@link view} shows an image. */
export interface ViewOptions
  extends
    Pick<OpenOptions, "kdfLimits" | "onDerivation" | "onNotice" | "requireEncrypted" | "unsigned" | "verify">,
    Pick<MountOptions, "detached" | "signal"> {
  /** A SIF. */
  readonly image: string
  /** The folder, which exists. */
  readonly target: string
  /** Opens it, where it is encrypted. */
  readonly unlock?: readonly CredentialSource[] | undefined
}

const check = shape<ViewOptions>({
  image: required(filePath),
  target: required(filePath),
  unlock: credentialList,
  kdfLimits,
  onDerivation: callback,
  onNotice: callback,
  requireEncrypted: flag,
  unsigned: unsignedPolicy,
  verify: notUndefined(verifyOptions),
  detached: flag,
  signal: abortSignal,
})

/**
 * Shows an image on a folder as two files, to nobody but its owner: `image.sif`, which is what {@link decrypt} would write, and
 * `root.squashfs`, its root file system. Nothing of them is on a disk; a block is deciphered when it is read, and verified before
 * where the root file system has a signed hash tree and `verify` is given.
 *
 * @throws SifError, KeyError, LuksError, TreeError of the image; BuildError `ERR_BUILD_SOURCE` where its root file system cannot be read
 * here; SignatureError; DeviceError `ERR_MOUNT`; EnvironmentError; the signal's reason.
 */
export async function view(given: ViewOptions): Promise<Mount> {
  const options = check(given, "options")
  const { image, signal } = options
  signal?.throwIfAborted()
  const folder = await mountPoint(options.target)
  using credentials = new Credentials(options.unlock ?? [])
  await using source = await openImageSource(image, credentials, options)
  const { sif, primary, length, opening, sealed, sealedAt } = source.image
  const { head, size, parts } = await planPlainImage(options, source)
  const pieces = parts.map(({ at, size, passenger }) => {
    const isInside = passenger === undefined || passenger.image === sealed
    const offset = passenger === undefined ? 0 : passenger.object.offset + (isInside ? sealedAt : 0)
    return { from: isInside ? ("root" as const) : ("image" as const), at, offset, size }
  })
  const { fd } = sif
  return await startMount(
    {
      image: sif.path,
      fd,
      offset: primary.offset,
      size: primary.size,
      verity: primary.verity,
      unlocked: opening?.unlocked,
    },
    "userspace",
    folder,
    options,
    { head, size, rootSize: length, pieces },
  )
}
