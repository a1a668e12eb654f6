// Jobs on a Slurm cluster of this machine's own: how long submitting takes, an array of one image, and a task until its payload begins.
import { chownSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { build, certificate } from "../lib/index.ts"
import { cli } from "../test/support/cli.ts"
import { newFolder } from "../test/support/scratch.ts"
import { SlurmCluster, user } from "../test/support/slurm.ts"
import { makeRootTree } from "../test/support/trees.ts"
import { median } from "./measure.ts"
import { goal, note, seconds } from "./report.ts"

const STARTS = 15
const NODES = 3

/** Seconds since the boot, as /proc/uptime has them, one a line. */
const uptimes = (text: string): number[] =>
  text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => Number(line.split(" ")[0]) * 1000)

export async function jobsOnSlurm(): Promise<void> {
  console.log("\nJobs on a Slurm cluster of this machine's own, as an ordinary user, one encrypted image")
  const folder = newFolder("bench-batch", user.id)
  const file = (name: string): string => path.join(folder, name)
  await using cluster = await SlurmCluster.start(NODES)
  writeFileSync(file("password"), "password\n", { mode: 0o600 })
  await certificate.create({ filePrefix: file("own"), password: { file: file("password") } })
  for (const name of ["password", "own.pfx"]) chownSync(file(name), user.id, user.id)
  await build({
    output: file("image.sif"),
    source: makeRootTree(),
    recipients: [{ key: { file: file("own-public.pem") } }],
  })
  await cluster.ok(["cert", "add", "--password-file", file("password"), file("own.pfx")])
  // Whoever is started first says when.
  const stamps = file("stamps")
  writeFileSync(stamps, "")
  chownSync(stamps, user.id, user.id)
  writeFileSync(
    file("command"),
    `#!/bin/sh\n[ "$2" = task ] && cat /proc/uptime >>${stamps}\nexec ${cli} "$@"\n`,
    {
      mode: 0o755,
    },
  )
  const submit = async (tasks: number, command: string, more = ""): Promise<string> => {
    writeFileSync(
      file("sifcrypt.yaml"),
      `cluster: { partition: batch, broker_host: 127.0.0.1, cache: ${file("cache")}/%N, job_sets: ${file("sets")} }
images: [ { image: image.sif } ]
jobs: [ { id: one${more}, tasks: [ { image: image.sif, command: ${command}, task_factory: { repeat: ${tasks} } } ] } ]
`,
    )
    const words = ["--command", file("command"), "--password-file", file("password"), file("sifcrypt.yaml")]
    const answer = await cluster.ok(["batch", "submit", "--json", ...words], { timeoutMs: 300_000 })
    return (JSON.parse(answer) as { folder: string }).folder
  }
  const outputs = (set: string, tasks: number): string[] =>
    Array.from({ length: tasks }, (_, i) => {
      const name = `task-00000-${String(i).padStart(5, "0")}`
      return readFileSync(path.join(set, "out", "one", name, "stdout.txt"), "utf8")
    })

  // The first ones bring the image's check into the cache.
  await cluster.status(await submit(NODES, "[exec, cat, /data/hello]"))
  writeFileSync(stamps, "")
  const one = await submit(STARTS, "[exec, cat, /proc/uptime]", ", max_concurrent: 1")
  await cluster.status(one)
  const begun = uptimes(readFileSync(stamps, "utf8"))
  const starts = outputs(one, STARTS).map((text, i) => (uptimes(text)[0] ?? NaN) - (begun[i] ?? NaN))
  const script = `for i in $(seq ${STARTS}); do cat /proc/uptime; srun --quiet cat /proc/uptime; done\n`
  const plain = await cluster.slurm(
    ["sbatch", "--wait", "--quiet", "--output", file("plain"), "--chdir", folder],
    {
      as: "nobody",
      input: `#!/bin/sh\n${script}`,
    },
  )
  if (plain !== "") throw new Error(plain)
  const pairs = uptimes(readFileSync(file("plain"), "utf8"))
  const sruns = pairs.flatMap((at, i) => (i % 2 === 1 ? [at - (pairs[i - 1] ?? NaN)] : []))
  note("srun, from its start to the payload's first instruction", seconds(median(sruns)))
  const overhead = median(starts)
  note("a task of ours, from its job's first instruction to its payload's", seconds(overhead))
  const above = overhead - median(sruns)
  goal("B34: a task's start above srun's", seconds(above), "at most 300 ms", above <= 300)

  const begin = performance.now()
  const array = await submit(100, "[exec, cat, /data/hello]")
  const all = [...(await cluster.status(array)).values()]
  const took = performance.now() - begin
  if (all.some(({ state }) => state !== "done")) throw new Error("a task of the array has failed")
  note("an array of 100 tasks on 12 processors of three nodes, submitted to ended", seconds(took))

  await cluster.slurm(["scontrol", "update", "partitionname=batch", "state=down"])
  const submitted = performance.now()
  const many = await submit(10_000, "[exec, cat, /data/hello]")
  const submitting = performance.now() - submitted
  goal("10,000 tasks submitted", seconds(submitting), "below 10 s", submitting < 10_000)
  const asked = performance.now()
  await cluster.status(many, false)
  note("their status", seconds(performance.now() - asked))
  await cluster.ok(["batch", "delete", "--force", many])
}
