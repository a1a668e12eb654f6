import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { appendFileSync, rmSync, writeFileSync } from "node:fs"
import path from "node:path"
import { exchange } from "../../../lib/batch/authenticators.ts"
import { batch } from "../../../lib/index.ts"
import { JobSet, type Manifest } from "../../../lib/batch/job-set.ts"
import { newPair, parseRequest, seal, unseal } from "../../../lib/batch/key-exchange.ts"
import { takeAnswer } from "../../../lib/batch/task-image.ts"
import { newFolder } from "../../support/scratch.ts"

const task = (id: string): object => ({
  id,
  image: 0,
  action: "exec",
  argv: ["true"],
  environment: {},
  binds: [],
})
const manifest = {
  version: 1,
  id: "set",
  uid: 0,
  created: 0,
  cwd: "/",
  cluster: {
    ...{ cacheLimit: 0, keyWait: 1, authenticator: "munge", hasBroker: true, concurrentSourceDownloads: 1 },
    registry: {},
  },
  images: [{ name: "a", source: "/a", digest: "0".repeat(64), size: 1, encrypted: true }],
  jobs: ["one", "two"].map((id) => ({
    ...{ id, maxTaskRetries: 0, noRetryOn: [] },
    groups: [{ tasks: [task("same"), task(`of-${id}`)], dependsOn: [], resources: { time: 60 } }],
  })),
} as unknown as Manifest

describe("a job set", () => {
  it("finds a task by its name, where that says which", async () => {
    const { folder } = await JobSet.create(newFolder("sets"), manifest)
    await using set = await batch.open(folder)
    assert.deepEqual(set.tasks, ["one/same", "one/of-one", "two/same", "two/of-two"])
    assert.equal(await set.log("of-one"), undefined)
    assert.equal(await set.log("two/same"), undefined)
    for (const name of ["same", "none", "../one/same"])
      await assert.rejects(set.log(name), { code: "ERR_BATCH_TASK" })
  })

  it("tells by one look what was started, and what was said of that", async () => {
    const set = await JobSet.create(newFolder("sets"), manifest)
    assert.deepEqual(await set.started(), new Set())
    writeFileSync(set.path("log", "broker.log"), "{}\n")
    writeFileSync(set.path("log", "7_0.txt"), "no manifest\n")
    writeFileSync(set.path("log", "7_1.txt"), "x".repeat((1 << 20) + 1))
    assert.deepEqual(await set.started(), new Set(["7_0", "7_1"]))
    assert.deepEqual([await set.said("7_0"), await set.said("7_1")], ["no manifest\n", ""])
    await assert.rejects(set.said("7_2"), { code: "ERR_BATCH_SET" })
  })

  it("is not taken where its manifest is another one, or damaged", async () => {
    const { folder, manifestDigest } = await JobSet.create(newFolder("sets"), manifest)
    await JobSet.open(folder, manifestDigest)
    appendFileSync(`${folder}/manifest.json`, " ")
    await assert.rejects(JobSet.open(folder, manifestDigest), /not the manifest that was submitted/)
    await JobSet.open(folder)
    appendFileSync(`${folder}/manifest.json`, "x")
    await assert.rejects(JobSet.open(folder), { code: "ERR_BATCH_SET", message: /manifest\.json: damaged/ })
    await assert.rejects(JobSet.create(newFolder("sets"), { ...manifest, id: "a/b" }), {
      code: "ERR_BATCH_SET",
    })
  })
})

