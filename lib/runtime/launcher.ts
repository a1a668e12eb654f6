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

/** What the kernel says of a process, from field 3 of proc(5) on; undefined: there is none, or it is not seen. */
function statOf(process: string): string[] | undefined {
  if (!/^(?:self|[1-9]\d*)$/.test(process)) return undefined
  try {
    const stat = readFileSync(`/proc/${process}/stat`, "latin1")
    // The name before it may hold anything; its end is the last parenthesis.
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  } catch {
    return undefined
  }
}

/** Sessions as the kernel has them. */
export interface KernelSessions {
  /** This process's: a login, a terminal, a job of cron's. */
  own: () => string
  /** Who has started that: MPICH's mpirun gives each process one. */
  above: () => string
}

const kernelSessions: KernelSessions = {
  own: () => statOf("self")?.[3] ?? "",
  above: () => {
    const own = kernelSessions.own()
    // A session's first process may have ended, or be outside this process namespace, as may be who has started it.
    const starter = statOf(own)?.[1]
    const started = starter === undefined ? undefined : statOf(starter)?.[19]
    return starter === undefined || started === undefined ? own : `${starter}.${started}`
  },
}

export function launchSession(
  variables: Variables,
  sessions: KernelSessions = kernelSessions,
): LaunchSession {
  const found = runs.filter((names) => names.every((name) => (variables[name] ?? "") !== ""))
  const named = found.map((names) =>
    names.filter((name) => !ofOne.has(name)).map((name) => `${name}=${variables[name] ?? ""}`),
  )
  const count = counts.map((name) => variables[name]).find((text) => text !== undefined)
  if (named.length === 0) named.push([count === undefined ? sessions.own() : `by ${sessions.above()}`])
  return {
    name: JSON.stringify(named),
    isParallel: count === undefined ? variables["PMIX_RANK"] !== undefined : Number(count) > 1,
  }
}
