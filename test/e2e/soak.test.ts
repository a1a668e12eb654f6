// A3 and A13 in user space, as an ordinary user: runs in a row, random processes killed at random moments, one image opened
// many times at once. `scripts/test.sh soak` does it as often as is promised.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { chownSync, lstatSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import {
  finish,
  idOf,
  isRoot,
  packageRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  type CommandOptions,
} from "../support/cli.ts"
import { passphrase, testKeys } from "../support/keys.ts"
import {
  loopDevicesOf,
  mappings,
  mountsIn,
  processesOfGroup,
  signalGroup,
  type ProcessInfo,
} from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { Chance, isSoak, seed, times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"

const runs = times("SIFCRYPT_RUNS", 500, 20)
const kills = times("SIFCRYPT_KILLS", 200, 20)
const parallel = times("SIFCRYPT_PARALLEL", 200, 40)
const mounts = times("SIFCRYPT_MOUNTS", 5000, 20)
const settleMs = 5000
/** To look for what one kind does wrong. */
const only = process.env["SIFCRYPT_KIND"]
/** Marks what comes of the commands. */
const group = 77_000
// fusermount3 serves only users whom passwd knows.
const as = "nobody"
const uid = idOf(as)

/** What must be as it was. */
interface State {
  readonly processes: readonly string[]
  readonly mounts: readonly string[]
  readonly loops: readonly string[]
  readonly mappings: readonly string[]
  readonly files: readonly string[]
}

describe("A3: in user space, again and again", function () {
  this.timeout(30_000 + (runs + kills) * 10_000)
  const keys = testKeys()
  const folder = newFolder("soak", uid)
  /** Folders that others may have written to: temporary, home, runtime, working directory. */
  const at = (name: string): string => path.join(folder, name)
  const env = { HOME: at("home"), TMPDIR: at("tmp"), XDG_RUNTIME_DIR: at("run"), XDG_CACHE_HOME: at("cache") }
  const options: CommandOptions = { as, group, env, cwd: at("work") }
  const luks = ["--pem-path", keys.privateKey, at("image.sif")]
  const instance = "soak"

  /** A way to run a container: flags and image of an `exec`. */
  const kinds: Readonly<Record<string, readonly string[]>> = {
    "RSA key": luks,
    passphrase: ["--passphrase-file", keys.passphraseFile, at("image.sif")],
    "gocryptfs image": ["--pem-path", keys.privateKey, at("gocryptfs.sif")],
    "plain image": [at("plain.sif")],
    "PID namespace": ["--containall", ...luks],
    "overlay in memory": ["--writable-tmpfs", ...luks],
    "overlay, folder": ["--overlay", at("upper"), "--plain-overlay", ...luks],
    "overlay, ext3": ["--overlay", at("overlay.img"), "--plain-overlay", ...luks],
    "overlay, squashfs": ["--overlay", `${at("overlay.squashfs")}:ro`, "--plain-overlay", ...luks],
  }

  function exec(kind: string, ...argv: readonly string[]): readonly string[] {
    return ["exec", "--engine", "userspace", ...(kinds[kind] ?? []), ...argv]
  }

  /** Files are compared by name; what an overlay keeps is its own affair. */
  function names(root: string, kept: readonly string[] = []): string[] {
    return readdirSync(root, { recursive: true, encoding: "utf8" })
      .filter((name) => !kept.some((one) => name.startsWith(`${one}/`)))
      .map((name) => path.join(root, name))
  }

  function state(): State {
    return {
      processes: processesOfGroup(group).map(({ pid, command }) => `${pid} ${command}`),
      mounts: mountsIn(folder),
      loops: loopDevicesOf(folder),
      mappings: mappings().filter((name) => name.startsWith("sifcrypt")),
      files: [
        ...names(folder, ["upper"]),
        // Where all write, what is this user's.
        ...["/tmp", "/var/tmp", "/dev/shm"].flatMap((shared) =>
          readdirSync(shared)
            .map((name) => path.join(shared, name))
            .filter((file) => lstatSync(file, { throwIfNoEntry: false })?.uid === uid),
        ),
      ].sort(),
    }
  }

  async function assertSettles(before: State, what: string): Promise<void> {
    const end = performance.now() + settleMs
    for (;;) {
      const now = state()
      try {
        assert.deepEqual(now, before, `${what}, seed ${seed}: left after ${settleMs} ms`)
        return
      } catch (error) {
        if (performance.now() > end) throw error
      }
      await sleep(20)
    }
  }

  before(async function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
    for (const name of ["home", "tmp", "cache", "work", "upper", "mount"]) mkdirSync(at(name))
    mkdirSync(at("run"), { mode: 0o700 })
    for (const name of readdirSync(folder)) chownSync(at(name), uid, uid)
    const tree = makeRootTree()
    const build = async (...args: string[]): Promise<void> => {
      await sifcryptOk(["build", ...args, tree], options)
    }
    await build(
      ...["--pbkdf", "pbkdf2:1000", "--pem-path", keys.publicKey],
      ...["--passphrase-file", keys.passphraseFile, at("image.sif")],
    )
    await build("--format", "gocryptfs", "--pem-path", keys.publicKey, at("gocryptfs.sif"))
    await build(at("plain.sif"))
    await sifcryptOk(["overlay", "create", "--sparse", at("overlay.img")], options)
    const added = newFolder("added")
    writeFileSync(path.join(added, "added"), "added\n")
    execFileSync("mksquashfs", [added, at("overlay.squashfs"), "-quiet", "-noappend"], { stdio: "ignore" })
    assert.ok(readFileSync(keys.passphraseFile, "utf8").includes(passphrase))
    // What is made once and stays: the folder of instances, and the user's file of locks.
    await sifcryptOk(["instance", "list"], options)
    await sifcryptOk(["exec", "--overlay", at("overlay.img"), at("plain.sif"), "sh", "-c", ":"], options)
  })

  afterEach(() => {
    signalGroup(group, "SIGKILL")
    for (const mount of mountsIn(folder)) execFileSync("umount", ["-l", mount])
  })

  /** One whole use of each kind. */
  const uses: readonly (readonly [string, () => Promise<void>])[] = [
    ...Object.keys(kinds).map((kind): readonly [string, () => Promise<void>] => [
      kind,
      async () => {
        const { text } = await sifcryptOk(exec(kind, "cat", "/data/hello"), options)
        assert.equal(text, "hello\n")
      },
    ]),
    [
      "mount",
      async () => {
        await sifcryptOk(["mount", "--engine", "userspace", ...luks, at("mount")], options)
        assert.equal((await runProgram(["cat", at("mount/data/hello")], { as })).text, "hello\n")
        await sifcryptOk(["unmount", at("mount")], options)
      },
    ],
    [
      "instance",
      async () => {
        const name = `instance://${instance}`
        await sifcryptOk(["instance", "start", "--engine", "userspace", ...luks, instance], options)
        assert.equal((await sifcryptOk(["exec", name, "cat", "/data/hello"], options)).text, "hello\n")
        await sifcryptOk(["instance", "stop", instance], options)
      },
    ],
  ]

  it(`${runs} runs in a row leave nothing`, async () => {
    const before = state()
    for (let i = 0; i < runs; i++) {
      const [kind, use] = uses[i % uses.length] ?? assert.fail()
      await use()
      await assertSettles(before, `run ${i + 1}, ${kind}`)
    }
  })

  it(`${kills} kills of a random process at a random moment leave nothing, seed ${seed}`, async () => {
    const chance = new Chance()
    const before = state()
    const victims = new Map<string, number>()
    let wentOn = 0

    /** Kills one of what has come of the command, some time after its start; undefined: it was over. */
    async function killOne(running: () => boolean, upTo: number): Promise<ProcessInfo | undefined> {
      await sleep(chance.below(upTo))
      while (running()) {
        const all = processesOfGroup(group)
        if (all.length === 0) {
          await sleep(1)
          continue
        }
        const victim = chance.pick(all)
        try {
          process.kill(victim.pid, "SIGKILL")
        } catch {
          continue // it was faster
        }
        return victim
      }
      return undefined
    }

    for (let i = 0; i < kills; i++) {
      const kind = only ?? chance.pick([...Object.keys(kinds), "mount", "instance"])
      const args =
        kind === "mount"
          ? ["mount", "--engine", "userspace", ...luks, at("mount")]
          : kind === "instance"
            ? ["instance", "start", "--engine", "userspace", ...luks, instance]
            : exec(kind, "sleep", "300")
      const child = startSifcrypt(args, options)
      const ended = finish(child)
      const goesOn = kind === "mount" || kind === "instance"
      const isRunning = (): boolean => child.exitCode === null && child.signalCode === null
      const victim = await killOne(() => isRunning() || (goesOn && child.exitCode === 0), 700)
      const name = victim?.command.replace(/\s.*/s, "") ?? "none"
      victims.set(name, (victims.get(name) ?? 0) + 1)
      const what = `kill ${i + 1}, ${kind}, of ${victim?.command ?? "nothing"}`
      if (goesOn) {
        await ended
        // What was complete outlives its command; it can be ended as ever, and what is left of an instance is cleared up.
        await sleep(200)
        if (kind === "mount" && mountsIn(folder).length > 0) await sifcrypt(["unmount", at("mount")], options)
        if (kind === "instance") {
          await sifcrypt(["instance", "stop", "--force", instance], options)
          await sifcryptOk(["instance", "list"], options)
        }
      }
      // What only waits for something to go wrong is not missed when it dies: the run goes on, and ends as ever.
      await assertSettles(before, what).catch(async (error: unknown) => {
        if (!isRunning()) throw error
        wentOn++
        child.kill("SIGTERM")
        await assertSettles(before, what)
      })
      await ended
    }
    console.log(
      `        killed: ${[...victims]
        .sort(([, a], [, b]) => b - a)
        .map(([name, count]) => `${name} ${count}`)
        .join(", ")}; ${wentOn} runs went on`,
    )
  })
})

