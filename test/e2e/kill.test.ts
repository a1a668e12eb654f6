// SIGKILL of each of our processes at random moments: whatever dies, nothing stays. `scripts/test.sh soak` does it more often.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { randomBytes } from "node:crypto"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import {
  finish,
  homeOf,
  idOf,
  isRoot,
  runProgram,
  sifcryptOk,
  startSifcrypt,
  type As,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import {
  holdsFuse,
  mountsIn,
  processesOfGroup,
  signalGroup,
  processorMs,
  waitFor,
  type ProcessInfo,
} from "../support/processes.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { times } from "../support/soak.ts"
import { makeRootTree } from "../support/trees.ts"

const random = seeded()

const kills = times("SIFCRYPT_KILLS", 24, 4)
const firstGroup = 73_000
let nextGroup = firstGroup
const foreign = new Set(readdirSync("/tmp"))

/** Which of a command's processes to kill; undefined: not there yet. */
type Victim = (all: readonly ProcessInfo[], command: number) => ProcessInfo | undefined

const isStarter = ({ command }: ProcessInfo): boolean => command.startsWith("sifcrypt-starter ")
const parentIs =
  (all: readonly ProcessInfo[], matches: (parent: ProcessInfo) => boolean) =>
  ({ parent }: ProcessInfo): boolean =>
    all.some((other) => other.pid === parent && matches(other))

const launcher: Victim = (all, command) => all.find(({ pid }) => pid === command)
/** The first starter; the others are its children. */
const main: Victim = (all) => all.find((one) => isStarter(one) && !parentIs(all, isStarter)(one))
const starterChildren = (all: readonly ProcessInfo[]): ProcessInfo[] =>
  all.filter((one) => isStarter(one) && parentIs(all, isStarter)(one))
const server: Victim = (all) => starterChildren(all).find(({ pid }) => holdsFuse(pid))
const container: Victim = (all) => starterChildren(all).find(({ pid }) => !holdsFuse(pid))
const crun: Victim = (all) => all.find(({ command }) => /^\S*\/crun /.test(command))
const payload: Victim = (all) =>
  all.find(({ command }) => command.startsWith("/bin/sleep ") || command.startsWith("/.sifcrypt/shell "))
const mountServer: Victim = (all) => main(all, 0)
const guard: Victim = (all) => starterChildren(all)[0]

