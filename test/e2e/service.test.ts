// Services: they are started again, asked whether they are well, told how to end; what they write has a limit; and what has become of
// them is known until somebody removes it.
import assert from "node:assert/strict"
import { once } from "node:events"
import { chownSync, mkdirSync, readdirSync, truncateSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  finish,
  idOf,
  isRoot,
  packageRoot,
  runProgram,
  sifcryptOk,
  startSifcrypt,
  type As,
  type CommandOptions,
} from "../support/cli.ts"
import { noneOfGroup, processesOfGroup } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

let group = 79_000

interface Listed {
  readonly state: string
  readonly health?: string
  readonly exitCode?: number
  readonly failure?: string
  readonly restarts: number
}

describe("services", () => {
  const tree = makeRootTree()
  mkdirSync(path.join(tree, ".singularity.d"))
  writeFileSync(path.join(tree, ".singularity.d", "runscript"), '#!/bin/sh\nexec "$@"\n', { mode: 0o755 })

  before(function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "of an ordinary user" : "of root", () => {
      const folder = newFolder(`service-${as}`, idOf(as))
      const runtime = path.join(folder, "runtime")
      const image = path.join(folder, "image.sif")
      const state = path.join(runtime, "sifcrypt", "instances")
      // Root's are in /run, which may be another's on the machine that runs this.
      const wrapper = [
        ...["unshare", "-m", "--propagation", "private", "sh", "-c"],
        ...[
          `umask 077; mkdir -p ${state} /run/sifcrypt && mount --bind ${path.dirname(state)} /run/sifcrypt && exec "$@"`,
          "sh",
        ],
      ]
      const options = (): CommandOptions => ({
        ...{ as, group, env: { XDG_RUNTIME_DIR: runtime } },
        ...(as === "self" ? { wrapper } : {}),
      })
      const command = async (...args: string[]): Promise<string> => (await sifcryptOk(args, options())).text
      const start = async (script: string, ...args: string[]): Promise<void> => {
        const chosen = ["--engine", "userspace", "--service", ...args]
        await command("instance", "run", ...chosen, image, "job", "sh", "-c", script)
      }
      const job = async (): Promise<Listed> => {
        const { instances } = JSON.parse(await command("instance", "list", "--ended", "--json", "job")) as {
          instances: Listed[]
        }
        assert.ok(instances[0])
        return instances[0]
      }
      const until = async (is: (found: Listed) => boolean): Promise<Listed> => {
        for (const end = Date.now() + 20_000; ;) {
          const found = await job()
          if (is(found)) return found
          if (Date.now() > end) assert.fail(JSON.stringify(found))
        }
      }
      const nothingRuns = async (): Promise<void> => {
        await noneOfGroup(group, "the end of all processes")
      }

      before(async () => {
        mkdirSync(runtime, { mode: 0o700 })
        mkdirSync(path.dirname(state), { mode: 0o700 })
        for (const made of [runtime, path.dirname(state)]) chownSync(made, idOf(as), idOf(as))
        await sifcryptOk(["build", image, tree], { as })
      })
      afterEach(() => {
        for (const { pid } of processesOfGroup(group))
          try {
            process.kill(pid, "SIGKILL")
          } catch {
            // It has ended meanwhile.
          }
        group++
      })

      it("end with what they run, and are known until they are removed", async () => {
        await start("echo done; exit 3")
        const { state: now, exitCode, restarts } = await until(({ state: is }) => is === "ended")
        assert.deepEqual([now, exitCode, restarts], ["ended", 3, 0])
        await nothingRuns()
        assert.equal(await command("instance", "logs", "job"), "done\n")
        await start("echo again", "--restart", "no")
        await until(({ state: is }) => is === "ended")
        assert.equal(await command("instance", "logs", "job"), "again\n")
        await command("instance", "rm", "job")
        assert.deepEqual(readdirSync(state), [])
      })

      it("are started again as their policy says, until somebody stops them", async () => {
        await start("echo run; exit 4", "--restart", "on-failure:2")
        const failed = await until(({ state: is }) => is === "ended")
        assert.deepEqual([failed.exitCode, failed.restarts], [4, 2])
        assert.equal(await command("instance", "logs", "job"), "run\nrun\nrun\n")
        await start("exit 0", "--restart", "on-failure")
        assert.equal((await until(({ state: is }) => is === "ended")).restarts, 0)
        const ending = 'trap "echo told; exit 7" QUIT; echo run; while :; do sleep 0.1; done'
        const written = async (text: string): Promise<void> => {
          while ((await command("instance", "logs", "job")) !== text)
            await new Promise((resolve) => setTimeout(resolve, 50))
        }
        await start(ending, "--restart", "always", "--stop-signal", "QUIT", "--label", "a=b")
        // The container goes, whoever kills it, and comes again.
        await written("run\n")
        const payload = processesOfGroup(group).find(({ command: line }) => line.includes("/crun --log="))
        assert.ok(payload)
        process.kill(payload.pid, "SIGKILL")
        await until(({ restarts, state: is }) => restarts === 1 && is === "running")
        await written("run\nrun\n")
        await command("instance", "stop", "job")
        assert.match(await command("instance", "logs", "job"), /^run\nrun\ntold\n$/)
        const stopped = await job()
        assert.deepEqual([stopped.state, stopped.exitCode, stopped.failure], ["ended", 7, undefined])
        await nothingRuns()
      })

      it("are asked whether they are well", async () => {
        const often = ["--health-interval", "0.05s", "--health-retries", "2", "--writable-tmpfs", "--contain"]
        await start("sleep 1000", "--health-cmd", "test -e /tmp/well", ...often)
        assert.equal((await job()).state, "running")
        await until(({ health }) => health === "unhealthy")
        await command("exec", "instance://job", "sh", "-c", "echo >/tmp/well")
        await until(({ health }) => health === "healthy")
        await command("instance", "stop", "-t", "0", "job")
        assert.equal((await job()).health, undefined)
        await start("sleep 1000", "--health-cmd", "sleep 1000", "--health-timeout", "0.1s", ...often)
        await until(({ health }) => health === "unhealthy")
        await command("instance", "stop", "-t", "0", "job")
        await nothingRuns()
      })

      it("what they write has a limit, and whoever follows it loses nothing", async () => {
        const lines = 2000
        const limits = ["--log-max-size", "4096", "--log-max-files", "100"]
        const script = `i=0; read go </tmp/go; while [ $i -lt ${lines} ]; do i=$((i+1)); echo line $i; done`
        const inside = ["--writable-tmpfs", "--contain"]
        await start(`busybox mkfifo /tmp/go; ${script}`, ...limits, ...inside)
        // Heard from the start: it may have ended before the next command has.
        const following = finish(startSifcrypt(["instance", "logs", "-f", "job"], options()))
        await command(
          "exec",
          "instance://job",
          "sh",
          "-c",
          "while ! [ -p /tmp/go ]; do sleep 0.01; done; echo go >/tmp/go",
        )
        const { text: followed } = await following
        const all = Array.from({ length: lines }, (_, at) => `line ${at + 1}\n`).join("")
        assert.equal(followed, all)
        assert.equal(await command("instance", "logs", "job"), all)
        assert.ok(readdirSync(state).includes("job.out.3"))
        await command("instance", "rm", "job")
        assert.deepEqual(readdirSync(state), [])
        const second = "busybox mkfifo /tmp/go; echo the first line; read go </tmp/go; echo new"
        await start(second, ...inside)
        const cut = startSifcrypt(["instance", "logs", "-f", "job"], options())
        assert.ok(cut.stdout)
        const [first] = (await once(cut.stdout, "data")) as [Buffer]
        assert.equal(first.toString(), "the first line\n")
        const rest = finish(cut)
        truncateSync(path.join(state, "job.out"), 0)
        await command("exec", "instance://job", "sh", "-c", "echo go >/tmp/go")
        assert.equal((await rest).text, "new\n")
        await nothingRuns()
      })

      it("files that are given along are in memory, and read-only", async () => {
        const program = `
          import { open } from ${JSON.stringify(path.join(packageRoot, "dist", "index.js"))}
          const image = await open(${JSON.stringify(image)})
          const files = [{ path: "/run/secrets/one", content: Buffer.from("hidden"), mode: 0o400 }]
          const command = "cat /run/secrets/one; echo x 2>/dev/null >/run/secrets/one || echo kept; busybox stat -c %a /run/secrets/one"
          const { stdout } = await (await image.exec(["sh", "-c", command], { engine: "userspace", files })).output()
          process.stdout.write(stdout)
          await image.exec(["true"], { files: [{ path: "etc/x", content: Buffer.alloc(0) }] }).catch(({ code }) => console.log(code))
          await image.close()`
        const argv = [process.execPath, "--input-type=module", "-e", program]
        const { text: said, stderr } = await runProgram(argv, { as })
        assert.equal(said, "hiddenkept\n400\nERR_RUN_OPTION\n", stderr)
      })
    })
})
