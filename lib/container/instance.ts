// Containers that go on when whoever started them is gone, and commands that join them.
import * as is from "../arguments.ts"
import { closeSync, existsSync, openSync } from "node:fs"
import { constants } from "node:os"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import type { ReadableTree } from "../device/tree.ts"
import { RunError } from "../errors.ts"
import { initPath, loadAddon, shellPath } from "../native/load.ts"
import { makeBundle, placeOf, type Action } from "../runtime/bundle.ts"
import { absoluteSecurity, confine, deniedByNetwork, withProfile } from "../runtime/confinement.ts"
import { handOver } from "../runtime/handover.ts"
import {
  callerIdentity,
  identityOf,
  rootIdentity,
  supplementaryGroups,
  umaskOf,
  workingFolder,
} from "../runtime/identity.ts"
import { addressesOf } from "../runtime/networks.ts"
import { joinBundle, joinLaunch } from "../runtime/instance-bundle.ts"
import {
  execOptionTable,
  instanceRows,
  streamRows,
  type ExecOptionRow,
  type ExecOptions,
} from "../runtime/options.ts"
import { letGo, startStarter } from "../runtime/starter.ts"
import { launchOf, type ConcreteEngine } from "../runtime/starter-protocol.ts"
import type { Startable } from "../runtime/engine.ts"
import { descendantsOf, firstProcess, stays, type Started } from "./container-processes.ts"
import {
  allInstances,
  checkName,
  claim,
  clearUp,
  findInstance,
  filesOf,
  forget,
  isAlive,
  remember,
  removeEnded,
  startTimeOf,
  type InstanceState,
  type Privileges,
} from "./instance-state.ts"
import { logOptions, logsOfInstance, type LogOptions, type LogPiece } from "./instance-logs.ts"
import { statsOf, type InstanceStats } from "./instance-stats.ts"
import {
  isService,
  serviceArguments,
  serviceRows,
  statusOf,
  type InstanceStatus,
  type ServiceOptions,
} from "./service.ts"
import { payloadEnvironment, startPayload, terminalOf, withRun, type Running } from "./run.ts"

/** Options of {@link Image.startInstance}: those of a run that are not about streams. */
export type InstanceOptions = Omit<
  ExecOptions,
  | "stdio"
  | "terminalSize"
  | "replaceProcess"
  | "shell"
  | "preserveFds"
  | "timeoutMs"
  | "sharens"
  | "noSharens"
> &
  ServiceOptions

/** How {@link Instance.exec} and its like run: what concerns the command alone. */
export type JoinOptions = Pick<
  ExecOptions,
  | "stdio"
  | "terminalSize"
  | "timeoutMs"
  | "signal"
  | "env"
  | "envFile"
  | "noEnv"
  | "cleanEnv"
  | "evaluate"
  | "noEval"
  | "cwd"
  | "app"
  | "shell"
  | "noUmask"
  | "onNotice"
  | "replaceProcess"
>

/** How {@link Instance.stop} stops. */
export interface StopOptions {
  /** What its start script gets first; default: as it was started, else as its image says, else `SIGTERM`. */
  readonly signal?: NodeJS.Signals | undefined
  /** After so long it is killed, milliseconds; default: as it was started, else 10000. */
  readonly timeoutMs?: number | undefined
}

/** How {@link Instance.wait} waits. */
export interface WaitOptions {
  /** For its end, which is the default, or until it is known whether it is well. */
  readonly until?: "ended" | "healthy" | undefined
  /** Stops it. */
  readonly signal?: AbortSignal | undefined
}

/** Which ones {@link listInstances} lists. */
export interface ListInstancesOptions {
  /** Services that have ended as well; default false. */
  readonly ended?: boolean | undefined
}

export const instanceOptions: is.Check<InstanceOptions> = is.shape<InstanceOptions>({
  ...instanceRows,
  ...serviceRows,
})
const waitOptions = is.shape<WaitOptions>({ until: is.oneOf("ended", "healthy"), signal: is.abortSignal })
const listOptions = is.shape<ListInstancesOptions>({ ended: is.flag })

