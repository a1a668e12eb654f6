import { batch as jobs, BatchError, forbidDumps } from "../../index.ts"
import { command, type CommandRow, type OptionRows } from "../command.ts"
import { interruption, passSignalsTo } from "../interrupt.ts"
import { columns, flush, jsonRow, output, print, printJson, printLines, writeAll } from "../output.ts"
import { ask, passwordFd, passwordFile, passwordSource } from "../passwords.ts"
import { complain, inform, notice, printable } from "../terminal.ts"
import { count, each, flag, GIBIBYTES, size, text } from "../values.ts"

interface PasswordFlags {
  readonly passwordFile?: string
  readonly passwordFd?: number
}

const passwordRows: OptionRows<PasswordFlags> = {
  passwordFile: passwordFile("password", "the certificate in your store"),
  passwordFd: passwordFd("password", "the certificate in your store", "passwordFile"),
}

function passwordOf(flags: PasswordFlags): ReturnType<typeof passwordSource> {
  return passwordSource(flags.passwordFile, flags.passwordFd, ask)
}

const outputRow = [
  "--file <name>",
  "stdout.txt or stderr.txt (default stdout.txt)",
  jobs.outputNames,
] as const

/** Shows what a task writes until it has ended, and ends as it does. */
async function follow(set: jobs.Jobs, task: string, file: jobs.OutputName | undefined): Promise<void> {
  await writeAll(output(), set.tail(task, { output: file, signal: interruption }))
  const status = (await set.status({ signal: interruption })).find((one) => `${one.job}/${one.task}` === task)
  if (status === undefined || status.state === "done") return
  complain(
    `${printable(task)}: ${status.state}${status.reason === undefined ? "" : `: ${printable(status.reason)}`}`,
  )
  process.exitCode = status.exitCode === undefined || status.exitCode === 0 ? 1 : status.exitCode
}

/** The whole name of a task. */
function wholeName(set: jobs.Jobs, task: string): string {
  return set.tasks.find((one) => one === task || one.endsWith(`/${task}`)) ?? task
}

const setArgument = ["<set>", "folder of the job set, as submit prints it"] as const

const submit = command({
  name: "submit",
  summary: "submit the jobs of a configuration",
  description:
    "Submits the jobs of a configuration to Slurm. Images are found, verified and opened once; what a task needs to open one is given to " +
    "it by a broker that runs here until all have ended. Prints the folder of the job set.",
  arguments: [["[file]", "the configuration", "sifcrypt.yaml"]],
  examples: [["follow what the last task writes", "sifcrypt batch submit --tail stdout.txt sifcrypt.yaml"]],
  options: {
    jobs: ["--job <id>", "submit this job only (repeatable)", each(text)],
    tail: ["--tail <name>", "follow stdout.txt or stderr.txt of the last task", jobs.outputNames],
    command: ["--command <path>", "where sifcrypt is on nodes (default: as here)", text],
    json: jsonRow,
    ...passwordRows,
  },
  run: async (flags, [file]) => {
    forbidDumps()
    const { command, tail, json } = flags
    await using set = await jobs.submit({
      ...{ file, jobs: flags.jobs, command, password: passwordOf(flags) },
      onNotice: notice,
      signal: interruption,
    })
    const { folder, tasks } = set
    let isTold = false
    try {
      if (json === true) await printJson({ folder, tasks })
      else if (tail === undefined) await printLines([folder])
      else inform(`${printable(folder)}: ${tasks.length} ${tasks.length === 1 ? "task" : "tasks"}`)
      isTold = (await flush()) === undefined
    } finally {
      // Its jobs may run by now.
      if (!isTold) complain(`${folder} is submitted: \`batch delete --force\` takes it back`)
    }
    if (tail !== undefined) await follow(set, tasks.at(-1) ?? "", tail)
  },
})

function statusLines(all: readonly jobs.TaskStatus[]): string[] {
  const rows = all.map(({ job, task, state, exitCode, node, attempts, slurmJob, reason }) => [
    `${job}/${task}`,
    state,
    exitCode === undefined ? "-" : String(exitCode),
    node ?? "-",
    String(attempts.length),
    slurmJob ?? "-",
    reason ?? "",
  ])
  return columns([["TASK", "STATE", "EXIT", "NODE", "TRIES", "SLURM", "REASON"], ...rows])
}

const status = command({
  name: "status",
  examples: [["every task of a set", "sifcrypt batch status JOBS"]],
  summary: "what became of tasks",
  description: "Shows the state of every task of a job set, also long after Slurm has forgotten it.",
  arguments: [setArgument],
  options: { json: jsonRow, wait: ["--wait", "wait until every task has ended", flag] },
  run: async ({ json, wait }, [folder]) => {
    await using set = await jobs.open(folder)
    const options = { signal: interruption }
    const all = wait === true ? await set.ended(options) : await set.status(options)
    if (json === true) await printJson(all)
    else await printLines(statusLines(all))
  },
})

