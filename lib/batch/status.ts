// What became of the tasks of a set: what their nodes have written, and what Slurm knows. Slurm forgets a job minutes after its end, so
// the record is ours.
import {
  finalStates,
  type Attempt,
  type FoundTask,
  type JobSet,
  type RecordedState,
  type TaskRecord,
} from "./job-set.ts"
import { isActive, queue, type QueuedJob } from "./slurm.ts"

/**
 * `pending`: it waits in Slurm's queue; `starting`: Slurm has started it, its node has said nothing yet; `preparing`: the image is being
 * fetched or opened; `waiting`: for its key; `lost`: it ended and nobody says how.
 */
export type TaskState = "pending" | "starting" | "lost" | RecordedState

/** A task, and what is known of it. */
export interface TaskStatus {
  readonly job: string
  readonly task: string
  readonly state: TaskState
  readonly exitCode: number | undefined
  readonly node: string | undefined
  /** Why it is in this state, where that is known. */
  readonly reason: string | undefined
  /** One for each time that the payload was started. */
  readonly attempts: readonly Attempt[]
  /** Of Slurm: `123_4`. */
  readonly slurmJob: string | undefined
}

/** Will nothing change any more? */
export function isFinal({ state }: Pick<TaskStatus, "state">): boolean {
  return finalStates.has(state)
}

/** A task of a set, and what Slurm has of it. */
interface Known {
  readonly found: FoundTask
  readonly record: TaskRecord | undefined
  readonly queued: QueuedJob | undefined
  readonly slurmJob: string | undefined
}

function stateOf(
  { record, queued, slurmJob }: Known,
  complete: boolean,
): Pick<TaskStatus, "state" | "reason"> {
  if (queued !== undefined && isActive(queued)) {
    const isWaiting = record?.state === "waiting"
    if (queued.state === "PENDING") {
      const reason = queued.reason === "None" ? undefined : queued.reason
      return isWaiting ? { state: "waiting", reason: record.reason } : { state: "pending", reason }
    }
    // What an earlier start of the same task has left says nothing of this one.
    if (record === undefined || record.attempts.some(({ restarts }) => restarts > queued.restarts))
      return { state: "starting", reason: undefined }
    return { state: record.state, reason: record.reason }
  }
  if (record !== undefined && finalStates.has(record.state))
    return { state: record.state, reason: record.reason }
  if (record?.ending !== undefined)
    return { state: record.ending, reason: "it did not end in time, and was killed" }
  if (record !== undefined)
    return { state: "lost", reason: `it was ${record.state} on ${record.node} when it ended` }
  if (slurmJob === undefined && !complete) return { state: "pending", reason: "it is being submitted" }
  return { state: "cancelled", reason: undefined }
}

/** Records that are read at once: on a file server each takes its time, and there may be a hundred thousand. */
const AT_ONCE = 32

/** What nodes have written of each task; one look at a folder tells of which tasks there is anything. */
async function recordsOf(
  set: JobSet,
  signal: AbortSignal | undefined,
): Promise<ReadonlyMap<FoundTask["task"], TaskRecord>> {
  const records = new Map<FoundTask["task"], TaskRecord>()
  const known = new Map<string, ReadonlySet<string>>()
  for (const { id } of set.manifest.jobs) known.set(id, await set.recorded(id))
  const tasks = set.tasks()
  const read = async (): Promise<void> => {
    for (const found of tasks) {
      signal?.throwIfAborted()
      const { job, task } = found
      const record = known.get(job.id)?.has(task.id) === true ? await set.record(found) : undefined
      if (record !== undefined) records.set(task, record)
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, read))
  return records
}

/** The states of all tasks, in the order of the manifest. */
export async function statusOf(set: JobSet, signal?: AbortSignal): Promise<TaskStatus[]> {
  const submitted = await set.submitted()
  const jobs = new Map((await queue(signal)).map((job) => [`${job.array}_${job.element ?? ""}`, job]))
  const records = await recordsOf(set, signal)
  const started = await set.started()
  const whyNot = new Map<string, string>()
  const all: TaskStatus[] = []
  const byPlace = new Map<string, TaskStatus>()
  // Tasks of a group depend on the same.
  const whyCancelled = (found: FoundTask): string => {
    const key = `${found.job.id}/${found.group}`
    const why = whyNot.get(key) ?? failedDependency(set, found, byPlace)
    whyNot.set(key, why)
    return why
  }
  for (const found of set.tasks()) {
    const { job, group, place, task } = found
    const slurmJob = set.elementOf(found, submitted)
    const record = records.get(task)
    const known: Known = {
      found,
      record,
      queued: slurmJob === undefined ? undefined : jobs.get(slurmJob),
      slurmJob,
    }
    let { state, reason } = stateOf(known, submitted.complete)
    if (state === "cancelled" && record === undefined && slurmJob !== undefined && started.has(slurmJob)) {
      signal?.throwIfAborted()
      const said = await set.said(slurmJob)
      // Slurm writes down there whom it cancels.
      if (!said.includes(" CANCELLED ")) {
        state = "lost"
        reason = said.trim().split("\n").at(-1) || "it could not say how it ended"
      }
    }
    const status: TaskStatus = {
      ...{ job: job.id, task: task.id, state, slurmJob },
      reason: reason ?? (state === "cancelled" ? whyCancelled(found) : undefined),
      exitCode: finalStates.has(state) ? record?.exitCode : undefined,
      node: record?.node,
      attempts: record?.attempts ?? [],
    }
    all.push(status)
    byPlace.set(`${set.manifest.jobs.indexOf(job)}/${group}/${place}`, status)
  }
  return all
}

/** The task for whose end one never began. Those that others depend on come before them. */
function failedDependency(
  set: JobSet,
  { job, group }: FoundTask,
  byPlace: ReadonlyMap<string, TaskStatus>,
): string {
  const { jobs } = set.manifest
  const index = jobs.indexOf(job)
  const failed = (one: TaskStatus | undefined): string | undefined =>
    one !== undefined && isFinal(one) && one.state !== "done"
      ? `it depends on ${one.job}/${one.task}, which is ${one.state}`
      : undefined
  for (const dependency of job.groups[group]?.dependsOn ?? []) {
    const other = "job" in dependency ? jobs.findIndex(({ id }) => id === dependency.job) : index
    const groups = "job" in dependency ? (jobs[other]?.groups.map((_, i) => i) ?? []) : [dependency.group]
    for (const of of groups) {
      const elements = "job" in dependency ? undefined : dependency.elements
      const places = elements ?? jobs[other]?.groups[of]?.tasks.map((_, i) => i) ?? []
      for (const place of places) {
        const why = failed(byPlace.get(`${other}/${of}/${place}`))
        if (why !== undefined) return why
      }
    }
  }
  return "it was cancelled before it began"
}
