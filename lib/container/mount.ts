// Mounts an opened image on a folder, for as long as a handle lives or until somebody unmounts it.
import * as is from "../arguments.ts"
import { realpath, stat } from "node:fs/promises"
import { DeviceError } from "../errors.ts"
import { placeOf } from "../runtime/bundle.ts"
import { findProgram } from "../runtime/program.ts"
import { letGo, reference, startStarter, unreference } from "../runtime/starter.ts"
import {
  cacheArgument,
  launchOf,
  type ConcreteEngine,
  type StarterSource,
  type StarterView,
} from "../runtime/starter-protocol.ts"
import type { Bytes } from "../units.ts"
import { engineName, withEngine, type Engine, type Startable } from "../runtime/engine.ts"
import { coveredError, mountDevice, unmount, type MountInfo } from "./mounts.ts"

/** How {@link Image.mount} mounts. */
export interface MountOptions {
  /** Default `auto`. */
  readonly engine?: Engine | undefined
  /** Stays when this process ends; default false. */
  readonly detached?: boolean | undefined
  /** Of decoded blocks that the userspace engine keeps, bytes; default 8 MiB. */
  readonly cacheSize?: Bytes | undefined
  /** Stops it while it is being mounted; afterwards, unmount. */
  readonly signal?: AbortSignal | undefined
}

export const mountOptions: is.Check<MountOptions> = is.shape<MountOptions>({
  engine: engineName,
  detached: is.flag,
  cacheSize: is.count,
  signal: is.abortSignal,
})

/** A mounted image. Disposing it unmounts, also a detached one. */
export interface Mount extends AsyncDisposable {
  readonly info: MountInfo
  /**
   * Takes it away. When that fails, it can be tried again; once it is done, another call does nothing.
   *
   * @throws DeviceError `ERR_MOUNT_BUSY`, `ERR_MOUNT_NOT_OURS` when somebody else unmounted it, `ERR_MOUNT`.
   */
  unmount(): Promise<void>
}

/**
 * Starts what mounts, and serves it.
 *
 * @param folder - Resolved.
 * @param view - What is seen instead of the tree that the image has.
 */
export async function startMount(
  source: StarterSource,
  engine: ConcreteEngine,
  folder: string,
  options: Omit<MountOptions, "engine">,
  view?: StarterView,
): Promise<Mount> {
  const detached = options.detached === true
  const { signal } = options
  if (engine === "userspace" && process.geteuid?.() !== 0)
    findProgram("fusermount3", "an ordinary user's mount is made by it")
  const image = placeOf(source.image)
  const args = [`--target=${folder}`, `--source-name=${image}`, cacheArgument(options.cacheSize)]
  // Nobody else gets in, and whoever has the key may read all of it: the files are his, as in a container.
  const uid = process.geteuid?.() ?? 0
  if (engine === "userspace" && uid !== 0) args.push(`--owner=${uid}:${process.getegid?.() ?? 0}`)
  const starter = startStarter({
    launch: launchOf({
      command: "mount",
      engine,
      source,
      view,
      args,
    }),
    attached: !detached,
    stdio: ["ignore", "ignore", detached ? "ignore" : "inherit"],
  })
  const stop = (): void => {
    starter.child.kill("SIGTERM")
  }
  signal?.addEventListener("abort", stop, { once: true })
  if (signal?.aborted === true) stop()
  let pid: number
  try {
    pid = await starter.ready
    if (signal?.aborted === true) await unmount(folder).catch(() => undefined)
    signal?.throwIfAborted()
  } catch (error) {
    // Whatever it had begun is taken back before somebody else starts on the same folder.
    await starter.ended.catch(() => undefined)
    signal?.throwIfAborted()
    throw error instanceof DeviceError && error.code === "ERR_MOUNT" ? coveredError(folder, error) : error
  } finally {
    signal?.removeEventListener("abort", stop)
  }
  if (detached) letGo(starter)
  else unreference(starter)
  const device = mountDevice(folder)
  let gone: Promise<void> | undefined
  const take = async (): Promise<void> => {
    await unmount(folder, device)
    starter.release()
    if (detached) return
    reference(starter)
    await starter.ended
  }
  const unmountOnce = (): Promise<void> =>
    (gone ??= take().catch((error: unknown) => {
      gone = undefined // what is in use now may be free later
      throw error
    }))
  return {
    info: { image, target: folder, engine, pid: engine === "kernel" ? undefined : pid },
    unmount: unmountOnce,
    [Symbol.asyncDispose]: unmountOnce,
  }
}

/** A folder to mount on, links resolved. */
export async function mountPoint(target: string): Promise<string> {
  const refuse = (cause: unknown): never => {
    throw coveredError(target, cause)
  }
  const folder = await realpath(target).catch(refuse)
  if ((await stat(folder).catch(refuse)).isDirectory()) return folder
  throw new DeviceError("ERR_MOUNT", `${target} is no folder`, { path: target })
}

/** Mounts on `target`, an existing folder. */
export async function mountImage(
  startable: Startable,
  target: string,
  options: MountOptions,
): Promise<Mount> {
  options.signal?.throwIfAborted()
  const { image, folder: sandbox } = startable.source
  if (sandbox !== undefined)
    throw new DeviceError("ERR_MOUNT", `${image} is a folder: what is in it can be seen without a mount`, {
      path: image,
    })
  const folder = await mountPoint(target)
  if (options.engine === "memory")
    throw DeviceError.at(
      startable.source.image,
      "ERR_MOUNT",
      "what is unpacked into memory is seen by a payload alone, and nowhere else",
    )
  return await withEngine(options.engine ?? "auto", startable, (engine) =>
    startMount(startable.source, engine === "memory" ? "userspace" : engine, folder, options),
  )
}
