// The scratch of a build as root: a throw-away LUKS2 volume through the kernel's dm-crypt.
import assert from "node:assert/strict"
import { type ChildProcess, execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { finish, startSifcrypt } from "../support/cli.ts"
import { processesBelow, waitFor } from "../support/processes.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { makeRootTree } from "../support/trees.ts"
import { assertSettles, kernelState, needsDeviceMapper, type KernelState } from "./guest.ts"

const random = seeded()

/** How often each process is killed. */
const kills = Number(process.env["SIFCRYPT_KILLS"] ?? 1)

describe("the scratch of a build with the kernel engine", function () {
  this.timeout(240_000)
  let state: KernelState
  let place: string
  let tmpFolder: string
  const at = (name: string): string => path.join(place, name)
  const marker = "marker-of-a-build-0123456789abcdef"

  before(function () {
    needsDeviceMapper(this)
    place = newFolder("definition")
    tmpFolder = newFolder("tmp")
    execFileSync("cp", ["-a", makeRootTree(), at("base")])
    for (const applet of ["dd", "sync", "grep", "seq"]) symlinkSync("busybox", at(`base/bin/${applet}`))
    state = kernelState()
  })
  afterEach(async () => {
    await assertSettles(state)
    assert.deepEqual(readdirSync(tmpFolder), [])
  })

  const base = "Bootstrap: localimage\nFrom: base\n\n%post\n"
  const start = (name: string, script: string, flags: readonly string[]): ChildProcess => {
    writeFileSync(at(`${name}.def`), base + script)
    const argv = ["build", "--tmpdir", tmpFolder, ...flags, `${name}.sif`, `${name}.def`]
    return startSifcrypt(argv, { as: "self", cwd: place, env: { SOURCE_DATE_EPOCH: "1700000000" } })
  }
  const script = `for i in $(seq 500); do echo ${marker}; done > /etc/marker
dd if=/dev/zero of=/data/large bs=1M count=48 2>/dev/null
`

  it("holds what does not fit into memory, in a file that shows nothing plain, and is what auto chooses", async () => {
    const more =
      "grep ' / ' /proc/self/mounts\nsync\necho ready\nwhile ! grep -q go /etc/continue; do sleep 0.1; done\n"
    writeFileSync(at("continue"), "")
    const flags = ["--scratch-memory", "16m", "--bind", `${at("continue")}:/etc/continue`]
    const child = start("large", script + more, flags)
    let printed = ""
    child.stdout?.on("data", (text: Buffer) => (printed += text.toString()))
    await waitFor("the script", () => printed.includes("ready"), 60_000)
    assert.match(printed, /^\/dev\/mapper\/sifcrypt-\w+ \/ ext4 rw/m)
    assert.deepEqual(readdirSync(tmpFolder), [], "its file has no name")
    const [device = ""] = kernelState().loops.filter((loop) => loop.includes(tmpFolder))
    const raw = execFileSync(
      "dd",
      [`if=/dev/${device.split(" ")[0] ?? ""}`, "bs=1M", "count=64", "status=none"],
      {
        maxBuffer: 1 << 28,
      },
    )
    assert.ok(!raw.equals(Buffer.alloc(raw.length)), "something was written")
    for (const text of [marker.slice(0, 12), "LUKS"]) assert.ok(!raw.includes(text), `nothing of ${text}`)
    writeFileSync(at("continue"), "go\n")
    const { status, stderr } = await finish(child)
    assert.equal(status, 0, stderr)
  })

  it("gives the image that memory gives", async () => {
    const digests: string[] = []
    for (const kind of ["kernel", "memory"]) {
      const { status, stderr } = await finish(start("same", script, ["-F", "--scratch", kind]))
      assert.equal(status, 0, stderr)
      digests.push(
        createHash("sha256")
          .update(readFileSync(at("same.sif")))
          .digest("hex"),
      )
    }
    assert.equal(digests[0], digests[1])
  })

  it(`leaves nothing when one of its processes is killed, ${kills} times each`, async () => {
    // From the command down: main, what makes the namespaces and the volume, and two below that the worker.
    for (const depth of [1, 2, 4])
      for (let round = 0; round < kills; round++) {
        const child = start("killed", "sleep 100\n", [])
        const victim = await waitFor(
          `process ${depth}`,
          () => {
            let pid: number | undefined = child.pid
            for (let step = 0; step < depth; step++) {
              const all = processesBelow(pid ?? 0)
              pid = all.find(({ parent, command }) => parent === pid && !command.includes("esbuild"))?.pid
              if (pid === undefined) return undefined
            }
            return pid
          },
          60_000,
        )
        const delay = random(1500)
        await sleep(delay)
        try {
          process.kill(victim, "SIGKILL")
        } catch (error) {
          assert.equal((error as NodeJS.ErrnoException).code, "ESRCH")
        }
        // What was killed may have been a helper that had done its work.
        const timer = setTimeout(() => child.kill("SIGKILL"), 2000)
        const { status } = await finish(child)
        clearTimeout(timer)
        assert.notEqual(status, 0)
        try {
          await assertSettles(state, 15_000)
        } catch (cause) {
          throw new Error(`process ${depth} killed after ${delay} ms, something is left`, { cause })
        }
        assert.deepEqual(readdirSync(tmpFolder), [])
      }
  })
})
