// What is written over an image, and what a payload may do, through the userspace engine.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { chownSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { gunzipSync } from "node:zlib"
import {
  finish,
  idOf,
  isRoot,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  userId,
  type As,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { allProcesses, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"
import { vectorPath } from "../vectors/load.ts"

const status =
  "while read name value; do case $name in Cap*|NoNewPrivs:|Seccomp:) echo $name$value;; esac; done < /proc/self/status"
const rootFlags = 'while read a b c d e; do [ "$b" = / ] && flags=$d; done </proc/self/mounts; echo $flags'
const none = "0000000000000000"

describe("over an image", () => {
  const folder = newFolder("overlay", userId)
  const image = path.join(folder, "image.sif")
  const plain = path.join(folder, "plain.sif")
  const squashfs = path.join(folder, "squashfs.img")
  const keys = testKeys()

  before(async () => {
    const tree = makeRootTree()
    await sifcryptOk(["build", plain, tree])
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
    const added = newFolder("added")
    mkdirSync(path.join(added, "data"))
    writeFileSync(path.join(added, "data", "squashfs"), "squashfs\n")
    // What the user himself would have made.
    if (isRoot) execFileSync("chown", ["-R", `${userId}:${userId}`, added])
    execFileSync("mksquashfs", [added, squashfs, "-quiet", "-noappend"], { stdio: "ignore" })
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(`as ${as === "user" ? "an ordinary user" : "root"}`, () => {
      before(function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
      })
      const user = as === "user"
      const uid = user ? userId : 0

      const run = (flags: readonly string[], script: string, of: string = plain): Promise<Result> =>
        sifcrypt(
          ["exec", "--engine", "userspace", "--pem-path", keys.privateKey, ...flags, of, "sh", "-c", script],
          { as, cwd: folder },
        )
      async function output(flags: readonly string[], script: string, of: string = plain): Promise<string> {
        const { text, stderr, status: code } = await run(flags, script, of)
        assert.equal(stderr, "")
        assert.equal(code, 0)
        return text
      }
      async function refused(flags: readonly string[], message: RegExp, of: string = plain): Promise<void> {
        const result = await run(flags, "true", of)
        assert.match(result.stderr, message)
        assert.ok((result.status ?? 0) >= 20)
      }

      it("a folder keeps what is written, squashfs lies below, and / is nosuid and nodev", async () => {
        const upper = newFolder("upper", uid)
        const flags = ["--overlay", squashfs, "--overlay", upper]
        const first = await output(flags, `cat /data/squashfs; echo kept > /data/kept; ${rootFlags}`)
        assert.match(first, /^squashfs\nrw,nosuid,nodev,/)
        const second = await output(["--overlay", `${upper}:ro`], `cat /data/kept; ${rootFlags}`)
        assert.match(second, /^kept\nro,nosuid,nodev,/)
        assert.equal(readFileSync(path.join(upper, "upper", "data", "kept"), "utf8"), "kept\n")
        await refused(
          ["--overlay", upper, "--overlay", newFolder("other", uid)],
          /only one overlay can be written/,
        )
      })

      it("an ext image of `overlay create` keeps it as well, and one container at a time writes it", async () => {
        const file = path.join(newFolder("ext", uid), "overlay.img")
        await sifcryptOk(["overlay", "create", "--sparse", "--create-dir", "/made", file], { as })
        const flags = ["--overlay", file]
        assert.match(
          await output(flags, `ls -d /made; echo kept > /data/kept; ${rootFlags}`),
          /^\/made\nrw,nosuid,nodev,/,
        )
        assert.equal(await output([...flags, "--overlay", squashfs], "cat /data/kept"), "kept\n")
        const child = startSifcrypt(
          ["exec", "--engine", "userspace", ...flags, plain, "sh", "-c", "echo; read x"],
          { as },
        )
        const ready = new Promise((resolve) => child.stdout?.once("data", resolve))
        const end = finish(child, { holdInput: true })
        await ready
        await refused(flags, /another container uses it/)
        child.stdin?.end("\n")
        assert.equal((await end).status, 0)
        assert.equal(
          execFileSync("e2fsck", ["-fn", file], {
            encoding: "utf8",
            stdio: ["ignore", "pipe", "ignore"],
          }).includes("UNEXPECTED"),
          false,
        )
        await waitFor("the end of the helpers", () =>
          allProcesses().every(({ command }) => !command.includes(file)),
        )
      })

      it("ext images of each release keep what is written", async () => {
        for (const version of readdirSync(vectorPath("releases"))) {
          const file = path.join(newFolder("release-overlay", uid), "overlay.img")
          writeFileSync(file, gunzipSync(readFileSync(vectorPath(`releases/${version}/overlay.img.gz`))))
          chownSync(file, uid, uid)
          await output(["--overlay", file], "echo kept >/data/kept")
          assert.equal(await output(["--overlay", file], "cat /data/kept"), "kept\n")
        }
      })

      it("A9: nothing is kept in the clear over an encrypted image unless it is asked for", async () => {
        const upper = newFolder("clear", uid)
        await refused(["--overlay", upper], /kept there in the clear/, image)
        await output(["--overlay", upper, "--plain-overlay"], "echo x > /data/x", image)
        assert.equal(
          await output(["--writable-tmpfs"], "echo x > /data/hello; cat /data/hello", image),
          "x\n",
        )
        assert.equal(await output([], "cat /data/hello", image), "hello\n")
        await refused(["--writable"], /an encrypted image is read-only/, image)
      })

      it("A9: an encrypted overlay is for the kernel's dm-crypt", async () => {
        const file = path.join(newFolder("encrypted", uid), "overlay.sif")
        const result = await sifcrypt(
          ["overlay", "create", "--encrypt", "--pem-path", keys.publicKey, file],
          { as },
        )
        if (user) {
          assert.equal(result.status, 24)
          assert.match(result.stderr, /needs root.*in memory only/)
        } else {
          assert.equal(result.status, 0, result.stderr)
          await refused(["--overlay", file], /needs root.*writable-tmpfs/, image)
        }
      })

      it("--pid has an init that reaps, passes signals on, and ends all", async () => {
        assert.equal(await output(["--pid"], "[ $$ != 1 ] && readlink /proc/1/exe"), "/.sifcrypt/init\n")
        assert.equal(await output(["--pid", "--no-init"], "echo $$"), "1\n")
        assert.equal((await run(["--pid"], "(sleep 300 &) ; exit 9")).status, 9)
        assert.equal((await run(["--pid"], "kill -KILL $$")).signal, "SIGKILL")
        const child = startSifcrypt(
          [
            "exec",
            "--engine",
            "userspace",
            "--pid",
            plain,
            "sh",
            "-c",
            "trap 'exit 11' TERM; echo; while :; do sleep 0.05; done",
          ],
          { as },
        )
        child.stdout?.once("data", () => child.kill("SIGTERM"))
        assert.equal((await finish(child)).status, 11)
      })

      it("S18, S19: privileges that are dropped are gone, and filters are in force", async () => {
        const profile = path.join(folder, `profile-${as}.json`)
        writeFileSync(
          profile,
          '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}',
        )
        const filtered = await output(
          ["--security", `seccomp:${profile}`],
          `${status}; mkdir /tmp/no 2>&1 || echo refused`,
        )
        assert.match(filtered, /Seccomp:2\n.*refused\n$/s)
        const flags = ["--no-privs", "--security", user ? "uid:77" : "uid:77,gid:88:99"]
        const text = await output(flags, `id -u; id -G; ${status}`)
        assert.match(text, user ? /^77\n/ : /^77\n88 99\n/)
        for (const set of ["Inh", "Prm", "Eff", "Bnd", "Amb"])
          assert.ok(text.includes(`Cap${set}:${none}`), text)
        assert.ok(text.includes("NoNewPrivs:1"))
        for (const [module, name] of [
          ["apparmor:profile", "AppArmor"],
          ["selinux:label", "SELinux"],
        ] as const)
          await refused(["--security", module], new RegExp(name))
        await refused(["--security", "nothing:1"], /there is no nothing/)
        await refused(["--add-caps", "CAP_NONE"], /is no capability/)
        if (user) await refused(["--allow-setuid"], /by root only/)
        else assert.match(await output(["--allow-setuid"], rootFlags), /^ro,nodev,/)
      })

      it("--fakeroot, --userns and networks", async () => {
        const text = await output(["--fakeroot"], `id -u; ${rootFlags}; ${status}`)
        assert.match(text, /^0\nro,nosuid,nodev,/)
        assert.match(text, /NoNewPrivs:1/)
        assert.equal(await output(["--userns"], "id -u"), `${uid}\n`)
        assert.equal(await output(["--network", "none"], "cat /proc/net/dev | wc -l"), "3\n")
        await refused(["--network", "elsewhere"], /there is no network elsewhere/)
        await refused(["--netns-path", "/tmp"], /is no network namespace/)
      })
    })

  it("--fakeroot has the user's subordinate ids", async function () {
    if (!isRoot) skip(this, "needs root, to show another /etc/subuid")
    const own = newFolder("ids")
    for (const name of ["subuid", "subgid"]) writeFileSync(path.join(own, name), `nobody:300000:65536\n`)
    const wrapper = [
      "unshare",
      "--mount",
      "sh",
      "-c",
      `mount --bind ${own}/subuid /etc/subuid; mount --bind ${own}/subgid /etc/subgid; exec "$@"`,
      "sh",
    ]
    const result = await sifcrypt(
      ["exec", "--engine", "userspace", "--fakeroot", plain, "sh", "-c", "cat /proc/self/uid_map; id -u"],
      { as: "nobody", wrapper, cwd: folder },
    )
    assert.equal(result.stderr, "")
    assert.match(
      result.text.replace(/ +/g, " "),
      new RegExp(`^ 0 ${idOf("nobody")} 1\n 1 300000 65536\n0\n$`),
    )
  })
})
