// What %files and %appfiles take of this machine, for a builder that is another one: the names that were meant, and an archive of what
// they lead to, links followed. Each is named by its number there.
import { constants } from "node:fs"
import { open, readdir, realpath, stat } from "node:fs/promises"
import path from "node:path"
import { TAR_END, tarHeader, tarPadding } from "../oci/tar-writer.ts"
import type { Bytes } from "../units.ts"
import type { FileTransfer, Stage } from "./definition-file.ts"
import { kindError, loopError, matchesOf, transferError, why, type TransferContext } from "./file-sets.ts"
import type { SectionName } from "./stages.ts"
import { sentName } from "./sent-names.ts"

const PIECE: Bytes = 256 << 10

type Context = Pick<TransferContext, "path" | "cwd">

/** Those that take from this machine, in the order of the file; so both ends count them alike. */
export function hostTransfers(stages: readonly Stage[]): FileTransfer[] {
  return stages.flatMap(({ files, apps }) => [
    ...files.filter(({ from }) => from === undefined).flatMap(({ transfers }) => transfers),
    ...apps.flatMap((app) => app.files),
  ])
}

/** The stages without `%files` of this machine, where that section is not asked for. */
export function withChosenFiles(
  stages: readonly Stage[],
  sections: readonly SectionName[] | undefined,
): readonly Stage[] {
  if (sections?.includes("files") !== false) return stages
  return stages.map((stage) => ({ ...stage, files: stage.files.filter(({ from }) => from !== undefined) }))
}

/** The stages with what `replace` makes of each of {@link hostTransfers}. */
export function withHostTransfers(
  stages: readonly Stage[],
  replace: (transfer: FileTransfer, index: number) => FileTransfer,
): Stage[] {
  let index = 0
  const all = (transfers: readonly FileTransfer[]): FileTransfer[] =>
    transfers.map((transfer) => replace(transfer, index++))
  return stages.map((stage) => ({
    ...stage,
    files: stage.files.map((set) =>
      set.from === undefined ? { ...set, transfers: all(set.transfers) } : set,
    ),
    apps: stage.apps.map((app) => ({ ...app, files: all(app.files) })),
  }))
}

/** A source and what it stands for: the next of the numbers, in this order. */
export interface SentTransfer {
  readonly source: string
  readonly names: readonly string[]
}

/** @throws BuildError `ERR_BUILD_SOURCE` naming the line. */
export async function sentTransfers(
  transfers: readonly FileTransfer[],
  context: Context,
): Promise<SentTransfer[]> {
  const found: SentTransfer[] = []
  for (const transfer of transfers)
    found.push({ source: transfer.source, names: await matchesOf(transfer, context) })
  return found
}

/** Adds to each transfer what was sent for it. undefined: it is not as many as there are. */
export function withSent(stages: readonly Stage[], sent: readonly SentTransfer[]): Stage[] | undefined {
  if (hostTransfers(stages).length !== sent.length) return undefined
  let number = 0
  return withHostTransfers(stages, (transfer, index) => {
    const { source, names } = sent[index] ?? { source: "", names: [] }
    return { ...transfer, source, sent: names.map((name) => ({ name, number: number++ })) }
  })
}

async function* fileBytes(source: string, name: string): AsyncGenerator<Buffer> {
  // A pipe with nobody at its other end would keep us.
  const file = await open(source, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const info = await file.stat()
    if (!info.isFile()) throw kindError(source)
    yield tarHeader(name, info.size, { mode: info.mode & 0o777 })
    for (let at = 0; at < info.size;) {
      const piece = Buffer.alloc(Math.min(PIECE, info.size - at))
      const { bytesRead } = await file.read(piece, 0, piece.length, at)
      if (bytesRead === 0) throw new Error(`${source} became shorter while it was read`)
      yield piece.subarray(0, bytesRead)
      at += bytesRead
    }
    yield tarPadding(info.size)
  } finally {
    await file.close()
  }
}

async function* treeBytes(source: string, name: string, above: readonly string[]): AsyncGenerator<Buffer> {
  const info = await stat(source)
  if (info.isFile()) yield* fileBytes(source, name)
  else if (info.isDirectory()) {
    const real = await realpath(source)
    if (above.includes(real)) throw loopError(source)
    yield tarHeader(`${name}/`, 0, { mode: info.mode & 0o777, type: "5" })
    for (const child of (await readdir(source)).sort())
      yield* treeBytes(path.join(source, child), `${name}/${sentName(child)}`, [...above, real])
  } else throw kindError(source)
}

/**
 * The archive, front to back.
 *
 * @throws BuildError `ERR_BUILD_SOURCE` naming the line.
 */
export async function* sentArchive(
  transfers: readonly FileTransfer[],
  sent: readonly SentTransfer[],
  context: Context,
): AsyncGenerator<Buffer> {
  let number = 0
  for (const [index, transfer] of transfers.entries())
    for (const name of sent[index]?.names ?? [])
      try {
        yield* treeBytes(path.resolve(context.cwd, name), String(number++), [])
      } catch (cause) {
        throw transferError(context, transfer, why(cause), cause)
      }
  yield TAR_END
}
