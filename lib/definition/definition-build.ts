// A definition file as a source: its bases are opened here, its stages are built in a workspace, and what comes out is written
// from there.
import { verifyRows } from "../signing/verify.ts"
import * as is from "../arguments.ts"
import { existsSync, readFileSync, realpathSync } from "node:fs"
import { mkdtemp, open, rm, stat } from "node:fs/promises"
import path from "node:path"
import { callerEnvironment, messageName } from "../caller-environment.ts"
import type { Credentials } from "../encryption/credentials.ts"
import type { OriginOptions } from "../container/origin.ts"
import { readBounded, TooLarge } from "../bounded-file.ts"
import { BuildError } from "../errors.ts"
import { MAX_LAYER_BYTES } from "../oci/image.ts"
import { parseRegistryName } from "../oci/reference.ts"
import { isLoopback } from "../http/proxy.ts"
import type { NativeBlob, NativeBuild, NativeRange } from "../native/binding.ts"
import { packageRoot } from "../native/load.ts"
import { parseBinds, type Bind } from "../runtime/binds.ts"
import { gpuBinds } from "../runtime/gpu.ts"
import { bindList, type BindSpec } from "../runtime/options.ts"
import { chooseSession } from "../runtime/bundle.ts"
import { callerIdentity } from "../runtime/identity.ts"
import { findProgram } from "../runtime/program.ts"
import { subordinateIds } from "../runtime/subordinate-ids.ts"
import { shownArchitecture } from "../sif/names.ts"
import type { Bytes, OnProgress } from "../units.ts"
import {
  buildArgumentLines,
  looksLikeDefinition,
  MAX_DEFINITION_SIZE,
  parseBuildArguments,
  parseDefinition,
  type Definition,
  type Stage,
} from "./definition-file.ts"
import { debianArchitecture, hasKeyring, isPackage, isSuite } from "./debootstrap.ts"
import type { LayerOptions } from "../source/layer-options.ts"
import { buildLabels, metadataObjects } from "../source/metadata-files.ts"
import {
  hostTransfers,
  withChosenFiles,
  withHostTransfers,
  withSent,
  type SentTransfer,
} from "./sent-files.ts"
import { scratchesFor, temporaryFolder, type Scratch, type ScratchOptions } from "./scratch.ts"
import {
  openSource,
  tellOfPlain,
  type BuildSource,
  type FindOptions,
  type TreeWritten,
} from "../source/source.ts"
import { refusePlain } from "../encryption/partition.ts"
import { expandSource, type SourceVariables } from "./source-names.ts"
import { sectionNames, type SectionName, type StagesPlan } from "./stages.ts"
import { Workspace, type OnOutput, type WorkspaceOptions } from "./workspace.ts"
import type { Built, Copied, StageBase } from "./workspace-protocol.ts"

/** How a definition file is built. */
export interface DefinitionOptions extends ScratchOptions {
  /** `NAME=VALUE`, for its templates. */
  readonly buildArguments?: readonly string[] | undefined
  /** A file with lines of them; `buildArguments` are stronger. */
  readonly buildArgumentFile?: string | undefined
  /** Arguments that no template asks for are told of and are no error. */
  readonly warnUnusedBuildArguments?: boolean | undefined
  /** Only these sections; an empty list: none. Default: all of them. */
  readonly sections?: readonly SectionName[] | undefined
  /** `SRC[:DST[:OPTIONS]]` of this machine that `%post` and `%test` see. */
  readonly binds?: readonly (string | BindSpec)[] | undefined
  /** NVIDIA's libraries and programs of this machine are seen by them, too; its devices are anyway. */
  readonly nv?: boolean | undefined
  /** AMD's likewise. */
  readonly rocm?: boolean | undefined
  /** `%test` is kept but not run. */
  readonly noTest?: boolean | undefined
  /** The owner may read, write and enter everything. */
  readonly fixPermissions?: boolean | undefined
  /** Whose keys are known, where `Fingerprints:` of a definition say who must have signed a base image. */
  readonly fingerprintKeys?:
    Pick<NonNullable<OriginOptions["verify"]>, "keyringPaths" | "keyrings" | "keyPaths" | "keys"> | undefined
  /** Hears what is being done, in a few words. */
  readonly onStep?: ((text: string) => void) | undefined
  /** Gets what scripts print; where it gives a promise, no more comes until that is kept. Default: nobody does. */
  readonly onOutput?: OnOutput | undefined
}

