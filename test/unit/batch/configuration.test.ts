import assert from "node:assert/strict"
import { mkdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { parseConfiguration, type BatchConfiguration } from "../../../lib/batch/configuration.ts"
import { newFolder } from "../../support/scratch.ts"

const image = "oras://registry.example/group/model:1.0"

function parse(text: string, file = "/set/sifcrypt.yaml"): BatchConfiguration {
  return parseConfiguration(text, file)
}

/** A configuration with one job, whose lines are given. */
function job(lines: string, file?: string): BatchConfiguration {
  const indented = lines
    .split("\n")
    .map((line) => `    ${line}`)
    .join("\n")
  return parse(`images:\n  - image: ${image}\njobs:\n  - id: one\n${indented}\n`, file)
}

function refuses(text: string, message: RegExp): void {
  assert.throws(() => parse(text), { code: "ERR_BATCH_CONFIG", message })
}

/** The command lines of a job with one task. */
function commands(factory: string, command = '["run", "{0}"]', file?: string): string[] {
  const { jobs } = job(
    `tasks:\n  - image: ${image}\n    command: ${command}\n    task_factory: ${factory}`,
    file,
  )
  return jobs[0]!.groups.flatMap(({ tasks }) => tasks.map(({ argv }) => argv.join(" ")))
}

describe("sifcrypt.yaml", () => {
  it("says what a cluster is told, which images there are and what runs in them", () => {
    const { cluster, images, jobs } = parse(`
cluster: { partition: batch, time: "01:30:00", constraint: null, job_sets: sets, key_wait: 90 }
images:
  - image: ${image}
    signing_key: { fingerprint: ${"ab".repeat(20)}, file: keys/vendor.asc }
    encryption: { certificate: { sha256_thumbprint: ${"cd".repeat(32)} } }
  - image: plain.sif
jobs:
  - id: sweep
    max_task_retries: 2
    environment_variables: { SCALE: 10, NAME: "n" }
    tasks:
      - image: ${image}
        command: [exec, echo, 1.50, "{x}"]
      - image: plain.sif
        max_wall_time: 2-00:00:10
    merge_task: { image: plain.sif, command: [merge] }
`)
    assert.equal(cluster.time, 5400)
    assert.equal(cluster.jobSets, "/set/sets")
    assert.equal(cluster.keyWait, 90)
    assert.equal(cluster.constraint, undefined)
    assert.deepEqual(images, [
      {
        name: image,
        signingKey: { fingerprint: "ab".repeat(20), file: "/set/keys/vendor.asc" },
        thumbprint: "cd".repeat(32),
      },
      { name: "/set/plain.sif" },
    ])
    const [{ groups, maxTaskRetries } = { groups: [], maxTaskRetries: 0 }] = jobs
    assert.equal(maxTaskRetries, 2)
    assert.deepEqual(
      groups.map(({ tasks, resources, dependsOn }) => ({
        ids: tasks.map(({ id }) => id),
        resources,
        dependsOn,
      })),
      [
        { ids: ["task-00000"], resources: { time: 5400 }, dependsOn: [] },
        { ids: ["task-00001"], resources: { time: 172_810 }, dependsOn: [] },
        {
          ids: ["merge"],
          resources: { time: 5400 },
          dependsOn: [
            { group: 0, elements: undefined },
            { group: 1, elements: undefined },
          ],
        },
      ],
    )
    const [first] = groups[0]!.tasks
    assert.deepEqual(first?.argv, ["echo", "1.50", "{x}"])
    assert.deepEqual(first.environment, { SCALE: "10", NAME: "n" })
    assert.deepEqual([groups[2]?.tasks[0]?.action, groups[2]?.tasks[0]?.argv], ["exec", ["merge"]])
  })

  it("names file, line and key of what is wrong", () => {
    refuses(
      "cluster:\n  partitoin: x",
      /^\/set\/sifcrypt\.yaml:2: cluster\.partitoin: there is no such key here/,
    )
    refuses("cluster: {}\ncluster: {}", /yaml:2: cluster: it is there twice/)
    refuses("images:\n  - {}", /yaml:2: images\[0\]: image is missing/)
    refuses(
      "images:\n  - image: a.sif\n  - image: ./a.sif",
      /yaml:3: images\[1\]: \/set\/a\.sif is there twice/,
    )
    refuses("images:\n  - image: docker://a", /yaml:2: images\[0\]\.image: it is oras:/)
    refuses("cluster: { time: soon }", /yaml:1: cluster\.time: it is a time/)
    refuses("cluster: { time: 0 }", /cluster\.time: it is a second to a year/)
    refuses("cluster: [1]", /cluster: it is a mapping, not a list/)
    refuses("cluster: { broker_port: 65536 }", /cluster\.broker_port: it is 0 to 65535, not 65536/)
    refuses("cluster: { partition: 'a b' }", /cluster\.partition: it is no name that Slurm knows/)
    refuses("cluster: { broker_host: -Fx }", /cluster\.broker_host: /)
    refuses("a: [", /yaml:1: /)
    refuses("cluster: !!js/function x", /yaml:1: /)
    refuses("? [a]\n: 1", /yaml:1: /)
    refuses(
      `jobs: [{ id: a, tasks: [{ image: b.sif }] }]`,
      /jobs\[0\]\.tasks\[0\]\.image: there is no such image/,
    )
  })

  it("is not nested without end, which would end the process", () => {
    for (const deep of ["[", "{a: ", "- ", "? ", "- - [- "])
      refuses(deep.repeat(5000), /it is nested too deeply/)
    const steps = Array.from({ length: 500 }, (_, i) => `${" ".repeat(i)}a:`)
    refuses(steps.join("\n"), /it is nested too deeply/)
  })

  it("bounds what aliases stand for", () => {
    const levels = Array.from({ length: 12 }, (_, i) =>
      i === 0
        ? "  - &a0 [x, x]"
        : `  - &a${i} [${Array(10)
            .fill(`*a${i - 1}`)
            .join(", ")}]`,
    )
    const tasks = `tasks:\n  - image: ${image}\n    task_factory:\n      product:\n`
    const laughs = levels.map((line) => `        ${line.trimStart()}`).join("\n")
    assert.throws(() => job(tasks + laughs), { code: "ERR_BATCH_CONFIG" })
    // One alias does no harm.
    const [one] = parse(`images:\n  - &i { image: a.sif }\njobs:\n  - { id: x, tasks: [*i] }`).jobs
    assert.equal(one?.groups[0]?.tasks[0]?.image, "/set/a.sif")
  })

  it("expands task factories", () => {
    assert.deepEqual(commands("{ sweep: { start: 0, stop: 0.3, step: 0.1 } }"), ["0", "0.1", "0.2"])
    assert.deepEqual(
      commands("{ product: [{ start: 1, stop: 3 }, [a, b]] }", '["run", "{0}-{1}", "{{0}}"]'),
      ["1-a {0}", "1-b {0}", "2-a {0}", "2-b {0}"],
    )
    assert.deepEqual(commands("{ zip: [[a, b], { start: 4, stop: 6 }] }", '[run, "{1}{0}"]'), ["4a", "5b"])
    assert.deepEqual(commands("{ repeat: 2 }"), ["0", "1"])
    const drawn = commands("{ random: { generate: 3, seed: 7, integer: { start: 10, stop: 20 } } }")
    assert.deepEqual(
      drawn,
      commands("{ random: { generate: 3, seed: 7, integer: { start: 10, stop: 20 } } }"),
    )
    assert.deepEqual(drawn, ["19", "18", "15"])
    const folder = newFolder("factory")
    for (const name of ["b.txt", "a.txt", "c.dat", ".d.txt"]) writeFileSync(path.join(folder, name), "")
    mkdirSync(path.join(folder, "e.txt"))
    assert.deepEqual(
      commands(
        '{ files: { folder: ., include: "*.txt" } }',
        '[run, "{file_name_no_extension}", "{file_path}"]',
        path.join(folder, "sifcrypt.yaml"),
      ),
      [`a ${folder}/a.txt`, `b ${folder}/b.txt`],
    )
  })

  it("refuses factories that stand for nothing or too much, and places that nothing fills", () => {
    const bad = (factory: string, message: RegExp): void => {
      assert.throws(() => commands(factory), { code: "ERR_BATCH_CONFIG", message })
    }
    bad("{ sweep: { start: 0, stop: 0 } }", /it stands for no task at all/)
    bad("{ sweep: { start: 0, stop: 1, step: 0 } }", /step is 0/)
    bad("{ sweep: { start: 0, stop: 1e9 } }", /more than 100000 values/)
    bad("{ product: [{ start: 0, stop: 1000 }, { start: 0, stop: 1000 }] }", /1000000 tasks are more/)
    bad("{ zip: [[a], [b, c]] }", /different lengths: 1, 2/)
    bad("{ repeat: 1, zip: [[a]] }", /it has one of/)
    bad("{ random: { generate: 1, integer: { start: 0, stop: 2 } } }", /seed is missing/)
    assert.throws(
      () => commands("{ repeat: 1 }", '[run, "{5}"]'),
      /\{5\} is filled with nothing: there are 0/,
    )
  })

  it("has those come first on whom others wait", () => {
    const { jobs } = job(`tasks:
  - { id: late, image: "${image}", depends_on: ["1"] }
  - { id: "1", image: "${image}" }
  - { id: "2", image: "${image}" }
  - { id: all, image: "${image}", depends_on_range: [1, 2] }`)
    assert.deepEqual(
      jobs[0]?.groups.map(({ tasks, dependsOn }) => [tasks.map(({ id }) => id), dependsOn]),
      [
        [["1", "2"], []],
        [["late"], [{ group: 0, elements: [0] }]],
        [
          ["all"],
          [
            { group: 0, elements: [0] },
            { group: 0, elements: [1] },
          ],
        ],
      ],
    )
    const circle = `tasks:
  - { id: a, image: "${image}", depends_on: [b] }
  - { id: b, image: "${image}", depends_on: [a] }`
    assert.throws(() => job(circle), /a depends on itself/)
    assert.throws(
      () => job(`tasks: [{ image: "${image}", depends_on: [x] }]`),
      /there is no task x in this job/,
    )
    assert.throws(() => job(`depends_on: [x]\ntasks: [{ image: "${image}" }]`), /there is no job x before/)
  })

  it("takes no size without its unit: 4096 would be bytes here and mebibytes for Slurm", () => {
    const task = (memory: string): string =>
      `images:\n  - image: ${image}\njobs:\n  - id: one\n    tasks:\n      - image: ${image}\n        memory: ${memory}\n`
    refuses(
      task("4096"),
      /sifcrypt\.yaml:7: jobs\[0\]\.tasks\[0\]\.memory: .* its unit, K, M, G or T: 4096 could be/,
    )
    refuses(task("4g"), /memory: it is a size, as 512M or 4G/)
    assert.equal(parse(task("4G")).jobs[0]!.groups[0]!.resources.memory, 4096)
    refuses("cluster: { cache_limit: 64 }", /cluster\.cache_limit: it is a size with its unit/)
    assert.equal(parse("cluster: { cache_limit: 0 }").cluster.cacheLimit, 0)
  })

  it("has tasks of several ranks, of which Slurm is told the same only where they are as many", () => {
    const tasks = (...more: readonly string[]): string =>
      `images: [ { image: ${image} } ]\njobs: [ { id: one, tasks: [ ${more.map((keys) => `{ image: ${image}${keys} }`).join(", ")} ] } ]\n`
    const { groups } = parse(
      tasks(
        "",
        ", nodes: 2",
        ", ranks_per_node: 4, mpi: pmi2",
        ", nodes: 2, ranks_per_node: 1",
        ", mpi: none",
      ),
    ).jobs[0]!
    assert.deepEqual(
      groups.map(({ tasks: some, resources: { ranks } }) => [some.length, ranks]),
      [
        [1, undefined],
        [2, { nodes: 2, perNode: 1 }],
        [1, { nodes: 1, perNode: 4, mpi: "pmi2" }],
        [1, { nodes: 1, perNode: 1, mpi: "none" }],
      ],
    )
    refuses(tasks(", nodes: 0"), /sifcrypt\.yaml:2: jobs\[0\]\.tasks\[0\]\.nodes: .* 1 to 10000/)
    refuses(tasks(", nodes: 1-2"), /tasks\[0\]\.nodes: /)
    refuses(tasks(", ranks_per_node: 2000"), /tasks\[0\]\.ranks_per_node: .* 1 to 1024/)
    refuses(tasks(', mpi: "pmi2 --x"'), /tasks\[0\]\.mpi: .*what srun takes for --mpi/)
    refuses(tasks(", ranks: 4"), /tasks\[0\]\.ranks: /)
  })

  it("says where the certificates of nodes are, if nodes alone give keys", () => {
    refuses("cluster: { key_source: nodes }", /cluster: key_source: nodes needs node_certificates/)
    const { cluster } = parse("cluster: { node_certificates: nodes, key_lifetime: 1-00:00:00 }")
    assert.deepEqual(
      [cluster.keySource, cluster.nodeCertificates, cluster.nodeSocket, cluster.keyLifetime],
      ["auto", "/set/nodes", "/run/sifcrypt-node/socket", 86_400],
    )
  })
})