const { stdio, terminalSize, replaceProcess, timeoutMs } = streamRows
const { signal, onNotice } = instanceRows
const joined = Object.entries<ExecOptionRow>(execOptionTable).filter(
  ([, [, , , more]]) => more?.joins === true,
)
/** Beside streams and time: the options whose rows say that they concern the command alone. */
const joinRows = {
  ...{ stdio, terminalSize, replaceProcess, timeoutMs, signal, onNotice },
  ...Object.fromEntries(
    joined.map(([key]) => [key, { ...streamRows, ...instanceRows }[key as keyof ExecOptions]]),
  ),
} as is.Rows<JoinOptions>
const joinOptions = is.shape(joinRows)
const words = is.list(is.text)
const checkStop = is.shape<StopOptions>({
  signal: is.oneOf(...(Object.keys(constants.signals) as NodeJS.Signals[])),
  timeoutMs: is.milliseconds,
})

const STOP_TIMEOUT_MS = 10_000
const WAIT_MS = 50
const KILL_TIMEOUT_MS = 15_000
/** The container process may take so long to undo all when its starter was killed. */
const UNDO_MS = 2000
const LOOK_MS = 20

/** A container that runs in the background, one of this user's. */
export class Instance {
  readonly name: string
  /** As it was opened; absolute. */
  readonly image: string
  readonly engine: ConcreteEngine
  /** Its starter's process. */
  readonly pid: number
  /** Files of what its start script wrote. */
  readonly logOut: string
  readonly logErr: string
  readonly labels: Readonly<Record<string, string>>
  /** Its networks that have a name, and its addresses there. */
  readonly networks: readonly { readonly name: string; readonly address: string }[]
  readonly #state: InstanceState

  private constructor(state: InstanceState) {
    this.name = state.name
    this.image = state.image
    this.engine = state.engine
    this.pid = state.pid
    this.logOut = state.logOut
    this.logErr = state.logErr
    this.labels = state.labels
    this.networks = state.networks
    this.#state = state
  }

  /** @internal Use {@link openInstance}. */
  static of(state: InstanceState): Instance {
    return new Instance(state)
  }

