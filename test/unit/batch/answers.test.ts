import assert from "node:assert/strict"
import { once } from "node:events"
import { connect, createServer, type Socket } from "node:net"
import path from "node:path"
import { answerLine, readLine } from "../../../lib/batch/authenticators.ts"
import { newFolder } from "../../support/scratch.ts"

describe("answerLine", () => {
  it("tells of an answer that could not be sent, and of no other", async () => {
    const place = path.join(newFolder("answers"), "socket")
    const server = createServer({ allowHalfOpen: true }).listen(place)
    await once(server, "listening")
    try {
      for (const leaves of [false, true]) {
        const client = connect(place)
        const [socket] = (await once(server, "connection")) as [Socket]
        let lost = 0
        socket.on("error", () => undefined)
        const closed = new Promise((resolve) => socket.once("close", resolve))
        if (leaves) {
          client.destroy()
          await once(client, "close")
        }
        answerLine(socket, { status: "released" }, () => lost++)
        if (!leaves) assert.equal(await readLine(client), '{"status":"released"}')
        client.destroy()
        await closed
        assert.equal(lost, leaves ? 1 : 0)
      }
    } finally {
      server.close()
    }
  })
})
