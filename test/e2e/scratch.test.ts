// The scratch of a build in user space: memory first, and an encrypted unnamed file.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs"
import path from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { finish, idOf, isRoot, sifcrypt, startSifcrypt, type As, type Result } from "../support/cli.ts"
import { makeLayout } from "../support/layout.ts"
import {
  holdsFuse,
  processesBelow,
  processesOfGroup,
  waitFor,
  type ProcessInfo,
} from "../support/processes.ts"
import { seeded } from "../support/random.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { makeRootTree } from "../support/trees.ts"

const random = seeded()

const users: readonly As[] = isRoot ? ["self", "user"] : ["user"]
const nameOf = (as: As): string => (as === "self" && isRoot ? "root" : "an ordinary user")
/** How often each process is killed. */
const kills = Number(process.env["SIFCRYPT_KILLS"] ?? 1)
const marker = "marker-of-a-build-0123456789abcdef"
let group = 81_000

for (const as of users)
  describe(`the scratch of a build in user space as ${nameOf(as)}`, () => {
    const place = newFolder("scratch", idOf(as))
    const tmp = newFolder("tmp", idOf(as))
    const at = (name: string): string => path.join(place, name)
    const userspace = ["--scratch", "userspace", "--scratch-memory", "8m", "--tmpdir", tmp]

    function define(name: string, script: string): string {
      writeFileSync(at(name), `Bootstrap: localimage\nFrom: base\n\n%post\n${script}`)
      return name
    }
    const start = (flags: readonly string[], options: object = {}): ChildProcess =>
      startSifcrypt(["build", ...flags], { as, cwd: place, ...options })
    const buildHere = (flags: readonly string[], options: object = {}): Promise<Result> =>
      sifcrypt(["build", "-F", ...flags], { as, cwd: place, ...options })

    before(() => {
      execFileSync("cp", ["-a", makeRootTree(), at("base")])
      for (const applet of [
        "dd",
        "seq",
        "df",
        "mv",
        "ln",
        "rm",
        "mkfifo",
        "stat",
        "chmod",
        "touch",
        "find",
        "sort",
        "cmp",
        "truncate",
      ])
        if (!existsSync(at(`base/bin/${applet}`))) symlinkSync("busybox", at(`base/bin/${applet}`))
      writeFileSync(at("base/data/random"), randomBytes(12 << 20))
      if (isRoot) execFileSync("chown", ["-Rh", `${idOf(as)}:${idOf(as)}`, place])
    })
    afterEach(() => {
      assert.deepEqual(readdirSync(tmp), [])
    })

    it("holds more than the memory it may take, in a file that shows nothing plain", async () => {
      define(
        "secret.def",
        `for i in $(seq 200); do echo ${marker}; done > /etc/marker
for i in $(seq 40); do dd if=/etc/marker of=/data/markers bs=256k conv=notrunc oflag=append 2>/dev/null; done
cp /data/random /data/again
cp /etc/marker /data/late
cmp /data/random /data/again
df -P / | cat
echo ready
while [ ! -e /tmp/continue ]; do sleep 0.05; done
`,
      )
      mkdirSync(at("shared"), { recursive: true })
      chmodSync(at("shared"), 0o777)
      const child = start(["-F", ...userspace, "--bind", `${at("shared")}:/tmp`, "secret.sif", "secret.def"])
      const ended = finish(child)
      let printed = ""
      child.stdout?.on("data", (text: Buffer) => (printed += text.toString()))
      await waitFor("the script", () => printed.includes("ready"))
      assert.match(printed, /^sifcrypt-scratch /m)
      assert.deepEqual(readdirSync(tmp), [], "its file has no name")
      if (isRoot) {
        const server = processesBelow(child.pid ?? 0).find(({ pid }) => holdsFuse(pid))
        assert.ok(server !== undefined)
        const file = readdirSync(`/proc/${server.pid}/fd`)
          .map((fd) => `/proc/${server.pid}/fd/${fd}`)
          .find((fd) => readlinkSync(fd).startsWith(tmp))
        assert.ok(file !== undefined && statSync(file).size > 8 << 20, "it holds what memory has no room for")
        const bytes = readFileSync(file)
        assert.ok(!bytes.includes(marker.slice(0, 12)), "and nothing in plain")
      }
      writeFileSync(at("shared/continue"), "")
      const { status, stderr } = await ended
      assert.equal(status, 0, stderr)
      assert.ok(!existsSync(at("secret.sif.tmp")))
    })

    if (as === "self" && isRoot)
      it("fills no folder that a script names, whoever asks", async () => {
        mkdirSync(at("base/asked"), { recursive: true })
        writeFileSync(at("base/asked/pieces"), "")
        writeFileSync(
          at("ask.c"),
          `#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int count, char** words) {
  struct stat pieces;
  if (count != 4 || setuid(atoi(words[1])) != 0 || stat(words[3], &pieces) != 0) return 1;
  const int folder = open(words[2], O_RDONLY | O_DIRECTORY);
  const uint64_t number = pieces.st_ino;
  puts(ioctl(folder, _IOW('s', 1, uint64_t), &number) == 0 ? "agreed" : strerrorname_np(errno));
  return 0;
}
`,
        )
        execFileSync("gcc", ["-D_GNU_SOURCE", "-static", "-o", at("base/asked/ask"), at("ask.c")])
        define(
          "asked.def",
          `mkdir /data/to
/asked/ask 65534 /data/to /asked/pieces > /data/answers
/asked/ask 0 /data/to /asked/pieces >> /data/answers
cat /data/answers
`,
        )
        const { status, text, stderr } = await buildHere([...userspace, "asked.sif", "asked.def"])
        assert.equal(status, 0, stderr)
        assert.match(text, /^EPERM\nEPERM\n/m)
      })

    if (as === "self" && isRoot)
      it("has no owners whom root's user namespace does not know", async () => {
        makeLayout(at("layout"), at("base"), {}, 70_000)
        writeFileSync(at("known.def"), "Bootstrap: oci\nFrom: layout\n")
        const wrapper = ["unshare", "-U", "-m", "sh", "-c", 'read go && exec "$@"', "sh"]
        const child = start(["-F", ...userspace, "known.sif", "known.def"], { wrapper })
        const processFolder = `/proc/${child.pid}`
        await waitFor(
          "its user namespace",
          () => readlinkSync(`${processFolder}/ns/user`) !== readlinkSync("/proc/self/ns/user"),
        )
        for (const map of ["uid_map", "gid_map"]) writeFileSync(path.join(processFolder, map), "0 0 65536")
        child.stdin?.end("\n")
        const { status, stderr } = await finish(child, { holdInput: true })
        assert.notEqual(status, 0)
        assert.match(stderr, /chown: Invalid argument/)
      })

    it("gives the image that memory gives", async () => {
      define(
        "same.def",
        `cd /data
mkdir -p a/b; echo 1 > a/b/one; ln a/b/one a/two; ln -s two a/three; mv a/b a/c; mkfifo a/fifo
chmod 4751 a/c/one; truncate -s 5000000 a/sparse; echo end >> a/sparse; cp random a/copy; rm random
for i in $(seq 300); do echo $i > a/$i; done; rm a/7; mv a/8 a/9
find . | sort > /etc/list
`,
      )
      const images: Buffer[] = []
      for (const flags of [userspace, ["--scratch", "memory"]]) {
        const made = await buildHere([...flags, "same.sif", "same.def"], {
          env: { SOURCE_DATE_EPOCH: "1700000000" },
        })
        assert.equal(made.status, 0, made.stderr)
        images.push(readFileSync(at("same.sif")))
      }
      assert.ok(images[0]?.equals(images[1] ?? Buffer.alloc(0)))
    })

    it("takes no more of the disk than it may, and says when it is full", async () => {
      define("large.def", "dd if=/dev/zero of=/data/large bs=1M count=100\n")
      const made = await buildHere([...userspace, "--scratch-disk", "24m", "large.sif", "large.def"])
      assert.equal(made.status, 25)
      assert.match(made.stderr, /the scratch is full: it holds 32 MiB/)
      assert.ok(!existsSync(at("large.sif")))
    })

    it("says so when the disk is full", async function () {
      if (!isRoot) skip(this, "needs root, to mount a small disk")
      define("large.def", "dd if=/dev/zero of=/data/large bs=1M count=100\n")
      const disk = newFolder("disk")
      const mount = `mount -t tmpfs -o size=16m,mode=1777 disk ${disk} && exec "$@"`
      const made = await buildHere(
        [...userspace, "--scratch-disk", "1g", "--tmpdir", disk, "large.sif", "large.def"],
        {
          wrapper: ["unshare", "--mount", "sh", "-c", mount, "sh"],
        },
      )
      assert.equal(made.status, 25)
      assert.match(made.stderr, /the scratch is full: it holds [12]\d MiB/)
    })

    it("takes an ordinary folder where the file system counts no files", async function () {
      if (!isRoot) skip(this, "needs root, to mount one that does not")
      define("small.def", "df -P / | cat\n")
      const folder = newFolder("uncounted")
      const mount = `mount -t ramfs -o mode=1777 uncounted ${folder} && exec "$@"`
      const made = await buildHere(["--plain-tmp", "--tmpdir", folder, "small.sif", "small.def"], {
        wrapper: ["unshare", "--mount", "sh", "-c", mount, "sh"],
      })
      assert.equal(made.status, 0, made.stderr)
    })

    it("takes memory alone where there is no /dev/fuse, and says so", async function () {
      if (!isRoot) skip(this, "needs root, to take the device away")
      define("small.def", "df -P / | cat\n")
      const made = await buildHere(["small.sif", "small.def"], {
        wrapper: ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/fuse && exec "$@"', "sh"],
      })
      assert.equal(made.status, 0, made.stderr)
      assert.match(made.text, /^tmpfs /m)
      assert.match(made.stderr, /lie in memory alone/)
      if (as === "self") return
      // A folder that is not one's own is no place for the file.
      const closed = newFolder("closed")
      chmodSync(closed, 0o755)
      const elsewhere = await buildHere(["--tmpdir", closed, "small.sif", "small.def"])
      assert.equal(elsewhere.status, 0, elsewhere.stderr)
      assert.ok(elsewhere.stderr.includes(`${closed}: Permission denied`), elsewhere.stderr)
    })

    const isStarter = ({ command }: ProcessInfo): boolean => command.startsWith("sifcrypt-starter ")
    const victims: Readonly<
      Record<string, (all: readonly ProcessInfo[], command: number) => ProcessInfo | undefined>
    > = {
      "the command": (all, command) => all.find(({ pid }) => pid === command),
      main: (all, command) => all.find((one) => isStarter(one) && one.parent === command),
      "the server": (all) => all.find((one) => isStarter(one) && holdsFuse(one.pid)),
      "the first in the namespaces": (all) =>
        all.filter((one) => isStarter(one) && !holdsFuse(one.pid)).at(-1),
      "the worker": (all) => all.find(({ command }) => command.includes("workspace-start")),
    }
    for (const [name, find] of Object.entries(victims))
      it(`leaves nothing when ${name} is killed at a random moment, ${kills} times`, async function () {
        if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
        define("killed.def", "cp /data/random /data/a; cp /data/random /data/b; sleep 100\n")
        for (let round = 0; round < kills; round++) {
          const marked = ++group
          const child = start(["-F", ...userspace, "killed.sif", "killed.def"], { group: marked })
          const victim = await waitFor(name, () => find(processesOfGroup(marked), child.pid ?? 0))
          const delay = random(400)
          await sleep(delay)
          process.kill(victim.pid, "SIGKILL")
          const { status, stderr } = await finish(child)
          assert.notEqual(status, 0)
          // Its server ends with the namespaces then, and is not what went wrong.
          if (name === "the worker") assert.match(stderr, /in the workspace was killed|did not start/)
          await waitFor(
            `the end of all processes after ${delay} ms`,
            () => processesOfGroup(marked).length === 0,
          )
          assert.deepEqual(readdirSync(tmp), [])
          assert.ok(!existsSync(at("killed.sif")))
        }
      })
  })
