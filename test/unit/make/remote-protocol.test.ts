// What the other end of a build says, held against what it may say.
import assert from "node:assert/strict"
import { PassThrough } from "node:stream"
import {
  checkHello,
  checkReply,
  checkRequest,
  checkTransfers,
  protocolOf,
  told,
} from "../../../lib/make/remote-protocol.ts"
import { Channel } from "../../../lib/remote/channel.ts"

describe("the protocol of builds on other machines", () => {
  const channel = new Channel(new PassThrough(), new PassThrough(), { name: "ssh://there" })
  after(() => {
    channel[Symbol.dispose]()
  })
  const refused = { code: "ERR_BUILD_REMOTE", message: /^ssh:\/\/there: what it says is not understood: / }

  it("reads the number of any version, whatever else that says", () => {
    const said = { protocol: 7, version: "9.9", architectures: 1, more: {} }
    assert.deepEqual(protocolOf(channel, said), { protocol: 7, version: "9.9" })
    for (const bad of [null, 1, {}, { protocol: "1", version: "1" }, { protocol: 1, version: "1\u001b[2J" }])
      assert.throws(() => protocolOf(channel, bad), refused)
  })

  it("takes what is said, and nothing beside it", () => {
    const hello = { protocol: 1, version: "0.1.0", architectures: ["amd64", "386"] }
    assert.deepEqual(checkHello(channel, hello), hello)
    const failed = { kind: "failed", error: { name: "BuildError", code: "ERR_BUILD_SCRIPT", message: "x" } }
    for (const reply of [
      { kind: "step", text: "x" },
      { kind: "notice", text: "x" },
      { kind: "progress", bytes: 1 },
      failed,
      { kind: "built", size: 4096, entries: 1, inputBytes: 1, hasOciConfig: false },
    ]) {
      assert.equal(checkReply(channel, reply).kind, reply.kind)
      assert.throws(() => checkReply(channel, { ...reply, more: 1 }), refused, reply.kind)
    }
  })

  it("refuses what would mean something else to whoever reads it", () => {
    for (const reply of [
      null,
      1,
      [],
      {},
      { kind: "constructor" },
      { kind: "step" },
      { kind: "step", text: "x".repeat(70_000) },
      { kind: "progress", bytes: -1 },
      { kind: "progress", bytes: 1e300 },
      { kind: "built", size: 2 ** 60, entries: 1, inputBytes: 1, hasOciConfig: false },
      { kind: "failed", error: { name: "x y", message: "" } },
      { kind: "failed", error: { name: "x", message: "", code: "ERR_\n" } },
      { kind: "failed", error: { name: "x", message: "", errno: "1" } },
    ])
      assert.throws(() => checkReply(channel, reply), refused, JSON.stringify(reply).slice(0, 80))
    assert.throws(
      () => checkHello(channel, { protocol: 1, version: "1", architectures: Array(65).fill("x") }),
      refused,
    )
    for (const request of [null, {}, { kind: "build", path: "x", options: {}, bases: [], hasFiles: false }])
      assert.throws(() => checkRequest(channel, request), refused)
    for (const names of ["{", "{}", '[{"source":"","names":[]}]', '[{"source":"x","names":["a\\u0000b"]}]'])
      assert.throws(() => checkTransfers(channel, Buffer.from(names)), refused, names)
  })

  it("says no more than the other side takes", () => {
    assert.equal(told("x"), "x")
    const long = { kind: "notice", text: told("x".repeat(1_000_000)) }
    assert.equal(checkReply(channel, long).kind, "notice")
  })
})
