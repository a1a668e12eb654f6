// Whatever people call an image runs, is listed, read, inspected and built from: a folder, a squashfs file, one behind a launch line.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import {
  idOf,
  isRoot,
  sifcrypt,
  sifcryptOk,
  userId,
  type As,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

const launchLine = "#!/usr/bin/env run-singularity\n"

/** A root file system with scripts, and with links that would lead out of it. */
function makeSandbox(): string {
  const tree = makeRootTree()
  const metadata = path.join(tree, ".singularity.d")
  mkdirSync(path.join(metadata, "env"), { recursive: true })
  const script = (name: string, text: string): void => {
    writeFileSync(path.join(metadata, name), `#!/bin/sh\n${text}\n`)
    chmodSync(path.join(metadata, name), 0o755)
  }
  script("runscript", 'echo "run: $FROM_IMAGE $*"; exit 5')
  script("startscript", "sleep 60")
  script("test", 'echo "test: $*"; exit 6')
  script("env/90-environment.sh", "export FROM_IMAGE=image")
  writeFileSync(path.join(metadata, "labels.json"), '{"made":"by hand"}')
  symlinkSync("/data/hello", path.join(tree, "absolute"))
  symlinkSync("../../../../../data/hello", path.join(tree, "up"))
  symlinkSync("/etc/shadow", path.join(tree, "secret"))
  symlinkSync("/", path.join(tree, "host"))
  return tree
}

