import assert from "node:assert/strict"
import { chmodSync, chownSync, mkdirSync, rmdirSync, symlinkSync } from "node:fs"
import path from "node:path"
import { remember, type InstanceState } from "../../../lib/container/instance-state.ts"
import { finish, isRoot, packageRoot, startProgram, userId } from "../../support/cli.ts"
import { newFolder } from "../../support/scratch.ts"
import { skip } from "../../support/skip.ts"

const module = path.join(packageRoot, "lib", "container", "instance-state.ts")

/** Where an ordinary user's instances would be. */
async function folderWith(env: Readonly<Record<string, string>>): Promise<string> {
  const script = `import(${JSON.stringify(module)}).then((m) => console.log(m.instanceFolder()))`
  const argv = [process.execPath, "--import=tsx", "--input-type=module", "-e", script]
  const { text, stderr } = await finish(startProgram(argv, { as: "user", cwd: packageRoot, env }))
  assert.equal(stderr, "")
  return text.trim()
}

describe("instanceFolder", function () {
  this.timeout(60_000)

  it("is a place of the user's own, whoever was first at one that all may write", async () => {
    const home = newFolder("home", userId)
    const squatted = `/tmp/sifcrypt-${userId}`
    // As another user would: it is not the user's own.
    let made = true
    try {
      mkdirSync(squatted)
    } catch {
      made = false // somebody has been there; it is not to be looked at
    }
    try {
      const open = newFolder("open", userId)
      chmodSync(open, 0o777)
      const linked = path.join(newFolder("links"), "link")
      symlinkSync(newFolder("behind", userId), linked)
      for (const runtime of ["", open, linked]) {
        const folder = await folderWith({ HOME: home, XDG_RUNTIME_DIR: runtime })
        assert.ok(folder.startsWith(path.join(home, ".cache", "sifcrypt-instances")), folder)
      }
    } finally {
      if (made) rmdirSync(squatted)
    }
  })

  it("is refused, with a code, where it is the user's place and others may look into it", async () => {
    const runtime = newFolder("runtime", userId)
    chmodSync(runtime, 0o700)
    const shared = path.join(runtime, "sifcrypt")
    mkdirSync(shared)
    chmodSync(shared, 0o755)
    if (isRoot) chownSync(shared, userId, userId)
    const script = `import(${JSON.stringify(module)}).then((m) => m.instanceFolder()).catch((e) => console.log(e.code))`
    const argv = [process.execPath, "--import=tsx", "--input-type=module", "-e", script]
    const options = { as: "user", cwd: packageRoot, env: { XDG_RUNTIME_DIR: runtime } } as const
    assert.equal((await finish(startProgram(argv, options))).text.trim(), "ERR_INSTANCE_FOLDER")
  })
})

describe("startTimeOf", function () {
  this.timeout(60_000)

  it("knows of no process where /proc hides those of others", async function () {
    if (!isRoot) skip(this, "needs root, to mount /proc")
    const script = `import(${JSON.stringify(module)}).then((m) => console.log(m.startTimeOf(1), m.startTimeOf(process.pid) > 0))`
    const argv = [process.execPath, "--import=tsx", "--input-type=module", "-e", script]
    const mounted = 'mount -t proc -o hidepid=1 proc /proc && exec "$@"'
    const hidden = [
      "setpriv",
      `--reuid=${userId}`,
      `--regid=${userId}`,
      "--clear-groups",
      "env",
      "HOME=/nonexistent",
    ]
    const child = startProgram(["unshare", "--mount", "sh", "-c", mounted, "sh", ...hidden, ...argv], {
      as: "self",
      cwd: packageRoot,
    })
    const { text, stderr } = await finish(child)
    assert.deepEqual([text, stderr], ["undefined true\n", ""])
  })
})

describe("what is kept of an instance", () => {
  it("can be read again, or nothing is kept", () => {
    const state = { name: "web", labels: { all: "x".repeat(1 << 16) } } as unknown as InstanceState
    assert.throws(
      () => {
        remember(state)
      },
      { code: "ERR_RUN_OPTION", message: /the instance web: .* more than 65536 bytes$/ },
    )
  })
})