describe("a broker", () => {
  it("goes on where nothing can be written down any more, and gives nothing then", async () => {
    const home = newFolder("broker-home")
    const ssh = {
      ...manifest,
      // Nothing has to be sent to it.
      images: [],
      cluster: { ...manifest.cluster, authenticator: "ssh" },
    } as unknown as Manifest
    const set = await JobSet.create(newFolder("sets"), ssh)
    const file = (name: string): string =>
      JSON.stringify(path.join(import.meta.dirname, "../../../lib", name))
    const script = `const { batch } = await import(${file("index.ts")})
      process.once("SIGTERM", () => process.exit(3))
      await batch.serve(${JSON.stringify(set.folder)}, { onReady: () => process.stdout.write("ready") })`
    const broker = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "inherit"],
      env: { ...process.env, HOME: home },
    })
    const ended = once(broker, "exit")
    await once(broker.stdout, "data")
    rmSync(set.path("log"), { recursive: true })
    const { ssh: place } = (await set.broker()) ?? {}
    for (let i = 0; i < 2; i++)
      assert.deepEqual(JSON.parse(await exchange({ path: place?.socket ?? "" }, "hello")), {
        status: "later",
        reason: "the broker could not decide",
      })
    broker.kill("SIGTERM")
    assert.deepEqual(await ended, [3, null])
  })
})

describe("a sealed key", () => {
  const secret = Buffer.from("what opens an image")
  const request = Buffer.from("who asks")
  const [task, broker, other] = [newPair(), newPair(), newPair()]
  const base64 = (key: Buffer): string => key.toString("base64")
  const sealed = seal(secret, broker, base64(task.publicKey), request)

  it("opens for whom and for what it was asked, from the broker of the job set", () => {
    assert.deepEqual(unseal(sealed, task, base64(broker.publicKey), request), secret)
    assert.equal(unseal(sealed, other, base64(broker.publicKey), request), undefined)
    assert.equal(unseal(sealed, task, base64(other.publicKey), request), undefined)
    assert.equal(unseal(sealed, task, base64(broker.publicKey), Buffer.from("somebody else")), undefined)
    for (let at = 0; at < sealed.length; at++) {
      const changed = Buffer.from(sealed)
      changed.writeUInt8(changed.readUInt8(at) ^ 1, at)
      assert.equal(unseal(changed, task, base64(broker.publicKey), request), undefined)
    }
    for (const size of [0, 27])
      assert.equal(unseal(sealed.subarray(0, size), task, base64(broker.publicKey), request), undefined)
  })

  it("comes from the broker alone, and so does a refusal: what others say decides nothing", () => {
    const refusal = seal(Buffer.from("no"), broker, base64(task.publicKey), request, "refusal")
    const taken = (status: string, bytes: Buffer, more: object = {}): unknown =>
      takeAnswer(
        JSON.stringify({ status, sealed: base64(bytes), ...more }),
        task,
        base64(broker.publicKey),
        request,
      )
    assert.deepEqual(taken("released", sealed), secret)
    assert.throws(() => taken("refused", refusal), { message: /refuses the key: no$/, status: 77 })
    const reason = "it was asked before"
    for (const status of ["refused", "later"]) {
      assert.equal(taken(status, Buffer.alloc(0), { reason }), reason)
      assert.equal(taken(status, sealed, { reason }), reason)
    }
    for (const [status, bytes] of [
      ["released", refusal],
      ["refused", sealed],
      ["refused", seal(Buffer.from("no"), other, base64(task.publicKey), request, "refusal")],
      ["other", sealed],
    ] as const)
      assert.equal(taken(status, bytes), "what answers is not the broker")
  })

  it("is not made for a key that is none, nor for a point of small order", () => {
    assert.throws(() => seal(secret, broker, base64(Buffer.alloc(31)), request), RangeError)
    assert.throws(() => seal(secret, broker, base64(Buffer.alloc(32)), request))
  })

  it("is asked for with what is expected, and nothing else", () => {
    const good = {
      version: 1,
      set: "s",
      slurmJob: 1,
      array: 1,
      element: 0,
      node: "n",
      digest: "d",
      publicKey: "k",
      nonce: "n",
    }
    const parse = (value: unknown): unknown => parseRequest(Buffer.from(JSON.stringify(value)))
    assert.deepEqual(parse(good), good)
    for (const bad of [
      null,
      [],
      { ...good, more: 1 },
      { ...good, array: "1" },
      { ...good, element: -1 },
      { ...good, node: undefined },
    ])
      assert.throws(() => parse(bad))
    assert.throws(() => parseRequest(Buffer.alloc(5000, " ")), RangeError)
    assert.throws(() => parseRequest(Buffer.from("{")))
  })
})
