// What has started this process: a program that starts many of one kind on a node, or somebody in a session of his.
import { readFileSync } from "node:fs"

type Variables = Readonly<Record<string, string | undefined>>

/** What processes belong to that have one thing to do, or one person to do it for. */
export interface LaunchSession {
  /** Different for each. */
  readonly name: string
  /** There are several of them, and they are to work together. */
  readonly isParallel: boolean
}

/** By which variables launchers name a run of theirs: all of one row, or none. */
const runs: readonly (readonly string[])[] = [
  // srun(1): what a batch script starts by itself is no step.
  ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID"],
  ["PMIX_NAMESPACE"],
  ["OMPI_MCA_ess_base_jobid"],
  ["PMI_JOBID"],
]
/** Not the same for each of its processes. */
const ofOne: ReadonlySet<string> = new Set(["SLURM_PROCID"])

/** How many there are, on this node where that is said; the first that is set counts: what is nearer to the process comes first. */
const counts = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"] as const

/** The session of the kernel's: a login, a terminal, a job of cron's. */
function ownSession(): string {
  const stat = readFileSync("/proc/self/stat", "latin1")
  // The name before it may hold anything; its end is the last parenthesis. Field 6 of proc(5).
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[3] ?? ""
}

export function launchSession(variables: Variables, session: () => string = ownSession): LaunchSession {
  const found = runs.filter((names) => names.every((name) => (variables[name] ?? "") !== ""))
  const named = found.map((names) =>
    names.filter((name) => !ofOne.has(name)).map((name) => `${name}=${variables[name] ?? ""}`),
  )
  const count = counts.map((name) => variables[name]).find((text) => text !== undefined)
  return {
    name: JSON.stringify(named.length === 0 ? [session()] : named),
    isParallel: count === undefined ? variables["PMIX_RANK"] !== undefined : Number(count) > 1,
  }
}
