import assert from "node:assert/strict"
import { writeFileSync } from "node:fs"
import path from "node:path"
import { parseConfiguration } from "../../../lib/batch/configuration.ts"
import { batch } from "../../../lib/index.ts"
import { newFolder } from "../../support/scratch.ts"

async function imported(config: string, jobs: string): Promise<{ text: string; notes: readonly string[] }> {
  const folder = newFolder("shipyard")
  writeFileSync(path.join(folder, "config.yaml"), config)
  writeFileSync(path.join(folder, "jobs.yaml"), jobs)
  const { text, notes } = await batch.importConfiguration(folder)
  return { text, notes: notes.map((note) => note.replaceAll(`${folder}/`, "")) }
}

describe("a configuration of Batch Shipyard", () => {
  it("becomes one of ours, for run and exec, signed and encrypted images and task factories", async () => {
    const { text, notes } = await imported(
      `batch_shipyard: { storage_account_settings: mystorage }
global_resources:
  singularity_images:
    signed:
      - image: oras://registry.example/group/model:1
        signing_key: { fingerprint: ${"AB".repeat(20)}, file: vendor.asc }
        encryption: { certificate: { sha1_thumbprint: ${"cd".repeat(20)} } }
    unsigned:
      - image: oras://registry.example/group/tool:2
`,
      `job_specifications:
  - id: sweep
    auto_complete: true
    max_task_retries: 2
    environment_variables: { SCALE: 10 }
    tasks:
      - id: one
        singularity_image: oras://registry.example/group/model:1
        singularity_execution: { cmd: run, elevated: true }
        max_wall_time: 1.12:00:00
        command: --alpha {0}
        task_factory: { parametric_sweep: { product: [{ start: 0, stop: 3, step: 1 }] } }
      - singularity_image: oras://registry.example/group/tool:2
        depends_on: [one]
        gpus: all
        command: cat a | wc -l
    merge_task: { id: last, singularity_image: "oras://registry.example/group/tool:2", command: merge all }
`,
    )
    const { images, jobs } = parseConfiguration(text, "/x/sifcrypt.yaml")
    assert.deepEqual(images, [
      { name: "oras://registry.example/group/tool:2" },
      {
        name: "oras://registry.example/group/model:1",
        signingKey: { fingerprint: "ab".repeat(20), file: "/x/vendor.asc" },
        thumbprint: "cd".repeat(20),
      },
    ])
    const [{ groups, maxTaskRetries } = { groups: [], maxTaskRetries: 0 }] = jobs
    assert.equal(maxTaskRetries, 2)
    assert.deepEqual(
      groups.flatMap(({ tasks, resources }) =>
        tasks.map(({ id, action, argv }) => [id, action, argv, resources.time]),
      ),
      [
        ["one-00000", "run", ["--alpha", "0"], 129_600],
        ["one-00001", "run", ["--alpha", "1"], 129_600],
        ["one-00002", "run", ["--alpha", "2"], 129_600],
        ["task-00000", "exec", ["sh", "-c", "cat a | wc -l"], 3600],
        ["last", "exec", ["merge", "all"], 3600],
      ],
    )
    assert.deepEqual(notes, [
      "jobs.yaml:3: job_specifications[0].auto_complete: it has no meaning here: a job ends with its last task",
      "jobs.yaml:9: job_specifications[0].tasks[0].singularity_execution.elevated: it has no meaning here: nothing runs as root",
      "jobs.yaml:15: job_specifications[0].tasks[1].gpus: it has no meaning here: say `gres`",
    ])
  })

  it("has as many ranks as there were processes of an instance", async () => {
    const { text, notes } = await imported(
      "global_resources: { singularity_images: { unsigned: [{ image: 'oras://registry.example/solver:1' }] } }",
      `job_specifications:
  - id: mpi
    tasks:
      - singularity_image: oras://registry.example/solver:1
        command: solver
        multi_instance:
          num_instances: 3
          coordination_command: sshd
          mpi: { runtime: mpich, options: [-v], processes_per_node: 2 }
      - singularity_image: oras://registry.example/solver:1
        command: solver
        multi_instance:
          num_instances: pool_current_dedicated
          mpi: { runtime: openmpi, processes_per_node: nproc }
`,
    )
    const [job] = parseConfiguration(text, "/x/sifcrypt.yaml").jobs
    assert.deepEqual(
      job?.groups.map(({ resources: { ranks } }) => ranks),
      [{ nodes: 3, perNode: 2 }, undefined],
    )
    const at = "job_specifications[0].tasks"
    assert.deepEqual(notes, [
      `jobs.yaml:8: ${at}[0].multi_instance.coordination_command: it has no meaning here: srun starts the ranks, and nothing has to be there before them`,
      `jobs.yaml:9: ${at}[0].multi_instance.mpi.runtime: it has no meaning here: srun starts the ranks; say \`mpi\`, as its --mpi has it`,
      `jobs.yaml:9: ${at}[0].multi_instance.mpi.options: it has no meaning here: srun starts the ranks, as \`nodes\` and \`ranks_per_node\` say`,
      `jobs.yaml:13: ${at}[1].multi_instance.num_instances: it depends on a pool, of which there is none: say a number`,
      `jobs.yaml:14: ${at}[1].multi_instance.mpi.runtime: it has no meaning here: srun starts the ranks; say \`mpi\`, as its --mpi has it`,
      `jobs.yaml:14: ${at}[1].multi_instance.mpi.processes_per_node: it depends on a pool, of which there is none: say a number`,
    ])
  })

  it("says what cannot be run as it is", async () => {
    const { notes } = await imported(
      "global_resources: { singularity_images: { unsigned: [{ image: 'docker://alpine' }] }, docker_images: [a] }",
      "job_specifications: [{ id: a, tasks: [{ docker_image: a, command: b }] }]",
    )
    assert.match(notes[0] ?? "", /config\.yaml:1: .*image: docker:\/\/alpine is no SIF at a registry/)
    assert.match(notes[1] ?? "", /docker_images: it has no meaning here: there is nothing like it/)
    assert.match(notes.at(-2) ?? "", /tasks\[0\]: it runs in no singularity_image/)
    assert.match(notes.at(-1) ?? "", /what was made of it is not complete/)
    await assert.rejects(batch.importConfiguration(newFolder("empty")), { code: "ERR_BATCH_CONFIG" })
  })
})
