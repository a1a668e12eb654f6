// What the tests in the guest share: images to open, and what the kernel has of loop devices, mappings and mounts.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { constants, privateDecrypt } from "node:crypto"
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { build, sif, type BuildOptions, type OpenOptions } from "../../lib/index.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { describeTree, makeRootTree } from "../support/trees.ts"
import { vector, vectorPath } from "../vectors/load.ts"

/** Where uml-run.sh shows the guest's modules. */
const modules = "/run/uml-modules"

/** Leaves a suite out where there is no dm-crypt to test with. */
export function needsDeviceMapper(context: Mocha.Context): void {
  if (process.getuid?.() !== 0 || !existsSync("/dev/mapper/control") || !existsSync("/dev/loop-control"))
    skip(context, "needs root and device-mapper: test/support/uml-run.sh gives both")
}

/** Loads a module of the guest's kernel; false when there is none. */
export function loadModule(name: string): boolean {
  try {
    execFileSync("modprobe", ["-d", modules, name], { stdio: "ignore" })
    return true
  } catch {
    return false
  }
}

/** What must be as it was when all is over. Each list is sorted. */
export interface KernelState {
  /** Attached loop devices with their files. */
  readonly loops: readonly string[]
  readonly mappings: readonly string[]
  /** In /dev/mapper. */
  readonly nodes: readonly string[]
  readonly mounts: readonly string[]
  readonly processes: readonly string[]
}

function text(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8").trim()
  } catch {
    return undefined // it went away meanwhile
  }
}

/** Programs only: the kernel's own threads have no command line. esbuild belongs to the loader of these tests. */
function processes(): string[] {
  return readdirSync("/proc").flatMap((pid) => {
    const command = /^\d+$/.test(pid) ? text(`/proc/${pid}/cmdline`) : undefined
    return command === undefined || command === "" || command.includes("esbuild")
      ? []
      : [`${pid} ${command.replaceAll("\0", " ").trim()}`]
  })
}

export function kernelState(): KernelState {
  const block = readdirSync("/sys/block")
  const facts = (name: string): string[] =>
    block.flatMap((device) => {
      const value = text(`/sys/block/${device}/${name}`)
      return value === undefined ? [] : [`${device} ${value}`]
    })
  return {
    loops: facts("loop/backing_file").sort(),
    mappings: facts("dm/name").sort(),
    nodes: readdirSync("/dev/mapper").sort(),
    mounts: (text("/proc/self/mountinfo") ?? "")
      .split("\n")
      .map((line) => line.split(" ").slice(2, 6).join(" "))
      .sort(),
    processes: processes().sort(),
  }
}

/** Waits until everything is as it was. */
export async function assertSettles(before: KernelState, milliseconds: number = 5000): Promise<void> {
  const end = Date.now() + milliseconds
  for (;;) {
    try {
      assert.deepEqual(kernelState(), before)
      return
    } catch (error) {
      if (Date.now() > end) throw error
      await sleep(50)
    }
  }
}

/** A folder to mount on, in the guest's own memory. */
export function mountPoint(): string {
  return newFolder("mount")
}

/** Flags and type of what is mounted on a folder. */
export function mountFacts(
  folder: string,
): { readonly flags: readonly string[]; readonly type: string; readonly source: string } | undefined {
  for (const line of (text("/proc/self/mountinfo") ?? "").split("\n").reverse()) {
    const fields = line.split(" ")
    if (fields[4] !== folder) continue
    const separator = fields.indexOf("-")
    return {
      flags: fields[5]?.split(",") ?? [],
      type: fields[separator + 1] ?? "",
      source: fields[separator + 2] ?? "",
    }
  }
  return undefined
}

/** A program's output; it has to succeed. */
export function output(program: string, args: readonly string[], input?: Uint8Array): string {
  return execFileSync(program, args, { encoding: "utf8", ...(input === undefined ? {} : { input }) })
}

/** An image of another program, unpacked. */
export function unpackVector(name: string): string {
  const file = path.join(newFolder("vector"), path.basename(name))
  writeFileSync(file, vector(name))
  return file
}

export const peerKey: string = vectorPath("peer/rsa_pri.pem")

