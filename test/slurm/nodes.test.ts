// Keys of nodes: job sets for which no process has to stay where they were submitted. The nodes' keys are kept by a user of their own.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs"
import path from "node:path"
import type { ChildProcess } from "node:child_process"
import type { Bundle } from "../../lib/batch/bundle.ts"
import { build, certificate } from "../../lib/index.ts"
import { cli, finish, packageRoot, runProgram, startProgram } from "../support/cli.ts"
import { waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { observerId, SlurmCluster, user } from "../support/slurm.ts"
import { makeRootTree } from "../support/trees.ts"

/** Debian's daemon: who keeps the nodes' keys. */
const KEEPER = 1
const MARKER = "marker-77c2-inside"

describe("jobs on Slurm, with keys of nodes", () => {
  const folder = newFolder("batch-nodes", user.id)
  const keeper = newFolder("batch-keeper", KEEPER)
  const certificates = newFolder("batch-certificates")
  const env = { SIFCRYPT_CERTSDIR: path.join(newFolder("batch-store", user.id), "certificates") }
  const file = (name: string): string => path.join(folder, name)
  const passwordFile = file("password")
  const services = new Map<string, ChildProcess>()
  let cluster: SlurmCluster

  const logOf = (node: string): string => readFileSync(path.join(keeper, `${node}.log`), "utf8")

  async function serve(node: string): Promise<void> {
    const place = path.join(keeper, node)
    mkdirSync(place, { recursive: true })
    chownSync(place, KEEPER, KEEPER)
    const log = path.join(keeper, `${node}.log`)
    writeFileSync(log, "", { flag: "a" })
    const starts = (): number => logOf(node).match(/"event":"started"/g)?.length ?? 0
    const former = starts()
    chownSync(log, KEEPER, KEEPER)
    const script = `exec "$0" batch serve-node --node ${node} --key ${keeper}/${node}.key --socket ${place}/socket >>${log} 2>&1`
    const service = startProgram(["sh", "-c", script, cli], {
      as: "self",
      wrapper: ["setpriv", `--reuid=${KEEPER}`, `--regid=${KEEPER}`, "--clear-groups"],
      env: cluster.environment,
    })
    services.set(node, service)
    await waitFor(`the service of ${node} is there`, () => starts() > former)
  }

  async function stop(node: string): Promise<void> {
    const service = services.get(node)
    services.delete(node)
    if (service === undefined) return
    service.kill("SIGTERM")
    const { status } = await finish(service)
    assert.equal(status, 0)
    assert.equal(existsSync(path.join(keeper, node, "socket")), false)
  }

  function configure(name: string, settings: string, command: string, more = ""): string {
    const cluster = `partition: two, time: 600, broker_host: 127.0.0.1, job_sets: ${file("sets")}, cache: ${file("cache")}/%N`
    const nodes = `node_certificates: ${certificates}, node_socket: ${keeper}/%N/socket`
    const image = file("image.sif")
    writeFileSync(
      file(name),
      `cluster: { ${cluster}, ${nodes}${settings} }
images: [ { image: ${image} } ]
jobs: [ { id: one, tasks: [ { image: ${image}, command: ${command}${more} } ] } ]
`,
    )
    return file(name)
  }

  async function submit(configuration: string): Promise<{ readonly set: string; readonly notices: string }> {
    const args = ["batch", "submit", "--json", "--password-file", passwordFile, configuration]
    const { status, text, stderr } = await cluster.run(args, { env })
    assert.equal(status, 0, stderr)
    return { set: (JSON.parse(text) as { folder: string }).folder, notices: stderr }
  }

  const outputOf = (set: string, task: string): string =>
    readFileSync(path.join(set, "out", "one", task, "stdout.txt"), "utf8")

  before(async function () {
    this.timeout(60_000)
    cluster = await SlurmCluster.start(3, "PartitionName=two Nodes=n[1-2] MaxTime=60 State=UP")
    // One of the partition's two, and one that is none of it.
    for (const node of ["n1", "n3"]) {
      const key = path.join(keeper, `${node}.key`)
      const certificateFile = path.join(certificates, `${node}.pem`)
      const request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", `/CN=${node}`]
      execFileSync("openssl", [...request, "-keyout", key, "-out", certificateFile], { stdio: "ignore" })
      chownSync(key, KEEPER, KEEPER)
      chmodSync(certificateFile, 0o644)
    }
    chmodSync(certificates, 0o755)
    chmodSync(keeper, 0o755)
    // Of two certificates, the password opens the one that is tried last.
    const stored = new Map<string, string>()
    for (const prefix of ["one", "two"]) {
      const password = file(`${prefix}-password`)
      writeFileSync(password, `${prefix}\n`, { mode: 0o600 })
      await certificate.create({ filePrefix: file(prefix), password: { file: password }, bits: 2048 })
      for (const made of [password, file(`${prefix}.pfx`)]) chownSync(made, user.id, user.id)
      const args = ["cert", "add", "--password-file", password, file(`${prefix}.pfx`)]
      stored.set(await cluster.ok(args, { env }), prefix)
    }
    const own = stored.get([...stored.keys()].sort().at(-1) ?? "") ?? ""
    renameSync(file(`${own}-password`), passwordFile)
    const source = makeRootTree()
    writeFileSync(path.join(source, "data", "marker"), `${MARKER}\n`)
    const recipients = [{ key: { file: file(`${own}-public.pem`) } }]
    await build({ output: file("image.sif"), source, recipients })
    chmodSync(file("image.sif"), 0o644)
    await Promise.all([serve("n1"), serve("n3")])
  })
  after(async () => {
    for (const node of [...services.keys()]) await stop(node)
    await cluster[Symbol.asyncDispose]()
  })

  it("B8: opens a bundle for its owner's running task of that image on a node of the partition, until it expires", async () => {
    const { set, notices } = await submit(
      configure(
        "one.yaml",
        ", key_source: nodes",
        "[exec, cat, /data/marker]",
        ", ranks_per_node: 2, task_factory: { repeat: 2 }",
      ),
    )
    assert.match(notices, /nodes without a certificate in .* are left out: n2/)
    // Nobody has to stay.
    assert.equal(existsSync(path.join(set, "broker.json")), false)
    const all = await cluster.status(set)
    for (const [name, { state, reason, node }] of all) {
      assert.deepEqual([state, node], ["done", "n1"], `${name}: ${reason ?? ""}`)
      assert.equal(outputOf(set, name.slice(4)), `${MARKER}\n${MARKER}\n`)
    }
    // Two ranks of a task ask once.
    assert.equal(logOf("n1").match(/"event":"released"/g)?.length, 2)

    // What somebody asks who has the bundle: from a job, as the user and as somebody else; by the numbers of a job that runs, from outside of it.
    const bundle = JSON.parse(readFileSync(path.join(set, "bundle.json"), "utf8")) as Bundle
    assert.deepEqual(
      bundle.nodes.map(({ node }) => node),
      ["n1"],
    )
    const head = JSON.parse(bundle.head) as { uid: number; expires: number; digests: string[]; set: string }
    const { fingerprint, key } = bundle.nodes[0]!
    const part = { head: bundle.head, sealed: bundle.sealed, fingerprint, key }
    const changed = (changes: object): object => ({ ...part, head: JSON.stringify({ ...head, ...changes }) })
    const ask = file("ask.mjs")
    writeFileSync(ask, readFileSync(path.join(packageRoot, "test", "support", "ask-node.mjs")))
    const asks = async (
      as: number,
      node: string,
      wanted: readonly (readonly [object, object, RegExp])[],
      start = "exec",
    ): Promise<void> => {
      const request = { set: head.set, digest: head.digests[0], node }
      const questions = wanted.map(([changes, bundled]) => ({
        request: { ...request, ...changes },
        bundle: bundled,
      }))
      writeFileSync(file("questions.json"), JSON.stringify(questions))
      const answers = path.join(newFolder("answers", as), "answers.json")
      const socket = path.join(keeper, node, "socket")
      const script = `#!/bin/sh\n${start} ${process.execPath} ${ask} ${socket} ${file("questions.json")} ${answers}\nexit $?\n`
      const { status, stderr } = await runProgram(
        ["sbatch", "--wait", "--array=0", "-p", "batch", "-w", node, "-D", "/", "-o", `${answers}.txt`],
        {
          as: "self",
          wrapper: ["setpriv", `--reuid=${as}`, `--regid=${as}`, "--clear-groups"],
          env: cluster.environment,
          input: script,
        },
      )
      assert.equal(
        status,
        0,
        `${stderr}${existsSync(`${answers}.txt`) ? readFileSync(`${answers}.txt`, "utf8") : ""}`,
      )
      const found = JSON.parse(readFileSync(answers, "utf8")) as { status: string; reason?: string }[]
      for (const [i, { status: outcome, reason = "" }] of found.entries())
        assert.match(`${outcome}: ${reason}`, wanted[i]![2])
    }
    await asks(user.id, "n1", [
      [{}, part, /^released/],
      [{ digest: "0".repeat(64) }, part, /refused: the bundle is not for that image/],
      [{ set: "another" }, part, /refused: the bundle is of another job set/],
      [{ node: "n2" }, part, /refused: this is n1/],
      [{ slurmJob: 999_999 }, part, /refused: job 999999 is not that element/],
      [{ publicKey: "AAAA" }, part, /later: the node could not decide/],
      [{}, changed({ expires: Date.now() - 1 }), /refused: the bundle was good until/],
      [{}, changed({ expires: head.expires + 1 }), /refused: the bundle does not open/],
      [{}, changed({ digests: [...head.digests, "0".repeat(64)] }), /refused: the bundle does not open/],
      [{}, { ...part, fingerprint: "0".repeat(64) }, /refused: the bundle is for another node's key/],
      [{}, { ...part, key: "" }, /refused: the bundle does not open/],
      [{}, { ...part, sealed: "" }, /refused: the bundle does not open/],
      [{}, { ...part, head: "{}" }, /refused: it is no request/],
    ])
    // What the job has started, such as a payload, is not the job.
    await asks(user.id, "n1", [[{}, part, /refused: process \d+ is not the job's own/]], "env")
    await asks(observerId, "n1", [
      [{}, part, /refused: the bundle is somebody else's/],
      [{}, changed({ uid: observerId }), /refused: the bundle does not open/],
    ])
    // A node that is none of the partition has the bundle, and no key to it.
    await asks(user.id, "n3", [[{}, part, /refused: the bundle is for another node's key/]])
    for (const secret of ["BEGIN", MARKER]) assert.doesNotMatch(logOf("n1"), new RegExp(secret))
  })

  it("B8: refuses a bundle that has expired, and `unlock` makes a new one", async () => {
    await cluster.slurm(["scontrol", "update", "partitionname=two", "state=down"])
    const { set } = await submit(
      configure("late.yaml", ", key_source: nodes, key_lifetime: 1", "[exec, cat, /data/marker]"),
    )
    const expires = (): number =>
      (
        JSON.parse((JSON.parse(readFileSync(path.join(set, "bundle.json"), "utf8")) as Bundle).head) as {
          expires: number
        }
      ).expires
    await waitFor("it has expired", () => Date.now() > expires())
    await cluster.slurm(["scontrol", "update", "partitionname=two", "state=up"])
    const refused = (await cluster.status(set)).get("one/task-00000")
    assert.deepEqual([refused?.state, refused?.exitCode], ["failed", 77])
    assert.match(refused?.reason ?? "", /the node refuses the key: the bundle was good until/)
    const former = expires()
    await cluster.ok(["batch", "unlock", "--password-file", passwordFile, set], { env })
    assert.ok(expires() > former)
    assert.equal(existsSync(path.join(set, "broker.json")), false)
  })

  it("waits for a node's service that is gone, or asks the broker where there is one", async () => {
    await stop("n1")
    const { set: either } = await submit(configure("either.yaml", "", "[exec, cat, /data/marker]"))
    const { set } = await submit(configure("wait.yaml", ", key_source: nodes", "[exec, cat, /data/marker]"))
    const given = (await cluster.status(either)).get("one/task-00000")
    assert.equal(given?.state, "done", given?.reason)
    assert.match(readFileSync(path.join(either, "log", "broker.log"), "utf8"), /"event":"released"/)
    const record = path.join(set, "status", "one", "task-00000.json")
    await waitFor(
      "it waits",
      () => existsSync(record) && readFileSync(record, "utf8").includes("nobody opens bundles on n1"),
    )
    await serve("n1")
    const done = (await cluster.status(set)).get("one/task-00000")
    assert.equal(done?.state, "done", done?.reason)
  })

  it("takes no key that others may read, and no certificate that others may have put there", async () => {
    const key = path.join(keeper, "n1.key")
    chmodSync(key, 0o640)
    const wrapper = ["setpriv", `--reuid=${KEEPER}`, `--regid=${KEEPER}`, "--clear-groups"]
    const open = await runProgram(
      [cli, "batch", "serve-node", "--key", key, "--socket", path.join(keeper, "n1", "other")],
      {
        as: "self",
        wrapper,
      },
    )
    chmodSync(key, 0o600)
    assert.equal(open.status, 22)
    assert.match(open.stderr, /n1\.key: others have a right to it: its mode has to be 0600/)
    const busy = await runProgram(
      [cli, "batch", "serve-node", "--key", key, "--socket", path.join(keeper, "n1", "socket")],
      {
        as: "self",
        wrapper,
      },
    )
    assert.match(busy.stderr, /n1\/socket: somebody listens there already/)
    chmodSync(certificates, 0o777)
    const own = configure("own.yaml", ", key_source: nodes", "[exec, echo]")
    const args = ["batch", "submit", "--password-file", passwordFile, own]
    const written = await cluster.run(args, { env })
    chmodSync(certificates, 0o755)
    assert.equal(written.status, 22)
    assert.match(written.stderr, /n1\.pem: others may put another certificate there/)
    // Without any, there is the broker; or nobody.
    const without = (name: string, settings: string): string => {
      const written = configure(name, settings, "[exec, echo]")
      writeFileSync(
        written,
        readFileSync(written, "utf8").replace(certificates, newFolder("no-certificates")),
      )
      return written
    }
    await submit(without("broker.yaml", ""))
    const nobody = await cluster.run([...args.slice(0, -1), without("nobody.yaml", ", key_source: nodes")], {
      env,
    })
    assert.equal(nobody.status, 22)
    assert.match(nobody.stderr, /there is no certificate of any node of the partition, as n1\.pem/)
  })
})