const buildArgumentRows: is.Rows<
  Pick<DefinitionOptions, "buildArguments" | "buildArgumentFile" | "warnUnusedBuildArguments">
> = {
  buildArguments: is.list(is.text),
  buildArgumentFile: is.path,
  warnUnusedBuildArguments: is.flag,
}

const { keyringPaths, keyrings, keyPaths, keys } = verifyRows

export const definitionRows: is.Rows<DefinitionOptions> = {
  ...buildArgumentRows,
  scratch: is.oneOf("auto", "kernel", "userspace", "memory"),
  scratchMemory: is.count,
  scratchDisk: is.count,
  tmpFolder: is.path,
  plainScratch: is.flag,
  sections: is.list(is.oneOf(...sectionNames)),
  binds: bindList,
  nv: is.flag,
  rocm: is.flag,
  noTest: is.flag,
  fixPermissions: is.flag,
  fingerprintKeys: is.shape<NonNullable<DefinitionOptions["fingerprintKeys"]>>({
    ...{ keyringPaths, keyrings, keyPaths, keys },
  }),
  onStep: is.callback,
  onOutput: is.callback,
}

/** How {@link readDefinition} reads. */
export interface ReadDefinitionOptions extends Pick<
  DefinitionOptions,
  "buildArguments" | "buildArgumentFile" | "warnUnusedBuildArguments"
> {
  /** Hears what somebody should know. */
  readonly onNotice?: (text: string) => void
}
const checkRead = is.shape<ReadDefinitionOptions>({ ...buildArgumentRows, onNotice: is.callback })

/** A definition that another machine sent, and what of it that machine alone has. */
export interface SentDefinition {
  /** Its templates are replaced. */
  readonly text: string
  readonly transfers: readonly SentTransfer[]
  /** An archive of them. */
  readonly files: { readonly blob: NativeBlob; readonly digest: Buffer } | undefined
  /** Of each stage; undefined: it is found here, by its name. */
  readonly bases: readonly ({ readonly name: string; readonly squashfs: NativeRange } | undefined)[]
}

interface SourceOptions
  extends
    DefinitionOptions,
    LayerOptions,
    Pick<FindOptions, "requireEncrypted" | "kdfLimits" | "onDerivation"> {
  readonly source: string
  readonly credentials: Credentials
  readonly force?: boolean
  readonly onProgress?: OnProgress
  /** Something is encrypted: say what is readable on the way. */
  readonly encrypted: boolean
  /** Then `source` is what it is called there. */
  readonly sent?: SentDefinition | undefined
  /** It is an error where scripts cannot have processes of their own. */
  readonly confined?: boolean | undefined
}

/** Of names in memory. */
const MAX_SENT_NAMES: Bytes = 1 << 30
const DETECTED: Bytes = 64 << 10
const SIF_MAGIC_AT: Bytes = 32
const SIF_MAGIC = Buffer.from("SIF_MAGIC", "latin1")

/** Is this file a definition? What comes through a pipe is: anything else is read in more places than one. */
export async function isDefinition(file: string): Promise<boolean> {
  const info = await stat(file).catch(() => undefined)
  if (info?.isFIFO() === true) return true
  if (info?.isFile() !== true) return false
  const handle = await open(file, "r")
  try {
    const start = Buffer.alloc(Math.min(info.size, DETECTED))
    const { bytesRead } = await handle.read(start, 0, start.length, 0)
    const bytes = start.subarray(0, bytesRead)
    if (bytes.subarray(SIF_MAGIC_AT, SIF_MAGIC_AT + SIF_MAGIC.length).equals(SIF_MAGIC)) return false
    return looksLikeDefinition(bytes)
  } finally {
    await handle.close()
  }
}

