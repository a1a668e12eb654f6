// Jobs on a real cluster: what users and administrators are promised of them. As an ordinary user, with a second one looking on.
import assert from "node:assert/strict"
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import { execFileSync } from "node:child_process"
import { chmod, chown } from "node:fs/promises"
import http from "node:http"
import { connect } from "node:net"
import path from "node:path"
import { text } from "node:stream/consumers"
import { batch, build, certificate, keyring, push, sign } from "../../lib/index.ts"
import { newPair } from "../../lib/batch/key-exchange.ts"
import { createHash, createPrivateKey } from "node:crypto"
import { Credentials } from "../../lib/encryption/credentials.ts"
import { openPartition } from "../../lib/encryption/unlock.ts"
import { openSif } from "../../lib/sif/open.ts"
import { cli, finish, packageRoot, runProgram, type Result } from "../support/cli.ts"
import { Server } from "../support/http-server.ts"
import { searchMemory } from "../support/memory.ts"
import {
  allProcesses,
  descriptorsOf,
  holdsFuse,
  processesBelow,
  waitFor,
  type ProcessInfo,
} from "../support/processes.ts"
import { Registry } from "../support/registry.ts"
import { newFolder } from "../support/scratch.ts"
import { observerId, SlurmCluster, user, type Shown } from "../support/slurm.ts"
import { makeRootTree } from "../support/trees.ts"
import { settledRows, tableRows } from "../support/walk.ts"

const soak = process.env["SIFCRYPT_SOAK"] !== undefined
const NODES = 3
/** In the image, where nothing but the payload sees it. */
const MARKER = "marker-5a1f0c-inside"

