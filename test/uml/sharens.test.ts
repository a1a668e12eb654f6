// Commands that share a container of the kernel engine: its loop device and mapping are there once, and go with the last of them,
// whoever is killed.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import { once } from "node:events"
import { setTimeout as sleep } from "node:timers/promises"
import { finish, startSifcrypt, type Result } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { processesBelow } from "../support/processes.ts"
import { seeded } from "../support/random.ts"
import { assertSettles, buildImage, kernelState, needsDeviceMapper, type KernelState } from "./guest.ts"

const random = seeded()
const kills = Number(process.env["SIFCRYPT_KILLS"] ?? 3)
/** A start takes about so long here. */
const startMs = 1500

/** A command that runs until its standard input ends. */
interface Waiting {
  readonly child: ChildProcess
  readonly result: Promise<Result>
}

describe("commands that share a container of the kernel engine", function () {
  this.timeout(120_000 + kills * 30_000)
  let image: string
  let state: KernelState

  const start = (): Waiting => {
    const child = startSifcrypt(
      [
        ...["exec", "--engine", "kernel", "--pem-path", testKeys().privateKey, "--sharens", image],
        ...["sh", "-c", "echo here; exec cat"],
      ],
      { as: "self" },
    )
    return { child, result: finish(child, { holdInput: true, timeoutMs: 600_000 }) }
  }
  const isThere = async ({ child, result }: Waiting): Promise<void> => {
    assert.ok(child.stdout)
    await Promise.race([
      once(child.stdout, "data"),
      result.then(({ stderr }) => {
        throw new Error(`it has ended: ${stderr}`)
      }),
    ])
  }
  const waiting = async (): Promise<Waiting> => {
    const one = start()
    await isThere(one)
    return one
  }
  const end = async ({ child, result }: Waiting): Promise<Result> => {
    child.stdin?.end()
    return await result
  }
  const devices = (): readonly [number, number] => {
    const { loops, mappings } = kernelState()
    return [loops.length - state.loops.length, mappings.length - state.mappings.length]
  }

  before(async function () {
    needsDeviceMapper(this)
    image = await buildImage(["rsa"])
    state = kernelState()
  })

  it("has one loop device and one mapping, until the last of them ends", async () => {
    const first = await waiting()
    const others = await Promise.all([waiting(), waiting()])
    assert.deepEqual(devices(), [1, 1])
    assert.equal((await end(first)).text, "here\n")
    assert.deepEqual(devices(), [1, 1])
    for (const other of others) assert.equal((await end(other)).text, "here\n")
    await assertSettles(state)
  })

  it(`of which any may be killed at any moment, ${kills} times: the others run on, nothing is left`, async () => {
    let holder = await waiting()
    for (let round = 0; round < kills; round++) {
      const one = start()
      one.result.catch(() => undefined)
      if (random(2) === 0) await isThere(one)
      else await sleep(random(startMs))
      // The one that has started the container is killed as well.
      const isHolder = random(2) === 0
      const victims = processesBelow((isHolder ? holder : one).child.pid ?? 0)
      try {
        process.kill(victims[random(Math.max(1, victims.length))]?.pid ?? 0, "SIGKILL")
      } catch (error) {
        assert.equal((error as NodeJS.ErrnoException).code, "ESRCH")
      }
      const other = await waiting()
      assert.deepEqual(devices(), [1, 1], `round ${round}`)
      const held = await end(holder)
      if (!isHolder) assert.equal(held.text, "here\n", `round ${round}`)
      await end(one)
      holder = other
    }
    assert.equal((await end(holder)).text, "here\n")
    await assertSettles(state)
  })
})
