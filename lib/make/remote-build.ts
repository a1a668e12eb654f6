// Builds a definition file on another machine. That one makes the tree; what is encrypted is encrypted here, so no key goes there, nor
// whose the image will be. What comes back is nobody's word: a squashfs, looked at before an image is made of it.
import { parseDefinition, type Definition } from "../definition/definition-file.ts"
import {
  configOf,
  isAtRegistry,
  isDefinition,
  prepareDefinition,
  sectionOnHost,
  wantedBase,
  type WantedBase,
} from "../definition/definition-build.ts"
import { temporaryFolder } from "../definition/scratch.ts"
import { hostTransfers, sentArchive, sentTransfers, withChosenFiles } from "../definition/sent-files.ts"
import { fromWire } from "../definition/wire-error.ts"
import { Tree } from "../device/tree.ts"
import { isExplicit, type Credential, type Credentials } from "../encryption/credentials.ts"
import { refusePlain } from "../encryption/partition.ts"
import { madeOf } from "../disposal.ts"
import { BuildError, EnvironmentError, TreeError } from "../errors.ts"
import type { Vouched } from "../file/vouched.ts"
import type { NativeRange } from "../native/binding.ts"
import { MAX_LAYER_BYTES } from "../oci/image.ts"
import { platformOf } from "../oci/manifest.ts"
import { Spill } from "../registry/spill.ts"
import { remoteError, type Channel } from "../remote/channel.ts"
import { FrameKind } from "../remote/frames.ts"
import { Connection, parseRemote, type RemoteAddress } from "../remote/ssh.ts"
import { metadataObjects, type ImageDescription } from "../source/metadata-files.ts"
import { TextReader, TreeTexts } from "../source/tree-texts.ts"
import { openSource, tellOfPlain, type BuildSource } from "../source/source.ts"
import type { Bytes } from "../units.ts"
import type { BuildOptions } from "./build.ts"
import {
  checkHello,
  checkReply,
  MAX_OCI_CONFIG,
  PROTOCOL,
  protocolOf,
  type BuildRequest,
  type BuiltReply,
  type Hello,
} from "./remote-protocol.ts"
import { helloOf, versionText } from "./remote-serve.ts"
import { squashfsBytes } from "./sealed-bytes.ts"
import { makeImage, writeSealedTree, type BuildResult } from "./write-image.ts"

/** Longest text of a tree that says what the image is. */
const SECTOR: Bytes = 4096

type Options = BuildOptions & { readonly remote: readonly string[] }

function refused(file: string, what: string): BuildError {
  return BuildError.at(file, "ERR_BUILD_REMOTE_REFUSED", what)
}

/** What only the machine can do that has it: said before anything is done. */
export function checkRemoteOptions(options: BuildOptions): void {
  const { source, output } = options
  const has = (name: keyof BuildOptions): boolean => options[name] !== undefined && options[name] !== false
  if (has("sandbox") || has("update"))
    throw refused(output, "a sandbox is a folder of this machine: build an image there, and extract it here")
  if (has("data"))
    throw refused(source, "a partition for data is made of a folder, which needs no other machine")
  if ((options.binds ?? []).length > 0)
    throw refused(source, "the machine that builds has no folders of this one to bind: %files sends them")
  if (has("plainScratch"))
    throw refused(source, "on another machine nothing lies unencrypted: leave out --plain-tmp")
}

/** A builder that answers. */
class Builder implements AsyncDisposable {
  readonly address: RemoteAddress
  readonly hello: Hello
  readonly #connection: Connection

  private constructor(address: RemoteAddress, hello: Hello, connection: Connection) {
    this.address = address
    this.hello = hello
    this.#connection = connection
  }

