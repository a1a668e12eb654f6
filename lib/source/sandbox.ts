// What an image of a sandbox says of itself. As with the peers, whose `build` makes a definition file of it: its base is the folder,
// its labels are the folder's and those of this build, and the definition that the folder was made of is history.
import { openImagePath, openRootTree } from "../container/image-root.ts"
import type { ReadableTree } from "../device/tree.ts"
import { BuildError, TreeError } from "../errors.ts"
import { printable } from "../printable.ts"
import { shownArchitecture } from "../sif/names.ts"
import { SifImage } from "../sif/open.ts"
import type { LayerOptions } from "./layer-options.ts"
import {
  buildLabels,
  metadataFiles,
  metadataObjects,
  type AddedEntry,
  type ImageDescription,
} from "./metadata-files.ts"
import type { BuildSource } from "./source.ts"
import { TextReader, TreeTexts } from "./tree-texts.ts"

const FOLDER = ".singularity.d"
const HISTORY = `${FOLDER}/bootstrap_history`

/** The definition that the folder was made of, behind those that were before it. */
async function history(tree: ReadableTree, texts: TextReader): Promise<AddedEntry[]> {
  const definition = await texts.text(`/${FOLDER}/Singularity`)
  if (definition === undefined) return []
  const before = await tree.find(`/${HISTORY}`, false)
  const count = before?.type === "directory" ? (await tree.list(`/${HISTORY}`)).length : 0
  return [
    { path: HISTORY, type: "directory", mode: 0o755 },
    { path: `${HISTORY}/Apptainer${count}`, type: "file", mode: 0o644, content: definition },
  ]
}

/** What can be added: where the sandbox has a link in the place of a folder, what is behind that is its own. */
async function addable(tree: ReadableTree, entries: readonly AddedEntry[]): Promise<AddedEntry[]> {
  const links: string[] = []
  for (const { path, type } of entries)
    if (type === "directory" && path.startsWith(`${FOLDER}/`)) {
      const there = await tree.find(`/${path}`, false)
      if (there !== undefined && there.type !== "directory") links.push(path)
    }
  return entries.filter(({ path }) => !links.some((link) => `${path}/`.startsWith(`${link}/`)))
}

async function describe(
  tree: ReadableTree,
  path: string,
  { architecture, sourceDateEpoch }: LayerOptions,
): Promise<Pick<BuildSource, "added" | "objects">> {
  const time = sourceDateEpoch ?? Math.floor(Date.now() / 1000)
  const from = printable(path)
  const own = buildLabels(shownArchitecture(architecture), time, "localimage", from)
  const texts = new TextReader(new TreeTexts(tree))
  const description: ImageDescription = {
    ...(await texts.scripts()),
    definition: `bootstrap: localimage\nfrom: ${from}\n\n`,
    labels: { ...(await texts.labels(`/${FOLDER}`)), ...own },
  }
  // Scripts stay as they are there, which may be links.
  const { definition, labels } = description
  const files = metadataFiles({ definition, labels })
  const added = await addable(tree, [...files, ...(await history(tree, texts))])
  return { added, objects: metadataObjects(description) }
}

/**
 * A folder that says what it is, with what its image says in its place; what is only a tree of files stays one.
 *
 * @throws BuildError `ERR_BUILD_SOURCE`.
 */
export async function describedSandbox(source: BuildSource, options: LayerOptions): Promise<BuildSource> {
  const { path } = source
  await using root = await openImagePath(path)
  if (root instanceof SifImage) return source
  try {
    using tree = await openRootTree(root, undefined)
    if ((await tree.find(`/${FOLDER}`, false))?.type !== "directory") return source
    const described = await describe(tree, path, options)
    return { ...source, ...described, [Symbol.asyncDispose]: () => source[Symbol.asyncDispose]() }
  } catch (cause) {
    if (!(cause instanceof TreeError) && !(cause instanceof SyntaxError)) throw cause
    const what = cause instanceof TreeError ? cause.message : "a labels.json in it is no JSON"
    throw BuildError.at(path, "ERR_BUILD_SOURCE", what, { cause })
  }
}
