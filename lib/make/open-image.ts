// Whatever names an image: a path, or docker://, oci:, oci-archive: and docker-archive:. What finds and builds one is loaded when
// it is such a name: what opens a file should start without.
import * as is from "../arguments.ts"
import { openPath, openRows, type Image, type OpenOptions } from "../container/image.ts"
import {
  metadataRows,
  readPathMetadata,
  type ImageMetadata,
  type MetadataOptions,
} from "../container/metadata.ts"
import { Credentials } from "../encryption/credentials.ts"
import { SignatureError } from "../errors.ts"
import { isOrasName, parseReference } from "../oci/reference.ts"
import { layerRows } from "../source/layer-options.ts"
import type * as names from "./named-image.ts"
import type * as sifs from "./named-sif.ts"
import type { NamedOptions, NameOptions, Use } from "./named-image.ts"

/** How {@link open} opens. */
export interface OpenImageOptions extends OpenOptions, NameOptions {}

/** How {@link readMetadata} reads. */
export interface ReadMetadataOptions extends MetadataOptions, NameOptions {}

const nameRows: is.Rows<NameOptions> = { ...layerRows, architecture: is.text }
const checkOpen = is.shape<OpenImageOptions>({ ...openRows, ...nameRows })
const checkMetadata = is.shape<ReadMetadataOptions>({ ...metadataRows, ...nameRows })

// Functions of their own: where TypeScript translates `using` it forgets to name the compiled file.
const namedImage = (): Promise<typeof names> => import("./named-image.ts")
const namedSif = (): Promise<typeof sifs> => import("./named-sif.ts")

/** Uses the image that a name stands for, or a path leads to. */
async function withImage<T, O extends NamedOptions>(name: string, options: O, use: Use<T, O>): Promise<T> {
  options.signal?.throwIfAborted()
  using credentials = new Credentials(options.unlock)
  // A path that looks like a name has ./ before it: nobody who may write into a folder decides what a name means there.
  if (isOrasName(name)) {
    const { useRemoteSif } = await namedSif()
    return await useRemoteSif(name, options, (file, shown) => use(file, options, credentials, shown))
  }
  const reference = parseReference(name)
  if (reference === undefined) return await use(name, options, credentials)
  if (options.verify !== undefined)
    throw new SignatureError(
      "ERR_SIGNATURE_MISSING",
      `${name} is an OCI image, which nobody signs in a way that is looked at here: it cannot be verified`,
      { path: name },
    )
  const { NamedImage } = await namedImage()
  return await new NamedImage(name, reference, options, use, credentials).run()
}

/** Is it the name of an image that has to be built or fetched, and not a path? */
export function isImageName(name: string): boolean {
  is.text(name, "name")
  return /^(?:docker|oci|oci-archive|docker-archive|store|oras):/.test(name)
}

/**
 * Opens an image, whatever it is: a SIF, whose table is checked and whose key is recovered when it is encrypted, a squashfs file,
 * also one behind a launch line, a folder, or the name of an OCI image: `docker://…`, `oci:…`, `oci-archive:…`,
 * `docker-archive:…` as for {@link build}. That is built into the cache, under its digest, and found there the next time: plain
 * if everybody gets it, and encrypted for the credentials of `unlock` if it took one. Without any it is not kept. The SIF that
 * `oras://…` names is fetched there as it is; one that took a credential and is not encrypted is not kept.
 *
 * @throws SifError, KeyError, LuksError, GocryptfsError, EnvironmentError; TreeError for an outer squashfs that is malformed;
 * SignatureError `ERR_UNSIGNED` when `unsigned` is `error`, what {@link verify} finds against the image, `ERR_ECL_FILE` and
 * `ERR_ECL_REFUSED` by the execution control list, `ERR_SIGNATURE_CHANGED` for a verified file that is being written to,
 * `ERR_SIGNATURE_MISSING` for what nobody signs; of a name what {@link build} throws.
 */
export async function open(image: string, given: OpenImageOptions = {}): Promise<Image> {
  is.path(image, "image")
  return await withImage(image, checkOpen(given, "options"), openPath)
}

/**
 * Reads what an image says of itself, at most {@link MAX_METADATA_SIZE} of it; an image by its name is built first, as for
 * {@link open}. Without its key an encrypted image says what lies beside its encryption, if there is something; with its key that
 * is not looked at. Of objects that `verify` does not verify nothing is returned.
 *
 * @throws SifError `ERR_SIF_AMBIGUOUS`, `ERR_SIF_TOO_LARGE`, `ERR_SIF_METADATA` and others; what {@link open} throws; the signal's
 * reason.
 */
export async function readMetadata(image: string, given: ReadMetadataOptions = {}): Promise<ImageMetadata> {
  is.path(image, "image")
  return await withImage(image, checkMetadata(given, "options"), readPathMetadata)
}
