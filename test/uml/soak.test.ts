// A3 and A13 with the kernel engine, as root: runs in a row, random processes killed at random moments, one image mounted many
// times at once. `scripts/test.sh soak` does it as often as is promised.
import assert from "node:assert/strict"
import { mkdirSync, readdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import {
  createOverlay,
  listInstances,
  open,
  unmount,
  type ExecOptions,
  type Image,
  type OpenOptions,
} from "../../lib/index.ts"
import { finish, startSifcrypt } from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { Chance, seed, times } from "../support/soak.ts"
import {
  buildImage,
  cheapImageForBoth,
  collect,
  kernelState,
  mountFacts,
  mountPoint,
  needsDeviceMapper,
  output,
  withKey,
  type KernelState,
} from "./guest.ts"

const runs = times("SIFCRYPT_RUNS", 500, 11)
const kills = times("SIFCRYPT_KILLS", 200, 11)
const parallel = times("SIFCRYPT_PARALLEL", 200, 15)
const settleMs = 5000
/** To look for what one kind does wrong. */
const only = process.env["SIFCRYPT_KIND"]
const engine = "kernel"

describe("A3: with the kernel engine, again and again", function () {
  this.timeout(60_000 + (runs + kills + parallel) * 20_000)

  interface Kind {
    readonly image: () => Image
    readonly options: ExecOptions
  }

  let encrypted: string
  let withRsa: Image
  let withWord: Image
  let plain: Image
  let point: string
  let kinds: Readonly<Record<string, Kind>>
  const folder = newFolder("soak")
  const at = (name: string): string => path.join(folder, name)
  const instance = "soak"

  before(async function () {
    needsDeviceMapper(this)
    encrypted = await cheapImageForBoth()
    const word: OpenOptions = { unlock: [{ passphrase: { bytes: Buffer.from(passphrase) } }] }
    withRsa = await open(encrypted, withKey)
    withWord = await open(encrypted, word)
    plain = await open(await buildImage([]))
    point = mountPoint()
    mkdirSync(at("upper"))
    const added = newFolder("added")
    writeFileSync(path.join(added, "added"), "added\n")
    output("mksquashfs", [added, at("overlay.squashfs"), "-quiet", "-noappend"])
    await createOverlay({ output: at("overlay.img"), sparse: true })
    const credentials = [{ key: { file: testKeys().publicKey } }]
    await createOverlay({ output: at("overlay.sif"), encrypt: true, recipients: credentials })
    const image = (): Image => withRsa
    kinds = {
      "RSA key": { image, options: {} },
      passphrase: { image: () => withWord, options: {} },
      "plain image": { image: () => plain, options: {} },
      "PID namespace": { image, options: { containAll: true } },
      "overlay in memory": { image, options: { writableTmpfs: true } },
      "overlay, folder": { image, options: { overlay: [at("upper")], plainOverlay: true } },
      "overlay, ext3": { image, options: { overlay: [at("overlay.img")], plainOverlay: true } },
      "overlay, squashfs": {
        image,
        options: { overlay: [`${at("overlay.squashfs")}:ro`], plainOverlay: true },
      },
      "overlay, encrypted": {
        image,
        options: {
          overlay: [at("overlay.sif")],
          overlayUnlock: [{ key: { file: testKeys().privateKey } }],
        },
      },
    }
    // Made once, and stay: the folder of instances, and the file of locks.
    await listInstances()
    await using running = await plain.exec(["/bin/cat", "/data/hello"], {
      engine,
      overlay: [at("overlay.img")],
    })
    assert.deepEqual(await running.exited, { exitCode: 0 })
  })
  after(async () => {
    for (const image of [withRsa, withWord, plain]) await image.close()
  })

  /** What must be as it was: what the kernel has, and names of files where anything could be left. */
  interface State extends KernelState {
    readonly files: readonly string[]
  }

  function state(): State {
    const files = ["/run", "/dev/shm", folder].flatMap((root) =>
      readdirSync(root, { recursive: true, encoding: "utf8" })
        .map((name) => path.join(root, name))
        // What an overlay keeps is its own affair; the sockets of the modules' folder are not ours.
        .filter((name) => !name.startsWith(at("upper/")) && !name.startsWith("/run/uml-")),
    )
    return { ...kernelState(), files: [...files, ...readdirSync("/tmp")].sort() }
  }

  async function assertSettles(before: State, what: string): Promise<void> {
    const end = Date.now() + settleMs
    for (;;) {
      const now = state()
      try {
        assert.deepEqual(now, before, `${what}, seed ${seed}: left after ${settleMs} ms`)
        return
      } catch (error) {
        if (Date.now() > end) throw error
      }
      await sleep(20)
    }
  }

  it(`${runs} runs in a row leave nothing`, async () => {
    const before = state()
    const uses: readonly (readonly [string, () => Promise<void>])[] = [
      ...Object.entries(kinds).map(([kind, { image, options }]): readonly [string, () => Promise<void>] => [
        kind,
        async () => {
          await using running = await image().exec(["/bin/cat", "/data/hello"], { ...options, engine })
          assert.equal(await collect(running.stdout), "hello\n")
          assert.deepEqual(await running.exited, { exitCode: 0 })
        },
      ]),
      [
        "mount",
        async () => {
          await withRsa.mount(point, { engine, detached: true })
          assert.equal(output("cat", [path.join(point, "data", "hello")]), "hello\n")
          await unmount(point)
        },
      ],
      [
        "instance",
        async () => {
          const started = await withRsa.startInstance(instance, [], { engine })
          const running = await started.exec(["/bin/cat", "/data/hello"])
          assert.equal(await collect(running.stdout), "hello\n")
          assert.deepEqual(await running.exited, { exitCode: 0 })
          await started.stop()
        },
      ],
    ]
    for (let i = 0; i < runs; i++) {
      const [kind, use] = uses[i % uses.length] ?? assert.fail()
      await use()
      await assertSettles(before, `run ${i + 1}, ${kind}`)
    }
  })

  it(`${kills} kills of a random process at a random moment leave nothing, seed ${seed}`, async () => {
    const chance = new Chance()
    const before = state()
    const known = new Set(before.processes)
    const victims = new Map<string, number>()
    let wentOn = 0

    async function killOne(over: () => boolean, upTo: number): Promise<string | undefined> {
      await sleep(chance.below(upTo))
      while (!over()) {
        // What the kernel starts itself is not ours.
        const all = kernelState().processes.filter(
          (one) => !known.has(one) && !one.includes("/sbin/modprobe "),
        )
        if (all.length === 0) {
          await sleep(2)
          continue
        }
        const victim = chance.pick(all)
        try {
          process.kill(Number(victim.split(" ")[0]), "SIGKILL")
        } catch {
          continue // it was faster
        }
        return victim
      }
      return undefined
    }

    for (let i = 0; i < kills; i++) {
      // A program takes long to start here, so the command itself is one of many.
      const kind = only ?? chance.pick([...Object.keys(kinds), "mount", "instance", "command"])
      let over = false
      let failed = false
      let stop = (): void => undefined
      const ending = (async (): Promise<unknown> => {
        try {
          if (kind === "mount") return await withRsa.mount(point, { engine, detached: true })
          if (kind === "instance") return await withRsa.startInstance(instance, [], { engine })
          if (kind === "command") {
            const flags = ["--engine", engine, "--pem-path", testKeys().privateKey]
            const command = ["exec", ...flags, encrypted, "/bin/sleep", "1000"]
            const child = startSifcrypt(command, { as: "self" })
            stop = () => child.kill("SIGTERM")
            return await finish(child, { timeoutMs: 120_000 })
          }
          const { image, options } = kinds[kind] ?? assert.fail()
          const running = await image().exec(["/bin/sleep", "1000"], { ...options, engine })
          stop = () => {
            running.kill("SIGTERM")
          }
          return await running.exited
        } catch (error) {
          failed = true
          return error
        } finally {
          over = true
        }
      })()
      const stays = kind === "instance"
      const victim = await killOne(
        // A mount by the kernel has no process; an instance outlives its start, if that succeeded.
        () => over && (!stays || failed),
        kind === "command" ? 4000 : 1200,
      )
      const name = victim?.split(/\s/)[1] ?? "none"
      victims.set(name, (victims.get(name) ?? 0) + 1)
      if (kind === "mount" || stays) await ending
      if (kind === "mount" && mountFacts(point) !== undefined) await unmount(point)
      if (stays) {
        for (const one of await listInstances()) await one.stop({ timeoutMs: 0 })
        await listInstances()
      }
      const what = `kill ${i + 1}, ${kind}, of ${victim ?? "nothing"}`
      // What only waits for something to go wrong is not missed when it dies: the run goes on, and ends as ever.
      await assertSettles(before, what).catch(async (error: unknown) => {
        if (over) throw error
        wentOn++
        stop()
        await assertSettles(before, what)
      })
      await ending
    }
    console.log(
      `        killed: ${[...victims]
        .sort(([, a], [, b]) => b - a)
        .map(([name, count]) => `${name} ${count}`)
        .join(", ")}; ${wentOn} runs went on`,
    )
  })

  it(`A13: ${parallel} runs of one image at once`, async () => {
    const before = state()
    const images = await Promise.all(Array.from({ length: parallel }, () => open(encrypted, withKey)))
    const running = await Promise.all(
      images.map((one) => one.exec(["/bin/sh", "-c", "read line; cat /data/hello"], { engine })),
    )
    const { loops, mappings } = kernelState()
    assert.deepEqual([mappings.length, loops.length], [parallel, parallel])
    const outputs = running.map((one) => collect(one.stdout))
    for (const one of running) one.stdin?.end("go\n")
    for (const text of outputs) assert.equal(await text, "hello\n")
    for (const one of running) assert.deepEqual(await one.exited, { exitCode: 0 })
    await Promise.all(images.map((one) => one.close()))
    await assertSettles(before, `${parallel} runs at once`)
  })

  it(`A13: ${parallel} mounts of one image at once`, async () => {
    const points = Array.from({ length: parallel }, mountPoint)
    const before = state()
    const images = await Promise.all(points.map(() => open(encrypted, withKey)))
    await Promise.all(
      images.map((one, index) => one.mount(points[index] ?? assert.fail(), { engine, detached: true })),
    )
    const { mappings, loops } = kernelState()
    assert.deepEqual([mappings.length, loops.length], [parallel, parallel])
    for (const one of points) assert.equal(mountFacts(one)?.type, "squashfs")
    await Promise.all(points.map((one) => unmount(one)))
    await Promise.all(images.map((one) => one.close()))
    await assertSettles(before, `${parallel} mounts at once`)
  })
})