async function readText(file: string): Promise<string> {
  let bytes: Buffer
  try {
    bytes = await readBounded(file, MAX_DEFINITION_SIZE)
  } catch (cause) {
    if (cause instanceof TooLarge)
      throw BuildError.at(file, "ERR_DEFINITION_SYNTAX", `${cause.message}, which are not read`, { cause })
    const { code, message } = cause as NodeJS.ErrnoException
    const why = code === "ENOENT" ? "there is no such file" : message
    throw new BuildError("ERR_BUILD_SOURCE", `cannot read ${file}: ${why}`, { path: file, cause })
  }
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw BuildError.at(file, "ERR_DEFINITION_SYNTAX", "it is not UTF-8", { cause })
  }
}

/** What a source that is no definition file amounts to. */
async function imageDefinition(spec: string): Promise<string> {
  if ((await stat(spec).catch(() => undefined)) !== undefined) return `bootstrap: localimage\nfrom: ${spec}\n`
  const [, agent, from] = /^([a-z][a-z-]*):(?:\/\/)?(.+)$/.exec(spec) ?? []
  if (agent !== undefined && from !== undefined) return `bootstrap: ${agent}\nfrom: ${from}\n`
  throw new BuildError("ERR_BUILD_SOURCE", `cannot read the source ${spec}: there is no such file`, {
    path: spec,
  })
}

/**
 * Reads and parses a definition file with the arguments that are given.
 *
 * @throws BuildError `ERR_DEFINITION_SYNTAX`, `ERR_DEFINITION_ARGUMENT`, `ERR_BUILD_SOURCE`.
 */
export async function readDefinition(file: string, options: ReadDefinitionOptions = {}): Promise<Definition> {
  is.path(file, "file")
  const { buildArguments = [], buildArgumentFile, onNotice = () => undefined } = checkRead(options, "options")
  const fromFile =
    buildArgumentFile === undefined ? [] : buildArgumentLines(await readText(buildArgumentFile))
  const given = parseBuildArguments([...fromFile, ...buildArguments])
  const text = (await isDefinition(file)) ? await readText(file) : await imageDefinition(file)
  const definition = parseDefinition(text, { path: file, buildArguments: given })
  definition.notices.forEach(onNotice)
  const { unusedArguments: unused } = definition
  if (unused.length > 0) {
    const text = `unused build args: ${unused.join(", ")}`
    if (options.warnUnusedBuildArguments !== true) throw BuildError.at(file, "ERR_DEFINITION_ARGUMENT", text)
    onNotice(text)
  }
  return definition
}

/** What to take instead of an agent that needs a service or a tool which nobody has to have. */
const refused: Readonly<Record<string, string>> = {
  library:
    "a library service, which is one service alone; take oras (Bootstrap: oras, From: HOST/REPOSITORY), which any registry keeps, " +
    "docker (Bootstrap: docker, From: debian:12) or debootstrap",
  shub: "Singularity Hub, which was closed; take oras or docker",
  "docker-daemon": "the Docker daemon; take docker-archive with what `docker save` writes",
  dockerfile: "BuildKit; build it with Docker or Podman, then take docker-archive",
  buildkit: "BuildKit; build it with Docker or Podman, then take docker-archive",
  busybox: "one binary from the network; take docker (From: busybox)",
  yum: "yum; take docker (From: almalinux:9)",
  dnf: "dnf; take docker (From: almalinux:9)",
  zypper: "zypper; take docker (From: opensuse/leap)",
  arch: "pacstrap; take docker (From: archlinux)",
}

function headerError(file: string, stage: Stage, key: string, what: string): BuildError {
  return new BuildError(
    "ERR_DEFINITION_SYNTAX",
    `${file}:${stage.headerLines.get(key) ?? stage.line}: ${what}`,
    {
      path: file,
    },
  )
}

function required(file: string, stage: Stage, key: string, name: string): string {
  const value = stage.headers.get(key) ?? ""
  if (value !== "") return value
  const agent = stage.headers.get("bootstrap") ?? ""
  throw headerError(file, stage, "bootstrap", `Bootstrap: ${agent} needs ${name}:`)
}