  /** @throws BuildError `ERR_BUILD_REMOTE`, `ERR_BUILD_REMOTE_VERSION`; the signal's reason. */
  static async find(
    text: string,
    { signal, allowUnconfined, onNotice = () => undefined }: BuildOptions,
  ): Promise<Builder> {
    signal?.throwIfAborted()
    const address = parseRemote(text)
    if (address === undefined) throw new TypeError("an address is checked where it comes in")
    const connection = Connection.open(address, onNotice, allowUnconfined)
    const onAbort = (): void => {
      connection.stop()
    }
    signal?.addEventListener("abort", onAbort, { once: true })
    try {
      const { channel } = connection
      let said: unknown
      try {
        said = await channel.message()
      } catch (error) {
        // What ssh says counts where nobody else has said anything.
        if (channel.hasHeard) throw error
        throw remoteError(text, await connection.reason(), error)
      }
      const { protocol, version } = protocolOf(channel, said)
      // It, too, is told, and says so to whoever looks there.
      await channel.greet(helloOf())
      if (protocol !== PROTOCOL)
        throw new BuildError("ERR_BUILD_REMOTE_VERSION", versionText(`at ${text}`, version, protocol))
      connection.reached()
      return new Builder(address, checkHello(channel, said), connection)
    } catch (error) {
      await connection[Symbol.asyncDispose]()
      signal?.throwIfAborted()
      throw error
    } finally {
      signal?.removeEventListener("abort", onAbort)
    }
  }

  get channel(): Channel {
    return this.#connection.channel
  }

  get name(): string {
    return this.address.text
  }

  /** Ends it, and what it does. */
  stop(): void {
    this.#connection.stop()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#connection[Symbol.asyncDispose]()
  }
}

/** What a machine that was asked says of itself. */
export interface RemoteBuilder {
  /** As it was given. */
  readonly remote: string
  /** Of the sifcrypt there. */
  readonly version: string
  /** As Go names it. */
  readonly architecture: string
  /** Those that it runs programs of as well. */
  readonly emulated: readonly string[]
}

/**
 * Asks machines what they are, one after the other.
 *
 * @throws BuildError `ERR_BUILD_REMOTE`, `ERR_BUILD_REMOTE_VERSION`; the signal's reason.
 */
export async function askBuilders(
  remotes: readonly string[],
  options: Pick<BuildOptions, "signal" | "onNotice">,
): Promise<RemoteBuilder[]> {
  const found: RemoteBuilder[] = []
  for (const remote of remotes) {
    await using builder = await Builder.find(remote, options as BuildOptions)
    const [architecture = "", ...emulated] = builder.hello.architectures
    found.push({ remote, version: builder.hello.version, architecture, emulated })
  }
  return found
}

/** The first of the machines that are of an architecture, or else of those that have an emulator for it. */
async function chooseBuilder(options: Options): Promise<Builder> {
  const { remote: remotes, architecture: wanted, source } = options
  const architecture = wanted === undefined ? undefined : platformOf(wanted).architecture
  const emulating: Builder[] = []
  const others: string[] = []
  try {
    for (const text of remotes) {
      const builder = await Builder.find(text, options)
      const { architectures } = builder.hello
      const [own = ""] = architectures
      if (architecture === undefined || own === architecture) return builder
      if (architectures.includes(architecture) && emulating.length === 0) emulating.push(builder)
      else {
        others.push(`${text} is ${own}`)
        await builder[Symbol.asyncDispose]()
      }
    }
    const builder = emulating.pop()
    if (builder !== undefined) return builder
  } finally {
    for (const builder of emulating) await builder[Symbol.asyncDispose]()
  }
  throw new EnvironmentError(
    "ERR_ENV_ARCHITECTURE",
    `${source} is to be built for ${architecture ?? ""}, and ${others.join(", ")}`,
    { path: source },
  )
}

/** A base that goes along: how it is read, and what it says of itself. */
interface OpenBase extends AsyncDisposable {
  readonly name: string
  readonly tree: Tree
  readonly size: Bytes
  readonly ociConfig: string | undefined
  /** Asked when all of it was read. */
  readonly vouched: Vouched | undefined
}

/**
 * Whether a base is opened here. At a registry it may have been seen with this user's credentials, keys or rings only; and that one is
 * encrypted is no other machine's to say.
 */
