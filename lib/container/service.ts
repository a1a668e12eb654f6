// What a service needs more than an instance does: to be started again, to be asked whether it is well, to be told how to end. Its
// starter does all of it (native/starter/service.cc, health.cc); here is what it is told, and what it tells.
import { readFileSync } from "node:fs"
import { constants } from "node:os"
import * as is from "../arguments.ts"
import { RunError } from "../errors.ts"
import { parseJson } from "../json.ts"
import type { Bytes } from "../units.ts"

/** When a service is started again that has ended. `unless-stopped` is `always`: what is stopped is never started again. */
export interface RestartPolicy {
  readonly policy: "no" | "on-failure" | "always" | "unless-stopped"
  /** With `on-failure`: so often at most; default: without end. */
  readonly retries?: number | undefined
}

/** How a service is asked whether it is well. */
export interface HealthCheck {
  /** A command that runs in it, and ends with 0 when it is. */
  readonly command: readonly string[]
  /** From the end of one to the start of the next, milliseconds; default 30000. */
  readonly intervalMs?: number | undefined
  /** A command that takes longer is killed and has failed; default 30000. */
  readonly timeoutMs?: number | undefined
  /** Failures from its start on do not count for so long, milliseconds; default 0. */
  readonly startPeriodMs?: number | undefined
  /** So many failures in a row, and it is unhealthy; default 3. */
  readonly retries?: number | undefined
}

/** What is kept of what a service writes, of standard output and error each. */
export interface LogLimits {
  /** Of one file. */
  readonly maxSize: Bytes
  /** The one that is written, and older ones; default 1: of what is older nothing is kept. */
  readonly maxFiles?: number | undefined
}

/** What can be asked of an instance beyond what can be asked of a run. */
export interface ServiceOptions {
  /**
   * It ends when what it was started with has ended, and what became of it can be read until it is removed ({@link Instance.remove});
   * default false: it goes on until it is stopped, and leaves nothing. With `restart` always true.
   */
  readonly service?: boolean | undefined
  readonly restart?: RestartPolicy | undefined
  /** Default: as the image's OCI configuration says, of a service; `none`: not even then. */
  readonly health?: HealthCheck | "none" | undefined
  /** Default: all is kept until it ends. */
  readonly logs?: LogLimits | undefined
  /** What {@link Instance.stop} sends first; default: of a service as the image's OCI configuration says, else SIGTERM. */
  readonly stopSignal?: NodeJS.Signals | undefined
  /** How long that waits; default 10000. */
  readonly stopTimeoutMs?: number | undefined
  /** Words of the caller's, kept with it. */
  readonly labels?: Readonly<Record<string, string>> | undefined
}

/** What becomes of an instance. */
export interface InstanceStatus {
  /** `restarting`: between an end and the start that follows it. */
  readonly state: "running" | "restarting" | "ended"
  /** undefined: nobody asks. */
  readonly health: "starting" | "healthy" | "unhealthy" | undefined
  /** Of the last time it ended; 128 plus the signal's number when that was one. */
  readonly exitCode: number | undefined
  /** Why it could not go on, if something else than its payload ended it. */
  readonly failure: string | undefined
  /** How often it was started again. */
  readonly restarts: number
  /** Milliseconds since 1970. */
  readonly startedAt: number
  readonly endedAt: number | undefined
}

const MAX_RETRIES = 1000
export const MAX_LOG_FILES = 100
const MIN_LOG_SIZE: Bytes = 4096

const signals = Object.keys(constants.signals) as NodeJS.Signals[]

const healthShape = is.shape<HealthCheck>({
  command: is.required(is.list(is.text)),
  intervalMs: is.milliseconds,
  timeoutMs: is.milliseconds,
  startPeriodMs: is.milliseconds,
  retries: is.whole(1, MAX_RETRIES),
})

/** The options, looked at. */
export const serviceRows: is.Rows<ServiceOptions> = {
  service: is.flag,
  restart: is.shape<RestartPolicy>({
    policy: is.required(is.oneOf("no", "on-failure", "always", "unless-stopped")),
    retries: is.whole(0, MAX_RETRIES),
  }),
  health: (value, name) => (value === "none" ? value : healthShape(value, name)),
  logs: is.shape<LogLimits>({ maxSize: is.required(is.count), maxFiles: is.whole(1, MAX_LOG_FILES) }),
  stopSignal: is.oneOf(...signals),
  stopTimeoutMs: is.milliseconds,
  labels: (value, name) =>
    Object.fromEntries(
      Object.entries(is.variables(value, name)).map(([key, word]) => [key, is.text(word, `${name}.${key}`)]),
    ),
}

export function restartNamed(word: string): RestartPolicy | undefined {
  const [, policy = "", retries] = /^(no|always|unless-stopped|on-failure)(?::(\d{1,4}))?$/.exec(word) ?? []
  if (policy === "" || (retries !== undefined && (policy !== "on-failure" || Number(retries) > MAX_RETRIES)))
    return undefined
  return {
    policy: policy as RestartPolicy["policy"],
    ...(retries === undefined ? {} : { retries: Number(retries) }),
  }
}

