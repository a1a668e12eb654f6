// `sifcrypt mount`, `unmount` and `mounts` through the userspace engine, as root and as an ordinary user.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import { chmodSync, chownSync, mkdirSync, readFileSync, statfsSync, statSync, writeFileSync } from "node:fs"
import path from "node:path"
import {
  finish,
  idOf,
  isRoot,
  runProgram,
  sifcrypt,
  sifcryptOk,
  startProgram,
  type As,
  type CommandOptions,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { mountsIn, processesOfGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

interface MountJson {
  readonly image: string
  readonly target: string
  readonly engine: string
  readonly pid?: number
}

describe("mounting an image", () => {
  const keys = testKeys()
  const tree = makeRootTree()

  // fusermount3 serves only users whom passwd knows.
  for (const as of ["nobody", "self"] as const satisfies readonly As[])
    describe(as === "nobody" ? "as an ordinary user" : "as root", () => {
      const uid = idOf(as)
      const folder = newFolder(`mount-${as}`, uid)
      const image = path.join(folder, "image with space.sif")
      const flags = ["--engine", "userspace", "--pem-path", keys.privateKey]
      const options: CommandOptions = { as, ...(isRoot ? { group: 72_000 + (as === "nobody" ? 1 : 2) } : {}) }
      const target = path.join(folder, "mount point")

      const mount = (...more: string[]): ReturnType<typeof sifcrypt> =>
        sifcrypt(["mount", ...flags, image, target, ...more], options)
      async function ours(): Promise<MountJson[]> {
        const { text } = await sifcryptOk(["mounts", "--json"], options)
        return (JSON.parse(text) as MountJson[]).filter((entry) => entry.target.startsWith(`${folder}/`))
      }

      before(async function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
        await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as })
        mkdirSync(target)
        if (isRoot) execFileSync("chown", [String(uid), target])
      })

      afterEach(async () => {
        for (const place of mountsIn(folder)) await runProgram(["umount", "-l", place], { as: "self" })
        if (isRoot)
          await waitFor("the end of the servers", () => processesOfGroup(options.group ?? 0).length === 0)
      })

      it("A19: shows the tree as it was, and goes with unmount", async () => {
        const made = await mount()
        assert.equal(made.status, 0, made.stderr)
        assert.equal(made.stderr, "")
        // Not as working directory: root may not enter another user's mount.
        const script =
          "cd \"$0\"; find . -type f -exec sha256sum {} + | sort; find . -printf '%P %y %m %l\\n' | sort"
        const seen = await runProgram(["sh", "-c", script, target], { as })
        const original = await runProgram(["sh", "-c", script, tree], { as: "self" })
        assert.equal(seen.status, 0, seen.stderr)
        assert.equal(seen.text, original.text)
        if (as === "nobody")
          for (const by of ["nobody", "user"] as const) {
            const again = await sifcrypt(["mount", ...flags, image, target], { ...options, as: by })
            assert.equal(again.status, 23, again.stderr)
            assert.match(again.stderr, /mount point: .*image with space\.sif is mounted there already\n/)
            assert.match(again.stderr, /hint: `sifcrypt unmount DIR` /)
          }
        await sifcryptOk(["unmount", target], options)
        assert.deepEqual(mountsIn(folder), [])
      })

      if (as === "nobody")
        it("shows whoever has the key all that `cat` reads, as his", async function () {
          if (!isRoot) skip(this, "needs root, for files of others")
          const closed = path.join(folder, "closed.sif")
          const source = newFolder("closed-files")
          const files: readonly (readonly [name: string, mode: number, owner: number])[] = [
            ["own", 0o600, uid],
            ["of-root", 0o600, 0],
            ["of-nobody-at-all", 0o000, 0],
            ["of-another", 0o060, 1234],
            ["folder/of-root", 0o400, 0],
            ["shut/of-another", 0o700, 1234],
          ]
          mkdirSync(path.join(source, "folder"))
          mkdirSync(path.join(source, "shut"))
          for (const [name, mode, owner] of files) {
            writeFileSync(path.join(source, name), `in ${name}`)
            chownSync(path.join(source, name), owner, owner)
            chmodSync(path.join(source, name), mode)
          }
          chmodSync(path.join(source, "folder"), 0o700)
          chmodSync(path.join(source, "shut"), 0)
          chmodSync(path.join(source, "own"), 0o4711)
          await sifcryptOk(["build", "--pem-path", keys.publicKey, closed, source], { as: "self" })
          execFileSync("chown", [String(uid), closed])
          await sifcryptOk(["mount", ...flags, closed, target], options)
          for (const [name] of files) {
            const read = await sifcryptOk(["cat", "--pem-path", keys.privateKey, closed, `/${name}`], options)
            const seen = await runProgram(["cat", path.join(target, name)], { as })
            assert.deepEqual([seen.text, seen.stderr], [read.text, ""], name)
          }
          const shown = await runProgram(["find", target, "-printf", "%U:%G "], { as })
          assert.deepEqual(new Set(shown.text.trim().split(" ")), new Set([`${uid}:${uid}`]))
          // What it could run as another is said, and not done.
          const { text } = await runProgram(["stat", "-c", "%a", path.join(target, "own")], { as })
          assert.equal(text, "4711\n")
          assert.notEqual((await runProgram(["touch", path.join(target, "new")], { as })).status, 0)
          const other = ["setpriv", "--reuid=3456", "--regid=3456", "--clear-groups"]
          for (const user of [other, []])
            assert.notEqual((await runProgram([...user, "ls", target], { as: "self" })).status, 0)
          await sifcryptOk(["unmount", target], options)
        })

      it("S7: mounts nosuid, nodev and read-only", async () => {
        await mount()
        const line = readFileSync("/proc/self/mountinfo", "utf8")
          .split("\n")
          .find((text) => text.includes(target.replaceAll(" ", "\\040")))
        const flagsSet = line?.split(" ")[5]?.split(",") ?? []
        for (const flag of ["ro", "nosuid", "nodev"]) assert.ok(flagsSet.includes(flag), line)
        const write = await runProgram(["touch", path.join(target, "x")], { as })
        assert.match(write.stderr, /Read-only file system/)
      })

      it("A19: is listed with image, engine and process, also as JSON", async () => {
        await mount()
        const [entry, ...others] = await ours()
        assert.deepEqual(others, [])
        assert.equal(entry?.image, image)
        assert.equal(entry.target, target)
        assert.equal(entry.engine, "userspace")
        assert.match(readFileSync(`/proc/${String(entry.pid)}/cmdline`, "utf8"), /^sifcrypt-starter\0mount\0/)
        const table = await sifcryptOk(["mounts"], options)
        assert.match(table.text, /^TARGET +ENGINE +PID +IMAGE$/m)
        assert.ok(table.text.split("\n").some((line) => line.startsWith(target) && line.endsWith(image)))
        await sifcryptOk(["umount", target], options)
        assert.deepEqual(await ours(), [])
      })

      it("S24: is served by a process that its user cannot read", async () => {
        await mount()
        const [entry] = await ours()
        assert.equal(statSync(`/proc/${String(entry?.pid)}/mem`).uid, 0)
        if (as === "nobody") {
          const look = await runProgram(["cat", `/proc/${String(entry?.pid)}/environ`], { as })
          assert.notEqual(look.status, 0)
        }
      })

      it("prints the mount as JSON", async () => {
        const { text } = await mount("--json")
        assert.equal((JSON.parse(text) as MountJson).target, target)
      })

      it(as === "nobody" ? "keeps others out" : "lets others in", async function () {
        if (!isRoot) skip(this, "needs root, to be two users")
        await mount()
        const other = ["setpriv", "--reuid=3456", "--regid=3456", "--clear-groups", "ls", target]
        assert.equal((await runProgram(other, { as: "self" })).status === 0, as === "self")
      })

      it("A8: is busy as long as it is used, and says so", async () => {
        await mount()
        const user = startProgram(["sh", "-c", 'cd "$0"; echo ready; read x', target], { as })
        const ready = once(user.stdout!, "data")
        const end = finish(user, { holdInput: true })
        await ready
        const busy = await sifcrypt(["unmount", target], options)
        assert.equal(busy.status, 23, busy.stderr)
        assert.match(busy.stderr, /busy|in use/)
        assert.match(busy.stderr, /hint: /)
        user.stdin!.end("\n")
        await end
        await sifcryptOk(["unmount", target], options)
      })

      it("keeps nothing open that its caller has left open", async () => {
        const lock = path.join(folder, "lock")
        await sifcryptOk(["mount", ...flags, image, target], { ...options, wrapper: ["flock", lock] })
        const { status } = await runProgram(["flock", "--nonblock", lock, "true"], options)
        assert.equal(status, 0, "the lock lasts as long as the mount")
        await sifcryptOk(["unmount", target], options)
      })

      it("mounts twice in two places", async () => {
        const second = path.join(folder, "second")
        mkdirSync(second, { recursive: true })
        if (isRoot) execFileSync("chown", [String(uid), second])
        await mount()
        await sifcryptOk(["mount", ...flags, image, second], options)
        assert.equal((await ours()).length, 2)
        assert.equal((await sifcryptOk(["unmount", second], options)).status, 0)
        assert.deepEqual(
          (await ours()).map((entry) => entry.target),
          [target],
        )
        await sifcryptOk(["unmount", target], options)
      })

      it("mounts again where it was mounted", async () => {
        for (let round = 0; round < 2; round++) {
          assert.equal((await mount()).status, 0)
          await sifcryptOk(["unmount", target], options)
        }
      })

      it("unmounts what lost its server", async () => {
        await mount()
        const [entry] = await ours()
        process.kill(Number(entry?.pid), "SIGKILL")
        // Its guard does that, or the user.
        const gone = async (): Promise<boolean> => {
          for (let i = 0; i < 100; i++) {
            if (mountsIn(folder).length === 0) return true
            await new Promise((resolve) => setTimeout(resolve, 50))
          }
          return false
        }
        assert.ok(await gone(), "the mount outlived its server")
      })

      it("refuses what is no mount of ours", async () => {
        const nothing = await sifcrypt(["unmount", folder], options)
        assert.equal(nothing.status, 25)
        assert.match(nothing.stderr, /no mount of sifcrypt/)
        const proc = await sifcrypt(["unmount", "/proc"], options)
        assert.equal(proc.status, 25)
        assert.ok(statfsSync("/proc").type === 0x9fa0)
      })

      it("A17: refuses to mount with a wrong key, on a file and on nothing", async () => {
        const wrong = ["--engine", "userspace", "--pem-path", keys.otherPrivateKey]
        assert.equal((await sifcrypt(["mount", ...wrong, image, target], options)).status, 22)
        const file = path.join(folder, "file")
        writeFileSync(file, "")
        const onFile = await sifcrypt(["mount", ...flags, image, file], options)
        assert.equal(onFile.status, 25)
        assert.match(onFile.stderr, /no folder/)
        const onNothing = await sifcrypt(["mount", ...flags, image, path.join(folder, "missing")], options)
        assert.equal(onNothing.status, 25)
        assert.match(onNothing.stderr, /missing/)
        assert.deepEqual(mountsIn(folder), [])
      })
    })
})
