// SIGKILL of each of our processes at a random moment, with the kernel engine: the kernel takes everything back.
import assert from "node:assert/strict"
import { readdirSync, readFileSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import { open, unmount, type Image } from "../../lib/index.ts"
import { finish, startSifcrypt } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { seeded } from "../support/random.ts"
import {
  assertSettles,
  cheapImageForBoth,
  imageForBoth,
  kernelState,
  mountFacts,
  mountPoint,
  needsDeviceMapper,
  withKey,
  type KernelState,
} from "./guest.ts"

const random = seeded()

/** How often each process is killed. */
const kills = Number(process.env["SIFCRYPT_KILLS"] ?? 3)
/** From the start of a starter to its running payload takes about so long here. */
const startMs = 1500

interface Process {
  readonly pid: number
  readonly parent: number
  readonly name: string
}

function processes(): Process[] {
  return readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return []
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, "latin1")
      const end = stat.lastIndexOf(")")
      const parent = Number(stat.slice(end + 2).split(" ")[1])
      return [{ pid: Number(pid), parent, name: stat.slice(stat.indexOf("(") + 1, end) }]
    } catch {
      return [] // it has ended meanwhile
    }
  })
}

/** Started by `ancestor`, directly: the names lead down from it. */
function descendant(ancestor: number, names: readonly string[]): number | undefined {
  const all = processes()
  let pid: number | undefined = ancestor
  for (const name of names)
    pid = all.find((process) => process.parent === pid && process.name.startsWith(name))?.pid
  return pid
}

async function waitFor<T>(what: string, look: () => T | undefined): Promise<T> {
  const end = Date.now() + 30_000
  for (;;) {
    const found = look()
    if (found !== undefined) return found
    if (Date.now() > end) throw new Error(`${what} did not come`)
    await sleep(2)
  }
}

function killProcess(pid: number): void {
  try {
    process.kill(pid, "SIGKILL")
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, "ESRCH")
  }
}

const starter = "sifcrypt-starte" // the kernel keeps 15 characters of a name

describe("killed with the kernel engine", function () {
  this.timeout(120_000 + kills * 10_000)
  let image: string
  let opened: Image
  let state: KernelState

  before(async function () {
    needsDeviceMapper(this)
    image = await cheapImageForBoth()
    opened = await open(image, withKey)
    state = kernelState()
  })
  after(async () => {
    await opened.close()
  })

  for (const [what, names] of [
    ["the starter", [starter]],
    ["its child", [starter, starter]],
    ["crun", [starter, starter, "crun"]],
  ] as const)
    it(`${what}, ${kills} times: nothing is left`, async () => {
      for (let i = 0; i < kills; i++) {
        const delay = random(Math.ceil(startMs))
        const ended = opened
          .exec(["/bin/sleep", "1000"], { engine: "kernel" })
          .then((running) => running.exited)
          .then(
            ({ exitCode }) => `status ${exitCode}`,
            (error: unknown) => String(error),
          )
        const pid = await waitFor(what, () => descendant(process.pid, names))
        await sleep(delay)
        killProcess(pid)
        try {
          await assertSettles(state)
        } catch (cause) {
          throw new Error(`killed after ${delay} ms, something is left`, { cause })
        }
        assert.match(await ended, /status (?:137|255)|killed|ended|SIGKILL/)
      }
    })

  it(`the launcher, ${kills} times: nothing is left`, async () => {
    for (let i = 0; i < kills; i++) {
      const delay = random(Math.ceil(startMs))
      const launcher = startSifcrypt(
        ["exec", "--engine", "kernel", "--pem-path", testKeys().privateKey, image, "/bin/sleep", "1000"],
        { as: "self" },
      )
      const done = finish(launcher)
      await waitFor("the starter", () => descendant(launcher.pid ?? 0, [starter]))
      await sleep(delay)
      launcher.kill("SIGKILL")
      assert.equal((await done).signal, "SIGKILL")
      try {
        await assertSettles(state)
      } catch (cause) {
        throw new Error(`killed after ${delay} ms, something is left`, { cause })
      }
    }
  })

  it(`the starter of a mount, ${kills} times: what was not reported does not stay`, async () => {
    for (let i = 0; i < kills; i++) {
      const point = mountPoint()
      const delay = random(300)
      const ended = opened.mount(point, { engine: "kernel", detached: true }).then(
        () => true,
        () => false,
      )
      const pid = await waitFor("the starter", () => descendant(process.pid, [starter]))
      await sleep(delay)
      killProcess(pid)
      // Reported, it may be mounted; not reported, it may not stay.
      if ((await ended) && mountFacts(point) !== undefined) await unmount(point).catch(() => undefined)
      await assertSettles(state)
    }
  })

  it("with SIGTERM while Argon2 runs: the launcher undoes and exits with 143", async () => {
    const launcher = startSifcrypt(
      [
        ...["exec", "--engine", "kernel", "--passphrase-file", testKeys().passphraseFile],
        ...[await imageForBoth(), "/bin/sleep", "1000"],
      ],
      { as: "self" },
    )
    const done = finish(launcher)
    await waitFor("Argon2's memory", () => {
      const status = readFileSync(`/proc/${String(launcher.pid)}/status`, "utf8")
      const resident = Number(/^VmRSS:\s*(\d+) kB$/m.exec(status)?.[1] ?? 0)
      return resident > 300 * 1024 ? resident : undefined
    })
    launcher.kill("SIGTERM")
    const { status, signal, stderr } = await done
    assert.deepEqual([status, signal], [143, null], stderr)
    await assertSettles(state)
  })
})
