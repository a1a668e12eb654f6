// The program in the workspace: a process of its own, root in its namespaces, that does what it is told through a pipe.
import { spawn } from "node:child_process"
import { once } from "node:events"
import { constants, readSync, writeSync } from "node:fs"
import { lstat, mkdir, open, readdir, rename, rm, statfs } from "node:fs/promises"
import { Socket } from "node:net"
import { constants as systemConstants } from "node:os"
import path from "node:path"
import { Tree } from "../device/tree.ts"
import { limitError } from "../device/limits.ts"
import { forbidDumps } from "../device/process.ts"
import { thenUndone } from "../disposal.ts"
import { BuildError, ContainerError } from "../errors.ts"
import { allocateSecret } from "../key/secret.ts"
import type { NativeAddon, NativeBuild } from "../native/binding.ts"
import { loadAddon } from "../native/load.ts"
import { debootstrap } from "./debootstrap.ts"
import { decodeFrames, encodeFrame } from "./frames.ts"
import { Rootfs } from "./rootfs.ts"
import { buildStages, sentFolder } from "./stages.ts"
import { toWire } from "./wire-error.ts"
import { type Copied, type Ids, type Reply, type Request, type StageBase } from "./workspace-protocol.ts"

// The kernel's default: a listener that goes takes Node's own, a debugger, with it.
const none = (): void => undefined
process.on("SIGUSR1", none).off("SIGUSR1", none)

/** Nobody hears of it any more but whoever reads what we print. */
function giveUp(error: Error): never {
  // Where it is no call that failed it is a defect, and its place is worth knowing.
  const said = "syscall" in error ? error.message : (error.stack ?? error.message)
  writeSync(process.stderr.fd, `sifcrypt: in the workspace: ${said}\n`)
  process.exit(1)
}
process.on("uncaughtException", giveUp)

const [control = -1, keys = -1] = process.argv.slice(2).map(Number)
const socket = new Socket({ fd: control, readable: true, writable: true })
socket.on("error", giveUp)

function reply(message: Reply): void {
  socket.write(encodeFrame(message))
}

/** With the secret that belongs there, from the pipe. */
function withKey<Keyed extends { readonly key: Uint8Array }>(keyed: Keyed): Keyed {
  const secret = allocateSecret(keyed.key.length)
  for (let done = 0; done < secret.length;) {
    const count = readSync(keys, secret, done, secret.length - done, null)
    if (count === 0) throw new Error("a key is missing")
    done += count
  }
  return { ...keyed, key: secret }
}

/** A base with its keys. */
function attached(source: NativeBuild["source"]): NativeBuild["source"] {
  if ("squashfs" in source) {
    const { squashfs } = source
    return squashfs.cipher === undefined
      ? source
      : { ...source, squashfs: { ...squashfs, cipher: withKey(squashfs.cipher) } }
  }
  if (!("layers" in source)) return source
  const layers = source.layers.map((layer) => {
    const { cipher, counter, ...blob } = layer.blob
    // In the order in which they were packed.
    const keyed = {
      ...(cipher === undefined ? {} : { cipher: withKey(cipher) }),
      ...(counter === undefined ? {} : { counter: withKey(counter) }),
    }
    return { ...layer, blob: { ...blob, ...keyed } }
  })
  return { ...source, layers }
}

/** Wipes the keys of a base. */
function forget(source: NativeBuild["source"]): void {
  const keyed =
    "squashfs" in source
      ? [source.squashfs.cipher]
      : "layers" in source
        ? source.layers.flatMap(({ blob }) => [blob.cipher, blob.counter])
        : []
  for (const one of keyed) one?.key.fill(0)
}

const plainWrite = {
  offset: 0,
  cipher: undefined,
  compression: "lz4",
  level: -1,
  blockSize: 128 * 1024,
  threads: 0,
  owner: undefined,
  sourceDateEpoch: -1,
  exclude: [],
  trailer: undefined,
} as const

/** Unpacks a squashfs into a root. */
async function unpack(
  range: Parameters<typeof Tree.open>[0],
  name: string,
  root: string,
  ids: Ids,
): Promise<void> {
  using tree = await Tree.open(range, name)
  const { many } = ids
  await tree.extract(
    { path: "/", target: root, preserveOwner: many, fill: false, keepModes: true },
    (bytes) => {
      reply({ kind: "progress", bytes })
      return true
    },
  )
}

