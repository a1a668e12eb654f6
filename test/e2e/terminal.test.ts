// A terminal for a payload that a program runs.
import assert from "node:assert/strict"
import path from "node:path"
import { text } from "node:stream/consumers"
import { open, type Image, type Running } from "../../lib/index.ts"
import { isRoot, sifcryptOk } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { newFolder } from "../support/scratch.ts"
import { skip } from "../support/skip.ts"
import { typing } from "../support/terminal.ts"
import { makeRootTree } from "../support/trees.ts"

describe("a terminal for a program", () => {
  const keys = testKeys()
  let file: string
  let image: Image

  before(async () => {
    file = path.join(newFolder("terminal"), "image.sif")
    await sifcryptOk(["build", "--pem-path", keys.publicKey, file, makeRootTree()], { as: "self" })
    image = await open(file, { unlock: [{ key: { file: keys.privateKey } }] })
  })
  after(async () => {
    await image.close()
  })

  const start = async (script: string): Promise<Running & { terminal: NonNullable<Running["terminal"]> }> => {
    const running = await image.exec(["sh", "-c", script], {
      engine: "userspace",
      stdio: "pty",
      terminalSize: { columns: 100, rows: 30 },
    })
    assert.ok(running.terminal)
    assert.deepEqual([running.stdin, running.stdout, running.stderr], [null, null, null])
    return running as Running & { terminal: NonNullable<Running["terminal"]> }
  }

  /** Reads until that has been shown. */
  async function shown(running: Running, wanted: string): Promise<string> {
    let seen = ""
    for (;;) {
      const chunk = running.terminal?.read() as Buffer | null
      if (chunk !== null) seen += chunk.toString()
      if (seen.includes(wanted)) return seen
      await new Promise((resolve) => running.terminal?.once("readable", resolve))
    }
  }

  it("is one: the payload's streams, with a size", async () => {
    await using running = await start("test -t 0 && test -t 1 && test -t 2 && tty && stty size; exit 7")
    assert.match(await text(running.terminal), /^\/dev\/pts\/\d+\r\n30 100\r\n$/)
    assert.equal((await running.exited).exitCode, 7)
  })

  it("passes on what is typed, and its keys are signals", async () => {
    await using running = await start(
      "read line; echo got $line; trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.1; done",
    )
    running.terminal.write("some words\n")
    await shown(running, "ready")
    running.terminal.write("\x03")
    await shown(running, "interrupted")
    assert.equal((await running.exited).exitCode, 9)
  })

  it("changes its size", async () => {
    await using running = await start(
      "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.1; done",
    )
    await shown(running, "ready")
    running.terminal.resize({ columns: 132, rows: 50 })
    await shown(running, "50 132")
    assert.equal((await running.exited).exitCode, 0)
    assert.throws(() => {
      running.terminal.resize({ columns: 0, rows: 50 })
    }, RangeError)
  })

  it("shows all of much output, to a slow reader as well", async () => {
    await using running = await start("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
    let seen = ""
    for await (const chunk of running.terminal) {
      seen += String(chunk)
      await new Promise((resolve) => setImmediate(resolve))
    }
    assert.equal(seen.split("\r\n").length, 20_001)
    assert.equal((await running.exited).exitCode, 0)
  })

  it("ends the payload when it is disposed of", async () => {
    const running = await start("echo ready; sleep 300")
    await shown(running, "ready")
    await running[Symbol.asyncDispose]()
    assert.notEqual((await running.exited).exitCode, 0)
    assert.equal(running.terminal.destroyed, true)
  })

  it("is there where the machine has no /dev/console, with the machine's devices and terminals of its own", async function () {
    if (!isRoot) skip(this, "needs root, to give the machine another /dev")
    const bare = `set -e
      mount -t tmpfs dev /mnt
      cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/fuse /dev/ptmx /mnt/
      mkdir /mnt/pts /mnt/shm && mount --bind /dev/pts /mnt/pts && echo shared >/mnt/shm/note
      ln -s null /mnt/nothing && mknod /mnt/own c 1 7 && ln -s nowhere /mnt/gone && ln -s /etc/passwd /mnt/elsewhere
      mount --rbind /mnt /dev
      umount -l /mnt
      exec "$@"`
    const { wrapper = [] } = typing("")
    const script =
      "test -t 0 && test -c /dev/console && tty && cat /dev/shm/note && ls -d /dev/nothing /dev/own && ! test -e /dev/elsewhere && ls /dev/pts && echo typed >/dev/tty"
    const { text } = await sifcryptOk(
      ["exec", "--engine", "userspace", "--pem-path", keys.privateKey, file, "sh", "-c", script],
      {
        wrapper: ["unshare", "--mount", "--propagation", "private", "sh", "-c", bare, "sh", ...wrapper],
      },
    )
    assert.match(text, /\/dev\/pts\/0\s+shared\s+\/dev\/nothing\s+\/dev\/own\s+0\s+ptmx\s+typed\s+$/)
  })
})