describe("what people call an image", () => {
  const folder = newFolder("sources", userId)
  const sandbox = path.join(folder, "sandbox")
  const images = {
    sandbox,
    squashfs: path.join(folder, "image.sqfs"),
    "squashfs behind a launch line": path.join(folder, "image.simg"),
  }

  before(() => {
    execFileSync("cp", ["-a", makeSandbox(), sandbox])
    execFileSync("mksquashfs", [sandbox, images.squashfs, "-quiet", "-no-progress"], { stdio: "ignore" })
    const launched = Buffer.concat([Buffer.from(launchLine), readFileSync(images.squashfs)])
    writeFileSync(images["squashfs behind a launch line"], launched)
  })

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(`as ${as === "user" ? "an ordinary user" : "root"}`, () => {
      before(function () {
        if (as === "self" && !isRoot) skip(this, "needs root")
      })
      const run = (args: readonly string[], options: CommandOptions = {}): Promise<Result> =>
        sifcrypt(args, { as, cwd: folder, ...options })
      const succeeds = async (args: readonly string[], options: CommandOptions = {}): Promise<string> => {
        const { status, stderr, text } = await run(args, options)
        assert.equal(status, 0, stderr)
        return text
      }

      for (const [kind, image] of Object.entries(images)) {
        it(`runs, tests and starts a shell in a ${kind}`, async () => {
          const told = await run([
            "exec",
            image,
            "sh",
            "-c",
            'cat /data/hello; id -u; echo "$FROM_IMAGE $APPTAINER_CONTAINER"; exit 7',
          ])
          assert.equal(told.text, `hello\n${idOf(as)}\nimage ${image}\n`, told.stderr)
          assert.equal(told.status, 7)
          const ran = await run(["run", image, "a", "b"])
          assert.deepEqual([ran.status, ran.text], [5, "run: image a b\n"], ran.stderr)
          const tested = await run(["test", image, "c"])
          assert.deepEqual([tested.status, tested.text], [6, "test: c\n"], tested.stderr)
          const shell = await run(["shell", image], { input: "cat /data/hello\n" })
          assert.deepEqual([shell.status, shell.text], [0, "hello\n"], shell.stderr)
        })

        it(`starts a ${kind} as an instance, which is joined`, async () => {
          const name = `sources-${as}`
          await succeeds(["instance", "start", image, name])
          try {
            assert.equal(await succeeds(["exec", `instance://${name}`, "cat", "/data/hello"]), "hello\n")
          } finally {
            await succeeds(["instance", "stop", name])
          }
        })

        it(`lists, reads and inspects a ${kind}`, async () => {
          const names = (await succeeds(["ls", image, "/"])).trim().split("\n")
          assert.deepEqual(names, readdirSync(sandbox).sort())
          const below = JSON.parse(await succeeds(["ls", "--json", "-R", image])) as { path: string }[]
          assert.ok(below.some((entry) => entry.path === "/.singularity.d/env/90-environment.sh"))
          for (const file of ["/absolute", "/up", "host/data/hello"])
            assert.equal(await succeeds(["cat", image, file]), "hello\n")
          assert.equal((await run(["cat", image, "/secret"])).status, 25)
          assert.equal((await run(["cat", image, "/data"])).status, 21)
          assert.match(await succeeds(["inspect", image]), /made: by hand/)
          assert.match(await succeeds(["inspect", "--runscript", image]), /run: \$FROM_IMAGE/)
          assert.match(await succeeds(["info", image]), /^Root: +(?:squashfs|sandbox), unknown/m)
        })

        it(`builds an image from a ${kind}`, async () => {
          const built = path.join(newFolder("sources-built", idOf(as)), "image.sif")
          await succeeds(["build", built, image])
          assert.equal(await succeeds(["cat", built, "/absolute"]), "hello\n")
        })

        it(`refuses to verify a ${kind}, which nobody signs`, async () => {
          for (const command of ["exec", "cat"])
            assert.equal((await run([command, "--verify", image, "/data/hello"])).status, 26)
        })

        it(`keeps nothing of what is written in a ${kind}`, async () => {
          const script = "touch /data/made 2>/dev/null || echo refused"
          assert.equal(await succeeds(["exec", image, "sh", "-c", script]), "refused\n")
          const inMemory = "echo new > /made && cat /made"
          assert.equal(await succeeds(["exec", "--writable-tmpfs", image, "sh", "-c", inMemory]), "new\n")
          assert.equal(existsSync(path.join(sandbox, "made")), false)
        })
      }

      it("mounts a squashfs behind a launch line, and says why a folder needs no mount", async () => {
        // Who mounts by fusermount3 has to be somebody whom passwd knows.
        const who = { as: as === "user" ? "nobody" : as } as const
        const target = newFolder("sources-mount", idOf(who.as))
        await succeeds(["mount", images["squashfs behind a launch line"], target], who)
        try {
          assert.match(await succeeds(["mounts"], who), /userspace/)
        } finally {
          await succeeds(["unmount", target], who)
        }
        const refused = await run(["mount", sandbox, target])
        assert.match(refused.stderr, /is a folder: what is in it can be seen without a mount/)
      })

      it("binds out of a squashfs behind a launch line, and lies it over another image", async () => {
        const simg = images["squashfs behind a launch line"]
        const bind = `${simg}:/in:image-src=/data`
        assert.equal(await succeeds(["exec", "-B", bind, sandbox, "cat", "/in/hello"]), "hello\n")
        const other = path.join(newFolder("sources-other", idOf(as)), "other")
        execFileSync("cp", ["-a", sandbox, other])
        execFileSync("rm", [path.join(other, "data", "hello")])
        assert.equal(await succeeds(["exec", "--overlay", simg, other, "cat", "/data/hello"]), "hello\n")
      })

      it("makes no mount point in a sandbox that is not written to", async () => {
        const before = execFileSync("find", [sandbox, "-printf", "%P %m %U %T@\n"], { encoding: "utf8" })
        await succeeds(["exec", "-B", `${folder}:/new/place`, sandbox, "ls", "/new/place/image.sqfs"])
        await succeeds(["exec", "-B", `${folder}:/etc/place`, sandbox, "cat", "/etc/place/image.simg"])
        const after = execFileSync("find", [sandbox, "-printf", "%P %m %U %T@\n"], { encoding: "utf8" })
        assert.equal(after, before)
      })

      it("writes into a sandbox with --writable, and makes nothing else in it", async () => {
        const own = path.join(newFolder("sources-own", idOf(as)), "own")
        execFileSync("cp", ["-a", sandbox, own])
        execFileSync("chown", ["-R", `${idOf(as)}:${idOf(as)}`, own])
        const args = ["exec", "--writable"]
        assert.equal(
          await succeeds([...args, own, "sh", "-c", "echo kept > /etc/kept; cat /etc/kept"]),
          "kept\n",
        )
        assert.equal(readFileSync(path.join(own, "etc", "kept"), "utf8"), "kept\n")
        const made = readdirSync(own).filter((name) => !readdirSync(sandbox).includes(name))
        // The folder of the entry script, empty.
        assert.deepEqual(made, [".sifcrypt"])
        const bound = await run([...args, "-B", `${folder}:/no/place`, own, "true"])
        assert.match(bound.stderr, /there is no \/no\/place inside, and with --writable none is made/)
        assert.equal(bound.status, 255)
        const over = await run([...args, "--overlay", folder, own, "true"])
        assert.match(over.stderr, /--writable: it excludes --overlay/)
      })

      it("refuses --writable where nothing can be written", async () => {
        for (const image of [images.squashfs, images["squashfs behind a launch line"]]) {
          const { status, stderr } = await run(["exec", "--writable", image, "true"])
          assert.equal(status, 255)
          assert.match(stderr, /there is nothing in this image that can be written/)
        }
        if (as === "self") return
        const { status, stderr } = await run(["exec", "--writable", sandbox, "id"])
        assert.equal(status, isRoot ? 255 : 0, stderr)
        if (isRoot) assert.match(stderr, /--writable: .* is not yours to write/)
      })

      it("shows of a sandbox no device and no setuid bit that works", async () => {
        const own = path.join(newFolder("sources-own", idOf(as)), "own")
        execFileSync("cp", ["-a", sandbox, own])
        for (const options of [[], ["--writable-tmpfs"]]) {
          const flags = await succeeds(["exec", ...options, own, "cat", "/proc/self/mounts"])
          assert.match(flags, /^\S+ \/ \S+ r[ow],nosuid,nodev/m)
        }
      })

      it("refuses a sandbox whose /dev or /etc is a link", async () => {
        for (const name of ["dev", "etc"]) {
          const own = path.join(newFolder("sources-own", idOf(as)), "own")
          execFileSync("cp", ["-a", sandbox, own])
          execFileSync("rm", ["-r", path.join(own, name)])
          symlinkSync("/tmp", path.join(own, name))
          const { status, stderr } = await run(["exec", own, "/bin/true"])
          assert.equal(status, 255)
          assert.match(stderr, new RegExp(`/${name} in the image is no folder but a symlink`))
        }
      })

      it("runs root in the machine's own root without showing the session in it, and says why nobody else can", async () => {
        const { text, stderr } = await run(["exec", "/", "sh", "-c", "id -u; ls /mnt /media"])
        if (as === "user") {
          assert.match(stderr, /the folder has other file systems mounted in it/)
          return
        }
        assert.match(text, /^0\n/, stderr)
        assert.doesNotMatch(text, /config\.json|upper/)
      })
    })

  it("opens whatever it is by the API, too", async () => {
    const { open } = await import("../../lib/index.ts")
    for (const [kind, image] of Object.entries(images)) {
      await using opened = await open(image)
      assert.equal(opened.kind, kind === "sandbox" ? "sandbox" : "squashfs")
      assert.equal((await opened.readFile("/up")).toString(), "hello\n")
      await using running = await opened.exec(["cat", "/absolute"])
      assert.equal((await running.output()).stdout.toString(), "hello\n")
    }
    await assert.rejects(open(path.join(folder, "nothing")), { code: "ENOENT" })
    await sifcryptOk(["ls", images.sandbox])
  })

  it("keeps what a folder's mount forbids, with --writable as root", async function () {
    if (!isRoot) skip(this, "needs root, to mount something")
    const place = newFolder("mounted")
    const on = (flags: string, ...args: readonly string[]): Promise<Result> =>
      sifcrypt(["exec", "--writable", ...args], {
        as: "self",
        cwd: folder,
        wrapper: [
          ...["unshare", "--mount", "sh", "-c"],
          `mount -t tmpfs -o ${flags} tmpfs ${place} && cp -a ${sandbox}/. ${place} && exec "$@"`,
          "sh",
        ],
      })
    const suid = await on("nosuid", "--allow-setuid", place, "cat", "/proc/self/mountinfo")
    assert.match(suid.text, / \/ rw,nosuid,/, suid.stderr)
    assert.match(
      (await on("mode=755", "--allow-setuid", place, "cat", "/proc/self/mountinfo")).text,
      / \/ rw,nodev,/,
    )
    const noexec = await on("noexec", place, "true")
    assert.equal(noexec.status, 255)
    assert.match(noexec.stderr, /true: not found in the image, or not executable/)
  })

  it("takes a name for a name, whatever lies in the working folder, and a path by its ./", async () => {
    const cwd = newFolder("names")
    mkdirSync(path.join(cwd, "docker:"))
    for (const name of ["oci:image", "docker:/image!"])
      execFileSync("cp", ["-a", sandbox, path.join(cwd, name)])
    const refusals = {
      "oci:image": /\bimage\b.*(no such|layout)/s,
      "docker://image!": /"library\/image!" is no repository/,
    }
    for (const [name, refusal] of Object.entries(refusals)) {
      for (const args of [
        ["ls", name, "/"],
        ["build", "out.sif", name],
      ]) {
        const { status, stderr } = await sifcrypt(args, { as: "self", cwd })
        assert.match(stderr, refusal)
        assert.notEqual(status, 0)
      }
      assert.match(
        await sifcryptOk(["ls", `./${name}`, "/data"], { as: "self", cwd }).then(({ text }) => text),
        /hello/,
      )
    }
  })
})