/** What {@link fill} makes a root of, file by file. */
type TreeOfFiles = Parameters<NativeAddon["fillScratch"]>[0]["source"]

/** Has the server of a scratch make the root, where it is served to us. False: this is none. */
async function fillServed(
  source: TreeOfFiles,
  owner: NativeBuild["owner"],
  root: string,
  session: string,
): Promise<boolean> {
  const place = path.join(session, "base.pieces")
  const pieces = await open(place, "wx", 0o600)
  const made = async (): Promise<boolean> => {
    try {
      await using folder = await open(root, constants.O_RDONLY | constants.O_DIRECTORY)
      return await loadAddon().fillScratch(
        { folder: folder.fd, pieces: pieces.fd, source, owner, exclude: [] },
        () => true,
      )
    } catch (cause) {
      const { syscall = "", message } = cause as NodeJS.ErrnoException
      // Anything else is about what it is made of.
      if (syscall !== "fill" && syscall !== "chown") throw cause
      throw new BuildError("ERR_EXTRACT", `cannot extract into ${root}: ${message}`, { path: root, cause })
    }
  }
  return await thenUndone(made, async () => {
    await pieces.close()
    await rm(place)
  })
}

/** The same by ourselves: a squashfs in memory is between it and the root, since data may come before all names. */
async function fillThrough(
  source: TreeOfFiles,
  owner: NativeBuild["owner"],
  name: string,
  root: string,
  session: string,
  ids: Ids,
): Promise<void> {
  const place = path.join(session, "base.squashfs")
  const file = await open(place, "wx+", 0o600)
  const made = async (): Promise<void> => {
    try {
      const { size } = await loadAddon().buildTree({ ...plainWrite, owner, source, fd: file.fd }, () => true)
      await unpack({ fd: file.fd, offset: 0, size, cipher: undefined }, name, root, ids)
    } catch (cause) {
      // Before there is room again.
      throw await fullness(session, cause)
    }
  }
  await thenUndone(made, async () => {
    await file.close()
    await rm(place)
  })
}

/** A folder of somebody whom the workspace does not know belongs to root, as everything in it. */
async function baseOwner(source: NativeBuild["source"], ids: Ids): Promise<NativeBuild["owner"]> {
  if (ids.real || !("directory" in source) || (await lstat(source.directory)).uid === 0) return undefined
  return { uid: 0, gid: 0 }
}

/** No more files can be made. Some file systems (btrfs) have no number of them, and say 0 of 0. */
async function isOutOfFiles(session: string): Promise<boolean> {
  const { files, ffree } = await statfs(session)
  return files > 0 && ffree === 0
}

/** What could not be written may be gone by the time that somebody counts. */
function saysFull(cause: unknown): boolean {
  if (!(cause instanceof Error)) return false
  return (cause as NodeJS.ErrnoException).errno === -systemConstants.errno.ENOSPC || saysFull(cause.cause)
}

/** The error of a scratch in which nothing fits any more: whatever failed, failed because of that. */
async function fullness(session: string, cause: unknown): Promise<unknown> {
  const { bavail, bsize, blocks, bfree } = await statfs(session)
  // ext4 keeps some room back for what it is about to write.
  const least = Math.max(1 << 16, Math.min((blocks * bsize) / 50, 8 << 20))
  if (!saysFull(cause) && bavail * bsize >= least && !(await isOutOfFiles(session))) return cause
  const used = Math.round(((blocks - bfree) * bsize) / (1 << 20))
  return new BuildError(
    "ERR_BUILD_SCRATCH",
    `the scratch is full: it holds ${used} MiB, and has room for no more`,
    { cause },
  )
}

async function fill(base: StageBase, root: string, session: string, crun: string, ids: Ids): Promise<void> {
  if (base.kind === "scratch") return
  if (base.kind === "debootstrap") {
    await debootstrap(base.options, root, session, crun, ids)
    return
  }
  const source = attached(base.source)
  try {
    if ("squashfs" in source) await unpack(source.squashfs, base.name, root, ids)
    else if ("bytes" in source) throw new TypeError("a base is made of files")
    else {
      const owner = await baseOwner(source, ids)
      if (!(await fillServed(source, owner, root, session)))
        await fillThrough(source, owner, base.name, root, session, ids)
    }
    const rootfs = new Rootfs(root)
    for (const entry of base.added) await rootfs.add(entry)
  } finally {
    forget(source)
  }
}

