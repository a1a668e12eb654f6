// %files and %appfiles: from this machine, links followed, or from another stage, as they are there.
import { execFile } from "node:child_process"
import { lstat, readdir, realpath, stat } from "node:fs/promises"
import path from "node:path"
import { promisify } from "node:util"
import { BuildError } from "../errors.ts"
import type { FileTransfer } from "./definition-file.ts"
import { expandGlob } from "./glob.ts"
import { BUILD_UMASK, type Rootfs } from "./rootfs.ts"
import { nameOfSent } from "./sent-names.ts"

/** What a transfer needs to know. */
export interface TransferContext {
  /** For messages: the definition file. */
  readonly path: string
  /** What relative sources are relative to. */
  readonly cwd: string
  /** GNU's or BusyBox's cp. */
  readonly cp: string
  /** Where what another machine sent lies. */
  readonly sentFolder: string
  readonly onStep: (text: string) => void
}

/** A file that cannot be copied, by its line. */
export function transferError(
  context: Pick<TransferContext, "path">,
  transfer: FileTransfer,
  why: string,
  cause?: unknown,
): BuildError {
  const { path: file } = context
  return new BuildError(
    "ERR_BUILD_SOURCE",
    `${file}:${transfer.line}: cannot copy ${transfer.source}: ${why}`,
    {
      path: file,
      cause,
    },
  )
}

/** In words, as a reason. */
export function why(cause: unknown): string {
  const { code, message } = cause as NodeJS.ErrnoException
  return code === "ENOENT" ? "there is no such file" : message
}

/** A folder as a destination: what is copied gets its own name there. */
async function isFolderInside(rootfs: Rootfs, inside: string): Promise<boolean> {
  return (await rootfs.find(inside))?.isDirectory() === true
}

/** A link that would never end. */
export function loopError(source: string): Error {
  return new Error(`${source} is a link to a folder that it is in`)
}

/** What nobody copies. */
export function kindError(source: string): Error {
  return new Error(`${source} is neither a file nor a folder`)
}

/** Copies a file or a folder of this machine, links followed. */
async function copyTree(
  source: string,
  rootfs: Rootfs,
  inside: string,
  above: readonly string[],
): Promise<void> {
  const info = await stat(source)
  if (info.isDirectory()) {
    const real = await realpath(source)
    if (above.includes(real)) throw loopError(source)
    await rootfs.makeFolder(inside, info.mode & 0o777 & ~BUILD_UMASK)
    for (const name of (await readdir(source)).sort())
      await copyTree(path.join(source, name), rootfs, path.posix.join(inside, name), [...above, real])
  } else if (info.isFile()) await rootfs.copyIn(source, inside)
  else throw kindError(source)
}

/** Copies what another machine sent, of which no link is followed: there is none in what we send. */
async function copySent(place: string, rootfs: Rootfs, inside: string): Promise<void> {
  const info = await lstat(place)
  if (info.isDirectory()) {
    await rootfs.makeFolder(inside, info.mode & 0o777 & ~BUILD_UMASK)
    for (const name of (await readdir(place)).sort())
      await copySent(path.join(place, name), rootfs, path.posix.join(inside, nameOfSent(name)))
  } else if (info.isFile()) await rootfs.copyIn(place, inside)
  else throw kindError(inside)
}

/** The name in the target, as cp has it. */
async function targetOf(rootfs: Rootfs, destination: string, name: string): Promise<string> {
  if (destination === "") return path.posix.join("/", name)
  const into = destination.endsWith("/") || (await isFolderInside(rootfs, destination))
  return path.posix.join("/", destination, into ? path.posix.basename(name) : "")
}

/**
 * What a source of this machine stands for.
 *
 * @throws BuildError `ERR_BUILD_SOURCE` naming the line.
 */
export async function matchesOf(
  transfer: FileTransfer,
  context: Pick<TransferContext, "path" | "cwd">,
): Promise<string[]> {
  const place = { resolve: (name: string) => Promise.resolve(path.resolve(context.cwd, name)) }
  const names = await expandGlob(transfer.source, place)
  if (names.length === 0) throw transferError(context, transfer, "nothing matches")
  return names
}

/**
 * Copies from this machine, or what another one sent.
 *
 * @param base - Inside, that relative destinations are relative to.
 * @throws BuildError `ERR_BUILD_SOURCE` naming the line.
 */
export async function copyFromHost(
  transfers: readonly FileTransfer[],
  rootfs: Rootfs,
  context: TransferContext,
): Promise<void> {
  for (const transfer of transfers) {
    const { source, destination, sent } = transfer
    context.onStep(`copying ${source} to ${destination === "" ? source : destination}`)
    const names = sent === undefined ? await matchesOf(transfer, context) : []
    const copies = [
      ...names.map((name) => ({
        name,
        copy: (inside: string) => copyTree(path.resolve(context.cwd, name), rootfs, inside, []),
      })),
      ...(sent ?? []).map(({ name, number }) => ({
        name,
        copy: (inside: string) => copySent(path.join(context.sentFolder, String(number)), rootfs, inside),
      })),
    ]
    for (const { name, copy } of copies)
      try {
        await copy(await targetOf(rootfs, destination, name))
      } catch (cause) {
        throw transferError(context, transfer, why(cause), cause)
      }
  }
}

/**
 * Copies from another stage. Only what is named itself is followed if it is a link.
 *
 * @throws BuildError `ERR_BUILD_SOURCE` naming the line.
 */
export async function copyFromStage(
  transfers: readonly FileTransfer[],
  from: Rootfs,
  rootfs: Rootfs,
  context: TransferContext,
): Promise<void> {
  for (const transfer of transfers) {
    const { source, destination } = transfer
    context.onStep(`copying ${source} to ${destination === "" ? source : destination}`)
    const names = await expandGlob(path.posix.join("/", source), from)
    if (names.length === 0) throw transferError(context, transfer, "nothing matches")
    for (const name of names)
      try {
        const original = await from.resolve(name)
        const inside = await targetOf(rootfs, destination, name)
        const isFolder = (await stat(original)).isDirectory()
        await rootfs.makeFolder(path.posix.dirname(inside))
        const target = isFolder ? await rootfs.resolve(inside) : await rootfs.place(inside)
        await promisify(execFile)(context.cp, ["-a", "--remove-destination", "-T", "--", original, target])
      } catch (cause) {
        const { stderr } = cause as { readonly stderr?: string }
        throw transferError(
          context,
          transfer,
          stderr === undefined || stderr === "" ? why(cause) : stderr.trim(),
          cause,
        )
      }
  }
}
