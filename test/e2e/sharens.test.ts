// Commands that share a container: it is opened once, whoever comes first, lives as long as one of them, and nobody else's joins it.
import assert from "node:assert/strict"
import { execFileSync, spawn, type ChildProcess } from "node:child_process"
import { once } from "node:events"
import {
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import type { Writable } from "node:stream"
import { setTimeout as sleep } from "node:timers/promises"
import { loadAddon, starterPath } from "../../lib/native/load.ts"
import {
  finish,
  idOf,
  isRoot,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  type As,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import {
  holdsFuse,
  noneOfGroup,
  processesBelow,
  processesOfGroup,
  processorMs,
  signalGroup,
  waitFor,
} from "../support/processes.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"

const random = seeded()
const many = times("SIFCRYPT_SHARED", 64, 5)
const kills = times("SIFCRYPT_SHARED_KILLS", 200, 4)
const firstGroup = 81_000
let group = firstGroup

/** A command that runs until its standard input ends. */
interface Waiting {
  readonly child: ChildProcess
  readonly result: Promise<Result>
}

/** What a process takes of the machine's memory, what it shares counted in parts. */
function memoryOf(pid: number): number {
  return Number(/^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1] ?? 0)
}

describe("commands that share a container", () => {
  const keys = testKeys()
  const tree = makeRootTree()
  writeFileSync(path.join(tree, "data", "large"), Buffer.alloc(8 << 20, "something\n"))

  before(function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
    // Reads another's memory, whose process and address are said: what parallel programs do.
    const source = path.join(newFolder("peek"), "peek.c")
    writeFileSync(
      source,
      `#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>
static char word[8] = "nothing";
int main(int argc, char** argv) {
  if (argc == 1) {
    strcpy(word, "secret");
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    printf("%d %lu\\n", (int)getpid(), (unsigned long)word);
    fflush(stdout);
    return getchar() == EOF ? 0 : 1;
  }
  struct iovec here = {word, sizeof word}, there = {(void*)strtoul(argv[2], NULL, 10), sizeof word};
  if (process_vm_readv(atoi(argv[1]), &here, 1, &there, 1, 0) < 0) strcpy(word, errno == EPERM ? "EPERM" : "error");
  puts(word);
  return 0;
}
`,
    )
    execFileSync("cc", ["-static", "-o", path.join(tree, "bin", "peek"), source])
  })

  const lockless = path.join(newFolder("lockless"), "lockless.so")
  before(() => {
    // As a network's file system may.
    const source = `${lockless}.c`
    writeFileSync(
      source,
      "#include <errno.h>\nint flock(int fd, int operation) { (void)fd; (void)operation; errno = ENOLCK; return -1; }\n",
    )
    execFileSync("cc", ["-shared", "-fPIC", "-o", lockless, source])
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "of an ordinary user" : "of root", () => {
      const folder = newFolder(`sharens-${as}`, idOf(as))
      const runtime = path.join(folder, "runtime")
      const image = path.join(folder, "image.sif")
      // Root's are in /run.
      const shared = path.join(as === "user" ? runtime : "/run", "sifcrypt", "shared")
      const key = ["--engine", "userspace", "--pem-path", keys.privateKey]
      const options = (more: CommandOptions = {}): CommandOptions => ({
        ...{ as, group, cwd: folder },
        ...more,
        env: { XDG_RUNTIME_DIR: runtime, ...more.env },
      })
      const servers = (): number[] =>
        processesOfGroup(group).flatMap(({ pid }) => (holdsFuse(pid) ? [pid] : []))
      // The secret under which they are named stays.
      const files = (): string[] =>
        existsSync(shared) ? readdirSync(shared).filter((name) => name !== "secret") : []
      const nothingIsLeft = async (): Promise<void> => {
        await noneOfGroup(group, "the end of all processes")
        assert.deepEqual(files(), [])
      }
      /** Starts a command and waits for its first line. */
      const waiting = async (
        argv: readonly string[] = ["sh", "-c", "echo here; exec cat"],
        flags: readonly string[] = ["--sharens"],
        more: CommandOptions = {},
      ): Promise<Waiting & { readonly line: string }> => {
        const child = startSifcrypt(["exec", ...key, ...flags, image, ...argv], options(more))
        // It waits for as long as the others take.
        const result = finish(child, { holdInput: true, timeoutMs: 600_000 })
        assert.ok(child.stdout)
        const first = once(child.stdout, "data") as Promise<[Buffer]>
        const [line] = await Promise.race([
          first,
          result.then(({ stderr }) => {
            throw new Error(`it has ended: ${stderr}`)
          }),
        ])
        return { child, result, line: line.toString().trim() }
      }
      const end = async ({ child, result }: Waiting): Promise<Result> => {
        child.stdin?.end()
        return await result
      }

      before(async () => {
        mkdirSync(runtime, { mode: 0o700 })
        chownSync(runtime, idOf(as), idOf(as))
        await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as })
      })
      afterEach(() => {
        signalGroup(group++, "SIGKILL")
      })

      it(`are served by one process, ${many} of them, in the memory of one`, async function () {
        this.timeout(60_000 + many * 5000)
        const read = ["sh", "-c", "cat /data/large >/dev/null; echo here; exec cat"]
        const first = await waiting(read)
        const [server = 0] = servers()
        const alone = memoryOf(server)
        const others = await Promise.all(Array.from({ length: many - 1 }, () => waiting(read)))
        assert.deepEqual(servers(), [server])
        const together = memoryOf(server)
        assert.ok(together <= alone * 1.2, `${together} KiB, ${alone} of one`)
        // Who has started it goes first.
        for (const one of [first, ...others]) assert.equal((await end(one)).status, 0)
        await nothingIsLeft()
      })

      it("that come all at once start it once", async function () {
        this.timeout(60_000 + many * 5000)
        const all = await Promise.all(Array.from({ length: many }, () => waiting()))
        assert.equal(servers().length, 1)
        for (const one of all) assert.equal((await end(one)).text, "here\n")
        await nothingIsLeft()
      })

      it("have what is theirs: streams, status, folder, environment, descriptors", async () => {
        const holder = await waiting()
        const run = async (
          flags: readonly string[],
          script: string,
          more: CommandOptions = {},
        ): Promise<Result> =>
          await sifcrypt(
            ["exec", ...key, "--sharens", ...flags, image, "sh", "-c", script],
            options({ ...more, env: { OWN: "mine", ...more.env } }),
          )
        const seen = await run(
          ["--env", "GIVEN=a b", "--cwd", "/data"],
          'pwd; echo "$OWN $GIVEN"; cat; exit 7',
          {
            input: "typed\n",
          },
        )
        assert.deepEqual([seen.text, seen.status, seen.stderr], ["/data\nmine a b\ntyped\n", 7, ""])
        assert.equal((await run([], "echo $OWN", { env: { OWN: "other" } })).text, "other\n")
        assert.equal((await run([], "kill -TERM $$")).signal, "SIGTERM")
        const failed = await sifcrypt(["exec", ...key, "--sharens", image, "nosuch"], options())
        assert.notEqual(failed.status, 0)
        assert.match(failed.stderr, /nosuch/)
        const child = startSifcrypt(
          [
            "exec",
            ...key,
            "--sharens",
            "--preserve-fd",
            "4",
            image,
            "sh",
            "-c",
            "echo passed >&4; ls /proc/self/fd",
          ],
          { ...options(), stdio: ["ignore", "pipe", "pipe", "ignore", "pipe"] },
        )
        assert.ok(child.stdio[4])
        let passed = ""
        child.stdio[4].on("data", (chunk: Buffer) => (passed += chunk.toString()))
        const listed = await finish(child)
        assert.equal(passed, "passed\n", listed.stderr)
        assert.deepEqual(listed.text.trim().split("\n"), ["0", "1", "2", "3", "4"])
        assert.equal(servers().length, 1)
        await end(holder)
        await nothingIsLeft()
      })

      it("read each other's memory, and see each other's files in memory", async () => {
        const flags = ["--sharens", "--contain"]
        const one = await waiting(["peek"], flags)
        const look = async (...more: string[]): Promise<string> =>
          (await sifcryptOk(["exec", ...key, ...more, image, "peek", ...one.line.split(" ")], options())).text
        assert.equal(await look(...flags), "secret\n")
        // Root's have one user namespace all the same.
        assert.equal(await look("--contain"), as === "user" ? "EPERM\n" : "secret\n")
        await sifcryptOk(
          ["exec", ...key, ...flags, image, "sh", "-c", "echo to all >/dev/shm/note"],
          options(),
        )
        const note = ["exec", ...key, ...flags, image, "cat", "/dev/shm/note"]
        assert.equal((await sifcryptOk(note, options())).text, "to all\n")
        await end(one)
        await nothingIsLeft()
      })

      it("are those that ask for the same, in one session, with the key", async () => {
        const one = await waiting()
        const differing: (readonly [string, readonly string[], CommandOptions])[] = [
          ["a bind", ["--sharens", "--bind", "/var/tmp:/mnt"], {}],
          ["confinement", ["--sharens", "--no-home"], {}],
          ["privileges", ["--sharens", "--drop-caps", "CAP_CHOWN"], {}],
          ["a PID namespace", ["--sharens", "--pid"], {}],
          ["another session", ["--sharens"], { wrapper: ["setsid"] }],
          [
            "a step of Slurm's",
            [],
            { env: { SLURM_JOB_ID: "7", SLURM_STEP_ID: "0", SLURM_PROCID: "0", SLURM_STEP_NUM_TASKS: "2" } },
          ],
          ["nothing shared", [], {}],
          ["nothing to be shared", ["--sharens", "--no-sharens"], {}],
        ]
        for (const [what, flags, more] of differing) {
          const other = await waiting(undefined, flags, more)
          assert.equal(servers().length, 2, what)
          assert.equal((await end(other)).status, 0, what)
          await waitFor(`the end of what has ${what}`, () => servers().length === 1)
        }
        const refused = await sifcrypt(
          ["exec", "--engine", "userspace", "--sharens", image, "echo", "in"],
          options(),
        )
        assert.deepEqual([refused.status === 0, refused.text], [false, ""])
        await end(one)
        await nothingIsLeft()
      })

      it("are those of a launcher by themselves, where there are several", async () => {
        const step = { SLURM_JOB_ID: "7", SLURM_STEP_ID: "0", SLURM_PROCID: "0", SLURM_STEP_NUM_TASKS: "2" }
        const one = await waiting(undefined, [], { env: step })
        const other = await waiting(undefined, [], { env: { ...step, SLURM_PROCID: "1" } })
        assert.equal(servers().length, 1)
        const single = await waiting(undefined, [], { env: { ...step, SLURM_STEP_NUM_TASKS: "1" } })
        assert.equal(servers().length, 2)
        // What cannot be shared is not.
        const overlay = path.join(folder, "over")
        mkdirSync(overlay, { recursive: true })
        chownSync(overlay, idOf(as), idOf(as))
        const alone = ["--overlay", overlay, "--plain-overlay"]
        const over = await waiting(undefined, alone, { env: step })
        assert.equal(servers().length, 3)
        const asked = await sifcrypt(["exec", ...key, "--sharens", ...alone, image, "echo"], options())
        assert.match(asked.stderr, /--sharens: an overlay is one command's/)
        for (const waits of [one, other, single, over]) await end(waits)
        await nothingIsLeft()
      })

      it("do not need the key of a plain image, but this user's secret", async () => {
        const plain = path.join(folder, "plain.sif")
        await sifcryptOk(["build", plain, tree], { as })
        const flags = ["exec", "--engine", "userspace", "--sharens", plain]
        const one = startSifcrypt([...flags, "sh", "-c", "echo here; exec cat"], options())
        const result = finish(one, { holdInput: true })
        assert.ok(one.stdout)
        await once(one.stdout, "data")
        await sifcryptOk([...flags, "echo"], options())
        assert.equal(servers().length, 1)
        assert.equal(statSync(path.join(shared, "secret")).mode & 0o777, 0o600)
        // Another secret, another name.
        rmSync(path.join(shared, "secret"))
        const child = startSifcrypt([...flags, "sh", "-c", "echo here; exec cat"], options())
        const other = finish(child, { holdInput: true })
        assert.ok(child.stdout)
        await once(child.stdout, "data")
        assert.equal(servers().length, 2)
        for (const waits of [one, child]) waits.stdin?.end()
        for (const ended of [result, other]) assert.equal((await ended).status, 0)
        await nothingIsLeft()
      })

      // An ordinary user has no such namespace with the same users in it.
      const itOfRoot = as === "self" ? it : undefined
      itOfRoot?.("leave alone what is in a process namespace that they do not see", async () => {
        const wrapper = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        const other = await waiting(undefined, ["--sharens"], { wrapper })
        const one = await waiting()
        for (const waits of [other, one]) await end(waits)
        // That namespace ends with its first process, the command, and with it whoever would take the socket away: the next one does.
        await sifcryptOk(["exec", ...key, "--sharens", image, "echo"], options())
        await nothingIsLeft()
      })

      it("are alone where nothing can be locked, unless they ask not to be", async () => {
        const env = { LD_PRELOAD: lockless }
        const step = { SLURM_JOB_ID: "7", SLURM_STEP_ID: "0", SLURM_PROCID: "0", SLURM_STEP_NUM_TASKS: "2" }
        const alone = await sifcrypt(
          ["exec", ...key, image, "echo", "in"],
          options({ env: { ...env, ...step } }),
        )
        assert.deepEqual([alone.text, alone.status, alone.stderr], ["in\n", 0, ""])
        const asked = await sifcrypt(["exec", ...key, "--sharens", image, "echo", "in"], options({ env }))
        assert.equal(asked.text, "")
        assert.match(asked.stderr, /--sharens: .* without locks \(ENOLCK\): XDG_RUNTIME_DIR can name/)
        await nothingIsLeft()
      })

      it("begin when the program that has read the secrets is gone", async () => {
        // Its process goes on, as another program.
        const wrapper = ["sh", "-c", 'exec "$@" $$', "sh"]
        const argv = [image, "sh", "-c", "cat /proc/$0/comm"]
        const one = await waiting()
        for (const flags of [["--sharens"], []])
          for (let i = 0; i < 2; i++) {
            const { text } = await sifcrypt(["exec", ...key, ...flags, ...argv], options({ wrapper }))
            assert.equal(text, "sifcrypt-starte\n")
          }
        await end(one)
        await nothingIsLeft()
      })

      itOfRoot?.(
        "are told to the runtime, which is there before that, when the bundle has ended",
        async () => {
          const one = await waiting()
          const shared = await waitFor("the shared starter", () =>
            processesOfGroup(group).find(({ command }) => command.includes(" --shared=")),
          )
          const words = shared.command.split(" ").filter((word) => /^--(?:id|session)=/.test(word))
          // Another program in the place of the runtime: it writes down what it is told.
          const place = newFolder("told")
          const runtime = path.join(place, "runtime")
          const told = path.join(place, "told")
          const script = `for word; do case $word in --process=*) cat "\${word#*=}" >${told} ;; esac; done`
          writeFileSync(runtime, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
          const descriptors = ["--status-fd=1", "--watch-fd=3", "--bundle-fd=4"]
          const args = ["join", `--pid=${shared.pid}`, ...words, `--crun=${runtime}`, "--folder=join-test"]
          const join = spawn(starterPath(), [...args, ...descriptors], {
            stdio: ["ignore", "ignore", "inherit", "pipe", "pipe"],
            env: {},
          })
          const ended = once(join, "close")
          const bundle = join.stdio[4] as Writable
          bundle.write("600 8 process.json\na secret644 0 entry\n")
          await waitFor("the runtime", () => existsSync(told))
          assert.equal(readFileSync(told, "utf8"), "")
          bundle.end()
          await ended
          assert.equal(readFileSync(told, "utf8"), "a secret")
          await end(one)
          await nothingIsLeft()
        },
      )

      it("use the key that is held for those who can open the image, and do without", async () => {
        const one = await waiting()
        const lock = path.join(shared, files().find((name) => name.endsWith(".lock")) ?? "")
        const [id = "", pid = "", fd = ""] = readFileSync(lock, "utf8").split(" ")
        assert.match(id, /^[0-9a-f]{64}$/)
        // Sealed: 12 and 16 bytes beside the key.
        assert.equal(readFileSync(`/proc/${pid}/fd/${fd}`).length, 12 + 16 + 64)
        const other = path.join(folder, "other.pem")
        execFileSync("openssl", ["genrsa", "-out", other, "2048"], { stdio: "ignore" })
        chownSync(other, idOf(as), idOf(as))
        const refused = await sifcrypt(
          ["exec", "--engine", "userspace", "--pem-path", other, "--sharens", image, "echo", "in"],
          options(),
        )
        assert.equal(refused.text, "")
        assert.match(refused.stderr, /was not encrypted for this key/)
        for (const note of ["", `${id} 1 0`, `${id} ${pid} 0`, `${id} 0 x`, "x".repeat(300)]) {
          writeFileSync(lock, note)
          const joined = ["exec", ...key, "--sharens", image, "echo", "in"]
          assert.equal((await sifcryptOk(joined, options())).text, "in\n", note)
          assert.equal(servers().length, 1)
        }
        await end(one)
        await nothingIsLeft()
      })

      it("leave nothing running where all that would end it is killed at once", async () => {
        const other = await waiting()
        const script = "sleep 1000 & (setsid sleep 1000 &) ; echo here; exec cat"
        for (const holds of [[other], []]) {
          const one = await waiting(["sh", "-c", script])
          if (holds.length === 0) await end(other)
          const joins = processesBelow(one.child.pid ?? 0).filter(({ command }) => command.includes(" join "))
          assert.equal(joins.length, 2)
          // Neither of them gets to see that the other one has ended.
          for (const signal of ["SIGSTOP", "SIGKILL"] as const)
            for (const { pid } of joins) process.kill(pid, signal)
          await one.result
          await waitFor("the end of what it ran", () =>
            processesOfGroup(group).every(({ command }) => !command.startsWith("sleep")),
          )
        }
        await nothingIsLeft()
      })

      it("leave to each other what they run, of which there may be more than descriptors", async () => {
        const few = { wrapper: ["prlimit", "--nofile=48:48"] }
        const many = 'for i in $(seq 60); do sleep 1000 & all="$all $!"; done; echo here; cat; kill $all'
        const other = await waiting(["sh", "-c", many], undefined, few)
        const one = await waiting(["sh", "-c", "sleep 999 & echo here; exec cat"], undefined, few)
        const joins = processesBelow(one.child.pid ?? 0).filter(({ command }) => command.includes(" join "))
        for (const signal of ["SIGSTOP", "SIGKILL"] as const)
          for (const { pid } of joins) process.kill(pid, signal)
        await one.result
        const running = (command: string): number =>
          processesOfGroup(group).filter((process) => process.command.startsWith(command)).length
        await waitFor("the end of what it ran", () => running("sleep 999") === 0)
        assert.equal(running("sleep 1000"), 60)
        assert.equal((await end(other)).status, 0)
        await nothingIsLeft()
      })

      it("say so where there are too few descriptors to start what is shared", async () => {
        for (const few of [28, 30, 32]) {
          const wrapper = ["prlimit", `--nofile=${few}:${few}`]
          const { status, stderr } = await sifcrypt(
            ["exec", ...key, "--sharens", image, "true"],
            options({ wrapper }),
          )
          assert.ok(status === 24 || status === 25, `${few}: ${status ?? "no status"} ${stderr}`)
          assert.match(stderr, /^sifcrypt: [^\n]+\n(?:sifcrypt: hint: `ulimit -n` [^\n]+\n)?$/)
        }
        await nothingIsLeft()
      })

      // Whoever connects has to be the user.
      if (as === "self")
        it("wait without taking processor time where no more of them can be let in", async () => {
          const one = await waiting(undefined, undefined, { wrapper: ["prlimit", "--nofile=48:48"] })
          const [starter = 0] = processesOfGroup(group).flatMap(({ pid, command }) =>
            command.includes("--shared=") && !holdsFuse(pid) ? [pid] : [],
          )
          const handle = openSync(shared, "r")
          const name = files().find((file) => !file.endsWith(".lock")) ?? ""
          const seats = Array.from(
            { length: 60 },
            () => loadAddon().connectIn({ folder: handle, name }) ?? -1,
          )
          const other = await waiting()
          const before = processorMs(starter)
          await sleep(500)
          assert.ok(processorMs(starter) - before < 100, "it looks again and again")
          for (const fd of [handle, ...seats]) closeSync(fd)
          // It has waited with the others, and comes in.
          assert.equal((await end(one)).status, 0)
          assert.equal((await end(other)).text, "here\n")
          await nothingIsLeft()
        })

      it(`of which any may be killed at any moment, ${kills} times`, async function () {
        this.timeout(60_000 + kills * 5000)
        let holder = await waiting()
        for (let round = 0; round < kills; round++) {
          const child = startSifcrypt(
            ["exec", ...key, "--sharens", image, "sh", "-c", "echo here; exec cat"],
            options(),
          )
          const result = finish(child, { holdInput: true }).catch(() => undefined)
          if (random(2) === 0) {
            assert.ok(child.stdout)
            await Promise.race([once(child.stdout, "data"), result])
          } else await sleep(random(600))
          const own = processesBelow(child.pid ?? 0)
          // The first one, whoever has started it, is killed as well.
          const victims = random(3) === 0 ? processesBelow(holder.child.pid ?? 0) : own
          const victim = victims[random(Math.max(1, victims.length))]
          try {
            process.kill(victim?.pid ?? child.pid ?? 0, "SIGKILL")
          } catch {
            // It has ended meanwhile.
          }
          const other = await waiting()
          if (victims === own) assert.equal((await end(holder)).text, "here\n", `round ${round}`)
          else await end(holder)
          child.stdin?.end()
          await result
          holder = other
        }
        assert.equal(servers().length, 1)
        assert.equal((await end(holder)).text, "here\n")
        await nothingIsLeft()
      })

      it("end with what serves them, and the next ones start anew", async () => {
        const one = await waiting()
        const [server = 0] = servers()
        process.kill(server, "SIGKILL")
        const lost = await one.result
        assert.notEqual(lost.status, 0)
        assert.match(lost.stderr, /the shared container has ended/)
        const other = await waiting()
        assert.equal((await end(other)).status, 0)
        await nothingIsLeft()
      })
    })
})