describe("killed at a random moment", () => {
  const keys = testKeys()
  const tree = makeRootTree()
  // Something that takes a while to compress.
  for (let i = 0; i < 4; i++) writeFileSync(path.join(tree, "data", `random-${i}`), randomBytes(4 << 20))

  before(function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
  })

  afterEach(() => {
    for (let group = firstGroup; group < nextGroup; group++) signalGroup(group, "SIGKILL")
  })

  function snapshot(...folders: string[]): string[] {
    return folders.flatMap((folder) => readdirSync(folder).map((name) => path.join(folder, name))).sort()
  }

  async function assertNothingIsLeft(
    group: number,
    folder: string,
    before: readonly string[],
    home: string,
  ): Promise<void> {
    const end = performance.now() + 5000
    for (;;) {
      const processes = processesOfGroup(group)
      const mounts = mountsIn(folder)
      if (processes.length === 0 && mounts.length === 0) break
      if (performance.now() > end) {
        for (const { pid } of processes) process.kill(pid, "SIGKILL")
        for (const mount of mounts) execFileSync("umount", ["-l", mount])
        assert.deepEqual({ processes, mounts }, { processes: [], mounts: [] }, "left after 5 s")
      }
      await sleep(20)
    }
    assert.deepEqual(snapshot(folder, home), before)
    // crun has a file of its own for a moment, which must not stay in the common folder.
    const strays = (): string[] =>
      readdirSync("/tmp").filter((name) => /^crun\.[A-Za-z0-9]{6}$/.test(name) && !foreign.has(name))
    if (strays().length > 0) await sleep(1000)
    assert.deepEqual(strays(), [])
  }

  /** Runs a command, kills one of its processes some time after that has appeared, and looks at what is left. */
  async function killOnce(
    as: As,
    folder: string,
    args: readonly string[],
    victim: Victim,
    upTo: number,
  ): Promise<void> {
    const home = homeOf(as)
    const before = snapshot(folder, home)
    const group = nextGroup++
    const child = startSifcrypt(args, { as, group, cwd: folder })
    const end = finish(child)
    const found = await waitFor("the process to kill", () => {
      // A detached mount's command ends before its server.
      if (child.exitCode !== null && child.exitCode !== 0)
        throw new Error(`the command ended with ${child.exitCode}`)
      return victim(processesOfGroup(group), child.pid ?? 0)
    })
    await sleep(random(upTo))
    try {
      process.kill(found.pid, "SIGKILL")
    } catch {
      // It was faster. The next one is not.
    }
    if (found.pid !== child.pid && victim !== mountServer && victim !== guard) {
      const result = await end
      assert.notEqual(result.status, 0, "a command that lost a process has failed")
    }
    await assertNothingIsLeft(group, folder, before, home)
    await end
  }

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "an ordinary user's exec" : "root's exec", () => {
      const folder = newFolder(`kill-exec-${as}`, idOf(as))
      const image = path.join(folder, "image.sif")
      const args = ["exec", "--engine", "userspace", "--pem-path", keys.privateKey, image, "sleep", "300"]

      before(async () => {
        await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as })
      })

      for (const [name, victim, upTo] of [
        ["the launcher", launcher, 400],
        ["the starter", main, 150],
        ["the server", server, 150],
        ["the container process", container, 150],
        ["crun", crun, 100],
        ["the payload", payload, 100],
      ] as const)
        it(`A3: leaves nothing: ${name}, ${kills} times`, async function () {
          this.timeout(kills * 10_000)
          for (let i = 0; i < kills; i++) await killOnce(as, folder, args, victim, upTo)
        })
    })

  for (const as of ["nobody", "self"] as const satisfies readonly As[])
    describe(as === "nobody" ? "an ordinary user's mount" : "root's mount", () => {
      const folder = newFolder(`kill-mount-${as}`, idOf(as))
      const image = path.join(folder, "image.sif")
      const target = path.join(folder, "mount")
      const args = ["mount", "--engine", "userspace", "--pem-path", keys.privateKey, image, target]

      before(async () => {
        await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as })
        mkdirSync(target)
        execFileSync("chown", [String(idOf(as)), target])
      })

      it(`A3: leaves nothing: the server, ${kills} times`, async function () {
        this.timeout(kills * 10_000)
        for (let i = 0; i < kills; i++) await killOnce(as, folder, args, mountServer, 150)
      })

      it(`A3: leaves all or nothing: the launcher, ${kills} times`, async function () {
        this.timeout(kills * 10_000)
        for (let i = 0; i < kills; i++) {
          const before = snapshot(folder, homeOf(as))
          const group = nextGroup++
          const child = startSifcrypt(args, { as, group })
          const end = finish(child)
          await sleep(random(300))
          child.kill("SIGKILL")
          await end
          // A mount that was complete outlives its command, as it should: then it can be used and unmounted.
          await sleep(300)
          if (mountsIn(folder).length > 0) {
            const { text } = await runProgram(["cat", path.join(target, "data", "hello")], { as })
            assert.equal(text, "hello\n")
            await sifcryptOk(["unmount", target], { as })
          }
          await assertNothingIsLeft(group, folder, before, homeOf(as))
        }
      })
    })

  describe("an ordinary user's image in the format gocryptfs", () => {
    const folder = newFolder("kill-gocryptfs", idOf("nobody"))
    const image = path.join(folder, "image.sif")
    const target = path.join(folder, "mount")
    const flags = ["--pem-path", keys.privateKey, image]
    // The processes are those of the other kinds: fewer times.
    const fewer = Math.ceil(kills / 4)

    before(async () => {
      const format = ["--format", "gocryptfs", "--pem-path", keys.publicKey]
      await sifcryptOk(["build", ...format, image, tree], { as: "nobody" })
      mkdirSync(target)
      execFileSync("chown", [String(idOf("nobody")), target])
    })

    for (const [name, args, victim, upTo] of [
      ["exec: the launcher", ["exec", ...flags, "sleep", "300"], launcher, 400],
      ["exec: the starter", ["exec", ...flags, "sleep", "300"], main, 150],
      ["exec: the server", ["exec", ...flags, "sleep", "300"], server, 150],
      ["mount: the server", ["mount", ...flags, target], mountServer, 150],
    ] as const)
      it(`A3: leaves nothing: ${name}, ${fewer} times`, async function () {
        this.timeout(fewer * 10_000)
        for (let i = 0; i < fewer; i++) await killOnce("nobody", folder, args, victim, upTo)
      })

    it(`A3, A8: leaves nothing of a build, ${fewer} times`, async function () {
      this.timeout(fewer * 10_000)
      const output = path.join(folder, "built.sif")
      const format = ["--format", "gocryptfs", "--pem-path", keys.publicKey]
      const args = ["build", "--compression", "xz", ...format, output, tree]
      for (let i = 0; i < fewer; i++) await killOnce("nobody", folder, args, launcher, 500)
    })
  })

  describe("a build", () => {
    const folder = newFolder("kill-build", idOf("user"))
    const image = path.join(folder, "image.sif")

    it(`A3, A8: leaves nothing, ${kills} times`, async function () {
      this.timeout(kills * 10_000)
      for (let i = 0; i < kills; i++) {
        const args = ["build", "--compression", "xz", "--pem-path", keys.publicKey, image, tree]
        await killOnce("user", folder, args, launcher, 500)
      }
    })

    it(`A8: leaves the previous image, ${kills} times`, async function () {
      this.timeout(kills * 10_000)
      writeFileSync(image, "previous")
      for (let i = 0; i < kills; i++) {
        const args = ["build", "-F", "--compression", "xz", "--pem-path", keys.publicKey, image, tree]
        await killOnce("user", folder, args, launcher, 500)
        assert.equal(readFileSync(image, "utf8"), "previous")
      }
    })

    for (const [signal, status] of [
      ["SIGINT", 130],
      ["SIGTERM", 143],
    ] as const)
      it(`A8: stopped by ${signal} leaves nothing and ends with ${status}`, async () => {
        const place = newFolder("stopped", idOf("user"))
        const child = startSifcrypt(["build", "--compression", "xz:9", path.join(place, "image.sif"), tree])
        const end = finish(child)
        await waitFor("work", () => processorMs(child.pid ?? 0) > 400)
        child.kill(signal)
        const result = await end
        assert.equal(result.status, status, `${String(result.signal)} ${result.stderr}`)
        assert.deepEqual(readdirSync(place), [])
      })
  })
})