/** The fingerprints that a base image has to be signed with, all of them. */
function fingerprintsOf(stage: Stage): string[] {
  return (stage.headers.get("fingerprints") ?? "")
    .split(",")
    .map((text) => text.replace(/\s+/g, ""))
    .filter((text) => text !== "")
}

/** A base that is to be opened, or what else it is. */
export type WantedBase =
  | { readonly kind: "scratch" }
  | {
      readonly kind: "debootstrap"
      readonly suite: string
      readonly mirror: string
      readonly include: readonly string[]
    }
  | { readonly kind: "source"; readonly spec: string; readonly fingerprints: readonly string[] }

export function wantedBase(file: string, stage: Stage): WantedBase {
  const agent = (stage.headers.get("bootstrap") ?? "").toLowerCase()
  const from = (): string => required(file, stage, "from", "From")
  const fingerprints = fingerprintsOf(stage)
  if (fingerprints.length > 0 && agent !== "localimage" && agent !== "oras")
    throw headerError(
      file,
      stage,
      "fingerprints",
      `Fingerprints: is for localimage and oras, not for ${agent}`,
    )
  const inRegistry = (): string =>
    [stage.headers.get("registry"), stage.headers.get("namespace"), from()]
      .filter((part) => part !== undefined && part !== "")
      .map((part) => part?.replace(/\/$/, ""))
      .join("/")
  switch (agent) {
    case "scratch":
      return { kind: "scratch" }
    case "localimage":
      return { kind: "source", spec: from(), fingerprints }
    case "oci":
    case "oci-archive":
    case "docker-archive":
    case "store":
      return { kind: "source", spec: `${agent}:${from()}`, fingerprints }
    case "docker":
    case "oras":
      return { kind: "source", spec: `${agent}://${inRegistry()}`, fingerprints }
    case "debootstrap": {
      const suite = required(file, stage, "osversion", "OSVersion")
      const mirror = required(file, stage, "mirrorurl", "MirrorURL").replaceAll("%{OSVERSION}", suite)
      const include = (stage.headers.get("include") ?? "").split(/[\s,]+/).filter((name) => name !== "")
      // debootstrap runs the file of that name.
      if (!isSuite(suite)) throw headerError(file, stage, "osversion", `${suite} is no name of a release`)
      for (const name of include)
        if (!isPackage(name)) throw headerError(file, stage, "include", `${name} is no name of a package`)
      return { kind: "debootstrap", suite, mirror, include }
    }
    default: {
      const line = stage.headerLines.get("bootstrap") ?? stage.line
      const why = refused[agent]
      throw new BuildError(
        "ERR_BUILD_AGENT",
        `${file}:${line}: Bootstrap: ${agent} ${why === undefined ? "is not known" : `is not offered: it needs ${why}`}`,
        { path: file },
      )
    }
  }
}

/** Zeros where the key was, which goes through a pipe. */
function withoutKey<Keyed extends { readonly key: Uint8Array }>(keyed: Keyed): Keyed {
  return { ...keyed, key: new Uint8Array(keyed.key.length) }
}

/** Descriptors and secrets that go along with bases. */
class Luggage {
  readonly fds: number[] = []
  readonly secrets: Uint8Array[] = []

  fd(fd: number): number {
    this.fds.push(fd)
    return Workspace.descriptor(this.fds.length - 1)
  }

