// Runs a payload in an opened image.
import { closeSync, constants as fs, fstatSync, realpathSync } from "node:fs"
import { access } from "node:fs/promises"
import { constants } from "node:os"
import type { Readable, Writable } from "node:stream"
import { isatty } from "node:tty"
import * as is from "../arguments.ts"
import { callerEnvironment } from "../caller-environment.ts"
import { RunError } from "../errors.ts"
import type { Bytes } from "../units.ts"
import type { ReadableTree } from "../device/tree.ts"
import { initPath, packageRoot, shellPath } from "../native/load.ts"
import { composeBinds, homeOf, parseBinds, type Bind } from "../runtime/binds.ts"
import { checkArchitecture } from "../runtime/architecture.ts"
import { chooseSession, makeBundle, NOTHING, type Action, type BundleOptions } from "../runtime/bundle.ts"
import { joinBundle, joinLaunch } from "../runtime/instance-bundle.ts"
import { sharingDigest, sharingSession } from "../runtime/sharing.ts"
import { confine, withProfile } from "../runtime/confinement.ts"
import { readEnvFile } from "../runtime/env-file.ts"
import { composeEnvironment, type PayloadEnvironment } from "../runtime/environment.ts"
import { gpuBinds, LIBRARY32_FOLDER } from "../runtime/gpu.ts"
import { impliedOptions, optionError, type ExecOptions } from "../runtime/options.ts"
import {
  callerIdentity,
  identityOf,
  rootIdentity,
  supplementaryGroups,
  umaskOf,
  workingFolder,
} from "../runtime/identity.ts"
import { mountFlagsOf } from "../runtime/mountinfo.ts"
import { networkArguments } from "../runtime/network.ts"
import { keptArguments, preservedDescriptors } from "../runtime/preserved.ts"
import { findProgram } from "../runtime/program.ts"
import { handOver } from "../runtime/handover.ts"
import { startStarter, type Starter } from "../runtime/starter.ts"
import {
  cacheArgument,
  launchOf,
  unpackedImages,
  type ConcreteEngine,
  type Launch,
  type StarterOptions,
} from "../runtime/starter-protocol.ts"
import type { Terminal, TerminalSize } from "../runtime/terminal.ts"
import { engineBeside, enginesFor, withEngine, type Startable } from "../runtime/engine.ts"
import { hasLimits, planCgroup, readResources, resourcesOf } from "../runtime/resources.ts"
import { idMapArguments, oneId, subordinateIds } from "../runtime/subordinate-ids.ts"
import { joinStreams, readOutput, spawnable } from "./payload-streams.ts"
import { openBindImages } from "./bind-images.ts"
import { openOverlays, type OwnOverlay } from "./overlays.ts"
import { Credentials } from "../encryption/credentials.ts"
import { onlyPartition } from "../encryption/partition.ts"

/** How a payload ended. */
export interface RunResult {
  /** Its exit status; 128 plus the signal's number when a signal ended it. */
  readonly exitCode: number
  /** What ended it, or undefined. Before Linux 6.15 an exit status of 128 and more is taken for it. */
  readonly signal?: NodeJS.Signals
}

/** What a payload wrote, and how it ended. */
export interface RunOutput extends RunResult {
  readonly stdout: Buffer
  readonly stderr: Buffer
}

/** How {@link Running.output} reads. */
export interface OutputOptions {
  /** Of standard output and error, each; default 64 MiB. The payload is ended when it writes more. */
  readonly maxBytes?: Bytes | undefined
}

/** A payload that runs. Disposing it ends it. */
export interface Running extends AsyncDisposable {
  /** The one that was chosen. */
  readonly engine: ConcreteEngine
  /** The starter's process, which passes signals on. */
  readonly pid: number
  /** The payload's streams; null unless `stdio` is `pipe`. */
  readonly stdin: Writable | null
  /** Can be read after the payload has ended, too. It waits as long as a mebibyte of it is not read. */
  readonly stdout: Readable | null
  readonly stderr: Readable | null
  /** With `stdio` "pty": all it shows, and what is typed for it. */
  readonly terminal: Terminal | null
  /**
   * How it ended, everything undone. Rejects with the signal's reason, RunError `ERR_RUN_TIMEOUT`, or another RunError when the
   * payload was lost.
   */
  readonly exited: Promise<RunResult>
  /**
   * Closes the payload's standard input, reads all it writes and waits until it has ended.
   *
   * @throws As {@link Running.exited}; RunError `ERR_RUN_OUTPUT` for more than `maxBytes`; TypeError unless both outputs are pipes.
   */
  output(options?: OutputOptions): Promise<RunOutput>
  /**
   * Sends the payload a signal.
   *
   * @returns false: it has ended.
   */
  kill(signal: NodeJS.Signals): boolean
}

