// What becomes of jobs when a system call of ours fails, where they are submitted or on their node (test/support/survival.ts).
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  statSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { build, certificate, push } from "../../lib/index.ts"
import { finish, runProgram, sifcrypt, sifcryptOk, startSifcrypt, type Result } from "../support/cli.ts"
import { allProcesses, signalGroup, waitFor } from "../support/processes.ts"
import { Registry } from "../support/registry.ts"
import { skip } from "../support/skip.ts"
import { SlurmCluster, user, type Shown } from "../support/slurm.ts"
import { isSoak } from "../support/soak.ts"
import { digestOf, Survival, type Place, type Work } from "../support/survival.ts"
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
    const request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=n2"]
    mkdirSync(file("nodes"))
    execFileSync("openssl", [...request, "-keyout", file("n2.key"), "-out", file("nodes/n2.pem")], {
      stdio: "ignore",
    })
    chmodSync(file("nodes/n2.pem"), 0o644)
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
    (partition: string, ranks = "", settings: (place: Place) => string = () => "") =>
    (place: Place): void => {
      writeFileSync(
        place.in("work", "jobs.yaml"),
        `cluster: { partition: ${partition}, time: 600, broker_host: 127.0.0.1, key_wait: 5, cache: ${place.in("cache")}/%N, job_sets: ${place.in("work")}/sets${settings(place)} }
images: [ { image: "${reference}" } ]
jobs: [ { id: one, tasks: [ { image: "${reference}"${ranks}, command: [exec, cat, /data/hello] } ] } ]
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

  /** A set whose images a node is to fetch, and what it is told. */
  function fetching(place: Place): void {
    const image = { name: reference, source: reference, digest: digestOf(file("image.sif")) }
    const { size } = statSync(file("image.sif"))
    const manifest = {
      ...{ version: 1, id: "set", uid: user.id, created: 0, cwd: "/", jobs: [] },
      images: [{ ...image, size, encrypted: true }],
      cluster: {
        ...{ cache: place.in("cache"), cacheLimit: 1 << 30, keyWait: 5, concurrentSourceDownloads: 1 },
        ...{ authenticator: "munge", hasBroker: true, registry: {} },
      },
    }
    mkdirSync(place.in("work", "set"), { mode: 0o700 })
    writeFileSync(place.in("work", "set", "manifest.json"), JSON.stringify(manifest))
  }
  const fetchWords = (place: Place): string[] => {
    const manifest = place.in("work", "set", "manifest.json")
    return ["batch", "fetch", manifest, digestOf(manifest)]
  }

  const servingWords = (place: Place): string[] => [
    ...["batch", "serve-node", "--node", "n2", "--key", place.in("work", "node.key")],
    ...["--socket", place.in("run", "socket")],
  ]

  /** A broker or a node's service that has ended is replaced by who runs it, and nothing is lost. */
  async function comesToItsEnd(place: Place, set: string, replace: () => Promise<unknown>): Promise<void> {
    const ends = performance.now() + endMs
    for (let replaced = false; ;) {
      const task = await shown(place, set)
      if (task.state === "done") break
      assert.doesNotMatch(task.state, /failed|cancelled|timeout/, task.reason)
      assert.ok(performance.now() < ends, JSON.stringify(task))
      if (!replaced && task.state === "waiting") {
        replaced = true
        await replace()
      }
    }
    assert.equal(output(set), "hello\n")
  }

  async function removed(place: Place): Promise<void> {
    const set = setOf(place)
    if (set !== undefined) await sifcrypt(["batch", "delete", "--force", set], place.options)
  }

  /** A task whose node has calls of ours fail. */
  const ofTask = (ranks: string, written: string): Work => ({
    prepare: configured("one", ranks),
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
      if (status === 0) assert.equal(text, written)
      return status === 0 ? "new" : "old"
    },
    after: async (place) => {
      await removed(place)
      await cluster.control("kill-node", ["n1"])
    },
    outputs: /^(?:home|run|cache|work\/sets)(?:\/|$)/,
  })

  const works: Readonly<Record<string, Work>> = {
    "batch submit": {
      prepare: configured("two"),
      args: () => [...submit, "jobs.yaml"],
      state: async (place, { status, stderr }) => {
        const set = setOf(place)
        if (set === undefined) {
          assert.notEqual(status, 0)
          assert.equal(await jobsIn(place), "")
          return "old"
        }
        // All went well but that the user could not be told.
        if (status !== 0) assert.ok(stderr.includes(`${set} is submitted: `), stderr)
        await comesToItsEnd(place, set, () =>
          sifcrypt(["batch", "unlock", "--password-file", password, set], place.options),
        )
        return "new"
      },
      after: removed,
      known: [/^node read socket/, /^node write .*\/broker\.log$/],
      outputs: /^(?:home|run|cache|work\/sets)(?:\/|$)/,
    },
    "batch fetch": {
      prepare: fetching,
      args: fetchWords,
      state: async (place, { status }) => {
        const made = place.in("cache", "batch-1", digestOf(file("image.sif")))
        const state = existsSync(made) ? "new" : "old"
        // Another finds it, or what is left of it in its way.
        if (status !== 0) await sifcryptOk(fetchWords(place), place.options)
        assert.equal(digestOf(made), digestOf(file("image.sif")))
        return state
      },
      outputs: /^cache\/batch-1(?:\/[0-9a-f]{64}(?:\.(?:lock|used))?)?$/,
    },
    "batch serve-node": {
      prepare: (place) => {
        writeFileSync(place.in("work", "node.key"), readFileSync(file("n2.key")), { mode: 0o600 })
        const own = `node_certificates: ${file("nodes")}, node_socket: ${place.in("run")}/socket`
        configured("two", "", () => `, key_source: nodes, ${own}`)(place)
      },
      args: servingWords,
      start: async (place, wrapper) => {
        const serve = (words: readonly string[]): Promise<Result> =>
          finish(startSifcrypt(servingWords(place), { ...place.options, wrapper: words }), {
            timeoutMs: 2 * endMs,
          })
        const isThere = (): boolean => existsSync(place.in("run", "socket"))
        let ended = false
        const first = serve(wrapper).finally(() => {
          ended = true
        })
        await waitFor("the service is there, or has ended", () => ended || isThere(), endMs)
        await sifcryptOk([...submit, "jobs.yaml"], place.options)
        let second: Promise<Result> | undefined
        await comesToItsEnd(place, setOf(place) ?? assert.fail(), async () => {
          if (ended) second = serve([])
          await Promise.resolve()
        })
        signalGroup(place.group, "SIGTERM")
        await second
        return await first
      },
      state: () => "new",
      after: removed,
      outputs: /^(?:home|run|cache|work\/sets)(?:\/|$)/,
    },
    "batch task": ofTask("", "hello\n"),
    ...(isSoak ? { "batch ranks": ofTask(", ranks_per_node: 2", "hello\nhello\n") } : {}),
  }
  survival.tests(works, 1)
})
