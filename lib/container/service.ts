// What a service needs more than an instance does: to be started again, to be asked whether it is well, to be told how to end. Its
// starter does all of it (native/starter/service.cc); here is what it is told, and what it tells.
import { constants } from "node:os"
import {
  count,
  flag,
  list,
  milliseconds,
  oneOf,
  required,
  shape,
  text,
  variables,
  whole,
  type Check,
  type Rows,
} from "../arguments.ts"
import { RunError } from "../errors.ts"
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
  /** Default: as the image's OCI configuration says; `none`: not even then. */
  readonly health?: HealthCheck | "none" | undefined
  /** Default: all is kept until it ends. */
  readonly logs?: LogLimits | undefined
  /** What {@link Instance.stop} sends first; default: as the image's OCI configuration says, else SIGTERM. */
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
const MAX_LOG_FILES = 100
const MIN_LOG_SIZE: Bytes = 4096

const restartPolicy: Check<RestartPolicy> = shape<RestartPolicy>({
  policy: required(oneOf("no", "on-failure", "always", "unless-stopped")),
  retries: whole(0, MAX_RETRIES),
})

const healthShape = shape<HealthCheck>({
  command: required(list(text)),
  intervalMs: milliseconds,
  timeoutMs: milliseconds,
  startPeriodMs: milliseconds,
  retries: whole(1, MAX_RETRIES),
})

const labelTable: Check<Readonly<Record<string, string>>> = (value, name) =>
  Object.fromEntries(
    Object.entries(variables(value, name)).map(([key, word]) => [key, text(word, `${name}.${key}`)]),
  )

/** The options, looked at. */
export const serviceRows: Rows<ServiceOptions> = {
  service: flag,
  restart: restartPolicy,
  health: ((value, name) => (value === "none" ? value : healthShape(value, name))),
  logs: shape<LogLimits>({ maxSize: required(count), maxFiles: whole(1, MAX_LOG_FILES) }),
  stopSignal: oneOf(...(Object.keys(constants.signals) as NodeJS.Signals[])),
  stopTimeoutMs: milliseconds,
  labels: labelTable,
}

/** `no`, `always`, `unless-stopped`, `on-failure`, `on-failure:3`. */
export function parseRestart(word: string): RestartPolicy {
  const [, policy = "", retries] = /^(no|always|unless-stopped|on-failure)(?::(\d{1,4}))?$/.exec(word) ?? []
  if (policy === "" || (retries !== undefined && (policy !== "on-failure" || Number(retries) > MAX_RETRIES)))
    throw new RunError("ERR_RUN_OPTION", `--restart ${word}: no, on-failure[:N], always or unless-stopped`)
  return {
    policy: policy as RestartPolicy["policy"],
    ...(retries === undefined ? {} : { retries: Number(retries) }),
  }
}

/** What a log may hold at least: less would only be moved around. */
export function checkLogs({ maxSize }: LogLimits): void {
  if (maxSize < MIN_LOG_SIZE)
    throw new RunError("ERR_RUN_OPTION", `--log-max-size: at least ${MIN_LOG_SIZE} bytes`)
}