/** What of the caller's environment, and of what the caller asks for, the payload gets. */
export async function payloadEnvironment(
  options: Pick<ExecOptions, "env" | "envFile" | "cleanEnv" | "noEnv" | "onNotice" | "signal">,
  argv: readonly string[],
  libraries: readonly string[] = [],
): Promise<PayloadEnvironment> {
  const { env = [], envFile, cleanEnv = false, noEnv = [], onNotice, signal } = options
  const host = callerEnvironment()
  return composeEnvironment({
    host: { ...host, USER_PATH: host["PATH"] },
    assignments: env,
    ...(envFile === undefined ? {} : { fromFile: await readEnvFile(envFile, host, argv, signal) }),
    clean: cleanEnv,
    omit: noEnv,
    libraries,
    onNotice,
  })
}

/** Binds for processors that are not the machine's own. */
function gpu(options: ExecOptions): Bind[] {
  const search = { devices: options.contain === true, compat32: options.compat32 === true }
  const found = [
    ...(options.nv === true && options.noNv !== true ? gpuBinds("nv", search) : []),
    ...(options.rocm === true && options.noRocm !== true ? gpuBinds("rocm", search) : []),
  ]
  if (search.compat32 && !found.some(isLibrary32))
    options.onNotice?.(
      "--compat32 changes nothing: --nv and --rocm are not asked for, or there are no libraries of 32 bits here",
    )
  return found
}

const isLibrary32 = ({ destination }: Bind): boolean => destination.startsWith(`${LIBRARY32_FOLDER}/`)

async function resourcesFromFile(file: string, options: ExecOptions): Promise<object> {
  if (hasLimits(options)) throw optionError("applyCgroups", "it excludes the flags for limits")
  return await readResources(file, options.signal)
}

/** The overlay that the image brings, and whether it is written to. */
function ownOverlay(startable: Startable, options: ExecOptions): OwnOverlay | undefined {
  const { overlays = [], source: image, vouched } = startable
  const writable = options.writable === true
  if (image.folder !== undefined) {
    if (writable && (options.overlay ?? []).length > 0) throw optionError("writable", "it excludes --overlay")
    return undefined
  }
  if (writable) {
    if (image.unlocked !== undefined)
      throw optionError(
        "writable",
        "an encrypted image is read-only, whoever has its key: --overlay keeps changes beside it, --writable-tmpfs in memory",
      )
    if (overlays.length === 0)
      throw optionError(
        "writable",
        "there is nothing in this image that can be written: --overlay keeps changes beside it, --writable-tmpfs in memory",
      )
    if (vouched === true)
      throw optionError(
        "writable",
        "an image that was verified is not written to: its signature would not hold",
      )
    if ((options.overlay ?? []).length > 0) throw optionError("writable", "it excludes --overlay")
  }
  // Anybody could have put it there, and would say what the payload sees of the image.
  if (image.unlocked !== undefined && overlays.length > 0) {
    options.onNotice?.(`${image.image}: its own overlay is not encrypted as the image is: it is left out`)
    return undefined
  }
  const partition = onlyPartition(image.image, "overlays of the root file system", overlays)
  return partition && { image, partition, writable: writable && options.writableTmpfs !== true }
}

/** As Node names it. */
function signalName(signal: number | undefined): NodeJS.Signals | undefined {
  const found = Object.entries(constants.signals).find(([, number]) => number === signal)
  return found?.[0] as NodeJS.Signals | undefined
}

/** The ways to start it, of which the first has to be possible: as another is tried only when that one fails. */
function possible(
  engines: readonly ConcreteEngine[],
  how: (engine: ConcreteEngine) => StarterOptions,
): [StarterOptions, ...StarterOptions[]] {
  const found: StarterOptions[] = []
  let failure: unknown
  for (const engine of engines)
    try {
      found.push(how(engine))
    } catch (error) {
      failure ??= error
    }
  const [first, ...others] = found
  if (first === undefined) throw failure
  return [first, ...others]
}

