// Instances: they outlive their command, can be joined, and leave nothing when they end, however that comes.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { text } from "node:stream/consumers"
import { setImmediate as nextTurn } from "node:timers/promises"
import { listInstances, open, openInstance } from "../../lib/index.ts"
import {
  finish,
  idOf,
  isRoot,
  sifcrypt,
  sifcryptOk,
  startProgram,
  startSifcrypt,
  type As,
  type CommandOptions,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { noneOfGroup, processesBelow, processesOfGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

let group = 75_000

interface Listed {
  readonly instance: string
  readonly engine: string
  readonly pid: number
  readonly img: string
  readonly logOutPath: string
  readonly logErrPath: string
}

describe("instances", () => {
  const keys = testKeys()
  const tree = makeRootTree()
  mkdirSync(path.join(tree, ".singularity.d"))
  const shellless = newFolder("shellless")
  for (const name of ["bin", "dev", "proc", "sys", "etc", "tmp"]) mkdirSync(path.join(shellless, name))
  copyFileSync(path.join(tree, "bin", "busybox"), path.join(shellless, "bin", "echo"))
  const script = (name: string, body: string): void => {
    writeFileSync(path.join(tree, ".singularity.d", name), `#!/bin/sh\n${body}\n`, { mode: 0o755 })
  }
  script(
    "startscript",
    `echo "started with $*"; [ "$1" != stay ] || { trap 'echo ended; exit' TERM; while :; do sleep 0.1; done; }`,
  )
  script("runscript", `echo "run with $*"`)
  symlinkSync("/proc/self/fd/60", path.join(tree, "out"))

  before(function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "of an ordinary user" : "of root", () => {
      const folder = newFolder(`instance-${as}`, idOf(as))
      const runtime = path.join(folder, "runtime")
      const image = path.join(folder, "image.sif")
      const state = path.join(runtime, "sifcrypt", "instances")
      const options = (): CommandOptions => ({ as, group, env: { XDG_RUNTIME_DIR: runtime } })
      const key = ["--engine", "userspace", "--pem-path", keys.privateKey]
      // Root's are in /run, which may be another's on the machine that runs this: names of their own.
      const name = (text: string): string => `test-${process.pid}-${text}`
      const command = async (...args: string[]): Promise<string> => {
        const { text: shown } = await sifcryptOk(args, options())
        return shown
      }
      const start = async (called: string, ...args: string[]): Promise<void> => {
        await command("instance", "start", ...key, image, name(called), ...args)
      }
      const list = async (): Promise<Listed[]> => {
        const { instances } = JSON.parse(await command("instance", "list", "--json")) as {
          instances: Listed[]
        }
        return instances.filter(({ instance }) => instance.startsWith(name("")))
      }
      const nothingRuns = async (after = ""): Promise<void> => {
        try {
          await noneOfGroup(group, "the end of all processes")
        } catch (cause) {
          const left = processesOfGroup(group).map(({ pid, command }) => `${pid} ${command}`)
          throw new Error(`there are ${left.join("; ")}, after ${after}`, { cause })
        }
      }

      before(async () => {
        mkdirSync(runtime, { mode: 0o700 })
        chownSync(runtime, idOf(as), idOf(as))
        await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as })
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

      it("go on without their command, run what joins them, and end", async () => {
        await start("one", "stay", "x y")
        const [found] = await list()
        assert.equal(found?.instance, name("one"))
        assert.equal(found.img, image)
        assert.match(await command("instance", "list"), /^INSTANCE NAME +PID +IP +IMAGE +ENGINE +STATE\n/)
        assert.match(await command("instance", "list", name("one")), / userspace +running\n$/)
        // As many as a regular expression could not have.
        assert.match(await command("instance", "list", "*".repeat(100_000)), / userspace +running\n/)
        await waitFor("the start script's words", () =>
          readFileSync(found.logOutPath, "utf8").includes("started with stay x y"),
        )
        const follower = startSifcrypt(["instance", "logs", "-f", name("one")], options())
        const followed = finish(follower)
        assert.ok(follower.stdout)
        await once(follower.stdout, "data")
        assert.equal(await command("instance", "logs", name("one")), "started with stay x y\n")
        const join = ["exec", `instance://${name("one")}`]
        assert.equal(await command(...join, "cat", "/data/hello"), "hello\n")
        assert.equal(await command("run", `instance://${name("one")}`, "a b"), "run with a b\n")
        const shell = await sifcrypt(["shell", `instance://${name("one")}`], {
          ...options(),
          input: "echo $((6 * 7)); exit 3\n",
        })
        assert.deepEqual([shell.text, shell.status], ["42\n", 3])
        const big = Buffer.alloc(5 << 20, "0123456789abcdef\n")
        const copied = await sifcrypt([...join, "cat"], { ...options(), input: big })
        assert.ok(copied.stdout.equals(big))
        const [own] = (await command(...join, "sh", "-c", "id -u; pwd; echo $FOO")).split("\n")
        assert.equal(own, String(idOf(as)))
        const with_ = await command(
          "exec",
          "--env",
          "FOO=a b",
          `instance://${name("one")}`,
          "sh",
          "-c",
          "echo $FOO",
        )
        assert.equal(with_, "a b\n")
        for (const flags of [["--bind", "/tmp"], ["--mount=type=bind,src=/tmp,dst=/x", "--nv"], key]) {
          const refused = await sifcrypt(["exec", ...flags, `instance://${name("one")}`, "true"], options())
          assert.equal(refused.status, 255)
          for (const flag of flags.filter((one) => one.startsWith("--")))
            assert.ok(refused.stderr.includes(flag.replace(/=.*/, "")), refused.stderr)
        }
        const bind = { ...options().env, APPTAINER_BIND: "/tmp" }
        const forImages = await sifcrypt([...join, "echo", "there"], { ...options(), env: bind })
        assert.deepEqual([forImages.text, forImages.stderr], ["there\n", ""])
        assert.equal((await sifcrypt([...join, "nosuch"], options())).status, 255)
        await command("instance", "stop", name("one"))
        assert.deepEqual(await list(), [])
        const { text: written, status } = await followed
        assert.deepEqual([written, status], ["started with stay x y\nended\n", 0])
        await nothingRuns()
        assert.equal(existsSync(found.logOutPath), false)
        const late = await sifcrypt(["instance", "logs", name("one")], options())
        assert.equal(late.status, 255)
        assert.match(late.stderr, /there is no instance/)
      })

      it("go on when the start script has ended, also as the run script's", async () => {
        await start("short")
        await command("instance", "run", ...key, image, name("ran"), "z")
        const all = await list()
        assert.deepEqual(
          all.map(({ instance }) => instance),
          [name("ran"), name("short")],
        )
        for (const [index, words] of ["run with z\n", "started with \n"].entries())
          await waitFor(words, () => readFileSync(all[index]?.logOutPath ?? "", "utf8") === words)
        assert.equal(await command("exec", `instance://${name("short")}`, "echo", "there"), "there\n")
        await command("instance", "stop", name("*"))
        assert.deepEqual(await list(), [])
        await nothingRuns()
      })

      it("need no shell in the image, and end with a signal to what stays", async () => {
        const bare = path.join(folder, "bare.sif")
        await sifcryptOk(["build", bare, shellless], { as })
        await command("instance", "start", "--engine", "userspace", bare, name("bare"))
        assert.equal(await command("exec", `instance://${name("bare")}`, "/bin/echo", "there"), "there\n")
        const [found] = await list()
        process.kill(found?.pid ?? 0, "SIGTERM")
        await nothingRuns()
      })

      it("tell what they use, joined commands included", async () => {
        const pidFile = path.join(folder, "pid")
        await command("instance", "start", ...key, "--pid-file", pidFile, image, name("used"), "stay")
        assert.equal(readFileSync(pidFile, "utf8"), `${(await list())[0]?.pid ?? ""}\n`)
        const child = startSifcrypt(
          ["exec", `instance://${name("used")}`, "sh", "-c", "echo in; while :; do :; done"],
          options(),
        )
        const ended = finish(child, { holdInput: true })
        await once(child.stdout ?? assert.fail(), "data")
        const stats = JSON.parse(await command("instance", "stats", "--json", name("used"))) as Record<
          "instance" | "source",
          string
        > & {
          cpu_percent: number
          cpu_stats: { cpu_usage: { total_usage: number } }
          memory_stats: { usage: { usage: number } }
          pids_stats: { current: number }
        }
        assert.deepEqual([stats.instance, stats.source], [name("used"), "processes"])
        assert.ok(stats.cpu_percent > 1, String(stats.cpu_percent))
        assert.ok(stats.memory_stats.usage.usage > 4096)
        // The shell that stays, what waits for it, the start script and the joined command.
        assert.ok(stats.pids_stats.current >= 4, String(stats.pids_stats.current))
        const table = await command("instance", "stats", "--no-stream", name("used"))
        assert.match(
          table,
          /^INSTANCE NAME +CPU USAGE +MEM USAGE \/ LIMIT +MEM % +BLOCK I\/O +PIDS +COUNTED BY\n/,
        )
        child.kill("SIGTERM")
        await ended
        await command("instance", "stop", name("used"))
        await nothingRuns()
        assert.equal((await sifcrypt(["instance", "stats", name("used")], options())).status, 255)
      })

      it("are joined as they were started: namespaces, profiles, nothing left of who joined", async () => {
        const place = newFolder("profile", idOf(as))
        writeFileSync(path.join(place, "profile.json"), '{"defaultAction":"SCMP_ACT_ALLOW"}')
        const flags = ["--pid", "--hostname", "inside", "--security", "seccomp:profile.json"]
        await sifcryptOk(["instance", "start", ...key, ...flags, image, name("apart"), "stay"], {
          ...options(),
          cwd: place,
        })
        const join = ["exec", `instance://${name("apart")}`]
        const status = "while read n v; do [ $n != Seccomp: ] || echo $v; done </proc/self/status"
        const shown = await command(
          ...join,
          "sh",
          "-c",
          `${status}; cat /proc/sys/kernel/hostname; kill -0 1`,
        )
        assert.equal(shown, "2\ninside\n")
        // What it has started itself goes on: here it keeps nobody waiting.
        const killed = startSifcrypt(
          [...join, "sh", "-c", "echo in; exec sleep 300 >/dev/null 2>&1"],
          options(),
        )
        const ended = finish(killed)
        await once(killed.stdout ?? assert.fail(), "data")
        const helper = processesOfGroup(group).filter(({ command: words }) => words.includes("starter join"))
        for (const { pid } of helper)
          try {
            process.kill(pid, "SIGKILL")
          } catch {
            // It went with the one before.
          }
        await ended
        assert.equal(await command(...join, "sh", "-c", "echo /.sifcrypt/join-* | wc -w"), "1\n")
        await command("instance", "stop", name("apart"))
        await nothingRuns()
      })

      it("A3: end when their command is killed before it has written down that they are there", async () => {
        const file = path.join(as === "self" ? "/run/sifcrypt/instances" : state, `${name("early")}.json`)
        const runs = (words: string): boolean =>
          processesOfGroup(group).some((process) => process.command.includes(words))
        for (let attempt = 0; ; attempt++) {
          assert.ok(attempt < 20, "it was always too late")
          const child = startSifcrypt(["instance", "start", ...key, image, name("early"), "stay"], options())
          const ended = finish(child)
          while (!runs("--no-new-keyring") && child.exitCode === null) await nextTurn()
          // It learns of nothing more, while its instance goes on.
          child.kill("SIGSTOP")
          await waitFor("what stays", () => runs("--stay") || child.exitCode !== null)
          const written = existsSync(file)
          child.kill("SIGKILL")
          await ended
          if (written) await command("instance", "stop", name("early"))
          await nothingRuns()
          if (!written) break
        }
      })

      it("have names of their own, once each", async () => {
        await start("twice")
        const again = await sifcrypt(["instance", "start", ...key, image, name("twice")], options())
        assert.equal(again.status, 23)
        for (const bad of ["../x", "", ".x", "a/b", "x".repeat(65)])
          assert.equal(
            (await sifcrypt(["instance", "start", ...key, image, bad], options())).status,
            255,
            bad,
          )
        assert.equal((await sifcrypt(["exec", "instance://nosuch", "true"], options())).status, 255)
        assert.equal((await sifcrypt(["instance", "stop", "nosuch"], options())).status, 255)
        await command("instance", "stop", "--force", name("twice"))
        await nothingRuns()
      })

      it("A3: leave nothing when one of their processes is killed", async () => {
        for (let victim = 0; victim < 5; victim++) {
          await start("killed", "stay")
          const processes = processesOfGroup(group)
          const chosen = processes[victim]
          if (chosen === undefined) break
          process.kill(chosen.pid, "SIGKILL")
          // That of the start script is the image's own affair: the instance goes on.
          if (!/sifcrypt-starter|crun/.test(chosen.command))
            await sifcrypt(["instance", "stop", name("killed")], options())
          await nothingRuns(`${chosen.pid} ${chosen.command} was killed`)
          assert.deepEqual(await list(), [], chosen.command)
        }
      })

      it("end with what joined them", async () => {
        await start("joined", "stay")
        const child = startSifcrypt(
          ["exec", `instance://${name("joined")}`, "sh", "-c", "echo in; sleep 300"],
          options(),
        )
        const ended = finish(child, { holdInput: true })
        await once(child.stdout ?? assert.fail(), "data")
        await command("instance", "stop", name("joined"))
        assert.notEqual((await ended).status, 0)
        await nothingRuns()
      })

      it("go on when a command that joined is killed, and pass signals to it", async () => {
        await start("stays", "stay")
        for (const [signal, status] of [
          ["SIGTERM", 143],
          ["SIGKILL", null],
        ] as const) {
          const child = startSifcrypt(
            ["exec", `instance://${name("stays")}`, "sh", "-c", "echo in; sleep 300"],
            options(),
          )
          const ended = finish(child, { holdInput: true })
          await once(child.stdout ?? assert.fail(), "data")
          child.kill(signal)
          const result = await ended
          assert.ok(
            result.status === status || result.signal === signal,
            `${signal}: ${String(result.status)} ${result.stderr}`,
          )
          await waitFor(
            "its processes",
            () =>
              !processesOfGroup(group).some(({ command: words }) =>
                /sleep 300|sifcrypt-starter (?:join|attend)|crun .* exec /.test(words),
              ),
          )
        }
        assert.equal(await command("exec", `instance://${name("stays")}`, "echo", "still"), "still\n")
        await command("instance", "stop", name("stays"))
        await nothingRuns()
      })

      it("let no command that joins out through a descriptor of its caller", async () => {
        const outside = newFolder("outside", idOf(as))
        writeFileSync(path.join(outside, "found"), "")
        await start("closed", "stay")
        // Higher than those that Node closes in its children; the image's link names it.
        const wrapper = ["bash", "-c", `exec 60<${outside}; exec "$@"`, "bash"]
        const joined = ["exec", "--cwd", "/out", `instance://${name("closed")}`, "ls"]
        const { text: shown } = await sifcrypt(joined, { ...options(), wrapper })
        assert.doesNotMatch(shown, /found/)
        await command("instance", "stop", name("closed"))
        await nothingRuns()
      })

      if (as === "user") {
        it("S10: have a folder that is their user's alone, or none", async () => {
          await start("private")
          const { stdout } = await sifcryptOk(["instance", "list", "--json"], options())
          assert.match(stdout.toString(), /private/)
          execFileSync("stat", ["-c", "%a %u", state])
          assert.equal(
            execFileSync("stat", ["-c", "%a %u", state], { encoding: "utf8" }),
            `700 ${idOf(as)}\n`,
          )
          await command("instance", "stop", "--all")
          for (const [what, spoil] of [
            [
              "open to others",
              (place: string) => {
                mkdirSync(place)
                chmodSync(place, 0o777)
              },
            ],
            [
              "another's",
              (place: string) => {
                mkdirSync(place, { mode: 0o700 })
                chownSync(place, 1, 1)
              },
            ],
            [
              "a link",
              (place: string) => {
                symlinkSync(newFolder("elsewhere", idOf(as)), place)
              },
            ],
          ] as const) {
            const base = newFolder("spoilt", idOf(as))
            chmodSync(base, 0o700)
            const place = path.join(base, "sifcrypt")
            spoil(place)
            if (what === "open to others") chownSync(place, idOf(as), idOf(as))
            const result = await sifcrypt(["instance", "list"], { as, env: { XDG_RUNTIME_DIR: base } })
            assert.equal(result.status, 255, what)
            assert.match(result.stderr, /not a folder of the user/, what)
          }
        })

        it("S20: are not what a file says of another process", async () => {
          await start("real", "stay")
          const [real] = await list()
          const file = path.join(state, `${name("real")}.json`)
          const honest = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>
          const bystander = startProgram(["sleep", "300"], { as, stdio: "ignore" })
          await once(bystander, "spawn")
          await waitFor(
            "the bystander",
            () => readFileSync(`/proc/${bystander.pid ?? 0}/comm`, "utf8") === "sleep\n",
          )
          const stat = readFileSync(`/proc/${bystander.pid ?? 0}/stat`, "utf8")
          const startTime = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]
          const forge = (called: string, changes: object): void => {
            const forged = path.join(state, `${name(called)}.json`)
            writeFileSync(forged, JSON.stringify({ ...honest, name: name(called), ...changes }), {
              mode: 0o600,
            })
            chownSync(forged, idOf(as), idOf(as))
          }
          forge("process", { pid: bystander.pid, startTime })
          forge("init", { pid: 1 })
          forge("id", { id: "sifcrypt-other" })
          forge("session", { session: "/etc" })
          writeFileSync(path.join(state, `${name("junk")}.json`), "{")
          assert.deepEqual((await list()).map(({ instance }) => instance).sort(), [
            name("real"),
            name("session"),
          ])
          // That one has the right process and says something else of it: nothing can be done with it, and nothing happens.
          assert.notEqual(
            (await sifcrypt(["exec", `instance://${name("session")}`, "true"], options())).status,
            0,
          )
          // Its container never comes; who waits for it can be ended.
          const waiting = startSifcrypt(["exec", `instance://${name("session")}`, "true"], options())
          const ended = finish(waiting)
          // Not what is left of the one before.
          await waitFor("the command", () =>
            processesBelow(waiting.pid ?? 0).some(({ command: words }) =>
              words.includes("sifcrypt-starter join"),
            ),
          )
          waiting.kill("SIGTERM")
          // By the signal, or with its status where the program that reads keys is still there to undo things (docs/cli.md).
          const { status, signal, stderr } = await ended
          assert.ok(signal === "SIGTERM" || status === 143, `${status} ${signal} ${stderr}`)
          for (const called of ["process", "init", "id", "junk"])
            assert.equal((await sifcrypt(["instance", "stop", name(called)], options())).status, 255, called)
          assert.equal(bystander.exitCode ?? bystander.signalCode, null)
          bystander.kill("SIGKILL")
          assert.equal(await command("exec", `instance://${name("real")}`, "echo", "there"), "there\n")
          assert.equal((await list())[0]?.pid, real?.pid)
          await command("instance", "stop", name("real"))
          await nothingRuns()
        })
      }
    })

  it("can be had from a program", async () => {
    const folder = newFolder("instance-api")
    const image = path.join(folder, "image.sif")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as: "self" })
    const called = `test-${process.pid}-api`
    await using opened = await open(image, { unlock: [{ key: { file: keys.privateKey } }] })
    const instance = await opened.startInstance(called, ["stay"], { engine: "userspace" })
    try {
      assert.ok((await listInstances()).some(({ name }) => name === called))
      await using running = await openInstance(called).exec(["sh", "-c", "cat; exit 5"])
      running.stdin?.end("typed")
      assert.equal(await text(running.stdout ?? assert.fail()), "typed")
      assert.equal((await running.exited).exitCode, 5)
      await using terminal = await instance.shell({ stdio: "pty" })
      terminal.terminal?.write("tty; exit 6\n")
      assert.match(await text(terminal.terminal ?? assert.fail()), /\/dev\/pts\/\d+/)
      assert.equal((await terminal.exited).exitCode, 6)
    } finally {
      await instance.stop()
    }
    await instance.stop()
    for (const call of [
      () => instance.exec(["true"]),
      () => instance.run(),
      () => instance.shell(),
      () => instance.test(),
      async () => instance.stats(),
    ])
      await assert.rejects(call, { code: "ERR_INSTANCE_NONE" })
    assert.throws(() => openInstance(called), { code: "ERR_INSTANCE_NONE" })
    assert.deepEqual(readdirSync(folder), ["image.sif"])
  })
})
