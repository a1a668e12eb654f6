// An OCI image as what another one is built from, with what its configuration means to a SIF.
import { madeOf } from "../disposal.ts"
import type { LayerKeyring } from "../oci/encrypted-layers.ts"
import type { OciImage } from "../oci/image.ts"
import type { ImageConfig } from "../oci/manifest.ts"
import { layerError } from "../oci/native-error.ts"
import type { ImageReference, LocalReference } from "../oci/reference.ts"
import { OCI_EVALUATION } from "../runtime/entry.ts"
import { shellQuote } from "../runtime/environment.ts"
import { openOciImage, type OciOptions } from "../registry/transports.ts"
import { architectureDigits, shownArchitecture } from "../sif/names.ts"
import { buildLabels, metadataFiles, metadataObjects, type ImageDescription } from "./metadata-files.ts"
import type { LayerOptions } from "./layer-options.ts"
import type { BuildSource } from "./source.ts"

/** Of names, links and attributes in memory: some millions of files. */
const MAX_TREE_MEMORY = 2 * 2 ** 30

/** What was taken, whatever the name means later: of the manifest, as OCI's annotation for the base of an image. */
const DIGEST_LABEL = "org.opencontainers.image.base.digest"

/** What a double-quoted word in a shell stands for, and nothing is expanded. */
function doubleQuoted(text: string): string {
  return `"${text.replace(/[\\"$`]/g, "\\$&")}"`
}

/**
 * The run script: entry point and command, the latter replaced by arguments. Only the image's own words are evaluated, and
 * they stand for themselves; arguments reach the program as they were given.
 */
export function ociRunscript({ entrypoint, cmd }: Pick<ImageConfig, "entrypoint" | "cmd">): string {
  const words = (list: readonly string[]): string => shellQuote(list.map(doubleQuoted).join(" "))
  return `#!/bin/sh
OCI_ENTRYPOINT=${words(entrypoint)}
OCI_CMD=${words(cmd)}
if [ $# -eq 0 ]; then eval "set -- $OCI_CMD"; fi
${OCI_EVALUATION}
if [ $# -eq 0 ]; then set -- /bin/sh; fi
exec "$@"
`
}

/** The environment script: the image's variables where the caller has none; the search path is always the image's. */
export function ociEnvironment(env: readonly string[]): string {
  const lines = env.flatMap((assignment) => {
    const [, name = "", value = ""] = /^([A-Za-z_][A-Za-z0-9_]*)=(.*)$/s.exec(assignment) ?? []
    if (name === "") return []
    const quoted = doubleQuoted(value)
    return [name === "PATH" ? `export PATH=${quoted}\n` : `export ${name}="\${${name}:-${quoted}}"\n`]
  })
  return `#!/bin/sh\n${lines.join("")}`
}

/** As the peers describe an image that was built from a name. */
export function describeOciImage(
  config: ImageConfig,
  from: { readonly bootstrap: string; readonly name: string; readonly digest?: string },
  architecture: string,
  time: number,
): ImageDescription {
  return {
    definition: `bootstrap: ${from.bootstrap}\nfrom: ${from.name}\n\n`,
    labels: {
      ...config.labels,
      ...buildLabels(architecture, time, from.bootstrap, from.name),
      ...(from.digest === undefined ? {} : { [DIGEST_LABEL]: from.digest }),
    },
    runscript: ociRunscript(config),
    ociEnvironment: ociEnvironment(config.env),
    ociConfig: config.raw,
  }
}

/** As SIF and labels name it; an image that does not say is for this machine. */
export function ociArchitecture(config: ImageConfig): string | undefined {
  const { architecture } = config.platform
  return architecture !== "" && architectureDigits(architecture) !== undefined ? architecture : undefined
}

/** The tree of an image that is open, without anything added. */
export async function layerTree(image: OciImage, options: OciOptions): Promise<BuildSource["tree"]> {
  const limits = { bytes: options.maxLayerBytes ?? 64 * 2 ** 30, memory: MAX_TREE_MEMORY }
  return { layers: await image.layers(), limits, added: [] }
}

/** How the image of a source is found. */
export function ociOptions({
  oci,
  architecture,
  requireEncrypted,
  signal,
  onNotice,
}: LayerOptions & Pick<OciOptions, "requireEncrypted">): OciOptions {
  return {
    ...oci,
    requireEncrypted,
    ...(architecture === undefined ? {} : { architecture }),
    ...(signal === undefined ? {} : { signal }),
    ...(onNotice === undefined ? {} : { onNotice }),
  }
}

/**
 * Opens an OCI image as a source.
 *
 * @throws OciError; KeyError for encrypted layers.
 */
export async function openOciSource(
  reference: ImageReference,
  options: LayerOptions & Pick<OciOptions, "requireEncrypted">,
  layerKeys: LayerKeyring,
): Promise<BuildSource> {
  const image = await openOciImage(reference, { ...ociOptions(options), layerKeys })
  return await madeOf(image, async () => {
    const source = await ociSource(image, reference, options)
    return { ...source, [Symbol.asyncDispose]: () => image[Symbol.asyncDispose]() }
  })
}

/** Where the store of whoever builds is concerns nobody. */
function nameIn({ transport, path, selection }: LocalReference): string {
  return transport === "store" ? (selection.name ?? "") : path
}

/**
 * The source that an image is, as long as that is open.
 *
 * @throws OciError.
 */
export async function ociSource(
  image: OciImage,
  reference: ImageReference,
  options: LayerOptions,
): Promise<Omit<BuildSource, keyof AsyncDisposable>> {
  const { sourceDateEpoch } = options
  const architecture = ociArchitecture(image.config)
  const bootstrap = reference.transport
  const name = reference.transport === "docker" ? reference.text : nameIn(reference)
  const time = sourceDateEpoch ?? Math.floor(Date.now() / 1000)
  const shown = shownArchitecture(architecture)
  const from = { bootstrap, name, digest: image.digest.text }
  const description = describeOciImage(image.config, from, shown, time)
  return {
    path: image.name,
    tree: await layerTree(image, ociOptions(options)),
    added: metadataFiles(description),
    objects: metadataObjects(description),
    ownersAreReal: true,
    architecture,
    explain: (cause) => layerError(image.name, cause),
  }
}
