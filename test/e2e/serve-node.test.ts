// `sifcrypt batch serve-node`: everybody on the node can reach its socket.
import assert from "node:assert/strict"
import type { ChildProcess } from "node:child_process"
import { createPrivateKey } from "node:crypto"
import { once } from "node:events"
import { chmodSync, copyFileSync, readFileSync } from "node:fs"
import { connect, type Socket } from "node:net"
import path from "node:path"
import { sealBundle } from "../../lib/batch/bundle.ts"
import { newPair, type KeyRequest } from "../../lib/batch/key-exchange.ts"
import { SecretTable } from "../../lib/batch/secret-table.ts"
import { finish, runProgram, startSifcrypt } from "../support/cli.ts"
import { testKeys } from "../support/keys.ts"
import { waitFor } from "../support/processes.ts"
import { newFolder } from "../support/scratch.ts"

describe("the service that opens bundles on a node", () => {
  const folder = newFolder("serve-node")
  const key = path.join(folder, "node.key")
  const socket = path.join(folder, "socket")
  let service: ChildProcess
  let ended: ReturnType<typeof finish>

  before(async () => {
    copyFileSync(testKeys().privateKey, key)
    chmodSync(key, 0o600)
    service = startSifcrypt(["batch", "serve-node", "--node", "n1", "--key", key, "--socket", socket], {
      as: "self",
    })
    ended = finish(service)
    // It is bound before it is listened at.
    assert.ok(service.stdout)
    const [said] = (await once(service.stdout, "data")) as [Buffer]
    assert.match(said.toString(), /"event":"started"/)
  })
  after(async () => {
    service.kill("SIGTERM")
    const { status, text } = await ended
    assert.equal(status, 0)
    assert.match(text, /"event":"refused"/)
  })

  /** Says something, and hears the answer; the connection stays open on this side. */
  async function hold(line: string): Promise<{ readonly held: Socket; readonly answer: string }> {
    const held = connect({ path: socket, allowHalfOpen: true })
    held.write(`${line}\n`)
    let answer = ""
    held.on("data", (piece: Buffer) => (answer += piece.toString("utf8")))
    await once(held, "end")
    return { held, answer }
  }

  it("has no connection left of those whom it has answered, who keep theirs", async () => {
    const all = await Promise.all(Array.from({ length: 20 }, () => hold("{}")))
    for (const { held, answer } of all) {
      assert.match(answer, /^{"status":"refused","reason":"it is no request"}\n$/)
      // Whoever writes to nobody gets EPIPE.
      let isOver = false
      held.once("error", () => (isOver = true))
      await waitFor("the end of the connection", () => {
        if (!isOver) held.write("x")
        return isOver
      })
    }
  })

  it("answers no process to which another has left its connection", async () => {
    const digest = "ab".repeat(32)
    const uid = process.geteuid?.() ?? 0
    const secrets = SecretTable.write(new Map([[digest, Buffer.alloc(64, 7)]]))
    const about = { set: "set", uid, expires: Date.now() + 60_000, digests: [digest] }
    const node = { node: "n1", key: createPrivateKey(readFileSync(key)) }
    const { head, sealed, nodes } = sealBundle(about, secrets, [node])
    const request: KeyRequest = {
      ...({
        version: 1,
        set: "set",
        slurmJob: 1,
        array: 1,
        element: 0,
        node: "n1",
        digest,
        nonce: "",
      } as const),
      publicKey: newPair().publicKey.toString("base64"),
    }
    const { fingerprint, key: wrapped } = nodes[0]!
    const bundle = { head, sealed, fingerprint, key: wrapped }
    const line = JSON.stringify({ request: JSON.stringify(request), bundle })
    // Who connects ends, and is reaped by whoever gets what is left behind; then that one asks.
    const heir = `
      const { existsSync } = require("node:fs")
      const [pid, line] = process.argv.slice(1)
      const pause = new Int32Array(new SharedArrayBuffer(4))
      while (existsSync("/proc/" + pid)) Atomics.wait(pause, 0, 0, 10)
      const socket = new (require("node:net").Socket)({ fd: 3 })
      socket.pipe(process.stdout)
      socket.write(line + "\\n")
    `
    const program = `
      const { connect } = require("node:net")
      const { spawn } = require("node:child_process")
      const [path, heir, line] = process.argv.slice(1)
      const socket = connect(path, () => {
        spawn(process.execPath, ["-e", heir, String(process.pid), line], { stdio: ["ignore", 1, 2, socket._handle.fd] })
        process.exit()
      })
    `
    const { text, stderr } = await runProgram([process.execPath, "-e", program, socket, heir, line], {
      as: "self",
    })
    assert.match(text, /^{"status":"refused","reason":"process \d+ has ended"}\n$/, stderr)
  })
})