describe("jobs on Slurm", () => {
  const folder = newFolder("batch", user.id)
  const file = (name: string): string => path.join(folder, name)
  const password = "pässword-of-the-certificate"
  const passwordFile = file("password")
  let cluster: SlurmCluster
  let registry: Registry
  let thumbprint: string
  let sha1: string
  let fingerprint: string
  let reference: string

  const own = async (name: string): Promise<void> => {
    await chown(file(name), user.id, user.id)
  }

  /** Writes a configuration and gives its name. */
  function configure(name: string, jobs: string, images?: string, settings = ""): string {
    const lines = [
      `cluster: { partition: batch, time: "00:10:00", broker_host: 127.0.0.1, cache: ${file("cache")}/%N, job_sets: ${file("sets")}${settings} }`,
      images ??
        `images: [ { image: ${file("image.sif")}, encryption: { certificate: { sha256_thumbprint: ${thumbprint} } } } ]`,
      jobs,
    ]
    const written = file(name)
    writeFileSync(written, `${lines.join("\n")}\n`)
    return written
  }

  async function submit(configuration: string, ...more: readonly string[]): Promise<string> {
    const answer = await cluster.ok([
      "batch",
      "submit",
      "--json",
      "--password-file",
      passwordFile,
      ...more,
      configuration,
    ])
    return (JSON.parse(answer) as { folder: string }).folder
  }

  const brokerOf = (set: string): { port: number; pid: number; publicKey: string } =>
    JSON.parse(readFileSync(path.join(set, "broker.json"), "utf8")) as {
      port: number
      pid: number
      publicKey: string
    }
  const brokerLog = (set: string): string => readFileSync(path.join(set, "log", "broker.log"), "utf8")
  const outputOf = (set: string, task: string, name = "stdout.txt"): string =>
    readFileSync(path.join(set, "out", ...task.split("/"), name), "utf8")

  /** Sends a line to a broker, as anybody can. */
  async function say(
    set: string,
    line: string,
  ): Promise<{ status: string; reason?: string; sealed?: string }> {
    const socket = connect(brokerOf(set).port, "127.0.0.1")
    socket.end(`${line}\n`)
    return JSON.parse(await text(socket)) as { status: string; reason?: string; sealed?: string }
  }

  /** What a task would say, as the user or the observer. */
  async function credential(request: object, as: "user" | "observer"): Promise<string> {
    const argv = ["munge", "--socket", cluster.munge, "--restrict-uid", String(user.id)]
    const input = JSON.stringify(request)
    const made: Result =
      as === "user" ? await runProgram(argv, { as: "nobody", input }) : await cluster.observe(argv, input)
    assert.equal(made.status, 0, made.stderr)
    return `munge ${made.text.trim()}`
  }

  /** A job with one task. */
  function job(command: string, image: string = file("image.sif"), more = ""): string {
    return `jobs: [ { id: one, tasks: [ { image: ${image}, command: ${command}${more === "" ? "" : `, ${more}`} } ] } ]`
  }

  /** What the node of a task has written; undefined: nothing yet. */
  function readStatus(set: string, task: string): Shown | undefined {
    const name = path.join(set, "status", `${task}.json`)
    return existsSync(name) ? (JSON.parse(readFileSync(name, "utf8")) as Shown) : undefined
  }

  function factsOf(set: string): { readonly array: number; readonly digest: string; readonly id: string } {
    const { arrays } = JSON.parse(readFileSync(path.join(set, "slurm.json"), "utf8")) as {
      arrays: { array: number }[]
    }
    const { id, images } = JSON.parse(readFileSync(path.join(set, "manifest.json"), "utf8")) as {
      id: string
      images: { digest: string }[]
    }
    return { array: arrays[0]!.array, digest: images[0]!.digest, id }
  }

  /** The processes of a set's tasks: their commands, and payloads that are called so. */
  function ours(set: string, payload: string): readonly ProcessInfo[] {
    return allProcesses().filter(
      ({ command }) =>
        (command.includes(payload) || command.includes("batch task")) &&
        (command.includes(payload === "batch task" ? set : payload) || command.includes(set)),
    )
  }

  /** What opens an image, the private key, the password and what is inside, as bytes and as text would have them. */
  async function secretsOf(image: string): Promise<readonly Buffer[]> {
    const key = { file: file("one.pfx") }
    using credentials = new Credentials([{ key, password: { file: passwordFile } }])
    await using opened = await openSif(image)
    const { secret, unlocked } = await openPartition(opened, opened.primary(), credentials, {})
    const data = Buffer.from(unlocked.dataKey.bytes)
    const pem = await runProgram(
      ["openssl", "pkcs12", "-in", file("one.pfx"), "-nodes", "-nocerts", "-passin", `file:${passwordFile}`],
      { as: "self" },
    )
    const { d = "" } = createPrivateKey(pem.text).export({ format: "jwk" })
    const bytes = [
      Buffer.from(secret.bytes),
      data,
      Buffer.from(d, "base64url"),
      Buffer.from(password),
      Buffer.from(MARKER),
    ]
    return bytes.flatMap((one) => {
      const part = one.subarray(0, 24)
      return [
        part,
        Buffer.from(part.toString("hex")),
        Buffer.from(part.toString("base64").replace(/=+$/, "").slice(0, -1)),
      ]
    })
  }

  /** The files below a folder that have any of these bytes in them. */
  function filesWith(place: string, needles: readonly Buffer[]): string[] {
    return readdirSync(place, { withFileTypes: true, recursive: true }).flatMap((entry) => {
      const name = path.join(entry.parentPath, entry.name)
      if (!entry.isFile()) return []
      const bytes = readFileSync(name)
      return needles.some((needle) => bytes.includes(needle)) ? [name] : []
    })
  }

  async function drain(state: "drain" | "resume"): Promise<void> {
    const why = state === "drain" ? ["reason=one-node"] : []
    await cluster.slurm(["scontrol", "update", "nodename=n[2-3]", `state=${state}`, ...why])
  }

  async function partition(state: "up" | "down"): Promise<void> {
    await cluster.slurm(["scontrol", "update", "partitionname=batch", `state=${state}`])
  }

  before(async function () {
    this.timeout(120_000)
    ;[cluster, registry] = await Promise.all([SlurmCluster.start(NODES), Registry.start()])
    writeFileSync(passwordFile, `${password}\n`, { mode: 0o600 })
    await own("password")
    for (const name of ["one", "two"]) {
      await certificate.create({ filePrefix: file(name), password: { file: passwordFile }, bits: 2048 })
      for (const kind of [".pfx", "-public.pem", "-public-pkcs1.pem"]) await own(`${name}${kind}`)
    }
    const source = makeRootTree()
    writeFileSync(path.join(source, "data", "marker"), `${MARKER}\n`)
    cpSync(path.join(packageRoot, "test", "slurm", "ranks.py"), path.join(source, "data", "ranks.py"))
    mkdirSync(path.join(source, ".singularity.d"))
    writeFileSync(
      path.join(source, ".singularity.d", "runscript"),
      '#!/bin/sh\necho "$1 by the run script"\n',
      { mode: 0o755 },
    )
    const recipients = [{ key: { file: file("one-public.pem") } }]
    const both = [...recipients, { key: { file: file("two-public.pem") } }]
    await build({ output: file("image.sif"), source, recipients: both })
    await build({ output: file("signed.sif"), source, recipients })
    const ring = { folder: path.join(newFolder("ring"), "keys") }
    const made = await keyring.newPair({ name: "Vendor", email: "v@example.org", plain: true, ...ring })
    fingerprint = made.fingerprint
    const secretKeyrings = [await keyring.exportKeys([fingerprint], { ...ring, secret: true })]
    await sign(file("signed.sif"), { secretKeyrings })
    writeFileSync(file("vendor.asc"), await keyring.exportKeys([fingerprint], ring))
    reference = `oras://${registry.host}/group/model:1`
    await push({ image: file("signed.sif"), reference })
    for (const name of ["image.sif", "signed.sif", "vendor.asc"]) await own(name)
    await chmod(file("image.sif"), 0o644)
    thumbprint = (await cluster.ok(["cert", "add", "--password-file", passwordFile, file("one.pfx")])).trim()
    assert.match(thumbprint, /^[0-9a-f]{64}$/)
    const [{ sha1: name } = { sha1: "" }] = JSON.parse(await cluster.ok(["cert", "list", "--json"])) as {
      sha1: string
    }[]
    sha1 = name.replaceAll(":", "").toLowerCase()
  })
  after(async () => {
    await Promise.all([cluster, registry].map((one) => one[Symbol.asyncDispose]()))
  })

  it("B2, B6: runs an array of one signed, encrypted image: fetched once a node, the password read once", async () => {
    const tasks = soak ? 100 : 9
    const images = `images: [ { image: "${reference}", signing_key: { fingerprint: ${fingerprint}, file: vendor.asc } } ]`
    // What somebody else sees of every process meanwhile.
    const look =
      "for i in $(seq 60); do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; sleep 0.1; done"
    const seen = cluster.observe(["sh", "-c", look])
    const set = await submit(
      configure(
        "array.yaml",
        `jobs: [ { id: all, tasks: [ { image: "${reference}", command: [exec, cat, /data/marker], task_factory: { repeat: ${tasks} } } ] } ]`,
        images,
      ),
    )
    const all = await cluster.status(set)
    assert.equal(all.size, tasks)
    for (const [name, { state, reason }] of all) {
      assert.equal(state, "done", `${name}: ${reason ?? ""}`)
      assert.equal(outputOf(set, name), `${MARKER}\n`)
    }
    const { text: others } = await seen
    assert.match(others, /batch\0task\0/)
    for (const marker of [password, MARKER]) assert.doesNotMatch(others, new RegExp(marker))
    // Each node that had a task has the image, whole, and no other file of it.
    const nodes = new Set([...all.values()].map(({ node }) => node))
    for (const node of nodes) {
      const cache = file(`cache/${node ?? ""}/batch-1`)
      const names = readdirSync(cache).filter(
        (name) => /^\.?[0-9a-f]{64}/.test(name) && !/\.(?:used|lock|checked)$/.test(name),
      )
      assert.equal(names.length, 1)
      assert.deepEqual(readFileSync(path.join(cache, names[0]!)), readFileSync(file("signed.sif")))
    }
    const released = brokerLog(set)
      .split("\n")
      .filter((line) => line.includes('"released"'))
    assert.equal(released.length, tasks)
  })

  it("S41, B3, B4, B5, B33: gives the key to nobody but a task that runs, and as often as it is started", async () => {
    const set = await submit(configure("long.yaml", job("[exec, sleep, 4321]")))
    const task = (): Shown | undefined => readStatus(set, "one/task-00000")
    await waitFor("the task runs", () => task()?.state === "running", 20_000)
    // Wherever somebody could look: what Slurm keeps, the job set with its logs, the cache; and what the observer sees of processes.
    const hidden = await secretsOf(file("image.sif"))
    for (const place of [cluster.folder, set, file("cache")])
      assert.deepEqual(filesWith(place, hidden), [], place)
    const look = await cluster.observe([
      "sh",
      "-c",
      "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null",
    ])
    assert.match(look.text, /batch\0task\0/)
    for (const needle of hidden) assert.equal(look.stdout.includes(needle), false)
    const { pid } = brokerOf(set)
    const brokers = tableRows().filter((row) => row.startsWith("| batch submit |"))
    const broker = processesBelow(pid).filter((one) => one.pid === pid)
    const names = { [set]: "output" }
    assert.deepEqual(await settledRows("| batch submit | user |", () => broker, names, brokers), brokers)
    // Locked, and nobody of the same user can look into it.
    assert.match(readFileSync(`/proc/${pid}/status`, "utf8"), /^VmLck:\s+[1-9]/m)
    assert.equal(statSync(`/proc/${pid}/mem`).uid, 0)
    // It has given the secret to a task by now, and kept no copy of it anywhere else, nor of what opened it.
    const needles = [
      "secret",
      "secret in hex",
      "secret in base64",
      ...hidden.slice(3).map((_, i) => `other ${i}`),
    ]
    assert.deepEqual(
      searchMemory(
        pid,
        needles.map((what, i) => ({ what, bytes: hidden[i]! })),
      ),
      ["secret in anonymous (locked)"],
    )
    const { array, digest, id } = factsOf(set)
    const pair = newPair()
    let nonces = 0
    const request = (changes: object = {}): object => ({
      ...{ version: 1, set: id, slurmJob: array, array, element: 0, node: task()?.node, digest },
      ...{ publicKey: pair.publicKey.toString("base64"), nonce: String(nonces++) },
      ...changes,
    })
    const refused = async (line: string, why: RegExp): Promise<void> => {
      const answer = await say(set, line)
      assert.equal(answer.status, "refused", JSON.stringify(answer))
      assert.match(brokerLog(set).trim().split("\n").at(-1) ?? "", why)
    }
    await refused(await credential(request(), "observer"), /"uid":5,.*somebody else's/)
    const copied = await credential(request({ digest: "0".repeat(64) }), "user")
    await refused(copied, /its task has another image/)
    await refused(copied, /Replayed/)
    const [other = ""] = ["n1", "n2", "n3"].filter((node) => node !== task()?.node)
    await refused(await credential(request({ node: other }), "user"), /does not run on n/)
    await refused(await credential(request({ slurmJob: array + 1 }), "user"), /is not that element/)
    await refused(await credential(request({ element: 1 }), "user"), /no array of this job set has/)
    await refused(await credential(request({ set: "another" }), "user"), /about another job set/)
    await refused(await credential(request(), "user"), /as often as it can be started/)
    await refused("munge nothing", /refused/)
    await refused("ssh e30=", /it is no request/)
    await refused("x".repeat(10), /it is no request/)
    // What is cancelled leaves nothing.
    await cluster.ok(["batch", "cancel", set])
    await waitFor("nothing is left", () => ours(set, "sleep 4321").length === 0, 10_000)
    assert.equal((await cluster.status(set)).get("one/task-00000")?.state, "cancelled")
    await waitFor("the broker ends with its set", () => !existsSync(`/proc/${pid}`), 20_000)
    assert.equal(existsSync(path.join(set, "broker.json")), false)
  })

  it("B7: has tasks wait for a broker that is lost, and be started again, until the set is unlocked", async () => {
    await partition("down")
    const set = await submit(
      configure("lost.yaml", job("[exec, cat, /data/marker]"), undefined, ", key_wait: 1"),
    )
    process.kill(brokerOf(set).pid, "SIGKILL")
    await partition("up")
    const waits = (): Shown | undefined => readStatus(set, "one/task-00000")
    await waitFor("it waits", () => waits()?.state === "waiting" && waits()?.exitCode === 75, 30_000)
    await cluster.ok(["batch", "unlock", "--host", "127.0.0.1", "--password-file", passwordFile, set])
    const ended = (await cluster.status(set)).get("one/task-00000")
    assert.equal(ended?.state, "done", ended?.reason)
    assert.deepEqual(
      ended.attempts.map(({ restarts }) => restarts > 0),
      [true],
    )
    assert.equal(outputOf(set, "one/task-00000"), `${MARKER}\n`)
  })

  it("S42, B10, B11, B12: runs what was found and verified at submission, and nothing else", async () => {
    const wrong = `images: [ { image: "${reference}", signing_key: { fingerprint: ${"0".repeat(40)}, file: vendor.asc } } ]`
    const command = `[exec, cat, /data/marker]`
    const tasks = job(command, `"${reference}"`)
    const refusal = await cluster.run([
      "batch",
      "submit",
      "--password-file",
      passwordFile,
      configure("wrong.yaml", tasks, wrong),
    ])
    assert.equal(refusal.status, 26, refusal.stderr)
    // The tag leads elsewhere before the task starts.
    const right = wrong.replace("0".repeat(40), fingerprint)
    await drain("drain")
    await partition("down")
    const set = await submit(configure("moved.yaml", tasks, right))
    await push({ image: file("image.sif"), reference, unsigned: "allow" })
    await partition("up")
    const moved = (await cluster.status(set)).get("one/task-00000")
    assert.equal(moved?.state, "done", moved?.reason)
    await push({ image: file("signed.sif"), reference })
    // Somebody writes to the image that was verified there.
    assert.equal(moved.node, "n1")
    const cached = path.join(file("cache"), "n1", "batch-1", factsOf(set).digest)
    const bytes = readFileSync(cached)
    bytes.writeUInt8(bytes.readUInt8(bytes.length - 5000) ^ 1, bytes.length - 5000)
    writeFileSync(cached, bytes)
    const changed = await submit(configure("changed.yaml", tasks, right))
    const failed = (await cluster.status(changed)).get("one/task-00000")
    assert.deepEqual([failed?.state, failed?.exitCode], ["failed", 65], failed?.reason)
    assert.doesNotMatch(brokerLog(changed), /"released"/)
    await cluster.run(["batch", "prune", "--cache", file("cache/n1")])
    // Another image, by another signer, takes the file's place.
    const swapped = file("swapped.sif")
    cpSync(file("signed.sif"), swapped)
    await partition("down")
    const images = right.replace(`"${reference}"`, swapped)
    const swap = await submit(configure("swap.yaml", job(command, swapped), images))
    cpSync(file("image.sif"), swapped)
    await partition("up")
    const other = (await cluster.status(swap)).get("one/task-00000")
    assert.deepEqual([other?.state, other?.exitCode], ["failed", 65], other?.reason)
    assert.doesNotMatch(brokerLog(swap), /"released"/)
    await drain("resume")
    assert.doesNotMatch(await cluster.slurm(["sinfo", "-h", "-N", "-o", "%T"]), /drain|down/)
  })

  it("B19, B21, B22, B23, B24, B30: retries, dependencies, output as it comes, and what a payload sees", async () => {
    const secret = "marker-of-the-environment"
    const env = Object.fromEntries(
      ["SIFCRYPT", "APPTAINER", "SINGULARITY"].flatMap((prefix) =>
        ["PASSPHRASE", "PEM_DATA", "PEM_PATH"].map((name) => [`${prefix}_ENCRYPTION_${name}`, secret]),
      ),
    )
    const image = file("image.sif")
    const jobs = `jobs:
  - id: retried
    max_task_retries: 2
    tasks: [ { image: ${image}, command: [sh, -c, 'printf x >>tries; test "$(cat tries)" = xxx'] } ]
  - id: final
    max_task_retries: 2
    no_retry_on: [3]
    tasks: [ { image: ${image}, command: [sh, -c, "echo before; exit 3"] } ]
  - id: after
    depends_on: [final]
    tasks: [ { image: ${image}, command: [echo, never] } ]
  - id: ordered
    tasks:
      - { id: a, image: ${image}, command: [sh, -c, "sleep 1; echo a >>order"] }
      - { id: 1, image: ${image}, command: [sh, -c, "echo 1 >>order"], depends_on: [a] }
      - { id: 2, image: ${image}, command: [sh, -c, "echo 2 >>order"], depends_on_range: [1, 1] }
    merge_task: { image: ${image}, command: [sh, -c, "seq 20000; echo merged >>order"] }
  - id: seen
    environment_variables: { OWN: "value" }
    tasks: [ { image: ${image}, command: [sh, -c, "env; ls /proc/self/fd"] } ]
  - id: last
    depends_on: [seen]
    tasks: [ { image: ${image}, command: [sh, -c, "printf 'a\\\\303'; sleep 1; printf '\\\\244'; echo; exit 7"] } ]
`
    const configuration = configure("several.yaml", jobs)
    const args = ["batch", "submit", "--tail", "stdout.txt", "--password-file", passwordFile, configuration]
    const followed = await cluster.run(args, { cwd: folder, env: { ...env, OTHER: secret } })
    assert.equal(followed.status, 7, followed.stderr)
    assert.equal(followed.text, "aä\n")
    const set = /^sifcrypt: (.*): 9 tasks$/m.exec(followed.stderr)?.[1] ?? ""
    const all = await cluster.status(set)
    const of = (job: string): Shown => all.get(`${job}/task-00000`) ?? assert.fail(job)
    assert.equal(of("retried").state, "done")
    assert.deepEqual(
      of("retried").attempts.map(({ exitCode }) => exitCode),
      [1, 1, 0],
    )
    assert.deepEqual(
      of("retried").attempts.map(({ restarts }) => restarts),
      [0, 0, 0],
    )
    assert.deepEqual([of("final").state, of("final").exitCode, of("final").attempts.length], ["failed", 3, 1])
    assert.equal(of("after").state, "cancelled")
    assert.match(of("after").reason ?? "", /it depends on final\/task-00000, which is failed/)
    assert.deepEqual([of("last").state, of("last").exitCode], ["failed", 7])
    const seen = outputOf(set, "seen/task-00000")
    assert.match(seen, /^OWN=value$/m)
    assert.doesNotMatch(seen, new RegExp(secret))
    assert.match(seen, /^0\n1\n2\n3\n$/m)
    assert.doesNotMatch(seen, /MUNGE|^SIFCRYPT_(?!CONTAINER|NAME|BIND|ENVIRONMENT)/m)
    // One after the other, and the one that merges last; what it has written in one go is all there.
    assert.equal(readFileSync(path.join(folder, "order"), "utf8"), "a\n1\n2\nmerged\n")
    const burst = await cluster.run(["batch", "tail", set, "ordered/merge"])
    assert.deepEqual(burst.stdout, readFileSync(path.join(set, "out", "ordered", "merge", "stdout.txt")))
    assert.equal(burst.text.length, 108_894)
    // Slurm remembers nothing after it was restarted cold; the record is ours.
    await cluster.control("restart-controller", ["cold"])
    await assert.rejects(
      cluster.slurm(["scontrol", "show", "job", String(factsOf(set).array)]),
      /Invalid job id/,
    )
    assert.deepEqual((await cluster.status(set)).get("final/task-00000"), of("final"))
    // Nothing of it is in what Slurm keeps, nor in the job set.
    for (const marker of [secret, MARKER, password])
      for (const place of [cluster.folder, set]) {
        const found = await runProgram(["grep", "-rlaF", marker, place], { as: "self" })
        assert.equal(found.text, "", `${marker} in ${found.text}`)
      }
  })

  it("B16: leaves nothing of a task that is cancelled while it waits", async () => {
    await partition("down")
    const set = await submit(configure("waits.yaml", job("[exec, echo]"), undefined, ", key_wait: 60"))
    process.kill(brokerOf(set).pid, "SIGKILL")
    await partition("up")
    await waitFor("it waits", () => readStatus(set, "one/task-00000")?.state === "waiting", 20_000)
    await cluster.ok(["batch", "cancel", set, "one/task-00000"])
    await waitFor("nothing is left", () => ours(set, "batch task").length === 0, 10_000)
    assert.equal((await cluster.status(set)).get("one/task-00000")?.state, "cancelled")
    const cache = readdirSync(file("cache")).flatMap((node) => readdirSync(file(`cache/${node}/batch-1`)))
    assert.deepEqual(
      cache.filter((name) => name.startsWith(".")),
      [],
    )
  })

  it("leaves nothing of a set that is deleted while a task runs, and says which one could not be told of", async () => {
    const words = ["batch", "submit", "--password-file", passwordFile]
    const untold = await runProgram(
      [
        "sh",
        "-c",
        'exec "$0" "$@" >/dev/full',
        user.command,
        ...words,
        configure("deleted.yaml", job("[exec, sleep, 4320]")),
      ],
      { as: "nobody", env: cluster.environment },
    )
    assert.notEqual(untold.status, 0)
    const set = /^sifcrypt: (\S+) is submitted: /m.exec(untold.stderr)?.[1] ?? assert.fail(untold.stderr)
    await waitFor("it runs", () => readStatus(set, "one/task-00000")?.state === "running", 20_000)
    await cluster.ok(["batch", "delete", "--force", set])
    const jobs = (): Promise<string> => cluster.slurm(["squeue", "--noheader", "--user", String(user.id)])
    await waitFor("its task has ended", async () => (await jobs()) === "", 20_000)
    assert.equal(existsSync(set), false)
  })

  if (soak) {
    it("B15: has a task end on another node when its own is lost, and leaves nothing there", async () => {
      const set = await submit(configure("node.yaml", job("[exec, sleep, 8]")))
      const of = (): Shown | undefined => readStatus(set, "one/task-00000")
      await waitFor("it runs", () => of()?.state === "running", 20_000)
      const lost = of()?.node ?? ""
      await cluster.control("kill-node", [lost])
      await waitFor("nothing of it is left", () => ours(set, "sleep 8").length === 0, 10_000)
      const ended = (await cluster.status(set)).get("one/task-00000")
      await cluster.control("start-node", [lost])
      assert.equal(ended?.state, "done", ended?.reason)
      const [first, second, ...more] = ended.attempts
      assert.deepEqual([first?.node, more.length], [lost, 0])
      assert.notEqual(second?.node, lost)
      assert.deepEqual([(first?.restarts ?? 0) > 0, (second?.restarts ?? 0) > 0], [false, true])
      await waitFor(
        "the node takes jobs again",
        async () =>
          /^(?:idle|mixed)$/.test((await cluster.slurm(["sinfo", "-h", "-n", lost, "-o", "%T"])).trim()),
        30_000,
      )
      assert.deepEqual(ours(set, "sleep 8"), [])
    })

    it("B20: tells a payload that its time is about to end, and says so", async () => {
      const told = `[sh, -c, "trap 'echo told; exit 5' TERM; while :; do sleep 0.2; done"]`
      // Has ended before Slurm can be asked why.
      const deaf = "[sleep, 300]"
      const tasks = [told, deaf].map(
        (command) => `{ image: ${file("image.sif")}, command: ${command}, max_wall_time: 60 }`,
      )
      // The second rank takes its time, though the first has ended.
      const each = `[sh, -c, "trap 'sleep $((SLURM_PROCID * 2)); echo told $SLURM_PROCID; exit 5' TERM; while :; do sleep 0.2; done"]`
      tasks.push(`{ image: ${file("image.sif")}, ranks_per_node: 2, command: ${each}, max_wall_time: 60 }`)
      const jobs = `jobs: [ { id: one, tasks: [ ${tasks.join(", ")} ] } ]`
      const set = await submit(configure("late.yaml", jobs, undefined, ", end_notice: 30"))
      const all = [...(await cluster.status(set)).values()]
      assert.deepEqual(
        all.map(({ state, exitCode }) => [state, exitCode]),
        [
          ["timeout", 5],
          ["timeout", 143],
          ["timeout", 5],
        ],
      )
      assert.equal(outputOf(set, "one/task-00002"), "told 0\ntold 1\n")
      assert.equal(outputOf(set, "one/task-00000"), "told\n")
    })
  }

  it("says what is wrong when nothing can be submitted, and leaves nothing", async () => {
    const fails = async (
      configuration: string,
      status: number,
      code: string,
      ...more: readonly string[]
    ): Promise<string> => {
      const before = readdirSync(file("sets"))
      const args = ["batch", "submit", "--json", "--password-file", passwordFile, ...more, configuration]
      const answer = await cluster.run(args)
      assert.equal(answer.status, status, answer.stderr)
      const { error } = JSON.parse(answer.text) as { error: { code: string; message: string } }
      assert.equal(error.code, code)
      assert.deepEqual(readdirSync(file("sets")), before)
      return error.message
    }
    /** A broker that is started in a way of its own. */
    const broker = (name: string, ...lines: readonly string[]): readonly string[] => {
      writeFileSync(file(name), ["#!/bin/sh", ...lines, ""].join("\n"), { mode: 0o755 })
      return ["--command", file(name)]
    }
    const good = configure("good.yaml", job("[exec, echo]"))
    await fails(good, 22, "ERR_BATCH_KEY", "--command", "/bin/false")
    const deaf = broker("deaf", `exec ${user.command} "$@" </dev/null`)
    assert.match(await fails(good, 22, "ERR_BATCH_KEY", ...deaf), /what opens .*image\.sif has not come$/)
    const dumb = broker("dumb", `exec ${user.command} "$@" >/dev/full`)
    assert.match(await fails(good, 22, "ERR_BATCH_KEY", ...dumb), /standard output|ENOSPC/)
    await fails(good, 20, "ERR_BATCH_CONFIG", "--job", "none")
    await fails(
      configure("nowhere.yaml", job("[exec, echo]"), undefined, ", reservation: none"),
      25,
      "ERR_BATCH_SCHEDULER",
      // One that writes until it has ended.
      ...broker(
        "late",
        'trap "kill $!; sleep 0.3; mkdir -p $3/log; echo ended >>$3/log/broker.log; exit" TERM',
        // What a shell starts to go on without it has no input of its own.
        "exec 3<&0",
        `${user.command} "$@" <&3 &`,
        "wait",
      ),
    )
    const missing = file("missing.sif")
    const images = `images: [ { image: ${missing} } ]`
    await fails(configure("missing.yaml", job("[exec, echo]", missing), images), 21, "ERR_BATCH_IMAGE")
    const other = `images: [ { image: ${file("image.sif")}, encryption: { certificate: { sha1_thumbprint: ${"0".repeat(40)} } } } ]`
    await fails(configure("other.yaml", job("[exec, echo]"), other), 22, "ERR_KEY_MISMATCH")
  })

  it("B13, B14: fetches an image once a node, from no more nodes at once than it may, and waits when it is told to", async () => {
    let now = 0
    let most = 0
    let begun = 0
    await using proxy = await Server.start((request, response) => {
      const isBlob = request.method === "GET" && /\/blobs\//.test(request.url ?? "")
      // The first one is told to come back.
      if (isBlob && begun++ === 0) {
        response.writeHead(429, { "retry-after": "1" }).end()
        return
      }
      if (isBlob) most = Math.max(most, ++now)
      const onward = http.request(
        `http://${registry.host}${request.url ?? ""}`,
        { method: request.method ?? "GET", headers: request.headers },
        (reply) => {
          response.writeHead(reply.statusCode ?? 500, reply.headers)
          // Slowly, so that others come meanwhile.
          setTimeout(() => reply.pipe(response), isBlob ? 400 : 0)
        },
      )
      response.once("close", () => {
        if (isBlob) now--
      })
      onward.end()
    })
    // Submitted by its own name, and found by nodes through the slow one.
    const name = `oras://${proxy.host}/group/model:1`
    const images = `images: [ { image: "${name}" } ]`
    const tasks = job("[exec, cat, /data/marker]", `"${name}"`, "cpus: 2, task_factory: { repeat: 6 }")
    const settings = `, concurrent_source_downloads: 1`
    const slow = configure("slow.yaml", tasks, images, settings)
    writeFileSync(slow, readFileSync(slow, "utf8").replace(`${file("cache")}/%N`, `${file("slow")}/%N`))
    const home = newFolder("slow-home", user.id)
    const certificates = path.join(user.home(), ".sifcrypt", "certificates")
    const env = { HOME: home, SIFCRYPT_CERTSDIR: certificates }
    const answer = await cluster.ok(["batch", "submit", "--json", "--password-file", passwordFile, slow], {
      env,
    })
    const atSubmission = begun
    const set = (JSON.parse(answer) as { folder: string }).folder
    const all = [...(await cluster.status(set)).values()]
    for (const { state, reason } of all) assert.equal(state, "done", reason)
    const nodes = new Set(all.map(({ node }) => node))
    assert.equal(begun - atSubmission, nodes.size)
    assert.equal(most, 1)
    for (const node of nodes)
      assert.deepEqual(
        readdirSync(file(`slow/${node ?? ""}/batch-1`)).filter((one) => one.startsWith(".")),
        [],
      )
  })

  it("B13: has many first uses on one node wait for one download, and another take the place of one that is killed", async () => {
    const count = soak ? 24 : 6
    let begun = 0
    await using slow = await Server.start((request, response) => {
      const isBlob = request.method === "GET" && /\/blobs\//.test(request.url ?? "")
      if (isBlob) begun++
      const isHeld = isBlob && begun === 2
      const onward = http.request(
        `http://${registry.host}${request.url ?? ""}`,
        { method: request.method ?? "GET", headers: request.headers },
        (reply) => {
          response.writeHead(reply.statusCode ?? 500, reply.headers)
          // The first one on the node gets a part, and waits for the rest.
          if (isHeld) reply.once("data", (piece: Buffer) => response.write(piece.subarray(0, 1000)))
          else reply.pipe(response)
        },
      )
      onward.end()
    })
    const name = `oras://${slow.host}/group/model:1`
    await partition("down")
    const first = configure(
      "first.yaml",
      job("[exec, echo]", `"${name}"`),
      `images: [ { image: "${name}" } ]`,
    )
    writeFileSync(first, readFileSync(first, "utf8").replace(`${file("cache")}/%N`, `${file("first")}/%N`))
    const env = {
      HOME: newFolder("first-home", user.id),
      SIFCRYPT_CERTSDIR: path.join(user.home(), ".sifcrypt", "certificates"),
    }
    const args = ["batch", "submit", "--json", "--password-file", passwordFile, first]
    const set = (JSON.parse(await cluster.ok(args, { env })) as { folder: string }).folder
    assert.equal(begun, 1)
    const manifest = path.join(set, "manifest.json")
    const manifestDigest = createHash("sha256").update(readFileSync(manifest)).digest("hex")
    const children = Array.from({ length: count }, () =>
      cluster.start(["batch", "fetch", manifest, manifestDigest], { env: { ...env, SLURMD_NODENAME: "n9" } }),
    )
    const ends = children.map((child) => finish(child))
    const cache = file("first/n9/batch-1")
    const { digest } = factsOf(set)
    const partial = (): string | undefined =>
      existsSync(cache) ? readdirSync(cache).find((one) => one.startsWith(`.${digest}.`)) : undefined
    const temporary = await waitFor("somebody fetches", partial, 30_000)
    await waitFor("it has been asked for", () => begun === 2, 30_000)
    assert.equal(existsSync(path.join(cache, digest)), false)
    const [fetching, ...more] = children.filter(({ pid }) =>
      descriptorsOf(pid ?? 0).includes(path.join(cache, temporary)),
    )
    assert.ok(fetching !== undefined)
    assert.deepEqual(more, [])
    fetching.kill("SIGKILL")
    const results = await Promise.all(ends)
    assert.deepEqual(
      results.map(({ status, signal }) => String(signal ?? status)).sort(),
      [...Array.from({ length: count - 1 }, () => "0"), "SIGKILL"],
      results.map(({ stderr }) => stderr).join(""),
    )
    // At submission, by who was killed, and by who took the place.
    assert.equal(begun, 3)
    assert.deepEqual(readFileSync(path.join(cache, digest)), readFileSync(file("signed.sif")))
    assert.equal(partial(), undefined)
    await cluster.ok(["batch", "delete", "--force", set])
    await partition("up")
  })

  it("B25: submits ten thousand tasks in seconds, cut where Slurm's arrays end", async () => {
    const count = soak ? 10_000 : 1500
    await partition("down")
    const many = configure(
      "many.yaml",
      job("[exec, echo, '{0}']", undefined, `task_factory: { repeat: ${count} }`),
    )
    try {
      const started = performance.now()
      const set = await submit(many)
      assert.ok(performance.now() - started < 10_000)
      const { arrays } = JSON.parse(readFileSync(path.join(set, "slurm.json"), "utf8")) as {
        arrays: { first: number; count: number }[]
      }
      assert.deepEqual(
        arrays.map(({ first, count: size }) => [first, size]),
        Array.from({ length: Math.ceil(count / 1001) }, (_, i) => [
          i * 1001,
          Math.min(1001, count - i * 1001),
        ]),
      )
      assert.equal(
        (await cluster.status(set, false)).get(`one/task-00000-${String(count - 1).padStart(5, "0")}`)?.state,
        "pending",
      )
      assert.match((await cluster.run(["batch", "delete", set])).stderr, /some of its tasks have not ended/)
      await cluster.ok(["batch", "delete", "--force", set])
      assert.equal(existsSync(set), false)
    } finally {
      await partition("up")
    }
  })

  it("goes from a key to a cow as docs/batch.md says", async () => {
    const docs = readFileSync(path.join(packageRoot, "docs", "batch.md"), "utf8")
    const [, script = ""] = /## From a key to a cow[^]*?```sh\n([^]*?)```/.exec(docs) ?? []
    const place = newFolder("walk", user.id)
    const source = makeRootTree()
    writeFileSync(path.join(source, "bin", "cowsay"), '#!/bin/sh\necho "< $1 >"\necho "  ^__^"\n', {
      mode: 0o755,
    })
    cpSync(source, path.join(place, "rootfs"), { recursive: true })
    mkdirSync(path.join(place, "bin"))
    symlinkSync(cli, path.join(place, "bin", "sifcrypt"))
    const env = {
      ...cluster.environment,
      HOME: place,
      PATH: `${path.join(place, "bin")}:${process.env["PATH"] ?? ""}`,
      REGISTRY: registry.host,
    }
    const walked = await runProgram(["sh", "-eu", "-c", script], {
      as: "nobody",
      cwd: place,
      env,
      timeoutMs: 100_000,
    })
    assert.equal(walked.status, 0, walked.stderr)
    assert.match(walked.text, /< moo >\n {2}\^__\^\n$/)
  })

  it("B17, B18: leaves nothing of a task whose command, starter or step daemon is killed", async () => {
    const set = await submit(
      configure("killed.yaml", job("[exec, sleep, 4322]", undefined, "task_factory: { repeat: 4 }")),
    )
    const states = (): (string | undefined)[] =>
      [0, 1, 2, 3].map((i) => readStatus(set, `one/task-00000-0000${i}`)?.state)
    await waitFor("all run", () => states().every((state) => state === "running"), 40_000)
    const [first, second, third, fourth] = ours(set, "batch task")
    assert.ok(first !== undefined && second !== undefined && third !== undefined && fourth !== undefined)
    const starters = (task: ProcessInfo): number[] => {
      const all = allProcesses()
      const below = (pid: number): ProcessInfo[] =>
        all.filter(({ parent }) => parent === pid).flatMap((one) => [one, ...below(one.pid)])
      return below(task.pid).flatMap(({ pid, program }) =>
        program.endsWith("sifcrypt-starter") ? [pid] : [],
      )
    }
    // The one that owns mounts and payload, and the last below it, which serves files.
    const [starter, server] = [starters(third)[0], starters(fourth).at(-1)]
    assert.ok(starter !== undefined && server !== undefined)
    process.kill(first.pid, "SIGKILL")
    process.kill(second.parent, "SIGKILL")
    process.kill(starter, "SIGKILL")
    process.kill(server, "SIGKILL")
    await waitFor("nothing is left", () => ours(set, "sleep 4322").length === 0, 30_000)
    const all = [...(await cluster.status(set)).values()].map(({ state }) => state).sort()
    assert.deepEqual(all, ["cancelled", "failed", "failed", "lost"])
    assert.doesNotMatch(readFileSync("/proc/self/mounts", "utf8"), /sifcrypt.*4322/)
  })

  it("B26: has the ranks of a task share one mount and one request for the key on each node, and one fate", async () => {
    const name = `"${reference}"`
    const ranks = `nodes: 2, ranks_per_node: 2`
    const ours = `binds: [ /usr, /lib64, /etc/alternatives, "/usr/lib:/lib" ]`
    const mpi = "/usr/bin/python3 /data/ranks.py; cat /data/marker; env >env.$SLURM_PROCID"
    const here = "echo x >here.$SLURM_PROCID; while ! test -e go; do sleep 0.1; done"
    // One fails, once; the others end only when it has.
    const fails = "test -e tried && exit; test $SLURM_PROCID = 2 && touch tried && exit 3; sleep 4326"
    const jobs = [
      // Two nodes of one machine: what is between them is not the machine's memory.
      `{ id: mpi, environment_variables: { UCX_TLS: "tcp,self" }, tasks: [ { image: ${name}, ${ranks}, mpi: pmi2, ${ours}, command: [sh, -c, "${mpi}; ${here}"] } ] }`,
      `{ id: fails, max_task_retries: 1, tasks: [ { image: ${name}, ${ranks}, command: [sh, -c, "${fails}"] } ] }`,
      // In the order of the job set's own numbers, from 2 on.
      ...["rank", "cancelled", ...(soak ? ["job", "srun", "daemon", "container"] : [])].map(
        (id) => `{ id: ${id}, tasks: [ { image: ${name}, ranks_per_node: 2, command: [sleep, 4327] } ] }`,
      ),
    ]
    const place = newFolder("ranks", user.id)
    const images = `images: [ { image: ${name}, signing_key: { fingerprint: ${fingerprint}, file: vendor.asc } } ]`
    const configuration = configure("ranks.yaml", `jobs: [ ${jobs.join(", ")} ]`, images)
    const args = ["batch", "submit", "--json", "--password-file", passwordFile, configuration]
    const set = (JSON.parse(await cluster.ok(args, { cwd: place })) as { folder: string }).folder
    const of = (id: string): Shown | undefined => readStatus(set, `${id}/task-00000`)

    /** A job's own process, its srun, and its ranks. */
    const processesOf = (
      job: number,
    ): { job: ProcessInfo; srun: ProcessInfo; ranks: readonly ProcessInfo[] } => {
      const all = allProcesses().filter(
        ({ command }) => command.includes(`${set}/manifest.json`) && command.endsWith(` ${job} 0 0`),
      )
      const sruns = all.filter(({ program }) => program.endsWith("/srun"))
      const [srun] = sruns.filter(({ parent }) => !sruns.some(({ pid }) => pid === parent))
      const own = all.find(({ pid }) => pid === srun?.parent)
      assert.ok(srun !== undefined && own !== undefined)
      return { job: own, srun, ranks: all.filter((one) => one !== own && !sruns.includes(one)) }
    }
    /** The starters of the containers that ranks are in by now. */
    const containersOf = (some: readonly ProcessInfo[]): readonly string[] =>
      some.flatMap(({ pid }) => {
        const join = processesBelow(pid).find(({ command }) => command.includes("sifcrypt-starter join"))
        const [, container] = / --pid=(\d+) /.exec(join?.command ?? "") ?? []
        return container === undefined ? [] : [container]
      })

    await waitFor(
      "all ranks are there",
      () => [0, 1, 2, 3].every((rank) => existsSync(path.join(place, `here.${rank}`))),
      60_000,
    )
    assert.equal(of("mpi")?.state, "running")
    // On each node there are two ranks, in one container that has one mount and one server.
    const { ranks: all } = processesOf(0)
    const daemons = [...new Set(all.map(({ parent }) => parent))]
    assert.deepEqual([all.length, daemons.length], [4, 2])
    const containers = daemons.map((daemon) => containersOf(all.filter(({ parent }) => parent === daemon)))
    for (const [one, other, ...more] of containers) assert.deepEqual([other, more], [one, []])
    assert.equal(new Set(containers.flat()).size, 2)
    for (const starter of new Set(containers.flat()))
      assert.equal(processesBelow(Number(starter)).filter(({ pid }) => holdsFuse(pid)).length, 1)
    writeFileSync(path.join(place, "go"), "")

    await waitFor(
      "the others run",
      () => ["rank", "cancelled"].every((id) => of(id)?.state === "running"),
      60_000,
    )
    const victims = processesOf(2).ranks
    const left = containersOf(victims)
    process.kill((victims[0] ?? assert.fail()).pid, "SIGKILL")
    await cluster.ok(["batch", "cancel", set, "cancelled/task-00000"])
    if (soak) {
      const rest = ["job", "srun", "daemon", "container"]
      await waitFor("the rest runs", () => rest.every((id) => of(id)?.state === "running"), 60_000)
      process.kill(processesOf(4).job.pid, "SIGKILL")
      process.kill(processesOf(5).srun.pid, "SIGKILL")
      process.kill((processesOf(6).ranks[0] ?? assert.fail()).parent, "SIGKILL")
      process.kill(Number(containersOf(processesOf(7).ranks)[0]), "SIGKILL")
    }
    const ended = await cluster.status(set)
    await waitFor(
      "nothing is left",
      () =>
        allProcesses().every(
          ({ pid, command }) =>
            !/sleep 432[67]/.test(command) &&
            !command.includes(`${set}/manifest.json`) &&
            !left.includes(String(pid)),
        ),
      30_000,
    )
    const end = (id: string): readonly unknown[] => {
      const { state, exitCode, attempts } = ended.get(`${id}/task-00000`) ?? assert.fail(id)
      return [state, exitCode, attempts.map((one) => one.exitCode)]
    }
    assert.deepEqual(end("mpi"), ["done", 0, [0]], ended.get("mpi/task-00000")?.reason)
    assert.deepEqual(outputOf(set, "mpi/task-00000").trim().split("\n").sort(), [
      ...["0 of 4: 10, 1 says word 1", "1 of 4: 10, 0 says word 0"],
      ...["2 of 4: 10, 3 says word 3", "3 of 4: 10, 2 says word 2"],
      ...[MARKER, MARKER, MARKER, MARKER],
    ])
    assert.match(await cluster.ok(["batch", "logs", set, "mpi/task-00000"]), /^3 of 4: 10, 2 says word 2$/m)
    // Nothing of what the ranks have in common is the payload's.
    for (const rank of [0, 1, 2, 3])
      assert.doesNotMatch(
        readFileSync(path.join(place, `env.${rank}`), "utf8"),
        /SIFCRYPT_BATCH|SIFCRYPT_START/,
      )
    assert.deepEqual(end("fails"), ["done", 0, [3, 0]])
    assert.match(outputOf(set, "fails/task-00000", "stderr.txt"), /task 2: Exited with exit code 3/)
    assert.equal(end("rank")[0], "failed")
    assert.equal(end("cancelled")[0], "cancelled")
    if (soak)
      assert.deepEqual(
        ["job", "srun", "daemon", "container"].map((id) => end(id)[0]),
        ["lost", "failed", "failed", "failed"],
      )
    // One request a node and start.
    const asked = brokerLog(set)
      .split("\n")
      .filter((line) => line.includes('"released"'))
      .map((line) => JSON.parse(line) as { readonly job: string; readonly node: string })
    const requests = (id: string): readonly string[] =>
      asked.flatMap(({ job: asking, node }) => (asking === id ? [node] : [])).sort()
    const nodes = [...new Set(requests("mpi"))]
    assert.equal(nodes.length, 2)
    assert.deepEqual(requests("mpi"), nodes)
    assert.equal(requests("fails").length, 4)
    assert.equal(requests("rank").length, 1)
    assert.doesNotMatch(brokerLog(set), /"refused"/)
  })

  it("B16: leaves nothing of a task that is cancelled while it fetches, or whenever else", async () => {
    let asked = 0
    // A registry that says what there is, and then nothing more.
    await using silent = await Server.start((request, response) => {
      if (request.method === "GET" && /\/blobs\//.test(request.url ?? "") && ++asked > 1) return
      const onward = http.request(
        `http://${registry.host}${request.url ?? ""}`,
        { method: request.method ?? "GET", headers: request.headers },
        (reply) => {
          response.writeHead(reply.statusCode ?? 500, reply.headers)
          reply.pipe(response)
        },
      )
      onward.end()
    })
    const name = `oras://${silent.host}/group/model:1`
    const images = `images: [ { image: "${name}" } ]`
    const fetching = configure("silent.yaml", job("[exec, sleep, 4323]", `"${name}"`), images)
    writeFileSync(
      fetching,
      readFileSync(fetching, "utf8").replace(`${file("cache")}/%N`, `${file("silent")}/%N`),
    )
    const env = {
      HOME: newFolder("silent-home", user.id),
      SIFCRYPT_CERTSDIR: path.join(user.home(), ".sifcrypt", "certificates"),
    }
    const args = ["batch", "submit", "--json", "--password-file", passwordFile, fetching]
    const set = (JSON.parse(await cluster.ok(args, { env })) as { folder: string }).folder
    await waitFor("it fetches", () => asked > 1, 20_000)
    await cluster.ok(["batch", "cancel", set])
    await waitFor("nothing is left", () => ours(set, "sleep 4323").length === 0, 10_000)
    assert.equal((await cluster.status(set)).get("one/task-00000")?.state, "cancelled")
    for (const node of readdirSync(file("silent")))
      assert.deepEqual(
        readdirSync(file(`silent/${node}/batch-1`)).filter((one) => !one.endsWith(".lock")),
        [],
      )
    // At a time that nobody chooses: while it starts, looks at the image, asks for the key, mounts.
    for (let i = 0; i < (soak ? 20 : 3); i++) {
      const another = await submit(configure("any.yaml", job("[exec, sleep, 4324]")))
      const began = (): boolean => ours(another, "sleep 4324").length > 0
      await waitFor("it begins", began, 20_000)
      const until = performance.now() + i * 150
      await waitFor("some time has passed", () => performance.now() >= until)
      await cluster.ok(["batch", "cancel", another])
      await waitFor("nothing is left", () => !began(), 10_000)
      const ended = (await cluster.status(another)).get("one/task-00000")
      assert.equal(ended?.state, "cancelled", ended?.reason)
    }
  })

  it("B27: keeps two users apart on one node and one image", async () => {
    const theirHome = newFolder("observer-home", observerId)
    const theirs = newFolder("observer", observerId)
    const their = (name: string): string => path.join(theirs, name)
    for (const name of ["two.pfx", "password"]) {
      cpSync(file(name), their(name))
      await chown(their(name), observerId, observerId)
    }
    const observe = async (...words: readonly string[]): Promise<string> => {
      const done = await cluster.observe(["env", `HOME=${theirHome}`, cli, ...words])
      assert.equal(done.status, 0, done.stderr)
      return done.text
    }
    await observe("cert", "add", "--password-file", their("password"), their("two.pfx"))
    const jobs = job("[exec, sh, -c, 'cat /data/marker; id -u']")
    const mine = configure("mine.yaml", jobs)
    const own = `cluster: { partition: batch, broker_host: 127.0.0.1, cache: ${theirs}/cache/%N, job_sets: ${theirs}/sets }`
    writeFileSync(their("theirs.yaml"), `${own}\nimages: [ { image: ${file("image.sif")} } ]\n${jobs}\n`)
    await drain("drain")
    const [set, answer] = await Promise.all([
      submit(mine),
      observe("batch", "submit", "--json", "--password-file", their("password"), their("theirs.yaml")),
    ])
    const theirSet = (JSON.parse(answer) as { folder: string }).folder
    assert.equal((await cluster.status(set)).get("one/task-00000")?.state, "done")
    const [shown] = JSON.parse(await observe("batch", "status", "--wait", "--json", theirSet)) as Shown[]
    assert.deepEqual([shown?.state, shown?.node], ["done", "n1"], shown?.reason)
    await drain("resume")
    // Each sees his own, and nothing of the other's.
    assert.equal(outputOf(set, "one/task-00000"), `${MARKER}\n${user.id}\n`)
    assert.equal(outputOf(theirSet, "one/task-00000"), `${MARKER}\n${observerId}\n`)
    const refused = await cluster.observe([cli, "batch", "status", set])
    assert.equal(refused.status, 25)
    assert.equal(statSync(set).mode & 0o777, 0o700)
    assert.doesNotMatch(brokerLog(set), new RegExp(`"uid":${observerId}`))
    assert.doesNotMatch(brokerLog(theirSet), new RegExp(`"uid":${user.id}`))
  })

  it("B29: says what kept a task from starting: a full disk, a registry that is gone, a manifest that was changed", async () => {
    const full = file("full")
    mkdirSync(full)
    execFileSync("mount", [
      "-t",
      "tmpfs",
      "-o",
      `size=64k,mode=700,uid=${user.id},gid=${user.id}`,
      "full",
      full,
    ])
    const images = `images: [ { image: "${reference}" } ]`
    const command = "[exec, cat, /data/marker]"
    try {
      const written = configure("full.yaml", job(command, `"${reference}"`), images)
      writeFileSync(written, readFileSync(written, "utf8").replace(`${file("cache")}/%N`, full))
      const ended = (await cluster.status(await submit(written))).get("one/task-00000")
      assert.deepEqual([ended?.state, ended?.exitCode], ["failed", 69])
      assert.match(
        ended?.reason ?? "",
        new RegExp(`${full}/batch-1: the image cannot be kept there: ENOSPC: no space left on device`),
      )
    } finally {
      execFileSync("umount", [full])
    }
    let open = true
    await using gone = await Server.start((request, response) => {
      if (!open) request.socket.destroy()
      else
        http
          .request(
            `http://${registry.host}${request.url ?? ""}`,
            { method: request.method ?? "GET", headers: request.headers },
            (reply) => {
              response.writeHead(reply.statusCode ?? 500, reply.headers)
              reply.pipe(response)
            },
          )
          .end()
    })
    const name = `oras://${gone.host}/group/model:1`
    await partition("down")
    const away = configure("away.yaml", job(command, `"${name}"`), `images: [ { image: "${name}" } ]`)
    writeFileSync(away, readFileSync(away, "utf8").replace(`${file("cache")}/%N`, `${file("away")}/%N`))
    const [lost, changed] = [await submit(away), await submit(configure("manifest.yaml", job(command)))]
    open = false
    const manifest = path.join(changed, "manifest.json")
    writeFileSync(manifest, readFileSync(manifest, "utf8").replace('"cat"', '"tac"'))
    await partition("up")
    const ended = (await cluster.status(lost)).get("one/task-00000")
    assert.deepEqual([ended?.state, ended?.exitCode], ["failed", 69], ended?.reason)
    assert.match(ended?.reason ?? "", new RegExp(gone.host))
    const { array } = factsOf(changed)
    const end = performance.now() + 20_000
    let shown = ""
    do shown = await cluster.slurm(["scontrol", "show", "job", String(array)])
    while (!/JobState=FAILED/.test(shown) && performance.now() < end)
    assert.match(shown, /ExitCode=78:0/)
    assert.match(
      readFileSync(path.join(changed, "log", `${array}_0.txt`), "utf8"),
      /manifest\.json: it is not the manifest that was submitted/,
    )
  })

  it("B31: runs what Batch Shipyard's configuration says, once it is taken over", async () => {
    const place = newFolder("shipyard", user.id)
    writeFileSync(
      path.join(place, "config.yaml"),
      `global_resources:
  singularity_images:
    signed:
      - image: ${reference}
        signing_key: { fingerprint: ${fingerprint}, file: ${file("vendor.asc")} }
        encryption: { certificate: { sha1_thumbprint: ${sha1} } }
`,
    )
    writeFileSync(
      path.join(place, "jobs.yaml"),
      `job_specifications:
  - id: ported
    max_task_retries: 1
    tasks:
      - singularity_image: ${reference}
        singularity_execution: { cmd: exec }
        command: cat /data/marker
      - singularity_image: ${reference}
        singularity_execution: { cmd: run }
        command: ran
`,
    )
    const written = await cluster.ok(["batch", "config", "import", place])
    const settings = `cluster: { partition: batch, broker_host: 127.0.0.1, cache: ${file("cache")}/%N, job_sets: ${file("sets")} }\n`
    writeFileSync(path.join(place, "sifcrypt.yaml"), settings + written)
    const set = await submit(path.join(place, "sifcrypt.yaml"))
    const all = [...(await cluster.status(set)).values()]
    assert.deepEqual(
      all.map(({ state, exitCode }) => [state, exitCode]),
      [
        ["done", 0],
        ["done", 0],
      ],
      all.map(({ reason }) => reason).join(),
    )
    assert.deepEqual(
      all.map(({ task }) => outputOf(set, `ported/${task}`)),
      [`${MARKER}\n`, "ran by the run script\n"],
    )
  })

  it("B1: keeps certificates as openssl knows them, and shows nobody their password", async () => {
    const look = cluster.observe([
      "sh",
      "-c",
      "for i in $(seq 20); do cat /proc/[0-9]*/cmdline 2>/dev/null; sleep 0.05; done",
    ])
    const home = newFolder("certificates", user.id)
    const env = { HOME: home }
    const words = ["--password-file", passwordFile]
    await cluster.ok(
      ["cert", "create", "--file-prefix", path.join(home, "new"), "--bits", "2048", ...words],
      { env },
    )
    const pfx = path.join(home, "new.pfx")
    const certificateText = execFileSync("openssl", [
      "pkcs12",
      "-in",
      pfx,
      "-nokeys",
      "-passin",
      `file:${passwordFile}`,
    ])
    const digestOf = (kind: string): string =>
      execFileSync("openssl", ["x509", "-noout", "-fingerprint", `-${kind}`], {
        input: certificateText,
        encoding: "utf8",
      })
        .replace(/.*=/, "")
        .replaceAll(":", "")
        .trim()
        .toLowerCase()
    const added = (await cluster.ok(["cert", "add", ...words, pfx], { env })).trim()
    assert.equal(added, digestOf("sha256"))
    assert.match(await cluster.ok(["cert", "list"], { env }), new RegExp(`${added} +${digestOf("sha1")}`))
    // One that openssl has made.
    const theirs = path.join(home, "theirs")
    execFileSync(
      "openssl",
      [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=x",
        "-keyout",
        `${theirs}.key`,
        "-out",
        `${theirs}.pem`,
      ],
      { stdio: "ignore" },
    )
    execFileSync("openssl", [
      "pkcs12",
      "-export",
      "-inkey",
      `${theirs}.key`,
      "-in",
      `${theirs}.pem`,
      "-out",
      `${theirs}.pfx`,
      "-passout",
      `file:${passwordFile}`,
    ])
    await chown(`${theirs}.pfx`, user.id, user.id)
    const other = (await cluster.ok(["cert", "add", ...words, `${theirs}.pfx`], { env })).trim()
    await cluster.ok(["cert", "del", digestOf("sha1"), other], { env })
    assert.doesNotMatch(await cluster.ok(["cert", "list"], { env }), new RegExp(`${added}|${other}`))
    assert.equal((await look).text.includes(password), false)
  })

  it("B32: takes no job set that others could have made, and no link", async () => {
    const set = await submit(configure("refused.yaml", job("[exec, echo]")))
    await cluster.status(set)
    await chmod(set, 0o750)
    assert.match((await cluster.run(["batch", "status", set])).stderr, /its mode has to be 0700/)
    await chmod(set, 0o700)
    const link = `${set}-link`
    symlinkSync(set, link)
    assert.match((await cluster.run(["batch", "status", link])).stderr, /no link is followed/)
    const manifest = path.join(set, "manifest.json")
    renameSync(manifest, `${manifest}.real`)
    symlinkSync(`${manifest}.real`, manifest)
    const answer = await cluster.run(["batch", "status", "--json", set])
    assert.equal(answer.status, 25)
    assert.equal((JSON.parse(answer.text) as { error: { code: string } }).error.code, "ERR_BATCH_SET")
    renameSync(`${manifest}.real`, manifest)
    await assert.rejects(batch.open(set), { code: "ERR_BATCH_SET" }, "root is not its user")
    assert.match((await cluster.run(["batch", "logs", set, "nobody"])).stderr, /there is no task nobody/)
    await cluster.ok(["batch", "delete", set])
    assert.equal(existsSync(set), false)
    await chmod(folder, 0o777)
    const open = await cluster.run(["batch", "submit", "--password-file", passwordFile, file("refused.yaml")])
    await chmod(folder, 0o755)
    assert.match(open.stderr, /others may write to it/)
  })

  it("B28: has drained no node and held no job, whatever went wrong", async () => {
    assert.doesNotMatch(await cluster.slurm(["sinfo", "-h", "-N", "-o", "%N %T %E"]), /drain|down|fail/)
    assert.doesNotMatch(
      await cluster.slurm(["squeue", "-h", "--states=all", "-o", "%T %r"]),
      /held|SPECIAL_EXIT/i,
    )
  })
})
