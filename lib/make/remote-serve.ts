// The machine that builds for another one, which is not trusted here: it may have the account's processors, memory and network, as any
// definition file may, and sees of this machine what a container of it sees. All that came and all that is made lies in files without
// names, encrypted under keys of this process; when it ends, however that is, nothing is left.
import { createHash } from "node:crypto"
import { Readable, Writable } from "node:stream"
import * as is from "../arguments.ts"
import { configOf, DefinitionBuild, type SentDefinition } from "../definition/definition-build.ts"
import { MAX_EXPANDED_SIZE } from "../definition/definition-file.ts"
import { temporaryFolder } from "../definition/scratch.ts"
import { toWire } from "../definition/wire-error.ts"
import { Tree } from "../device/tree.ts"
import { Credentials } from "../encryption/credentials.ts"
import { madeOf } from "../disposal.ts"
import { BuildError } from "../errors.ts"
import { packageVersion } from "../native/load.ts"
import { MAX_LAYER_BYTES } from "../oci/image.ts"
import { Spill } from "../registry/spill.ts"
import { Channel } from "../remote/channel.ts"
import { runnableArchitectures } from "../runtime/architecture.ts"
import type { Bytes, Milliseconds } from "../units.ts"
import {
  checkRequest,
  checkTransfers,
  MAX_TRANSFERS,
  PROTOCOL,
  protocolOf,
  told,
  type BuildReply,
  type BuildRequest,
  type Hello,
} from "./remote-protocol.ts"
import { squashfsBytes } from "./sealed-bytes.ts"
import { writeSealedTree, type SealedTree } from "./write-image.ts"

/** How {@link serveBuild} is reached. */
export interface ServeBuildOptions {
  /** From whom it is asked. Its end is the end of the build. */
  readonly input: Readable
  /** To the same. */
  readonly output: Writable
  /** Where what does not fit in memory lies, encrypted. Default: TMPDIR, /tmp, or /var/tmp where that is memory. */
  readonly tmpFolder?: string | undefined
  /**
   * Build, too, where scripts may do what this account may: as root, or where they cannot have processes of their own. Then whoever asks
   * has the account. Default: that is refused.
   */
  readonly allowUnconfined?: boolean | undefined
  /** After so long without a word the other side is taken for gone. Default: two minutes. */
  readonly silenceMs?: Milliseconds | undefined
  readonly signal?: AbortSignal | undefined
}

const checkOptions = is.shape<ServeBuildOptions>({
  input: is.required(is.instance(Readable, "a Readable")),
  output: is.required(is.instance(Writable, "a Writable")),
  tmpFolder: is.path,
  allowUnconfined: is.flag,
  silenceMs: is.milliseconds,
  signal: is.abortSignal,
})

/** What the machine at either end says first. */
export function helloOf(): Hello {
  return { protocol: PROTOCOL, version: packageVersion(), architectures: runnableArchitectures() }
}

/** What came, for as long as it is needed. */
class Luggage implements AsyncDisposable {
  readonly #folder: string
  readonly #channel: Channel
  readonly #spills: Spill[] = []

  constructor(channel: Channel, folder: string) {
    this.#channel = channel
    this.#folder = folder
  }

  /** The next stream, in a file that nobody else can read. */
  async #receive(): Promise<NonNullable<SentDefinition["files"]>> {
    const spill = await Spill.create(this.#folder)
    this.#spills.push(spill)
    const hash = createHash("sha256")
    let size: Bytes = 0
    for await (const piece of this.#channel.stream(MAX_LAYER_BYTES)) {
      hash.update(piece)
      await spill.write(piece)
      size += piece.length
    }
    return { blob: await spill.finish(size), digest: hash.digest() }
  }

