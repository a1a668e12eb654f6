// A terminal on which somebody uses a program in an image: Ctrl-C typed at it, and its end.
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { chownSync, closeSync, constants, existsSync, openSync, readFileSync, writeFileSync } from "node:fs"
import path from "node:path"
import { finish, isRoot, sifcrypt, sifcryptOk, startSifcrypt, userId } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { noneOfGroup, processesOfGroup, signalGroup, waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { typingUnseen } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

describe("a terminal and its payload", () => {
  const keys = testKeys()
  const folder = newFolder("interrupt", userId)
  const image = path.join(folder, "image.sif")
  // Not read before: it comes from the server when somebody asks.
  const content = randomBytes(2 << 20)
  const digest = createHash("md5").update(content).digest("hex")
  const ctrlC = "\x03"

  before(async () => {
    const tree = makeRootTree()
    writeFileSync(path.join(tree, "data", "random"), content)
    await sifcryptOk(["build", "--pem-path", keys.publicKey, image, tree])
  })

  const hangUp = `
import os, pty, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
shown = b""
while b"ready: " not in shown:
    shown += os.read(fd, 4096)
os.close(fd)
for _ in range(300):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        sys.exit(0)
    time.sleep(0.1)
os.kill(pid, 9)
sys.exit(99)
`

  for (const flags of [[], ["--pid"]]) {
    const exec = ["exec", "--engine", "userspace", "--pem-path", keys.privateKey, ...flags, image]
    const how = flags.length === 0 ? "" : ` with ${flags.join(" ")}`

    it(`A20: ends what an interactive shell runs, and the image is served on${how}`, async () => {
      // What the terminal echoes of these does not look like a prompt.
      const lines = [`sh -c 'printf "busy%s " :; sleep 300'`, ctrlC, ctrlC, "md5sum /data/random", "exit 5"]
      const script = "export PS1='next: '; exec sh -i"
      const { status, text } = await sifcrypt([...exec, "sh", "-c", script], typingUnseen(lines.join(",")))
      assert.ok(text.includes(`${digest}  /data/random`), text)
      assert.equal(status, 5, text)
    })

    it(`ends an interactive shell whose terminal goes away, and all that stood by it${how}`, async () => {
      const wrapper = ["python3", "-c", hangUp]
      const { status } = await sifcrypt([...exec, "sh", "-c", "export PS1='ready: '; exec sh -i"], {
        wrapper,
      })
      assert.equal(status, 0, "the command is still there")
    })

    it(`leaves nothing to spin when the terminal goes and the payload stays${how}`, async function () {
      if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
      const mark = 75_900 + flags.length
      const place = newFolder("hung-up", userId)
      const script = "trap '' HUP; printf 'ready: '; until [ -e stop ]; do sleep 0.1; done; echo >stopped"
      const ended = sifcrypt([...exec, "sh", "-c", script], {
        wrapper: ["python3", "-c", hangUp],
        cwd: place,
        group: mark,
      })
      const crun = (): boolean =>
        processesOfGroup(mark).some(({ command }) => command.includes("--no-new-keyring"))
      await waitFor("the runtime", crun)
      await waitFor("its end", () => !crun())
      assert.ok(processesOfGroup(mark).some(({ command }) => command.includes("until [ -e stop ]")))
      writeFileSync(path.join(place, "stop"), "")
      assert.equal((await ended).status, 0, "the command is still there")
      assert.equal(readFileSync(path.join(place, "stopped"), "utf8"), "\n")
    })

    // Then it has no terminal of its own, and the command's group is signalled, of which the server is none.
    it(`A20: reaches a payload whose output goes to a file, and the image is served on${how}`, async () => {
      const output = path.join(newFolder("interrupted"), "output")
      const script = `
        trap 'echo interrupted' INT
        # What stands in the foreground beside it is interrupted as well.
        sh -c "trap 'echo inner; exit' INT; printf 'busy: ' >&2; while :; do sleep 0.1; done"
        md5sum /data/random
        exit 5`
      const terminal = typingUnseen(ctrlC)
      const { status, text } = await sifcrypt([...exec, "sh", "-c", script], {
        ...terminal,
        wrapper: [
          ...(terminal.wrapper ?? []),
          "sh",
          "-c",
          'output=$1; shift; exec "$@" >"$output"',
          "sh",
          output,
        ],
      })
      assert.equal(readFileSync(output, "utf8"), `inner\ninterrupted\n${digest}  /data/random\n`, text)
      assert.equal(status, 5, text)
    })
  }
})

describe("a command that is ended while it starts", () => {
  it("ends by the signal, also where the payload comes up before what has started it is killed", async function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
    const group = 85_300
    const image = path.join(newFolder("early"), "image.sif")
    await sifcryptOk(["build", image, makeRootTree()], { as: "self" })
    const slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=kill", "-e"]
    const child = startSifcrypt(["exec", "--engine", "userspace", image, "sleep", "300"], {
      ...{ as: "self", group },
      wrapper: [...slow, "inject=kill:delay_enter=1500000"],
      stdio: "ignore",
    })
    try {
      const supervisor = await waitFor("what starts the container", () =>
        processesOfGroup(group).find(
          ({ pid, command }) =>
            command.startsWith("sifcrypt-starter run") &&
            processesOfGroup(group).filter(({ parent }) => parent === pid).length === 2,
        ),
      )
      process.kill(supervisor.pid, "SIGTERM")
      await waitFor("the payload", () =>
        processesOfGroup(group).some(({ command }) => /^(?:\S*\/)?sleep/.test(command)),
      )
      const { status, signal } = await finish(child)
      assert.deepEqual([status, signal], [null, "SIGTERM"])
      await noneOfGroup(group, "the end of all")
    } finally {
      signalGroup(group, "SIGKILL")
    }
  })
})