function isOpenedHere(wanted: WantedBase, { unlock, requireEncrypted, oci = {} }: BuildOptions): boolean {
  if (wanted.kind !== "source") return false
  if (requireEncrypted === true) return true
  const { authFile, credentials, certFolder, noHttps } = oci
  const isOwn = [authFile, credentials, certFolder].some((one) => one !== undefined) || noHttps === true
  const hasKey = unlock?.some(isExplicit) === true
  return isOwn || hasKey || wanted.fingerprints.length > 0 || !isAtRegistry(wanted)
}

async function openBase(
  { spec, fingerprints }: Extract<WantedBase, { readonly kind: "source" }>,
  options: BuildOptions,
  credentials: Credentials,
  folder: string,
): Promise<OpenBase> {
  const { fingerprintKeys, signal } = options
  const verify = fingerprints.length === 0 ? {} : { verify: { ...fingerprintKeys, require: fingerprints } }
  const source = await openSource(spec, credentials, { ...options, verify: undefined, ...verify })
  if (options.recipients === undefined) tellOfPlain(source, options.output, options.onNotice)
  const undo: AsyncDisposable[] = [source]
  const dispose = async (): Promise<void> => {
    for (const one of undo.toReversed()) await one[Symbol.asyncDispose]()
  }
  try {
    const { tree: from } = source
    let range: NativeRange
    if ("squashfs" in from) range = from.squashfs
    else {
      // Made anew when it is an image; so what is quick is enough.
      const quick = { signal, compression: { name: "lz4" }, onNotice: options.onNotice } as const
      const sealed = await writeSealedTree(quick, folder, source)
      undo.push(sealed)
      range = sealed.range
    }
    const tree = await Tree.open(range, spec)
    undo.push({
      [Symbol.asyncDispose]: () => {
        tree.close()
        return Promise.resolve()
      },
    })
    // An image that is not padded has no more than that.
    const size = Math.min(tree.squashfsSize, tree.plainSize)
    const vouched = source.image?.vouched
    return { name: spec, tree, size, ociConfig: configOf(source), vouched, [Symbol.asyncDispose]: dispose }
  } catch (error) {
    await dispose()
    throw source.explain?.(error) ?? error
  }
}