  async definition({ bases, hasFiles }: BuildRequest): Promise<SentDefinition> {
    const channel = this.#channel
    const text = (await channel.bytes(MAX_EXPANDED_SIZE)).toString("utf8")
    const transfers = checkTransfers(channel, await channel.bytes(MAX_TRANSFERS))
    const sent: SentDefinition["bases"][number][] = []
    for (const name of bases) {
      if (name === "") {
        sent.push(undefined)
        continue
      }
      const { fd, size, cipher } = (await this.#receive()).blob
      if (size % SECTOR !== 0) throw channel.wrong(`a tree of ${size} bytes`)
      sent.push({ name, squashfs: { fd, offset: 0, size, cipher } })
    }
    const files = hasFiles ? await this.#receive() : undefined
    return { text, transfers, bases: sent, files }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const spill of this.#spills) await spill[Symbol.asyncDispose]()
  }
}

/** What a builder does for whoever asks. */
interface Service extends Pick<ServeBuildOptions, "allowUnconfined"> {
  readonly folder: string
}

/** A squashfs ends at a multiple of it. */
const SECTOR: Bytes = 4096

/** Reads on, so that its end is heard: nothing is said while there is a build. */
async function watch(channel: Channel, stop: AbortController): Promise<void> {
  try {
    const frame = await channel.next()
    if (frame !== undefined) throw channel.wrong(`a frame of kind ${frame.kind} during a build`)
    stop.abort(channel.over.reason)
  } catch (error) {
    stop.abort(error)
  }
}

async function build(
  channel: Channel,
  request: BuildRequest,
  sent: SentDefinition,
  { folder, allowUnconfined = false }: Service,
  signal: AbortSignal,
): Promise<{ readonly tree: SealedTree; readonly ociConfig: string | undefined } & AsyncDisposable> {
  const { path, options } = request
  const { maxLayerBytes, ...common } = options
  const say = (message: BuildReply): void => {
    channel.say(message)
  }
  const onNotice = (text: string): void => {
    say({ kind: "notice", text: told(text) })
  }
  const onProgress = (bytes: Bytes, total?: Bytes): void => {
    if (!channel.isBusy) say({ kind: "progress", bytes, total })
  }
  using credentials = new Credentials([])
  const work = new DefinitionBuild(
    {
      ...common,
      ...{ credentials, sent, signal, onNotice, onProgress },
      encrypted: false,
      confined: !allowUnconfined,
      tmpFolder: folder,
      source: path,
      // Not even what is everybody's stays here.
      oci: { disableCache: true, tmpFolder: folder, maxLayerBytes },
      onStep: (text) => {
        say({ kind: "step", text: told(text) })
      },
      onOutput: (bytes, stream) => channel.sendOutput(bytes, stream),
    },
    folder,
  )
  return await madeOf(work, async () => {
    let ociConfig: string | undefined
    const tree = await writeSealedTree({ ...common, signal, onNotice, onProgress }, folder, async (fd) => {
      const source = await work.run(fd)
      ociConfig = configOf(source)
      return source
    })
    return {
      tree,
      ociConfig,
      async [Symbol.asyncDispose](): Promise<void> {
        await tree[Symbol.asyncDispose]()
        await work[Symbol.asyncDispose]()
      },
    }
  })
}

/** Answers one request. */
async function answer(
  channel: Channel,
  asked: unknown,
  service: Service,
  stop: AbortController,
): Promise<void> {
  const { signal } = stop
  const request = checkRequest(channel, asked)
  if (service.allowUnconfined !== true && process.getuid?.() === 0)
    throw new BuildError(
      "ERR_BUILD_REMOTE_REFUSED",
      `${request.path}: root would build there, and scripts of root's builds may do anything on that machine; --allow-unconfined lets them`,
    )
  await using luggage = new Luggage(channel, service.folder)
  const sent = await luggage.definition(request)
  void watch(channel, stop)
  await using built = await build(channel, request, sent, service, signal)
  const { tree, ociConfig } = built
  const { size, entries, inputBytes } = tree.written
  await channel.send({
    kind: "built",
    ...{ size, entries, inputBytes },
    hasOciConfig: ociConfig !== undefined,
  } satisfies BuildReply)
  if (ociConfig !== undefined) await channel.sendStream([Buffer.from(ociConfig)])
  using opened = await Tree.open(tree.range, request.path)
  await channel.sendStream(squashfsBytes(opened, size, signal))
}

/**
 * Builds what another machine asks for, once, and gives it the tree: the other end of `build` with `remote`. Nothing is left of it here.
 *
 * @throws BuildError `ERR_BUILD_REMOTE`, `ERR_BUILD_REMOTE_VERSION` where there is nobody to tell of it; the signal's reason. What keeps a
 * build from succeeding the other side is told.
 */
export async function serveBuild(given: ServeBuildOptions): Promise<void> {
  const { input, output, silenceMs, signal, tmpFolder, allowUnconfined } = checkOptions(given, "options")
  signal?.throwIfAborted()
  using channel = new Channel(input, output, { name: "whoever asks for a build", silenceMs })
  const stop = new AbortController()
  const onAbort = (): void => {
    stop.abort(signal?.reason)
    input.destroy()
  }
  const onOver = (): void => {
    stop.abort(channel.over.reason)
  }
  signal?.addEventListener("abort", onAbort, { once: true })
  channel.over.addEventListener("abort", onOver, { once: true })
  try {
    await channel.greet(helloOf())
    const first = await channel.message()
    const { protocol, version } = protocolOf(channel, first)
    if (protocol !== PROTOCOL)
      throw new BuildError("ERR_BUILD_REMOTE_VERSION", versionText("there", version, protocol))
    const folder = temporaryFolder({ tmpFolder })
    try {
      const asked = await channel.messageOrEnd()
      // Whoever wanted to know what this machine is may have no use for it.
      if (asked !== undefined) await answer(channel, asked, { folder, allowUnconfined }, stop)
    } catch (error) {
      stop.signal.throwIfAborted()
      const wire = toWire(error)
      await channel.send({
        kind: "failed",
        error: { ...wire, message: told(wire.message) },
      } satisfies BuildReply)
    }
    await channel.finish()
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener("abort", onAbort)
    channel.over.removeEventListener("abort", onOver)
    // Nothing more is heard.
    input.destroy()
  }
}

/** Why two versions do not understand each other. */
export function versionText(where: string, version: string, protocol: number): string {
  const own = packageVersion()
  return `sifcrypt ${version} is ${where}, and ${own} here: they speak different protocols, ${protocol} and ${PROTOCOL}`
}