/** A tree with a shell and a run script in it, which ends with the status that it is given; made once. */
let tree: string | undefined
export function rootTree(): string {
  if (tree === undefined) {
    tree = makeRootTree()
    mkdirSync(path.join(tree, ".singularity.d"))
    writeFileSync(path.join(tree, ".singularity.d", "runscript"), '#!/bin/sh\nexit "$1"\n', { mode: 0o755 })
  }
  return tree
}

export const withPassphrase: OpenOptions = { unlock: [{ passphrase: { bytes: Buffer.from(passphrase) } }] }
export const withKey: OpenOptions = { unlock: [{ key: { file: testKeys().privateKey } }] }

/** An image of the tree for whom `recipients` names. */
export async function buildImage(
  recipients: readonly ("rsa" | "passphrase")[],
  options: Partial<BuildOptions> = {},
): Promise<string> {
  const image = path.join(newFolder("image"), "image.sif")
  const result = await build({
    output: image,
    source: rootTree(),
    ...(recipients.length > 0 && {
      recipients: recipients.map((kind) =>
        kind === "rsa"
          ? { key: { file: testKeys().publicKey } }
          : { passphrase: { bytes: Buffer.from(passphrase) } },
      ),
    }),
    ...options,
  })
  assert.equal(result.encrypted, recipients.length > 0)
  return image
}

/** An image of the tree, for an RSA key and for a passphrase with the usual Argon2: made once, since that takes long here. */
let forBoth: Promise<string> | undefined
export function imageForBoth(): Promise<string> {
  return (forBoth ??= buildImage(["rsa", "passphrase"]))
}

/** Where an image's root file system lies. */
export async function rootPartition(
  image: string,
): Promise<{ readonly offset: number; readonly size: number }> {
  await using opened = await sif.openSif(image)
  return opened.primary()
}

/** Attaches a range of a file to a loop device while `use` runs. */
export async function withLoop<T>(
  file: string,
  range: { readonly offset: number; readonly size: number },
  use: (device: string) => T | Promise<T>,
  writable: boolean = false,
): Promise<T> {
  const device = output("losetup", [
    ...(writable ? [] : ["--read-only"]),
    ...["--find", "--show", "--offset", String(range.offset), "--sizelimit", String(range.size)],
    file,
  ]).trim()
  try {
    return await use(device)
  } finally {
    output("losetup", ["--detach", device])
  }
}

/** What an image's first RSA recipient gets, unwrapped by Node alone. */
export async function unwrappedSecret(image: string, keyFile: string): Promise<Buffer> {
  await using opened = await sif.openSif(image)
  const message = opened.objects.find(({ type }) => type === sif.DataType.cryptoMessage)
  assert.ok(message !== undefined)
  const pem = (await opened.data(message, 4096)).toString("latin1")
  const der = Buffer.from(pem.replace(/-----[^-]+-----/g, ""), "base64")
  return privateDecrypt(
    { key: readFileSync(keyFile), padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: "sha256" },
    der.subarray(4), // OCTET STRING, 256 bytes: 04 82 01 00
  )
}

/** An image for both, whose passphrase costs next to nothing: cryptsetup has added its keyslot. */
let cheap: Promise<string> | undefined
export function cheapImageForBoth(): Promise<string> {
  return (cheap ??= (async () => {
    const image = await buildImage(["rsa"])
    const folder = newFolder("secrets")
    const [secret, added] = ["secret", "added"].map((name) => path.join(folder, name)) as [string, string]
    writeFileSync(secret, await unwrappedSecret(image, testKeys().privateKey))
    writeFileSync(added, passphrase)
    await withLoop(
      image,
      await rootPartition(image),
      (device) => {
        const kdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
        output("cryptsetup", ["luksAddKey", "--batch-mode", "--key-file", secret, ...kdf, device, added])
      },
      true,
    )
    return image
  })())
}

/** Everything a stream gives. */
export async function collect(stream: NodeJS.ReadableStream | null): Promise<string> {
  assert.ok(stream !== null)
  const pieces: Buffer[] = []
  for await (const piece of stream) pieces.push(Buffer.from(piece))
  return Buffer.concat(pieces).toString("utf8")
}

/** What a root file system has of the tree it was built of, but for what says how it is run, of which a build makes more. */
export function describeRoot(folder: string): ReadonlyMap<string, string> {
  const given = describeTree(rootTree())
  return new Map([...describeTree(folder)].filter(([name]) => given.has(name) && !name.startsWith("/.")))
}
