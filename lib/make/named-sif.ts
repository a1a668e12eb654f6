// A SIF at a registry where an image is named: fetched into the cache once, under its digest, and used from there.
import { link } from "node:fs/promises"
import { cacheFolder } from "../oci/cache.ts"
import type { Digest } from "../oci/digest.ts"
import { openImageCache, type ImageCache } from "../oci/image-cache.ts"
import { architectureOf } from "../oci/manifest.ts"
import { parseOrasName } from "../oci/reference.ts"
import { Output } from "../file/output.ts"
import { descriptorPath } from "../oci/temporary-file.ts"
import { RemoteSif } from "../source/remote-sif.ts"
import type { LayerOptions } from "../source/layer-options.ts"

/** Of what is in the cache; nobody else can be told of it. */
const PRIVATE_MODE = 0o600

async function write(remote: RemoteSif, target: string, encrypted: boolean): Promise<void> {
  await using output = await Output.create(target, true, PRIVATE_MODE)
  if (encrypted) await remote.writeEncrypted(output)
  else await remote.write((piece, position) => output.write(piece, position))
  await output.publish(true)
}

/**
 * Has the image in the cache.
 *
 * @param alias - By this digest, too, which is that of an index.
 * @returns undefined: it is neither everybody's nor encrypted.
 */
async function keep(
  cache: ImageCache,
  remote: RemoteSif,
  architecture: string,
  alias: Digest | undefined,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const blob = await remote.keep()
  const encrypted = blob === undefined
  if (encrypted && !(await remote.seemsEncrypted())) return undefined
  const { digest } = remote
  const file = await cache.make(
    digest,
    { encrypted },
    async (target) => {
      if (blob === undefined) await write(remote, target, true)
      // The same file has both names; somebody may empty the cache meanwhile.
      else await link(blob, target).catch(() => write(remote, target, false))
    },
    { signal },
  )
  if (alias !== undefined && alias.text !== digest.text)
    await cache.alias(digest, alias, { encrypted, architecture })
  return file
}

/**
 * Does something with the file of the SIF that an `oras://` name stands for.
 *
 * @param use - Gets the file, and what to call it where that says nothing.
 * @throws OciError; SifError of what is no SIF; the signal's reason.
 */
export async function useRemoteSif<T>(
  name: string,
  options: LayerOptions,
  use: (file: string, shown?: string) => Promise<T>,
): Promise<T> {
  const { oci = {}, signal, onNotice } = options
  const folder = oci.cacheFolder ?? cacheFolder(oci.environment)
  const architecture = architectureOf(options.architecture)
  const { keeps, cache } =
    oci.disableCache === true ? { keeps: false, cache: undefined } : await openImageCache(folder, onNotice)
  const find = async (digest: Digest): Promise<string | undefined> => {
    for (const encrypted of [false, true])
      for (const variant of [{ encrypted }, { encrypted, architecture }]) {
        const file = await cache?.find(digest, variant)
        if (file !== undefined) return file
      }
    return undefined
  }
  const { digest: pinned } = parseOrasName(name)
  // Whatever a registry would send is the same.
  const known = pinned === undefined ? undefined : await find(pinned)
  if (known !== undefined) return await use(known)
  await using remote = await RemoteSif.find(name, { ...options, oci: { ...oci, disableCache: !keeps } })
  const file =
    (await find(remote.digest)) ?? (cache && (await keep(cache, remote, architecture, pinned, signal)))
  if (file !== undefined) return await use(file)
  if (cache !== undefined)
    onNotice?.(`${remote.reference.text} took a credential to get and is not encrypted: it is not kept`)
  await using fetched = await remote.fetch()
  return await use(descriptorPath(fetched), name)
}