describe("A13: in user space, at once", function () {
  this.timeout(300_000)

  it(`${parallel} opens, mounts and runs of one image succeed`, async function () {
    if (!isRoot) skip(this, "needs root, to be a user whom passwd knows")
    const keys = testKeys()
    const folder = newFolder("at-once", uid)
    const image = path.join(folder, "image.sif")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, makeRootTree()], { as })
    const program = path.join(packageRoot, "test", "support", "at-once.mjs")
    const { status, text, stderr } = await runProgram(
      [process.execPath, program, String(parallel), keys.privateKey, image, folder],
      { as, group, timeoutMs: 280_000 },
    )
    assert.equal(status, 0, stderr)
    assert.deepEqual(JSON.parse(text), {
      opened: parallel,
      read: parallel,
      mounted: parallel,
      seen: parallel,
      ran: parallel,
    })
    assert.deepEqual(mountsIn(folder), [])
    assert.deepEqual(processesOfGroup(group), [])
  })
})

describe("A3: one process, again and again", function () {
  this.timeout(60_000 + mounts * 3000)

  it(`opens, mounts, reads and unmounts ${mounts} times, and holds no more than at first`, async function () {
    if (!isRoot) skip(this, "needs root, to be a user whom passwd knows")
    const keys = testKeys()
    const folder = newFolder("again", uid)
    const image = path.join(folder, "image.sif")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, makeRootTree()], { as })
    const program = path.join(packageRoot, "test", "support", "again.mjs")
    const argv = [process.execPath, "--expose-gc", program, String(mounts), keys.privateKey, image, folder]
    const { status, text, stderr } = await runProgram(argv, { as, timeoutMs: 50_000 + mounts * 3000 })
    assert.equal(status, 0, stderr)
    const { read, samples } = JSON.parse(text) as {
      readonly read: number
      readonly samples: readonly Readonly<Record<string, number>>[]
    }
    if (isSoak) console.log(`        held: ${samples.map((sample) => JSON.stringify(sample)).join(" ")}`)
    assert.equal(read, 2 * mounts)
    assert.ok(samples.length > 5)
    for (const what of ["descriptors", "threads", "children", "mounts"])
      assert.deepEqual(new Set(samples.map((sample) => sample[what])).size, 1, `${what}: ${text}`)
    const [first, last] = [samples[0], samples.at(-1)].map((sample) => sample?.["kibibytes"] ?? Infinity)
    assert.ok((last ?? 0) < (first ?? 0) + (16 << 10), text)
  })
})