  /**
   * Runs a command in it.
   *
   * @throws RunError; the signal's reason.
   */
  exec(argv: readonly string[], options: JoinOptions = {}): Promise<Running> {
    return join(this.#state, "exec", argv, options)
  }

  /** Runs the image's run script in it; throws as {@link Instance.exec}. */
  run(argv: readonly string[] = [], options: JoinOptions = {}): Promise<Running> {
    return join(this.#state, "run", argv, options)
  }

  /** Runs bash, or sh, in it; throws as {@link Instance.exec}. */
  shell(options: JoinOptions = {}): Promise<Running> {
    return join(this.#state, "shell", [], options)
  }

  /** Runs the image's test script in it; throws as {@link Instance.exec}. */
  test(argv: readonly string[] = [], options: JoinOptions = {}): Promise<Running> {
    return join(this.#state, "test", argv, options)
  }

  /**
   * What it uses now: what runs in it, that is, not what serves its file system.
   *
   * @throws RunError `ERR_INSTANCE_NONE` when it has ended.
   */
  stats(): InstanceStats {
    const first = isAlive(this.#state) ? firstProcess(this.pid) : undefined
    if (first === undefined) throw hasEnded(this.#state)
    return statsOf(first, this.#state.id)
  }

  /**
   * What its script has written, from the start; with `follow` also what it goes on to write, until it has ended. What several read is
   * read for each.
   *
   * @throws RunError `ERR_INSTANCE_NONE` when it has ended, `ERR_INSTANCE_FOLDER`; the signal's reason.
   */
  logs(options: LogOptions = {}): AsyncGenerator<LogPiece, void, undefined> {
    return logsOfInstance(this.#state, logOptions(options, "options"))
  }

  /** What has become of it. */
  status(): InstanceStatus {
    return statusOf(this.#state.journal, this.#state.startedAt, isAlive(this.#state))
  }

  /**
   * Waits for its end; with `until` "healthy" until it is healthy, or has become unhealthy, or has ended, or where nobody asks.
   *
   * @throws The signal's reason.
   */
  async wait(options: WaitOptions = {}): Promise<InstanceStatus> {
    const { until = "ended", signal: abort } = waitOptions(options, "options")
    for (;;) {
      const status = this.status()
      if (status.state === "ended") return status
      if (until === "healthy" && status.state === "running" && status.health !== "starting") return status
      await sleep(WAIT_MS, undefined, { signal: abort }).catch(() => abort?.throwIfAborted())
    }
  }

  /**
   * Removes what is known of a service that has ended, and what it has written. Idempotent.
   *
   * @throws RunError `ERR_INSTANCE_EXISTS`: it runs.
   */
  async remove(): Promise<void> {
    await removeEnded(this.name)
  }

  /**
   * Ends it and waits until nothing is left of it, but for what is known of a service. Idempotent.
   *
   * @throws RunError `ERR_RUN` when it does not end.
   */
  async stop(options: StopOptions = {}): Promise<void> {
    const state = this.#state
    const { signal = state.stopSignal, timeoutMs = state.stopTimeoutMs } = checkStop(options, "options")
    if (isAlive(state)) {
      // When its own process is killed the others need a moment.
      const all = descendantsOf(state.pid)
      const children = all.filter(({ parent }) => parent === state.pid)
      send(state, signal)
      if (!(await ends([state], children, timeoutMs))) {
        send(state, "SIGKILL")
        if (!(await ends([state], all, UNDO_MS)) && !isAlive(state)) killLeft(all)
        if (!(await ends([state], all, KILL_TIMEOUT_MS)))
          throw new RunError("ERR_RUN", `the instance ${state.name} does not end`, { path: state.image })
      }
    }
    await clearUp()
  }
}

function hasEnded({ name }: InstanceState): RunError {
  return new RunError("ERR_INSTANCE_NONE", `the instance ${name} has ended`)
}

function send({ pid, startTime }: Omit<Started, "parent">, signal: NodeJS.Signals): void {
  loadAddon().signalProcess({ pid, startTime, signal: constants.signals[signal] })
}

/** What lost its container process before the starter was killed has nobody else to end it. */
function killLeft(known: readonly Started[]): void {
  for (const one of known) {
    const below = startTimeOf(one.pid) === one.startTime ? descendantsOf(one.pid) : []
    for (const process of [one, ...below]) send(process, "SIGKILL")
  }
}

async function ends(
  [state]: readonly [InstanceState],
  children: readonly Started[],
  timeoutMs: number,
): Promise<boolean> {
  const late = performance.now() + timeoutMs
  const gone = (): boolean =>
    !isAlive(state) && children.every(({ pid, startTime }) => startTimeOf(pid) !== startTime)
  while (!gone()) {
    if (performance.now() > late) return false
    await sleep(LOOK_MS)
  }
  return true
}

/** What a command that joins may, whatever folder it is called in. */
function privilegesOf(options: ExecOptions): Privileges {
  const { fakeroot, security, addCaps, dropCaps, keepPrivs, noPrivs, allowSetuid } = options
  const given = {
    ...{ fakeroot, addCaps, keepPrivs, noPrivs, allowSetuid },
    dropCaps: [...(dropCaps ?? []), ...deniedByNetwork(options)],
    security: security === undefined ? undefined : absoluteSecurity(security),
  }
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined))
}

async function addressesIn(name: string): Promise<InstanceState["networks"]> {
  return [...(await addressesOf(name))].map(([network, address]) => ({ name: network, address }))
}

/** Starts `image` as an instance. */
export async function startInstance(
  startable: Startable,
  tree: ReadableTree | undefined,
  name: string,
  script: "start" | "run" | "exec",
  argv: readonly string[],
  asked: InstanceOptions,
): Promise<Instance> {
  checkName(name)
  const { health, stopSignal = "SIGTERM", stopTimeoutMs = STOP_TIMEOUT_MS, labels = {} } = asked
  const ends = isService(asked)
  const release = await claim(name)
  const open: number[] = []
  try {
    const files = filesOf(name)
    const { logOut, logErr, journal } = files
    // At their ends: there may be others who write.
    open.push(openSync("/dev/null", "r"), openSync(logOut, "a", 0o600), openSync(logErr, "a", 0o600))
    const journalFd = openSync(journal, "w", 0o600)
    const streams = [...open]
    open.push(journalFd)
    const service = {
      args: serviceArguments(asked, files),
      shared: { "journal-fd": journalFd },
      health: health === undefined || health === "none" ? undefined : health.command,
      ends,
    }
    const asInstance = { ...asked, stdio: "ignore", preserveFds: 0 } as const
    const { state, starter } = await withRun(
      startable,
      tree,
      script,
      argv,
      asInstance,
      async (prepared) => {
        const { options, bundle, session, id, crun } = prepared
        return await prepared.start(async (how) => {
          // Until its state is written nobody but this process knows of it.
          const started = startStarter({
            launch: launchOf(how),
            bundle,
            attached: "at first",
            stdio: streams,
          })
          const pid = started.child.pid ?? 0
          const startTime = startTimeOf(pid)
          try {
            await Promise.all([started.ready, bundle])
            options.signal?.throwIfAborted()
            if (startTime === undefined || !(ends || (await stays(pid, startTime)))) {
              await started.ended
              throw new RunError("ERR_RUN", `${startable.source.image}: the instance ended at once`)
            }
          } catch (error) {
            started.child.kill("SIGKILL")
            await started.ended.catch(() => undefined)
            throw error
          }
          const image = placeOf(startable.source.image)
          const { engine } = how
          const privileges = privilegesOf(options)
          const found: InstanceState = {
            ...{ name, image, engine, pid, startTime, session, id, crun, ...files, privileges },
            ...{ service: ends, startedAt: Date.now(), stopSignal, stopTimeoutMs, labels },
            networks: options.network === undefined ? [] : await addressesIn(name),
          }
          return { state: found, starter: started }
        })
      },
      { stays: !ends, name, service },
    )
    try {
      remember(state)
      // A service may have ended by now, and then nobody is to be told.
      await starter.stay().catch((error: unknown) => {
        if (!ends || isAlive(state)) throw error
      })
    } catch (error) {
      starter.child.kill("SIGKILL")
      throw error
    }
    letGo(starter)
    return Instance.of(state)
  } catch (error) {
    forget(name)
    throw error
  } finally {
    for (const fd of open) closeSync(fd)
    release()
  }
}

/** This user's instances that run, by name. */
export async function listInstances(options: ListInstancesOptions = {}): Promise<Instance[]> {
  const { ended = false } = listOptions(options, "options")
  return (await allInstances(ended)).map((state) => Instance.of(state))
}

/**
 * The instance of a name: one that runs, or a service that has ended.
 *
 * @throws RunError `ERR_INSTANCE_NONE`, `ERR_INSTANCE_NAME`, `ERR_INSTANCE_FOLDER`.
 */
export function openInstance(name: string): Instance {
  is.text(name, "name")
  const state = findInstance(name, true)
  if (state === undefined) throw new RunError("ERR_INSTANCE_NONE", `there is no instance ${name}`)
  return Instance.of(state)
}

async function join(
  state: InstanceState,
  action: Action,
  given: readonly string[],
  wantedOptions: JoinOptions,
): Promise<Running> {
  const argv = words(given, "argv")
  const options = joinOptions(wantedOptions, "options")
  if (action === "exec" && argv.length === 0) throw is.invalidValue("argv is empty: no command")
  if (!isAlive(state)) throw hasEnded(state)
  const { signal, stdio = "pipe" } = options
  signal?.throwIfAborted()
  const caller = callerIdentity()
  const root = caller.uid === 0
  const who = state.privileges.fakeroot === true && !root ? rootIdentity : caller
  const confinement = await withProfile(
    confine(state.privileges, { ...who, groups: root ? supplementaryGroups(caller.gid) : [] }, root),
    signal,
  )
  const identity = identityOf(who, confinement.ids)
  const hostCwd = workingFolder(options.onNotice)
  const inside = firstProcess(state.pid)
  const isInside = (folder: string): boolean =>
    inside !== undefined && existsSync(`/proc/${inside}/root${folder}/.`)
  const { cwd: askedFor, ...asked } = options
  const wanted = askedFor === undefined ? undefined : path.posix.resolve("/", askedFor)
  if (wanted !== undefined && !isInside(wanted))
    throw RunError.at(state.image, "ERR_RUN", `there is no folder ${wanted} inside`)
  const cwd = wanted ?? [hostCwd ?? identity.home, identity.home].find(isInside) ?? "/"
  const full = await makeBundle({
    tree: undefined,
    image: state.image,
    action,
    argv,
    identity,
    hostCwd: undefined,
    asked,
    places: [],
    session: state.session,
    environment: await payloadEnvironment(options, argv),
    terminal: terminalOf(options),
    umask: umaskOf(options),
    init: initPath(),
    shell: shellPath(),
    confinement,
    writableRoot: false,
    resources: {},
    cgroupsPath: undefined,
  })
  const { launch, folder } = joinLaunch(state)
  const bundle = joinBundle(full, folder, cwd)
  if (options.replaceProcess !== undefined) {
    if (stdio !== "inherit") throw is.invalidValue("a process that is replaced has no streams to give away")
    const reporter = options.replaceProcess
    await handOver(
      { attempts: [launch], bundle: Promise.resolve(bundle), reporter },
      () => signal?.aborted === true,
    )
    signal?.throwIfAborted()
  }
  return await startPayload(launch, Promise.resolve(bundle), options)
}