const tail = command({
  name: "tail",
  examples: [["the first task that runs", "sifcrypt batch tail JOBS"]],
  summary: "follow what a task writes",
  description:
    "Shows what a task writes, until it has ended, and ends with its status. Without TASK it is the first one that runs.",
  arguments: [setArgument, ["[task]", "JOB/TASK, or the task where one job has it"]],
  options: { file: outputRow },
  run: async ({ file }, [folder, task]) => {
    await using set = await jobs.open(folder)
    if (task !== undefined) {
      await follow(set, wholeName(set, task), file)
      return
    }
    for await (const one of set.changes({ signal: interruption }))
      if (one.state === "running") {
        await follow(set, `${one.job}/${one.task}`, file)
        return
      }
    inform("no task runs any more")
  },
})

const logs = command({
  name: "logs",
  examples: [["of one task", "sifcrypt batch logs JOBS 3"]],
  summary: "what a task has written",
  description: "Prints what a task has written so far.",
  arguments: [setArgument, ["<task>", "JOB/TASK, or the task where one job has it"]],
  options: { file: outputRow },
  run: async ({ file }, [folder, task]) => {
    await using set = await jobs.open(folder)
    const bytes = await set.log(task, file)
    if (bytes === undefined)
      throw new BatchError("ERR_BATCH_TASK", `${folder}: ${task} has not begun to write`, { path: folder })
    await writeAll(output(), [bytes])
  },
})

const cancel = command({
  name: "cancel",
  examples: [["two of its tasks", "sifcrypt batch cancel JOBS 3 4"]],
  summary: "cancel tasks",
  description: "Cancels tasks of a job set, or all of them.",
  arguments: [setArgument, ["[tasks...]", "JOB/TASK, or the task where one job has it"]],
  options: { json: jsonRow },
  run: async ({ json }, [folder, tasks]) => {
    await using set = await jobs.open(folder)
    await set.cancel(tasks.length === 0 ? undefined : tasks)
    if (json === true) await printJson({ cancelled: tasks.length === 0 ? set.tasks : tasks })
  },
})

interface BrokerFlags {
  readonly brokerHost?: string
  readonly brokerPort?: number
  readonly sshPort?: number
}

const brokerRows: OptionRows<BrokerFlags> = {
  brokerHost: ["--host <host>", "name or address of this machine, as nodes reach it", text],
  brokerPort: ["--port <n>", "port to listen at (default: any)", count(0, 65_535)],
  sshPort: ["--ssh-port <n>", "port of this machine's sshd, where it is not 22", count(1, 65_535)],
}

const unlock = command({
  name: "unlock",
  examples: [["after the machine was restarted", "sifcrypt batch unlock JOBS"]],
  summary: "release the keys of a job set again",
  description:
    "Opens the images of a job set again and starts a broker for its tasks, after the machine where it ran was restarted; and where nodes " +
    "have keys of their own, makes a new bundle for them. Tasks that wait for their keys get them.",
  arguments: [setArgument],
  options: { ...brokerRows, json: jsonRow, ...passwordRows },
  run: async ({ json, brokerHost, brokerPort, sshPort, ...flags }, [folder]) => {
    forbidDumps()
    await using set = await jobs.open(folder)
    const password = passwordOf(flags)
    await set.unlock({ brokerHost, brokerPort, sshPort, password, onNotice: notice, signal: interruption })
    if (json === true) await printJson({ folder: set.folder })
  },
})

const prefetch = command({
  name: "prefetch",
  examples: [["before the first task starts", "sifcrypt batch prefetch JOBS"]],
  summary: "have nodes fetch images",
  description:
    "Has every node fetch the images of a job set, each in a job of its own. Prints the jobs' numbers.",
  arguments: [setArgument],
  options: { json: jsonRow },
  run: async ({ json }, [folder]) => {
    await using set = await jobs.open(folder)
    const numbers = await set.prefetch({ signal: interruption })
    if (json === true) await printJson(numbers)
    else await printLines(numbers.map(String))
  },
})

const prune = command({
  name: "prune",
  examples: [["down to 20 GiB", "sifcrypt batch prune --limit 20G"]],
  summary: "remove images from this machine's cache",
  description:
    "Removes the images of batch jobs from the cache of this machine, those that were not used for longest first, and none that is in use.",
  options: {
    cache: ["--cache <folder>", "the cache, as the configuration names it", text],
    limit: ["--limit <size>", "what may stay, in GiB or with a unit (default 0)", size(GIBIBYTES, 0, 99_999)],
    json: jsonRow,
  },
  run: async ({ cache, limit, json }) => {
    const removed = await jobs.prune({ cache, limit })
    if (json === true) await printJson(removed)
    else await printLines(removed.map(({ digest }) => `sha256:${digest}`))
  },
})