const defaultSize: TerminalSize = { columns: 80, rows: 24 }

/** The terminal of a payload, if it gets one. */
export function terminalOf({ stdio, terminalSize }: ExecOptions): TerminalSize | undefined {
  if (stdio === "pty") return terminalSize ?? defaultSize
  // isTTY of process.stdin would make a stream of it first; and node:tty brings node:net with it, which few runs need.
  const isTerminal = (fd: number): boolean => fstatSync(fd).isCharacterDevice() && isatty(fd)
  if (stdio !== "inherit" || ![2, 1, 0].every(isTerminal)) return undefined
  const { columns, rows } = process.stdout
  return columns > 0 && rows > 0 ? { columns, rows } : defaultSize
}

const checkOutput = is.shape<OutputOptions>({ maxBytes: is.count })
const signalNameOf = is.oneOf(...(Object.keys(constants.signals) as NodeJS.Signals[]))
const MAX_OUTPUT: Bytes = 64 << 20

/** Starts it in a process of its own. */
export async function startPayload(
  launch: Launch,
  bundle: Promise<Buffer>,
  options: ExecOptions,
  preserved: readonly number[] = [],
): Promise<Running> {
  const { signal, stdio = "pipe", terminalSize = defaultSize, timeoutMs } = options
  // Most payloads have none, and it brings all of Node's streams with it.
  const { openTerminal } = stdio === "pty" ? await import("../runtime/terminal.ts") : {}
  const pty = openTerminal?.(terminalSize)
  const { fd } = pty ?? {}
  const streams =
    stdio === "pty" ? ([fd ?? "ignore", fd ?? "ignore", fd ?? "ignore"] as const) : spawnable(stdio)
  let starter: Starter
  try {
    starter = startStarter({ launch, bundle, attached: true, stdio: streams, preserved })
  } catch (error) {
    pty?.terminal.destroy()
    throw error
  } finally {
    pty?.close()
  }
  const { child } = starter
  const { written, ...ends } = joinStreams(child, stdio)
  pty?.terminal.on("resize", () => child.kill("SIGWINCH"))
  const stop = (): void => {
    starter.release()
  }
  signal?.addEventListener("abort", stop, { once: true })
  if (signal?.aborted === true) stop()
  // What it was ended for, whatever it said of that: it may not have got as far as the payload.
  const throwIfStopped = (): void => {
    signal?.throwIfAborted()
    if (late)
      throw RunError.at(
        launch.image,
        "ERR_RUN_TIMEOUT",
        `the payload did not end within ${timeoutMs ?? 0} ms`,
      )
  }
  const finish = async (): Promise<RunResult> => {
    try {
      const ended = await starter.ended
      await written
      throwIfStopped()
      const name = signalName(ended.signal)
      return { exitCode: ended.code, ...(name === undefined ? {} : { signal: name }) }
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener("abort", stop)
    }
  }
  let late = false
  const timer =
    timeoutMs === undefined
      ? undefined
      : setTimeout(() => {
          late = true
          stop()
        }, timeoutMs)
  const exited = finish()
  // It may end before anybody asks how.
  exited.catch(() => undefined)
  try {
    await Promise.all([starter.ready, bundle])
  } catch (error) {
    await exited.catch(() => undefined)
    pty?.terminal.destroy()
    throwIfStopped()
    throw error
  }
  const read = async ({ maxBytes = MAX_OUTPUT }: OutputOptions): Promise<RunOutput> => {
    const { stdin, stdout, stderr } = ends
    if (stdout === null || stderr === null)
      throw is.invalidValue("output() needs stdio pipe: the payload writes elsewhere")
    stdin?.end()
    const all = async (source: Readable): Promise<Buffer> => {
      const bytes = await readOutput(source, maxBytes)
      if (bytes !== undefined) return bytes
      stop()
      throw RunError.at(launch.image, "ERR_RUN_OUTPUT", `the payload writes more than ${maxBytes} bytes`)
    }
    const [out, error] = await Promise.allSettled([all(stdout), all(stderr)])
    for (const one of [out, error]) if (one.status === "rejected") throw one.reason
    const result = await exited
    const [first, second] = [out, error] as PromiseFulfilledResult<Buffer>[]
    return { ...result, stdout: first?.value ?? Buffer.alloc(0), stderr: second?.value ?? Buffer.alloc(0) }
  }
  let outputs: Promise<RunOutput> | undefined
  return {
    engine: launch.engine,
    pid: child.pid ?? 0,
    terminal: pty?.terminal ?? null,
    ...ends,
    exited,
    output: async (asked = {}) => {
      const options = checkOutput(asked, "options")
      return await (outputs ??= read(options))
    },
    kill: (name) => child.kill(signalNameOf(name, "signal")),
    async [Symbol.asyncDispose](): Promise<void> {
      starter.release()
      await exited.catch(() => undefined)
      pty?.terminal.destroy()
    },
  }
}