/** `no`, `always`, `unless-stopped`, `on-failure`, `on-failure:3`. */
export function parseRestart(word: string): RestartPolicy {
  const policy = restartNamed(is.text(word, "word"))
  if (policy === undefined)
    throw new RunError("ERR_RUN_OPTION", `--restart ${word}: no, on-failure[:N], always or unless-stopped`)
  return policy
}

/** `SIGTERM`, `TERM` or `15`. */
export function signalNamed(word: string): NodeJS.Signals | undefined {
  return /^\d+$/.test(word)
    ? signals.find((name) => constants.signals[name] === Number(word))
    : signals.find((name) => name === `SIG${word.toUpperCase().replace(/^SIG/, "")}`)
}

/** What a log may hold at least: less would only be moved around. */
export function checkLogs({ maxSize }: LogLimits): void {
  if (maxSize < MIN_LOG_SIZE)
    throw new RunError("ERR_RUN_OPTION", `--log-max-size: at least ${MIN_LOG_SIZE} bytes`)
}

const DEFAULT_INTERVAL_MS = 30_000
const DEFAULT_RETRIES = 3

/** Does it end with what it runs? */
export function isService({ service, restart }: ServiceOptions): boolean {
  return service === true || (restart !== undefined && restart.policy !== "no")
}

/** In the starter's words. */
export function serviceArguments(
  options: Pick<ServiceOptions, "restart" | "health" | "logs">,
  files: { readonly logOut: string; readonly logErr: string },
): string[] {
  const { restart, health, logs } = options
  const args: string[] = []
  if (restart !== undefined && restart.policy !== "no") {
    const retries = restart.retries === undefined ? "" : `,${restart.retries}`
    args.push(`--restart=${restart.policy === "on-failure" ? `on-failure${retries}` : "always"}`)
  }
  if (health !== undefined && health !== "none") {
    const { intervalMs, timeoutMs, startPeriodMs = 0, retries = DEFAULT_RETRIES } = health
    const times = [intervalMs ?? DEFAULT_INTERVAL_MS, timeoutMs ?? DEFAULT_INTERVAL_MS]
    // In no time nothing is answered.
    args.push(`--health=${[...times.map((time) => Math.max(1, time)), startPeriodMs, retries].join(",")}`)
  }
  if (logs !== undefined) {
    checkLogs(logs)
    args.push(`--log-out=${files.logOut}`, `--log-err=${files.logErr}`)
    args.push(`--log-size=${logs.maxSize}`, `--log-files=${logs.maxFiles ?? 1}`)
  }
  return args
}

/** What the starter writes about a service. */
interface Journal {
  readonly state: "running" | "restarting" | "ended"
  readonly health: string
  readonly code: number
  readonly restarts: number
  readonly startedAt: number
  readonly endedAt: number
  readonly failure: string
}

const isJournal = (value: unknown): value is Journal => {
  const found = value as Partial<Record<keyof Journal, unknown>> | null
  return (
    typeof found === "object" &&
    found !== null &&
    ["running", "restarting", "ended"].includes(String(found.state)) &&
    ["", "starting", "healthy", "unhealthy"].includes(String(found.health)) &&
    (["code", "restarts", "startedAt", "endedAt"] as const).every((key) =>
      Number.isSafeInteger(found[key]),
    ) &&
    typeof found.failure === "string"
  )
}

const MAX_JOURNAL: Bytes = 8 << 10
const LOOKS = 5

/** It may be just being written: then it is looked at again. */
function readJournal(file: string): Journal | undefined {
  for (let look = 0; look < LOOKS; look++)
    try {
      const text = readFileSync(file, "latin1")
      const journal: unknown = text.length > MAX_JOURNAL ? undefined : parseJson(text)
      if (isJournal(journal)) return journal
    } catch {
      continue
    }
  return undefined
}

/** What has become of an instance whose starter runs, or does not any more. */
export function statusOf(journalFile: string, startedAt: number, alive: boolean): InstanceStatus {
  const journal = readJournal(journalFile)
  const health = journal?.health as InstanceStatus["health"] | "" | undefined
  // A starter that was killed could not say so.
  const lost = !alive && journal?.state !== "ended"
  return {
    // What has been written last may be undoing things still.
    state: !alive ? "ended" : journal?.state === "restarting" ? "restarting" : "running",
    health: health === "" || !alive ? undefined : health,
    exitCode: journal === undefined || journal.code < 0 ? undefined : journal.code,
    failure: lost ? "its starter was killed" : journal?.failure === "" ? undefined : journal?.failure,
    restarts: journal?.restarts ?? 0,
    startedAt: journal === undefined || journal.startedAt === 0 ? startedAt : journal.startedAt,
    endedAt: alive || journal === undefined || journal.endedAt === 0 ? undefined : journal.endedAt,
  }
}