/** What was not done, of an error for a limit: how the system says it stands at its end. */
function reached(error: unknown): string {
  const { syscall, path: place } = error as NodeJS.ErrnoException
  if (error instanceof ContainerError) return error.message.replace(/: (?:\w+: )?[^:]*$/, "")
  return [syscall, place].filter((word) => word !== undefined).join(" ")
}

const requests = decodeFrames(socket)
let built: string | undefined

async function count(folder: string): Promise<Copied> {
  let entries = 1
  let bytes = 0
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const place = path.join(folder, entry.name)
    if (entry.isDirectory()) {
      const below = await count(place)
      entries += below.entries
      bytes += below.bytes
      continue
    }
    entries++
    if (entry.isFile()) bytes += (await lstat(place)).size
  }
  return { entries, bytes }
}

/** Puts what was built into an ordinary folder, which appears under its name when it is complete. */
async function copyTo(root: string, target: string, replace: boolean): Promise<Copied> {
  if (root === target) return await count(target)
  const work = path.join(
    path.dirname(target),
    `.${path.basename(target)}.${process.hrtime.bigint().toString(36)}`,
  )
  const made = async (): Promise<Copied> => {
    await mkdir(work, { mode: 0o700 })
    const child = spawn("/bin/cp", ["-a", "-T", "--", root, work], {
      stdio: ["ignore", "inherit", "inherit"],
    })
    const [code] = (await once(child, "exit")) as [number | null]
    if (code !== 0) throw new BuildError("ERR_BUILD_OUTPUT", `cannot write ${target}`, { path: target })
    if (replace) await rm(target, { recursive: true, force: true })
    await rename(work, target)
    return await count(target)
  }
  return await thenUndone(made, () => rm(work, { recursive: true, force: true }))
}

/** What programs wrote through mappings is not lost, as happens where there is no room and nobody to tell. */
async function checkNothingLost(session: string): Promise<void> {
  const sync = spawn("/bin/sync", ["-f", session], { stdio: "ignore" })
  const [code] = (await once(sync, "exit")) as [number | null]
  if (code !== 0 || (await isOutOfFiles(session)))
    throw new BuildError(
      "ERR_BUILD_SCRATCH",
      "the scratch became full, and something that was written to it is lost",
    )
}

async function perform(request: Request): Promise<unknown> {
  if (request.kind === "stages") {
    const { plan, bases, ids, files } = request
    const { session, crun } = plan
    try {
      if (files !== undefined) {
        const folder = sentFolder(session)
        await mkdir(folder, { mode: 0o700 })
        await fill(files, folder, session, crun, ids)
      }
      const { root, description } = await buildStages(plan, {
        bootstrap: async (stage, folder) => {
          await fill(bases[stage] ?? { kind: "scratch" }, folder, session, crun, ids)
          reply({ kind: "filled", stage })
          // Whoever opened the base looks at it once more before anything of it runs.
          if ((await requests.next()).done === true) throw new Error("nobody waits for this any more")
        },
        onStep: (text) => {
          reply({ kind: "step", text })
        },
        onNotice: (text) => {
          reply({ kind: "notice", text })
        },
      })
      await checkNothingLost(session)
      built = root
      return { description }
    } catch (cause) {
      throw await fullness(session, cause)
    }
  }
  if (built === undefined || request.kind === "use") throw new TypeError("nothing is built yet")
  if (request.kind === "copy") return await copyTo(built, request.target, request.replace)
  const { build } = request
  const cipher = build.cipher === undefined ? undefined : withKey(build.cipher)
  try {
    return await loadAddon().buildTree(
      { ...build, cipher, source: { directory: built, added: [] } },
      (bytes, total) => {
        reply({ kind: "progress", bytes, total })
        return true
      },
    )
  } finally {
    cipher?.key.fill(0)
  }
}

forbidDumps()
for await (const request of requests)
  try {
    reply({ kind: "done", value: await perform(request as Request) })
  } catch (error) {
    // It crosses without its cause.
    reply({ kind: "failed", error: toWire(limitError(reached(error), error) ?? error) })
  }