/** What a run has in common with others. */
export interface SharedRun {
  /** The same for all that share it. */
  readonly name: string
  /** Of the container. */
  readonly id: string
  /** Of a container that others join. */
  readonly bundle: () => Promise<Buffer>
  /** Starts that. */
  readonly start: <T>(one: (how: StarterOptions) => Promise<T>) => Promise<T>
}

/** A run that can start. */
export interface PreparedRun {
  /** With what was asked for spelled out. */
  readonly options: ExecOptions
  readonly bundle: Promise<Buffer>
  readonly session: string
  /** Of the container. */
  readonly id: string
  readonly crun: string
  /** Descriptors of this process that the payload gets. */
  readonly preserved: readonly number[]
  /** The ways to start it, the first one first. */
  readonly attempts: readonly [StarterOptions, ...StarterOptions[]]
  /** Starts it with the engine that works. */
  readonly start: <T>(one: (how: StarterOptions) => Promise<T>) => Promise<T>
  /** undefined: it has a container of its own. */
  readonly shared: SharedRun | undefined
}

/** A container that others join has none of its own. */
const noEnvironment: PayloadEnvironment = { host: new Map(), others: new Map(), overrides: new Map() }

/** What goes on without whoever has started it. */
export interface Background {
  readonly name?: string
  readonly service?: {
    /** In the starter's words. */
    readonly args: readonly string[]
    readonly shared: Readonly<Record<string, number>>
    readonly health: readonly string[] | undefined
    /** Its first process ends with what it runs, and is known by being there. */
    readonly ends: boolean
  }
}

/**
 * Composes what `action` needs, and has `use` start it.
 *
 * @param tree - What is inside, where that can be known beforehand.
 * @param stays - It goes on when what it was started with has ended.
 * @param name - How others find it in networks; default: by its number.
 * @param service - What its starter does beyond starting it.
 */