describe("a command that waits for a pipe that nobody writes to", () => {
  const folder = newFolder("waiting", userId)
  const at = (name: string): string => path.join(folder, name)
  const group = 75_960

  before(async function () {
    if (!isRoot) skip(this, "needs root, to mark all processes that come of a command")
    await sifcryptOk(["build", at("image.sif"), makeRootTree()])
    execFileSync("mkfifo", [at("pipe")])
    chownSync(at("pipe"), userId, userId)
    writeFileSync(at("empty.def"), "Bootstrap: scratch\n")
  })

  const exec = ["exec", "--engine", "userspace"]
  for (const [what, args] of [
    ["a passphrase", ["build", "--passphrase-file", "pipe", "output.sif", "image.sif"]],
    ["arguments of a build", ["build", "--build-arg-file", "pipe", "output.sif", "empty.def"]],
    ["limits", [...exec, "--apply-cgroups", "pipe", "image.sif", "true"]],
    ["variables, in a shell", [...exec, "--env-file", "pipe", "image.sif", "true"]],
    ["a filter of system calls", [...exec, "--security", "seccomp:pipe", "image.sif", "true"]],
    ["a certificate", ["verify", "--certificate", "pipe", "image.sif"]],
  ] as const)
    it(`ends by one Ctrl-C, with status 130: for ${what}`, async () => {
      const ended = finish(startSifcrypt(args, { group, cwd: folder }))
      const open = (): number | undefined => {
        try {
          return openSync(at("pipe"), constants.O_WRONLY | constants.O_NONBLOCK)
        } catch {
          return undefined // nobody reads it yet
        }
      }
      const writer = await waitFor("a reader", open)
      try {
        // All that is in the foreground of a terminal gets it.
        signalGroup(group, "SIGINT")
        const { status, stderr } = await ended
        assert.deepEqual([status, stderr], [130, ""])
      } finally {
        closeSync(writer)
      }
      assert.equal(existsSync(at("output.sif")), false)
    })

  it("is none where an image is to be read: a pipe is no image", async () => {
    const { status, stderr } = await sifcrypt(["ls", "pipe"], { cwd: folder })
    assert.equal(status, 21)
    assert.match(stderr, /not a regular file/)
  })
})