  /** A tree for another process: descriptors by its numbers, and zeros where secrets were. */
  pack(source: NativeBuild["source"]): NativeBuild["source"] {
    if ("squashfs" in source) {
      const { squashfs } = source
      return {
        ...source,
        squashfs: {
          ...squashfs,
          fd: this.fd(squashfs.fd),
          cipher: squashfs.cipher === undefined ? undefined : this.#withoutKey(squashfs.cipher),
        },
      }
    }
    if (!("layers" in source)) return source
    const layers = source.layers.map(({ blob, ...layer }) => {
      const { cipher, counter, ...rest } = blob
      const packed = {
        ...(cipher === undefined ? {} : { cipher: this.#withoutKey(cipher) }),
        ...(counter === undefined ? {} : { counter: this.#withoutKey(counter) }),
      }
      return { ...layer, blob: { ...rest, ...packed, fd: this.fd(blob.fd) } }
    })
    return { ...source, layers }
  }

  #withoutKey<Keyed extends { readonly key: Uint8Array }>(keyed: Keyed): Keyed {
    this.secrets.push(keyed.key)
    return withoutKey(keyed)
  }
}

function textOf(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8")
  } catch {
    return undefined // It is not everywhere, and names then are not resolved.
  }
}

/** The environment for scripts on this machine: what holds keys and passwords stays here. */
export function scriptEnvironment(): Record<string, string> {
  return Object.fromEntries(
    Object.entries(callerEnvironment()).filter(
      (entry): entry is [string, string] =>
        entry[1] !== undefined &&
        !/^(?:(?:SIFCRYPT|APPTAINER|SINGULARITY)_(?:ENCRYPTION|DOCKER)_|DOCKER_PASSWORD$)/.test(entry[0]),
    ),
  )
}

/** Sources on this machine, by their names; the other stages' are names already. */
function withExpandedSources(file: string, stages: readonly Stage[]): Stage[] {
  const passwd = textOf("/etc/passwd")?.split("\n") ?? []
  const variables: SourceVariables = {
    environment: scriptEnvironment(),
    homeOf: (user) =>
      user === undefined
        ? callerIdentity().home
        : passwd.find((line) => line.startsWith(`${user}:`))?.split(":")[5],
  }
  return withHostTransfers(stages, (transfer) => {
    const { source, line } = transfer
    try {
      return { ...transfer, source: expandSource(source, variables) }
    } catch (cause) {
      const why = `${file}:${line}: cannot copy ${source}: ${(cause as Error).message}`
      throw new BuildError("ERR_BUILD_SOURCE", why, { path: file, cause })
    }
  })
}

/** Where scripts and %files may look, so that the scratch does not cover it. */
function visiblePaths(
  definition: Definition,
  binds: readonly Bind[],
  source: string,
  output: string,
  tmpFolder: string,
): string[] {
  const named = hostTransfers(definition.stages)
    .filter(({ sent }) => sent === undefined)
    .map(({ source: name }) => path.resolve(name.split(/[*?[{]/, 1)[0] ?? ""))
  const all = [
    process.cwd(),
    packageRoot,
    process.execPath,
    path.resolve(source),
    path.resolve(output),
    tmpFolder,
    ...binds.map((bind) => bind.source),
    ...named,
  ]
  return all.map((name) => (existsSync(name) ? realpathSync(name) : name))
}

/** What has to be undone, in reverse. */
class Undo implements AsyncDisposable {
  readonly #steps: (() => unknown)[] = []

  add(step: () => unknown): void {
    this.#steps.push(step)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const errors: unknown[] = []
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop())
      try {
        await step()
      } catch (error) {
        errors.push(error)
      }
    if (errors.length > 0) throw errors[0]
  }
}

/** An ordinary folder as scratch, by the user's wish. */
async function plainFolder(undo: Undo, tmpFolder: string): Promise<Scratch> {
  const folder = await mkdtemp(path.join(tmpFolder, "sifcrypt-build-"))
  undo.add(() => rm(folder, { recursive: true, force: true }))
  return { kind: "plain", folder }
}

/**
 * Reads a definition file, and finds out what its sources are called.
 *
 * @throws BuildError.
 */
export async function prepareDefinition(file: string, options: ReadDefinitionOptions): Promise<Definition> {
  const definition = await readDefinition(file, options)
  return { ...definition, stages: withExpandedSources(file, definition.stages) }
}

/** A section that would run on the machine that builds, outside of any container: of those that are asked for. */
export function sectionOnHost(
  definition: Definition,
  sections: readonly SectionName[] | undefined,
): { readonly name: "pre" | "setup"; readonly line: number } | undefined {
  for (const { scripts } of definition.stages) {
    if (scripts.pre !== undefined && sections === undefined) return { name: "pre", line: scripts.pre.line }
    if (scripts.setup !== undefined && sections?.includes("setup") !== false)
      return { name: "setup", line: scripts.setup.line }
  }
  return undefined
}

/** Is it at a registry, and not at one of this machine? */
export function isAtRegistry(wanted: WantedBase): boolean {
  const [, transport, name = ""] =
    (wanted.kind === "source" ? /^((?:docker|oras):\/\/)(.*)$/s.exec(wanted.spec) : undefined) ?? []
  return transport !== undefined && !isLoopback(new URL(`https://${parseRegistryName(name, transport).host}`))
}

/** What was sent here, checked: nothing of this machine is part of it. */
function prepareSent(
  file: string,
  sent: SentDefinition,
  sections: readonly SectionName[] | undefined,
): Definition {
  const definition = parseDefinition(sent.text, { path: file, isExpanded: true })
  const refuse = (what: string): BuildError => BuildError.at(file, "ERR_BUILD_REMOTE_REFUSED", what)
  const onHost = sectionOnHost(definition, sections)
  if (onHost !== undefined) throw refuse(`%${onHost.name} is not run for another machine`)
  const stages = withSent(withChosenFiles(definition.stages, sections), sent.transfers)
  if (stages === undefined || sent.bases.length !== stages.length)
    throw refuse("what was sent is not what the definition asks for")
  for (const [index, stage] of stages.entries()) {
    const base = wantedBase(file, stage)
    if (base.kind === "source" && sent.bases[index] === undefined && !isAtRegistry(base))
      throw refuse(`the base ${base.spec} was not sent, and nothing of this machine is built from`)
    // One: behind a space there may be another, of any kind.
    if (base.kind === "debootstrap" && !/^https?:\/\/[\w.~:@%/+[\]-]+$/i.test(base.mirror))
      throw refuse(`the mirror ${base.mirror} is not asked for another machine`)
    if (base.kind === "debootstrap" && !hasKeyring(base.suite))
      throw refuse(
        `debootstrap knows no keys of ${base.suite}, and installs nothing unverified for another machine`,
      )
  }
  return { ...definition, stages }
}

/** @param keep - Gets what was opened. */
async function openBase(
  wanted: WantedBase,
  options: SourceOptions,
  luggage: Luggage,
  keep: (source: BuildSource) => void,
): Promise<StageBase> {
  if (wanted.kind === "scratch") return wanted
  if (wanted.kind === "debootstrap") {
    if (options.requireEncrypted === true) refusePlain(options.source, "a base of Bootstrap: debootstrap")
    const { suite, mirror, include } = wanted
    const architecture = debianArchitecture(options.architecture ?? process.arch)
    if (architecture === undefined)
      throw new BuildError(
        "ERR_BUILD_AGENT",
        `Debian has no name for the architecture ${options.architecture ?? process.arch}`,
      )
    const program = findProgram("debootstrap", "it makes the base of a stage with Bootstrap: debootstrap")
    // Its packages run with all that this user may, so another machine has none of its own installed.
    const verified = options.sent !== undefined
    return { kind: "debootstrap", options: { program, suite, mirror, include, architecture, verified } }
  }
  const { spec, fingerprints } = wanted
  // Everybody whom `Fingerprints:` names has to have signed it.
  const verify =
    fingerprints.length === 0 ? {} : { verify: { ...options.fingerprintKeys, require: fingerprints } }
  const source = await openSource(spec, options.credentials, { ...options, ...verify })
  keep(source)
  return { kind: "tree", name: spec, source: luggage.pack(source.tree), added: source.added ?? [] }
}

/** Files that were sent, as a tree that a workspace unpacks. */
function filesBase({ blob, digest }: NonNullable<SentDefinition["files"]>, luggage: Luggage): StageBase {
  const layer = { blob, name: "the files that were sent", digest, diffId: digest }
  const limits = { bytes: MAX_LAYER_BYTES, memory: MAX_SENT_NAMES }
  return {
    kind: "tree",
    name: layer.name,
    source: luggage.pack({ layers: [layer], limits, added: [] }),
    added: [],
  }
}

/** The configuration of an OCI image. */
export function configOf(source: BuildSource | undefined): string | undefined {
  return source?.objects?.find(({ name }) => name === "oci-config.json")?.data.toString("utf8")
}

/** What an encrypted build leaves behind elsewhere. */
function warnOf(definition: Definition, options: SourceOptions, onNotice: (text: string) => void): void {
  const has = (name: "pre" | "setup"): boolean =>
    definition.stages.some(({ scripts }) => scripts[name] !== undefined)
  for (const name of ["pre", "setup"] as const)
    if (has(name))
      onNotice(`%${name} runs on this machine, with your rights: what it writes there is not encrypted`)
  if (options.plainScratch === true)
    onNotice(`the root file system lies unencrypted in ${temporaryFolder(options)} while it is built`)
  if ((options.buildArguments ?? []).length > 0 || options.buildArgumentFile !== undefined)
    onNotice("values of build arguments are part of the definition that the image keeps")
}

/** A definition that is being built, and what it has become. */
export class DefinitionBuild implements AsyncDisposable {
  readonly #undo = new Undo()
  readonly #options: SourceOptions
  readonly #output: string
  #workspace: Workspace | undefined

  /** @param output - What {@link run} is for: it stays visible in the workspace. */
  constructor(options: SourceOptions, output: string) {
    this.#options = options
    this.#output = output
  }

  /** A workspace with the first kind of scratch that turns out to work here. */
  async #open(options: Omit<WorkspaceOptions, "scratch">): Promise<Workspace> {
    const { plainScratch, onNotice, scratch: wanted } = this.#options
    const [first, ...others] =
      plainScratch === true
        ? [await plainFolder(this.#undo, temporaryFolder(this.#options))]
        : scratchesFor(this.#options)
    let scratch: Scratch = first
    let obstacle = "/dev/fuse cannot be opened"
    for (;;) {
      if (scratch.kind === "memory" && wanted !== "memory")
        onNotice?.(`files under construction lie in memory alone, and must fit there: ${obstacle}`)
      const workspace = new Workspace({ ...options, scratch })
      try {
        await workspace.ready()
        this.#undo.add(() => workspace[Symbol.asyncDispose]())
        return workspace
      } catch (error) {
        await workspace[Symbol.asyncDispose]()
        options.signal?.throwIfAborted()
        const next = others.shift()
        if (next === undefined || !(error instanceof BuildError)) throw error
        obstacle = error.message
        scratch = next
      }
    }
  }

  /**
   * Builds all stages.
   *
   * @param outputFd - What the source is going to be written to.
   * @param update - A folder that the last stage changes.
   * @throws BuildError, and what opening bases throws.
   */
  async run(outputFd: number | undefined, update?: string): Promise<BuildSource> {
    const options = this.#options
    const { source: file, onNotice = () => undefined, onStep = () => undefined, signal } = options
    const { buildArguments, buildArgumentFile, warnUnusedBuildArguments } = options
    const { sent } = options
    const definition =
      sent === undefined
        ? await prepareDefinition(file, {
            ...{ buildArguments, buildArgumentFile, warnUnusedBuildArguments, onNotice },
          })
        : prepareSent(file, sent, options.sections)
    const last = definition.stages.length - 1
    const wanted = definition.stages.map((stage, index): WantedBase =>
      update !== undefined && index === last ? { kind: "scratch" } : wantedBase(file, stage),
    )
    const binds = [
      ...parseBinds(options.binds ?? [], process.cwd(), onNotice),
      ...(options.nv === true ? gpuBinds("nv", { devices: false }) : []),
      ...(options.rocm === true ? gpuBinds("rocm", { devices: false }) : []),
    ]
    const crun = findProgram("crun", "it runs the scripts of a definition file")
    if (options.encrypted) warnOf(definition, options, onNotice)
    const luggage = new Luggage()
    if (outputFd !== undefined) luggage.fd(outputFd)
    // In the order in which the workspace asks for keys.
    const files = sent?.files === undefined ? undefined : filesBase(sent.files, luggage)
    const bases: StageBase[] = []
    /** By the number of the stage. */
    const sources = new Map<number, BuildSource>()
    for (const [index, base] of wanted.entries()) {
      const given = sent?.bases[index]
      bases.push(
        given === undefined
          ? await openBase(base, options, luggage, (source) => {
              this.#undo.add(() => source[Symbol.asyncDispose]())
              sources.set(index, source)
              // For whom it was sent, nobody knows here.
              if (!options.encrypted && sent === undefined) tellOfPlain(source, this.#output, onNotice)
            })
          : { kind: "tree", name: given.name, source: luggage.pack({ squashfs: given.squashfs }), added: [] },
      )
    }
    const { uid, gid, name } = callerIdentity()
    const real = uid === 0
    const ids = real ? undefined : subordinateIds(name, uid, gid)
    const session = chooseSession(
      visiblePaths(
        definition,
        binds,
        // What was sent is called by a name of another machine.
        sent === undefined ? file : this.#output,
        this.#output,
        temporaryFolder(options),
      ),
    )
    const workspace = await this.#open({
      session,
      ids,
      fds: luggage.fds,
      signal,
      onOutput: options.onOutput ?? (() => undefined),
      onStep,
      onNotice,
    })
    this.#workspace = workspace
    for (const secret of luggage.secrets) workspace.sendSecret(secret)
    const plan: StagesPlan = {
      path: file,
      text: definition.text,
      stages: definition.stages,
      sections: options.sections,
      runTests: options.noTest !== true,
      confined: options.confined === true,
      force: options.force === true,
      fixPermissions: options.fixPermissions === true,
      update: update === undefined ? undefined : realpathSync(update),
      cwd: process.cwd(),
      environment: scriptEnvironment(),
      resolvConf: textOf("/etc/resolv.conf"),
      hosts: textOf("/etc/hosts"),
      messageName: messageName(),
      session,
      crun,
      binds,
      cp: findProgram("cp", "it copies between stages"),
      pretence: real ? "nothing" : ids === undefined ? "owners" : "devices",
      labels: this.#labels(),
    }
    const request = {
      kind: "stages",
      bases,
      files,
      ids: { many: real || ids !== undefined, real },
      plan,
    } as const
    const { description } = await workspace
      .ask(request, options.onProgress, (stage) => sources.get(stage)?.image?.vouched?.checkRead())
      .then(
        (answer) => answer as Built,
        (cause: unknown) => {
          const explained = [...sources.values()].map((source) => source.explain?.(cause))
          throw explained.find((error) => error !== undefined) ?? cause
        },
      )
    // The last one's, if that was opened here.
    const ociConfig = configOf(sources.get(last))
    return {
      path: file,
      tree: { directory: session, added: [] },
      objects: metadataObjects({ ...description, ociConfig }),
      ownersAreReal: true,
      write: (build, onProgress) => this.#write(workspace, build, onProgress),
      [Symbol.asyncDispose]: () => this[Symbol.asyncDispose](),
    }
  }

  #labels(): Record<string, string> {
    const { architecture, sourceDateEpoch } = this.#options
    const labels = buildLabels(
      shownArchitecture(architecture),
      sourceDateEpoch ?? Math.floor(Date.now() / 1000),
      "",
      "",
    )
    // Each stage's own headers become labels.
    return Object.fromEntries(Object.entries(labels).filter(([key]) => !key.includes(".deffile.")))
  }

  async #write(
    workspace: Workspace,
    build: Omit<NativeBuild, "source">,
    onProgress: (bytes: Bytes, total: Bytes | undefined) => boolean,
  ): Promise<TreeWritten> {
    const { cipher } = build
    if (cipher !== undefined) workspace.sendSecret(cipher.key)
    const wire = {
      ...build,
      fd: Workspace.descriptor(0),
      cipher: cipher && withoutKey(cipher),
    }
    const written = await workspace.ask({ kind: "write", build: wire }, (bytes, total) => {
      onProgress(bytes, total)
    })
    // Its memory is given back while the output gets to the disk.
    workspace.release()
    return written as TreeWritten
  }

  /** Copies what was built into an ordinary folder. */
  async copyTo(target: string, replace: boolean): Promise<Copied> {
    if (this.#workspace === undefined) throw new TypeError("nothing is built yet")
    return (await this.#workspace.ask({ kind: "copy", target, replace })) as Copied
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#undo[Symbol.asyncDispose]()
  }
}
