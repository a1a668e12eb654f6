// Limits of cgroups that limit: root's, and those of an ordinary user to whom a part of the hierarchy was delegated, as
// systemd does it for a session.
import assert from "node:assert/strict"
import { chmodSync, chownSync, copyFileSync, mkdirSync, readdirSync, rmdirSync, writeFileSync } from "node:fs"
import path from "node:path"
import { idOf, packageRoot, runProgram, type As } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { assertSettles, cheapImageForBoth, kernelState, needsDeviceMapper } from "./guest.ts"

const cgroups = "/sys/fs/cgroup"
const delegated = path.join(cgroups, "delegated")
const session = path.join(delegated, "session")
const program = path.join(packageRoot, "test", "uml", "limits-cells.mjs")

describe("limits of cgroups", function () {
  let image: string
  const folder = newFolder("limits")

  before(async function () {
    needsDeviceMapper(this)
    image = path.join(folder, "image.sif")
    copyFileSync(await cheapImageForBoth(), image)
    chmodSync(image, 0o644)
    const all = "+cpu +memory +pids"
    writeFileSync(path.join(cgroups, "cgroup.subtree_control"), all)
    mkdirSync(session, { recursive: true })
    writeFileSync(path.join(delegated, "cgroup.subtree_control"), all)
    // Kernel, admin-guide/cgroup-v2: "Model of Delegation".
    for (const place of [delegated, session])
      for (const name of ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"])
        chownSync(path.join(place, name), idOf("nobody"), idOf("nobody"))
  })
  after(() => {
    rmdirSync(session)
    rmdirSync(delegated)
  })

  const foldersIn = (folder: string): string[] =>
    readdirSync(folder, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? entry.name : []))

  /** In a cgroup of the hierarchy, and with a folder to write to. */
  async function cells(as: As, place: string): Promise<unknown> {
    const { status, text, stderr } = await runProgram(
      [process.execPath, program, testKeys().privateKey, image, newFolder("cells", idOf(as))],
      {
        as,
        wrapper: ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', place],
        timeoutMs: 120_000,
      },
    )
    assert.equal(status, 0, stderr)
    assert.equal(stderr, "")
    return JSON.parse(text)
  }

  const limited = {
    memory: "137 0",
    // The shells, and so many beside them; in a service one more, which waits for them.
    processes: "10 0",
    cpu: "0",
    "file, memory": "137 0",
    "file, processes": "10 0",
    "a service, memory and processes": "137 9",
  }
  const unlimited = { "no limit, memory": "0 0", "no limit, processes": "20 0" }

  for (const [who, as, place, expected] of [
    ["root's, with the kernel engine", "self", cgroups, limited],
    ["an ordinary user's, who has a part of the hierarchy", "nobody", session, { ...unlimited, ...limited }],
  ] as const)
    it(`are in force: ${who}`, async () => {
      const state = kernelState()
      const names = (): string[] => [cgroups, delegated].flatMap(foldersIn)
      const before = names()
      assert.deepEqual(await cells(as, place), expected)
      await assertSettles(state)
      assert.deepEqual(names(), before)
    })
})
