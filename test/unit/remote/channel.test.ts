// A connection to somebody who may say anything, or nothing.
import assert from "node:assert/strict"
import { PassThrough } from "node:stream"
import { Channel } from "../../../lib/remote/channel.ts"
import { encodeFrame, FrameKind, GREETING } from "../../../lib/remote/frames.ts"

function pair(silenceMs?: number): { input: PassThrough; output: PassThrough; channel: Channel } {
  const [input, output] = [new PassThrough(), new PassThrough()]
  return { input, output, channel: new Channel(input, output, { name: "ssh://there", silenceMs }) }
}

function say(input: PassThrough, ...frames: readonly Buffer[]): void {
  input.write(Buffer.concat([GREETING, ...frames]))
}

const data = (text: string): Buffer => encodeFrame(FrameKind.data, Buffer.from(text))
const end = encodeFrame(FrameKind.end)
const code = "ERR_BUILD_REMOTE"

describe("Channel", () => {
  it("carries messages and streams both ways", async () => {
    const [there, back] = [new PassThrough(), new PassThrough()]
    using here = new Channel(back, there, { name: "there" })
    using other = new Channel(there, back, { name: "here" })
    await here.greet({ one: 1 })
    const sending = here.sendStream([Buffer.alloc(600_000, 1), Buffer.from("x")])
    await other.greet({ two: 2 })
    assert.deepEqual(await other.message(), { one: 1 })
    assert.equal((await other.bytes(600_001)).length, 600_001)
    await sending
    assert.deepEqual(await here.message(), { two: 2 })
    await here.finish()
    assert.equal(await other.next(), undefined)
    assert.ok(other.over.aborted)
  })

  it("takes no more of a stream than it may have", async () => {
    const { input, channel } = pair()
    say(input, data("12345"), data("6"), end)
    await assert.rejects(channel.bytes(5), { code, message: /a stream of more than 5 bytes/ })
    channel[Symbol.dispose]()
  })

  it("puts together a stream of the smallest pieces", async () => {
    const { input, channel } = pair()
    say(
      input,
      ...Array.from({ length: 5 }, () => data("x")),
      data("y".repeat(200_000)),
      data("z".repeat(200_000)),
      end,
    )
    const bytes = await channel.bytes(400_005)
    assert.equal(bytes.toString("latin1"), "x".repeat(5) + "y".repeat(200_000) + "z".repeat(200_000))
    channel[Symbol.dispose]()
  })

  it("refuses a frame in the place of another, and what is no JSON", async () => {
    for (const [frame, message] of [
      [data("x"), /a frame of kind 2 where one of kind 1 belongs/],
      [encodeFrame(FrameKind.message, Buffer.from("{")), /is no JSON/],
      [encodeFrame(FrameKind.message, Buffer.from([0x22, 0xff, 0x22])), /is no JSON/],
      [encodeFrame(FrameKind.message, Buffer.from("[".repeat(1000))), /is no JSON/],
    ] as const) {
      const { input, channel } = pair()
      say(input, frame)
      await assert.rejects(channel.message(), { code, message })
      channel[Symbol.dispose]()
    }
  })

  it("says what a stranger said, as it may be shown", async () => {
    const { input, channel } = pair()
    input.end("Last login: \x1b[2J Monday")
    await assert.rejects(channel.message(), { code, message: /begins with "Last login: / })
    assert.ok(channel.hasHeard)
    channel[Symbol.dispose]()
  })

  it("tells of an end in the middle, and of none at all", async () => {
    const cut = pair()
    say(cut.input, data("x"))
    cut.input.end()
    await assert.rejects(cut.channel.bytes(9), { code, message: /the connection ended/ })
    cut.channel[Symbol.dispose]()
    const nothing = pair()
    nothing.input.end()
    await assert.rejects(nothing.channel.message(), { code, message: /before anything was said/ })
    assert.ok(!nothing.channel.hasHeard)
    nothing.channel[Symbol.dispose]()
  })

  it("does not wait for whoever is silent", async () => {
    const { input, channel } = pair(80)
    say(input, data("x"))
    await assert.rejects(channel.bytes(9), { code, message: /nothing was heard for/ })
    assert.ok(channel.over.aborted)
    await assert.rejects(channel.send({}), { code })
    channel[Symbol.dispose]()
  })

  it("does not wait for whoever takes nothing and goes", async () => {
    for (const error of [new Error("broken"), undefined]) {
      const { output, channel } = pair()
      const sending = channel.sendStream([Buffer.alloc(1 << 20)])
      output.destroy(error)
      await assert.rejects(sending, { code, message: /the connection ended/ })
      channel[Symbol.dispose]()
    }
  })
})