const remove = command({
  name: "delete",
  examples: [["with all that its tasks have written", "sifcrypt batch delete JOBS"]],
  summary: "remove a job set",
  description: "Removes the folder of a job set with all that its tasks have written.",
  arguments: [setArgument],
  options: { force: ["-F, --force", "cancel what has not ended", flag], json: jsonRow },
  run: async ({ force, json }, [folder]) => {
    await using set = await jobs.open(folder)
    await set.delete({ force })
    if (json === true) await printJson({ folder: set.folder })
  },
})

const task = command({
  name: "task",
  hidden: true,
  description: "Runs a task as the job that Slurm has started.",
  arguments: [
    ["<manifest>", "of the job set"],
    ["<digest>", "of the manifest"],
    ["<job>", "its place", count(0, 1e9)],
    ["<group>", "its place", count(0, 1e9)],
    ["<first>", "the task of the array's first element", count(0, 1e9)],
  ],
  run: async (_, [manifest, digest, job, group, first]) => {
    const { status, failure } = await jobs.runTask({ manifest, digest, job, group, first }, passSignalsTo)
    if (failure !== undefined) complain(failure.message)
    process.exitCode = status
  },
})

const broker = command({
  name: "broker",
  hidden: true,
  description: "Gives tasks what opens their images, which comes from standard input.",
  arguments: [setArgument],
  options: brokerRows,
  run: async ({ brokerHost: host, brokerPort: port, sshPort }, [folder]) => {
    forbidDumps()
    const onReady = (): Promise<void> => print("ready\n")
    await jobs.serve(folder, { host, port, sshPort, onReady, signal: interruption })
  },
})

const serveNode = command({
  name: "serve-node",
  summary: "open bundles for tasks on this node",
  description:
    "Opens the bundles of job sets with a key of this node's own, each for tasks of its owner that run here. For a service of the node's, as " +
    "root or a user of its own. Prints a line of JSON for each request and what became of it.",
  examples: [["as its service is started", "sifcrypt batch serve-node --key /etc/sifcrypt/node.key"]],
  options: {
    keys: [
      "--key <file>",
      "private key of this node, its owner's alone (repeatable)",
      each(text),
      { required: true },
    ],
    node: ["--node <name>", "this node, as Slurm calls it (default: this machine's name)", text],
    socket: ["--socket <path>", "where tasks ask (default /run/sifcrypt-node/socket)", text],
  },
  run: async ({ keys, node, socket }) => {
    forbidDumps()
    const onEvent = (event: jobs.NodeEvent): void => {
      output().write(`${JSON.stringify({ time: new Date().toISOString(), ...event })}\n`)
    }
    await jobs.serveNode({ keys, node, socket, onEvent, signal: interruption })
  },
})

const relay = command({
  name: "relay",
  hidden: true,
  description: "Hands a task's request to the broker.",
  arguments: [setArgument],
  run: async (_, [folder]) => {
    let line = ""
    for await (const piece of process.stdin.setEncoding("latin1")) {
      line += String(piece)
      if (line.includes("\n") || line.length > 16_384) break
    }
    await print(`${await jobs.relay(folder, line.split("\n")[0] ?? "")}\n`)
  },
})

const fetch = command({
  name: "fetch",
  hidden: true,
  description: "Fetches the images of a job set to this node.",
  arguments: [
    ["<manifest>", "of the job set"],
    ["<digest>", "of the manifest"],
  ],
  run: async (_, [manifest, digest]) => {
    await jobs.fetch(manifest, digest, interruption)
  },
})

const importing = command({
  name: "import",
  examples: [["of a Batch Shipyard folder", "sifcrypt batch config import shipyard"]],
  summary: "take over a configuration of Batch Shipyard",
  description:
    "Prints a configuration made of config.yaml and jobs.yaml of Batch Shipyard, and tells of each key that has no meaning here.",
  arguments: [["<folder>", "where these files are"]],
  options: { json: jsonRow },
  run: async ({ json }, [folder]) => {
    const imported = await jobs.importConfiguration(folder)
    if (json === true) await printJson(imported)
    else {
      await print(imported.text)
      for (const one of imported.notes) notice(printable(one))
    }
  },
})

const config: CommandRow = {
  name: "config",
  summary: "configurations of others",
  description: "Takes over what another program was told.",
  commands: [importing],
}

export const batch: CommandRow = {
  name: "batch",
  heading: "Run images",
  summary: "run images as jobs on a Slurm cluster",
  description:
    "Runs images as jobs on a Slurm cluster. A configuration names images and commands; keys of encrypted images are given to the tasks " +
    "that run, one by one, and lie on no disk.",
  commands: [
    submit,
    status,
    tail,
    logs,
    cancel,
    unlock,
    prefetch,
    prune,
    remove,
    config,
    serveNode,
    task,
    broker,
    relay,
    fetch,
  ],
}
