// What Batch Shipyard was told in config.yaml and jobs.yaml, as sifcrypt.yaml says it; and what of it has no meaning here.
import { existsSync } from "node:fs"
import path from "node:path"
import { stringify } from "yaml"
import { readBounded } from "../bounded-file.ts"
import { BatchError } from "../errors.ts"
import { isOrasName } from "../oci/reference.ts"
import { configurationKind, parseConfiguration } from "./configuration.ts"
import { MAX_YAML_SIZE, Value } from "../yaml-reader.ts"

/** A configuration as it would be written here. */
export interface Imported {
  /** YAML. */
  readonly text: string
  /** What was left out, and why, each with the file, line and key it is about. */
  readonly notes: readonly string[]
}

type Plain = Record<string, unknown>

/** Keys that say what another cloud is to do, or that are answered here in another way. */
const meaningless: Readonly<Record<string, string>> = {
  auto_complete: "a job ends with its last task",
  retention_time: "output stays until `batch delete`",
  allow_run_on_missing_image: "a node fetches an image when a task needs it",
  force_enable_task_dependencies: "dependencies always hold",
  elevated: "nothing runs as root",
  remove_container_after_exit: "nothing of a container is left",
  user_identity: "tasks run as whoever submits them",
  default_working_dir: "tasks start where they were submitted",
  gpus: "say `gres`",
  gpu: "say `gres`",
  infiniband: "the machine's devices are there",
  shm_size: "the machine's is there",
  coordination_command: "srun starts the ranks, and nothing has to be there before them",
  pre_execution_command: "the command is what each rank runs",
  runtime: "srun starts the ranks; say `mpi`, as its --mpi has it",
  executable_path: "srun starts the ranks",
  options: "srun starts the ranks, as `nodes` and `ranks_per_node` say",
  exit_conditions: "`no_retry_on` names statuses that are not tried again",
  input_data: "files are where every node sees them",
  output_data: "files are where every node sees them",
  resource_files: "files are where every node sees them",
  data_volumes: "say `binds`",
  shared_data_volumes: "say `binds`",
  additional_singularity_options: "say `binds`; other options there are none",
  job_preparation: "a task of its own that others depend on does it",
  job_release: "`merge_task` comes last",
  recurrence: "cron calls `batch submit`",
  auto_pool: "a partition of Slurm's is there",
}

/** Words of a command line that no shell has to read; undefined: it has to. */
function plainWords(command: string): string[] | undefined {
  return /^[\w\s./:=,@%+-]*$/.test(command) ? command.split(/\s+/).filter((word) => word !== "") : undefined
}

class Importer {
  readonly notes: string[] = []

  note(at: Value, why: string): void {
    // As errors name it, without being one.
    this.notes.push(at.error(why).message)
  }

  /** Those of the keys that there are, read; of others it is said that they mean nothing. */
  pick(value: Value, readers: Readonly<Record<string, (at: Value) => unknown>>): Plain {
    const found: Plain = {}
    for (const [name, at] of value.entries()) {
      const read = readers[name]
      if (read === undefined)
        this.note(at, `it has no meaning here: ${meaningless[name] ?? "there is nothing like it"}`)
      else if (!at.isNull) {
        const one = read(at)
        if (one !== undefined) found[name] = one
      }
    }
    return found
  }

  #image(at: Value): string {
    const name = at.text()
    if (!isOrasName(name) && /^[a-z]+:\/\//.test(name))
      this.note(
        at,
        `${name} is no SIF at a registry: \`sifcrypt build\` makes one of it, \`sifcrypt push\` brings it to oras://`,
      )
    return name
  }

