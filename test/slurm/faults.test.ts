// What becomes of jobs when a system call of ours fails, where they are submitted or on their node (test/support/survival.ts).
import assert from "node:assert/strict"
import { chownSync, existsSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, certificate, push } from "../../lib/index.ts"
import { runProgram, sifcrypt, sifcryptOk, type Result } from "../support/cli.ts"
import { allProcesses } from "../support/processes.ts"
import { Registry } from "../support/registry.ts"
import { skip } from "../support/skip.ts"
import { SlurmCluster, user, type Shown } from "../support/slurm.ts"
import { isSoak } from "../support/soak.ts"
import { Survival, type Place, type Work } from "../support/survival.ts"
import { makeRootTree } from "../support/trees.ts"

/** Slurm starts what goes back into the queue after twice what its credentials are good for, and a second. */
const endMs = 60_000
/** Of a task whose payload has not run (docs/batch.md), of one that has, and of one that is lost. */
const ofTasks: ReadonlySet<number> = new Set([0, 1, 65, 69, 71, 75, 77, 78])

/** What the user runs, and what waits for calls of something that still runs. */
function ofUser(): readonly string[] {
  return allProcesses()
    .filter(({ pid, command }) => {
      if (command.includes(".report ")) return true
      try {
        return statSync(`/proc/${pid}`).uid === user.id && command !== ""
      } catch {
        return false // It has ended.
      }
    })
    .map(({ pid, command }) => `process ${pid} ${command}`)
}

describe("a system call that fails on Slurm", function () {
  this.timeout(isSoak ? 36_000_000 : 180_000)
  const survival = new Survival("nobody", 86_000, ofUser)
  const file = (name: string): string => survival.original(name)
  const password = file("password")
  let cluster: SlurmCluster
  let registry: Registry
  let reference = ""

  before(async function () {
    if (process.arch !== "x64") skip(this, "knows the system calls of x86-64 only")
    ;[cluster, registry] = await Promise.all([
      SlurmCluster.start(
        2,
        "PartitionName=one Nodes=n1 MaxTime=60 State=UP\nPartitionName=two Nodes=n2 MaxTime=60 State=UP",
      ),
      Registry.start(),
    ])
    writeFileSync(password, "pässword\n", { mode: 0o600 })
    await certificate.create({ filePrefix: file("own"), password: { file: password }, bits: 2048 })
    for (const name of ["password", "own.pfx"]) chownSync(file(name), user.id, user.id)
    await build({
      output: file("image.sif"),
      source: makeRootTree(),
      recipients: [{ key: { file: file("own-public.pem") } }],
    })
    reference = `oras://${registry.host}/group/image:1`
    await push({ image: file("image.sif"), reference, unsigned: "allow" })
    Object.assign(survival.env, cluster.environment, { SIFCRYPT_CERTSDIR: file("certificates") })
    await survival.compile(["batch submit"])
    chownSync(survival.folder, user.id, user.id)
    await cluster.ok(["cert", "add", "--password-file", password, file("own.pfx")], { env: survival.env })
  })
  after(async () => {
    survival.end()
    await Promise.all([cluster, registry].map((one) => one[Symbol.asyncDispose]()))
  })

  /** One task, in a partition of one node. */
  const configured =
    (partition: string) =>
    (place: Place): void => {
      writeFileSync(
        place.in("work", "jobs.yaml"),
        `cluster: { partition: ${partition}, time: 600, broker_host: 127.0.0.1, key_wait: 5, cache: ${place.in("cache")}/%N, job_sets: ${place.in("work")}/sets }
images: [ { image: "${reference}" } ]
jobs: [ { id: one, tasks: [ { image: "${reference}", command: [exec, cat, /data/hello] } ] } ]
`,
      )
    }

  const submit = ["batch", "submit", "--password-file", password]
  const setOf = (place: Place): string | undefined => {
    const sets = place.in("work", "sets")
    const [name] = existsSync(sets) ? readdirSync(sets) : []
    return name === undefined ? undefined : path.join(sets, name)
  }

  async function shown(place: Place, set: string): Promise<Shown> {
    const { text } = await sifcryptOk(["batch", "status", "--json", set], place.options)
    const [task] = JSON.parse(text) as Shown[]
    return task ?? assert.fail(text)
  }

  /** Jobs of the user's that have this set's folder as theirs. */
  async function jobsIn(place: Place): Promise<string> {
    const { text } = await runProgram(
      ["squeue", "--noheader", "--all", "--Format=JobID:|,WorkDir:|,State:|"],
      {
        env: survival.env,
      },
    )
    return text
      .split("\n")
      .filter((line) => line.includes(`|${place.folder}/`) && /PENDING|RUNNING|COMPLETING/.test(line))
      .join("\n")
  }

  const output = (set: string): string =>
    readFileSync(path.join(set, "out", "one", "task-00000", "stdout.txt"), "utf8")

  async function removed(place: Place): Promise<void> {
    const set = setOf(place)
    if (set !== undefined) await sifcrypt(["batch", "delete", "--force", set], place.options)
  }

  const works: Readonly<Record<string, Work>> = {
    "batch submit": {
      prepare: configured("two"),
      args: () => [...submit, "jobs.yaml"],
      state: async (place, { status, stderr }) => {
        const set = setOf(place)
        if (status !== 0) {
          assert.equal(set, undefined, stderr)
          assert.equal(await jobsIn(place), "")
          return "old"
        }
        assert.ok(set !== undefined)
        // A broker that has ended is replaced by its user, and nothing is lost.
        const ends = performance.now() + endMs
        for (let unlocked = false; ;) {
          const task = await shown(place, set)
          if (task.state === "done") break
          assert.doesNotMatch(task.state, /failed|cancelled|timeout/, task.reason)
          assert.ok(performance.now() < ends, JSON.stringify(task))
          if (!unlocked && task.state === "waiting") {
            unlocked = true
            await sifcrypt(["batch", "unlock", "--password-file", password, set], place.options)
          }
        }
        assert.equal(output(set), "hello\n")
        return "new"
      },
      after: removed,
      known: [/^node read socket/, /^node write .*\/broker\.log$/],
      outputs: /^(?:home|run|cache|work\/sets)(?:\/|$)/,
    },
    "batch task": {
      prepare: configured("one"),
      args: () => [],
      start: async (place, wrapper): Promise<Result> => {
        await cluster.control("kill-node", ["n1"])
        await cluster.control("start-node", ["n1"], {}, wrapper)
        return await sifcrypt([...submit, "--tail", "stdout.txt", "jobs.yaml"], {
          ...place.options,
          timeoutMs: endMs,
        })
      },
      statuses: ofTasks,
      known: [/^node openat .*\/manifest\.json$/, /^node read socket/],
      state: async (place, { status, text }) => {
        const set = setOf(place) ?? assert.fail()
        const task = await shown(place, set)
        // Who cannot read what to do cannot write down either what became of it.
        // What an exception that nobody has caught says last is Node's version.
        if (task.state === "lost") assert.match(String(task.reason), /^(?!Node\.js v)./)
        else assert.equal(task.state, status === 0 ? "done" : "failed")
        if (status === 0) assert.equal(text, "hello\n")
        return status === 0 ? "new" : "old"
      },
      after: async (place) => {
        await removed(place)
        await cluster.control("kill-node", ["n1"])
      },
      outputs: /^(?:home|run|cache|work\/sets)(?:\/|$)/,
    },
  }
  survival.tests(works, 1)
})
