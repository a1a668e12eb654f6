// The memory engine: payloads where there is no /dev/fuse.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { once } from "node:events"
import {
  chmodSync,
  chownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { setImmediate } from "node:timers/promises"
import {
  isRoot,
  sifcrypt,
  sifcryptOk,
  startSifcrypt,
  userId,
  type As,
  type CommandOptions,
  type Result,
} from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { noneOfGroup } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

describe("the memory engine", () => {
  const keys = testKeys()
  const folder = newFolder("memory", userId)
  const image = path.join(folder, "image.sif")
  const slow = path.join(folder, "slow.sif")
  const layer = path.join(folder, "layer.squashfs")
  const tree = makeRootTree()
  const dev = newFolder("dev")
  const credentials = ["--pem-path", keys.privateKey]

  before(async function () {
    if (!isRoot) skip(this, "needs root, to take /dev/fuse away")
    writeFileSync(path.join(tree, "data", "closed"), "closed\n", { mode: 0o600 })
    writeFileSync(path.join(tree, "data", "large"), Buffer.alloc(16 << 20, "words"))
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree], { as: "self" })
    // It takes a while to unpack.
    rmSync(path.join(tree, "data", "large"))
    writeFileSync(path.join(tree, "data", "slow"), Buffer.alloc(128 << 20, "words"))
    await sifcryptOk(["build", "--pem-path", keys.publicKey, slow, tree], { as: "self" })
    rmSync(path.join(tree, "data", "slow"))
    rmSync(path.join(tree, "data", "closed"))
    const over = newFolder("memory-layer")
    mkdirSync(path.join(over, "data"))
    writeFileSync(path.join(over, "data", "over"), "over\n")
    execFileSync("mksquashfs", [over, layer, "-quiet", "-no-progress"], { stdio: "ignore" })
    for (const file of [image, slow]) chmodSync(file, 0o644)
  })

  /** Runs with changes to what a mount namespace shows. */
  const changed = (script: string): readonly string[] => [
    "unshare",
    "-m",
    "sh",
    "-c",
    `${script} && exec "$@"`,
    "sh",
  ]
  // What containers have in its place, and none at all.
  const withoutFuse = {
    "another device in its place": "mount --bind /dev/null /dev/fuse",
    "a /dev without it": [
      `mount -t tmpfs dev ${dev} && cd ${dev}`,
      "cp -a /dev/null /dev/zero /dev/random /dev/urandom /dev/tty . && mkdir shm pts && ln -s /proc/self/fd fd",
      `mount --bind ${dev} /dev && cd -`,
    ].join(" && "),
  }
  const [nullFuse] = Object.values(withoutFuse)

  for (const as of ["user", "self"] as const satisfies readonly As[])
    describe(as === "user" ? "as an ordinary user" : "as root", () => {
      const run = (args: readonly string[], options: CommandOptions = {}): Promise<Result> =>
        sifcrypt(args, { as, cwd: folder, ...options })

      // Where the kernel engine works, it is root's.
      for (const [what, script] of Object.entries(withoutFuse).slice(as === "user" ? 0 : 1))
        it(`is what auto takes where there is ${what}, and says so`, async () => {
          const wrapper = changed(`{ ${script}; } > /dev/null`)
          const result = await run(["exec", ...credentials, image, "cat", "/data/hello", "/data/closed"], {
            wrapper,
          })
          assert.match(
            result.stderr,
            /^sifcrypt: .*image\.sif: \/dev\/fuse is missing or closed here, so the image is/,
          )
          assert.equal(result.text, "hello\nclosed\n")
        })

      it("shows the same files as user space does, read-only", async () => {
        const script =
          // The time of the root is that of the layer over it.
          'stat -c "%A %u %g" /; for f in /bin/* /data /data/* /home; do stat -c "%A %u %g %Y %N" $f; done; ' +
          "cat /data/*; touch /data/x 2>&1; id -u"
        const [memory, userspace] = await Promise.all(
          ["memory", "userspace"].map((engine) =>
            run(["exec", "--engine", engine, ...credentials, image, "sh", "-c", script]),
          ),
        )
        assert.equal(memory?.stderr, "")
        assert.match(memory.text, /^-rw------- .*closed\n/m)
        assert.equal(memory.text, userspace?.text)
      })

      it("takes instances, and commands that join them", async () => {
        const name = `memory-${as}`
        await sifcryptOk(["instance", "start", "--engine", "memory", ...credentials, image, name], { as })
        try {
          const joined = await run(["exec", `instance://${name}`, "cat", "/data/closed"])
          assert.equal(joined.text, "closed\n", joined.stderr)
        } finally {
          await sifcryptOk(["instance", "stop", name], { as })
        }
      })

      it("takes what lies over a folder, and what is bound out of an image, where there is no /dev/fuse", async () => {
        const words = ["--overlay", layer, "-B", `${image}:/in:image-src=/data`, ...credentials, tree]
        const wrapper = changed(`{ ${withoutFuse["a /dev without it"]}; } > /dev/null`)
        const result = await run(["exec", ...words, "cat", "/data/over", "/in/closed"], { wrapper })
        assert.equal(result.text, "over\nclosed\n", result.stderr)
        const notices = result.stderr.split("\n").filter((line) => line.includes("so the image is unpacked"))
        assert.deepEqual(
          notices.map((line) => path.basename(line.split(": ")[1] ?? "")),
          ["layer.squashfs", "image.sif"],
        )
        const name = `layers-${as}`
        const start = ["instance", "start", ...words, name]
        const started = await run(start, { wrapper })
        assert.equal(started.status, 0, started.stderr)
        try {
          const joined = await run(["exec", `instance://${name}`, "cat", "/in/closed"])
          assert.equal(joined.text, "closed\n", joined.stderr)
        } finally {
          await sifcryptOk(["instance", "stop", name], { as })
        }
      })

      it("lets who unpacks see nothing of the machine", async () => {
        const child = startSifcrypt(["exec", "--engine", "memory", ...credentials, slow, "sh", "-c", ":"], {
          as,
          cwd: folder,
        })
        const ended = once(child, "exit")
        const roots = new Set<string>()
        while (child.exitCode === null && child.signalCode === null) {
          for (const processId of readdirSync("/proc").filter((name) => /^\d+$/.test(name)))
            try {
              if (readlinkSync(`/proc/${processId}/exe`).endsWith("/sifcrypt-starter"))
                roots.add(readdirSync(`/proc/${processId}/root`).join(" "))
            } catch {
              // it has ended
            }
          await setImmediate()
        }
        assert.deepEqual(await ended, [0, null])
        assert.ok(roots.has("image proc"), [...roots].join("\n"))
      })

      it("refuses what does not fit into what is free", async () => {
        const meminfo = path.join(folder, "meminfo")
        const text = readFileSync("/proc/meminfo", "utf8")
        writeFileSync(meminfo, text.replace(/^MemAvailable:.*$/m, "MemAvailable:    8192 kB"))
        const result = await run(["exec", "--engine", "memory", ...credentials, image, "true"], {
          wrapper: changed(`mount --bind ${meminfo} /proc/meminfo`),
        })
        assert.match(
          result.stderr,
          /image\.sif: memory: unpacked it does not fit into the 6 MiB that are free here/,
        )
        assert.equal(result.status, 24)
      })

      it("refuses a mount, with the reason", async () => {
        const target = newFolder("memory-mount", as === "user" ? userId : 0)
        const result = await run(["mount", "--engine", "memory", ...credentials, image, target])
        assert.match(result.stderr, /what is unpacked into memory is seen by a payload alone/)
        const auto = await run(["mount", ...credentials, image, target], { wrapper: changed(nullFuse ?? "") })
        assert.notEqual(auto.status, 0)
      })

      it("is gone when it is killed", async () => {
        const group = 54_000 + (as === "user" ? 1 : 0)
        const child = startSifcrypt(
          ["exec", "--engine", "memory", ...credentials, image, "sh", "-c", "echo up; sleep 60"],
          { as, cwd: folder, group },
        )
        await once(child.stdout ?? child, "data")
        child.kill("SIGKILL")
        await noneOfGroup(group, "the end of its processes")
      })
    })

  it("gives what belongs to nobody that is mapped to nobody, as user space shows it, and says so", async () => {
    const own = newFolder("memory-ids")
    for (const name of ["subuid", "subgid"]) writeFileSync(path.join(own, name), "nobody:300000:65536\n")
    const tree = makeRootTree()
    chownSync(path.join(tree, "data", "hello"), 70_000, 5)
    chownSync(path.join(tree, "data"), 5, 70_000)
    const strangers = path.join(folder, "strangers.sif")
    await sifcryptOk(["build", strangers, tree], { as: "self" })
    const [memory, userspace] = await Promise.all(
      ["memory", "userspace"].map((engine) =>
        sifcrypt(
          [
            "exec",
            "--engine",
            engine,
            "--fakeroot",
            strangers,
            "stat",
            "-c",
            "%u:%g",
            "/data/hello",
            "/data",
          ],
          {
            as: "nobody",
            cwd: folder,
            wrapper: changed(
              `mount --bind ${own}/subuid /etc/subuid && mount --bind ${own}/subgid /etc/subgid`,
            ),
          },
        ),
      ),
    )
    assert.equal(memory?.text, "65534:5\n5:65534\n", memory?.stderr)
    assert.equal(userspace?.text, memory.text)
    assert.match(memory.stderr, /2 files of owners who are not mapped here are nobody's/)
  })
})