export async function withRun<T>(
  startable: Startable,
  tree: ReadableTree | undefined,
  action: Action,
  argv: readonly string[],
  asked: ExecOptions,
  use: (prepared: PreparedRun) => Promise<T>,
  { stays = false, name, service }: { readonly stays?: boolean } & Background = {},
): Promise<T> {
  const options = impliedOptions(asked)
  const { signal } = options
  signal?.throwIfAborted()
  checkArchitecture(startable.source.image, startable.architecture ?? "unknown")
  const preserved = preservedDescriptors(options.preserveFds ?? [], startable.source.fd)
  const crun = findProgram("crun", "it runs the container")
  const hostCwd = workingFolder(options.onNotice)
  const cwd = hostCwd ?? "/"
  const caller = callerIdentity()
  const root = caller.uid === 0
  const inside = options.fakeroot === true && !root ? rootIdentity : caller
  const confined = await withProfile(
    confine(options, { ...inside, groups: root ? supplementaryGroups(caller.gid) : [] }, root),
    signal,
  )
  const who = { uid: caller.uid, gid: caller.gid, home: caller.home, insideHome: inside.home, cwd }
  const processors = gpu(options)
  const places = composeBinds(
    who,
    [
      ...parseBinds(options.binds ?? [], cwd, options.onNotice).map((bind) => ({
        nested: true,
        ...bind,
      })),
      ...processors,
    ],
    options,
  )
  const together = stays ? undefined : await sharingSession(options, places)
  const initArguments = new Set([...confined.initArguments, ...(service?.ends === true ? ["--init"] : [])])
  // Who joins a container finds its first process there.
  if (together !== undefined) initArguments.delete("--init")
  const confinement = { ...confined, initArguments: [...keptArguments(preserved), ...initArguments] }
  const { network } = confinement
  const identity = { ...identityOf(inside, confinement.ids), home: homeOf(who, options).destination }
  const resources =
    options.applyCgroups === undefined
      ? resourcesOf(options)
      : await resourcesFromFile(options.applyCgroups, options)
  const id = `sifcrypt-${process.pid}-${Date.now().toString(36)}`
  const cgroup = Object.keys(resources).length === 0 ? undefined : planCgroup(caller.uid, id)
  using credentials = new Credentials(options.overlayUnlock)
  const opening = { credentials, policy: startable.policy ?? {}, signal, onNotice: options.onNotice }
  await using bindImages = await openBindImages(places, opening)
  await using overlays = await openOverlays(options.overlay ?? [], {
    ...opening,
    own: ownOverlay(startable, options),
    encryptedImage: startable.source.unlocked !== undefined,
    allowPlain: options.plainOverlay === true,
  })
  const { folder } = startable.source
  const session = chooseSession(
    [
      ...places.flatMap(({ source }) => (source === undefined ? [] : [source])),
      ...overlays.directories,
      // What is bound out of it would be covered.
      packageRoot,
      ...(folder === undefined ? [] : [folder]),
    ].map((source) => realpathSync(source)),
  )
  const writesFolder = folder !== undefined && options.writable === true
  if (writesFolder && options.writableTmpfs === true)
    options.onNotice?.("--writable: what is written is kept, so --writable-tmpfs has no effect")
  if (writesFolder)
    await access(folder, fs.W_OK).catch(() => {
      throw optionError("writable", `${startable.source.image} is not yours to write`)
    })
  const terminal = terminalOf(options)
  const described: BundleOptions = {
    tree,
    image: startable.source.image,
    action,
    argv,
    identity,
    hostCwd,
    asked: options,
    places,
    imageNumber: (bind) => bindImages.numberOf(bind),
    session,
    environment: await payloadEnvironment(
      options,
      argv,
      processors.some(isLibrary32) ? [LIBRARY32_FOLDER] : [],
    ),
    terminal,
    umask: umaskOf(options),
    init: initPath(),
    shell: shellPath(),
    confinement,
    stays,
    health: service?.health,
    writableRoot: options.writableTmpfs === true || overlays.writable || writesFolder,
    rootFlags: writesFolder ? mountFlagsOf(startable.source.fd) : undefined,
    mountPoints: folder === undefined ? "made" : writesFolder ? "missing" : "listed",
    resources,
    cgroupsPath: cgroup?.path,
  }
  const bundle = awaitedLater(makeBundle(described))
  const subordinate = root ? undefined : subordinateIds(caller.name, caller.uid, caller.gid)
  const idMaps = inside === rootIdentity ? subordinate : undefined
  // In a user namespace with one id everything else would be nobody's.
  const owner = root || idMaps !== undefined ? undefined : { uid: caller.uid, gid: caller.gid }
  const wanted = options.engine ?? "auto"
  const networkIds = root ? undefined : (subordinate ?? oneId(caller.uid, caller.gid))
  const digest =
    together === undefined
      ? undefined
      : sharingDigest(startable.source, options, together, [
          places,
          identity,
          confined,
          session,
          crun,
          wanted,
        ])
  const sharedId = `sifcrypt-${digest ?? ""}`
  const networkWords = (called: string): readonly string[] =>
    network === undefined ? [] : networkArguments(network, called, networkIds, options.dns)
  /** What concerns the command alone. */
  const own = [
    `--id=${id}`,
    ...(confinement.initArguments.includes("--init") ? ["--init=1"] : []),
    ...(terminal === undefined ? [] : ["--terminal=1"]),
    ...(preserved.length === 0 ? [] : [`--preserve-fds=${preserved.join(",")}`]),
    ...networkWords(name ?? id),
  ]
  const how = (engine: ConcreteEngine, words: readonly string[] = own): StarterOptions => ({
    command: "run",
    engine,
    source: startable.source,
    layers: overlays
      .layers(engine, engineBeside(wanted, engine))
      .map((layer) => (layer.kind === "squashfs" ? { ...layer, owner } : layer)),
    bindImages: bindImages
      .layers(engine, engineBeside(wanted, engine))
      .map((layer) => (layer.kind === "squashfs" ? { ...layer, owner } : layer)),
    args: [
      `--session=${session}`,
      `--crun=${crun}`,
      ...words,
      cacheArgument(options.cacheSize),
      ...(writesFolder ? ["--writable=1"] : []),
      ...(owner === undefined ? [] : [`--owner=${owner.uid}:${owner.gid}`]),
      ...(idMaps === undefined ? [] : idMapArguments(idMaps)),
      ...(cgroup === undefined ? [] : [`--cgroup-manager=${cgroup.manager}`]),
      ...(cgroup?.folder === undefined ? [] : [`--cgroup=${cgroup.folder}`]),
      ...(service?.args ?? []),
    ],
    shared: service?.shared,
  })
  const attempts = possible(enginesFor(wanted, startable), how)
  const [only] = attempts
  if (wanted === "auto")
    for (const image of new Set(unpackedImages(only)))
      options.onNotice?.(
        `${image}: /dev/fuse is missing or closed here, so the image is unpacked into memory`,
      )
  const engine = attempts.length === 1 ? only.engine : wanted
  const start = <U>(one: (chosen: StarterOptions) => Promise<U>): Promise<U> =>
    withEngine(engine, startable, (chosen) => one(how(chosen)))
  const shared: SharedRun | undefined =
    digest === undefined
      ? undefined
      : {
          name: digest,
          id: sharedId,
          bundle: async () =>
            await makeBundle({
              ...described,
              ...{ action: NOTHING, argv: [], environment: noEnvironment, terminal: undefined, umask: 0o022 },
              hostCwd: undefined,
              asked: { ...options, cwd: undefined, app: undefined, shell: undefined, onNotice: undefined },
              confinement: confined,
              stays: true,
            }),
          start: async (one) =>
            await withEngine(engine, startable, (chosen) =>
              one(
                how(chosen, [
                  `--id=${sharedId}`,
                  ...(confined.initArguments.includes("--init") ? ["--init=1"] : []),
                  ...networkWords(sharedId),
                ]),
              ),
            ),
        }
  return await use({ options, bundle, session, id, crun, preserved, attempts, start, shared })
}

