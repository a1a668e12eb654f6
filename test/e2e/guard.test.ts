// A mount goes with its server, whichever other process of it was killed before, and whenever that was.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import { mkdirSync, readdirSync, readFileSync } from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { finish, idOf, isRoot, sifcrypt, sifcryptOk, startSifcrypt, type As } from "../support/cli.ts"
import {
  holdsFuse,
  listens,
  mountsIn,
  noneOfGroup,
  processesOfGroup,
  signalGroup,
  waitFor,
} from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

let group = 74_000

describe("the processes that stand by a mount", () => {
  const tree = makeRootTree()

  before(function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
  })

  afterEach(() => {
    signalGroup(group, "SIGKILL")
    group++
  })

  async function prepare(as: As): Promise<{ args: string[]; folder: string; target: string }> {
    const folder = newFolder("guard", idOf(as))
    const image = path.join(folder, "image.sif")
    const target = path.join(folder, "mount")
    mkdirSync(target)
    execFileSync("chown", [String(idOf(as)), target])
    await sifcryptOk(["build", image, tree], { as })
    return { args: ["mount", "--engine", "userspace", image, target], folder, target }
  }

  // fusermount3 serves only users whom passwd knows.
  for (const as of ["nobody", "self"] as const satisfies readonly As[])
    for (const lost of [0, 1])
      for (const end of ["unmount", "SIGTERM", "SIGKILL"] as const)
        it(`A3: ${end} of ${as === "nobody" ? "an ordinary user's" : "root's"} mount without its helper ${lost + 1} leaves nothing`, async () => {
          const { args, folder, target } = await prepare(as)
          await sifcryptOk(args, { as, group })
          const server = processesOfGroup(group).find(({ pid }) => holdsFuse(pid))
          const helpers = processesOfGroup(group).filter(({ parent }) => parent === server?.pid)
          assert.equal(helpers.length, 2)
          process.kill(helpers[lost]!.pid, "SIGKILL")
          await sleep(50)
          assert.equal(
            readFileSync("/proc/self/mountinfo", "utf8").includes(target),
            true,
            "it stays until then",
          )
          if (end === "unmount") await sifcryptOk(["unmount", target], { as, group })
          else process.kill(server!.pid, end)
          await waitFor("the end of the mount", () => mountsIn(folder).length === 0)
          await noneOfGroup(group, "the end of the processes")
        })

  // Batch systems send some of these as a warning; Node opens a debugger for the first one, and a dump of the last would have keys in it.
  const signals = ["SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT"] as const
  for (const what of ["a mount", "an exec", "an instance"] as const)
    it(`A3: no signal to any process of ${what} opens anything or leaves anything`, async () => {
      const { folder, args } = await prepare("self")
      const [, , , image = "", target = ""] = args
      const name = `signals-${process.pid}`
      const engine = ["--engine", "userspace"]
      const run = { as: "self", group, cwd: folder } as const
      let ended: Promise<unknown> = Promise.resolve()
      const start = {
        "a mount": () => sifcryptOk(args, run),
        "an instance": () => sifcryptOk(["instance", "start", ...engine, image, name], run),
        "an exec": async () => {
          const child = startSifcrypt(["exec", ...engine, image, "sh", "-c", "echo in; exec sleep 300"], run)
          ended = finish(child)
          await once(child.stdout ?? assert.fail(), "data")
        },
      }[what]
      // Each with each for a mount, which has three; otherwise each gets one of them.
      const all = what === "a mount" ? signals : [undefined]
      for (const [victim, signal] of [0, 1, 2, 3, 4, 5].flatMap((number) =>
        all.map((one) => [number, one ?? signals[number % 4]] as const),
      )) {
        await start()
        const chosen = processesOfGroup(group)[victim]
        if (chosen !== undefined && signal !== undefined) process.kill(chosen.pid, signal)
        assert.deepEqual(
          processesOfGroup(group).filter(({ pid }) => listens(pid)),
          [],
        )
        // Whether it ends by that is its own affair; what is left of it then is nobody's.
        if (what === "a mount") await sifcrypt(["unmount", target], { as: "self" })
        else if (what === "an instance") await sifcrypt(["instance", "stop", name], { as: "self" })
        else for (const { pid } of processesOfGroup(group)) if (pid !== chosen?.pid) tryKill(pid, "SIGTERM")
        const left = `what ${String(signal)} to ${chosen?.command ?? "nobody"} leaves`
        await noneOfGroup(group, left, 20_000)
        await waitFor(left, () => mountsIn(folder).length === 0)
        await ended
        if (chosen === undefined) break
      }
      assert.deepEqual(readdirSync(folder).toSorted(), ["image.sif", "mount"])
    })

  it("A3: a mount that fusermount3 makes after its caller was killed goes, too", async () => {
    const { args, folder } = await prepare("nobody")
    const ended = finish(startSifcrypt(args, { as: "nobody", group }))
    const starter = await waitFor("the starter", () =>
      processesOfGroup(group).find(({ command }) => command.startsWith("sifcrypt-starter ")),
    )
    // Stopped as soon as it is there, unless it is faster: then there is a mount.
    let helper: number | undefined
    while (helper === undefined && mountsIn(folder).length === 0) helper = fusermountOf(starter.pid)
    if (helper !== undefined) tryKill(helper, "SIGSTOP")
    process.kill(starter.pid, "SIGKILL")
    await sleep(1500)
    if (helper !== undefined) tryKill(helper, "SIGCONT")
    await ended
    await noneOfGroup(group, "the end of the processes")
    assert.deepEqual(mountsIn(folder), [])
  })
})

function tryKill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // It was faster.
  }
}

function fusermountOf(parent: number): number | undefined {
  try {
    const children = readFileSync(`/proc/${parent}/task/${parent}/children`, "utf8").trim().split(" ")
    return children.map(Number).find((pid) => readFileSync(`/proc/${pid}/comm`, "utf8") === "fusermount3\n")
  } catch {
    return undefined // ended meanwhile
  }
}