/** All of it, and zeros up to where a squashfs ends; which it has only where it still is what was verified. */
async function* paddedBytes(
  { tree, size, vouched }: OpenBase,
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer> {
  yield* squashfsBytes(tree, size, signal)
  vouched?.checkRead()
  yield Buffer.alloc((SECTOR - (size % SECTOR)) % SECTOR)
}

/** As the other side will read it. */
function readAgain(definition: Definition, file: string): Definition {
  const again = parseDefinition(definition.text, { path: file, isExpanded: true })
  if (again.stages.length === definition.stages.length) return definition
  throw refused(file, "a value of a build argument begins a stage, which only this machine can build")
}

/** The image that is wanted, as far as it is known before anybody is asked. */
async function readHere(options: Options): Promise<Definition> {
  const { source, sections, onNotice = () => undefined } = options
  if (!(await isDefinition(source)))
    throw refused(source, "another machine builds from a definition file, and this is none")
  const { buildArguments, buildArgumentFile, warnUnusedBuildArguments } = options
  const definition = await prepareDefinition(source, {
    ...{ buildArguments, buildArgumentFile, warnUnusedBuildArguments, onNotice },
  })
  const onHost = sectionOnHost(definition, sections)
  if (onHost !== undefined)
    throw refused(
      source,
      `line ${onHost.line}: %${onHost.name} runs on the machine that builds, outside of the image, and another one does not run it: ` +
        "what it does belongs into %post and %files, or it is left out (--section)",
    )
  return readAgain({ ...definition, stages: withChosenFiles(definition.stages, sections) }, source)
}

/** What came back. */
interface Returned extends AsyncDisposable {
  readonly range: NativeRange
  readonly built: BuiltReply
  readonly ociConfig: string | undefined
}

/** Hears what the other side says, up to the whole tree. */
async function hear(
  { channel, name }: Builder,
  { onStep, onNotice, onProgress, onOutput, oci }: BuildOptions,
  folder: string,
): Promise<Returned> {
  let built: BuiltReply | undefined
  while (built === undefined) {
    const frame = await channel.next()
    if (frame === undefined) throw remoteError(name, "the connection ended before the image was built")
    const { kind, body } = frame
    if (kind === FrameKind.stdout || kind === FrameKind.stderr) {
      await onOutput?.(body, kind === FrameKind.stdout ? "stdout" : "stderr")
      continue
    }
    if (kind !== FrameKind.message) throw channel.wrong(`a frame of kind ${kind} during a build`)
    const reply = checkReply(channel, channel.parse(frame))
    if (reply.kind === "step" || reply.kind === "notice")
      (reply.kind === "step" ? onStep : onNotice)?.(reply.text)
    else if (reply.kind === "progress") onProgress?.(reply.bytes, reply.total)
    else if (reply.kind === "failed") throw failure(name, reply.error)
    else built = reply
  }
  const ociConfig = built.hasOciConfig ? (await channel.bytes(MAX_OCI_CONFIG)).toString("utf8") : undefined
  const { size } = built
  const limit = oci?.maxLayerBytes ?? MAX_LAYER_BYTES
  if (size === 0 || size % SECTOR !== 0 || size > limit)
    throw wrongTree(name, `it has ${size} bytes; at most ${limit} are taken, a multiple of ${SECTOR}`)
  const spill = await Spill.create(folder)
  return await madeOf(spill, async () => {
    let have: Bytes = 0
    for await (const piece of channel.stream(size)) {
      await spill.write(piece)
      have += piece.length
      onProgress?.(have, size)
    }
    if (have !== size) throw wrongTree(name, `it has ${have} bytes, and ${size} were announced`)
    const { fd, cipher } = await spill.finish(size)
    const range = { fd, offset: 0, size, cipher }
    return { range, built, ociConfig, [Symbol.asyncDispose]: () => spill[Symbol.asyncDispose]() }
  })
}

/** What the other side met. What that machine lacks is said to be its. */
function failure(name: string, error: Parameters<typeof fromWire>[0]): Error {
  const isMachine = error.name === EnvironmentError.name || error.code === undefined
  return fromWire(isMachine ? { ...error, message: `${name}: ${error.message}` } : error)
}

function wrongTree(name: string, what: string, cause?: unknown): BuildError {
  return new BuildError(
    "ERR_BUILD_REMOTE_IMAGE",
    `${name}: what it built is not what was asked for: ${what}`,
    {
      cause,
    },
  )
}

/** What the tree says of itself, which has to be what the definition asks for. */
async function describe(
  name: string,
  { range, ociConfig }: Returned,
  definition: Definition,
): Promise<ImageDescription> {
  try {
    using tree = await Tree.open(range, name)
    // Behind it there is room for what nobody looks at.
    if (tree.squashfsSize !== range.size)
      throw wrongTree(name, `its tree ends at ${tree.squashfsSize}, and ${range.size} bytes came`)
    const texts = new TextReader(new TreeTexts(tree))
    if ((await texts.text("/.singularity.d/Singularity")) !== definition.text)
      throw wrongTree(name, "it holds another definition")
    return {
      definition: definition.text,
      labels: await texts.labels("/.singularity.d"),
      ...(await texts.scripts()),
      ociConfig,
    }
  } catch (error) {
    if (error instanceof TreeError) throw wrongTree(name, error.message, error)
    if (error instanceof SyntaxError) throw wrongTree(name, "its labels are no JSON", error)
    throw error
  }
}

/** Sends all that the other side needs. */
async function send(
  { channel }: Builder,
  definition: Definition,
  bases: readonly (OpenBase | undefined)[],
  options: BuildOptions & { readonly architecture: string },
): Promise<void> {
  const { source, signal, onProgress } = options
  const { sections, noTest, fixPermissions, scratch, scratchMemory, scratchDisk } = options
  const { compression, owner, sourceDateEpoch, architecture, force = false, oci } = options
  const place = { path: source, cwd: process.cwd() }
  const transfers = hostTransfers(definition.stages)
  const sent = await sentTransfers(transfers, place)
  await channel.send({
    kind: "build",
    path: source,
    options: {
      ...{ sections, noTest, fixPermissions, scratch, scratchMemory, scratchDisk },
      ...{ compression, owner, sourceDateEpoch, architecture, force },
      maxLayerBytes: oci?.maxLayerBytes,
    },
    bases: bases.map((base) => base?.name ?? ""),
    hasFiles: transfers.length > 0,
  } satisfies BuildRequest)
  await channel.sendStream([Buffer.from(definition.text)])
  await channel.sendStream([Buffer.from(JSON.stringify(sent))])
  for (const base of bases) {
    if (base === undefined) continue
    let done: Bytes = 0
    await channel.sendStream(paddedBytes(base, signal), (bytes) => {
      done += bytes
      onProgress?.(done)
    })
  }
  if (transfers.length > 0) await channel.sendStream(sentArchive(transfers, sent, place))
}

/** Has it built and brings it here. */
async function fetchTree(
  builder: Builder,
  definition: Definition,
  bases: readonly (OpenBase | undefined)[],
  options: Options & { readonly architecture: string },
  folder: string,
): Promise<Returned> {
  const { signal } = options
  const onAbort = (): void => {
    builder.stop()
  }
  signal?.addEventListener("abort", onAbort, { once: true })
  // It may fail while things are still sent to it, and nobody takes them then.
  const heard = { isOver: false }
  const returned = hear(builder, options, folder)
  returned.catch(() => {
    heard.isOver = true
    builder.stop()
  })
  try {
    try {
      await send(builder, definition, bases, options)
    } catch (error) {
      const isOver = heard.isOver || builder.channel.over.aborted
      // Where it went by itself, what it said before that is why, and may still be on its way.
      if (!isOver) builder.stop()
      const tree = isOver ? await returned : await returned.catch(() => undefined)
      await tree?.[Symbol.asyncDispose]()
      throw isOver ? remoteError(builder.name, "it did not listen", error) : error
    }
    return await returned
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener("abort", onAbort)
  }
}

/** The bases that go along, one for each stage that has such a one. */
class Bases implements AsyncDisposable {
  readonly ofStages: (OpenBase | undefined)[] = []

  async [Symbol.asyncDispose](): Promise<void> {
    for (const base of this.ofStages) await base?.[Symbol.asyncDispose]()
  }
}

/**
 * As `build`, with another machine at work.
 *
 * @param credentials - Of bases; used here only.
 */
export async function buildRemotely(
  options: Options,
  recipients: readonly Credential[],
  credentials: Credentials,
): Promise<Omit<BuildResult, "milliseconds">> {
  const { source, onNotice, buildArguments = [], buildArgumentFile } = options
  const definition = await readHere(options)
  const wanted = definition.stages.map((stage) => wantedBase(source, stage))
  if (options.requireEncrypted === true && wanted.some(({ kind }) => kind === "debootstrap"))
    refusePlain(source, "a base of Bootstrap: debootstrap")
  if (recipients.length > 0 && (buildArguments.length > 0 || buildArgumentFile !== undefined))
    onNotice?.("values of build arguments are part of the definition that the image keeps")
  const folder = temporaryFolder(options)
  await using builder = await chooseBuilder(options)
  const architecture = options.architecture ?? builder.hello.architectures[0] ?? process.arch
  await using bases = new Bases()
  const { ofStages } = bases
  for (const base of wanted)
    ofStages.push(
      base.kind === "source" && isOpenedHere(base, options)
        ? await openBase(base, { ...options, architecture }, credentials, folder)
        : undefined,
    )
  await using returned = await fetchTree(builder, definition, ofStages, { ...options, architecture }, folder)
  const description = await describe(builder.name, returned, definition)
  const last = ofStages.at(-1)
  const ociConfig = last === undefined ? returned.ociConfig : last.ociConfig
  const image: BuildSource = {
    path: source,
    tree: { squashfs: returned.range, length: returned.range.size },
    objects: metadataObjects({ ...description, ociConfig }),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }
  const made = await makeImage({ ...options, architecture }, recipients, image)
  const { entries, inputBytes } = returned.built
  return { ...made, entries, inputBytes }
}