/** It may fail while nobody waits for it yet, or when what was to get it could not be started. */
function awaitedLater<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined)
  return promise
}

/** Runs it in the container that it shares with others. */
async function joinShared(startable: Startable, prepared: PreparedRun, shared: SharedRun): Promise<Running> {
  const { options, preserved, session, crun, attempts } = prepared
  const { signal, replaceProcess: reporter } = options
  // Most runs share nothing.
  const { takeSeat, startShared } = await import("./shared-container.ts")
  const { image } = startable.source
  const seat = await takeSeat(
    shared.name,
    async (place) =>
      await shared.start((how) =>
        startShared(launchOf(how), awaitedLater(shared.bundle()), place, startable.source.unlocked?.held),
      ),
    signal,
  )
  try {
    const { engine } = attempts[0]
    const joined = joinLaunch({ ...{ engine, image, session, crun, preserved }, id: shared.id, ...seat })
    const bundle = awaitedLater(prepared.bundle.then((full) => joinBundle(full, joined.folder)))
    if (reporter !== undefined) {
      const attempts = [joined.launch] as const
      await handOver({ attempts, bundle, reporter, preserved }, () => signal?.aborted === true)
      signal?.throwIfAborted()
    }
    return await startPayload(joined.launch, bundle, options, preserved)
  } finally {
    // Whoever joins has its own.
    closeSync(seat.fd)
  }
}

/** Runs `action` in an image; parameters as {@link withRun}. */
export async function runImage(
  startable: Startable,
  tree: ReadableTree | undefined,
  action: Action,
  argv: readonly string[],
  asked: ExecOptions,
): Promise<Running> {
  return await withRun(startable, tree, action, argv, asked, async (prepared) => {
    const { options, bundle, preserved, attempts, start } = prepared
    const { signal, stdio = "pipe", replaceProcess: reporter } = options
    if (reporter !== undefined && (stdio !== "inherit" || options.timeoutMs !== undefined))
      throw is.invalidValue("a process that is replaced has no streams to give away, and nobody to end it")
    if (prepared.shared !== undefined) return await joinShared(startable, prepared, prepared.shared)
    if (reporter !== undefined) {
      const [first, ...others] = attempts
      await handOver(
        { attempts: [launchOf(first), ...others.map(launchOf)], bundle, reporter, preserved },
        () => signal?.aborted === true,
      )
      signal?.throwIfAborted()
    }
    return await start((how) => startPayload(launchOf(how), bundle, options, preserved))
  })
}
