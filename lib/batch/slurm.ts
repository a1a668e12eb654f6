// Slurm's own commands. They get an environment of their own, so that nothing of the caller's reaches the controller.
import { setTimeout as sleep } from "node:timers/promises"
import { BatchError, EnvironmentError } from "../errors.ts"
import { ProgramFailure, runProgram } from "../outside-program.ts"
import type { Milliseconds } from "../units.ts"

/** What of the caller's environment a job gets; nothing else of it is shown to Slurm. */
const passed = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "SLURM_CONF"] as const

/** Long output of squeue for a hundred thousand tasks. */
const MAX_OUTPUT = 256 << 20

/** Slurm's commands ask a controller that does not answer again and again, for minutes; one whose machine hangs, for ever. */
const PATIENCE_MS: Milliseconds = 120_000

/** What was cancelled is looked at so often. */
const END_POLL_MS: Milliseconds = 200

/** The environment of jobs, and of Slurm's commands. */
export function slurmEnvironment(): NodeJS.ProcessEnv {
  const found = passed.flatMap((name) =>
    process.env[name] === undefined ? [] : [[name, process.env[name]] as const],
  )
  return Object.fromEntries(found)
}

/** A job that Slurm knows. */
export interface QueuedJob {
  readonly job: number
  readonly array: number
  /** undefined: it is none of an array. */
  readonly element: number | undefined
  readonly state: string
  readonly nodes: string
  readonly uid: number
  /** How often it was started before. */
  readonly restarts: number
  readonly reason: string
}

function failed(program: string, cause: ProgramFailure): BatchError | EnvironmentError {
  if (cause.why === "absent")
    return new EnvironmentError(
      "ERR_ENV_NO_PROGRAM",
      `${program} is not installed: it is one of Slurm's commands (package slurm-client)`,
      { cause },
    )
  const said = cause.complaint.trim().replaceAll(/\s*\n\s*/g, "; ")
  const message = said === "" ? `${program} ${cause.message}` : `${program}: ${said}`
  return new BatchError("ERR_BATCH_SCHEDULER", message, { cause })
}

/** How one of Slurm's commands is run. */
interface RunOptions {
  readonly input?: string
  readonly signal?: AbortSignal | undefined
  readonly patienceMs?: Milliseconds
}

/**
 * Runs one of Slurm's commands.
 *
 * @throws BatchError `ERR_BATCH_SCHEDULER`, also where it does not end; EnvironmentError `ERR_ENV_NO_PROGRAM`; the signal's reason.
 */
export async function slurm(
  program: "sbatch" | "squeue" | "scancel" | "scontrol" | "sinfo",
  args: readonly string[],
  { input, signal, patienceMs = PATIENCE_MS }: RunOptions = {},
): Promise<string> {
  try {
    const output = await runProgram(program, args, {
      ...{ env: slurmEnvironment(), input, limit: MAX_OUTPUT, signal },
      ...{ timeoutMs: patienceMs, killSignal: "SIGKILL" },
    })
    return output.toString("utf8")
  } catch (cause) {
    throw cause instanceof ProgramFailure ? failed(program, cause) : cause
  }
}

/** Nothing of what a user chooses: a name with a bar in it could tell anything. */
const FORMAT = ["JobID", "ArrayJobID", "ArrayTaskID", "State", "NodeList", "UserID", "RestartCnt", "Reason"]
  .map((name) => `${name}:|`)
  .join(",")

function parseQueue(text: string): QueuedJob[] {
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => {
      const [job, array, element = "", state = "", nodes = "", uid, restarts, reason = ""] = line.split("|")
      return {
        job: Number(job),
        array: Number(array),
        element: /^\d+$/.test(element) ? Number(element) : undefined,
        ...{ state, nodes, uid: Number(uid), restarts: Number(restarts), reason },
      }
    })
}

/** The user's jobs that wait or run, or have just ended. */
export async function queue(signal?: AbortSignal): Promise<QueuedJob[]> {
  const uid = String(process.geteuid?.())
  return parseQueue(
    await slurm("squeue", ["--noheader", "--user", uid, "--array", "--Format", FORMAT], { signal }),
  )
}

const active: ReadonlySet<string> = new Set(["PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "STOPPED", "REQUEUED", "RESIZING", "SIGNALING", "STAGE_OUT", "REQUEUE_HOLD", "SPECIAL_EXIT", "REQUEUE_FED"]) // prettier-ignore

/** Will it still do something? */
export function isActive({ state }: Pick<QueuedJob, "state">): boolean {
  return active.has(state)
}

/** Waits until nothing of these arrays will do anything any more. @returns Whether it came to that in time. */
export async function haveEnded(arrays: ReadonlySet<number>, withinMs: Milliseconds): Promise<boolean> {
  const end = performance.now() + withinMs
  while ((await queue()).some((job) => arrays.has(job.array) && isActive(job))) {
    if (performance.now() > end) return false
    await sleep(END_POLL_MS)
  }
  return true
}

/**
 * One job by its own number. That of an array's last element is the array's number too, for which squeue shows all elements; only one
 * of them has it as its own.
 *
 * @returns undefined: there is no such job.
 */
export async function jobByNumber(job: number, signal?: AbortSignal): Promise<QueuedJob | undefined> {
  const args = ["--noheader", "--jobs", String(job), "--array", "--states", "all", "--Format", FORMAT]
  const text = await slurm("squeue", args, { signal }).catch((error: unknown) => {
    if (error instanceof BatchError && /Invalid job id/i.test(error.message)) return ""
    throw error
  })
  return parseQueue(text).find((one) => one.job === job)
}

/** A value of Slurm's configuration. */
export async function configured(name: string, signal?: AbortSignal): Promise<string | undefined> {
  const text = await slurm("scontrol", ["show", "config"], { signal })
  return new RegExp(`^${name}\\s*= (.*)$`, "m").exec(text)?.[1]?.trim()
}

/** The nodes of a list as Slurm writes it, `n[1-3],x`. */
export async function hostsOf(nodes: string): Promise<readonly string[]> {
  if (nodes === "") return []
  if (!/[[,]/.test(nodes)) return [nodes]
  return (await slurm("scontrol", ["show", "hostnames", nodes])).split("\n").filter((name) => name !== "")
}

/**
 * The processes that a job is on a node, as that node's own daemon knows it: what it began with, and the first one there of each step. None
 * of those that they have started.
 */
export async function processesOf(job: number, node: string): Promise<readonly number[]> {
  const text = await slurm("scontrol", ["listpids", String(job), node])
  // PID JOBID STEPID LOCALID GLOBALID: only what slurmstepd has started itself has an id in its step.
  return [...text.matchAll(/^(\d+)\s+\S+\s+(?:batch|\d+)\s+0\s/gm)].map(([, pid]) => Number(pid))
}

/**
 * The nodes where jobs of a partition can run.
 *
 * @param partition - As sbatch takes it, a list; undefined: the default one.
 * @param more - For sinfo.
 */
export async function nodesOf(
  partition: string | undefined,
  more: readonly string[] = [],
  signal?: AbortSignal,
): Promise<readonly string[]> {
  const where = partition === undefined ? [] : [`--partition=${partition}`]
  const text = await slurm("sinfo", ["--noheader", "--Node", "--format=%N|%P", ...more, ...where], { signal })
  const rows = text.split("\n").map((line) => line.split("|"))
  // The default one is marked.
  const own = rows.filter(([, name = ""]) => partition !== undefined || name.endsWith("*"))
  return [...new Set(own.flatMap(([node = ""]) => (node === "" ? [] : [node])))]
}
