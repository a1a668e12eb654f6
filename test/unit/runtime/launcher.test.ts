import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { promisify } from "node:util"
import { launchSession, type LaunchSession } from "../../../lib/runtime/launcher.ts"

const launcher = new URL("../../../lib/runtime/launcher.ts", import.meta.url).href

describe("what has started a process", () => {
  const sessionOf = (variables: Readonly<Record<string, string | undefined>>): LaunchSession =>
    launchSession(variables, { own: () => "4711", above: () => "12.345" })
  const step = { SLURM_JOB_ID: "12", SLURM_STEP_ID: "0", SLURM_PROCID: "3", SLURM_STEP_NUM_TASKS: "4" }
  const openMpi = { PMIX_NAMESPACE: "1861156865", PMIX_RANK: "1", OMPI_COMM_WORLD_LOCAL_SIZE: "2" }

  it("is a session of the kernel's where nothing else says so", () => {
    assert.deepEqual(sessionOf({}), { name: '[["4711"]]', isParallel: false })
    // A batch script, and what it starts by itself, is no step.
    assert.deepEqual(sessionOf({ SLURM_JOB_ID: "12", SLURM_PROCID: "0" }), sessionOf({}))
    // Of MPICH's each process has a session of its own, which one process has started for all.
    assert.deepEqual(sessionOf({ PMI_SIZE: "2" }), { name: '[["by 12.345"]]', isParallel: true })
  })

  it("is read of the kernel, also where the session's first process is gone or not to be seen", async () => {
    const code = `
      const { launchSession } = await import(${JSON.stringify(launcher)})
      console.log(launchSession({}).name, launchSession({ PMI_SIZE: "2" }).name)`
    const names = async (...words: readonly string[]): Promise<string[]> => {
      const [program, ...args] = [
        ...words,
        process.execPath,
        "--import",
        "tsx",
        "--input-type=module",
        "-e",
        code,
      ]
      const { stdout } = await promisify(execFile)(program, args)
      return stdout
        .trim()
        .split(" ")
        .map((name) => name.replace(/\d+/g, "N"))
    }
    // Of a session of its own, whose starter is this process; then of one whose first process has ended, and of one outside.
    assert.deepEqual(await names("setsid", "--wait"), ['[["N"]]', '[["by', 'N.N"]]'])
    const unseen = ['[["N"]]', '[["by', 'N"]]']
    assert.deepEqual(await names("setsid", "sh", "-c", '"$@" & :', "sh"), unseen)
    assert.deepEqual(await names("unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"), unseen)
  })

  it("is the same for all processes of a run, and another for others", () => {
    const { name, isParallel } = sessionOf(step)
    assert.equal(isParallel, true)
    assert.equal(sessionOf({ ...step, SLURM_PROCID: "0" }).name, name)
    const others = [
      {},
      { ...step, SLURM_STEP_ID: "1" },
      { ...step, SLURM_JOB_ID: "120" },
      { ...step, ...openMpi },
      openMpi,
      { ...openMpi, PMIX_NAMESPACE: "2" },
      { PMI_JOBID: "12" },
      { PMI_JOBID: "12.0" },
    ]
    const names = [name, ...others.map((variables) => sessionOf(variables).name)]
    assert.equal(new Set(names).size, names.length)
  })

  it("starts several, by what is said next to the process", () => {
    const parallel = [
      step,
      openMpi,
      { PMI_RANK: "0", PMI_SIZE: "2" },
      { PMI_SIZE: "8", MPI_LOCALNRANKS: "2" },
      { PMIX_RANK: "0", PMIX_NAMESPACE: "x" },
      // mpirun within a step of one process a node
      { ...step, SLURM_STEP_NUM_TASKS: "1", ...openMpi },
    ]
    for (const variables of parallel)
      assert.equal(sessionOf(variables).isParallel, true, JSON.stringify(variables))
    const single = [
      { ...step, SLURM_STEP_NUM_TASKS: "1" },
      { ...openMpi, OMPI_COMM_WORLD_LOCAL_SIZE: "1" },
      { PMI_SIZE: "8", MPI_LOCALNRANKS: "1" },
      { PMI_SIZE: "no number" },
    ]
    for (const variables of single)
      assert.equal(sessionOf(variables).isParallel, false, JSON.stringify(variables))
  })
})
