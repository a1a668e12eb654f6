// Programs that read what an image brings: what they may do, and what they see.
import assert from "node:assert/strict"
import { chmodSync, chownSync, copyFileSync, readdirSync, readFileSync, readlinkSync } from "node:fs"
import path from "node:path"
import { finish, isRoot, sifcryptOk, startSifcrypt, userId, type As } from "../support/cli.ts"
import { processesBelow, waitFor, type ProcessInfo } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

const field = (pid: number, name: string): string =>
  new RegExp(`^${name}:\\s*(\\S+)`, "m").exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? ""

const sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]

/** What it sees of the file system: mount points, and the names in its root. */
function viewOf(pid: number): { readonly mounts: string[]; readonly root: string[] } {
  return {
    mounts: readFileSync(`/proc/${pid}/mountinfo`, "utf8")
      .trim()
      .split("\n")
      .map((line) => line.split(" ")[4] ?? ""),
    root: readdirSync(`/proc/${pid}/root`),
  }
}

describe("a program that reads what an image brings", function () {
  const folder = newFolder("helpers", userId)
  const plain = path.join(folder, "plain.sif")

  before(async function () {
    if (!isRoot) skip(this, "needs root, to look at processes of others")
    await sifcryptOk(["build", plain, makeRootTree()])
  })

  /** Runs a payload that waits over an overlay that is written, and looks at the programs meanwhile. */
  async function look(
    as: As,
    overlay: string,
    check: (processes: readonly ProcessInfo[]) => void,
  ): Promise<void> {
    const own = as === "self" ? "chown 7:7 /data/kept && " : ""
    const script = `echo kept > /data/kept && ${own}mv /data/hello /data/moved && echo ready; read x`
    const child = startSifcrypt(
      ["exec", "--engine", "userspace", "--overlay", overlay, plain, "sh", "-c", script],
      {
        as,
      },
    )
    let told = ""
    child.stdout?.on("data", (text: Buffer) => (told += text.toString()))
    const end = finish(child, { holdInput: true })
    try {
      await waitFor("the payload", () => told.includes("ready"))
      check(processesBelow(child.pid ?? 0))
    } finally {
      child.stdin?.end("\n")
    }
    const result = await end
    assert.equal(result.stderr, "")
    assert.equal(result.status, 0)
    const again = await sifcryptOk(
      ["exec", "--engine", "userspace", "--overlay", overlay, plain, "sh", "-c", "cat /data/moved; ls /data"],
      { as },
    )
    assert.equal(again.text, "hello\nkept\nmoved\n")
  }

  for (const as of ["user", "self"] as const)
    it(`has no privilege, a filter, and sees nothing of the host: ${as === "user" ? "an ordinary user's" : "root's"}`, async () => {
      const overlay = path.join(newFolder("overlay", as === "user" ? userId : 0), "overlay.img")
      await sifcryptOk(["overlay", "create", "--sparse", overlay], { as })
      await look(as, overlay, (processes) => {
        const helpers = processes.filter(({ command }) => /^fuse(2fs|-overlayfs) /.test(command))
        assert.equal(helpers.length, 2, processes.map(({ command }) => command).join("\n"))
        const hosts = readlinkSync("/proc/self/ns/mnt")
        const namespaces = new Set(
          processes
            .filter((one) => !helpers.includes(one))
            .map(({ pid }) => readlinkSync(`/proc/${pid}/ns/mnt`)),
        )
        assert.ok(namespaces.has(hosts))
        for (const { pid, command } of helpers) {
          for (const set of sets) assert.equal(field(pid, set), "0".repeat(16), `${set} of ${command}`)
          assert.equal(field(pid, "NoNewPrivs"), "1", command)
          assert.equal(field(pid, "Seccomp"), "2", command)
          assert.equal(namespaces.has(readlinkSync(`/proc/${pid}/ns/mnt`)), false, command)
          const { mounts, root } = viewOf(pid)
          const allowed = [
            "dev",
            "etc",
            "layers",
            "lib",
            "lib64",
            "lower",
            "mount",
            "points",
            "proc",
            "program",
            "usr",
          ]
          assert.deepEqual(
            root.filter((name) => !allowed.includes(name)),
            [],
            command,
          )
          assert.deepEqual(readdirSync(`/proc/${pid}/root/etc`), ["ld.so.cache"])
          assert.deepEqual(readdirSync(`/proc/${pid}/root/dev`), ["fuse"])
          assert.deepEqual(
            mounts.filter((at) => /^\/(home|root|tmp|var|run|sys|work)/.test(at)),
            [],
            command,
          )
        }
        // Our own servers: the same but for what an ordinary user's keep of what they could not use anyway.
        const servers = processes.filter(
          ({ pid, command }) => command.includes("sifcrypt-starter") && field(pid, "NoNewPrivs") === "1",
        )
        assert.ok(servers.length > 0)
        for (const { pid } of servers) {
          assert.equal(field(pid, "Seccomp"), "2")
          assert.equal(field(pid, "CapPrm"), "0".repeat(16))
        }
      })
    })

  it("opens an image of another user for root, who has no power over files there", async () => {
    const made = path.join(newFolder("own", userId), "made.img")
    await sifcryptOk(["overlay", "create", "--sparse", made], { as: "user" })
    const overlay = path.join(newFolder("others", userId), "overlay.img")
    copyFileSync(made, overlay)
    chownSync(overlay, userId, userId)
    chmodSync(overlay, 0o600)
    // Made by that user, it has his number for the folders that root is to write.
    await look("self", overlay, (processes) => {
      const server = processes.find(({ command }) => command.startsWith("fuse2fs "))
      assert.ok(server !== undefined)
      assert.equal(field(server.pid, "Uid"), String(userId))
      assert.equal(field(server.pid, "CapEff"), "0".repeat(16))
    })
  })
})
