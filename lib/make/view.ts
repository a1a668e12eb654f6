// An encrypted image as a plain one, for programs that know no other: files that are made while they are read, and lie nowhere.
import * as is from "../arguments.ts"
import { unsignedPolicy, type OpenOptions } from "../container/image.ts"
import { mountPoint, startMount, type Mount, type MountOptions } from "../container/mount.ts"
import { kdfLimits } from "../device/luks-header.ts"
import { credentialList, Credentials, type CredentialSource } from "../encryption/credentials.ts"
import { SifError } from "../errors.ts"
import type { StarterView } from "../runtime/starter-protocol.ts"
import { verifyOptions } from "../signing/verify.ts"
import { openImageSource, type SourceImage } from "../source/source.ts"
import { planPlainImage, type ImagePlan } from "./write-image.ts"

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

const check = is.shape<ViewOptions>({
  image: is.required(is.path),
  target: is.required(is.path),
  unlock: credentialList,
  kdfLimits,
  onDerivation: is.callback,
  onNotice: is.callback,
  requireEncrypted: is.flag,
  unsigned: unsignedPolicy,
  verify: is.notUndefined(verifyOptions),
  detached: is.flag,
  signal: is.abortSignal,
})

/** Each costs whoever serves them a descriptor and a word in its arguments. Objects that lie side by side are one. */
const MAX_PIECES = 512

/** Where what the plain image has is taken from. */
function piecesOf(parts: ImagePlan["parts"], { sif, sealed, sealedAt }: SourceImage): StarterView["pieces"] {
  const pieces: StarterView["pieces"][number][] = []
  for (const { at, size, passenger } of parts) {
    const isInside = passenger === undefined || passenger.image === sealed
    const offset = passenger === undefined ? 0 : passenger.object.offset + (isInside ? sealedAt : 0)
    const piece = { from: isInside ? ("root" as const) : ("image" as const), at, offset, size }
    const last = pieces.at(-1)
    const goesOn =
      last?.from === piece.from && last.at + last.size === at && last.offset + last.size === offset
    if (goesOn) pieces[pieces.length - 1] = { ...last, size: last.size + size }
    else if (size > 0) pieces.push(piece)
  }
  if (pieces.length > MAX_PIECES)
    throw SifError.at(
      sif.path,
      "ERR_SIF_TOO_LARGE",
      `its objects lie in ${pieces.length} places, and ${MAX_PIECES} can be shown`,
    )
  return pieces
}

/**
 * Shows an image on a folder as two files, to nobody but its owner: `image.sif`, which is what {@link decrypt} would write, and
 * `root.squashfs`, its root file system. Nothing of them is on a disk; a block is deciphered when it is read, and verified before
 * where the root file system has a signed hash tree and `verify` is given. All else is verified once, before anything is shown.
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
  await using source = await openImageSource(image, credentials, { ...options, isMounted: true })
  const { sif, primary, length, opening, vouched } = source.image
  const { head, size, parts } = await planPlainImage(options, source)
  const pieces = piecesOf(parts, source.image)
  const { fd } = sif
  const shown = {
    image: sif.path,
    fd,
    offset: primary.offset,
    size: primary.size,
    verity: primary.verity,
    unlocked: opening?.unlocked,
  }
  const start = (): Promise<Mount> =>
    startMount(shown, "userspace", folder, options, { head, size, rootSize: length, pieces })
  return await (vouched === undefined ? start() : vouched.while(start, (mount) => mount.unmount()))
}
