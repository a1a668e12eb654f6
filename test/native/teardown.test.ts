// The addon in worker threads and processes that end while it works. In soak some hundred times, and AddressSanitizer watches it.
import assert from "node:assert/strict"
import { mkdirSync, rmSync } from "node:fs"
import path from "node:path"
import { pathToFileURL } from "node:url"
import { packageRoot, runProgram, sifcryptOk, userId, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { sanitizedPackage } from "../support/sanitized.ts"
import { newFolder } from "../support/scratch.ts"
import { isSoak, seed, times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"

const rounds = times("SIFCRYPT_TEARDOWNS", 400, 8)
const exits = times("SIFCRYPT_EXITS", 20, 1)
/** Of a thread's or a process' work at most, before it is ended. */
const MOST_MS = 500

describe("the addon in what ends", function () {
  this.timeout(isSoak ? 3_600_000 : 120_000)
  const keys = testKeys()
  const folder = newFolder("teardown", userId)
  const image = path.join(folder, "image.sif")
  const tree = makeRootTree()
  const written = path.join(folder, "written")
  const opened = `await open(${JSON.stringify(image)}, { unlock: [${JSON.stringify({ key: { file: keys.privateKey } })}] })`
  let api = ""
  let run: (source: string) => Promise<Result>

  before(async () => {
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
    const { root, env } = isSoak ? sanitizedPackage() : { root: packageRoot, env: {} }
    api = JSON.stringify(pathToFileURL(path.join(root, "dist", "index.js")).href)
    run = async (source) =>
      await runProgram([process.execPath, "--no-warnings", "--input-type=module", "--eval", source], {
        // Not through setpriv, which is not to be watched.
        as: "self",
        env,
        timeoutMs: 3_000_000,
      })
  })
  beforeEach(() => {
    mkdirSync(written)
  })
  afterEach(() => {
    rmSync(written, { recursive: true, force: true })
  })

  /** Everything at once, again and again; `begun` says that it goes on. */
  const work = (begun: string): string => `
    import { open, build } from ${api}
    import { threadId, parentPort } from "node:worker_threads"
    for (let times = 0; ; times++) {
      const image = ${opened}
      const place = ${JSON.stringify(`${written}/`)} + threadId + "-"
      const all = Promise.all([
        image.list("/", { recursive: true }),
        image.readFile("/bin/busybox"),
        image.extract(place + times),
        build({ output: place + "image.sif", source: ${JSON.stringify(tree)}, force: true }),
      ])
      if (times === 0) ${begun}
      await all
    }`

  it("works in several worker threads at once", async () => {
    const result = await run(
      `import { Worker } from "node:worker_threads"
       const code = ${JSON.stringify(`import { parentPort } from "node:worker_threads"
         import { open } from ${api}
         const image = ${opened}
         parentPort.postMessage((await image.readFile("/data/hello")).toString())
         await image.close()`)}
       const run = () => new Promise((resolve, reject) => {
         const worker = new Worker(new URL("data:text/javascript," + encodeURIComponent(code)))
         worker.once("message", resolve)
         worker.once("error", reject)
       })
       console.log(JSON.stringify(await Promise.all([run(), run(), run(), run()])))`,
    )
    assert.equal(result.status, 0, result.stderr)
    assert.deepEqual(JSON.parse(result.text), Array(4).fill("hello\n"))
  })

  it("survives worker threads that are ended in the middle of work", async () => {
    const result = await run(
      `import { Worker } from "node:worker_threads"
       import { setTimeout as sleep } from "node:timers/promises"
       const code = ${JSON.stringify(work('parentPort.postMessage("begun")'))}
       let state = ${seed}
       const below = (end) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) % end
       let started = 0, worked = 0
       const end = async () => {
         while (started < ${rounds}) {
           const worker = new Worker(new URL("data:text/javascript," + encodeURIComponent(code)))
           const failed = new Promise((_, reject) => worker.once("error", reject))
           const begun = new Promise((resolve) => worker.once("message", resolve)).then(() => void worked++)
           // One in four while it loads.
           if (started++ % 4 > 0) await Promise.race([begun, failed])
           await Promise.race([sleep(below(${MOST_MS})), failed])
           await worker.terminate()
         }
       }
       await Promise.all([end(), end()])
       console.log(worked >= ${rounds} / 2 ? "done" : worked)`,
    )
    assert.equal(result.stderr, "", `seed ${seed}`)
    assert.equal(result.signal, null)
    assert.equal(result.status, 0)
    assert.equal(result.text, "done\n")
  })

  it("lets the process end with images open and work under way", async () => {
    for (let round = 0; round < exits; round++)
      for (const ending of [
        "process.exit(3)",
        "setImmediate(() => process.exit(3))",
        `setTimeout(() => process.exit(3), ${(seed * (round + 1)) % MOST_MS})`,
      ]) {
        const result = await run(work(`{ ${ending} }`))
        assert.equal(result.stderr, "", ending)
        assert.equal(result.status, 3, `${ending}: ${String(result.signal)}`)
        rmSync(written, { recursive: true })
        mkdirSync(written)
      }
  })

  it("lets the process end by itself with an image open", async () => {
    const result = await run(
      `import { open } from ${api}
       const image = ${opened}
       await image.list("/")
       void image.readFile("/bin/busybox").catch(() => undefined)
       process.exitCode = 3`,
    )
    assert.equal(result.stderr, "")
    assert.equal(result.status, 3, String(result.signal))
  })

  it("forgets an image that is closed while it is read", async () => {
    const result = await run(
      `import { open } from ${api}
       for (let i = 0; i < 20; i++) {
         const image = ${opened}
         await image.list("/")
         const reads = [1, 2, 3].map(() => image.readFile("/bin/busybox").then(() => "read", () => "refused"))
         await image.close()
         for (const end of await Promise.all(reads)) if (end !== "read" && end !== "refused") throw new Error(end)
         await image.readFile("/data/hello").then(() => { throw new Error("read after close") }, () => undefined)
       }
       console.log("done")`,
    )
    assert.equal(result.text, "done\n", result.stderr)
    assert.equal(result.status, 0)
  })
})