  #images(value: Value): Plain[] {
    const one = (at: Value): Plain =>
      this.pick(at, {
        image: (name) => this.#image(name),
        signing_key: (key) =>
          this.pick(key, {
            fingerprint: (hex) => hex.word().toLowerCase(),
            file: (name) => name.text(),
          }),
        encryption: (how) =>
          this.pick(how, {
            certificate: (which) => this.pick(which, { sha1_thumbprint: (hex) => hex.word().toLowerCase() }),
          }),
      })
    const { unsigned = [], signed = [] } = this.pick(value, {
      unsigned: (at) => at.list(one),
      signed: (at) => at.list(one),
    }) as { unsigned?: Plain[]; signed?: Plain[] }
    return [...unsigned, ...signed]
  }

  config(value: Value): Plain[] {
    const { global_resources: images = [] } = this.pick(value, {
      batch_shipyard: () => undefined,
      global_resources: (at) =>
        this.pick(at, { singularity_images: (some) => this.#images(some) })["singularity_images"],
    }) as { global_resources?: Plain[] }
    return images
  }

  /** `D.HH:MM:SS` becomes `D-HH:MM:SS`. */
  #time(at: Value): string {
    return at.word().replace(/^(\d+)\./, "$1-")
  }

  #variables(at: Value): Plain {
    return Object.fromEntries(at.entries().map(([name, value]) => [name, value.word()]))
  }

  #factory(value: Value): Plain | undefined {
    const range = (at: Value): Plain =>
      this.pick(
        at,
        Object.fromEntries(
          ["start", "stop", "step"].map((key) => [key, (one: Value) => one.number(-1e15, 1e15)]),
        ),
      )
    const found = this.pick(value, {
      repeat: (at) => at.whole(1, 1e9),
      parametric_sweep: (at) =>
        this.pick(at, {
          product: (all) => all.list(range),
          // Words are lists of letters there.
          zip: (all) =>
            all.list((one) => (one.isList ? one.list((word) => word.word()) : Array.from(one.text()))),
        }),
      random: (at) => {
        const drawn = this.pick(at, {
          generate: (one) => one.whole(1, 1e9),
          seed: (one) => one.whole(0, Number.MAX_SAFE_INTEGER),
          integer: range,
          distribution: (one) =>
            this.pick(one, {
              uniform: (two) =>
                this.pick(two, { a: (n) => n.number(-1e15, 1e15), b: (n) => n.number(-1e15, 1e15) }),
            }),
        })
        const { distribution, integer, ...rest } = drawn as {
          distribution?: { uniform?: Plain }
          integer?: Plain
        }
        const { uniform } = distribution ?? {}
        return {
          ...{ seed: 0, ...rest },
          ...(integer === undefined
            ? {}
            : { integer: { start: integer["start"] ?? 0, stop: integer["stop"] } }),
          ...(uniform === undefined ? {} : { uniform: { start: uniform["a"], stop: uniform["b"] } }),
        }
      },
    })
    const { parametric_sweep: sweep, ...rest } = found as { parametric_sweep?: Plain }
    const made = { ...rest, ...sweep }
    return Object.keys(made).length === 0 ? undefined : made
  }

  /** How many there are of what is elsewhere called instances and processes. */
  #ranks(value: Value): Plain {
    const whole = (at: Value): number | undefined => {
      if (/^\d+$/.test(at.word())) return at.whole(1, 1e9)
      this.note(at, "it depends on a pool, of which there is none: say a number")
      return undefined
    }
    const { num_instances: nodes, mpi } = this.pick(value, {
      num_instances: whole,
      mpi: (at) => this.pick(at, { processes_per_node: whole })["processes_per_node"],
    })
    return {
      ...(nodes === undefined ? {} : { nodes }),
      ...(mpi === undefined ? {} : { ranks_per_node: mpi }),
    }
  }

  #task(value: Value): Plain {
    const read = this.pick(value, {
      id: (at) => at.text(),
      singularity_image: (at) => this.#image(at),
      singularity_execution: (at) => this.pick(at, { cmd: (cmd) => cmd.oneOf("run", "exec") })["cmd"],
      command: (at) => at.text(),
      environment_variables: (at) => this.#variables(at),
      depends_on: (at) => at.list((one) => one.text()),
      depends_on_range: (at) => at.list((one) => one.whole(0, 1e9)),
      max_wall_time: (at) => this.#time(at),
      task_factory: (at) => this.#factory(at),
      multi_instance: (at) => this.#ranks(at),
    })
    const {
      singularity_image: image,
      singularity_execution: action,
      command,
      multi_instance: ranks,
      ...rest
    } = read as Plain & { multi_instance?: Plain }
    if (image === undefined) this.note(value, "it runs in no singularity_image: here each task runs in one")
    const line = typeof command === "string" ? command : ""
    const words =
      plainWords(line.replaceAll(/\{\w*\}/g, "")) === undefined ? ["sh", "-c", line] : line.split(/\s+/)
    const isRun = action === "run"
    return {
      ...rest,
      ...ranks,
      image,
      command: [...(isRun ? ["run"] : ["exec"]), ...(line === "" ? [] : isRun ? line.split(/\s+/) : words)],
    }
  }

  jobs(value: Value): Plain[] {
    const { job_specifications: jobs = [] } = this.pick(value, {
      job_specifications: (at) =>
        at.list((job) =>
          this.pick(job, {
            id: (one) => one.text(),
            max_task_retries: (one) => one.whole(0, 100),
            max_wall_time: (one) => this.#time(one),
            priority: (one) => one.whole(-1000, 1000),
            environment_variables: (one) => this.#variables(one),
            tasks: (all) => all.list((task) => this.#task(task)),
            merge_task: (task) => this.#task(task),
          }),
        ),
    }) as { job_specifications?: Plain[] }
    return jobs
  }
}

async function readYaml(folder: string, name: string): Promise<Value> {
  const file = ["yaml", "yml", "json"].map((end) => path.join(folder, `${name}.${end}`)).find(existsSync)
  if (file === undefined)
    throw new BatchError("ERR_BATCH_CONFIG", `${folder}: there is no ${name}.yaml in it`, { path: folder })
  return Value.parse((await readBounded(file, MAX_YAML_SIZE)).toString("utf8"), file, configurationKind)
}

/**
 * Turns a folder of Batch Shipyard's into a configuration.
 *
 * @throws BatchError `ERR_BATCH_CONFIG`.
 */
export async function importShipyard(folder: string): Promise<Imported> {
  const importer = new Importer()
  const images = importer.config(await readYaml(folder, "config"))
  const jobs = importer.jobs(await readYaml(folder, "jobs"))
  const text = stringify({ images, jobs }, { lineWidth: 0 })
  // What cannot be run is said now, by the names of what was made.
  try {
    parseConfiguration(text, path.join(folder, "sifcrypt.yaml"))
  } catch (error) {
    importer.notes.push(`what was made of it is not complete: ${(error as Error).message}`)
  }
  return { text, notes: importer.notes }
}
